//! Sequence numbers: who waits for which slot of the answers ring. Pure bookkeeping.
//!
//! The answer to sequence `s` appears in slot `s % slots`, so `s + slots` may be sent only when the answer to `s` has been read. The
//! ledger reads an answer that somebody still wants before its slot is given away, and says "full" while the oldest answer is not
//! there. It numbers without gaps, with one exception: where a request that the host may answer much later (a wait) holds the slot, the
//! number is left out, since everything would stand still otherwise.

use std::collections::HashMap;

use hostblob_protocol::answers::Answer;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Slot {
    Free,
    Sent {
        sequence: u64,
        wanted: bool,
        /// The answer may take its time.
        late: bool,
    },
}

/// What has been sent on a ring of fixed size.
#[derive(Debug)]
pub(crate) struct Ledger {
    next: u64,
    slots: Vec<Slot>,
    /// Answers whose slot was needed before their asker came.
    kept: HashMap<u64, Answer>,
}

impl Ledger {
    /// For a ring of that many slots; the first sequence is 1.
    pub(crate) fn new(slots: usize) -> Self {
        Self {
            next: 1,
            slots: vec![Slot::Free; slots],
            kept: HashMap::new(),
        }
    }

    fn slot(&mut self, sequence: u64) -> Option<&mut Slot> {
        let index = sequence.checked_rem(self.slots.len() as u64)?;
        self.slots.get_mut(usize::try_from(index).ok()?)
    }

    /// A new sequence number, whose answer is wanted, and may come `late`. `None` while its slot waits for an older answer.
    pub(crate) fn begin(
        &mut self,
        late: bool,
        read: impl Fn(u64) -> Option<Answer>,
    ) -> Option<u64> {
        for _ in 0..self.slots.len() {
            let new = self.next;
            let slot = self.slot(new)?;
            if let Slot::Sent {
                sequence,
                wanted,
                late,
            } = *slot
            {
                match read(sequence) {
                    Some(answer) if wanted => {
                        self.kept.insert(sequence, answer);
                    }
                    Some(_) => {}
                    None if late => {
                        self.next += 1;
                        continue;
                    }
                    None => return None,
                }
            }
            if let Some(slot) = self.slot(new) {
                *slot = Slot::Sent {
                    sequence: new,
                    wanted: true,
                    late,
                };
            }
            self.next += 1;
            return Some(new);
        }
        None
    }

    /// Whether the answer to `sequence` has yet to come, wanted or not.
    pub(crate) fn is_pending(
        &mut self,
        sequence: u64,
        read: impl Fn(u64) -> Option<Answer>,
    ) -> bool {
        let sent = self.slot(sequence).copied();
        matches!(sent, Some(Slot::Sent { sequence: sent, .. }) if sent == sequence)
            && read(sequence).is_none()
    }

    /// The answer to `sequence`, once it is there; given out once.
    pub(crate) fn take(
        &mut self,
        sequence: u64,
        read: impl Fn(u64) -> Option<Answer>,
    ) -> Option<Answer> {
        if let Some(answer) = self.kept.remove(&sequence) {
            return Some(answer);
        }
        let slot = self.slot(sequence)?;
        match *slot {
            Slot::Sent {
                sequence: sent,
                wanted: true,
                ..
            } if sent == sequence => {}
            _ => return None,
        }
        let answer = read(sequence)?;
        *slot = Slot::Free;
        Some(answer)
    }

    /// Nobody wants the answer to `sequence` any more; its slot stays taken until it is there.
    pub(crate) fn forget(&mut self, sequence: u64) {
        self.kept.remove(&sequence);
        if let Some(Slot::Sent {
            sequence: sent,
            wanted,
            ..
        }) = self.slot(sequence)
            && *sent == sequence
        {
            *wanted = false;
        }
    }

    /// `sequence` was never sent: no answer will come.
    pub(crate) fn abandon(&mut self, sequence: u64) {
        if let Some(slot) = self.slot(sequence)
            && matches!(slot, Slot::Sent { sequence: sent, .. } if *sent == sequence)
        {
            *slot = Slot::Free;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hostblob_protocol::Status;
    use std::cell::RefCell;
    use std::collections::HashMap;

    fn answer(sequence: u64) -> Answer {
        Answer {
            sequence,
            status: Status::Ok,
            index: 0,
            details: [sequence, 0],
        }
    }

    /// A ring of `slots` that holds the latest answer per slot, as the shared page does.
    struct Page(usize, RefCell<HashMap<u64, Answer>>);

    impl Page {
        fn write(&self, sequence: u64) {
            self.1
                .borrow_mut()
                .insert(sequence % self.0 as u64, answer(sequence));
        }
        fn read(&self, sequence: u64) -> Option<Answer> {
            let page = self.1.borrow();
            page.get(&(sequence % self.0 as u64))
                .filter(|a| a.sequence == sequence)
                .copied()
        }
    }

    #[test]
    fn a_slot_is_not_given_away_before_its_answer_is_read() {
        let page = Page(4, RefCell::default());
        let mut ledger = Ledger::new(4);
        for expected in 1..=4 {
            assert_eq!(ledger.begin(false, |s| page.read(s)), Some(expected));
        }
        assert_eq!(
            ledger.begin(false, |s| page.read(s)),
            None,
            "1 is not answered"
        );
        page.write(1);
        assert_eq!(
            ledger.begin(false, |s| page.read(s)),
            Some(5),
            "no gap after a full ring"
        );
        page.write(5);
        assert_eq!(
            ledger.take(1, |s| page.read(s)),
            Some(answer(1)),
            "kept for its asker"
        );
        assert_eq!(ledger.take(1, |s| page.read(s)), None, "given out once");
        assert_eq!(ledger.take(5, |s| page.read(s)), Some(answer(5)));
        assert_eq!(ledger.take(2, |s| page.read(s)), None);
    }

    #[test]
    fn forgotten_answers_free_their_slot_when_they_come() {
        let page = Page(2, RefCell::default());
        let mut ledger = Ledger::new(2);
        assert_eq!(ledger.begin(false, |s| page.read(s)), Some(1));
        assert_eq!(ledger.begin(false, |s| page.read(s)), Some(2));
        ledger.forget(1);
        assert_eq!(ledger.begin(false, |s| page.read(s)), None);
        page.write(1);
        assert_eq!(ledger.begin(false, |s| page.read(s)), Some(3));
        assert!(ledger.kept.is_empty());
        ledger.abandon(2);
        assert_eq!(
            ledger.begin(false, |s| page.read(s)),
            Some(4),
            "2 was never sent"
        );
    }

    #[test]
    fn numbers_whose_slot_a_wait_holds_are_left_out() {
        let page = Page(4, RefCell::default());
        let mut ledger = Ledger::new(4);
        assert_eq!(ledger.begin(true, |s| page.read(s)), Some(1));
        for round in 0..3 {
            for step in 2..=4 {
                let sequence = ledger.begin(false, |s| page.read(s)).unwrap();
                assert_eq!(sequence, 4 * round + step, "never slot 1");
                page.write(sequence);
                assert!(ledger.take(sequence, |s| page.read(s)).is_some());
            }
        }
        assert!(ledger.is_pending(1, |s| page.read(s)));
        ledger.forget(1);
        assert!(
            ledger.is_pending(1, |s| page.read(s)),
            "wanted or not, it will come"
        );
        page.write(1);
        assert!(!ledger.is_pending(1, |s| page.read(s)));
        assert_eq!(
            ledger.begin(false, |s| page.read(s)),
            Some(13),
            "free again"
        );
        for sequence in 14..=16 {
            assert_eq!(ledger.begin(true, |s| page.read(s)), Some(sequence));
        }
        assert_eq!(ledger.begin(false, |s| page.read(s)), None, "13 is no wait");
        page.write(13);
        assert_eq!(ledger.begin(true, |s| page.read(s)), Some(17));
        assert_eq!(ledger.begin(false, |s| page.read(s)), None, "all are waits");
    }
}
