//! Fences of the guest, and the thread that calls back when they are reached.
//!
//! A VMM takes a callback for all older fences of the same timeline. QEMU does so for one ring of *all* contexts, because it compares no
//! context ids. So callbacks come in the order in which fences were created:
//! - of the global timeline, always;
//! - of a ring, after all older fences of our contexts on the ring of that number, because GPU work ends, and in order. Nothing waits
//!   for rutabaga_gfx's, where a fence may mean "when the compositor says something".

use std::collections::{HashSet, VecDeque};

use hostblob_allocator::Fence;
use parking_lot::{Condvar, Mutex};

use crate::error::{Error, Result};
use crate::types::{RUTABAGA_FLAG_INFO_RING_IDX, rutabaga_fence};

/// Most fences that wait: a VMM has one for each command of its queue.
const MOST: usize = 1 << 16;

/// A ring of contexts, or the global timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Timeline {
    Global,
    Ring(u32),
}

fn timeline(fence: &rutabaga_fence) -> Timeline {
    match fence.flags & RUTABAGA_FLAG_INFO_RING_IDX {
        0 => Timeline::Global,
        _ => Timeline::Ring(fence.ring_idx),
    }
}

#[derive(Debug)]
struct Waiting {
    fence: rutabaga_fence,
    /// Our work that it waits for.
    ours: Option<Fence>,
    /// Whether rutabaga_gfx has to signal it.
    theirs: bool,
}

#[derive(Debug, Default)]
struct Queue {
    /// In the order of creation.
    waiting: VecDeque<Waiting>,
    /// What rutabaga_gfx signals without having been asked.
    unasked: Vec<rutabaga_fence>,
    /// Something may have been reached.
    look: bool,
    end: bool,
}

/// The fences of one device.
#[derive(Debug, Default)]
pub(crate) struct Fences {
    queue: Mutex<Queue>,
    wake: Condvar,
}

impl Fences {
    /// A new fence, which waits for work of ours, for a signal of rutabaga_gfx, or for both.
    pub(crate) fn add(
        &self,
        fence: rutabaga_fence,
        ours: Option<Fence>,
        theirs: bool,
    ) -> Result<()> {
        let mut queue = self.queue.lock();
        if queue.waiting.len() >= MOST {
            return Err(Error::Full("65536 fences"));
        }
        queue.waiting.push_back(Waiting {
            fence,
            ours,
            theirs,
        });
        Ok(())
    }

    /// The fence that was added last is none after all.
    pub(crate) fn take_back(&self, fence: &rutabaga_fence) {
        let mut queue = self.queue.lock();
        if let Some(at) = queue.waiting.iter().rposition(|one| one.fence == *fence) {
            queue.waiting.remove(at);
        }
    }

    /// rutabaga_gfx has reached a fence, and with it the older ones of the same ring of the same context.
    pub(crate) fn signalled(&self, fence: &rutabaga_fence) {
        let mut queue = self.queue.lock();
        let theirs = |one: &Waiting| {
            let on_ring = timeline(fence) != Timeline::Global;
            one.theirs
                && timeline(&one.fence) == timeline(fence)
                && (!on_ring || one.fence.ctx_id == fence.ctx_id)
        };
        let is_it = |one: &Waiting| theirs(one) && one.fence.fence_id == fence.fence_id;
        match queue.waiting.iter().rposition(is_it) {
            Some(at) => {
                for one in queue.waiting.iter_mut().take(at + 1) {
                    if theirs(one) {
                        one.theirs = false;
                    }
                }
            }
            None => queue.unasked.push(*fence),
        }
        queue.look = true;
        self.wake.notify_all();
    }

    /// Work of ours may be done.
    pub(crate) fn look(&self) {
        self.queue.lock().look = true;
        self.wake.notify_all();
    }

    /// Nobody waits any more.
    pub(crate) fn end(&self) {
        let mut queue = self.queue.lock();
        queue.end = true;
        queue.waiting.clear();
        self.wake.notify_all();
    }

    /// Sleeps until something may have been reached. False when nobody waits any more.
    pub(crate) fn sleep(&self) -> bool {
        let mut queue = self.queue.lock();
        while !queue.look && !queue.end {
            self.wake.wait(&mut queue);
        }
        queue.look = false;
        !queue.end
    }

    /// The fences that have been reached, in order.
    pub(crate) fn take_reached(&self, reached: impl Fn(&Fence) -> bool) -> Vec<rutabaga_fence> {
        let mut queue = self.queue.lock();
        let mut ready = std::mem::take(&mut queue.unasked);
        let mut held = HashSet::new();
        queue.waiting.retain_mut(|one| {
            one.ours.take_if(|fence| reached(fence));
            let on = timeline(&one.fence);
            if held.contains(&on) {
                return true;
            }
            if one.ours.is_none() && !one.theirs {
                ready.push(one.fence);
                return false;
            }
            if on == Timeline::Global || one.ours.is_some() {
                held.insert(on);
            }
            true
        });
        ready
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn global(fence_id: u64) -> rutabaga_fence {
        rutabaga_fence {
            flags: 1,
            fence_id,
            ctx_id: 0,
            ring_idx: 0,
        }
    }

    fn ring(ctx_id: u32, ring_idx: u32, fence_id: u64) -> rutabaga_fence {
        rutabaga_fence {
            flags: 3,
            fence_id,
            ctx_id,
            ring_idx,
        }
    }

    fn ids(fences: &[rutabaga_fence]) -> Vec<u64> {
        fences.iter().map(|fence| fence.fence_id).collect()
    }

    #[test]
    fn the_global_timeline_is_in_order() {
        let fences = Fences::default();
        fences
            .add(global(1), Some(Fence::default()), false)
            .unwrap();
        fences.add(global(2), None, true).unwrap();
        fences.add(global(3), None, true).unwrap();
        fences.signalled(&global(2));
        assert!(fences.sleep());
        assert!(fences.take_reached(|_| false).is_empty());
        assert_eq!(ids(&fences.take_reached(|_| true)), [1, 2]);
        fences.signalled(&global(3));
        assert_eq!(ids(&fences.take_reached(|_| true)), [3]);
    }

    #[test]
    fn a_ring_waits_for_our_work_and_not_for_a_compositor() {
        let fences = Fences::default();
        fences.add(ring(1, 0, 1), None, true).unwrap();
        fences
            .add(ring(2, 0, 2), Some(Fence::default()), false)
            .unwrap();
        fences.add(ring(1, 0, 3), None, true).unwrap();
        fences.add(ring(1, 1, 4), None, true).unwrap();
        fences.signalled(&ring(1, 0, 3));
        fences.signalled(&ring(1, 1, 4));
        // 1 went with 3, 3 waits for 2, and another ring for nobody.
        assert_eq!(ids(&fences.take_reached(|_| false)), [1, 4]);
        assert_eq!(ids(&fences.take_reached(|_| true)), [2, 3]);
        fences.add(ring(1, 0, 5), None, true).unwrap();
        fences
            .add(ring(2, 0, 6), Some(Fence::default()), false)
            .unwrap();
        assert_eq!(ids(&fences.take_reached(|_| true)), [6]);
    }

    #[test]
    fn what_was_refused_or_not_asked_for() {
        let fences = Fences::default();
        fences.add(global(1), None, true).unwrap();
        fences.take_back(&global(1));
        fences.signalled(&ring(7, 1, 9));
        assert_eq!(ids(&fences.take_reached(|_| true)), [9]);
        fences.end();
        assert!(!fences.sleep());
    }
}
