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
use crate::provider::outlet::Outlet;
use crate::provider::{AttachmentId, Completion, ProviderError};

/// How long the worker waits by itself: longer than a small fill takes (35 us on lavapipe), and short against what a
/// request that arrives meanwhile would notice.
const BRIEF: Duration = Duration::from_micros(50);

/// A session's way out, shared by the worker and the waiter.
///
/// The worker may answer by itself only when nothing of the session is on its way through the waiter: that keeps the
/// order, and saves two wake-ups for requests that need no GPU.
pub(super) struct Lane {
    pub(super) outlet: Arc<Outlet>,
    on_the_way: AtomicUsize,
}

impl Lane {
    pub(super) fn new(outlet: Arc<Outlet>) -> Arc<Self> {
        Arc::new(Self {
            outlet,
            on_the_way: AtomicUsize::new(0),
        })
    }

    /// Whether every earlier answer of the session was delivered; so all its GPU work is done as well.
    pub(super) fn is_clear(&self) -> bool {
        self.on_the_way.load(Ordering::Acquire) == 0
    }
}

/// An answer on its way.
pub(super) struct Entry {
    lane: Arc<Lane>,
    /// None for the end of a session, which nobody hears of.
    completion: Option<Completion>,
    /// Dropped before the answer is delivered.
    retired: Vec<GpuBytes>,
    /// Whether the result hangs on the submission.
    pub(super) on_gpu: bool,
    /// What to take out of which session's table should the submission fail.
    pub(super) allocated: Option<(u64, AttachmentId)>,
}

impl Entry {
    pub(super) fn new(lane: &Arc<Lane>, completion: Option<Completion>) -> Self {
        lane.on_the_way.fetch_add(1, Ordering::Relaxed);
        Self {
            lane: Arc::clone(lane),
            completion,
            retired: Vec::new(),
            on_gpu: false,
            allocated: None,
        }
    }

    pub(super) fn retire(mut self, bytes: Vec<GpuBytes>) -> Self {
        self.retired = bytes;
        self
    }

    /// Replaces a success by a failure.
    pub(super) fn fail(&mut self, error: &ProviderError) {
        if let Some(Completion { result, .. }) = &mut self.completion
            && result.is_ok()
        {
            *result = Err(error.clone());
        }
    }

    /// Gives up what was retired: the GPU may still reach it, and a driver that has not stopped must not lose the objects
    /// that it works on.
    fn leak(&mut self) {
        std::mem::take(&mut self.retired)
            .into_iter()
            .for_each(std::mem::forget);
    }

    fn deliver(self) {
        drop(self.retired);
        if let Some(completion) = self.completion {
            self.lane.outlet.deliver(completion);
        }
        // After the delivery: the worker may overtake only what has been delivered.
        self.lane.on_the_way.fetch_sub(1, Ordering::Release);
    }
}

/// Answers that wait for one submission.
pub(super) struct Batch {
    pub(super) number: u64,
    pub(super) entries: Vec<Entry>,
}

impl Batch {
    /// Answers, when the submission is done.
    fn deliver(self) {
        self.entries.into_iter().for_each(Entry::deliver);
    }

    /// Waits for the submission and answers.
    fn settle(mut self, device: &Device) {
        let done = match device.lost() {
            Some(error) => Err(error),
            None => wait(device, self.number),
        };
        if let Err(error) = done {
            for entry in self.entries.iter_mut().filter(|entry| entry.on_gpu) {
                entry.fail(&error);
            }
            if !device.is_settled(self.number) {
                self.entries.iter_mut().for_each(Entry::leak);
            }
        }
        self.deliver();
    }
}

/// Runs until the worker hangs up.
pub(super) fn run(device: &Device, batches: &Receiver<Batch>, backlog: &AtomicUsize) {
    for batch in batches {
        batch.settle(device);
        backlog.fetch_sub(1, Ordering::Release);
    }
}

/// The worker's way to the waiter.
pub(super) struct Answers {
    sender: Sender<Batch>,
    /// Batches that the waiter has not finished.
    backlog: Arc<AtomicUsize>,
}

impl Answers {
    /// The two ends: the worker's, and what [`run`] takes.
    pub(super) fn new() -> (Self, Receiver<Batch>, Arc<AtomicUsize>) {
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
    pub(super) fn settle(&self, device: &Device, batch: Batch, brief: bool) {
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
