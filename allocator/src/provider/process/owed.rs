//! How many answers a process owes.
//!
//! What it says is kept until the keeper comes to it. A driver that has taken its process over could say more than it was asked, and faster than
//! the keeper takes it: what nobody has asked for is therefore never kept.

use std::collections::HashMap;

use super::book::Nonsense;

/// Requests that a process has not answered.
#[derive(Debug, Default)]
pub(super) struct Owed {
    sessions: HashMap<u64, usize>,
    /// Of sessions that were closed: it may have answered before it heard of that.
    closed: usize,
}

impl Owed {
    /// It is sent a request.
    pub(super) fn asked(&mut self, session: u64) {
        *self.sessions.entry(session).or_default() += 1;
    }

    /// It is told that nobody waits for answers any more.
    pub(super) fn closed(&mut self, session: u64) {
        let owed = self.sessions.remove(&session).unwrap_or(0);
        self.closed = self.closed.saturating_add(owed);
    }

    /// It has answered; whether somebody may wait for that.
    pub(super) fn answered(&mut self, session: u64) -> Result<bool, Nonsense> {
        let waits = self.sessions.contains_key(&session);
        let owed = self.sessions.get_mut(&session).unwrap_or(&mut self.closed);
        *owed = owed
            .checked_sub(1)
            .ok_or(Nonsense("an answer to what was not asked"))?;
        Ok(waits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_request_is_owed_one_answer_and_a_closed_session_keeps_none() {
        let mut owed = Owed::default();
        let nonsense = Err(Nonsense("an answer to what was not asked"));
        assert_eq!(owed.answered(1), nonsense);
        for session in [1, 1, 2] {
            owed.asked(session);
        }
        assert_eq!(owed.answered(1), Ok(true));
        owed.closed(1);
        assert_eq!(owed.answered(2), Ok(true));
        assert_eq!(owed.answered(2), nonsense);
        assert_eq!(owed.answered(1), Ok(false), "it was under way");
        assert_eq!(owed.answered(1), nonsense);
        owed.closed(3);
        assert_eq!(owed.answered(3), nonsense);
    }
}
