//! Which part of the window is in which state: a map from disjoint spans to states, absent meaning clean and cold.
//!
//! Pure bookkeeping, tested against one state per page.

use std::collections::BTreeMap;

use super::span::Span;

/// Disjoint spans with a state each. Neighbours of one state are not merged: leases keep their bounds.
#[derive(Debug, Default)]
#[cfg_attr(test, derive(Clone))]
pub(super) struct Extents<S> {
    by_start: BTreeMap<u64, (Span, S)>,
}

impl<S: Copy> Extents<S> {
    pub(super) fn new() -> Self {
        Self {
            by_start: BTreeMap::new(),
        }
    }

    /// Everything that overlaps `span`, in order, whole.
    pub(super) fn overlapping(&self, span: Span) -> impl Iterator<Item = (Span, S)> + '_ {
        let before = self
            .by_start
            .range(..span.start())
            .next_back()
            .filter(move |(_, (found, _))| found.end() > span.start());
        before
            .into_iter()
            .chain(self.by_start.range(span.start()..span.end()))
            .map(|(_, &entry)| entry)
    }

    /// Removes the parts of extents that lie in `span` and satisfy `which`; what sticks out stays. Calls `removed` for
    /// each removed part, in order.
    pub(super) fn remove_where(
        &mut self,
        span: Span,
        which: impl Fn(S) -> bool,
        mut removed: impl FnMut(Span, S),
    ) {
        let mut at = span.start();
        while let Some(rest) = Span::between(at, span.end()) {
            let Some((found, state)) = self.overlapping(rest).find(|&(_, state)| which(state))
            else {
                return;
            };
            at = found.end();
            self.by_start.remove(&found.start());
            let (before, from) = found.split(span.start());
            let (inside, after) = from.map_or((None, None), |from| from.split(span.end()));
            for kept in [before, after].into_iter().flatten() {
                self.by_start.insert(kept.start(), (kept, state));
            }
            if let Some(inside) = inside {
                removed(inside, state);
            }
        }
    }

    /// Gives `span` a state; the caller has removed what was there.
    pub(super) fn insert(&mut self, span: Span, state: S) {
        debug_assert_eq!(self.overlapping(span).count(), 0);
        self.by_start.insert(span.start(), (span, state));
    }

    /// How many extents there are.
    pub(super) fn len(&self) -> usize {
        self.by_start.len()
    }

    /// All of them, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Span, S)> + '_ {
        self.by_start.values().copied()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::window::span::PAGE;

    const PAGES: u64 = 24;
    const COUNT: usize = 24;

    fn pages(start: u64, length: u64) -> Span {
        Span::new(start * PAGE, length * PAGE, PAGES * PAGE).unwrap()
    }

    /// Removes, looks, and inserts where there is room: the same as with one state per page.
    fn step(
        extents: &mut Extents<u8>,
        model: &mut [Option<u8>; COUNT],
        span: Span,
        state: u8,
        only_matching: bool,
    ) {
        let pages = |part: Span| part.start() / PAGE..part.end() / PAGE;
        let range = usize::try_from(span.start() / PAGE).unwrap()
            ..usize::try_from(span.end() / PAGE).unwrap();
        let matches = |found: u8| !only_matching || found == state;
        let mut removed = Vec::new();
        extents.remove_where(span, matches, |part, found| {
            removed.extend(pages(part).map(|page| (page, found)));
        });
        let mut expected = Vec::new();
        for page in range.clone() {
            if let Some(found) = model[page].filter(|&found| matches(found)) {
                expected.push((page as u64, found));
                model[page] = None;
            }
        }
        assert_eq!(removed, expected);
        if model[range.clone()].iter().all(Option::is_none) {
            extents.insert(span, state);
            model[range].fill(Some(state));
        }
        let seen = extents
            .overlapping(all())
            .flat_map(|(part, found)| pages(part).map(move |page| (page, found)));
        let all = model
            .iter()
            .enumerate()
            .filter_map(|(page, found)| Some((page as u64, (*found)?)));
        assert!(seen.eq(all), "{extents:?} {model:?}");
    }

    fn all() -> Span {
        pages(0, PAGES)
    }

    /// Whatever is removed and inserted in a few pages, in up to three steps.
    #[test]
    fn all_short_histories_agree_with_an_array() {
        const FEW: u64 = 4;
        let mut histories = vec![(Extents::new(), [None; COUNT])];
        for _ in 0..3 {
            let mut longer = Vec::new();
            for (extents, model) in &histories {
                let spans = (0..FEW)
                    .flat_map(|start| (1..=FEW - start).map(move |length| pages(start, length)));
                for span in spans {
                    for (state, only_matching) in [(0, false), (1, false), (0, true), (1, true)] {
                        let (mut extents, mut model) = (extents.clone(), *model);
                        step(&mut extents, &mut model, span, state, only_matching);
                        longer.push((extents, model));
                    }
                }
            }
            histories = longer;
        }
        assert_eq!(histories.len(), 40 * 40 * 40);
    }

    proptest! {
        /// The same for long ones.
        #[test]
        fn behaves_as_an_array_of_pages(
            steps in prop::collection::vec((0..PAGES, 1..PAGES, 0..4u8, any::<bool>()), 0..60),
        ) {
            let mut extents = Extents::new();
            let mut model = [None; COUNT];
            for (start, length, state, only_matching) in steps {
                let span = pages(start, length.min(PAGES - start));
                step(&mut extents, &mut model, span, state, only_matching);
            }
        }
    }
}
