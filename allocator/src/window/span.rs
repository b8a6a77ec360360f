//! A range of a file in whole pages, checked once when it is made.

use thiserror::Error;

/// Granularity of everything in the window. A host with larger pages announces them in the capset and
/// gets sizes that are multiples of them.
pub const PAGE: u64 = 4096;

/// `[start, end)` in bytes: page-aligned, not empty, inside the file it was made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Span {
    start: u64,
    end: u64,
}

/// Why two numbers are not a [`Span`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum SpanError {
    /// Not in whole pages, or empty.
    #[error("offset {offset:#x} and length {length:#x} are not whole pages of {PAGE} bytes")]
    Unaligned {
        /// First byte.
        offset: u64,
        /// Bytes.
        length: u64,
    },
    /// Ends beyond the file, or beyond all numbers.
    #[error("offset {offset:#x} and length {length:#x} do not lie inside {size:#x} bytes")]
    Outside {
        /// First byte.
        offset: u64,
        /// Bytes.
        length: u64,
        /// Bytes of the file.
        size: u64,
    },
}

impl Span {
    /// `length` bytes from `offset` on, in a file of `size` bytes.
    pub fn new(offset: u64, length: u64, size: u64) -> Result<Self, SpanError> {
        if length == 0 || !offset.is_multiple_of(PAGE) || !length.is_multiple_of(PAGE) {
            return Err(SpanError::Unaligned { offset, length });
        }
        match offset.checked_add(length) {
            Some(end) if end <= size => Ok(Self { start: offset, end }),
            _ => Err(SpanError::Outside {
                offset,
                length,
                size,
            }),
        }
    }

    /// First byte.
    pub fn start(self) -> u64 {
        self.start
    }

    /// The byte after the last.
    pub fn end(self) -> u64 {
        self.end
    }

    /// Bytes; never 0.
    #[allow(clippy::len_without_is_empty, reason = "a span is never empty")]
    pub fn len(self) -> u64 {
        self.end - self.start
    }

    /// The part that both have.
    pub fn intersection(self, other: Span) -> Option<Span> {
        Self::between(self.start.max(other.start), self.end.min(other.end))
    }

    /// What lies before `at`, and what lies from it on; `at` is a page boundary.
    pub(super) fn split(self, at: u64) -> (Option<Span>, Option<Span>) {
        (
            Self::between(self.start, at.min(self.end)),
            Self::between(at.max(self.start), self.end),
        )
    }

    /// Both bounds are bounds of existing spans, or page-aligned file offsets inside one.
    pub(super) fn between(start: u64, end: u64) -> Option<Span> {
        (start < end).then_some(Self { start, end })
    }
}

#[cfg(any(test, kani))]
mod laws;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Near a small number of pages, near the end of all numbers, or anything.
    fn number() -> impl Strategy<Value = u64> {
        let near = prop_oneof![4 => Just(0), 1 => Just(1), 1 => Just(u64::MAX)];
        let small =
            (0..12_u64, near.clone()).prop_map(|(pages, near)| (pages * PAGE).wrapping_add(near));
        let large = (0..4_u64, near)
            .prop_map(|(pages, near)| (pages * PAGE).wrapping_neg().wrapping_add(near));
        prop_oneof![6 => small, 2 => large, 1 => any::<u64>()]
    }

    fn span() -> impl Strategy<Value = Span> {
        let bounds = |pages: u64| (0..pages, 1..pages);
        let spans = prop_oneof![bounds(12), bounds(u64::MAX / PAGE / 2)];
        spans.prop_map(|(start, pages)| Span {
            start: start * PAGE,
            end: (start + pages) * PAGE,
        })
    }

    proptest! {
        #[test]
        fn the_laws_hold(offset in number(), length in number(), size in number(), one in span(), other in span(), byte in number()) {
            laws::checked(offset, length, size);
            laws::intersected(one, other, byte);
            laws::split(one, offset & !(PAGE - 1), byte);
            laws::split(one, other.start, one.start);
        }
    }

    #[test]
    fn extremes_are_refused() {
        let size = 16 * PAGE;
        let values = [
            0,
            1,
            PAGE - 1,
            PAGE,
            PAGE + 1,
            size - PAGE,
            size,
            size + PAGE,
            1 << 63,
            u64::MAX,
            u64::MAX - PAGE + 1,
        ];
        for offset in values {
            for length in values {
                laws::checked(offset, length, size);
            }
        }
    }

    /// All offsets and lengths of a small file, in quarters of pages.
    #[test]
    fn every_range_of_a_small_file() {
        let size = 4 * PAGE;
        let quarters = || (0..=24).map(|quarters| quarters * PAGE / 4);
        for offset in quarters() {
            for length in quarters() {
                let whole = offset % PAGE == 0 && length % PAGE == 0 && length != 0;
                let expected = match (whole, offset + length <= size) {
                    (false, _) => Err(SpanError::Unaligned { offset, length }),
                    (true, false) => Err(SpanError::Outside {
                        offset,
                        length,
                        size,
                    }),
                    (true, true) => Ok(Span {
                        start: offset,
                        end: offset + length,
                    }),
                };
                assert_eq!(Span::new(offset, length, size), expected);
            }
        }
    }

    /// All spans of a small file, and all pairs of them, against sets of pages.
    #[test]
    fn every_two_spans_of_a_small_file() {
        const PAGES: u64 = 6;
        let pages = |span: Option<Span>| -> Vec<u64> {
            let pages = |span: Span| span.start / PAGE..span.end / PAGE;
            span.into_iter().flat_map(pages).collect()
        };
        let spans = || {
            let starts =
                (0..PAGES).flat_map(|start| (start + 1..=PAGES).map(move |end| (start, end)));
            starts.map(|(start, end)| {
                Span::new(start * PAGE, (end - start) * PAGE, PAGES * PAGE).unwrap()
            })
        };
        assert_eq!(spans().count(), 21);
        for one in spans() {
            let all = pages(Some(one));
            assert_eq!(one.len(), all.len() as u64 * PAGE);
            for at in 0..=PAGES {
                let (before, after) = one.split(at * PAGE);
                let (low, high): (Vec<_>, Vec<_>) = all.iter().partition(|page| **page < at);
                assert_eq!(
                    (pages(before), pages(after)),
                    (low, high),
                    "{one:?} at {at}"
                );
            }
            for other in spans() {
                let both: Vec<u64> = pages(Some(other))
                    .into_iter()
                    .filter(|page| all.contains(page))
                    .collect();
                assert_eq!(pages(one.intersection(other)), both, "{one:?} {other:?}");
            }
        }
    }
}
