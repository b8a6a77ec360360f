//! What a queue's thread does.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Receiver;
use std::time::Duration;

use hostblob_guest::{Device as Guest, Error, Fence, MOST_TRANSFERS};

use super::Job;
use crate::command::Transfers;
use crate::debug_utils::Messengers;
use crate::sync::monitor::Monitor;

/// Commands on their way to the host at a time, so that none waits for a place for its answer.
const MOST_COMMANDS: usize = 32;
/// After this time without an end, the host is asked whether it is still there: work may take as long as it likes.
const PATIENCE: Duration = Duration::from_secs(5);

/// The thread's own.
pub(super) struct Worker {
    pub(super) guest: Guest,
    pub(super) monitor: Arc<Monitor>,
    pub(super) messengers: Arc<Messengers>,
    pub(super) completed: Arc<AtomicU64>,
}

/// Why a job came to no end, and the device is lost.
enum Failure {
    /// It is lost already, or is being destroyed.
    Ended,
    Reason(String),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Reason(match error {
            Error::DeviceLost(_) => error.to_string(),
            // Vulkan has no other way to say that work failed after it was submitted.
            error => format!("the device is lost: {error}"),
        })
    }
}

impl Worker {
    /// Until the queue is gone, or the device lost.
    pub(super) fn run(self, jobs: &Receiver<Job>) {
        // A panic must not leave those waiting who wait for this job.
        let _lost = LoseOnDrop(&self.monitor);
        for job in jobs {
            match self.execute(&job) {
                Ok(()) => self.complete(&job),
                Err(failure) => {
                    self.monitor.lose();
                    if let Failure::Reason(reason) = failure {
                        log::error!("{reason}");
                        self.messengers.tell_error(&reason);
                    }
                    return;
                }
            }
        }
    }

    fn complete(&self, job: &Job) {
        self.monitor.change(|| {
            for (semaphore, value) in &job.signals {
                semaphore.signal(*value);
            }
            if let Some(fence) = &job.fence {
                fence.store(true, Ordering::Release);
            }
            self.completed.fetch_add(1, Ordering::Release);
        });
    }

    fn execute(&self, job: &Job) -> Result<(), Failure> {
        for (semaphore, value) in &job.waits {
            let waited = self.monitor.wait(None, || semaphore.try_wait(*value));
            waited.map_err(|_| Failure::Ended)?;
        }
        let mut sent = VecDeque::new();
        for transfers in &job.work {
            self.send(transfers, &mut sent)?;
        }
        sent.iter().try_for_each(|fence| self.wait(fence))
    }

    fn send(&self, transfers: &Transfers, sent: &mut VecDeque<Fence>) -> Result<(), Failure> {
        for batch in transfers.chunks(MOST_TRANSFERS) {
            if sent.len() >= MOST_COMMANDS
                && let Some(oldest) = sent.pop_front()
            {
                self.wait(&oldest)?;
            }
            let freed = || {
                let reason = "the device is lost: memory of submitted commands was freed";
                Failure::Reason(reason.to_owned())
            };
            // Held until the command is sent; the program holds it until it is done.
            let held = batch.hold().ok_or_else(freed)?;
            sent.push_back(self.guest.transfer(&held.transfers())?);
        }
        Ok(())
    }

    fn wait(&self, fence: &Fence) -> Result<(), Failure> {
        loop {
            match fence.wait(Some(PATIENCE)) {
                Ok(()) => return Ok(()),
                Err(Error::Timeout) => {
                    self.monitor.check().map_err(|_| Failure::Ended)?;
                    if let Err(error @ Error::DeviceLost(_)) = self.guest.budget(0) {
                        return Err(error.into());
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

struct LoseOnDrop<'a>(&'a Monitor);

impl Drop for LoseOnDrop<'_> {
    fn drop(&mut self) {
        self.0.lose();
    }
}
