//! The child: a provider behind a socket.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use parking_lot::Mutex;

use super::wire::{self, Asked, FromChild, Part, ToChild};
use crate::provider::{self, Choice, Completion, Elsewhere, Options, Piece, Request, Session};

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
    let mut sessions: HashMap<u64, Box<dyn Session>> = HashMap::new();
    while let Some((frame, descriptors)) = wire::receive(&socket)? {
        match frame {
            ToChild::Open { session } => {
                let answers = Arc::clone(&answers);
                let sink = Box::new(move |completion| answer(&answers.lock(), session, completion));
                sessions.insert(session, opened.provider.connect(sink));
            }
            ToChild::Request {
                session,
                sequence,
                request,
            } => {
                let session = sessions.get_mut(&session).ok_or_else(nonsense)?;
                session.submit(sequence, asked(request, descriptors)?);
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
            Some(Elsewhere::Address(_)) => Err(provider::ProviderError::Invalid(
                "this memory has no file".to_owned(),
            )),
            _ => Ok(()),
        }),
    };
    // Where the other end is gone, the loop above hears of it.
    let _ = wire::send(socket, &done, &wire::borrowed(&file));
}

fn nonsense() -> io::Error {
    io::Error::other("a message that makes no sense")
}

/// The request, with its descriptors.
fn asked(asked: Asked, mut descriptors: Vec<OwnedFd>) -> io::Result<Request> {
    match asked {
        Asked::AddFile { file, length, .. } => Ok(Request::AddFile {
            file,
            descriptor: descriptors.pop().ok_or_else(nonsense)?,
            length,
        }),
        Asked::AddPieces { file, pieces } => {
            let files = descriptors.into_iter().map(File::from).map(Arc::new);
            let files: Vec<_> = files.collect();
            let piece = |part: Part| {
                let file = files.get(part.file).ok_or_else(nonsense)?;
                Ok(Piece {
                    file: Arc::clone(file),
                    offset: part.offset,
                    length: part.length,
                })
            };
            Ok(Request::AddPieces {
                file,
                pieces: pieces.into_iter().map(piece).collect::<io::Result<_>>()?,
            })
        }
        plain => plain.without_memory().ok_or_else(nonsense),
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
