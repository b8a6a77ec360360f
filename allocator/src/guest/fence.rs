//! When something is over: GPU work, and host processes that use what a guest wants back.

use super::Guest;

/// Something in the future that a response waits for; at first, nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fence {
    /// In the guest's GPU work; 0 is reached from the beginning.
    point: u64,
}

impl Fence {
    /// Reached when the GPU work up to `point` is done.
    pub(crate) fn at(point: u64) -> Self {
        Self { point }
    }

    /// Reached when both are.
    pub fn join(&mut self, other: Self) {
        self.point = self.point.max(other.point);
    }
}

impl Guest {
    /// The fence of what was submitted so far: to `ring` of the context, to all of its rings, or, for context 0, by the whole
    /// guest.
    pub fn fence(&self, context: u32, ring: Option<u8>) -> Fence {
        if context == 0 {
            return Fence::at(self.work.submitted());
        }
        let Some(context) = self.contexts.get(&context) else {
            return Fence::default();
        };
        Fence::at(match ring {
            Some(ring) => context.last_work.get(&ring).copied().unwrap_or(0),
            None => context.last_work.values().copied().max().unwrap_or(0),
        })
    }

    /// Whether it has been reached, as far as [`Guest::process_completions`] has looked.
    pub fn reached(&self, fence: &Fence) -> bool {
        self.work.reached(fence.point)
    }
}
