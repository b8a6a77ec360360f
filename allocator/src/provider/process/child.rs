//! The child: a provider behind a socket.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use parking_lot::Mutex;

use super::wire::{self, Asked, Beside, FromChild, Part, ToChild};
use crate::provider::{
    self, Choice, Completion, Elsewhere, Options, Piece, Provider, ProviderError, Request, Session,
};

/// A session of the provider, and which of its requests came without their descriptors.
struct Served {
    session: Box<dyn Session>,
    cut: Arc<Mutex<HashSet<u64>>>,
}

impl Served {
    fn open(provider: &dyn Provider, session: u64, answers: &Arc<Mutex<UnixStream>>) -> Self {
        let answers = Arc::clone(answers);
        let cut = Arc::<Mutex<HashSet<u64>>>::default();
        let missed = Arc::clone(&cut);
        let sink = move |mut completion: Completion| {
            if missed.lock().remove(&completion.sequence) {
                completion.result = Err(ProviderError::OutOfHostMemory(
                    "the process with the GPU driver may have no more descriptors".to_owned(),
                ));
            }
            answer(&answers.lock(), session, completion);
        };
        let session = provider.connect(Box::new(sink));
        Self { session, cut }
    }

    /// How many files a guest has memory in is its choice, so a descriptor that had no room here is no reason to end: it fails its own request, in
    /// its turn.
    fn submit(&mut self, sequence: u64, request: Asked, beside: Beside) {
        let request = asked(request, beside.files).unwrap_or_else(|| {
            self.cut.lock().insert(sequence);
            provider::REFUSED
        });
        self.session.submit(sequence, request);
    }
}

/// Serves a provider to the process at the other end of `socket`, until that closes it.
///
/// # Errors
/// When the socket fails, or the other end talks nonsense. A provider that does not work is told to the other end, and no error.
pub fn serve(socket: UnixStream, choice: Choice, options: &Options) -> io::Result<()> {
    let opened = match provider::open(choice, options) {
        Ok(opened) => opened,
        Err(error) => return wire::send(&socket, &FromChild::Failed(error.to_string()), &[]),
    };
    let ready = FromChild::Ready {
        description: opened.provider.description().clone(),
        reason: opened.reason,
    };
    wire::send(&socket, &ready, &[])?;
    let answers = Arc::new(Mutex::new(socket.try_clone()?));
    let mut sessions: HashMap<u64, Served> = HashMap::new();
    while let Some((frame, beside)) = wire::receive(&socket)? {
        match frame {
            ToChild::Open { session } => {
                let served = Served::open(opened.provider.as_ref(), session, &answers);
                sessions.insert(session, served);
            }
            ToChild::Request {
                session,
                sequence,
                request,
            } => {
                let served = sessions.get_mut(&session).ok_or_else(nonsense)?;
                served.submit(sequence, request, beside);
            }
            ToChild::Close { session } => drop(sessions.remove(&session)),
        }
    }
    Ok(())
}

fn answer(socket: &UnixStream, session: u64, completion: Completion) {
    let Completion { sequence, result } = completion;
    let file = match &result {
        Ok(Some(elsewhere)) => elsewhere.file().cloned(),
        _ => None,
    };
    let done = FromChild::Done {
        session,
        sequence,
        result: result.and_then(|elsewhere| match elsewhere {
            // An address of this process is no use to another.
            Some(Elsewhere::Address(_)) => {
                Err(ProviderError::Invalid("this memory has no file".to_owned()))
            }
            _ => Ok(()),
        }),
    };
    // Where the other end is gone, the loop above hears of it.
    let _ = wire::send(socket, &done, &wire::borrowed(&file));
}

fn nonsense() -> io::Error {
    io::Error::other("a message that makes no sense")
}

/// The request, with its descriptors; `None` where one of them is not there.
fn asked(asked: Asked, mut descriptors: Vec<OwnedFd>) -> Option<Request> {
    match asked {
        Asked::AddFile { file, length, .. } => Some(Request::AddFile {
            file,
            descriptor: descriptors.pop()?,
            length,
        }),
        Asked::AddPieces { file, pieces } => {
            let files = descriptors.into_iter().map(File::from).map(Arc::new);
            let files: Vec<_> = files.collect();
            let piece = |part: Part| {
                let file = files.get(part.file)?;
                Some(Piece {
                    file: Arc::clone(file),
                    offset: part.offset,
                    length: part.length,
                })
            };
            Some(Request::AddPieces {
                file,
                pieces: pieces.into_iter().map(piece).collect::<Option<_>>()?,
            })
        }
        plain => plain.without_memory(),
    }
}

/// The process that serves a provider on its standard input, for [`super::ProcessProvider`].
///
/// # Errors
/// As [`serve`]; or standard input is no socket.
pub fn serve_stdin(choice: Choice, options: &Options) -> io::Result<()> {
    let socket = io::stdin().as_fd().try_clone_to_owned()?;
    rustix::net::sockopt::socket_type(&socket)?;
    serve(UnixStream::from(socket), choice, options)
}
