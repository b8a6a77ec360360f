//! Where the guest sees bytes: one sparse memfd, leased in spans.
//!
//! Rules:
//! - **The window is the memory.** A lease is a span of the memfd that one memory owns; nothing else refers to those bytes.
//! - **Zero on reuse.** `Window::place` returns a lease that reads as zeros. A dropped lease is dirty; the cleaning worker
//!   makes it clean, and whoever places first cleans what the worker has not reached.
//! - **No lock across work.** The table's lock is held for bookkeeping alone; zeroing and hole punching
//!   happen outside, on spans that the table has marked: see `ranges.rs`.

mod cleaner;
mod extents;
mod file;
mod parking;
mod ranges;
mod span;
mod sync;
mod warm;

#[cfg(all(test, loom))]
mod interleavings;
#[cfg(test)]
mod tests;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::thread::JoinHandle;

pub use span::{PAGE, Span, SpanError};
pub use warm::Warmth;

pub(crate) use file::SharedFile;
pub(crate) use parking::{Parking, ParkingSpot};
pub(crate) use ranges::Lease;
use ranges::Ranges;

/// Who holds a span: a number of the caller's.
pub(crate) type Owner = u64;

/// The window of one guest.
#[derive(Debug)]
pub struct Window {
    ranges: Arc<Ranges<SharedFile>>,
    worker: Option<JoinHandle<()>>,
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
        let (ranges, dirty) = Ranges::new(file, warmth);
        let worker = cleaner::spawn(Arc::clone(&ranges), dirty)?;
        Ok(Self {
            ranges,
            worker: Some(worker),
        })
    }

    /// Bytes of the window.
    pub fn size(&self) -> u64 {
        self.ranges.bytes.size()
    }

    /// The first byte in the addresses of this process, for a VMM that lives here too. All of the window is mapped there, for reading
    /// and writing, until this value drops.
    pub fn address(&self) -> NonNull<u8> {
        self.ranges.bytes.address()
    }

    /// Takes a span for `owner`: it reads as zeros.
    ///
    /// Where others hold any part of it, their numbers come back and nothing is changed. Waits for the cleaning
    /// worker at most as long as one chunk takes.
    pub(crate) fn place(&self, span: Span, owner: Owner) -> Result<Lease, Vec<Owner>> {
        self.ranges.place(span, owner)
    }

    /// What the window is made of.
    pub fn occupancy(&self) -> Occupancy {
        self.ranges.occupancy()
    }

    /// Waits until nothing is dirty: for tests and for measurements of memory.
    pub fn settle(&self) {
        self.ranges.settle();
    }

    pub(crate) fn file(&self) -> &SharedFile {
        &self.ranges.bytes
    }
}

impl AsFd for Window {
    /// The memfd, for the VMM to map and for a provider to attach.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ranges.bytes.as_fd()
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        self.ranges.end();
        if let Some(worker) = self.worker.take() {
            let _ = worker.join();
        }
    }
}
