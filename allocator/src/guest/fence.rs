//! When something is over: GPU work, and host processes that use what a guest wants back.
//!
//! GPU work ends in order, so a number says how far it is. Host processes end when they please: each thing that is waited for is a
//! *hold*, looked at when the export socket's side wakes the guest, and when its time is over.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Instant;

use hostblob_protocol::Status;
use hostblob_protocol::answers::Answer;

use super::Guest;
use crate::Error;
use crate::context::ContextRef;
use crate::exports::{ExportId, GuestExports};
use crate::host::{MAX_CONTEXT_HOLDS, MAX_HOLDS};
use crate::work::Work;

/// Name of a hold within its guest; never used again.
pub(crate) type HoldId = u64;

/// Something in the future that a response waits for; at first, nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fence {
    /// In the guest's GPU work; 0 is reached from the beginning.
    point: u64,
    holds: Vec<HoldId>,
}

impl Fence {
    /// Reached when the GPU work up to `point` is done.
    pub(crate) fn at(point: u64) -> Self {
        Self {
            point,
            holds: Vec::new(),
        }
    }

    /// Reached when both are.
    pub fn join(&mut self, other: Self) {
        self.point = self.point.max(other.point);
        self.holds.extend(other.holds);
    }
}

/// What a hold waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Until {
    /// No host process has it open.
    Closed(ExportId),
    /// No host process uses the buffer at this offset.
    Released(ExportId, u64),
}

impl Until {
    pub(crate) fn is_over(self, exports: &GuestExports) -> bool {
        match self {
            Self::Closed(id) => !exports.is_open(id),
            Self::Released(id, offset) => !exports.in_use(id, offset),
        }
    }
}

#[derive(Debug)]
struct Hold {
    until: Until,
    deadline: Option<Instant>,
    /// How the wait ended. It stays that way while GPU work is under way.
    ended: Option<Status>,
    /// Who is told.
    answer: Option<Told>,
}

/// An answer that waits for a hold, and for the GPU work of its envelope.
#[derive(Debug)]
struct Told {
    context: ContextRef,
    answer: Answer,
    work: RangeInclusive<u64>,
}

impl Hold {
    /// Looks how the wait goes; whether nothing is left to wait for.
    fn is_over(&mut self, exports: &GuestExports, now: Instant, work: &Work) -> bool {
        if self.ended.is_none() {
            if self.until.is_over(exports) {
                self.ended = Some(Status::Ok);
            } else if self.deadline.is_some_and(|deadline| deadline <= now) {
                self.ended = Some(Status::Timeout);
            }
        }
        let working = self
            .answer
            .as_ref()
            .is_some_and(|told| !told.work.is_empty() && !work.reached(*told.work.end()));
        self.ended.is_some() && !working
    }
}

/// All holds of a guest.
#[derive(Debug, Default)]
pub(crate) struct Holds {
    live: BTreeMap<HoldId, Hold>,
    last: HoldId,
}

impl Guest {
    /// The fence of what was submitted so far: to `ring` of the context, to all of its rings, or, for context 0, the GPU work of the whole
    /// guest. (No context waits for what another waits for.)
    pub fn fence(&self, context: u32, ring: Option<u8>) -> Fence {
        if context == 0 {
            return Fence::at(self.work.submitted());
        }
        let Some(context) = self.contexts.get(&context) else {
            return Fence::default();
        };
        let on_ring = |at: &u8| ring.is_none_or(|ring| ring == *at);
        let work = context.last_work.iter().filter(|(at, _)| on_ring(at));
        let holds = context.holds.iter().filter(|(at, _)| on_ring(at));
        Fence {
            point: work.map(|(_, point)| *point).max().unwrap_or(0),
            holds: holds.map(|(_, hold)| *hold).collect(),
        }
    }

    /// Whether it has been reached, as far as [`Guest::process_completions`] has looked.
    pub fn reached(&self, fence: &Fence) -> bool {
        let is_over = |hold: &HoldId| !self.holds.live.contains_key(hold);
        self.work.reached(fence.point) && fence.holds.iter().all(is_over)
    }

    /// Waits until the GPU work of a fence is done, for at most [`crate::GPU_TIMEOUT`]: for callers that cannot answer later.
    pub fn wait(&mut self, fence: &Fence) -> Result<(), Error> {
        self.wait_for(fence.point)
    }

    /// A fence that is reached when host processes have let go of it. It has no deadline: what the guest wants back is in use.
    pub(super) fn hold(&mut self, until: Until) -> Fence {
        let mut fence = Fence::default();
        if let Some(exports) = &self.exports
            && !until.is_over(exports)
        {
            fence.holds.push(self.holds.insert(until, None));
        }
        fence
    }

    /// A hold on the timeline of a ring, with a deadline.
    pub(super) fn hold_on_ring(
        &mut self,
        context: u32,
        ring: u8,
        until: Until,
        deadline: Instant,
    ) -> Result<HoldId, Error> {
        let asker = self
            .contexts
            .get_mut(&context)
            .ok_or(Error::UnknownContext(context))?;
        for (number, limit) in [
            (asker.holds.len(), MAX_CONTEXT_HOLDS),
            (self.holds.live.len(), MAX_HOLDS),
        ] {
            if number >= limit {
                return Err(Error::TooManyObjects(limit as u64));
            }
        }
        let hold = self.holds.insert(until, Some(deadline));
        asker.holds.push((ring, hold));
        self.set_alarm();
        Ok(hold)
    }

    /// Answers when the hold is over and the GPU work since the point `before` is done.
    pub(crate) fn answer_after(&mut self, context: u32, hold: HoldId, before: u64, answer: Answer) {
        let work = before + 1..=self.work.submitted();
        let asker = self.contexts.get(&context).map(|context| context.me);
        if let (Some(context), Some(hold)) = (asker, self.holds.live.get_mut(&hold)) {
            hold.answer = Some(Told {
                context,
                answer,
                work,
            });
        }
    }

    /// Ends the holds whose time has come.
    pub(super) fn look_at_holds(&mut self) {
        let Some(exports) = self
            .exports
            .as_ref()
            .filter(|_| !self.holds.live.is_empty())
        else {
            return;
        };
        let now = Instant::now();
        let work = &self.work;
        let over = self
            .holds
            .live
            .extract_if(.., |_, hold| hold.is_over(exports, now, work));
        for (id, hold) in over.collect::<Vec<_>>() {
            let (Some(status), Some(told)) = (hold.ended, hold.answer) else {
                continue;
            };
            if let Some(context) = self.owner_mut(told.context) {
                context.holds.retain(|(_, hold)| *hold != id);
            }
            // Work that failed is the first failure of its envelope.
            let status = match told.answer.status {
                Status::Ok => status,
                failed => failed,
            };
            // Sequence 0 wants no answer.
            if told.answer.sequence != 0 {
                let answer = Answer {
                    status,
                    ..told.answer
                };
                self.write_answer(told.context, &answer);
            }
        }
        self.set_alarm();
    }

    fn set_alarm(&mut self) {
        let waiting = self.holds.live.values();
        let waiting = waiting.filter(|hold| hold.ended.is_none());
        if let Some(deadline) = waiting.filter_map(|hold| hold.deadline).min() {
            self.alarm.wake_at(deadline);
        }
    }

    /// How many things wait for host processes.
    pub(super) fn waiting(&self) -> usize {
        self.holds.live.len()
    }

    /// Nobody waits any more.
    pub(super) fn drop_holds(&mut self) {
        self.holds.live.clear();
    }

    /// The context is gone, and what it waited for with it.
    pub(super) fn drop_holds_of(&mut self, holds: &[(u8, HoldId)]) {
        for (_, hold) in holds {
            self.holds.live.remove(hold);
        }
    }
}

impl Holds {
    /// GPU work failed: the answer of its envelope says so.
    pub(super) fn fail(&mut self, sequence: u64, status: Status) {
        let answers = self.live.values_mut().filter_map(|it| it.answer.as_mut());
        for told in answers.filter(|told| told.work.contains(&sequence)) {
            if told.answer.status == Status::Ok {
                told.answer.status = status;
            }
        }
    }

    fn insert(&mut self, until: Until, deadline: Option<Instant>) -> HoldId {
        self.last += 1;
        let hold = Hold {
            until,
            deadline,
            ended: None,
            answer: None,
        };
        self.live.insert(self.last, hold);
        self.last
    }
}
