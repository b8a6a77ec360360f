//! A line to the driver: an eventfd of the VMM that is written to. Each transport has some, and they are used in one way.
//!
//! The descriptor is shared with the VMM, and so are its flags: a hostile VMM takes O_NONBLOCK away again and fills the counter, and a write waits
//! then until somebody reads. The kernel knows no write to an eventfd that never waits. So:
//!
//! - A counter that is full is not written to. What remains is a VMM that fills it in the moment between.
//! - No lock is held while one is written to: a thread that is stuck holds up nobody else, and [`super::threads::end`] gets it out.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::OFlags;
use rustix::io::Errno;

/// What `/proc/self/fd` says of an eventfd.
const EVENTFD: &str = "anon_inode:[eventfd]";

/// An eventfd that is written to, in as many hands as need it.
#[derive(Debug, Clone)]
pub(super) struct Line(Arc<File>);

impl Line {
    /// Takes a descriptor of the VMM, if it is an eventfd.
    pub(super) fn new(file: File) -> io::Result<Self> {
        let file = checked(file)?;
        let flags = rustix::fs::fcntl_getfl(&file)?;
        rustix::fs::fcntl_setfl(&file, flags | OFlags::NONBLOCK)?;
        Ok(Self(Arc::new(file)))
    }

    /// Notifies. To be called under no lock.
    pub(super) fn fire(&self) {
        if self.has_room() {
            self.write();
        }
    }

    /// A full counter is a notification that is on its way already.
    fn has_room(&self) -> bool {
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let mut poll = [PollFd::new(&*self.0, PollFlags::OUT)];
        match rustix::event::poll(&mut poll, Some(&now)) {
            // The kernel can fill it to the brim: that is an error, and no room.
            Ok(_) => poll.iter().all(|fd| fd.revents().contains(PollFlags::OUT)),
            // Only what is not ready is interrupted.
            Err(Errno::INTR) => false,
            Err(_) => true,
        }
    }

    /// Waits where the VMM wants that. A signal ends it: it is not tried again.
    fn write(&self) {
        let _ = rustix::io::write(&*self.0, &1_u64.to_ne_bytes());
    }

    /// What a notification does when the VMM has filled the counter in the last moment.
    #[cfg(test)]
    pub(super) fn fire_too_late(&self) {
        self.write();
    }
}

/// Only an eventfd: of other files it is not known what a read or a write does to others.
pub(super) fn checked(file: File) -> io::Result<File> {
    let link = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    if link.as_os_str() != EVENTFD {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("not an eventfd: {}", link.display()),
        ));
    }
    Ok(file)
}

/// What a hostile VMM does with the other end: the counter is full, and a write to it waits.
#[cfg(test)]
pub(super) fn jam(fd: impl std::os::fd::AsFd) {
    let flags = rustix::fs::fcntl_getfl(&fd).unwrap();
    rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK).unwrap();
    // Empty first, if it was not: a write that does not fit changes nothing.
    let _ = rustix::io::read(&fd, &mut [0; 8]);
    rustix::io::write(&fd, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    rustix::fs::fcntl_setfl(&fd, flags & !OFlags::NONBLOCK).unwrap();
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rustix::event::EventfdFlags;

    use super::*;
    use crate::transport::threads;

    fn eventfd() -> File {
        File::from(rustix::event::eventfd(0, EventfdFlags::CLOEXEC).unwrap())
    }

    fn count(file: &File) -> u64 {
        let mut value = [0; 8];
        rustix::io::read(file, &mut value).map_or(0, |_| u64::from_ne_bytes(value))
    }

    #[test]
    fn only_an_eventfd_is_a_line() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let other = rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC);
        for file in [reader, writer, other.unwrap()] {
            let refused = Line::new(File::from(file)).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::InvalidInput);
        }
        let call = eventfd();
        let line = Line::new(call.try_clone().unwrap()).unwrap();
        line.fire();
        line.clone().fire();
        assert_eq!(count(&call), 2);
    }

    #[test]
    fn a_full_counter_is_not_waited_for_whatever_its_flags() {
        let call = eventfd();
        let line = Line::new(call.try_clone().unwrap()).unwrap();
        jam(&call);
        line.fire();
        assert_eq!(count(&call), u64::MAX - 1);
        line.fire();
        assert_eq!(count(&call), 1);
    }

    #[test]
    fn a_thread_that_is_stuck_in_a_line_is_ended() {
        threads::prepare().unwrap();
        let call = eventfd();
        let line = Line::new(call.try_clone().unwrap()).unwrap();
        jam(&call);
        let thread = std::thread::spawn(move || line.fire_too_late());
        std::thread::sleep(Duration::from_millis(50));
        assert!(!thread.is_finished(), "it is stuck");
        threads::end(&thread, Duration::ZERO);
        thread.join().unwrap();
        assert_eq!(count(&call), u64::MAX - 1);
    }
}
