//! Answers that wait for the GPU, and the ring that they are written to.

use std::collections::VecDeque;

use hostblob_protocol::Status;
use hostblob_protocol::answers::{Answer, Ring};

use super::ContextRef;
use crate::blob::Memory;
use crate::provider::ProviderError;

/// An answer that is written when all work up to a point is done.
#[derive(Debug)]
struct Deferred {
    context: ContextRef,
    /// The work of the envelope: `first..=last`.
    first: u64,
    last: u64,
    answer: Answer,
}

/// Answers in the order of their work.
#[derive(Debug, Default)]
pub(crate) struct DeferredAnswers(VecDeque<Deferred>);

/// An answer whose time has come, for a context that may be gone.
#[derive(Debug)]
pub(crate) struct Due {
    pub(crate) context: ContextRef,
    pub(crate) answer: Answer,
}

impl DeferredAnswers {
    /// Keeps an answer until the work `first..=last` is done. Work is submitted in order, so ranges grow.
    pub(crate) fn push(&mut self, context: ContextRef, first: u64, last: u64, answer: Answer) {
        self.0.push_back(Deferred {
            context,
            first,
            last,
            answer,
        });
    }

    /// Work failed: the envelope that it belongs to keeps its first failure.
    pub(crate) fn fail(&mut self, sequence: u64, error: &ProviderError) {
        let owner = self
            .0
            .iter_mut()
            .find(|kept| (kept.first..=kept.last).contains(&sequence));
        if let Some(kept) = owner.filter(|kept| kept.answer.status == Status::Ok) {
            kept.answer.status = crate::Error::Provider(error.clone()).status();
        }
    }

    /// The next answer whose work is done.
    pub(crate) fn next_due(&mut self, reached: impl Fn(u64) -> bool) -> Option<Due> {
        if !self.0.front().is_some_and(|kept| reached(kept.last)) {
            return None;
        }
        let Deferred {
            context, answer, ..
        } = self.0.pop_front()?;
        Some(Due { context, answer })
    }
}

/// Publishes an answer in the ring that `memory` holds. Without bytes there is no ring, and nobody to tell.
pub(crate) fn write(memory: &Memory, answer: &Answer) {
    if let Some(ring) = memory.words().and_then(Ring::new) {
        ring.write(answer);
    }
}

/// Begins a ring in `memory`; `false` where it has no bytes or too few.
pub(crate) fn initialise(memory: &Memory) -> bool {
    let ring = memory.words().and_then(Ring::new);
    if let Some(ring) = &ring {
        ring.initialise();
    }
    ring.is_some()
}
