//! Our messages to the VMM (the backend channel): SHMEM_MAP and SHMEM_UNMAP.
//!
//! The crate's client for this channel waits for ever. A VMM that has stopped its device does not read the channel (crosvm, while it sleeps), and a
//! broken one never answers; so here replies have a deadline, a late one is known for what it is, and the end of the connection ends the wait.

use std::collections::VecDeque;
use std::fmt::Display;
use std::fs::File;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hostblob_allocator::Mapping;
use hostblob_allocator::provider::Elsewhere;
use hostblob_allocator::window::Span;
use parking_lot::{Condvar, Mutex};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use thiserror::Error;
use vhost::vhost_user::message::{BackendReq, VhostUserMMap, VhostUserMMapFlags};
use vm_memory::ByteValued;

use crate::ratelimit::RateLimiter;
use crate::transport::{MapperError, WindowMapper};

/// Shared memory region of the window: `VIRTIO_GPU_SHM_ID_HOST_VISIBLE`.
pub(super) const WINDOW_REGION: u8 = 1;

/// How long the VMM may take to map or unmap. QEMU takes a millisecond; a guest's processor waits meanwhile.
pub(super) const REPLY_TIMEOUT: Duration =
    Duration::from_millis(if cfg!(test) { 500 } else { 5000 });

/// How long after its answer a VMM may change the memory.
const CHANGE_TIMEOUT: Duration = Duration::from_millis(if cfg!(test) { 50 } else { 200 });

/// Most replies that may be owed to us. A VMM that never answers must not make us remember more.
const MAX_OWED: usize = 16;

/// Version 1.
const VERSION: u32 = 0x1;
/// A reply is wanted.
const NEED_REPLY: u32 = 0x8;
/// A reply (2), of version 1 (low bits).
const REPLY_FLAG: u32 = 0x4;
/// Bytes of a reply: a header of three words, and a status.
const REPLY_BYTES: usize = 20;

/// Why the VMM did not do it.
#[derive(Debug, Error)]
enum Failure {
    #[error(
        "it has not negotiated SHMEM, BACKEND_REQ and REPLY_ACK, or gave no channel for requests"
    )]
    NotNegotiated,
    #[error("it refused: status {0:#x}")]
    Refused(u64),
    #[error("it did not answer within {REPLY_TIMEOUT:?}")]
    Timeout,
    #[error("what it answered is no answer")]
    Confused,
    #[error("{0}")]
    Broken(#[from] io::Error),
}

impl From<&Failure> for MapperError {
    fn from(failure: &Failure) -> Self {
        match failure {
            Failure::NotNegotiated => Self::NotAsked,
            Failure::Refused(_) => Self::Refused,
            Failure::Timeout | Failure::Confused | Failure::Broken(_) => Self::Unknown,
        }
    }
}

/// The channel as the message thread sees it.
#[derive(Debug, Default)]
pub(super) struct Channel {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    socket: Option<Arc<UnixStream>>,
    /// SHMEM and what it needs were negotiated.
    usable: bool,
    /// SHARED_OBJECT and what it needs were negotiated.
    sharing: bool,
    /// Changes of guest memory so far.
    changes: u64,
    /// No queue runs.
    stopped: bool,
}

impl Channel {
    /// The VMM gave a channel.
    pub(super) fn set_socket(&self, socket: UnixStream) {
        self.state.lock().socket = Some(Arc::new(socket));
    }

    /// Whether the VMM can map.
    pub(super) fn set_usable(&self, usable: bool) {
        self.state.lock().usable = usable;
    }

    /// Whether the VMM wants to hear of shared objects.
    pub(super) fn set_sharing(&self, sharing: bool) {
        self.state.lock().sharing = sharing;
    }

    /// Other devices of the VM may ask for a blob (SHARED_OBJECT_ADD), or no longer (SHARED_OBJECT_REMOVE). Nothing is answered.
    pub(super) fn announce(&self, uuid: [u8; 16], is_there: bool) {
        let state = self.state.lock();
        let Some(socket) = state.socket.as_ref().filter(|_| state.sharing) else {
            return;
        };
        let request = if is_there {
            BackendReq::SHARED_OBJECT_ADD
        } else {
            BackendReq::SHARED_OBJECT_REMOVE
        };
        if let Err(error) = send(socket, request, VERSION, &uuid, None) {
            log::warn!("the VMM is not told of a shared object: {error}");
            if error.kind() == io::ErrorKind::WriteZero {
                // Half a message is on its way.
                let _ = socket.shutdown(Shutdown::Both);
            }
        }
    }

    /// Ends it, and whoever waits on it.
    pub(super) fn close(&self) {
        let socket = self.state.lock().socket.take();
        self.changed.notify_all();
        if let Some(socket) = socket {
            // Fails when it has ended already.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    /// The VMM has stopped the queues, or started one. When it returns, nothing is sent until one is started.
    pub(super) fn set_stopped(&self, stopped: bool) {
        self.state.lock().stopped = stopped;
        self.changed.notify_all();
    }

    /// The VMM has changed guest memory.
    pub(super) fn memory_changed(&self) {
        let mut state = self.state.lock();
        state.changes = state.changes.wrapping_add(1);
        self.changed.notify_all();
    }

    fn changes(&self) -> u64 {
        self.state.lock().changes
    }

    /// Waits for a change after the first `seen`; whether one came.
    fn wait_for_change(&self, seen: u64) -> bool {
        let mut state = self.state.lock();
        let same = |state: &mut State| state.changes == seen;
        let wait = self
            .changed
            .wait_while_for(&mut state, same, CHANGE_TIMEOUT);
        !wait.timed_out()
    }

    /// The socket, if there is one to be used. Waits while the queues are stopped: QEMU 11.1 ends when it handles a request then.
    fn with_socket<R>(&self, f: impl FnOnce(&Arc<UnixStream>) -> R) -> Option<R> {
        let mut state = self.state.lock();
        let held = |state: &mut State| state.stopped && state.socket.is_some();
        self.changed.wait_while(&mut state, held);
        // Under the lock, so that nothing is sent once they are stopped.
        state.socket.as_ref().filter(|_| state.usable).map(f)
    }
}

/// Maps ranges of the window through the channel. The queue thread has it.
#[derive(Debug)]
pub(super) struct Mapper {
    channel: Arc<Channel>,
    window: OwnedFd,
    /// The socket that the rest belongs to.
    socket: Option<Arc<UnixStream>>,
    /// Requests that have not been answered, the oldest first.
    owed: VecDeque<BackendReq>,
    partial: Vec<u8>,
    /// Whether the VMM makes what it maps a part of guest memory, once that is known.
    changes_memory: Option<bool>,
    log: RateLimiter,
}

impl Mapper {
    pub(super) fn new(channel: Arc<Channel>, window: OwnedFd) -> Self {
        Self {
            channel,
            window,
            socket: None,
            owed: VecDeque::new(),
            partial: Vec::new(),
            changes_memory: None,
            log: RateLimiter::new(),
        }
    }

    fn request(
        &mut self,
        request: BackendReq,
        span: Span,
        file: Option<&File>,
    ) -> Result<(), Failure> {
        let channel = Arc::clone(&self.channel);
        let sent = channel.with_socket(|socket| {
            self.belong_to(socket);
            if self.owed.len() >= MAX_OWED {
                return Err(Failure::Timeout);
            }
            self.send(socket, request, span, file)?;
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
            let (answered, status) = self.receive(&socket, deadline)?;
            if self.owed.pop_front() != Some(answered) {
                // Which answer is whose cannot be told any more.
                self.channel.close();
                return Err(Failure::Confused);
            }
            if self.owed.is_empty() {
                return match status {
                    0 => Ok(()),
                    status => Err(Failure::Refused(status)),
                };
            }
        }
    }

    /// What is known of another socket is forgotten.
    fn belong_to(&mut self, socket: &Arc<UnixStream>) {
        let known = self.socket.as_ref();
        if !known.is_some_and(|known| Arc::ptr_eq(known, socket)) {
            self.socket = Some(Arc::clone(socket));
            self.owed.clear();
            self.partial.clear();
            self.changes_memory = None;
        }
    }

    /// `file` is what is mapped from its beginning on; else it is the window's own, at the same place.
    fn send(
        &self,
        socket: &UnixStream,
        request: BackendReq,
        span: Span,
        file: Option<&File>,
    ) -> io::Result<()> {
        let (file, fd_offset) = match file {
            Some(file) => (file.as_fd(), 0),
            None => (self.window.as_fd(), span.start()),
        };
        let body = VhostUserMMap {
            shmid: WINDOW_REGION,
            padding: [0; 7],
            fd_offset,
            shm_offset: span.start(),
            len: span.len(),
            flags: VhostUserMMapFlags::WRITABLE.bits(),
        };
        let file = (request == BackendReq::SHMEM_MAP).then_some(file);
        send(socket, request, VERSION | NEED_REPLY, body.as_slice(), file)
    }

    /// The next reply.
    fn receive(
        &mut self,
        socket: &UnixStream,
        deadline: Instant,
    ) -> Result<(BackendReq, u64), Failure> {
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
            // Descriptors that come with it are dropped by the kernel: there is no room for them.
            let length = match rustix::net::recv(socket, &mut *to, RecvFlags::DONTWAIT) {
                Ok((_, 0)) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                Ok((_, length)) => length,
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(io::Error::from(error).into()),
            };
            self.partial
                .extend_from_slice(to.get(..length).unwrap_or_default());
        }
        let reply = std::mem::take(&mut self.partial);
        parse_reply(&reply).ok_or_else(|| {
            self.channel.close();
            Failure::Confused
        })
    }
}

impl Mapper {
    /// QEMU answers first, and changes the memory then: what a guest wrote into a window that it does not reach yet would be lost. crosvm has
    /// done it all when it answers, and changes no memory.
    fn wait_until_done(&mut self, changes_before: u64) {
        if self.changes_memory != Some(false) {
            let changed = self.channel.wait_for_change(changes_before);
            self.changes_memory.get_or_insert(changed);
        }
    }

    fn failed(&mut self, what: &str, span: Span, failure: &Failure) -> MapperError {
        let span = Range(span);
        self.log
            .warn(format_args!("the VMM did not {what} {span}: {failure}"));
        failure.into()
    }
}

impl WindowMapper for Mapper {
    fn map(&mut self, mapping: &Mapping) -> Result<(), MapperError> {
        let changes_before = self.channel.changes();
        let (span, elsewhere) = (mapping.span, mapping.elsewhere.as_ref());
        let file = match elsewhere.map(Elsewhere::file) {
            // Memory of this process is not told to guests of another's.
            Some(None) => return Err(MapperError::NotAsked),
            file => file.flatten().map(AsRef::as_ref),
        };
        self.request(BackendReq::SHMEM_MAP, span, file)
            .map_err(|failure| self.failed("map", span, &failure))?;
        self.wait_until_done(changes_before);
        log::debug!("the VMM mapped {}", Range(span));
        Ok(())
    }

    fn unmap(&mut self, span: Span) -> Result<(), MapperError> {
        let changes_before = self.channel.changes();
        self.request(BackendReq::SHMEM_UNMAP, span, None)
            .map_err(|failure| self.failed("unmap", span, &failure))?;
        // So that its change is not taken for that of the next mapping.
        self.wait_until_done(changes_before);
        log::debug!("the VMM unmapped {}", Range(span));
        Ok(())
    }
}

/// A part of the window, for people.
struct Range(Span);

impl Display for Range {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (start, length) = (self.0.start(), self.0.len());
        write!(f, "{length:#x} bytes at {start:#x} of the window")
    }
}

/// Sends one message, whole.
fn send(
    socket: &UnixStream,
    request: BackendReq,
    flags: u32,
    body: &[u8],
    file: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    let mut message = Vec::new();
    for word in [u32::from(request), flags, length] {
        message.extend_from_slice(&word.to_ne_bytes());
    }
    message.extend_from_slice(body);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let files: Vec<BorrowedFd<'_>> = file.into_iter().collect();
    if !files.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&files));
    }
    // A VMM that does not read lets the socket fill up.
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    let sent = rustix::net::sendmsg(socket, &[IoSlice::new(&message)], &mut control, flags)?;
    if sent == message.len() {
        Ok(())
    } else {
        Err(io::ErrorKind::WriteZero.into())
    }
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

#[cfg(test)]
mod tests;
