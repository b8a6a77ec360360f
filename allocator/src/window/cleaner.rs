//! The worker that makes freed spans clean before anyone asks for them.
//!
//! It takes dirty parts in chunks, so that whoever waits for one waits for one chunk. While the warm budget lasts, pages are zeroed and
//! kept; beyond it they are given back by punching a hole.
//!
//! It also looks at the window as a whole from time to time. The VMM has mapped all of it, so a guest kernel can write where no blob is,
//! and make pages that nobody is charged for. Such pages are given back.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError};

use super::{Shared, Span, State, Use};

/// Most bytes that are cleaned at a time: bounds how long [`super::Window::place`] waits.
const CHUNK: u64 = 2 << 20;

/// How often the window is looked at as a whole.
const SWEEP_PERIOD: Duration = Duration::from_secs(1);

/// Bytes beyond what is accounted for that are left alone: less than it costs to look closer.
const SWEEP_SLACK: u64 = 16 << 20;

pub(super) fn spawn(
    shared: Arc<Shared>,
    dirty: Receiver<Option<Span>>,
) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name("hostblob-clean".into())
        .spawn(move || {
            loop {
                match dirty.recv_timeout(SWEEP_PERIOD) {
                    Ok(Some(span)) => shared.clean_all(span),
                    Ok(None) | Err(RecvTimeoutError::Disconnected) => return,
                    Err(RecvTimeoutError::Timeout) => shared.sweep(SWEEP_SLACK),
                }
            }
        })
}

impl Shared {
    fn clean_all(&self, span: Span) {
        let mut at = span.start();
        while let Some(chunk) = Span::between(at, span.end().min(at.saturating_add(CHUNK))) {
            self.clean(chunk);
            at = chunk.end();
        }
    }

    /// Gives back pages where nothing is, when there are more than `slack` bytes of them.
    pub(super) fn sweep(&self, slack: u64) {
        let resident = self.file.resident();
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
            gaps.extend(Span::between(at, self.file.size()));
            for &gap in &gaps {
                state.extents.insert(gap, Use::Cleaning);
            }
        }
        log::warn!(
            "the guest has written to {resident} bytes of the window, more than its blobs have: the rest is cleared"
        );
        for gap in gaps {
            if self.file.punch(gap).is_err() {
                self.file.zero_resident(gap, |_| {});
            }
            self.finish(gap, Vec::new());
        }
    }

    /// Cleans the parts of `span` that are still dirty.
    fn clean(&self, span: Span) {
        let mut parts = Vec::new();
        let keep = {
            let mut state = self.state.lock();
            state
                .extents
                .remove_where(span, |used| used == Use::Dirty, |part, _| parts.push(part));
            for &part in &parts {
                state.extents.insert(part, Use::Cleaning);
            }
            state.warm.saturating_add(span.len()) <= self.warm_limit
        };
        for part in parts {
            let mut resident = Vec::new();
            let punched = !keep && self.file.punch(part).is_ok();
            if !punched {
                self.file.zero_resident(part, |warm| resident.push(warm));
            }
            self.finish(part, resident);
        }
    }

    /// `part` is clean; of it, `resident` has pages.
    fn finish(&self, part: Span, resident: Vec<Span>) {
        let mut state = self.state.lock();
        let State { extents, warm } = &mut *state;
        extents.remove_where(part, |used| used == Use::Cleaning, |_, _| {});
        for warm_part in resident
            .into_iter()
            .filter_map(|found| found.intersection(part))
        {
            extents.insert(warm_part, Use::Warm);
            *warm = warm.saturating_add(warm_part.len());
        }
        drop(state);
        self.cleaned.notify_all();
    }
}
