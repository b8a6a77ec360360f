//! The process that starts the processes with the GPU driver: hostblobd itself can start nothing once it serves (`sandbox`), and a driver
//! that ends is started again.
//!
//! A launch is a number with the socket of the new process; the answer is that number, with the process' pidfd where there is one.
//! Nothing that a guest says comes here.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use hostblob_allocator::provider::process::Process;
use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use crate::cli::Gpu;
use crate::sandbox::{self, drop_privileges};

/// Longest time that a launch may take: a fork and an exec.
const LAUNCH_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a process may take to end when its socket is closed.
const END_TIMEOUT: Duration = Duration::from_secs(5);
/// Most processes at a time: one that serves, one that ends, one that starts.
const MAX_PROCESSES: usize = 4;

/// hostblobd's end. Dropping it ends the launcher.
#[derive(Debug)]
pub(crate) struct Launcher {
    line: Mutex<Line>,
    process: Process,
}

/// To the launcher, and the number of the last launch.
#[derive(Debug)]
struct Line {
    socket: UnixStream,
    last: u8,
}

impl Launcher {
    /// Starts it. What it starts gets these flags.
    pub(crate) fn start(gpu: &Gpu) -> io::Result<Self> {
        let (socket, theirs) = UnixStream::pair()?;
        let process = hostblobd("launcher", gpu, theirs.into())
            // Signals of a terminal are for the daemon, which ends it.
            .process_group(0)
            .spawn()?
            .try_into()?;
        Self::over(socket, process)
    }

    fn over(socket: UnixStream, process: Process) -> io::Result<Self> {
        socket.set_read_timeout(Some(LAUNCH_TIMEOUT))?;
        Ok(Self {
            line: Mutex::new(Line { socket, last: 0 }),
            process,
        })
    }

    /// Starts a process with the GPU driver, which is served on its standard input.
    pub(crate) fn launch(&self, served: &OwnedFd) -> io::Result<Process> {
        let mut line = self.line.lock();
        line.last = line.last.wrapping_add(1);
        line.socket
            .send_with_fd(&[line.last][..], served.as_raw_fd())?;
        loop {
            let (number, pidfd) = receive(&line.socket)?
                .ok_or_else(|| io::Error::other("the process that starts it is gone"))?;
            // An answer may come when nobody waits for it any more: what it starts has no socket then, and ends.
            if number == line.last {
                let refused = || io::Error::other("it cannot be started");
                return Ok(OwnedFd::from(pidfd.ok_or_else(refused)?).into());
            }
        }
    }
}

impl Drop for Launcher {
    fn drop(&mut self) {
        let _ = self.line.lock().socket.shutdown(std::net::Shutdown::Both);
        self.process.end(2 * END_TIMEOUT);
    }
}

/// The program itself, as another process.
fn hostblobd(role: &str, gpu: &Gpu, stdin: OwnedFd) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("hostblobd").arg(role).args(gpu.to_flags());
    command.stdin(stdin);
    command
}

/// A number, with a descriptor or without; `None` where the other end is closed.
fn receive(socket: &UnixStream) -> io::Result<Option<(u8, Option<File>)>> {
    let mut number = [0];
    let (length, file) = loop {
        match socket.recv_with_fd(&mut number) {
            Err(error) if error.errno() == libc::EINTR => {}
            other => break other?,
        }
    };
    if let Some(file) = &file {
        rustix::io::fcntl_setfd(file, rustix::io::FdFlags::CLOEXEC)?;
    }
    let [number] = number;
    Ok((length == 1).then_some((number, file)))
}

/// The launcher's end: serves standard input until that closes, and then ends what it has started.
///
/// # Errors
/// When standard input is no such socket.
pub fn serve_stdin(gpu: &Gpu) -> io::Result<()> {
    if gpu.sandbox == sandbox::Mode::On {
        drop_privileges()?;
    }
    let socket = io::stdin().as_fd().try_clone_to_owned()?;
    rustix::net::sockopt::socket_type(&socket)?;
    let socket = UnixStream::from(socket);
    let mut processes: Vec<Process> = Vec::new();
    while wait(&socket, &mut processes)? {
        let Some((number, Some(served))) = receive(&socket)? else {
            break;
        };
        match launch(gpu, served, &mut processes) {
            Ok(pidfd) => socket.send_with_fd(&[number][..], pidfd.as_raw_fd())?,
            Err(error) => {
                log::error!("no process for the GPU driver: {error}");
                socket.send_with_fds(&[&[number][..]], &[])?
            }
        };
    }
    for process in processes {
        process.end(END_TIMEOUT);
    }
    Ok(())
}

fn launch(gpu: &Gpu, served: File, processes: &mut Vec<Process>) -> io::Result<OwnedFd> {
    if processes.len() >= MAX_PROCESSES {
        return Err(io::Error::other(format!("{MAX_PROCESSES} are there")));
    }
    let process: Process = hostblobd("provider", gpu, served.into())
        .spawn()?
        .try_into()?;
    let pidfd = process.as_fd().try_clone_to_owned()?;
    processes.push(process);
    Ok(pidfd)
}

/// Waits for a message; meanwhile processes that have ended are reaped. `false` where the other end is closed.
fn wait(socket: &UnixStream, processes: &mut Vec<Process>) -> io::Result<bool> {
    loop {
        let descriptors = std::iter::once(socket.as_fd()).chain(processes.iter().map(AsFd::as_fd));
        let mut poll: Vec<PollFd<'_>> = descriptors
            .map(|descriptor| PollFd::from_borrowed_fd(descriptor, PollFlags::IN))
            .collect();
        match rustix::event::poll(&mut poll, None) {
            Err(rustix::io::Errno::INTR) => continue,
            other => other?,
        };
        let heard = poll.first().map_or(PollFlags::empty(), PollFd::revents);
        drop(poll);
        processes.retain(|process| !process.ends_within(Duration::ZERO));
        if !heard.is_empty() {
            return Ok(heard.contains(PollFlags::IN));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn served() -> OwnedFd {
        UnixStream::pair().unwrap().0.into()
    }

    #[test]
    fn a_late_answer_is_not_taken_for_the_next_one() {
        let child = Command::new("sleep").arg("1000").spawn().unwrap();
        let asleep = Process::try_from(child).unwrap();
        // What it is asked has room in the socket of this launcher, which has answered already, and says no more.
        let (socket, theirs) = UnixStream::pair().unwrap();
        let other = File::open("/dev/null").unwrap();
        theirs.send_with_fd(&[0][..], other.as_raw_fd()).unwrap();
        let pidfd = asleep.as_fd().as_raw_fd();
        theirs.send_with_fd(&[1][..], pidfd).unwrap();
        theirs.send_with_fds(&[&[2][..]], &[]).unwrap();
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        let gone = Command::new("true").spawn().unwrap().try_into().unwrap();
        let launcher = Launcher::over(socket, gone).unwrap();
        let process = launcher.launch(&served()).unwrap();
        assert!(!process.ends_within(Duration::ZERO));
        process.end(Duration::ZERO);
        assert!(asleep.ends_within(Duration::ZERO), "it was this one");
        let error = launcher.launch(&served()).unwrap_err().to_string();
        assert_eq!(error, "it cannot be started");
        let error = launcher.launch(&served()).unwrap_err().to_string();
        assert_eq!(error, "the process that starts it is gone");
    }
}
