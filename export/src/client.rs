//! A connection to the export socket.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hostblob_protocol::Status;
use hostblob_protocol::export::{
    Answer, Close, Event as Message, HandIn, List, NO_TAG, Open, Outcome, Release, Request,
    TakeBack, VERSION,
};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::stream::{Received, Stream};
use crate::types::{Blob, BlobId, Buffer, Event, Exported, Token};

/// Longest time for an answer: more than the daemon gives the guest's side.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A connection. What is open or in use through it, and what was handed in, ends with it.
#[derive(Debug)]
pub struct Client {
    stream: Stream,
    last_tag: u64,
    events: VecDeque<Event>,
    /// The last present of a buffer that the caller knows of: it can release no later one.
    seen: BTreeMap<(BlobId, u64), u64>,
    /// An answer did not come: a later one would be taken for that of another request.
    lost: bool,
}

impl AsFd for Client {
    /// Readable when [`Client::next_event`] has something, unless a call before has read it.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// All that came for one request.
struct Answered {
    blobs: Vec<Blob>,
    buffers: Vec<Buffer>,
    last: Received<Message>,
}

impl Client {
    /// Connects.
    pub fn connect(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let socket = UnixStream::connect(path).map_err(|error| Error::Connect {
            path: path.to_owned(),
            error,
        })?;
        let mut client = Self {
            stream: Stream::new(socket),
            last_tag: NO_TAG,
            events: VecDeque::new(),
            seen: BTreeMap::new(),
            lost: false,
        };
        match client.receive(Instant::now() + TIMEOUT)? {
            Some(Received {
                message: Message::Hello(hello),
                ..
            }) if hello.version == VERSION => Ok(client),
            Some(Received {
                message: Message::Hello(hello),
                ..
            }) => Err(Error::Version(hello.version)),
            Some(_) => Err(Error::Protocol("the greeting is missing")),
            None => Err(Error::NoAnswer),
        }
    }

    /// All blobs that can be opened now. Events that happened before are still told.
    pub fn list(&mut self) -> Result<Vec<Blob>> {
        let answered = self.request(List {}, None)?;
        done(answered.last.message)?;
        Ok(answered.blobs)
    }

    /// Opens a blob: from now on its presents are told. To open it again gives another descriptor of the same buffer, and all buffers
    /// that were presented are in use again.
    pub fn open(&mut self, blob: BlobId) -> Result<Exported> {
        let answered = self.request(Open { blob: blob.0 }, None)?;
        let (opened, descriptor) = match (answered.last.message, answered.last.descriptor) {
            (Message::Opened(opened), Some(descriptor)) => (opened, descriptor),
            (message, _) => return Err(refusal(message)),
        };
        for buffer in answered.buffers.iter().filter(|buffer| buffer.present > 0) {
            self.saw(blob, buffer.layout.offset, buffer.present);
        }
        Ok(Exported {
            id: blob,
            descriptor,
            size: opened.size,
            buffers: answered.buffers,
        })
    }

    /// The buffer is no longer in use, as far as the caller has been told of its presents: the guest may draw into it. One that waits to be
    /// told keeps it in use.
    pub fn release(&mut self, blob: BlobId, offset: u64) -> Result<()> {
        let seen = self.seen.get(&(blob, offset)).copied();
        let release = Release {
            blob: blob.0,
            offset,
            present: seen.unwrap_or(0),
        };
        done(self.request(release, None)?.last.message)
    }

    /// Gives up a blob and all use of its buffers. What was mapped of it is not to be looked at any more.
    pub fn close(&mut self, blob: BlobId) -> Result<()> {
        self.seen.retain(|(of, _), _| *of != blob);
        done(self.request(Close { blob: blob.0 }, None)?.last.message)
    }

    /// Hands in memory, which guests import by the token: a memfd that cannot shrink, or a dma-buf.
    pub fn hand_in(&mut self, memory: impl AsFd) -> Result<Token> {
        let descriptor = memory
            .as_fd()
            .try_clone_to_owned()
            .map_err(|e| Error::System("dup", Errno::from_io_error(&e).unwrap_or(Errno::MFILE)))?;
        match self
            .request(HandIn {}, Some(Arc::new(descriptor)))?
            .last
            .message
        {
            Message::Token(token) => Ok(Token(token.token)),
            message => Err(refusal(message)),
        }
    }

    /// Nobody can import this memory any more. Who has keeps it.
    pub fn take_back(&mut self, token: Token) -> Result<()> {
        let take_back = TakeBack { token: token.0 };
        done(self.request(take_back, None)?.last.message)
    }

    /// The next thing that happens; `None` when nothing does for so long.
    pub fn next_event(&mut self, timeout: Duration) -> Result<Option<Event>> {
        let now = Instant::now();
        // More than a year is for ever, and an Instant may not reach that far.
        let deadline = now + timeout.min(Duration::from_secs(1 << 25));
        while self.events.is_empty() {
            match self.receive(deadline)? {
                Some(received) => self.happened(received.message)?,
                None => return Ok(None),
            }
        }
        let event = self.events.pop_front();
        if let Some(Event::Presented {
            blob,
            offset,
            present,
        }) = event
        {
            self.saw(blob, offset, present);
        }
        Ok(event)
    }

    fn saw(&mut self, blob: BlobId, offset: u64, present: u64) {
        let seen = self.seen.entry((blob, offset)).or_default();
        *seen = present.max(*seen);
    }

    /// Sends a request and waits for the last of its answers.
    fn request(
        &mut self,
        request: impl Into<Request>,
        descriptor: Option<Arc<OwnedFd>>,
    ) -> Result<Answered> {
        self.last_tag += 1;
        let tag = self.last_tag;
        self.stream.send(tag, &request.into(), descriptor);
        let deadline = Instant::now() + TIMEOUT;
        let (mut blobs, mut buffers) = (Vec::<Blob>::new(), Vec::new());
        loop {
            let Some(received) = self.receive(deadline)? else {
                self.lost = true;
                return Err(Error::NoAnswer);
            };
            match received.message {
                message if received.tag == NO_TAG => self.happened(message)?,
                _ if received.tag != tag => {
                    return Err(Error::Protocol("an answer to no request"));
                }
                Message::Blob(blob) => blobs.push(new_blob(blob)),
                Message::Buffer(buffer) => match blobs.last_mut() {
                    Some(blob) => blob.buffers.push(new_buffer(buffer)),
                    None => buffers.push(new_buffer(buffer)),
                },
                Message::Answer(_) | Message::Opened(_) | Message::Token(_) => {
                    return Ok(Answered {
                        blobs,
                        buffers,
                        last: received,
                    });
                }
                _ => return Err(Error::Protocol("no answer to any request")),
            }
        }
    }

    /// Something happened that nobody asked for.
    fn happened(&mut self, message: Message) -> Result<()> {
        let event = match message {
            Message::Blob(blob) => Event::Added(new_blob(blob)),
            Message::Buffer(buffer) => Event::Published(BlobId(buffer.blob), new_buffer(buffer)),
            Message::Withdrawn(gone) => Event::Withdrawn(BlobId(gone.blob), gone.offset),
            Message::Presented(presented) => Event::Presented {
                blob: BlobId(presented.blob),
                offset: presented.offset,
                present: presented.present,
            },
            Message::Destroyed(gone) => Event::Destroyed(BlobId(gone.blob)),
            _ => return Err(Error::Protocol("an answer to no request")),
        };
        self.events.push_back(event);
        Ok(())
    }

    /// The next message, until the deadline. Sends what is to be sent meanwhile.
    fn receive(&mut self, deadline: Instant) -> Result<Option<Received<Message>>> {
        if self.lost {
            return Err(Error::NoAnswer);
        }
        loop {
            if let Some(received) = self.stream.next_message()? {
                return Ok(Some(received));
            }
            let mut flags = PollFlags::IN;
            if !self.stream.flush()? {
                flags |= PollFlags::OUT;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: i64::from(left.subsec_nanos()),
            };
            let mut poll = [PollFd::new(&self.stream, flags)];
            match rustix::event::poll(&mut poll, Some(&left)) {
                Ok(0) => return Ok(None),
                Ok(_) => self.stream.receive()?,
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(errno) => return Err(Error::System("poll", errno)),
            }
        }
    }
}

fn new_blob(blob: hostblob_protocol::export::Blob) -> Blob {
    Blob {
        id: BlobId(blob.blob),
        uuid: blob.uuid,
        size: blob.size,
        name: blob.name,
        buffers: Vec::new(),
    }
}

fn new_buffer(buffer: hostblob_protocol::export::Buffer) -> Buffer {
    Buffer {
        layout: buffer.layout,
        present: buffer.present,
    }
}

fn done(message: Message) -> Result<()> {
    match message {
        Message::Answer(answer) if answer.outcome == Outcome::Done.number() => Ok(()),
        message => Err(refusal(message)),
    }
}

fn refusal(message: Message) -> Error {
    match message {
        Message::Answer(Answer { outcome, status }) => match Outcome::from_number(outcome) {
            Outcome::Done => Error::Protocol("success without what was asked for"),
            Outcome::Refused => {
                Error::Refused(Status::from_number(status).unwrap_or(Status::Internal))
            }
            outcome => Error::Outcome(outcome),
        },
        _ => Error::Protocol("the answer to another request"),
    }
}
