//! How answers leave a provider whose GPU works on its own time: in the order of the session's requests.
//!
//! A request that needs no GPU is answered at once, but not past an earlier one of its session whose work is under way:
//! then it becomes an [`Entry`] of the [`Batch`] that waits for the submission. Generic over what stands for the bytes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::outlet::Outlet;
use super::{AttachmentId, Completion, ProviderError};

/// A session's way out, shared by all that answer it.
///
/// The worker may answer by itself only when nothing of the session is on its way in a batch: that keeps the
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
pub(super) struct Entry<B> {
    lane: Arc<Lane>,
    /// None for the end of a session, which nobody hears of.
    completion: Option<Completion>,
    /// Dropped before the answer is delivered.
    retired: Vec<B>,
    /// Whether the result hangs on the submission.
    pub(super) on_gpu: bool,
    /// What to take out of which session's table should the submission fail.
    pub(super) allocated: Option<(u64, AttachmentId)>,
}

impl<B> Entry<B> {
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

    pub(super) fn retire(mut self, bytes: Vec<B>) -> Self {
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
pub(super) struct Batch<B> {
    pub(super) number: u64,
    pub(super) entries: Vec<Entry<B>>,
}

impl<B> Batch<B> {
    /// Answers, when the submission is done.
    pub(super) fn deliver(self) {
        self.entries.into_iter().for_each(Entry::deliver);
    }

    /// The submission failed: what hangs on it has failed too.
    pub(super) fn fail(&mut self, error: &ProviderError) {
        for entry in self.entries.iter_mut().filter(|entry| entry.on_gpu) {
            entry.fail(error);
        }
    }

    /// Gives up what was retired: the GPU may still reach it, and a driver that has not stopped must not lose the objects
    /// that it works on.
    pub(super) fn leak(&mut self) {
        self.entries.iter_mut().for_each(Entry::leak);
    }
}
