//! What the two processes say to each other: frames of JSON over a stream socket, descriptors beside them.
//!
//! Both ends are one program, so there are no versions. Requests that a guest waits for are few and small (mapping a blob asks nothing of a
//! provider), so that a text that people can read costs nothing that counts.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::provider::{Description, Piece, ProviderError, Request};

/// Most descriptors of one frame: Linux takes no more (SCM_MAX_FD).
pub(super) const MAX_DESCRIPTORS: usize = 253;

/// Longest frame in bytes: the most pieces that a memory may have, and more.
const MAX_FRAME: usize = 4 << 20;

/// Longest frame of the child, which may be anybody's by now. What it says is a number or two and an error's text.
const MAX_ANSWER: usize = 64 << 10;

/// A frame, and how much of it is taken from a stranger.
pub(super) trait Frame: DeserializeOwned {
    /// Most bytes.
    const MOST_BYTES: usize;
    /// Most descriptors beside it.
    const MOST_FILES: usize;
}

impl Frame for ToChild {
    const MOST_BYTES: usize = MAX_FRAME;
    const MOST_FILES: usize = MAX_DESCRIPTORS;
}

impl Frame for FromChild {
    const MOST_BYTES: usize = MAX_ANSWER;
    /// What `Export` brings.
    const MOST_FILES: usize = 1;
}

/// What the daemon sends.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum ToChild {
    /// As [`crate::provider::Provider::connect`].
    Open { session: u64 },
    /// As [`crate::provider::Session::submit`].
    Request {
        session: u64,
        sequence: u64,
        request: Asked,
    },
    /// The session is dropped.
    Close { session: u64 },
}

/// A request whose descriptors are beside the frame: one for `AddFile`, as many as there are files for `AddPieces`.
pub(super) type Asked = Request<(), Vec<Part>>;

/// A [`Piece`] of one of the files beside the frame.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) struct Part {
    /// Index of the file.
    pub(super) file: usize,
    pub(super) offset: u64,
    pub(super) length: u64,
}

/// What the child sends.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum FromChild {
    /// First: it serves.
    Ready {
        description: Description,
        reason: String,
    },
    /// First: it does not.
    Failed(String),
    /// A completion. What `Export` brings is a descriptor beside the frame.
    Done {
        session: u64,
        sequence: u64,
        result: Result<(), ProviderError>,
    },
}

/// The descriptors beside a frame.
#[derive(Debug, Default)]
pub(super) struct Beside {
    /// Those that arrived, in their order.
    pub(super) files: Vec<OwnedFd>,
    /// This process had no room for others (RLIMIT_NOFILE): the kernel has closed them.
    pub(super) is_cut: bool,
}

/// Sends a frame, whole.
pub(super) fn send(
    socket: &UnixStream,
    frame: &impl Serialize,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let body = serde_json::to_vec(frame)?;
    let length = u32::try_from(body.len()).map_err(io::Error::other)?;
    let bytes = [&length.to_le_bytes()[..], &body].concat();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::ErrorKind::ArgumentListTooLong.into());
    }
    let mut rest = bytes.as_slice();
    while !rest.is_empty() {
        let data = [IoSlice::new(rest)];
        match rustix::net::sendmsg(socket, &data, &mut control, SendFlags::NOSIGNAL) {
            Ok(sent) => {
                rest = rest.get(sent..).unwrap_or_default();
                // They went with the first bytes.
                control.clear();
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// The next frame, with its descriptors; `None` where the other end is closed.
pub(super) fn receive<T: Frame>(socket: &UnixStream) -> io::Result<Option<(T, Beside)>> {
    let mut length = [0; 4];
    let mut beside = Beside::default();
    if receive_first(socket, &mut length, &mut beside, T::MOST_FILES)? == 0 {
        return Ok(None);
    }
    let length = usize::try_from(u32::from_le_bytes(length)).map_err(io::Error::other)?;
    if length > T::MOST_BYTES {
        return Err(io::Error::other(format!("a frame of {length} bytes")));
    }
    let mut body = vec![0; length];
    let mut stream = socket;
    stream.read_exact(&mut body)?;
    Ok(Some((serde_json::from_slice(&body)?, beside)))
}

/// The length of a frame, and the descriptors that come with it.
fn receive_first(
    socket: &UnixStream,
    to: &mut [u8; 4],
    beside: &mut Beside,
    most: usize,
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut done = 0;
    while done < to.len() {
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let rest = to.get_mut(done..).unwrap_or_default();
        let mut buffers = [IoSliceMut::new(rest)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let got = match rustix::net::recvmsg(socket, &mut buffers, &mut control, flags) {
            Ok(got) => {
                // The space is as large as a message may be, so nothing else makes it short.
                beside.is_cut |= got.flags.contains(ReturnFlags::CTRUNC);
                got.bytes
            }
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        };
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(files) = message {
                beside.files.extend(files);
            }
        }
        if beside.files.len() > most {
            return Err(io::Error::other("a frame with too many descriptors"));
        }
        match got {
            0 if done == 0 => return Ok(0),
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            got => done += got,
        }
    }
    Ok(done)
}

/// Pieces as parts of files, and those files, each once.
pub(super) fn split_pieces(pieces: &[Piece]) -> Result<(Vec<Part>, Vec<Arc<File>>), ProviderError> {
    let mut files: Vec<Arc<File>> = Vec::new();
    let mut parts = Vec::with_capacity(pieces.len());
    for piece in pieces {
        let known = files
            .iter()
            .position(|known| Arc::ptr_eq(known, &piece.file));
        if known.is_none() {
            files.push(Arc::clone(&piece.file));
        }
        parts.push(Part {
            file: known.unwrap_or(files.len() - 1),
            offset: piece.offset,
            length: piece.length,
        });
    }
    if files.len() > MAX_DESCRIPTORS {
        return Err(ProviderError::Invalid(format!(
            "pieces of {} files, {MAX_DESCRIPTORS} can be passed on",
            files.len()
        )));
    }
    Ok((parts, files))
}

/// Descriptors of files, to be sent.
pub(super) fn borrowed<'a>(files: impl IntoIterator<Item = &'a Arc<File>>) -> Vec<BorrowedFd<'a>> {
    files.into_iter().map(|file| file.as_fd()).collect()
}

#[cfg(test)]
mod tests;
