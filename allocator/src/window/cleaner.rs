//! The worker that makes freed spans clean before anyone asks for them.
//!
//! It takes dirty parts in chunks, so that whoever waits for one waits for one chunk. While the warm budget lasts, pages are zeroed and
//! kept; beyond it they are given back by punching a hole.

use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam_channel::Receiver;

use super::{Shared, Span, State, Use};

/// Most bytes that are cleaned at a time: bounds how long [`super::Window::place`] waits.
const CHUNK: u64 = 2 << 20;

pub(super) fn spawn(
    shared: Arc<Shared>,
    dirty: Receiver<Option<Span>>,
) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name("hostblob-clean".into())
        .spawn(move || {
            while let Ok(Some(span)) = dirty.recv() {
                let mut at = span.start();
                while let Some(chunk) = Span::between(at, span.end().min(at.saturating_add(CHUNK)))
                {
                    shared.clean(chunk);
                    at = chunk.end();
                }
            }
        })
}

impl Shared {
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
