//! Which clean pages are kept, and since when. The oldest go first: a guest's kernel takes the place next that was freed last.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::span::Span;

/// How many clean pages a window keeps for the next blob, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Warmth {
    /// Bytes, at most.
    pub limit: u64,
    /// Pages that nobody took for so long are given back. They are looked at when nothing was freed for a second.
    pub time: Duration,
}

impl Warmth {
    /// Pages are kept for so long where nobody says otherwise.
    pub const TIME: Duration = Duration::from_secs(5);

    /// So many bytes for [`Warmth::TIME`].
    #[must_use]
    pub const fn up_to(limit: u64) -> Self {
        Self {
            limit,
            time: Self::TIME,
        }
    }
}

/// When something became warm: never used twice.
pub(super) type Stamp = u64;

/// The ages of warm extents.
#[derive(Debug, Default)]
pub(super) struct Ages {
    bytes: u64,
    last: Stamp,
    batches: BTreeMap<Stamp, Batch>,
}

/// What became warm at a time.
#[derive(Debug)]
struct Batch {
    /// All of it is in here.
    span: Span,
    bytes: u64,
    since: Instant,
}

impl Ages {
    /// Bytes that are warm.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// So many bytes in `span` are warm from `now` on.
    pub(super) fn add(&mut self, span: Span, bytes: u64, now: Instant) -> Stamp {
        self.last += 1;
        self.bytes = self.bytes.saturating_add(bytes);
        let batch = Batch {
            span,
            bytes,
            since: now,
        };
        self.batches.insert(self.last, batch);
        self.last
    }

    /// So many bytes are not warm any more.
    pub(super) fn take(&mut self, stamp: Stamp, bytes: u64) {
        self.bytes = self.bytes.saturating_sub(bytes);
        if let Some(batch) = self.batches.get_mut(&stamp) {
            batch.bytes = batch.bytes.saturating_sub(bytes);
            if batch.bytes == 0 {
                self.batches.remove(&stamp);
            }
        }
    }

    /// What became warm first: its stamp, where it is, since when.
    pub(super) fn oldest(&self) -> Option<(Stamp, Span, Instant)> {
        let (stamp, batch) = self.batches.first_key_value()?;
        Some((*stamp, batch.span, batch.since))
    }
}

#[cfg(test)]
mod tests {
    use super::super::PAGE;
    use super::*;

    #[test]
    fn the_oldest_goes_when_all_of_it_is_taken() {
        let span = |page| Span::new(page * PAGE, 4 * PAGE, 64 * PAGE).unwrap();
        let now = Instant::now();
        let mut ages = Ages::default();
        let one = ages.add(span(0), 3 * PAGE, now);
        let two = ages.add(span(8), 4 * PAGE, now);
        assert_ne!(one, two);
        assert_eq!(ages.bytes(), 7 * PAGE);
        ages.take(one, 2 * PAGE);
        assert_eq!(ages.oldest(), Some((one, span(0), now)));
        ages.take(one, PAGE);
        assert_eq!(ages.oldest(), Some((two, span(8), now)));
        ages.take(two, 4 * PAGE);
        assert_eq!((ages.oldest(), ages.bytes()), (None, 0));
    }
}
