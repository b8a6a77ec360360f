//! One connection: frames in, frames out, and a device between them.

use std::collections::{HashMap, VecDeque};
use std::io::{self, IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hostblob_allocator::Host;
use hostblob_protocol::local::{COMMAND, Frame, HELLO, Hello, MAX_PAYLOAD, RESPONSE, VERSION};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use thiserror::Error;
use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, IntoBytes};

use super::offsets::{Offsets, Step, window_full};
use crate::gpu::{BlobMem, Gpu, NoPages, Response, Waker};
use crate::shutdown::Shutdown;

/// Longest time that a client may leave its responses unread, from the first byte to the last: one that reads a little now and then keeps a
/// thread of the daemon otherwise.
const WRITE_TIMEOUT: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 10 });

/// Bytes that are read from the socket at a time.
const READ_SIZE: usize = 64 << 10;

/// Commands that the device may keep for one client. With more it is not listened to, until some are answered.
pub(super) const MAX_KEPT: usize = 1024;

#[derive(Debug, Error)]
pub(super) enum ClientError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Errno(#[from] Errno),
    #[error("a frame of kind {0}, a client sends {COMMAND} alone")]
    Kind(u32),
    #[error("a frame of {0} bytes, at most {MAX_PAYLOAD} are allowed")]
    TooLong(u32),
    #[error("it has not read its responses in {WRITE_TIMEOUT:?}")]
    Unread,
}

struct Client {
    stream: UnixStream,
    gpu: Gpu,
    offsets: Offsets,
    /// Bytes read, of which whole frames are taken from the front.
    input: VecDeque<u8>,
    /// Frames to write.
    output: Vec<u8>,
    /// Commands that the device keeps, by its tag: the client's tag, and what they mean for the offsets.
    kept: HashMap<u64, (u64, Step)>,
    next_tag: u64,
}

/// Serves one client until it leaves, breaks the rules, or the daemon ends.
pub(super) fn serve(
    stream: UnixStream,
    host: &Arc<Host>,
    capset_id: u32,
    shutdown: &Shutdown,
) -> Result<(), ClientError> {
    let wake = Arc::new(rustix::event::eventfd(
        0,
        EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK,
    )?);
    let waker: Waker = {
        let wake = Arc::clone(&wake);
        // Fails only when the counter is full: then it is readable already.
        Arc::new(move || {
            let _ = rustix::io::write(&*wake, &1_u64.to_ne_bytes());
        })
    };
    let gpu = Gpu::new(host, capset_id, BlobMem::HOST3D, waker)?;
    let offsets = Offsets::new(gpu.window_size());
    greet(&stream, &gpu, capset_id)?;
    let mut client = Client {
        stream,
        gpu,
        offsets,
        input: VecDeque::new(),
        output: Vec::new(),
        kept: HashMap::new(),
        next_tag: 0,
    };
    let mut buffer = vec![0; READ_SIZE];
    loop {
        let listens = client.kept.len() < MAX_KEPT;
        let interest = if listens {
            PollFlags::IN
        } else {
            PollFlags::empty()
        };
        let mut poll = [
            PollFd::new(&client.stream, interest),
            PollFd::new(&*wake, PollFlags::IN),
            PollFd::new(shutdown, PollFlags::IN),
        ];
        match rustix::event::poll(&mut poll, None) {
            Err(Errno::INTR) => continue,
            other => other?,
        };
        let [socket, woken, ended] = poll.map(|fd| !fd.revents().is_empty());
        if ended {
            return Ok(());
        }
        if woken {
            let _ = rustix::io::read(&*wake, &mut [0_u8; 8]);
            client.complete();
            client.execute_all()?;
        }
        // A client that has gone is heard of all the same: its socket has an error then.
        if socket && !client.read(&mut buffer)? {
            return Ok(());
        }
        if !client.flush(shutdown)? {
            return Ok(());
        }
    }
}

/// Sends HELLO with the window's descriptor.
fn greet(stream: &UnixStream, gpu: &Gpu, capset_id: u32) -> Result<(), ClientError> {
    let hello = Hello {
        version: U32::new(VERSION),
        capset_id: U32::new(capset_id),
        window_size: U64::new(gpu.window_size()),
        features: U64::new(gpu.features()),
    };
    let frame = frame(HELLO, 0, 0, size_of::<Hello>());
    let descriptors = [gpu.window_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&descriptors));
    let bytes = [
        IoSlice::new(frame.as_bytes()),
        IoSlice::new(hello.as_bytes()),
    ];
    let length = size_of::<Frame>() + size_of::<Hello>();
    // A fresh socket's buffer takes these few bytes whole.
    if rustix::net::sendmsg(stream, &bytes, &mut control, SendFlags::NOSIGNAL)? == length {
        Ok(())
    } else {
        Err(io::Error::from(io::ErrorKind::WriteZero).into())
    }
}

fn frame(kind: u32, tag: u64, aux: u64, length: usize) -> Frame {
    Frame {
        length: U32::new(u32::try_from(length).unwrap_or(u32::MAX)),
        kind: U32::new(kind),
        tag: U64::new(tag),
        aux: U64::new(aux),
    }
}

impl Client {
    /// Reads what is there and executes whole commands. `false` at the end of the stream.
    fn read(&mut self, buffer: &mut [u8]) -> Result<bool, ClientError> {
        let length = match self.stream.read(buffer) {
            Ok(0) => return Ok(false),
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(true),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        self.input.extend(buffer.get(..length).unwrap_or_default());
        self.execute_all()?;
        Ok(true)
    }

    /// Executes whole commands, as many as may be under way.
    fn execute_all(&mut self) -> Result<(), ClientError> {
        while self.kept.len() < MAX_KEPT
            && let Some((tag, command)) = self.next_command()?
        {
            self.execute(tag, command);
        }
        Ok(())
    }

    fn next_command(&mut self) -> Result<Option<(u64, Vec<u8>)>, ClientError> {
        const HEADER: usize = size_of::<Frame>();
        let mut header = [0; HEADER];
        if self.input.len() < HEADER {
            return Ok(None);
        }
        for (to, from) in header.iter_mut().zip(&self.input) {
            *to = *from;
        }
        let frame = Frame::read_from_bytes(&header).unwrap_or_default();
        if frame.kind.get() != COMMAND {
            return Err(ClientError::Kind(frame.kind.get()));
        }
        if frame.length.get() > MAX_PAYLOAD {
            return Err(ClientError::TooLong(frame.length.get()));
        }
        let length = usize::try_from(frame.length.get()).unwrap_or(usize::MAX);
        if self.input.len() - HEADER < length {
            return Ok(None);
        }
        self.input.drain(..HEADER);
        Ok(Some((
            frame.tag.get(),
            self.input.drain(..length).collect(),
        )))
    }

    fn execute(&mut self, client_tag: u64, mut command: Vec<u8>) {
        let Ok(step) = self.offsets.prepare(&mut command) else {
            self.respond(client_tag, 0, &Response::from_bytes(window_full(&command)));
            return;
        };
        self.next_tag += 1;
        let tag = self.next_tag;
        match self.gpu.execute(tag, &command, &NoPages) {
            Some(response) => {
                let aux = self.offsets.finish(step, response.kind()).unwrap_or(0);
                self.respond(client_tag, aux, &response);
            }
            None => {
                self.kept.insert(tag, (client_tag, step));
            }
        }
    }

    fn complete(&mut self) {
        for (tag, response) in self.gpu.completed() {
            if let Some((client_tag, step)) = self.kept.remove(&tag) {
                let aux = self.offsets.finish(step, response.kind()).unwrap_or(0);
                self.respond(client_tag, aux, &response);
            }
        }
    }

    fn respond(&mut self, tag: u64, aux: u64, response: &Response) {
        let bytes = response.as_bytes();
        self.output
            .extend_from_slice(frame(RESPONSE, tag, aux, bytes.len()).as_bytes());
        self.output.extend_from_slice(bytes);
    }

    /// Sends the responses. `false` where the client leaves without them, or the daemon ends.
    fn flush(&mut self, shutdown: &Shutdown) -> Result<bool, ClientError> {
        let deadline = Instant::now() + WRITE_TIMEOUT;
        let mut sent = 0;
        while let Some(rest) = self.output.get(sent..).filter(|rest| !rest.is_empty()) {
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match rustix::net::send(&self.stream, rest, flags) {
                Ok(count) => sent = sent.saturating_add(count),
                Err(Errno::INTR) => {}
                Err(Errno::PIPE | Errno::CONNRESET) => return Ok(false),
                Err(Errno::AGAIN) => {
                    if !self.wait_for_room(deadline, shutdown)? {
                        return Ok(false);
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
        self.output.clear();
        Ok(true)
    }

    /// Waits until the client has read something. `false` where the daemon ends.
    fn wait_for_room(&self, deadline: Instant, shutdown: &Shutdown) -> Result<bool, ClientError> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ClientError::Unread);
        }
        let mut poll = [
            PollFd::new(&self.stream, PollFlags::OUT),
            PollFd::new(shutdown, PollFlags::IN),
        ];
        // Interrupted: one look too many.
        let _ = rustix::event::poll(&mut poll, Timespec::try_from(left).ok().as_ref());
        let [_, ended] = poll.map(|fd| !fd.revents().is_empty());
        Ok(!ended)
    }
}
