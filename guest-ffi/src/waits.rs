//! Rings of requests that the host may answer much later. Pure bookkeeping.
//!
//! The guest kernel signals all older fences of a ring with a younger one. So each wait has a ring to itself until it is answered: a
//! long one holds back no other, and no other ends it early.

use crate::transport::RING_FIRST_WAIT;

/// Most waits of a device that last at the same time. Each keeps its command in the control queue of the guest, whose 256 entries all
/// processes share: a process that could fill it would stop the others.
pub const MOST_WAITS: u8 = 16;

const RINGS: usize = MOST_WAITS as usize;

/// Which rings are taken.
#[derive(Debug)]
pub(crate) struct Waits {
    /// The last wait of each ring, as its sequence; 0 for none.
    latest: [u64; RINGS],
}

impl Default for Waits {
    fn default() -> Self {
        Self { latest: [0; RINGS] }
    }
}

impl Waits {
    /// A ring whose last wait is over, for the wait of the sequence that is written to the place. `None` when all are taken.
    pub(crate) fn free_ring(&mut self, is_pending: impl Fn(u64) -> bool) -> Option<(u8, &mut u64)> {
        (RING_FIRST_WAIT..)
            .zip(&mut self.latest)
            .find(|(_, sequence)| **sequence == 0 || !is_pending(**sequence))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_serves_one_wait_at_a_time() {
        let mut waits = Waits::default();
        for sequence in 1..=RINGS as u64 {
            let (ring, place) = waits.free_ring(|_| true).unwrap();
            assert_eq!(u64::from(ring), 1 + sequence);
            *place = sequence;
        }
        assert!(waits.free_ring(|_| true).is_none());
        let (ring, place) = waits.free_ring(|sequence| sequence != 5).unwrap();
        assert_eq!((ring, *place), (6, 5));
    }
}
