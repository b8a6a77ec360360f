//! Guest memory as the VMM maps it: which ranges there are, and the memory object that the queues use.
//!
//! A VMM sends guest memory in pieces, and takes pieces away and brings them back while firmware moves things. The table
//! belongs to the thread that gets the messages; each change makes a new memory object, and the queues get that.
//!
//! Rules:
//! - Everything is checked before anything changes; a refused message changes nothing.
//! - No range that a file does not have is mapped: touching one is SIGBUS, which ends the process. A VMM that shrinks the file afterwards
//!   can still do that; QEMU's memfds are sealed against it.
//! - Ranges without a descriptor, and read-only ones (firmware), are noted and not mapped: no driver keeps queues or commands there, and a
//!   write to a read-only mapping is SIGSEGV.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use thiserror::Error;
use vm_memory::mmap::FromRangesError;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap};

/// Most ranges. Each costs a descriptor and a mapping of the process; QEMU needs about ten.
pub(in crate::transport) const MAX_RANGES: usize = 512;

/// What the VMM asked for and did not get.
#[derive(Debug, Error)]
pub(in crate::transport) enum DmaError {
    #[error("{size:#x} bytes at {address:#x}: empty, or past the end of the address space")]
    Range { address: u64, size: u64 },
    #[error("{size:#x} bytes at {address:#x} overlap a range that is mapped")]
    Overlap { address: u64, size: u64 },
    #[error("more than {MAX_RANGES} ranges")]
    TooMany,
    #[error("{size:#x} bytes at offset {offset:#x} of a file of {length:#x} bytes")]
    PastTheEnd { offset: u64, size: u64, length: u64 },
    #[error("the descriptor is not a file: {0}")]
    NotAFile(std::io::Error),
    #[error("cannot be mapped: {0}")]
    Map(#[from] FromRangesError),
    #[error("no range is mapped at {address:#x}, {size:#x} bytes")]
    NotMapped { address: u64, size: u64 },
    #[error("{size:#x} bytes at {address:#x} are a part of a range: ranges go whole")]
    Partial { address: u64, size: u64 },
}

#[derive(Debug)]
struct Range {
    size: u64,
    /// None for what is noted only.
    mapped: Option<Arc<GuestRegionMmap>>,
}

/// The ranges, by address.
#[derive(Debug, Default)]
pub(in crate::transport) struct DmaTable {
    ranges: BTreeMap<u64, Range>,
}

impl DmaTable {
    /// Adds a range. `file` is what backs it from `offset` on; it is closed when the range goes, or now if it is not needed.
    pub(in crate::transport) fn map(
        &mut self,
        address: u64,
        size: u64,
        file: Option<(File, u64)>,
        writable: bool,
    ) -> Result<(), DmaError> {
        let end = self.end(address, size)?;
        let before = self.ranges.range(..end).next_back();
        if before.is_some_and(|(start, range)| start.saturating_add(range.size) > address) {
            return Err(DmaError::Overlap { address, size });
        }
        if self.ranges.len() >= MAX_RANGES {
            return Err(DmaError::TooMany);
        }
        let mapped = match file {
            Some((file, offset)) if writable => Some(map_file(address, size, file, offset)?),
            _ => None,
        };
        self.ranges.insert(address, Range { size, mapped });
        Ok(())
    }

    /// Takes the ranges away that lie in `address .. address + size`, at least one.
    pub(in crate::transport) fn unmap(&mut self, address: u64, size: u64) -> Result<(), DmaError> {
        let end = self.end(address, size)?;
        let before = self.ranges.range(..address).next_back();
        let cut_at_start =
            before.is_some_and(|(start, range)| start.saturating_add(range.size) > address);
        let last = self.ranges.range(address..end).next_back();
        let cut_at_end = last.is_some_and(|(start, range)| start.saturating_add(range.size) > end);
        if cut_at_start || cut_at_end {
            return Err(DmaError::Partial { address, size });
        }
        if last.is_none() {
            return Err(DmaError::NotMapped { address, size });
        }
        self.ranges
            .retain(|start, _| !(address..end).contains(start));
        Ok(())
    }

    /// Takes all ranges away.
    pub(in crate::transport) fn clear(&mut self) {
        self.ranges.clear();
    }

    /// The memory object of the ranges as they are now.
    pub(in crate::transport) fn memory(&self) -> GuestMemoryMmap {
        let mapped = self
            .ranges
            .values()
            .filter_map(|range| range.mapped.clone())
            .collect();
        // Sorted and without overlaps, as the table is: only an empty one is an error, and that is the empty memory.
        GuestMemoryMmap::from_arc_regions(mapped).unwrap_or_default()
    }

    fn end(&self, address: u64, size: u64) -> Result<u64, DmaError> {
        address
            .checked_add(size)
            .filter(|_| size > 0)
            .ok_or(DmaError::Range { address, size })
    }
}

fn map_file(
    address: u64,
    size: u64,
    file: File,
    offset: u64,
) -> Result<Arc<GuestRegionMmap>, DmaError> {
    let metadata = file.metadata().map_err(DmaError::NotAFile)?;
    // Of what is not a file (a pipe, a directory) the size means nothing.
    let length = if metadata.is_file() {
        metadata.size()
    } else {
        0
    };
    let past_the_end = || DmaError::PastTheEnd {
        offset,
        size,
        length,
    };
    if offset.checked_add(size).is_none_or(|end| end > length) {
        return Err(past_the_end());
    }
    let bytes = usize::try_from(size).map_err(|_| past_the_end())?;
    let file = FileOffset::new(file, offset);
    Ok(Arc::new(GuestRegionMmap::from_range(
        GuestAddress(address),
        bytes,
        Some(file),
    )?))
}

#[cfg(test)]
mod tests;
