//! What comes out of the socket: the greeting, then responses, in frames.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use hostblob_protocol::local::{Frame, HELLO, Hello, MAX_PAYLOAD, RESPONSE, VERSION};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use zerocopy::FromBytes;

use crate::error::{Error, Result};

/// Bytes asked of the socket at once.
const CHUNK: usize = 16 << 10;
const FRAME_SIZE: usize = size_of::<Frame>();
const HELLO_SIZE: usize = FRAME_SIZE + size_of::<Hello>();

/// One response.
#[derive(Debug)]
pub(super) struct Response {
    pub(super) tag: u64,
    pub(super) aux: u64,
    pub(super) payload: Vec<u8>,
}

/// Why nothing more comes.
pub(super) type Lost = String;

/// Waits until the socket is ready; false when the deadline came first.
pub(super) fn poll(
    socket: BorrowedFd<'_>,
    events: PollFlags,
    deadline: Option<Instant>,
) -> Result<bool, Lost> {
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let left = left.map(|left| Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(left.subsec_nanos()),
        });
        let mut fds = [PollFd::new(&socket, events)];
        match rustix::event::poll(&mut fds, left.as_ref()) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(errno) => return Err(format!("poll: {errno}")),
        }
    }
}

/// Receives the daemon's greeting and the window's descriptor.
pub(super) fn receive_hello(socket: BorrowedFd<'_>, deadline: Instant) -> Result<(Hello, OwnedFd)> {
    let broken = |reason: String| Error::NoDevice(format!("greeting of hostblobd: {reason}"));
    let mut bytes = [0; HELLO_SIZE];
    let mut window = None;
    let mut length = 0;
    while let Some(rest) = bytes.get_mut(length..).filter(|rest| !rest.is_empty()) {
        if !poll(socket, PollFlags::IN, Some(deadline)).map_err(broken)? {
            return Err(broken("none came".to_owned()));
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let mut buffers = [IoSliceMut::new(rest)];
        let got = match rustix::net::recvmsg(socket, &mut buffers, &mut control, flags) {
            Ok(message) => message.bytes,
            Err(Errno::INTR | Errno::AGAIN) => continue,
            Err(errno) => return Err(broken(errno.to_string())),
        };
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(mut fds) = message {
                window = window.or(fds.next());
            }
        }
        if got == 0 {
            return Err(broken("the daemon hung up: it has as many clients as it serves, or ends; its log says which".to_owned()));
        }
        length += got;
    }
    let (frame, rest) =
        Frame::read_from_prefix(&bytes).map_err(|_| broken("too short".to_owned()))?;
    let (hello, _) = Hello::read_from_prefix(rest).map_err(|_| broken("too short".to_owned()))?;
    if frame.kind.get() != HELLO || frame.length.get() as usize != size_of::<Hello>() {
        return Err(broken(format!("unexpected frame {frame:?}")));
    }
    if hello.version.get() != VERSION {
        return Err(Error::Incompatible(format!(
            "the daemon's socket speaks version {}, this library {VERSION}",
            hello.version.get()
        )));
    }
    let window = window.ok_or_else(|| broken("no window came with it".to_owned()))?;
    Ok((hello, window))
}

/// Bytes that have arrived and are no whole frame yet.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    bytes: Vec<u8>,
    spare: Vec<u8>,
}

impl Inbox {
    /// Waits for bytes, takes what there is, and returns the responses that are complete: none when the deadline came first.
    pub(super) fn receive(
        &mut self,
        socket: BorrowedFd<'_>,
        deadline: Option<Instant>,
    ) -> Result<Vec<Response>, Lost> {
        if !poll(socket, PollFlags::IN, deadline)? {
            return Ok(Vec::new());
        }
        self.spare.resize(CHUNK, 0);
        match rustix::net::recv(
            socket.as_fd(),
            self.spare.as_mut_slice(),
            RecvFlags::DONTWAIT,
        ) {
            Ok((_, 0)) => return Err("the daemon hung up".to_owned()),
            Ok((_, length)) => {
                self.bytes
                    .extend_from_slice(self.spare.get(..length).unwrap_or_default());
            }
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(errno) => return Err(format!("recv: {errno}")),
        }
        self.take_frames()
    }

    fn take_frames(&mut self) -> Result<Vec<Response>, Lost> {
        let mut responses = Vec::new();
        let mut rest = self.bytes.as_slice();
        while let Ok((frame, after)) = Frame::read_from_prefix(rest) {
            let length = frame.length.get();
            if frame.kind.get() != RESPONSE || length > MAX_PAYLOAD {
                return Err(format!(
                    "the daemon sent a frame that breaks the rules: {frame:?}"
                ));
            }
            let Some((payload, after)) = after.split_at_checked(length as usize) else {
                break;
            };
            responses.push(Response {
                tag: frame.tag.get(),
                aux: frame.aux.get(),
                payload: payload.to_vec(),
            });
            rest = after;
        }
        let used = self.bytes.len() - rest.len();
        self.bytes.drain(..used);
        Ok(responses)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::IntoBytes;
    use zerocopy::byteorder::little_endian::{U32, U64};

    fn frame(kind: u32, tag: u64, payload: &[u8]) -> Vec<u8> {
        let frame = Frame {
            length: U32::new(u32::try_from(payload.len()).unwrap()),
            kind: U32::new(kind),
            tag: U64::new(tag),
            aux: U64::new(7),
        };
        [frame.as_bytes(), payload].concat()
    }

    #[test]
    fn frames_are_found_however_they_are_cut() {
        let bytes = [
            frame(RESPONSE, 1, b"one"),
            frame(RESPONSE, 2, b""),
            frame(RESPONSE, 3, b"x"),
        ]
        .concat();
        for cut in 0..bytes.len() {
            let mut inbox = Inbox::default();
            inbox.bytes.extend_from_slice(&bytes[..cut]);
            let mut all = inbox.take_frames().unwrap();
            inbox.bytes.extend_from_slice(&bytes[cut..]);
            all.extend(inbox.take_frames().unwrap());
            let tags: Vec<_> = all
                .iter()
                .map(|r| (r.tag, r.aux, r.payload.len()))
                .collect();
            assert_eq!(tags, [(1, 7, 3), (2, 7, 0), (3, 7, 1)], "cut at {cut}");
            assert!(inbox.bytes.is_empty());
        }
    }

    #[test]
    fn a_frame_of_another_kind_or_length_ends_it() {
        let mut inbox = Inbox {
            bytes: frame(HELLO, 1, b""),
            ..Inbox::default()
        };
        assert!(inbox.take_frames().is_err());
        let mut bytes = frame(RESPONSE, 1, b"");
        bytes[..4].copy_from_slice(&(MAX_PAYLOAD + 1).to_le_bytes());
        let mut inbox = Inbox {
            bytes,
            ..Inbox::default()
        };
        assert!(inbox.take_frames().is_err());
    }
}
