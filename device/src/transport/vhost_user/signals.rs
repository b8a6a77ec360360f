//! Notifications: the driver kicks an eventfd of each queue, and the device calls another.
//!
//! The descriptors are shared with the VMM and the kernel, and a hostile VMM may do with them what it likes. So kicks are read in a way
//! that cannot block, and calls are [`Line`]s.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::fd::AsFd;
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags};
use rustix::io::ReadWriteFlags;

use super::channel::Channel;
use crate::transport::Wake;
use crate::transport::engine::{self, Source};
use crate::transport::line::{Line, checked};
use crate::virtqueue::QUEUES;

/// The descriptors of all queues, and the channel for what is no signal of a queue. The lock is a leaf: nothing blocks under it.
#[derive(Debug, Default)]
pub(super) struct Signals {
    lines: Mutex<[Lines; QUEUES]>,
    channel: Arc<Channel>,
}

#[derive(Debug, Default)]
struct Lines {
    kick: Option<Arc<File>>,
    call: Option<Line>,
    error: Option<Line>,
}

impl Signals {
    pub(super) fn new(channel: Arc<Channel>) -> Self {
        Self {
            lines: Mutex::default(),
            channel,
        }
    }

    /// Changes the kick of a queue. The queue thread has to be woken: it waits for the old one.
    pub(super) fn set_kick(&self, queue: usize, file: Option<File>) -> io::Result<()> {
        let file = file.map(checked).transpose()?.map(Arc::new);
        self.with(queue, |lines| lines.kick = file);
        Ok(())
    }

    /// Changes the call of a queue.
    pub(super) fn set_call(&self, queue: usize, file: Option<File>) -> io::Result<()> {
        let line = file.map(Line::new).transpose()?;
        self.with(queue, |lines| lines.call = line);
        Ok(())
    }

    /// Changes the error descriptor of a queue.
    pub(super) fn set_error(&self, queue: usize, file: Option<File>) -> io::Result<()> {
        let line = file.map(Line::new).transpose()?;
        self.with(queue, |lines| lines.error = line);
        Ok(())
    }

    fn with(&self, queue: usize, f: impl FnOnce(&mut Lines)) {
        if let Some(lines) = self.lines.lock().get_mut(queue) {
            f(lines);
        }
    }

    fn kicks(&self) -> Vec<Arc<File>> {
        let lines = self.lines.lock();
        lines.iter().filter_map(|line| line.kick.clone()).collect()
    }
}

/// Takes the kicks that came. Never waits, whoever else reads.
fn drain(kick: &File) {
    let mut count = [0; 8];
    let mut to = [IoSliceMut::new(&mut count)];
    // The offset that stands for none: an eventfd has no position.
    let _ = rustix::io::preadv2(kick, &mut to, u64::MAX, ReadWriteFlags::NOWAIT);
}

impl engine::Signals for Signals {
    fn announce(&self, uuid: [u8; 16], is_there: bool) {
        self.channel.announce(uuid, is_there);
    }

    fn wait(&self, wake: &Wake) {
        let kicks = self.kicks();
        if !wake.is_due() {
            let mut poll: Vec<PollFd<'_>> = [wake.as_fd()]
                .into_iter()
                .chain(kicks.iter().map(|kick| kick.as_fd()))
                .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
                .collect();
            // Interrupted: one look at the queues too many.
            let _ = rustix::event::poll(&mut poll, None);
        }
        for kick in &kicks {
            drain(kick);
        }
        wake.clear();
    }

    fn raise(&self, source: Source) {
        // Out of the lock first: the VMM may have one of them block.
        match source {
            Source::Queue(queue) => {
                let lines = self.lines.lock();
                let line = lines.get(usize::from(queue));
                let line = line.and_then(|line| line.call.clone());
                drop(lines);
                if let Some(line) = line {
                    line.fire();
                }
            }
            // The device needs a reset. vhost-user has no other way to say so.
            Source::Config => {
                let lines = self.lines.lock().each_ref().map(|line| line.error.clone());
                lines.iter().flatten().for_each(Line::fire);
            }
        }
    }

    fn reset(&self) {
        // The descriptors are the VMM's, which changes them when it starts the queues.
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use rustix::event::EventfdFlags;

    use super::engine::Signals as _;
    use super::*;

    fn eventfd(flags: EventfdFlags) -> File {
        File::from(rustix::event::eventfd(0, flags).unwrap())
    }

    #[test]
    fn a_kick_is_taken_without_blocking_even_on_a_blocking_descriptor() {
        let kick = eventfd(EventfdFlags::CLOEXEC);
        let signals = Signals::default();
        let wake = Wake::new().unwrap();
        signals
            .set_kick(0, Some(kick.try_clone().unwrap()))
            .unwrap();
        rustix::io::write(&kick, &1_u64.to_ne_bytes()).unwrap();
        signals.wait(&wake);
        // Taken, and not waited for.
        drain(&kick);
        let mut poll = [PollFd::new(&kick, PollFlags::IN)];
        let now = rustix::event::Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        assert_eq!(rustix::event::poll(&mut poll, Some(&now)), Ok(0));

        let other = Arc::clone(&wake);
        let start = Instant::now();
        let thread = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            other.wake();
        });
        signals.wait(&wake);
        assert!(start.elapsed() >= Duration::from_millis(19));
        thread.join().unwrap();
    }

    #[test]
    fn only_eventfds_are_accepted_and_a_full_one_does_not_block() {
        let signals = Signals::default();
        for set in [Signals::set_kick, Signals::set_call, Signals::set_error] {
            let (reader, _writer) = rustix::pipe::pipe().unwrap();
            assert!(set(&signals, 0, Some(File::from(reader))).is_err());
        }
        let call = eventfd(EventfdFlags::CLOEXEC);
        signals
            .set_call(1, Some(call.try_clone().unwrap()))
            .unwrap();
        rustix::io::write(&call, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        signals.raise(Source::Queue(1));
        signals.raise(Source::Queue(7));
        signals.raise(Source::Config);
    }
}
