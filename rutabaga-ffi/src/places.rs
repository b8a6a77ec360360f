//! Where in the window a blob is mapped: this interface has no offsets, so the library chooses.
//!
//! A blob keeps its place when it is unmapped, because its bytes stay there too, and gives it up with its end.

use std::collections::{BTreeMap, BTreeSet};

/// Most places: a VMM needs a memory slot for each, and QEMU has 4096.
const MOST: u32 = 1 << 16;

/// The window, cut in units. A blob that is as long as the longest free range still has a place: a window may be little more than its blobs.
pub(crate) struct Places {
    /// Lengths of free ranges, by their start. No two touch.
    free: BTreeMap<u64, u64>,
    /// The same ranges, by length and start.
    by_length: BTreeSet<(u64, u64)>,
    /// Places that may still be taken.
    left: u32,
    /// Bytes.
    unit: u64,
}

/// A range of the window, until [`Places::free`].
#[derive(Clone, Copy)]
pub(crate) struct Place {
    /// First byte.
    pub(crate) offset: u64,
    /// Bytes, whole units.
    length: u64,
}

impl Places {
    /// For `size` bytes, at multiples of `unit`.
    pub(crate) fn new(size: u64, unit: u64) -> Self {
        let mut places = Self {
            free: BTreeMap::new(),
            by_length: BTreeSet::new(),
            left: MOST,
            unit,
        };
        places.insert(0, size - size % unit);
        places
    }

    /// Takes room for `size` bytes, if there is any.
    pub(crate) fn take(&mut self, size: u64) -> Option<Place> {
        let length = size.max(1).checked_next_multiple_of(self.unit)?;
        let left = self.left.checked_sub(1)?;
        // The shortest that is long enough: long ones stay for those who need them.
        let &(found, offset) = self.by_length.range((length, 0)..).next()?;
        self.remove(offset, found);
        self.insert(offset + length, found - length);
        self.left = left;
        Some(Place { offset, length })
    }

    /// Gives it back.
    pub(crate) fn free(&mut self, place: Place) {
        let (mut start, mut end) = (place.offset, place.offset + place.length);
        let before = self.free.range(..start).next_back();
        if let Some((&offset, &length)) = before
            && offset + length == start
        {
            self.remove(offset, length);
            start = offset;
        }
        if let Some(&length) = self.free.get(&end) {
            self.remove(end, length);
            end += length;
        }
        self.insert(start, end - start);
        self.left += 1;
    }

    fn insert(&mut self, offset: u64, length: u64) {
        if length > 0 {
            self.free.insert(offset, length);
            self.by_length.insert((length, offset));
        }
    }

    fn remove(&mut self, offset: u64, length: u64) {
        self.free.remove(&offset);
        self.by_length.remove(&(length, offset));
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
    fn what_is_left_can_be_had_to_the_last_byte() {
        const MIB: u64 = 1 << 20;
        for first in 1..64 {
            let mut places = Places::new(64 * MIB, 4096);
            let taken = places.take(first * MIB).unwrap();
            let rest = places.take((64 - first) * MIB).unwrap();
            let (low, high) = (taken.offset.min(rest.offset), taken.offset.max(rest.offset));
            let length = if taken.offset == 0 { first } else { 64 - first };
            assert_eq!((low, high), (0, length * MIB));
            assert!(places.take(1).is_none());
        }
    }

    /// Against one owner per unit: a request is refused only where no free range is long enough.
    #[test]
    fn long_lives_agree_with_an_array() {
        const UNITS: usize = 32;
        let mut places = Places::new(UNITS as u64 * 16, 16);
        let mut owners = [false; UNITS];
        let mut live = Vec::new();
        // A full-period generator of Knuth's: the same life each time.
        let mut random = 1_u64;
        for step in 0..20_000 {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let number = usize::try_from(random >> 40).unwrap();
            if number % 7 < 4 {
                let units = 1 + number / 7 % 9;
                let fits = owners.windows(units).any(|part| !part.contains(&true));
                let taken = places.take(units as u64 * 16 - number as u64 % 16);
                assert_eq!(taken.is_some(), fits, "step {step}");
                let Some(place) = taken else { continue };
                let start = usize::try_from(place.offset / 16).unwrap();
                let part = &mut owners[start..start + units];
                assert!(!part.contains(&true), "step {step}");
                part.fill(true);
                live.push((place, start, units));
            } else if !live.is_empty() {
                let (place, start, units) = live.swap_remove(number % live.len());
                owners[start..start + units].fill(false);
                places.free(place);
            }
        }
        for (place, ..) in live {
            places.free(place);
        }
        assert_eq!(places.take(UNITS as u64 * 16).unwrap().offset, 0);
    }

    #[test]
    fn more_places_than_a_vmm_has() {
        let mut places = Places::new((u64::from(MOST) + 1) << 12, 1 << 12);
        let mut last = None;
        for number in 0..MOST {
            let place = places.take(4096).unwrap();
            assert_eq!(place.offset, u64::from(number) << 12);
            last = Some(place);
        }
        assert!(places.take(4096).is_none(), "there is room, and no number");
        places.free(last.unwrap());
        assert_eq!(places.take(8192).unwrap().offset, u64::from(MOST - 1) << 12);
    }

    #[test]
    fn more_than_there_is() {
        let mut places = Places::new(2 << 20, 4096);
        for size in [(2 << 20) + 1, u64::MAX] {
            assert!(places.take(size).is_none());
        }
    }
}
