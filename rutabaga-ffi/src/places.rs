//! Where in the window a blob is mapped: this interface has no offsets, so the library chooses.
//!
//! A blob keeps its place when it is unmapped, because its bytes stay there too, and gives it up with its end.

use offset_allocator::{Allocation, Allocator};

/// Most places: a VMM needs a memory slot for each, and QEMU has 4096.
const MOST: u32 = 1 << 16;

/// The window, cut in units.
pub(crate) struct Places {
    space: Allocator,
    /// Bytes.
    unit: u64,
}

/// A range of the window, until [`Places::free`].
#[derive(Clone, Copy)]
pub(crate) struct Place {
    allocation: Allocation,
    /// First byte.
    pub(crate) offset: u64,
}

impl Places {
    /// For `size` bytes, at multiples of `unit`.
    pub(crate) fn new(size: u64, unit: u64) -> Self {
        let units = u32::try_from(size / unit).unwrap_or(u32::MAX);
        Self {
            // Two more than there can be: it keeps them for what is free.
            space: Allocator::with_max_allocs(units, MOST.min(units.saturating_add(2))),
            unit,
        }
    }

    /// Takes room for `size` bytes, if there is any.
    pub(crate) fn take(&mut self, size: u64) -> Option<Place> {
        let units = u32::try_from(size.div_ceil(self.unit)).ok()?;
        let allocation = self.space.allocate(units)?;
        Some(Place {
            allocation,
            offset: u64::from(allocation.offset) * self.unit,
        })
    }

    /// Gives it back.
    pub(crate) fn free(&mut self, place: Place) {
        self.space.free(place.allocation);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_of_it_can_be_had_and_no_more() {
        let mut places = Places::new(16 << 12, 1 << 12);
        let all: Vec<Place> = (0..16).map_while(|_| places.take(4096)).collect();
        let mut offsets: Vec<u64> = all.iter().map(|place| place.offset).collect();
        offsets.sort_unstable();
        assert_eq!(offsets, (0..16).map(|n| n << 12).collect::<Vec<_>>());
        assert!(places.take(1).is_none());
        for place in all {
            places.free(place);
        }
        assert_eq!(places.take(16 << 12).unwrap().offset, 0);
    }

    #[test]
    fn more_than_there_is() {
        let mut places = Places::new(2 << 20, 4096);
        for size in [(2 << 20) + 1, u64::MAX] {
            assert!(places.take(size).is_none());
        }
    }
}
