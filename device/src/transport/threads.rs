//! The threads of a connection, and their end.
//!
//! A thread may wait in a system call for as long as the VMM wants: for a message on a socket that a crate keeps to itself, or in a write to a
//! descriptor whose flags are the VMM's too. A thread that is to end is sent a real-time signal whose handler does nothing: the call ends as
//! interrupted. A signal that comes while it does something else is lost, so it is sent again until the thread is gone.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use crate::shutdown::Shutdown;

/// Between two signals to a thread that is to end.
const SIGNAL_AGAIN: Duration = Duration::from_millis(5);

/// How long a thread that was told to end may do so by itself. It may be about to give memory back, which a signal would interrupt.
pub(super) const GRACE: Duration = Duration::from_millis(200);

/// Makes [`SIGRTMIN`] interrupt system calls, and do nothing else. Once for the process, before there is a thread to end.
pub(super) fn prepare() -> io::Result<()> {
    extern "C" fn interrupt(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    static PREPARED: OnceLock<Result<(), vmm_sys_util::errno::Error>> = OnceLock::new();
    let prepared = PREPARED.get_or_init(|| register_signal_handler(SIGRTMIN(), interrupt));
    prepared.map_err(Into::into)
}

/// Gets a thread that was told to end out of whatever it waits for, and waits until it has ended. The first signal comes after `grace`.
pub(super) fn end<T>(thread: &JoinHandle<T>, grace: Duration) {
    end_within(thread, grace, Duration::MAX);
}

/// As [`end`], but not for longer than `patience`; whether it has ended.
pub(super) fn end_within<T>(thread: &JoinHandle<T>, grace: Duration, patience: Duration) -> bool {
    let start = Instant::now();
    // Most end at once.
    let mut pause = Duration::from_micros(50);
    while !thread.is_finished() {
        let passed = start.elapsed();
        if passed > patience {
            return false;
        }
        if passed >= grace {
            // The handle is not joined, so its thread exists, finished or not.
            let _ = thread.kill(SIGRTMIN());
        }
        std::thread::sleep(pause);
        pause = pause.saturating_mul(2).min(SIGNAL_AGAIN);
    }
    true
}

/// Ends a thread and takes what is left of it.
pub(super) fn end_and_join(thread: JoinHandle<()>, what: &str, grace: Duration) {
    end(&thread, grace);
    join(thread, what);
}

/// Of a thread that has ended.
pub(super) fn join(thread: JoinHandle<()>, what: &str) {
    if thread.join().is_err() {
        log::error!("the {what} thread panicked; the device starts anew");
    }
}

/// Becomes readable when one of the threads ends, by a panic too.
pub(super) struct Ended(Arc<OwnedFd>);

struct Guard(Arc<OwnedFd>);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = rustix::io::write(&*self.0, &1_u64.to_ne_bytes());
    }
}

impl Ended {
    pub(super) fn new() -> io::Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Ok(Self(Arc::new(rustix::event::eventfd(0, flags)?)))
    }

    pub(super) fn spawn(
        &self,
        name: &str,
        work: impl FnOnce() + Send + 'static,
    ) -> io::Result<JoinHandle<()>> {
        let guard = Guard(Arc::clone(&self.0));
        std::thread::Builder::new()
            .name(name.into())
            .spawn(move || {
                let _guard = guard;
                work();
            })
    }

    /// Waits for a thread's end or the daemon's.
    pub(super) fn wait(&self, shutdown: &Shutdown) {
        let (ended, shutdown) = (self.0.as_fd(), shutdown.as_fd());
        loop {
            let mut poll = [ended, shutdown].map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
            // Interrupted: again.
            if rustix::event::poll(&mut poll, None).is_ok_and(|ready| ready > 0) {
                return;
            }
        }
    }
}
