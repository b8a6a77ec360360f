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
    /// Who waits, and on which ring; nobody where a response alone does.
    asker: Option<(ContextRef, u8)>,
    /// How the wait ended. It stays that way while GPU work is under way.
    ended: Option<Status>,
    /// What the asker is told.
    answer: Option<Told>,
}

/// An answer that waits for a hold, and for the GPU work of its envelope.
#[derive(Debug)]
struct Told {
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

    /// Whether it is on this ring of the context, or on any.
    fn is_on(&self, context: ContextRef, ring: Option<u8>) -> bool {
        self.asker
            .is_some_and(|(asker, at)| asker == context && ring.is_none_or(|ring| ring == at))
    }
}

/// All holds of a guest.
#[derive(Debug, Default)]
pub(crate) struct Holds {
    live: BTreeMap<HoldId, Hold>,
    last: HoldId,
}

impl Guest {
    /// The fence of what was submitted so far: to `ring` of the context; or, without a ring, the GPU work of the whole guest and what all rings
    /// of the context wait for. Linux has one timeline for all fences without a ring, of whichever process, and takes one that is reached for
    /// all before it: GPU work ends in order, and so do they. (No context waits for what another one waits for.)
    pub fn fence(&self, context: u32, ring: Option<u8>) -> Fence {
        let context = self.contexts.get(&context);
        let point = match (ring, context) {
            (None, _) => self.work.submitted(),
            (Some(ring), Some(context)) => context.last_work.get(&ring).copied().unwrap_or(0),
            (Some(_), None) => 0,
        };
        let holds = context.map(|context| self.holds.on_ring(context.me, ring));
        Fence {
            point,
            holds: holds.into_iter().flatten().collect(),
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
            fence.holds.push(self.holds.insert(until, None, None));
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
        let asker = self.context(context)?.me;
        for (number, limit) in [
            (self.holds.on_ring(asker, None).count(), MAX_CONTEXT_HOLDS),
            (self.holds.live.len(), MAX_HOLDS),
        ] {
            if number >= limit {
                return Err(Error::TooManyObjects(limit as u64));
            }
        }
        let hold = self
            .holds
            .insert(until, Some(deadline), Some((asker, ring)));
        self.set_alarm();
        Ok(hold)
    }

    /// The envelope that began to wait was refused: nobody waits.
    pub(crate) fn give_up_hold(&mut self, hold: HoldId) {
        self.holds.live.remove(&hold);
    }

    /// Answers when the hold is over and the GPU work since the point `before` is done.
    pub(crate) fn answer_after(&mut self, hold: HoldId, before: u64, answer: Answer) {
        let work = before + 1..=self.work.submitted();
        if let Some(hold) = self.holds.live.get_mut(&hold) {
            hold.answer = Some(Told { answer, work });
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
        for (_, hold) in over.collect::<Vec<_>>() {
            let (Some(status), Some((asker, _)), Some(told)) =
                (hold.ended, hold.asker, hold.answer)
            else {
                continue;
            };
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
                self.write_answer(asker, &answer);
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
    pub(super) fn drop_holds_of(&mut self, context: ContextRef) {
        self.holds.live.retain(|_, hold| !hold.is_on(context, None));
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

    /// Those of a ring of the context, or of all of its rings. There are few.
    pub(super) fn on_ring(
        &self,
        context: ContextRef,
        ring: Option<u8>,
    ) -> impl Iterator<Item = HoldId> {
        let live = self.live.iter();
        live.filter(move |(_, hold)| hold.is_on(context, ring))
            .map(|(id, _)| *id)
    }

    /// Those that no context waits for: responses that wait until the guest has its pages back.
    pub(super) fn of_nobody(&self) -> usize {
        self.live
            .values()
            .filter(|hold| hold.asker.is_none())
            .count()
    }

    fn insert(
        &mut self,
        until: Until,
        deadline: Option<Instant>,
        asker: Option<(ContextRef, u8)>,
    ) -> HoldId {
        self.last += 1;
        let hold = Hold {
            until,
            deadline,
            asker,
            ended: None,
            answer: None,
        };
        self.live.insert(self.last, hold);
        self.last
    }
}
