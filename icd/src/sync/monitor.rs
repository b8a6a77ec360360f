//! One lock and one condition per device, for all that its threads wait for. Also knows whether the device is lost.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ash::vk;
use parking_lot::{Condvar, Mutex};

/// Shared by a device, its queue and their threads.
#[derive(Debug, Default)]
pub(crate) struct Monitor {
    lost: AtomicBool,
    lock: Mutex<()>,
    changed: Condvar,
}

impl Monitor {
    /// Changes something that others may wait for.
    pub(crate) fn change(&self, change: impl FnOnce()) {
        let _locked = self.lock.lock();
        change();
        self.changed.notify_all();
    }

    /// Nothing will be signalled any more: whoever waits is told, now and later.
    pub(crate) fn lose(&self) {
        self.change(|| self.lost.store(true, Ordering::Release));
    }

    /// `VK_ERROR_DEVICE_LOST` once it is.
    pub(crate) fn check(&self) -> Result<(), vk::Result> {
        match self.lost.load(Ordering::Acquire) {
            true => Err(vk::Result::ERROR_DEVICE_LOST),
            false => Ok(()),
        }
    }

    /// Waits until `ready` says so, with the lock held: false where the deadline came first. A lost device ends the wait.
    pub(crate) fn wait(
        &self,
        deadline: Option<Instant>,
        mut ready: impl FnMut() -> bool,
    ) -> Result<bool, vk::Result> {
        let mut locked = self.lock.lock();
        loop {
            if ready() {
                return Ok(true);
            }
            self.check()?;
            match deadline {
                None => self.changed.wait(&mut locked),
                Some(deadline) if Instant::now() >= deadline => return Ok(false),
                Some(deadline) => {
                    self.changed.wait_until(&mut locked, deadline);
                }
            }
        }
    }
}

/// When a timeout in nanoseconds is over; `None` for one that is as good as never.
pub(crate) fn deadline(timeout: u64) -> Option<Instant> {
    Instant::now().checked_add(Duration::from_nanos(timeout))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn waits_end_by_a_change_a_deadline_or_loss() {
        let monitor = Arc::<Monitor>::default();
        let flag = Arc::<AtomicBool>::default();
        let ready = || flag.load(Ordering::Acquire);
        assert_eq!(monitor.wait(deadline(0), ready), Ok(false));
        let other = (monitor.clone(), flag.clone());
        let thread = std::thread::spawn(move || {
            let (monitor, flag) = other;
            monitor.change(|| flag.store(true, Ordering::Release));
        });
        assert_eq!(monitor.wait(deadline(u64::MAX), ready), Ok(true));
        assert!(thread.join().is_ok());
        let other = monitor.clone();
        let thread = std::thread::spawn(move || other.wait(None, || false));
        monitor.lose();
        let lost = vk::Result::ERROR_DEVICE_LOST;
        assert_eq!(thread.join().ok(), Some(Err(lost)));
        assert_eq!(monitor.check(), Err(lost));
        assert_eq!(monitor.wait(None, ready), Ok(true), "what is, is told");
    }
}
