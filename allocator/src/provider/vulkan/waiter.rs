//! The thread that waits for the GPU and then answers.
//!
//! It takes batches in the order of submission, waits for each one's number on the timeline, drops what the batch
//! released (so that the GPU no longer reaches those bytes when the answer arrives), and delivers.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};

use super::attach::GpuBytes;
use super::commands::wait;
use super::device::Device;
use crate::provider::lane::Batch;

/// How long the worker waits by itself: longer than a small fill takes (35 us on lavapipe), and short against what a
/// request that arrives meanwhile would notice.
const BRIEF: Duration = Duration::from_micros(50);

/// Waits for the submission and answers.
fn settle(mut batch: Batch<GpuBytes>, device: &Device) {
    let done = match device.lost() {
        Some(error) => Err(error),
        None => wait(device, batch.number),
    };
    if let Err(error) = done {
        batch.fail(&error);
        if !device.is_settled(batch.number) {
            batch.leak();
        }
    }
    batch.deliver();
}

/// Runs until the worker hangs up.
pub(super) fn run(device: &Device, batches: &Receiver<Batch<GpuBytes>>, backlog: &AtomicUsize) {
    for batch in batches {
        settle(batch, device);
        backlog.fetch_sub(1, Ordering::Release);
    }
}

/// The worker's way to the waiter.
pub(super) struct Answers {
    sender: Sender<Batch<GpuBytes>>,
    /// Batches that the waiter has not finished.
    backlog: Arc<AtomicUsize>,
}

impl Answers {
    /// The two ends: the worker's, and what [`run`] takes.
    pub(super) fn new() -> (Self, Receiver<Batch<GpuBytes>>, Arc<AtomicUsize>) {
        let (sender, receiver) = crossbeam_channel::unbounded();
        let backlog = Arc::new(AtomicUsize::new(0));
        let answers = Self {
            sender,
            backlog: Arc::clone(&backlog),
        };
        (answers, receiver, backlog)
    }

    /// Answers as soon as the submission is done.
    ///
    /// With `brief`, when nobody else waits for the worker: small work is waited for right here, because waking the waiter
    /// costs about as much as the GPU takes for it.
    pub(super) fn settle(&self, device: &Device, batch: Batch<GpuBytes>, brief: bool) {
        let alone = self.backlog.load(Ordering::Acquire) == 0;
        if brief && alone && matches!(device.wait(batch.number, BRIEF), Ok(true)) {
            batch.deliver();
            return;
        }
        self.backlog.fetch_add(1, Ordering::Relaxed);
        if self.sender.send(batch).is_err() {
            log::error!("the thread that answers is gone");
        }
    }
}
