//! How long the process has said nothing. A driver that hangs ends nothing by itself.
//!
//! Answers come in order, and jobs run one after the other: as long as one is answered now and then, those behind it are only waiting. What
//! needs no GPU may be answered while the GPU hangs, so jobs are watched by themselves too.

use std::time::{Duration, Instant};

/// What the process was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Work of the GPU.
    Job,
    /// Anything else.
    Message,
}

/// Unanswered messages, and since when the next answer is awaited.
#[derive(Debug, Clone, Copy)]
struct Awaited {
    number: usize,
    since: Instant,
}

impl Awaited {
    fn asked(&mut self, now: Instant) {
        if self.number == 0 {
            self.since = now;
        }
        self.number += 1;
    }

    fn answered(&mut self, now: Instant) {
        self.number = self.number.saturating_sub(1);
        self.since = now;
    }

    fn deadline(&self, limit: Duration) -> Option<Instant> {
        let is_awaited = self.number > 0;
        is_awaited.then(|| self.since.checked_add(limit))?
    }
}

/// All sessions of one process.
#[derive(Debug)]
pub(super) struct Watch {
    all: Awaited,
    jobs: Awaited,
}

impl Watch {
    /// Nothing was asked yet.
    pub(super) fn new() -> Self {
        let nothing = Awaited {
            number: 0,
            since: Instant::now(),
        };
        Self {
            all: nothing,
            jobs: nothing,
        }
    }

    pub(super) fn asked(&mut self, kind: Kind, now: Instant) {
        self.all.asked(now);
        if kind == Kind::Job {
            self.jobs.asked(now);
        }
    }

    pub(super) fn answered(&mut self, kind: Kind, now: Instant) {
        self.all.answered(now);
        if kind == Kind::Job {
            self.jobs.answered(now);
        }
    }

    /// Its answer is not awaited any more.
    pub(super) fn forget(&mut self, kind: Kind) {
        self.all.number = self.all.number.saturating_sub(1);
        if kind == Kind::Job {
            self.jobs.number = self.jobs.number.saturating_sub(1);
        }
    }

    /// When the process is late, if nothing is heard until then.
    pub(super) fn deadline(&self, limit: Duration) -> Option<Instant> {
        let deadlines = [self.all.deadline(limit), self.jobs.deadline(limit)];
        deadlines.into_iter().flatten().min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    #[test]
    fn each_job_has_its_time_and_other_answers_do_not_count_for_it() {
        let mut watch = Watch::new();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(watch.deadline(LIMIT), None);
        watch.asked(Kind::Job, at(1));
        watch.asked(Kind::Job, at(2));
        assert_eq!(watch.deadline(LIMIT), Some(at(11)));
        watch.answered(Kind::Job, at(9));
        assert_eq!(watch.deadline(LIMIT), Some(at(19)), "the second begins now");
        watch.asked(Kind::Message, at(12));
        watch.answered(Kind::Message, at(13));
        assert_eq!(watch.deadline(LIMIT), Some(at(19)));
        watch.forget(Kind::Job);
        assert_eq!(watch.deadline(LIMIT), None);
        watch.asked(Kind::Message, at(20));
        assert_eq!(watch.deadline(LIMIT), Some(at(30)));
    }
}
