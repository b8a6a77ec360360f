//! Where bytes live while their blob is not in the window: a second sparse memfd that no guest ever sees.
//!
//! A memory that was never mapped, or whose place another blob now needs, is parked here. Made on first
//! use: most guests never park anything. One has a table of limited size; a guest that parks more gets another.

use std::sync::Arc;

use offset_allocator::{Allocation, Allocator};
use parking_lot::Mutex;

use super::file::SharedFile;
use super::span::{PAGE, Span};
use crate::provider::FileId;

/// Parked memories of a file at a time: bounds the table, which is made at once, with 32 bytes for each.
/// Tests have few memories, and want more than one file.
const MAX_PARKED: u32 = if cfg!(test) { 16 } else { 32768 };

/// A parking file of one guest.
#[derive(Debug)]
pub(crate) struct Parking(Arc<Inner>);

struct Inner {
    /// What the provider knows it by.
    name: FileId,
    file: SharedFile,
    spots: Mutex<Allocator>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parking")
            .field("file", &self.file)
            .finish_non_exhaustive()
    }
}

/// A span of the parking file that belongs to whoever holds this. Dropping it gives its pages back.
pub(crate) struct ParkingSpot {
    parking: Arc<Inner>,
    span: Span,
    allocation: Allocation,
    /// Another process may hold the pages.
    outside: bool,
}

impl std::fmt::Debug for ParkingSpot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("ParkingSpot").field(&self.span).finish()
    }
}

impl Parking {
    /// Room for `size` bytes: what the quota allows, and as much again for fragmentation.
    pub(crate) fn new(name: FileId, size: u64) -> std::io::Result<Self> {
        let pages = u32::try_from(size.div_ceil(PAGE))
            .unwrap_or(u32::MAX)
            .saturating_mul(2)
            .max(1);
        Ok(Self(Arc::new(Inner {
            name,
            file: SharedFile::new("hostblob-parking", u64::from(pages) * PAGE)?,
            spots: Mutex::new(Allocator::with_max_allocs(
                pages,
                MAX_PARKED.min(pages.saturating_add(2)),
            )),
        })))
    }

    pub(crate) fn file(&self) -> &SharedFile {
        &self.0.file
    }

    /// `length` bytes (whole pages) that read as zeros; `None` when the file is full.
    pub(crate) fn park(&self, length: u64) -> Option<ParkingSpot> {
        let pages = u32::try_from(length / PAGE).ok()?;
        let allocation = self.0.spots.lock().allocate(pages)?;
        match Span::new(
            u64::from(allocation.offset) * PAGE,
            length,
            self.0.file.size(),
        ) {
            Ok(span) => Some(ParkingSpot {
                parking: Arc::clone(&self.0),
                span,
                allocation,
                outside: false,
            }),
            Err(_) => {
                self.0.spots.lock().free(allocation);
                None
            }
        }
    }
}

impl ParkingSpot {
    /// The name of its file.
    pub(crate) fn name(&self) -> FileId {
        self.parking.name
    }

    pub(crate) fn span(&self) -> Span {
        self.span
    }

    pub(crate) fn file(&self) -> &SharedFile {
        &self.parking.file
    }

    /// Another process gets the pages. It keeps them when the spot drops, and the next owner gets others.
    pub(crate) fn give_outside(&mut self) {
        self.outside = true;
    }
}

impl Drop for ParkingSpot {
    fn drop(&mut self) {
        if let Err(error) = self.parking.file.punch(self.span) {
            if self.outside {
                // Whoever gets the spot next would share it with a stranger: nobody gets it.
                log::error!("a parking spot is lost: exported pages cannot be given back: {error}");
                return;
            }
            self.parking.file.zero_resident(self.span, |_| {});
        }
        self.parking.spots.lock().free(self.allocation);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;

    #[test]
    fn a_spot_is_zero_and_gives_its_pages_back() {
        let parking = Parking::new(FileId(1), 8 * PAGE).unwrap();
        for _ in 0..100 {
            let spot = parking.park(8 * PAGE).unwrap();
            let words = spot.file().words(spot.span());
            assert!(words.iter().all(|word| word.load(Ordering::Relaxed) == 0));
            words
                .iter()
                .for_each(|word| word.store(!0, Ordering::Relaxed));
            drop(spot);
            assert_eq!(parking.file().resident(), 0);
        }
    }

    #[test]
    fn full_is_refused_and_recovers() {
        let parking = Parking::new(FileId(1), 4 * PAGE).unwrap();
        let spots: Vec<_> = std::iter::from_fn(|| parking.park(2 * PAGE)).collect();
        assert!(spots.len() >= 2);
        assert!(parking.park(2 * PAGE).is_none());
        assert!(parking.park(0).is_none());
        drop(spots);
        assert!(parking.park(4 * PAGE).is_some());
    }
}
