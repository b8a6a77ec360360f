//! What holds of spans, whatever the numbers. Tests try extremes and chosen ones; `cargo xtask kani` proves it of all.

use super::{PAGE, Span};

/// Two numbers are a span where they are whole pages inside the file, and nowhere else: by sums that have room.
pub(super) fn checked(offset: u64, length: u64, size: u64) {
    let end = u128::from(offset) + u128::from(length);
    let is_whole = length != 0 && offset.is_multiple_of(PAGE) && length.is_multiple_of(PAGE);
    let span = Span::new(offset, length, size);
    assert_eq!(span.is_ok(), is_whole && end <= u128::from(size));
    if let Ok(span) = span {
        assert_eq!((span.start(), span.len()), (offset, length));
        assert_eq!(u128::from(span.end()), end);
    }
}

/// A byte is in the part that two spans have where it is in both, and that part is whole pages.
pub(super) fn intersected(one: Span, other: Span, byte: u64) {
    let part = one.intersection(other);
    assert_eq!(
        has(part, byte),
        has(Some(one), byte) && has(Some(other), byte)
    );
    assert!(is_sound(part));
}

/// Each byte of a span is on its side of `at`, a page boundary, and each side is whole pages.
pub(super) fn split(span: Span, at: u64, byte: u64) {
    let (before, after) = span.split(at);
    assert_eq!(has(before, byte), has(Some(span), byte) && byte < at);
    assert_eq!(has(after, byte), has(Some(span), byte) && byte >= at);
    assert!(is_sound(before) && is_sound(after));
}

fn has(span: Option<Span>, byte: u64) -> bool {
    span.is_some_and(|span| span.start <= byte && byte < span.end)
}

fn is_sound(part: Option<Span>) -> bool {
    part.is_none_or(|it| {
        it.start < it.end && it.start.is_multiple_of(PAGE) && it.end.is_multiple_of(PAGE)
    })
}

#[cfg(kani)]
mod proofs {
    use super::*;

    fn any_span() -> Span {
        let span = Span {
            start: kani::any(),
            end: kani::any(),
        };
        kani::assume(is_sound(Some(span)));
        span
    }

    #[kani::proof]
    fn any_numbers() {
        checked(kani::any(), kani::any(), kani::any());
    }

    #[kani::proof]
    fn any_two_spans() {
        intersected(any_span(), any_span(), kani::any());
    }

    #[kani::proof]
    fn any_span_at_any_page() {
        let at: u64 = kani::any();
        kani::assume(at.is_multiple_of(PAGE));
        split(any_span(), at, kani::any());
    }
}
