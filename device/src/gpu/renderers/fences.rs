//! When work of other renderers is over. On a timeline a fence that is reached has reached all before it, as Linux takes it too.

use std::collections::BTreeMap;

use rutabaga_gfx::{RUTABAGA_FLAG_FENCE, RUTABAGA_FLAG_INFO_RING_IDX, RutabagaFence};

/// A ring of a context, or, `None`, what is common to all.
type Timeline = Option<(u32, u8)>;

/// Fences that were not reached.
#[derive(Debug, Default)]
pub(super) struct Fences {
    /// By our own numbers, which only grow: a guest's may be any.
    pending: BTreeMap<u64, Timeline>,
}

impl Fences {
    /// A new fence, of a number above all others, and what rutabaga is to make of it.
    pub(super) fn add(&mut self, number: u64, context: u32, ring: Option<u8>) -> RutabagaFence {
        self.pending
            .insert(number, ring.map(|ring| (context, ring)));
        RutabagaFence {
            flags: RUTABAGA_FLAG_FENCE | ring.map_or(0, |_| RUTABAGA_FLAG_INFO_RING_IDX),
            fence_id: number,
            ctx_id: context,
            ring_idx: ring.unwrap_or(0),
        }
    }

    /// Rutabaga says so.
    pub(super) fn reach(&mut self, fence: &RutabagaFence) {
        let on_ring = fence.flags & RUTABAGA_FLAG_INFO_RING_IDX != 0;
        let timeline = on_ring.then_some((fence.ctx_id, fence.ring_idx));
        self.pending
            .retain(|&number, at| number > fence.fence_id || *at != timeline);
    }

    /// The last one of a timeline: all before it are reached when it is.
    pub(super) fn last(&self, context: u32, ring: Option<u8>) -> Option<u64> {
        let timeline = ring.map(|ring| (context, ring));
        let mut pending = self.pending.iter().rev();
        let last = pending.find(|(_, at)| **at == timeline);
        last.map(|(number, _)| *number)
    }

    /// It will not be reached by itself.
    pub(super) fn remove(&mut self, number: u64) {
        self.pending.remove(&number);
    }

    /// Nothing is under way in a context any more.
    pub(super) fn end_context(&mut self, context: u32) {
        self.pending
            .retain(|_, at| at.is_none_or(|(of, _)| of != context));
    }

    /// Nothing is under way at all.
    pub(super) fn clear(&mut self) {
        self.pending.clear();
    }

    pub(super) fn is_reached(&self, number: u64) -> bool {
        !self.pending.contains_key(&number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fence_reaches_those_before_it_on_its_timeline() {
        let mut fences = Fences::default();
        let [one, other, two] = [(1, 5), (2, 6), (3, 5)].map(|(n, at)| fences.add(n, at, Some(1)));
        let common = fences.add(4, 5, None);
        let last = |fences: &Fences| {
            [(5, Some(1)), (6, Some(1)), (5, None), (5, Some(2))]
                .map(|(context, ring)| fences.last(context, ring))
        };
        assert_eq!(last(&fences), [Some(3), Some(2), Some(4), None]);
        fences.reach(&two);
        assert_eq!(last(&fences), [None, Some(2), Some(4), None]);
        let reached =
            |fences: &Fences| [one, other, two, common].map(|f| fences.is_reached(f.fence_id));
        assert_eq!(reached(&fences), [true, false, true, false]);
        fences.reach(&common);
        assert_eq!(reached(&fences), [true, false, true, true]);
        // Late, from before a reset, say: what came after it waits on.
        let three = fences.add(5, 5, Some(1));
        fences.reach(&two);
        assert!(!fences.is_reached(three.fence_id));
        fences.end_context(5);
        assert!(fences.is_reached(three.fence_id) && !fences.is_reached(other.fence_id));
        fences.clear();
        assert!(fences.is_reached(other.fence_id));
    }
}
