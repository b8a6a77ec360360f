//! A part of a memory, checked once when it is made.

/// Part of a memory in bytes: not empty, inside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Slice {
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

impl Slice {
    /// `None` where it is empty, or does not lie inside `size` bytes.
    pub(crate) fn new(offset: u64, length: u64, size: u64) -> Option<Self> {
        let end = offset.checked_add(length)?;
        (end <= size && length != 0).then_some(Self { offset, length })
    }

    /// Of the same memory.
    pub(crate) fn overlaps(self, other: Slice) -> bool {
        // Both end inside memories, so the sums exist.
        self.offset < other.offset.saturating_add(other.length)
            && other.offset < self.offset.saturating_add(self.length)
    }
}

/// What holds whatever the numbers. Tests try extremes; `cargo xtask kani` proves it of all.
#[cfg(any(test, kani))]
mod laws {
    use super::Slice;

    /// Two numbers are a slice where there is something and it lies inside the memory, by sums that have room.
    pub(super) fn checked(offset: u64, length: u64, size: u64) {
        let end = u128::from(offset) + u128::from(length);
        let expected = (length != 0 && end <= u128::from(size)).then_some(Slice { offset, length });
        assert_eq!(Slice::new(offset, length, size), expected);
    }

    /// Two slices overlap where the later one begins inside the other.
    pub(super) fn overlapping(one: Slice, other: Slice) {
        let later = one.offset.max(other.offset);
        let has = |slice: Slice| later >= slice.offset && later - slice.offset < slice.length;
        assert_eq!(one.overlaps(other), has(one) && has(other));
    }
}

#[cfg(kani)]
mod proofs {
    use super::*;

    fn any_slice() -> Slice {
        let slice = Slice::new(kani::any(), kani::any(), kani::any());
        kani::assume(slice.is_some());
        slice.unwrap_or(Slice {
            offset: 0,
            length: 1,
        })
    }

    #[kani::proof]
    fn any_numbers() {
        laws::checked(kani::any(), kani::any(), kani::any());
    }

    #[kani::proof]
    fn any_two_slices() {
        laws::overlapping(any_slice(), any_slice());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_laws_hold_at_the_extremes() {
        let numbers = [0, 1, 2, 3, 63, 64, 1 << 63, u64::MAX - 1, u64::MAX];
        let pairs = || {
            numbers
                .iter()
                .flat_map(|one| numbers.map(|two| (*one, two)))
        };
        for size in numbers {
            for (offset, length) in pairs() {
                laws::checked(offset, length, size);
            }
            let slices = || pairs().filter_map(|(offset, length)| Slice::new(offset, length, size));
            for one in slices() {
                slices().for_each(|other| laws::overlapping(one, other));
            }
        }
    }
}
