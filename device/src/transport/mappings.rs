//! What a VMM has mapped into the window, as far as we know. A table, without the messages that keep it true.
//!
//! | state | a blob is mapped there | the VMM has it | may go |
//! |---|---|---|---|
//! | in use | yes | yes | no |
//! | cached | no | yes: the next blob of this place and file needs no message | least recently used first |
//! | unsure | no | perhaps: an answer was late, or the guest was reset | as cached; it never serves a blob |
//!
//! No two overlap, and there are never more than the limit, in whatever state: VMMs refuse the one, and end of the other.

use std::collections::BTreeMap;

use hostblob_allocator::Mapping;
use hostblob_allocator::window::Span;
use thiserror::Error;

/// Most mappings that a VMM is asked for. Each is a range of guest memory to QEMU, which aborts when it has more than 512 of all kinds.
pub(super) const MAX_MAPPINGS: usize = 448;

/// Why there is no room for a mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(super) enum NoRoom {
    #[error("{0} blobs are mapped, and the VMM is asked for no more")]
    Full(usize),
    #[error("a mapped blob is there")]
    InUse,
}

/// What has to be done for a mapping.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Plan {
    /// Nothing: it is there.
    Cached,
    /// Unmap these, exactly as they are, then map it.
    MapAfter(Vec<Span>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    InUse,
    Cached,
    Unsure,
}

#[derive(Debug)]
struct Entry {
    mapping: Mapping,
    state: State,
    /// When a blob was mapped there last, in steps of the clock.
    used: u64,
}

#[derive(Debug)]
pub(super) struct Table {
    /// By the first byte.
    entries: BTreeMap<u64, Entry>,
    limit: usize,
    clock: u64,
}

impl Table {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            entries: BTreeMap::new(),
            limit,
            clock: 0,
        }
    }

    /// What a mapping needs. One that is cached is in use from now on; nothing else is changed.
    pub(super) fn plan(&mut self, wanted: &Mapping) -> Result<Plan, NoRoom> {
        self.clock += 1;
        if let Some(entry) = self.entries.get_mut(&wanted.span.start())
            && entry.state == State::Cached
            && entry.mapping == *wanted
        {
            entry.state = State::InUse;
            entry.used = self.clock;
            return Ok(Plan::Cached);
        }
        let mut first = self.overlapping(wanted.span)?;
        let kept = self.entries.len() - first.len();
        let too_many = (kept + 1).saturating_sub(self.limit);
        if too_many > 0 {
            let others = self.entries.values().filter(|entry| {
                entry.state != State::InUse && !first.contains(&entry.mapping.span)
            });
            let mut others: Vec<_> = others
                .map(|entry| (entry.used, entry.mapping.span))
                .collect();
            others.sort_unstable();
            if others.len() < too_many {
                return Err(NoRoom::Full(self.limit));
            }
            first.extend(others.iter().take(too_many).map(|(_, span)| span));
        }
        Ok(Plan::MapAfter(first))
    }

    /// All that have a part of `span`, none of them in use.
    fn overlapping(&self, span: Span) -> Result<Vec<Span>, NoRoom> {
        let before = self.entries.range(..span.end()).rev();
        before
            .map(|(_, entry)| entry)
            .take_while(|entry| entry.mapping.span.end() > span.start())
            .map(|entry| match entry.state {
                State::InUse => Err(NoRoom::InUse),
                State::Cached | State::Unsure => Ok(entry.mapping.span),
            })
            .collect()
    }

    /// It was mapped as planned, and a blob uses it. `sure`: the VMM says so.
    pub(super) fn insert(&mut self, mapping: Mapping, sure: bool) {
        let state = if sure { State::InUse } else { State::Unsure };
        let used = self.clock;
        let start = mapping.span.start();
        self.entries.insert(
            start,
            Entry {
                mapping,
                state,
                used,
            },
        );
    }

    /// No blob uses it any more. Whether it has to be unmapped now.
    ///
    /// The window's own bytes are zeroed before they are anybody else's, as in a window that is mapped as a whole, so they may stay in
    /// reach. Those of a host process are not ours to zero: who has given them up must not reach them, and their owner's memory is
    /// not to be held for a cache.
    pub(super) fn release(&mut self, span: Span) -> bool {
        self.clock += 1;
        let Some(entry) = self.entries.get_mut(&span.start()) else {
            return false;
        };
        entry.used = self.clock;
        let foreign = entry.mapping.elsewhere.is_some();
        entry.state = match entry.state {
            State::InUse if !foreign => State::Cached,
            _ => State::Unsure,
        };
        foreign
    }

    /// The VMM does not have it.
    pub(super) fn remove(&mut self, span: Span) {
        self.entries.remove(&span.start());
    }

    /// Nobody knows whether the VMM has it.
    pub(super) fn doubt(&mut self, span: Span) {
        if let Some(entry) = self.entries.get_mut(&span.start()) {
            entry.state = State::Unsure;
        }
    }

    /// The guest was reset: whether the VMM has unmapped everything is its own affair.
    pub(super) fn doubt_all(&mut self) {
        for entry in self.entries.values_mut() {
            entry.state = State::Unsure;
        }
    }

    /// All that there is.
    pub(super) fn all(&self) -> Vec<Span> {
        let entries = self.entries.values();
        entries.map(|entry| entry.mapping.span).collect()
    }
}

#[cfg(test)]
mod tests;
