//! Guest memory as the VMM sends it, and the VMM's own addresses for it.
//!
//! vhost-user names places in queues by the VMM's virtual addresses. The table that translates them belongs to the message thread, together
//! with the ranges themselves.

use std::fs::File;
use std::os::fd::AsFd;

use hostblob_allocator::exports::is_dma_buf;
use vhost::vhost_user::message::VhostUserMemoryRegion;
use vm_memory::GuestMemoryMmap;

use crate::transport::vfio_user::dma::{DmaError, DmaTable};

/// A range by the VMM's addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range {
    user: u64,
    guest: u64,
    size: u64,
}

impl Range {
    fn of(region: &VhostUserMemoryRegion) -> Self {
        Self {
            user: region.user_addr,
            guest: region.guest_phys_addr,
            size: region.memory_size,
        }
    }
}

/// All of guest memory.
#[derive(Debug, Default)]
pub(super) struct MemoryTable {
    ranges: DmaTable,
    users: Vec<Range>,
}

impl MemoryTable {
    /// A table of these ranges.
    pub(super) fn new(
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
    ) -> Result<Self, DmaError> {
        let mut table = Self::default();
        for (region, file) in regions.iter().zip(files) {
            table.add(region, file)?;
        }
        Ok(table)
    }

    /// Adds a range.
    pub(super) fn add(
        &mut self,
        region: &VhostUserMemoryRegion,
        file: File,
    ) -> Result<(), DmaError> {
        // A dma-buf of a host process that the VMM mapped for us. Its length cannot be checked here, and the device has no business there.
        let is_dma_buf = is_dma_buf(file.as_fd()).unwrap_or(false);
        let file = (!is_dma_buf).then_some((file, region.mmap_offset));
        let range = Range::of(region);
        self.ranges.map(range.guest, range.size, file, true)?;
        self.users.push(range);
        Ok(())
    }

    /// Takes exactly this range away.
    pub(super) fn remove(&mut self, region: &VhostUserMemoryRegion) -> Result<(), DmaError> {
        let range = Range::of(region);
        let Some(at) = self.users.iter().position(|known| *known == range) else {
            return Err(DmaError::NotMapped {
                address: range.guest,
                size: range.size,
            });
        };
        self.ranges.unmap(range.guest, range.size)?;
        self.users.swap_remove(at);
        Ok(())
    }

    /// The guest's address for an address of the VMM.
    pub(super) fn guest_address(&self, user: u64) -> Option<u64> {
        self.users.iter().find_map(|range| {
            let offset = user.checked_sub(range.user)?;
            // The sum does not overflow: the range was mapped.
            (offset < range.size).then(|| range.guest.wrapping_add(offset))
        })
    }

    /// The memory object of the ranges as they are now.
    pub(super) fn memory(&self) -> GuestMemoryMmap {
        self.ranges.memory()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(guest: u64, user: u64, size: u64, offset: u64) -> VhostUserMemoryRegion {
        VhostUserMemoryRegion {
            guest_phys_addr: guest,
            memory_size: size,
            user_addr: user,
            mmap_offset: offset,
        }
    }

    fn file(size: u64) -> File {
        let flags = rustix::fs::MemfdFlags::CLOEXEC;
        let file = File::from(rustix::fs::memfd_create("memory", flags).unwrap());
        file.set_len(size).unwrap();
        file
    }

    #[test]
    fn addresses_are_translated_in_the_range_that_has_them() {
        let regions = [
            region(0, 0x7000_0000, 0x10000, 0),
            region(0x10_0000, 0x5000_0000, 0x1000, 0x1000),
        ];
        let table = MemoryTable::new(&regions, vec![file(0x10000), file(0x2000)]).unwrap();
        assert_eq!(table.guest_address(0x7000_0000), Some(0));
        assert_eq!(table.guest_address(0x7000_ffff), Some(0xffff));
        assert_eq!(table.guest_address(0x7001_0000), None);
        assert_eq!(table.guest_address(0x5000_0fff), Some(0x10_0fff));
        assert_eq!(table.guest_address(0x5000_1000), None);
        assert_eq!(table.guest_address(u64::MAX), None);
        assert_eq!(table.guest_address(0), None);
    }

    #[test]
    fn a_range_goes_as_it_came_and_nothing_else_does() {
        let one = region(0x1000, 0x7000_0000, 0x1000, 0);
        let mut table = MemoryTable::new(&[one], vec![file(0x1000)]).unwrap();
        for other in [
            region(0x1000, 0x7000_0000, 0x2000, 0),
            region(0x1000, 0x7000_1000, 0x1000, 0),
            region(0x2000, 0x7000_0000, 0x1000, 0),
        ] {
            assert!(table.remove(&other).is_err());
        }
        table.remove(&one).unwrap();
        assert_eq!(table.guest_address(0x7000_0000), None);
        table.add(&one, file(0x1000)).unwrap();
        assert_eq!(table.guest_address(0x7000_0000), Some(0x1000));
    }

    #[test]
    fn ranges_that_cannot_be_are_refused() {
        for (bad, length) in [
            (region(u64::MAX - 0xfff, 0, 0x2000, 0), 0x2000),
            (region(0, 0, 0, 0), 0x1000),
            (region(0, 0, 0x2000, 0), 0x1000),
            (region(0, 0, 0x1000, u64::MAX), 0x1000),
            (region(0, 0, 0x1000, 1), 0x2000),
        ] {
            assert!(MemoryTable::new(&[bad], vec![file(length)]).is_err());
        }
        let overlap = [region(0, 0, 0x2000, 0), region(0x1000, 0, 0x1000, 0)];
        assert!(MemoryTable::new(&overlap, vec![file(0x2000), file(0x1000)]).is_err());
    }
}
