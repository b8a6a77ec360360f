//! Which span is in which state, who holds it, and when it is made clean: everything that threads share in a window.
//!
//! | state | bytes | who may take it |
//! |---|---|---|
//! | absent | zeros, no pages | anyone |
//! | warm | zeros, with pages (counted, bounded) | anyone |
//! | dirty | a former owner's | whoever cleans it first |
//! | cleaning | being zeroed by the worker | wait: it is bounded by one chunk |
//! | held | the owner's | the owner, until its lease drops |
//!
//! What the bytes are is a parameter: the memfd, or the pages of the model checker, which knows who touches which when.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use super::extents::Extents;
use super::file::SharedFile;
use super::span::Span;
use super::sync::{Condvar, Mutex, Receiver, Sender, channel};
use super::warm::{Ages, Stamp, Warmth};
use super::{Occupancy, Owner};

/// Bytes that are given to one owner after the other.
pub(crate) trait Bytes {
    /// How many there are.
    fn size(&self) -> u64;
    /// Bytes of pages that exist.
    fn resident(&self) -> u64;
    /// Writes zeros over the pages that exist, and says which those are; holes stay holes.
    fn zero_resident(&self, span: Span, resident: impl FnMut(Span));
    /// Gives the pages back; the span reads as zeros.
    fn punch(&self, span: Span) -> rustix::io::Result<()>;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    Held(Owner),
    Dirty,
    Cleaning,
    Warm(Stamp),
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) extents: Extents<Use>,
    /// How warm extents came about.
    pub(super) warm: Ages,
}

/// The spans of some bytes.
#[derive(Debug)]
pub(super) struct Ranges<B> {
    pub(super) bytes: B,
    pub(super) state: Mutex<State>,
    /// Signalled when an extent leaves the states "cleaning" and "dirty".
    pub(super) cleaned: Condvar,
    /// Spans that became dirty, for the worker; `None` ends it.
    pub(super) dirty: Sender<Option<Span>>,
    /// What may stay warm.
    pub(super) warmth: Warmth,
}

/// A span of the window that belongs to whoever holds this. Dropping it makes the span dirty.
#[derive(Debug)]
pub(crate) struct Lease<B: Bytes = SharedFile> {
    ranges: Arc<Ranges<B>>,
    span: Span,
    /// Another process may hold the pages.
    outside: bool,
}

impl<B: Bytes> Ranges<B> {
    /// All clean, and where a worker hears of what is not any more.
    pub(super) fn new(bytes: B, warmth: Warmth) -> (Arc<Self>, Receiver<Option<Span>>) {
        let (dirty, receiver) = channel();
        let ranges = Self {
            bytes,
            state: Mutex::new(State {
                extents: Extents::new(),
                warm: Ages::default(),
            }),
            cleaned: Condvar::new(),
            dirty,
            warmth,
        };
        (Arc::new(ranges), receiver)
    }

    /// See [`super::Window::place`].
    pub(super) fn place(
        self: &Arc<Self>,
        span: Span,
        owner: Owner,
    ) -> Result<Lease<B>, Vec<Owner>> {
        let mut state = self.state.lock();
        loop {
            let mut owners = Vec::new();
            let mut cleaning = false;
            for (_, used) in state.extents.overlapping(span) {
                match used {
                    Use::Held(owner) => owners.push(owner),
                    Use::Cleaning => cleaning = true,
                    Use::Dirty | Use::Warm(_) => {}
                }
            }
            if !owners.is_empty() {
                return Err(owners);
            }
            if !cleaning {
                break;
            }
            self.cleaned.wait(&mut state);
        }
        let mut dirty = Vec::new();
        let State { extents, warm } = &mut *state;
        extents.remove_where(
            span,
            |_| true,
            |part, used| match used {
                Use::Warm(stamp) => warm.take(stamp, part.len()),
                _ => dirty.push(part),
            },
        );
        extents.insert(span, Use::Held(owner));
        drop(state);
        if !dirty.is_empty() {
            // The worker will not say so: it has nothing to clean there any more.
            self.cleaned.notify_all();
        }
        for part in dirty {
            // The pages are about to be used again: keeping them is cheaper than faulting in new ones.
            self.bytes.zero_resident(part, |_| {});
        }
        Ok(Lease {
            ranges: Arc::clone(self),
            span,
            outside: false,
        })
    }

    /// What there is at the moment.
    pub(super) fn occupancy(&self) -> Occupancy {
        let state = self.state.lock();
        let mut occupancy = Occupancy {
            warm: state.warm.bytes(),
            extents: state.extents.len(),
            ..Occupancy::default()
        };
        for (span, used) in state.extents.iter() {
            match used {
                Use::Held(_) => occupancy.held += span.len(),
                Use::Dirty | Use::Cleaning => occupancy.dirty += span.len(),
                Use::Warm(_) => {}
            }
        }
        occupancy.resident = self.bytes.resident();
        occupancy
    }

    /// Waits until nothing is dirty.
    pub(super) fn settle(&self) {
        let mut state = self.state.lock();
        while state
            .extents
            .iter()
            .any(|(_, used)| matches!(used, Use::Dirty | Use::Cleaning))
        {
            self.cleaned.wait(&mut state);
        }
    }

    /// The worker ends, whatever is still dirty.
    pub(super) fn end(&self) {
        let _ = self.dirty.send(None);
    }
}

impl<B: Bytes> Lease<B> {
    /// Where.
    pub(crate) fn span(&self) -> Span {
        self.span
    }

    /// Another process gets the pages. It keeps them when the lease drops, and the next owner of the span gets others.
    pub(crate) fn give_outside(&mut self) {
        self.outside = true;
    }
}

impl Lease {
    /// The bytes as words.
    pub(crate) fn words(&self) -> &[AtomicU64] {
        self.ranges.bytes.words(self.span)
    }
}

impl<B: Bytes> Drop for Lease<B> {
    fn drop(&mut self) {
        if self.outside
            && let Err(error) = self.ranges.bytes.punch(self.span)
        {
            // Whoever gets the span next would share it with a stranger: nobody gets it.
            log::error!(
                "{} bytes of the window are lost: exported pages cannot be given back: {error}",
                self.span.len()
            );
            return;
        }
        {
            let mut state = self.ranges.state.lock();
            state
                .extents
                .remove_where(self.span, |used| matches!(used, Use::Held(_)), |_, _| {});
            state.extents.insert(self.span, Use::Dirty);
        }
        let _ = self.ranges.dirty.send(Some(self.span));
    }
}
