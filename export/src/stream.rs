//! Messages over a Unix stream socket, descriptors with them. Both ends use this, so nothing here trusts the peer, or waits for it.

use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use hostblob_protocol::export::{Event, FRAME_SIZE, Frame, FrameError, Request};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use thiserror::Error;
use zerocopy::FromBytes;

/// Bytes asked of the socket at once.
const CHUNK: usize = 4096;
/// Frames are sent together up to about so many bytes.
const BATCH: usize = 32 << 10;

/// Why a connection is of no more use.
#[derive(Debug, Error)]
pub enum StreamError {
    /// The peer left.
    #[error("the connection is closed")]
    Closed,
    /// The peer sent what is no message.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// A descriptor is missing, or came where none belongs.
    #[error("{0}")]
    Descriptor(&'static str),
    /// The system refuses.
    #[error("the connection failed: {0}")]
    System(Errno),
}

impl From<Errno> for StreamError {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::PIPE | Errno::CONNRESET => StreamError::Closed,
            other => StreamError::System(other),
        }
    }
}

/// What travels in one direction: [`Event`] or [`Request`].
pub trait Message: Sized {
    /// The payload of a frame.
    fn decode(kind: u32, payload: &[u8]) -> Result<Self, FrameError>;
    /// Frame and payload.
    fn encode(&self, tag: u64) -> Vec<u8>;
    /// Whether a descriptor comes with it.
    fn has_descriptor(&self) -> bool;
}

macro_rules! message {
    ($($set:ident)+) => {
        $(impl Message for $set {
            fn decode(kind: u32, payload: &[u8]) -> Result<Self, FrameError> {
                $set::decode(kind, payload)
            }

            fn encode(&self, tag: u64) -> Vec<u8> {
                $set::encode(self, tag)
            }

            fn has_descriptor(&self) -> bool {
                $set::has_descriptor(self)
            }
        })+
    };
}

message! { Event Request }

/// A message that came.
#[derive(Debug)]
pub struct Received<M> {
    /// Of its frame.
    pub tag: u64,
    /// What it says.
    pub message: M,
    /// What came with it: exactly where [`Message::has_descriptor`] says so.
    pub descriptor: Option<OwnedFd>,
}

/// Bytes to send, of which `sent` are.
#[derive(Debug)]
struct Batch {
    bytes: Vec<u8>,
    sent: usize,
    /// Goes with the first byte.
    descriptor: Option<Arc<OwnedFd>>,
}

/// One end of a connection.
#[derive(Debug)]
pub struct Stream {
    socket: UnixStream,
    /// Bytes read, of which whole frames are taken from the front.
    input: VecDeque<u8>,
    /// Descriptors that came with them.
    descriptors: VecDeque<OwnedFd>,
    output: VecDeque<Batch>,
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Stream {
    /// A connection of which nothing was read yet.
    pub fn new(socket: UnixStream) -> Self {
        Self {
            socket,
            input: VecDeque::new(),
            descriptors: VecDeque::new(),
            output: VecDeque::new(),
        }
    }

    /// Puts a message behind those to be sent.
    pub fn send(&mut self, tag: u64, message: &impl Message, descriptor: Option<Arc<OwnedFd>>) {
        let bytes = message.encode(tag);
        match self.output.back_mut() {
            Some(last) if descriptor.is_none() && last.bytes.len() < BATCH => {
                last.bytes.extend_from_slice(&bytes);
            }
            _ => self.output.push_back(Batch {
                bytes,
                sent: 0,
                descriptor,
            }),
        }
    }

    /// Whether there is something to send.
    pub fn has_output(&self) -> bool {
        !self.output.is_empty()
    }

    /// Sends what the socket takes. Whether that is all.
    pub fn flush(&mut self) -> Result<bool, StreamError> {
        while let Some(batch) = self.output.front_mut() {
            let rest = batch.bytes.get(batch.sent..).unwrap_or_default();
            if rest.is_empty() {
                self.output.pop_front();
                continue;
            }
            let descriptors: Vec<BorrowedFd<'_>> =
                batch.descriptor.iter().map(|fd| fd.as_fd()).collect();
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !descriptors.is_empty() {
                control.push(SendAncillaryMessage::ScmRights(&descriptors));
            }
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match rustix::net::sendmsg(&self.socket, &[IoSlice::new(rest)], &mut control, flags) {
                Ok(sent) => {
                    batch.sent = batch.sent.saturating_add(sent);
                    batch.descriptor = None;
                }
                Err(Errno::AGAIN) => return Ok(false),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(true)
    }

    /// Reads once what there is, maybe nothing.
    pub fn receive(&mut self) -> Result<(), StreamError> {
        let mut bytes = [0; CHUNK];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let mut to = [IoSliceMut::new(&mut bytes)];
        let received = match rustix::net::recvmsg(&self.socket, &mut to, &mut control, flags) {
            Ok(received) => received,
            Err(Errno::INTR | Errno::AGAIN) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        };
        let before = self.descriptors.len();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                self.descriptors.extend(descriptors);
            }
        }
        if received.bytes == 0 {
            return Err(StreamError::Closed);
        }
        if received.flags.contains(ReturnFlags::CTRUNC) || self.descriptors.len() > before + 1 {
            return Err(StreamError::Descriptor("more than one descriptor at once"));
        }
        self.input
            .extend(bytes.get(..received.bytes).unwrap_or_default());
        // Bytes that a frame may take its descriptor with: as many frames fit the input, and no more.
        if self.descriptors.len() > self.input.len().div_ceil(FRAME_SIZE) {
            return Err(StreamError::Descriptor("descriptors without messages"));
        }
        Ok(())
    }

    /// The next message that is there whole.
    pub fn next_message<M: Message>(&mut self) -> Result<Option<Received<M>>, StreamError> {
        let mut header = [0; FRAME_SIZE];
        if self.input.len() < FRAME_SIZE {
            return self.stray();
        }
        for (to, from) in header.iter_mut().zip(&self.input) {
            *to = *from;
        }
        let frame = Frame::read_from_bytes(&header).unwrap_or_default();
        let length = frame.payload_length()?;
        if self.input.len() - FRAME_SIZE < length {
            return Ok(None);
        }
        self.input.drain(..FRAME_SIZE);
        let payload: Vec<u8> = self.input.drain(..length).collect();
        let message = M::decode(frame.kind.get(), &payload)?;
        let descriptor = if message.has_descriptor() {
            let descriptor = self.descriptors.pop_front();
            Some(descriptor.ok_or(StreamError::Descriptor("a descriptor is missing"))?)
        } else {
            None
        };
        Ok(Some(Received {
            tag: frame.tag.get(),
            message,
            descriptor,
        }))
    }

    /// Where no bytes are left, no descriptor may be: it would be taken for that of another message.
    fn stray<T>(&self) -> Result<Option<T>, StreamError> {
        if self.input.is_empty() && !self.descriptors.is_empty() {
            return Err(StreamError::Descriptor("a descriptor without a message"));
        }
        Ok(None)
    }
}
