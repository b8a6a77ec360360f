//! The worker that makes freed spans clean before anyone asks for them.
//!
//! It takes dirty parts in chunks, so that whoever waits for one waits for one chunk. Pages are zeroed and kept: the warm budget is that of the
//! places that were freed last. Older ones are given back by punching holes, when the budget is spent and when nothing happens for a while.
//!
//! It lets freed spans gather for a moment. Who frees and takes the same span at once cleans it faster than two threads agree on it, and
//! a wake-up for each span costs more than the span's bookkeeping.
//!
//! It also looks at the window as a whole from time to time. The VMM has mapped all of it, so a guest kernel can write where no blob is,
//! and make pages that nobody is charged for. Such pages are given back.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::file::SharedFile;
use super::ranges::{Bytes, Ranges, State, Use};
use super::span::{PAGE, Span};
use super::sync::{Receiver, RecvTimeoutError, sleep};

/// Most bytes that are cleaned at a time: bounds how long [`super::Window::place`] waits.
/// The model checker has few pages, and wants a chunk to end among them.
const CHUNK: u64 = if cfg!(loom) { PAGE } else { 2 << 20 };

/// How long freed spans gather: far less than a guest needs from the end of a blob to the place of the next one.
const GATHER: Duration = Duration::from_micros(50);

/// Most batches of places that are given back at a time: bounds how long the table is locked. A chunk has no more pages than this.
const COOL_AT_ONCE: usize = 512;

/// How often the window is looked at as a whole.
const SWEEP_PERIOD: Duration = Duration::from_secs(1);

/// Bytes beyond what is accounted for that are left alone: less than it costs to look closer.
const SWEEP_SLACK: u64 = 16 << 20;

pub(super) fn spawn(
    ranges: Arc<Ranges<SharedFile>>,
    dirty: Receiver<Option<Span>>,
) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name("hostblob-clean".into())
        .spawn(move || ranges.work(&dirty))
}

/// The same bytes in as few spans as it goes, in order.
fn joined(first: Span, mut spans: Vec<Span>) -> Vec<Span> {
    spans.push(first);
    spans.sort_unstable_by_key(|span| span.start());
    let mut joined: Vec<Span> = Vec::new();
    for span in spans {
        let both = joined
            .last()
            .filter(|last| span.start() <= last.end())
            .and_then(|last| Span::between(last.start(), last.end().max(span.end())));
        match (both, joined.last_mut()) {
            (Some(both), Some(last)) => *last = both,
            _ => joined.push(span),
        }
    }
    joined
}

impl<B: Bytes> Ranges<B> {
    /// Cleans what it hears of, until it is told to end.
    pub(super) fn work(&self, dirty: &Receiver<Option<Span>>) {
        let mut next_look = Instant::now() + SWEEP_PERIOD;
        loop {
            match dirty.recv_timeout(next_look.saturating_duration_since(Instant::now())) {
                Ok(Some(span)) => {
                    sleep(GATHER);
                    // Those that are there now: later ones gather again.
                    let others = dirty.try_iter().take(dirty.len());
                    let Some(spans) = others.collect::<Option<Vec<Span>>>() else {
                        return;
                    };
                    for span in joined(span, spans) {
                        self.clean_all(span);
                    }
                }
                Ok(None) | Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => next_look = Instant::now(),
            }
            // Also where there is always something to clean: who frees something now and then must not be able to put it off.
            if Instant::now() >= next_look {
                self.cool();
                self.sweep(SWEEP_SLACK);
                next_look = Instant::now() + SWEEP_PERIOD;
            }
        }
    }

    fn clean_all(&self, span: Span) {
        let mut at = span.start();
        while let Some(chunk) = Span::between(at, span.end().min(at.saturating_add(CHUNK))) {
            self.clean(chunk);
            at = chunk.end();
        }
    }

    /// Gives back pages where nothing is, when there are more than `slack` bytes of them.
    pub(super) fn sweep(&self, slack: u64) {
        let resident = self.bytes.resident();
        let mut gaps = Vec::new();
        {
            let mut state = self.state.lock();
            let accounted: u64 = state.extents.iter().map(|(span, _)| span.len()).sum();
            if resident <= accounted.saturating_add(slack) {
                return;
            }
            let mut at = 0;
            for (span, _) in state.extents.iter() {
                gaps.extend(Span::between(at, span.start()));
                at = span.end();
            }
            gaps.extend(Span::between(at, self.bytes.size()));
            for &gap in &gaps {
                state.extents.insert(gap, Use::Cleaning);
            }
        }
        log::warn!(
            "the guest has written to {resident} bytes of the window, more than its blobs have: the rest is cleared"
        );
        for gap in gaps {
            if self.bytes.punch(gap).is_err() {
                self.bytes.zero_resident(gap, |_| {});
            }
            let old = self.finish(gap, Vec::new());
            self.give_back(old);
        }
    }

    /// Gives back what nobody took for long.
    pub(super) fn cool(&self) {
        let Some(before) = Instant::now().checked_sub(self.warmth.time) else {
            return;
        };
        loop {
            let old = self.state.lock().cooling(|_, since| since <= before);
            if old.is_empty() {
                return;
            }
            self.give_back(old);
        }
    }

    /// Gives back clean places, which nobody else takes meanwhile.
    fn give_back(&self, places: Vec<Span>) {
        if places.is_empty() {
            return;
        }
        for place in &places {
            if let Err(error) = self.bytes.punch(*place) {
                // They are clean all the same, and the sweep will come upon them.
                log::debug!("clean pages are not given back: {error}");
            }
        }
        let mut state = self.state.lock();
        for place in places {
            let is_ours = |used| used == Use::Cleaning;
            state.extents.remove_where(place, is_ours, |_, _| {});
        }
        drop(state);
        self.cleaned.notify_all();
    }

    /// Cleans the parts of `span` that are still dirty.
    pub(super) fn clean(&self, span: Span) {
        let mut parts = Vec::new();
        {
            let mut state = self.state.lock();
            state
                .extents
                .remove_where(span, |used| used == Use::Dirty, |part, _| parts.push(part));
            for &part in &parts {
                state.extents.insert(part, Use::Cleaning);
            }
        }
        let keep = span.len() <= self.warmth.limit;
        for part in parts {
            let mut resident = Vec::new();
            let punched = !keep && self.bytes.punch(part).is_ok();
            if !punched {
                self.bytes.zero_resident(part, |warm| resident.push(warm));
            }
            let old = self.finish(part, resident);
            self.give_back(old);
        }
    }

    /// `part` is clean; of it, `resident` has pages. The places that have to make room for those, to be given back.
    fn finish(&self, part: Span, resident: Vec<Span>) -> Vec<Span> {
        let mut state = self.state.lock();
        let State { extents, warm } = &mut *state;
        extents.remove_where(part, |used| used == Use::Cleaning, |_, _| {});
        let resident = resident.into_iter();
        let resident: Vec<Span> = resident
            .filter_map(|found| found.intersection(part))
            .collect();
        if !resident.is_empty() {
            let bytes = resident.iter().map(|found| found.len()).sum();
            let stamp = warm.add(part, bytes, Instant::now());
            for found in resident {
                extents.insert(found, Use::Warm(stamp));
            }
        }
        let old = state.cooling(|warm, _| warm > self.warmth.limit);
        drop(state);
        self.cleaned.notify_all();
        old
    }
}

impl State {
    /// Takes warm places out of the table, the oldest first, as long as `go` says so of the bytes that are warm and of the time since when: to be
    /// given back, and marked as being cleaned until then.
    fn cooling(&mut self, go: impl Fn(u64, Instant) -> bool) -> Vec<Span> {
        let mut places: Vec<Span> = Vec::new();
        for _ in 0..COOL_AT_ONCE {
            let Some((stamp, span, _)) = self
                .warm
                .oldest()
                .filter(|(_, _, since)| go(self.warm.bytes(), *since))
            else {
                break;
            };
            let (before, mut bytes) = (places.len(), 0);
            let is_it = |used| used == Use::Warm(stamp);
            self.extents.remove_where(span, is_it, |part, _| {
                bytes += part.len();
                places.push(part);
            });
            self.warm.take(stamp, bytes);
            for place in places.iter().skip(before) {
                self.extents.insert(*place, Use::Cleaning);
            }
            if bytes == 0 {
                // It cannot be; but then it would be for ever.
                debug_assert!(false, "a batch without extents");
                break;
            }
        }
        places
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_that_touch_are_joined() {
        let span = |first, end| Span::between(first * PAGE, end * PAGE).unwrap();
        let spans = vec![span(9, 10), span(1, 3), span(4, 6), span(3, 4), span(1, 2)];
        assert_eq!(joined(span(5, 8), spans), [span(1, 8), span(9, 10)]);
        assert_eq!(joined(span(2, 3), Vec::new()), [span(2, 3)]);
    }
}
