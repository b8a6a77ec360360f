//! virtio-gpu commands to a `hostblobd --local-socket`: no VM, no kernel driver.
//!
//! There is no thread. Whoever waits for a response reads the socket for all (one at a time, holding the [`Inbox`]) and wakes
//! the others. Sending never blocks on a daemon that itself waits for us to read: while the socket is full, the
//! sender reads too. A daemon that hangs up, or breaks the framing, is lost for good: every later call says so.

mod command;
mod inbox;

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hostblob_protocol::Status;
use hostblob_protocol::local::ANY_OFFSET;
use hostblob_protocol::virtio_gpu::{F_CONTEXT_INIT, F_RESOURCE_BLOB, blob_mem, resp};
use parking_lot::{Condvar, Mutex, MutexGuard};
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{SendFlags, Shutdown};

use super::{BlobSpec, Completion, RawBlob, Transport, TransportKind};
use crate::error::{Error, Result};
use crate::region::{Mapping, Region};
use command::Batch;
use inbox::{Inbox, Lost, Response};

/// The only context of a connection.
const CONTEXT_ID: u32 = 1;
/// How long a sender waits for room before it looks again whether there is something to read.
const SEND_POLL: Duration = Duration::from_millis(20);
/// Most commands without a response: so many responses fit the socket's buffer, and a daemon that writes them is not stopped, and
/// does not give us up, when this process does something else for a while.
const MOST_UNREAD: usize = 128;

/// A connection: a guest of its own.
#[derive(Debug)]
pub(crate) struct Socket {
    stream: UnixStream,
    window: Arc<Region>,
    capset_id: u32,
    timeout: Duration,
    next_tag: AtomicU64,
    next_resource: AtomicU32,
    /// Keeps the frames of one batch together.
    sending: Mutex<()>,
    state: Mutex<State>,
    /// A response arrived, the inbox is free, or the daemon is lost.
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    /// Tags that someone will wait for, and their responses.
    expected: HashMap<u64, Option<Response>>,
    /// Commands whose response has not been read.
    unread: usize,
    /// `None` while a thread reads.
    inbox: Option<Inbox>,
    lost: Option<Lost>,
}

impl Socket {
    /// Connects, maps the window and makes a context.
    pub(crate) fn open(path: &Path, capset_id: Option<u32>, timeout: Duration) -> Result<Self> {
        let stream = UnixStream::connect(path)
            .map_err(|error| Error::NoDevice(format!("{}: {error}", path.display())))?;
        let (hello, window) = inbox::receive_hello(stream.as_fd(), Instant::now() + timeout)?;
        let features = hello.features.get();
        let needed = 1_u64 << F_RESOURCE_BLOB | 1 << F_CONTEXT_INIT;
        if features & needed != needed {
            return Err(Error::Incompatible(format!(
                "the device's features {features:#x} lack {:#x}",
                needed & !features
            )));
        }
        let socket = Self {
            stream,
            window: map_window(window, hello.window_size.get())?,
            capset_id: capset_id.unwrap_or(hello.capset_id.get()),
            timeout,
            next_tag: AtomicU64::new(1),
            next_resource: AtomicU32::new(1),
            sending: Mutex::new(()),
            state: Mutex::new(State {
                expected: HashMap::new(),
                unread: 0,
                inbox: Some(Inbox::default()),
                lost: None,
            }),
            changed: Condvar::new(),
        };
        let mut batch = Batch::default();
        let tag = socket.tag();
        batch.context_create(tag, CONTEXT_ID, socket.capset_id);
        socket.expect(&[tag]);
        socket.send(&batch)?;
        match socket.take(tag)?.kind() {
            resp::OK_NODATA => Ok(socket),
            kind => Err(Error::NoDevice(format!(
                "the daemon makes no context of capset {}: response {kind:#x}",
                socket.capset_id
            ))),
        }
    }

    fn tag(&self) -> u64 {
        self.next_tag.fetch_add(1, Ordering::Relaxed)
    }

    fn expect(&self, tags: &[u64]) {
        self.state
            .lock()
            .expected
            .extend(tags.iter().map(|&tag| (tag, None)));
    }

    fn lose(&self, reason: Lost) -> Error {
        let mut state = self.state.lock();
        let reason = state.lost.get_or_insert(reason).clone();
        drop(state);
        // Whoever polls wakes up, and the daemon learns that nothing more comes.
        let _ = rustix::net::shutdown(&self.stream, Shutdown::Both);
        self.changed.notify_all();
        Error::DeviceLost(reason)
    }

    fn check(state: &State) -> Result<()> {
        match &state.lost {
            Some(reason) => Err(Error::DeviceLost(reason.clone())),
            None => Ok(()),
        }
    }

    /// Puts away what a reader brought, and the inbox itself.
    fn deposit(&self, state: &mut State, inbox: Inbox, received: Result<Vec<Response>, Lost>) {
        state.inbox = Some(inbox);
        match received {
            Ok(responses) => {
                state.unread = state.unread.saturating_sub(responses.len());
                for response in responses {
                    match state.expected.get_mut(&response.tag) {
                        Some(slot) => *slot = Some(response),
                        None if response.kind() >= resp::ERR_UNSPEC => {
                            log::debug!("command {}: {:#x}", response.tag, response.kind());
                        }
                        None => {}
                    }
                }
            }
            Err(reason) => {
                state.lost.get_or_insert(reason);
            }
        }
        self.changed.notify_all();
    }

    /// Reads once, as the one reader. The lock is free meanwhile.
    fn read_once(
        &self,
        state: &mut MutexGuard<'_, State>,
        mut inbox: Inbox,
        deadline: Option<Instant>,
    ) {
        let received = MutexGuard::unlocked(state, || inbox.receive(self.stream.as_fd(), deadline));
        self.deposit(state, inbox, received);
    }

    /// Reads, or lets another thread read, until `done` says so: `None` when the deadline came first.
    fn read_until<T>(
        &self,
        deadline: Option<Instant>,
        mut done: impl FnMut(&mut State) -> Result<Option<T>>,
    ) -> Result<Option<T>> {
        let mut state = self.state.lock();
        loop {
            if let Some(value) = done(&mut state)? {
                return Ok(Some(value));
            }
            Self::check(&state)?;
            let late = deadline.is_some_and(|deadline| Instant::now() >= deadline);
            match (state.inbox.take(), deadline) {
                (Some(inbox), _) => self.read_once(&mut state, inbox, deadline),
                (None, Some(deadline)) => {
                    self.changed.wait_until(&mut state, deadline);
                }
                (None, None) => self.changed.wait(&mut state),
            }
            if late {
                return done(&mut state);
            }
        }
    }

    /// Waits for the response to `tag`: false when the deadline came first.
    fn wait_for(&self, tag: u64, deadline: Option<Instant>) -> Result<bool> {
        let arrived = self.read_until(deadline, |state| match state.expected.get(&tag) {
            Some(Some(_)) => Ok(Some(())),
            Some(None) => Ok(None),
            None => Err(Error::Internal(format!("nobody expects tag {tag}"))),
        })?;
        Ok(arrived.is_some())
    }

    /// The response to `tag`, which must come in time.
    fn take(&self, tag: u64) -> Result<Response> {
        let arrived = self.wait_for(tag, Some(Instant::now() + self.timeout));
        let response = self.state.lock().expected.remove(&tag).flatten();
        match (arrived, response) {
            (Err(error), None) => Err(error),
            (_, Some(response)) => Ok(response),
            (Ok(_), None) => {
                Err(self.lose(format!("no response within {} s", self.timeout.as_secs())))
            }
        }
    }

    /// Waits until so many responses may go unread.
    fn reserve(&self, frames: usize) -> Result<()> {
        let deadline = Instant::now() + self.timeout;
        let reserved = self.read_until(Some(deadline), |state| {
            let fits = state.unread == 0 || state.unread + frames <= MOST_UNREAD;
            Ok(fits.then(|| state.unread += frames))
        })?;
        reserved.ok_or_else(|| self.lose("the daemon answers no commands".to_owned()))
    }

    /// Sends whole frames.
    fn send(&self, batch: &Batch) -> Result<()> {
        self.reserve(batch.frames())?;
        let mut bytes = batch.bytes();
        let _sending = self.sending.lock();
        Self::check(&self.state.lock())?;
        let mut deadline = Instant::now() + self.timeout;
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        while !bytes.is_empty() {
            match rustix::net::send(&self.stream, bytes, flags) {
                Ok(sent) => {
                    bytes = bytes.get(sent..).unwrap_or_default();
                    deadline = Instant::now() + self.timeout;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) if Instant::now() >= deadline => {
                    return Err(self.lose("the daemon takes no more commands".to_owned()));
                }
                Err(Errno::AGAIN) => self.make_room()?,
                Err(errno) => return Err(self.lose(format!("send: {errno}"))),
            }
        }
        Ok(())
    }

    /// The daemon may be stuck because we do not read: read, then wait a little for room.
    fn make_room(&self) -> Result<()> {
        self.pump()?;
        let soon = Instant::now() + SEND_POLL;
        match inbox::poll(
            self.stream.as_fd(),
            PollFlags::IN | PollFlags::OUT,
            Some(soon),
        ) {
            Ok(_) => Ok(()),
            Err(reason) => Err(self.lose(reason)),
        }
    }
}

/// Maps all of the window, once, after a look that the descriptor has that many bytes.
fn map_window(window: OwnedFd, size: u64) -> Result<Arc<Region>> {
    let there = rustix::fs::fstat(&window)
        .map_err(|errno| Error::io("size of the window", errno))?
        .st_size;
    if size == 0 || u64::try_from(there).unwrap_or(0) < size {
        return Err(Error::Incompatible(format!(
            "the daemon announces a window of {size} bytes and sends one of {there}"
        )));
    }
    Region::map(window.as_fd(), 0, size).map_err(|errno| Error::io("mmap of the window", errno))
}

impl Transport for Socket {
    fn kind(&self) -> TransportKind {
        TransportKind::Socket
    }

    fn read_capset(&self) -> Result<Vec<u8>> {
        let mut batch = Batch::default();
        let tag = self.tag();
        batch.get_capset(tag, self.capset_id);
        self.expect(&[tag]);
        self.send(&batch)?;
        let response = self.take(tag)?;
        match response.kind() {
            resp::OK_CAPSET => Ok(response.body().to_vec()),
            kind => Err(Error::NoDevice(format!(
                "the daemon has no capset {}: response {kind:#x}",
                self.capset_id
            ))),
        }
    }

    fn create_blob(&self, spec: &BlobSpec<'_>) -> Result<RawBlob> {
        if spec.blob_mem != blob_mem::HOST3D {
            let what = "a blob of guest pages over a socket";
            return Err(Error::status_of(Status::Unsupported, what));
        }
        let resource_id = self.next_resource.fetch_add(1, Ordering::Relaxed);
        let mut batch = Batch::default();
        if !spec.command.is_empty() {
            batch.submit(self.tag(), CONTEXT_ID, spec.command, None);
        }
        let (created, mapped) = (self.tag(), spec.mappable.then(|| self.tag()));
        batch.create_blob(created, CONTEXT_ID, resource_id, spec);
        self.expect(&[created]);
        if let Some(mapped) = mapped {
            batch.map_blob(mapped, resource_id, ANY_OFFSET);
            self.expect(&[mapped]);
        }
        let sent = self.send(&batch);
        let created = sent.clone().and_then(|()| self.take(created));
        let mapped = mapped
            .map(|tag| sent.and_then(|()| self.take(tag)))
            .transpose();
        match created?.kind() {
            resp::OK_NODATA => {}
            resp::ERR_OUT_OF_MEMORY => {
                return Err(Error::status_of(
                    Status::OutOfHostMemory,
                    "creation of a blob",
                ));
            }
            kind => return Err(refused("creation of a blob", kind)),
        }
        let mut blob = RawBlob {
            handle: 0,
            resource_id,
            size: spec.size,
            window_offset: None,
        };
        let Some(mapped) = mapped? else {
            return Ok(blob);
        };
        let error = match mapped.kind() {
            resp::OK_MAP_INFO => {
                blob.window_offset = Some(mapped.aux);
                return Ok(blob);
            }
            resp::ERR_OUT_OF_MEMORY => Error::status_of(Status::WindowExhausted, "map of a blob"),
            kind => refused("map of a blob", kind),
        };
        self.destroy_blob(&blob);
        Err(error)
    }

    fn map_blob(&self, blob: &RawBlob) -> Result<Mapping> {
        let offset = blob
            .window_offset
            .ok_or_else(|| Error::status_of(Status::NotMappable, "map of a blob"))?;
        Mapping::new(self.window.clone(), offset, blob.size).ok_or_else(|| {
            Error::Incompatible(format!(
                "the daemon mapped a blob outside the window ({offset:#x})"
            ))
        })
    }

    fn destroy_blob(&self, blob: &RawBlob) {
        let mut batch = Batch::default();
        if blob.window_offset.is_some() {
            batch.unmap_blob(self.tag(), blob.resource_id);
        }
        batch.unref(self.tag(), blob.resource_id);
        if let Err(error) = self.send(&batch) {
            log::debug!("resource {}: {error}", blob.resource_id);
        }
    }

    fn destroys_later(&self) -> bool {
        false
    }

    fn submit(&self, command: &[u8]) -> Result<()> {
        let mut batch = Batch::default();
        batch.submit(self.tag(), CONTEXT_ID, command, None);
        self.send(&batch)
    }

    fn submit_fenced(&self, command: &[u8], ring: u8) -> Result<Completion> {
        let mut batch = Batch::default();
        let tag = self.tag();
        batch.submit(tag, CONTEXT_ID, command, Some(ring));
        self.expect(&[tag]);
        let completion = Completion::Tag(tag);
        match self.send(&batch) {
            Ok(()) => Ok(completion),
            Err(error) => {
                self.forget(&completion);
                Err(error)
            }
        }
    }

    fn wait(&self, completion: &Completion, deadline: Option<Instant>) -> Result<bool> {
        match completion {
            Completion::Tag(tag) => self.wait_for(*tag, deadline),
            Completion::SyncFile(_) => Err(Error::Internal(
                "a completion of another transport".to_owned(),
            )),
        }
    }

    fn forget(&self, completion: &Completion) {
        if let Completion::Tag(tag) = completion {
            self.state.lock().expected.remove(tag);
        }
    }

    fn pump(&self) -> Result<()> {
        let mut state = self.state.lock();
        if let Some(inbox) = state.inbox.take() {
            self.read_once(&mut state, inbox, Some(Instant::now()));
        }
        Self::check(&state)
    }

    fn timeout(&self) -> Duration {
        self.timeout
    }

    fn export_dma_buf(&self, _: &RawBlob) -> Result<OwnedFd> {
        Err(Error::status_of(
            Status::Unsupported,
            "dma-buf export over a socket",
        ))
    }

    fn import_dma_buf(&self, _: BorrowedFd<'_>) -> Result<RawBlob> {
        Err(Error::status_of(
            Status::Unsupported,
            "dma-buf import over a socket",
        ))
    }
}

/// A response that is an error without a better name. What hostblob itself has to say is in the control page.
fn refused(what: &str, kind: u32) -> Error {
    let status = match kind {
        resp::ERR_INVALID_PARAMETER => Status::InvalidArgument,
        resp::ERR_INVALID_RESOURCE_ID | resp::ERR_INVALID_CONTEXT_ID => Status::InvalidArgument,
        _ => Status::Internal,
    };
    Error::status_of(status, format!("{what} (response {kind:#x})"))
}
