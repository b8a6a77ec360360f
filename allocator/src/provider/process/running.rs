//! The process as seen from here: its start, its socket, its end.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::Child;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};

use super::wire::{self, FromChild, ToChild};
use super::{ProcessError, START_TIMEOUT, Spawn};
use crate::provider::Description;

/// How long a process may take to end once it is told to.
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// What the reader hears; the channel ends with the process.
pub(super) type Heard = (FromChild, Vec<OwnedFd>);

/// A process that serves.
pub(super) struct Running {
    pub(super) child: Child,
    socket: UnixStream,
    pub(super) heard: Receiver<Heard>,
    pub(super) description: Description,
    pub(super) reason: String,
    pub(super) generation: u64,
}

impl Running {
    /// Waits until it serves, or until somebody shuts down the socket that `announce` sees. It does not listen where it takes longer than
    /// `patience` to take a message.
    pub(super) fn start(
        spawn: &Spawn,
        generation: u64,
        patience: Duration,
        announce: impl FnOnce(&UnixStream) -> io::Result<()>,
    ) -> Result<Self, ProcessError> {
        let (socket, theirs) = UnixStream::pair()?;
        socket.set_write_timeout(Some(patience))?;
        announce(&socket)?;
        let mut child = spawn(theirs.into())?;
        match ready(&socket).and_then(|told| Ok((told, reader(&socket)?))) {
            Ok(((description, reason), heard)) => Ok(Self {
                child,
                socket,
                heard,
                description,
                reason,
                generation,
            }),
            Err(error) => {
                end(&mut child, Duration::ZERO);
                Err(error)
            }
        }
    }

    pub(super) fn send(&self, frame: &ToChild, files: &[Arc<std::fs::File>]) -> io::Result<()> {
        wire::send(&self.socket, frame, &wire::borrowed(files))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It hears the end of its socket, and so does our reader.
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
        end(&mut self.child, END_TIMEOUT);
    }
}

/// Waits for a process to end by itself, then kills it. When this returns its driver reaches no memory any more.
pub(super) fn end(child: &mut Child, patience: Duration) {
    let deadline = Instant::now() + patience;
    while Instant::now() < deadline {
        if let Ok(Some(_)) = child.try_wait() {
            return;
        }
        thread::sleep(Duration::from_millis(1));
    }
    let _ = child.kill();
    let _ = child.wait();
}

/// What a new process says first.
fn ready(socket: &UnixStream) -> Result<(Description, String), ProcessError> {
    socket.set_read_timeout(Some(START_TIMEOUT))?;
    let first = wire::receive(socket);
    socket.set_read_timeout(None)?;
    match first {
        Ok(Some((
            FromChild::Ready {
                description,
                reason,
            },
            _,
        ))) => Ok((description, reason)),
        Ok(Some((FromChild::Failed(why), _))) => Err(ProcessError::Refused(why)),
        Ok(_) => Err(ProcessError::Ended),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(ProcessError::Timeout),
        Err(error) => {
            log::warn!("the process with the GPU driver: {error}");
            Err(ProcessError::Ended)
        }
    }
}

/// Starts the thread that reads; it ends with the socket.
fn reader(socket: &UnixStream) -> io::Result<Receiver<Heard>> {
    let socket = socket.try_clone()?;
    let (sender, heard) = crossbeam_channel::unbounded();
    thread::Builder::new()
        .name("hb-keeper-reader".to_owned())
        .spawn(move || read(&socket, &sender))?;
    Ok(heard)
}

fn read(socket: &UnixStream, to: &Sender<Heard>) {
    loop {
        match wire::receive(socket) {
            Ok(Some(heard)) => {
                if to.send(heard).is_err() {
                    return;
                }
            }
            Ok(None) => return,
            Err(error) => {
                log::warn!("the process with the GPU driver: {error}");
                return;
            }
        }
    }
}
