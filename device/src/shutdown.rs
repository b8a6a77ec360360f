//! One descriptor that becomes readable when the daemon should end, for every loop that waits.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::EventfdFlags;

/// A request to end, shared by all threads. Once made it stays.
#[derive(Debug, Clone)]
pub struct Shutdown(Arc<OwnedFd>);

impl Shutdown {
    /// Not requested yet. Fails where the process has no descriptors left.
    pub fn new() -> std::io::Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Ok(Self(Arc::new(rustix::event::eventfd(0, flags)?)))
    }

    /// Requests it. May be called from any thread, any number of times.
    pub fn request(&self) {
        // Fails only when the counter is full: then it is readable already.
        let _ = rustix::io::write(&*self.0, &1_u64.to_ne_bytes());
    }

    /// Whether it was requested.
    pub fn is_requested(&self) -> bool {
        let mut poll = [rustix::event::PollFd::new(
            &*self.0,
            rustix::event::PollFlags::IN,
        )];
        let now = rustix::event::Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        rustix::event::poll(&mut poll, Some(&now)).is_ok_and(|ready| ready > 0)
    }
}

impl AsFd for Shutdown {
    /// Readable, level-triggered, once requested. Nobody reads it.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn once_requested_it_stays_so_for_every_clone() {
        let shutdown = Shutdown::new().unwrap();
        let clone = shutdown.clone();
        assert!(!clone.is_requested());
        shutdown.request();
        shutdown.request();
        assert!(clone.is_requested() && clone.is_requested());
    }
}
