//! The one way to wake the thread that serves the queues: notifications from the guest, finished GPU work, a changed
//! memory map, the end.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{EventfdFlags, PollFd, PollFlags};

use crate::gpu::Waker;

/// An eventfd, and a flag that spares its system calls while the thread is awake anyway.
///
/// The waking side sets the flag after it has published what there is to do; the woken side clears it before it looks. So
/// whoever finds the flag set knows that the look comes after, and no wake-up is lost.
#[derive(Debug)]
pub struct Wake {
    fd: OwnedFd,
    due: AtomicBool,
}

impl Wake {
    /// Not due. Fails where the process has no descriptors left.
    pub fn new() -> io::Result<Arc<Self>> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let fd = rustix::event::eventfd(0, flags)?;
        Ok(Arc::new(Self {
            fd,
            due: AtomicBool::new(false),
        }))
    }

    /// Wakes the thread, or makes its next [`Self::wait`] return at once. Never blocks.
    pub fn wake(&self) {
        if !self.due.swap(true, Ordering::SeqCst) {
            // Fails only when the counter is full: then it is readable already.
            let _ = rustix::io::write(&self.fd, &1_u64.to_ne_bytes());
        }
    }

    /// Waits until due.
    pub fn wait(&self) {
        while !self.is_due() {
            // Interrupted, or woken: the flag tells. A write may come after the wake-up that it belongs to was taken:
            // drained here, before the flag is looked at again.
            let _ = rustix::event::poll(&mut [PollFd::new(&self.fd, PollFlags::IN)], None);
            self.drain();
        }
        self.clear();
    }

    /// Whether [`Self::wait`] would return at once: for a thread that polls for a while before it sleeps.
    pub fn is_due(&self) -> bool {
        self.due.load(Ordering::SeqCst)
    }

    /// Takes the wake-up, for a thread that found it without [`Self::wait`].
    pub fn clear(&self) {
        self.drain();
        self.due.swap(false, Ordering::SeqCst);
    }

    fn drain(&self) {
        let _ = rustix::io::read(&self.fd, &mut [0_u8; 8]);
    }

    /// What the device calls when it has completions.
    pub fn waker(self: &Arc<Self>) -> Waker {
        let wake = Arc::clone(self);
        Arc::new(move || wake.wake())
    }
}

impl AsFd for Wake {
    /// Readable when due.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_wake_after_a_clear_is_seen() {
        let wake = Wake::new().unwrap();
        let rounds = 10_000;
        let other = Arc::clone(&wake);
        let done = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let counter = Arc::clone(&done);
        let thread = std::thread::spawn(move || {
            for round in 1..=rounds {
                while done.load(Ordering::SeqCst) < round {
                    other.wait();
                }
            }
        });
        for _ in 0..rounds {
            counter.fetch_add(1, Ordering::SeqCst);
            wake.wake();
        }
        thread.join().unwrap();
    }
}
