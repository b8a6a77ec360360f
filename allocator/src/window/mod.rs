//! Where the guest sees bytes: one sparse memfd, leased in spans.
//!
//! Rules:
//! - **The window is the memory.** A lease is a span of the memfd that one memory owns; nothing else refers to those bytes.
//! - **Zero on reuse.** [`Window::place`] returns a lease that reads as zeros. A dropped lease is dirty; the cleaning worker
//!   makes it clean, and whoever places first cleans what the worker has not reached.
//! - **No lock across work.** The table's lock is held for bookkeeping alone; zeroing and hole punching
//!   happen outside, on spans that the table has marked.
//!
//! | state | bytes | who may take it |
//! |---|---|---|
//! | absent | zeros, no pages | anyone |
//! | warm | zeros, with pages (counted, bounded) | anyone |
//! | dirty | a former owner's | whoever cleans it first |
//! | cleaning | being zeroed by the worker | wait: it is bounded by one chunk |
//! | held | the owner's | the owner, until its lease drops |

mod cleaner;
mod extents;
mod file;
mod parking;
mod span;
mod warm;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::thread::JoinHandle;

use crossbeam_channel::Sender;
use parking_lot::{Condvar, Mutex};

pub use span::{PAGE, Span, SpanError};
pub use warm::Warmth;

use extents::Extents;
pub(crate) use file::SharedFile;
pub(crate) use parking::{Parking, ParkingSpot};
use warm::{Ages, Stamp};

/// Who holds a span: a number of the caller's.
pub type Owner = u64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    Held(Owner),
    Dirty,
    Cleaning,
    Warm(Stamp),
}

#[derive(Debug)]
struct State {
    extents: Extents<Use>,
    /// How warm extents came about.
    warm: Ages,
}

#[derive(Debug)]
struct Shared {
    file: SharedFile,
    state: Mutex<State>,
    /// Signalled when an extent leaves the state "cleaning".
    cleaned: Condvar,
    /// Spans that became dirty, for the worker; `None` ends it.
    dirty: Sender<Option<Span>>,
    /// What may stay warm.
    warmth: Warmth,
}

/// The window of one guest.
#[derive(Debug)]
pub struct Window {
    shared: Arc<Shared>,
    worker: Option<JoinHandle<()>>,
}

/// A span of the window that belongs to whoever holds this. Dropping it makes the span dirty.
#[derive(Debug)]
pub struct Lease {
    shared: Arc<Shared>,
    span: Span,
    /// Another process may hold the pages.
    outside: bool,
}

/// What the window is made of at the moment, for people and tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Occupancy {
    /// Bytes that leases hold.
    pub held: u64,
    /// Bytes that wait for cleaning, or are being cleaned.
    pub dirty: u64,
    /// Bytes that are clean and have pages.
    pub warm: u64,
    /// Bytes of pages that the memfd holds in all.
    pub resident: u64,
    /// Entries of the table.
    pub extents: usize,
}

impl Window {
    /// A window of `size` bytes (a multiple of [`PAGE`], not 0), all zeros, that keeps clean pages for reuse as
    /// `warmth` says.
    ///
    /// Fails where the host refuses a memfd, a mapping of that size, or a thread.
    pub fn new(size: u64, warmth: Warmth) -> std::io::Result<Self> {
        Self::over(SharedFile::new("hostblob-window", size)?, warmth)
    }

    /// As [`Window::new`], over a memfd of the caller: of exactly `size` bytes, sealed with `F_SEAL_SHRINK` and not against writing. What it
    /// holds is thrown away.
    pub fn adopt(memfd: OwnedFd, size: u64, warmth: Warmth) -> std::io::Result<Self> {
        Self::over(SharedFile::adopt(memfd, size)?, warmth)
    }

    fn over(file: SharedFile, warmth: Warmth) -> std::io::Result<Self> {
        let (dirty, receiver) = crossbeam_channel::unbounded();
        let shared = Arc::new(Shared {
            file,
            state: Mutex::new(State {
                extents: Extents::new(),
                warm: Ages::default(),
            }),
            cleaned: Condvar::new(),
            dirty,
            warmth,
        });
        let worker = cleaner::spawn(Arc::clone(&shared), receiver)?;
        Ok(Self {
            shared,
            worker: Some(worker),
        })
    }

    /// Bytes of the window.
    pub fn size(&self) -> u64 {
        self.shared.file.size()
    }

    /// The first byte in the addresses of this process, for a VMM that lives here too. All of the window is mapped there, for reading
    /// and writing, until this value drops.
    pub fn address(&self) -> NonNull<u8> {
        self.shared.file.address()
    }

    /// Takes a span for `owner`: it reads as zeros.
    ///
    /// Where others hold any part of it, their numbers come back and nothing is changed. Waits for the cleaning
    /// worker at most as long as one chunk takes.
    pub fn place(&self, span: Span, owner: Owner) -> Result<Lease, Vec<Owner>> {
        let mut state = self.shared.state.lock();
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
            self.shared.cleaned.wait(&mut state);
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
        for part in dirty {
            // The pages are about to be used again: keeping them is cheaper than faulting in new ones.
            self.shared.file.zero_resident(part, |_| {});
        }
        Ok(Lease {
            shared: Arc::clone(&self.shared),
            span,
            outside: false,
        })
    }

    /// What the window is made of.
    pub fn occupancy(&self) -> Occupancy {
        let state = self.shared.state.lock();
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
        occupancy.resident = self.shared.file.resident();
        occupancy
    }

    /// Waits until nothing is dirty: for tests and for measurements of memory.
    pub fn settle(&self) {
        let mut state = self.shared.state.lock();
        while state
            .extents
            .iter()
            .any(|(_, used)| matches!(used, Use::Dirty | Use::Cleaning))
        {
            self.shared.cleaned.wait(&mut state);
        }
    }

    pub(crate) fn file(&self) -> &SharedFile {
        &self.shared.file
    }
}

impl AsFd for Window {
    /// The memfd, for the VMM to map and for a provider to attach.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.file.as_fd()
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        let _ = self.shared.dirty.send(None);
        if let Some(worker) = self.worker.take() {
            let _ = worker.join();
        }
    }
}

impl Lease {
    /// Where.
    pub fn span(&self) -> Span {
        self.span
    }

    /// Another process gets the pages. It keeps them when the lease drops, and the next owner of the span gets others.
    pub(crate) fn give_outside(&mut self) {
        self.outside = true;
    }

    /// The bytes as words.
    pub(crate) fn words(&self) -> &[AtomicU64] {
        self.shared.file.words(self.span)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.outside
            && let Err(error) = self.shared.file.punch(self.span)
        {
            // Whoever gets the span next would share it with a stranger: nobody gets it.
            log::error!(
                "{} bytes of the window are lost: exported pages cannot be given back: {error}",
                self.span.len()
            );
            return;
        }
        {
            let mut state = self.shared.state.lock();
            state
                .extents
                .remove_where(self.span, |used| matches!(used, Use::Held(_)), |_, _| {});
            state.extents.insert(self.span, Use::Dirty);
        }
        let _ = self.shared.dirty.send(Some(self.span));
    }
}

#[cfg(test)]
mod tests;
