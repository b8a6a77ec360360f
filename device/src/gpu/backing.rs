//! The guest's own pages: the entries of RESOURCE_CREATE_BLOB and RESOURCE_ATTACH_BACKING, made into pieces of the VMM's files.
//!
//! A VMM moves guest memory while firmware runs, and takes ranges away. So the entries are kept, and looked up again when the memory
//! has changed: a blob whose pages are gone has none until they are back.

use std::collections::HashMap;

use hostblob_allocator::provider::Piece;
use hostblob_allocator::{Guest, MAX_PIECES};
use hostblob_protocol::virtio_gpu::MemEntry;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
use zerocopy::FromBytes;

use super::fault::Fault;

/// Most entries of one command. They may continue each other; [`MAX_PIECES`] is what remains of them.
pub(super) const MAX_ENTRIES: usize = 16 * MAX_PIECES;

/// Guest memory, as files.
pub trait GuestPages {
    /// The piece of a file that begins at a guest-physical address, with at most `length` bytes; `None` where no file is.
    fn piece(&self, address: u64, length: u64) -> Option<Piece>;
}

/// A guest whose memory nobody gave us.
#[derive(Debug, Clone, Copy)]
pub struct NoPages;

impl GuestPages for NoPages {
    fn piece(&self, _: u64, _: u64) -> Option<Piece> {
        None
    }
}

impl GuestPages for GuestMemoryMmap {
    fn piece(&self, address: u64, length: u64) -> Option<Piece> {
        let region = self.find_region(GuestAddress(address))?;
        let file = region.file_offset()?;
        let within = address.checked_sub(region.start_addr().0)?;
        let left = region.len().checked_sub(within)?;
        Some(Piece {
            file: file.arc().clone(),
            offset: file.start().checked_add(within)?,
            length: length.min(left),
        })
    }
}

/// Reads `count` entries, which follow a command's structure.
pub(super) fn entries(bytes: &[u8], count: u32) -> Result<Vec<MemEntry>, Fault> {
    let too_many = Fault::Field {
        field: "nr_entries",
        value: count.into(),
        expected: "at most 262144",
    };
    let count = usize::try_from(count).map_err(|_| too_many.clone())?;
    if count > MAX_ENTRIES {
        return Err(too_many);
    }
    match <[MemEntry]>::ref_from_prefix_with_elems(bytes, count) {
        Ok((entries, _)) => Ok(entries.to_vec()),
        Err(_) => Err(Fault::Truncated {
            needed: count.saturating_mul(size_of::<MemEntry>()),
            available: bytes.len(),
        }),
    }
}

/// The pieces of files that the entries name.
pub(super) fn pieces(entries: &[MemEntry], pages: &dyn GuestPages) -> Result<Vec<Piece>, Fault> {
    let mut pieces = Vec::with_capacity(entries.len());
    for entry in entries {
        let (mut address, mut left) = (entry.addr.get(), u64::from(entry.length.get()));
        while left > 0 {
            let piece = pages
                .piece(address, left)
                .filter(|piece| piece.length > 0)
                .ok_or(Fault::NotMemory { address })?;
            left = left.saturating_sub(piece.length);
            address = address.saturating_add(piece.length);
            pieces.push(piece);
        }
    }
    Ok(pieces)
}

/// The entries of the resources that have guest pages.
#[derive(Debug, Default)]
pub(super) struct Backings(pub(super) HashMap<u32, Vec<MemEntry>>);

impl Backings {
    pub(super) fn insert(&mut self, resource: u32, entries: Vec<MemEntry>) {
        self.0.insert(resource, entries);
    }

    pub(super) fn remove(&mut self, resource: u32) {
        self.0.remove(&resource);
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// The guest's memory is `pages` now.
    pub(super) fn changed(&self, guest: &mut Guest, pages: &dyn GuestPages) {
        let ours = |(resource, _): &(&u32, _)| guest.has_resource(**resource);
        let ours: Vec<_> = self.0.iter().filter(ours).collect();
        for (&resource, entries) in ours {
            let found = pieces(entries, pages);
            if let Err(fault) = &found {
                log::warn!("resource {resource} has lost its pages: {fault}");
            }
            if let Err(error) = guest.replace_backing(resource, found.ok()) {
                log::warn!("resource {resource} has lost its pages: {error}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use vm_memory::FileOffset;

    use super::*;

    fn file(size: u64) -> File {
        let flags = rustix::fs::MemfdFlags::CLOEXEC;
        let file = File::from(rustix::fs::memfd_create("memory", flags).unwrap());
        file.set_len(size).unwrap();
        file
    }

    fn memory() -> GuestMemoryMmap {
        GuestMemoryMmap::from_ranges_with_files([
            (
                GuestAddress(0),
                0x4000,
                Some(FileOffset::new(file(0x8000), 0x1000)),
            ),
            (
                GuestAddress(0x4000),
                0x4000,
                Some(FileOffset::new(file(0x4000), 0)),
            ),
            (GuestAddress(0x10000), 0x1000, None),
        ])
        .unwrap()
    }

    fn entry(addr: u64, length: u32) -> MemEntry {
        MemEntry {
            addr: addr.into(),
            length: length.into(),
            padding: 0.into(),
        }
    }

    #[test]
    fn entries_become_pieces_of_files() {
        let found = pieces(&[entry(0x3000, 0x2000), entry(0, 0x1000)], &memory()).unwrap();
        let found: Vec<_> = found.iter().map(|p| (p.offset, p.length)).collect();
        assert_eq!(found, [(0x4000, 0x1000), (0, 0x1000), (0x1000, 0x1000)]);
    }

    #[test]
    fn what_is_not_memory_of_a_file_is_refused() {
        for (address, length) in [
            (0x7000, 0x2000),
            (0x8000, 0x1000),
            (0x10000, 0x1000),
            (u64::MAX, 0x1000),
            (u64::MAX - 0xfff, u32::MAX),
        ] {
            let found = pieces(&[entry(address, length)], &memory());
            assert!(
                matches!(found, Err(Fault::NotMemory { .. })),
                "{address:#x}"
            );
        }
        assert!(pieces(&[entry(0, 0x1000)], &NoPages).is_err());
    }
}
