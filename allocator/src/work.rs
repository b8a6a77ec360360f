//! The guest's side of its provider session: what is in flight, and what happens when it is done.
//!
//! Completions arrive in the order of submission, so one queue and one number say everything: a point in time is a
//! sequence number, and it is reached when that many requests have completed.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};

use crate::blob::{Memory, MemoryKey, Pages};
use crate::guest::Waker;
use crate::provider::{
    AttachmentId, Completion, Elsewhere, FileId, Provider, ProviderError, Request, Session,
};
use crate::quota::Charge;

/// Longest time that a command waits for the GPU to let go of bytes that have to move.
pub const GPU_TIMEOUT: Duration = Duration::from_secs(5);

/// What is waited for.
#[derive(Debug)]
pub(crate) enum Pending {
    /// FILL and COPY: nothing but the result, and room for the next one.
    Job(#[allow(dead_code, reason = "held for its drop")] Charge),
    /// Files made known, and what nobody asked for.
    Work,
    /// An attachment or an allocation of device memory: undone where it fails.
    Attach(MemoryKey, AttachmentId),
    /// The file or address of an attachment.
    Export(MemoryKey, AttachmentId),
    /// A memory's pages, made known: told again where it fails.
    AddPages(MemoryKey, FileId),
    /// Pages that are not used any more: they count until the provider has let go of them.
    Forget(#[allow(dead_code, reason = "held for its drop")] Box<Pages>),
    /// An attachment that was let go of.
    Release,
    /// The memory that dies when the GPU has let go of it.
    Retire(#[allow(dead_code, reason = "held for its drop")] Box<Memory>),
}

/// A completed request.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) sequence: u64,
    pub(crate) what: Pending,
    pub(crate) result: Result<Option<Elsewhere>, ProviderError>,
}

pub(crate) struct Work {
    session: Box<dyn Session>,
    completions: Receiver<Completion>,
    pending: VecDeque<Pending>,
    submitted: u64,
    completed: u64,
    next_attachment: u64,
}

impl Work {
    pub(crate) fn new(provider: &dyn Provider, waker: Waker) -> Self {
        let (sender, completions) = crossbeam_channel::unbounded();
        let session = provider.connect(Box::new(move |completion| {
            // The receiver lives as long as the session; where it does not, nobody waits.
            if sender.send(completion).is_ok() {
                waker();
            }
        }));
        Self {
            session,
            completions,
            pending: VecDeque::new(),
            submitted: 0,
            completed: 0,
            next_attachment: 0,
        }
    }

    pub(crate) fn new_attachment(&mut self) -> AttachmentId {
        self.next_attachment += 1;
        AttachmentId(self.next_attachment)
    }

    /// Sends a request; returns its point in time.
    pub(crate) fn submit(&mut self, request: Request, pending: Pending) -> u64 {
        self.submitted += 1;
        self.pending.push_back(pending);
        self.session.submit(self.submitted, request);
        self.submitted
    }

    /// Keeps `memory` until the release that was submitted as `sequence`, and has not completed, completes.
    pub(crate) fn retire_at(&mut self, sequence: u64, memory: Box<Memory>) {
        let index = sequence
            .checked_sub(self.completed + 1)
            .and_then(|index| usize::try_from(index).ok());
        if let Some(pending) = index.and_then(|index| self.pending.get_mut(index)) {
            *pending = Pending::Retire(memory);
        }
    }

    /// The last point that was submitted; 0 when there is none.
    pub(crate) fn submitted(&self) -> u64 {
        self.submitted
    }

    pub(crate) fn reached(&self, sequence: u64) -> bool {
        sequence <= self.completed
    }

    /// A request that has completed since the last call, in order.
    pub(crate) fn next_done(&mut self) -> Option<Done> {
        let completion = self.completions.try_recv().ok()?;
        self.take(completion)
    }

    /// As [`Work::next_done`], but waits until `deadline` for one.
    pub(crate) fn wait_done(&mut self, deadline: Instant) -> Option<Done> {
        match self.completions.recv_deadline(deadline) {
            Ok(completion) => self.take(completion),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => None,
        }
    }

    fn take(&mut self, completion: Completion) -> Option<Done> {
        if completion.sequence != self.completed + 1 {
            log::error!(
                "provider completed request {} when {} was next",
                completion.sequence,
                self.completed + 1
            );
            debug_assert_eq!(completion.sequence, self.completed + 1);
            return None;
        }
        self.completed = completion.sequence;
        let what = self.pending.pop_front()?;
        Some(Done {
            sequence: completion.sequence,
            what,
            result: completion.result,
        })
    }
}
