//! One connection: requests in, answers and events out.
//!
//! Nothing is read from a viewer while it leaves something unread, so what it can make us keep is one answer, and the events that
//! the hub keeps for it before it drops it.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use crossbeam_channel::TryRecvError;
use hostblob_allocator::exports::{Buffer, Event, ExportError, ExportId, Exports, Listed, Viewer};
use hostblob_export::stream::{Received, Stream, StreamError};
use hostblob_protocol::export::{
    self as wire, Answer, Destroyed, Event as Message, Hello, NO_TAG, Outcome, Presented, Request,
    Token, VERSION, Withdrawn,
};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use thiserror::Error;

use crate::shutdown::Shutdown;

#[derive(Debug, Error)]
pub(super) enum ViewerError {
    #[error(transparent)]
    Stream(#[from] StreamError),
    #[error(transparent)]
    Export(#[from] ExportError),
    #[error(transparent)]
    Errno(#[from] Errno),
    #[error("process {process} of user {user} is not of the daemon's user")]
    Stranger { process: i32, user: u32 },
    #[error("a request of tag {NO_TAG}")]
    NoTag,
}

/// Serves one viewer until it leaves, breaks the rules, or the daemon ends.
pub(super) fn serve(
    socket: UnixStream,
    exports: &Arc<Exports>,
    shutdown: &Shutdown,
) -> Result<(), ViewerError> {
    refuse_strangers(&socket)?;
    let wake = Arc::new(rustix::event::eventfd(
        0,
        EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK,
    )?);
    let viewer = exports.join({
        let wake = Arc::clone(&wake);
        // Fails only when the counter is full: then it is readable already.
        Arc::new(move || {
            let _ = rustix::io::write(&*wake, &1_u64.to_ne_bytes());
        })
    })?;
    let mut session = Session {
        stream: Stream::new(socket),
        viewer,
    };
    session.say(NO_TAG, Hello { version: VERSION });
    match session.run(&wake, shutdown) {
        Err(ViewerError::Stream(StreamError::Closed)) => Ok(()),
        ended => ended,
    }
}

/// The socket's permissions keep other users away; this holds where somebody has changed them, or passed a connection on.
fn refuse_strangers(socket: &UnixStream) -> Result<(), ViewerError> {
    let peer = rustix::net::sockopt::socket_peercred(socket)?;
    if peer.uid == rustix::process::geteuid() {
        return Ok(());
    }
    Err(ViewerError::Stranger {
        process: peer.pid.as_raw_nonzero().get(),
        user: peer.uid.as_raw(),
    })
}

struct Session {
    stream: Stream,
    viewer: Viewer,
}

impl Session {
    fn run(&mut self, wake: &OwnedFd, shutdown: &Shutdown) -> Result<(), ViewerError> {
        loop {
            // Before the events are looked at, so that no call of the waker is lost.
            let _ = rustix::io::read(wake, &mut [0_u8; 8]);
            self.advance()?;
            // After the requests, which may have to wait. What this puts into the events wakes us again.
            let next_timeout = self.viewer.expire();
            if self.viewer.is_dropped() {
                return Err(ExportError::Dropped.into());
            }
            let socket_flags = match self.stream.has_output() {
                true => PollFlags::OUT,
                false => PollFlags::IN,
            };
            let mut poll = [
                PollFd::new(&self.stream, socket_flags),
                PollFd::new(wake, PollFlags::IN),
                PollFd::new(shutdown, PollFlags::IN),
            ];
            let left = next_timeout.map(|left| Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: i64::from(left.subsec_nanos()),
            });
            match rustix::event::poll(&mut poll, left.as_ref()) {
                Err(Errno::INTR) => continue,
                other => other?,
            };
            let [socket, _, ended] = poll.map(|fd| !fd.revents().is_empty());
            if ended {
                return Ok(());
            }
            if socket && !self.stream.has_output() {
                self.stream.receive()?;
            }
        }
    }

    /// Does what can be done without waiting: events go out before the next request is looked at.
    fn advance(&mut self) -> Result<(), ViewerError> {
        loop {
            if !self.stream.flush()? {
                return Ok(());
            }
            match self.viewer.events().try_recv() {
                Ok(event) => self.tell(event),
                Err(TryRecvError::Disconnected) => return Err(ExportError::Dropped.into()),
                Err(TryRecvError::Empty) => match self.stream.next_message()? {
                    Some(request) => self.execute(request)?,
                    None => return Ok(()),
                },
            }
        }
    }

    fn execute(&mut self, request: Received<Request>) -> Result<(), ViewerError> {
        let tag = request.tag;
        if tag == NO_TAG {
            return Err(ViewerError::NoTag);
        }
        let done = match (request.message, request.descriptor) {
            (Request::List(_), _) => {
                self.viewer.list(tag);
                return Ok(());
            }
            (Request::Open(open), _) => {
                self.viewer.open(tag, ExportId(open.blob));
                return Ok(());
            }
            (Request::HandIn(_), Some(descriptor)) => match self.viewer.hand_in(descriptor) {
                Ok(token) => {
                    self.say(tag, Token { token });
                    return Ok(());
                }
                Err(error) => Err(error),
            },
            (Request::HandIn(_), None) => {
                return Err(StreamError::Descriptor("a descriptor is missing").into());
            }
            (Request::Release(release), _) => {
                let id = ExportId(release.blob);
                self.viewer.release(id, release.offset, release.present)
            }
            (Request::Close(close), _) => self.viewer.close(ExportId(close.blob)),
            (Request::TakeBack(token), _) => self.viewer.take_back(token.token),
        };
        self.answer(tag, done.as_ref().err());
        Ok(())
    }

    fn say(&mut self, tag: u64, message: impl Into<Message>) {
        self.stream.send(tag, &message.into(), None);
    }

    fn answer(&mut self, tag: u64, error: Option<&ExportError>) {
        if let Some(error) = error {
            log::debug!("export socket: refused: {error}");
        }
        let outcome = error.map_or(Outcome::Done, ExportError::outcome);
        let status = match error {
            Some(ExportError::Refused(status)) => status.number(),
            _ => 0,
        };
        let answer = Answer {
            outcome: outcome.number(),
            status,
        };
        self.say(tag, answer);
    }

    fn tell(&mut self, event: Event) {
        match event {
            Event::Added(blob) => self.describe(NO_TAG, &blob),
            Event::Published(id, buffer) => self.say(NO_TAG, wire_buffer(id, buffer)),
            Event::Withdrawn(ExportId(blob), offset) => {
                self.say(NO_TAG, Withdrawn { blob, offset });
            }
            Event::Presented {
                id: ExportId(blob),
                offset,
                present,
            } => {
                let presented = Presented {
                    blob,
                    offset,
                    present,
                };
                self.say(NO_TAG, presented);
            }
            Event::Destroyed(ExportId(blob)) => self.say(NO_TAG, Destroyed { blob }),
            Event::Listing { tag, blobs } => {
                for blob in &blobs {
                    self.describe(tag, blob);
                }
                self.answer(tag, None);
            }
            Event::Opened { tag, id, result } => match result {
                Err(error) => self.answer(tag, Some(&error)),
                Ok(opened) => {
                    for buffer in opened.buffers {
                        self.say(tag, wire_buffer(id, buffer));
                    }
                    let message = wire::Opened {
                        blob: id.0,
                        size: opened.size,
                    };
                    self.stream
                        .send(tag, &Message::from(message), Some(opened.descriptor));
                }
            },
        }
    }

    fn describe(&mut self, tag: u64, blob: &Listed) {
        let message = wire::Blob {
            blob: blob.id.0,
            uuid: blob.uuid,
            size: blob.size,
            name: blob.name.to_string(),
        };
        self.say(tag, message);
        for &buffer in &blob.buffers {
            self.say(tag, wire_buffer(blob.id, buffer));
        }
    }
}

fn wire_buffer(id: ExportId, buffer: Buffer) -> wire::Buffer {
    wire::Buffer {
        blob: id.0,
        layout: buffer.layout,
        present: buffer.present,
    }
}
