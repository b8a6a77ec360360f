//! Requests that the VMM answers: in time, late, or never.

use std::collections::VecDeque;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use thiserror::Error;
use vhost::vhost_user::message::BackendReq;

use super::{Channel, Purpose, VERSION, send};
use crate::transport::MapperError;

/// How long the VMM may take to answer. QEMU takes a millisecond; a guest's processor waits meanwhile.
pub(in super::super) const REPLY_TIMEOUT: Duration =
    Duration::from_millis(if cfg!(test) { 500 } else { 5000 });

/// Most replies that may be owed to us. A VMM that never answers must not make us remember more.
const MAX_OWED: usize = 16;

/// A reply is wanted.
const NEED_REPLY: u32 = 0x8;
/// A reply (2), of version 1 (low bits).
const REPLY_FLAG: u32 = 0x4;
/// Bytes of a reply: a header of three words, and a status.
const REPLY_BYTES: usize = 20;

/// Why the VMM did not do it.
#[derive(Debug, Error)]
pub(super) enum Failure {
    #[error(
        "it has not negotiated SHMEM, BACKEND_REQ and REPLY_ACK, or gave no channel for requests"
    )]
    NotNegotiated,
    #[error("it refused: status {0:#x}")]
    Refused(u64),
    #[error("it did not answer within {REPLY_TIMEOUT:?}")]
    Timeout,
    #[error("it has not answered an earlier request yet")]
    Silent,
    #[error(
        "it has the object, and sent no descriptor of it. It is not asked for objects again (QEMU 11.1 is like that: see \
         docs/sharing.md)"
    )]
    NoDescriptor,
    #[error("what it answered is no answer")]
    Confused,
    #[error("{0}")]
    Broken(#[from] io::Error),
}

impl From<&Failure> for MapperError {
    fn from(failure: &Failure) -> Self {
        match failure {
            Failure::NotNegotiated | Failure::Silent => Self::NotAsked,
            Failure::Refused(_) => Self::Refused,
            Failure::Timeout | Failure::NoDescriptor | Failure::Confused | Failure::Broken(_) => {
                Self::Unknown
            }
        }
    }
}

/// What has been found out about the VMM at the other end of a socket.
#[derive(Debug, Default)]
pub(super) struct Habits {
    /// Whether it makes what it maps a part of guest memory, once that is known.
    pub(super) changes_memory: Option<bool>,
    /// It finds objects of other devices, and sends no descriptors of them.
    pub(super) keeps_descriptors: bool,
}

/// Requests on the channel, and their answers, which come in the same order.
#[derive(Debug)]
pub(super) struct Requests {
    channel: Arc<Channel>,
    /// The socket that the rest belongs to.
    socket: Option<Arc<UnixStream>>,
    /// Requests that have not been answered, the oldest first.
    pub(super) owed: VecDeque<BackendReq>,
    /// What has come of the next reply, and the descriptor with it.
    pub(super) partial: Vec<u8>,
    descriptor: Option<OwnedFd>,
    pub(super) habits: Habits,
}

struct Reply {
    request: BackendReq,
    status: u64,
    descriptor: Option<OwnedFd>,
}

impl Requests {
    pub(super) fn new(channel: Arc<Channel>) -> Self {
        Self {
            channel,
            socket: None,
            owed: VecDeque::new(),
            partial: Vec::new(),
            descriptor: None,
            habits: Habits::default(),
        }
    }

    /// Sends a request and waits for its answer: the descriptor that came with it.
    pub(super) fn request(
        &mut self,
        request: BackendReq,
        body: &[u8],
        file: Option<BorrowedFd<'_>>,
    ) -> Result<Option<OwnedFd>, Failure> {
        let purpose = match request {
            BackendReq::SHARED_OBJECT_LOOKUP => Purpose::Objects,
            _ => Purpose::Window,
        };
        let channel = Arc::clone(&self.channel);
        let sent = channel.with_socket(purpose, |socket| {
            self.belong_to(socket);
            if self.owed.len() >= MAX_OWED {
                return Err(Failure::Timeout);
            }
            send(socket, request, VERSION | NEED_REPLY, body, file)?;
            Ok(Arc::clone(socket))
        });
        let socket = match sent.ok_or(Failure::NotNegotiated)? {
            Err(Failure::Broken(error)) if error.kind() == io::ErrorKind::WriteZero => {
                self.channel.close();
                return Err(error.into());
            }
            other => other?,
        };
        self.owed.push_back(request);
        let deadline = Instant::now() + REPLY_TIMEOUT;
        loop {
            let reply = self.next_reply(&socket, deadline)?;
            if self.owed.is_empty() {
                return match reply.status {
                    0 => Ok(reply.descriptor),
                    status => Err(Failure::Refused(status)),
                };
            }
        }
    }

    /// Takes the answers that came late. An error while one has not come: nothing is waited for.
    pub(super) fn catch_up(&mut self) -> Result<(), Failure> {
        while let Some(socket) = self.socket.clone().filter(|_| !self.owed.is_empty()) {
            match self.next_reply(&socket, Instant::now()) {
                Err(Failure::Timeout) => return Err(Failure::Silent),
                reply => drop(reply?),
            }
        }
        Ok(())
    }

    /// What is known of another socket is forgotten.
    pub(super) fn belong_to(&mut self, socket: &Arc<UnixStream>) {
        let known = self.socket.as_ref();
        if !known.is_some_and(|known| Arc::ptr_eq(known, socket)) {
            self.socket = Some(Arc::clone(socket));
            self.owed.clear();
            self.partial.clear();
            self.descriptor = None;
            self.habits = Habits::default();
        }
    }

    /// The answer to the oldest request.
    fn next_reply(&mut self, socket: &UnixStream, deadline: Instant) -> Result<Reply, Failure> {
        let reply = self.receive(socket, deadline)?;
        if self.owed.pop_front() != Some(reply.request) {
            // Which answer is whose cannot be told any more.
            self.channel.close();
            return Err(Failure::Confused);
        }
        Ok(reply)
    }

    fn receive(&mut self, socket: &UnixStream, deadline: Instant) -> Result<Reply, Failure> {
        while self.partial.len() < REPLY_BYTES {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = Timespec::try_from(left).map_err(|_| Failure::Timeout)?;
            let mut poll = [PollFd::new(socket, PollFlags::IN)];
            match rustix::event::poll(&mut poll, Some(&timeout)) {
                Ok(0) => return Err(Failure::Timeout),
                Err(rustix::io::Errno::INTR) => continue,
                other => other.map_err(io::Error::from)?,
            };
            let mut buffer = [0; REPLY_BYTES];
            let wanted = REPLY_BYTES - self.partial.len();
            let to = buffer.get_mut(..wanted).unwrap_or_default();
            let (length, descriptor) = match receive_some(socket, to) {
                Ok((0, _)) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                Ok(received) => received,
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(io::Error::from(error).into()),
            };
            self.partial
                .extend_from_slice(to.get(..length).unwrap_or_default());
            // A second one is nobody's, and closed.
            self.descriptor = self.descriptor.take().or(descriptor);
        }
        let descriptor = self.descriptor.take();
        let reply = std::mem::take(&mut self.partial);
        match parse_reply(&reply) {
            Some((request, status)) => Ok(Reply {
                request,
                status,
                descriptor,
            }),
            None => {
                self.channel.close();
                Err(Failure::Confused)
            }
        }
    }
}

/// Bytes that are there, and the first descriptor with them. No others stay open.
fn receive_some(
    socket: &UnixStream,
    to: &mut [u8],
) -> Result<(usize, Option<OwnedFd>), rustix::io::Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let mut to = [IoSliceMut::new(to)];
    let received = rustix::net::recvmsg(socket, &mut to, &mut control, flags)?;
    let descriptors = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    // All are taken out, so that all but one are closed.
    let first = descriptors.reduce(|first, _| first);
    Ok((received.bytes, first))
}

fn parse_reply(reply: &[u8]) -> Option<(BackendReq, u64)> {
    let (words, status) = reply.split_at_checked(12)?;
    let mut words = words
        .as_chunks::<4>()
        .0
        .iter()
        .map(|word| u32::from_ne_bytes(*word));
    let (code, flags, size) = (words.next()?, words.next()?, words.next()?);
    let request = BackendReq::try_from(code).ok()?;
    let status = u64::from_ne_bytes(status.try_into().ok()?);
    (flags & REPLY_FLAG != 0 && size == 8).then_some((request, status))
}
