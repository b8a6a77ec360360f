//! The process as seen from here: its start, its socket, its end.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::Child;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{PidfdFlags, Signal, WaitId, WaitIdOptions};

use super::owed::Owed;
use super::wire::{self, Beside, FromChild, ToChild};
use super::{ProcessError, START_TIMEOUT, Spawn};
use crate::provider::{Description, ProviderError};

/// How long a process may take to end once it is told to.
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a process may take to die once it is killed: longer only where its driver hangs in the kernel.
const KILL_TIMEOUT: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 5 });

/// An answer, as the process gives it. The channel ends with the process, and where it says what nobody has asked.
pub(super) struct Heard {
    pub(super) session: u64,
    pub(super) sequence: u64,
    pub(super) result: Result<(), ProviderError>,
    pub(super) beside: Beside,
}

/// A process, of ours or of another one, by its pidfd (pidfd_open(2)).
#[derive(Debug)]
pub struct Process(OwnedFd);

impl Process {
    /// Whether it has ended, `patience` from now at the latest. It reaches no memory any more then.
    pub fn ends_within(&self, patience: Duration) -> bool {
        // What is too long for the system is for ever.
        let patience = Timespec::try_from(patience).ok();
        let mut poll = [PollFd::new(&self.0, PollFlags::IN)];
        loop {
            match rustix::event::poll(&mut poll, patience.as_ref()) {
                Err(rustix::io::Errno::INTR) => {}
                Ok(0) | Err(_) => return false,
                Ok(_) => break,
            }
        }
        // Another one's child is its own to reap.
        let _ = rustix::process::waitid(WaitId::PidFd(self.0.as_fd()), WaitIdOptions::EXITED);
        true
    }

    /// Lets it end by itself for `patience`, then kills it, and logs that it was so patient. Whether it has ended when this returns: one that
    /// hangs in the kernel dies when it comes back from there, which nobody can hasten, and is not waited for.
    pub fn end(&self, patience: Duration) -> bool {
        if self.ends_within(patience) {
            return true;
        }
        if !patience.is_zero() {
            log::warn!("a process did not end within {patience:?} and was killed");
        }
        let _ = rustix::process::pidfd_send_signal(&self.0, Signal::KILL);
        self.dies()
    }

    /// Whether it dies soon, now that it is killed.
    fn dies(&self) -> bool {
        let is_dead = self.ends_within(KILL_TIMEOUT);
        if !is_dead {
            log::error!(
                "the process with the GPU driver was killed and its driver hangs in the kernel; GPU work waits for it"
            );
        }
        is_dead
    }
}

impl AsFd for Process {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<OwnedFd> for Process {
    fn from(pidfd: OwnedFd) -> Self {
        Self(pidfd)
    }
}

impl TryFrom<Child> for Process {
    type Error = io::Error;

    /// The child goes where it cannot be had so.
    fn try_from(mut child: Child) -> io::Result<Self> {
        let pid = rustix::process::Pid::from_child(&child);
        match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => Ok(Self(pidfd)),
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(error.into())
            }
        }
    }
}

/// A process that serves.
pub(super) struct Running {
    process: Process,
    /// How long it may take to end.
    patience: Duration,
    socket: UnixStream,
    pub(super) heard: Receiver<Heard>,
    owed: Arc<Mutex<Owed>>,
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
        let process = spawn(theirs.into())?;
        let owed = Arc::<Mutex<Owed>>::default();
        match ready(&socket).and_then(|told| Ok((told, reader(&socket, &owed)?))) {
            Ok(((description, reason), heard)) => Ok(Self {
                process,
                patience: END_TIMEOUT,
                socket,
                heard,
                owed,
                description,
                reason,
                generation,
            }),
            Err(error) => {
                process.end(Duration::ZERO);
                Err(error)
            }
        }
    }

    /// Kills it, and returns when it is dead: whether it is, or `is_over` came first.
    pub(super) fn kill(&mut self, is_over: impl Fn() -> bool) -> bool {
        // What is killed already is not let end by itself.
        self.patience = Duration::ZERO;
        let mut is_dead = self.process.end(Duration::ZERO);
        while !is_dead && !is_over() {
            is_dead = self.process.dies();
        }
        is_dead
    }

    pub(super) fn send(&self, frame: &ToChild, files: &[Arc<std::fs::File>]) -> io::Result<()> {
        // Before it can answer.
        match frame {
            ToChild::Open { .. } => {}
            ToChild::Request { session, .. } => self.owed.lock().asked(*session),
            ToChild::Close { session } => self.owed.lock().closed(*session),
        }
        wire::send(&self.socket, frame, &wire::borrowed(files))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It hears the end of its socket, and so does our reader.
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
        self.process.end(self.patience);
    }
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
fn reader(socket: &UnixStream, owed: &Arc<Mutex<Owed>>) -> io::Result<Receiver<Heard>> {
    let (socket, owed) = (socket.try_clone()?, Arc::clone(owed));
    let (sender, heard) = crossbeam_channel::unbounded();
    thread::Builder::new()
        .name("hb-keeper-reader".to_owned())
        .spawn(move || read(&socket, &owed, &sender))?;
    Ok(heard)
}

/// Reads until the process or the keeper is gone, or it talks nonsense. What it owes is the only bound of what is kept here: a full channel would
/// have an honest process wait for the keeper, while the keeper waits for it to listen.
fn read(socket: &UnixStream, owed: &Mutex<Owed>, to: &Sender<Heard>) {
    loop {
        match next(socket, owed) {
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

/// The next answer that somebody may wait for; `None` at the end.
fn next(socket: &UnixStream, owed: &Mutex<Owed>) -> io::Result<Option<Heard>> {
    loop {
        let Some((frame, beside)) = wire::receive(socket)? else {
            return Ok(None);
        };
        let FromChild::Done {
            session,
            sequence,
            result,
        } = frame
        else {
            return Err(io::Error::other("it begins anew"));
        };
        let waits = owed.lock().answered(session);
        if waits.map_err(|nonsense| io::Error::other(nonsense.0))? {
            return Ok(Some(Heard {
                session,
                sequence,
                result,
                beside,
            }));
        }
    }
}

#[cfg(test)]
mod tests;
