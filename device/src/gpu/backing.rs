//! The guest's own pages: the entries of RESOURCE_CREATE_BLOB and RESOURCE_ATTACH_BACKING, made into pieces of the VMM's files.
//!
//! A VMM moves guest memory while firmware runs, and takes ranges away. So the entries are kept, and looked up again when the memory
//! has changed: a blob whose pages are gone has none until they are back.
//!
//! What is kept costs the guest nothing, so it is bounded here: entries that continue each other are kept as one, none is empty, and all resources
//! together have so many.

use std::collections::HashMap;

use hostblob_allocator::provider::Piece;
use hostblob_allocator::{Guest, MAX_GUEST_PIECES, MAX_PIECES};
use hostblob_protocol::virtio_gpu::MemEntry;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
use zerocopy::FromBytes;

use super::fault::Fault;
use super::renderers;
use crate::ratelimit::ContextLimiter;

/// Most entries of one command. They may continue each other; [`MAX_PIECES`] is what remains of them. As many pieces are looked for at most: where
/// the VMM maps its memory in many ranges, one entry lies in all of them, and a command of entries like that would be gigabytes of pieces.
pub(super) const MAX_ENTRIES: usize = 16 * MAX_PIECES;

/// Most entries that are kept, of all resources of a guest. A guest that names one page in 262,144 entries would otherwise have 4 MiB kept for each
/// of its blobs, 128 GiB for all that it may have.
pub(super) const MAX_KEPT_ENTRIES: usize = 1 << 16;

/// Honest guests have a piece for each entry, and reach the limits of pieces first.
const _: () = assert!(MAX_KEPT_ENTRIES >= MAX_GUEST_PIECES + renderers::MAX_PIECES);

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

/// Reads `count` entries, which follow a command's structure. None is empty: no driver sends those, and they would be a command's bytes for nothing.
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
    let (announced, _) =
        <[MemEntry]>::ref_from_prefix_with_elems(bytes, count).map_err(|_| Fault::Truncated {
            needed: count.saturating_mul(size_of::<MemEntry>()),
            available: bytes.len(),
        })?;
    let mut entries = Vec::new();
    for entry in announced {
        if entry.length.get() == 0 {
            return Err(Fault::Field {
                field: "length",
                value: 0,
                expected: "entries that are not empty",
            });
        }
        append(&mut entries, entry.addr.get(), entry.length.get());
    }
    Ok(entries)
}

/// Puts an entry behind others. One that continues the last becomes a part of it, and an empty one is nothing.
pub(super) fn append(entries: &mut Vec<MemEntry>, addr: u64, length: u32) {
    if length == 0 {
        return;
    }
    if let Some(last) = entries.last_mut()
        && last.addr.get().checked_add(last.length.get().into()) == Some(addr)
        && let Some(sum) = last.length.get().checked_add(length)
    {
        last.length = sum.into();
        return;
    }
    entries.push(MemEntry {
        addr: addr.into(),
        length: length.into(),
        padding: 0.into(),
    });
}

/// The pieces of files that the entries name.
pub(super) fn pieces(entries: &[MemEntry], pages: &dyn GuestPages) -> Result<Vec<Piece>, Fault> {
    let mut pieces = Vec::new();
    for entry in entries {
        let (mut address, mut left) = (entry.addr.get(), u64::from(entry.length.get()));
        while left > 0 {
            let piece = pages
                .piece(address, left)
                .filter(|piece| piece.length > 0)
                .ok_or(Fault::NotMemory { address })?;
            if pieces.len() >= MAX_ENTRIES {
                return Err(Fault::Limit("pieces are in one command", MAX_ENTRIES));
            }
            left = left.saturating_sub(piece.length);
            address = address.saturating_add(piece.length);
            pieces.push(piece);
        }
    }
    Ok(pieces)
}

/// The entries of the resources that have guest pages, at most [`MAX_KEPT_ENTRIES`].
#[derive(Debug, Default)]
pub(super) struct Backings {
    entries: HashMap<u32, Vec<MemEntry>>,
    /// How many they are together.
    kept: usize,
}

impl Backings {
    /// Whether so many more can be kept.
    pub(super) fn check_room(&self, entries: &[MemEntry]) -> Result<(), Fault> {
        if self.kept.saturating_add(entries.len()) > MAX_KEPT_ENTRIES {
            return Err(Fault::Limit(
                "pieces of guest memory are named",
                MAX_KEPT_ENTRIES,
            ));
        }
        Ok(())
    }

    /// There is room for them.
    pub(super) fn insert(&mut self, resource: u32, entries: Vec<MemEntry>) {
        self.remove(resource);
        self.kept = self.kept.saturating_add(entries.len());
        self.entries.insert(resource, entries);
    }

    /// Puts one entry behind those of a resource. One that was saved may be empty, or continue the last: earlier hosts kept them as they came.
    pub(super) fn append(&mut self, resource: u32, addr: u64, length: u32) -> Result<(), Fault> {
        let entries = self.entries.entry(resource).or_default();
        let before = entries.len();
        append(entries, addr, length);
        let more = entries.len().saturating_sub(before);
        self.kept = self.kept.saturating_add(more);
        self.check_room(&[])
    }

    pub(super) fn remove(&mut self, resource: u32) {
        let gone = self.entries.remove(&resource);
        self.kept = self.kept.saturating_sub(gone.map_or(0, |gone| gone.len()));
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// How many entries there are.
    #[cfg(test)]
    pub(super) fn kept(&self) -> usize {
        self.kept
    }

    /// By resource.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &[MemEntry])> {
        let entries = self.entries.iter();
        entries.map(|(resource, entries)| (*resource, entries.as_slice()))
    }

    /// The guest's memory is `pages` now.
    pub(super) fn changed(
        &self,
        guest: &mut Guest,
        pages: &dyn GuestPages,
        log: &mut ContextLimiter,
    ) {
        let ours = |(resource, _): &(u32, _)| guest.has_resource(*resource);
        let ours: Vec<_> = self.iter().filter(ours).collect();
        for (resource, entries) in ours {
            let found = pieces(entries, pages);
            if let Err(fault) = &found {
                let line = format_args!("resource {resource} has lost its pages: {fault}");
                log.warn(None, line);
            }
            if let Err(error) = guest.replace_backing(resource, found.ok()) {
                let line = format_args!("resource {resource} has lost its pages: {error}");
                log.warn(None, line);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::sync::Arc;

    use vm_memory::FileOffset;
    use zerocopy::IntoBytes;

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

    /// The entries of a command, as they are kept.
    fn kept(announced: &[MemEntry]) -> Result<Vec<(u64, u32)>, Fault> {
        let count = u32::try_from(announced.len()).unwrap();
        let entries = entries(announced.as_bytes(), count)?;
        let pairs = entries.iter();
        Ok(pairs.map(|e| (e.addr.get(), e.length.get())).collect())
    }

    #[test]
    fn entries_that_continue_each_other_are_kept_as_one() {
        let pages: Vec<_> = (0..MAX_ENTRIES as u64)
            .map(|page| entry(0x1000 * page, 0x1000))
            .collect();
        assert_eq!(kept(&pages), Ok(vec![(0, 0x4000_0000)]));
        let apart = [(0, 0x1000), (0x2000, 0x1000), (0x1000, 0x1000), (0, 1)];
        assert_eq!(
            kept(&apart.map(|(addr, length)| entry(addr, length))),
            Ok(apart.to_vec())
        );
        // A length has 32 bits, and an address 64.
        let large = [(0, 0xffff_f000), (0xffff_f000, 0xfff), (0xffff_ffff, 1)];
        assert_eq!(
            kept(&large.map(|(addr, length)| entry(addr, length))),
            Ok(vec![(0, u32::MAX), (0xffff_ffff, 1)])
        );
        let last = [(u64::MAX, 1), (0, 1)];
        assert_eq!(
            kept(&last.map(|(addr, length)| entry(addr, length))),
            Ok(last.to_vec())
        );
    }

    #[test]
    fn an_empty_entry_is_refused_wherever_it_is() {
        for empty in [0, 1, 2] {
            let mut entries = [0, 0x1000, 0x2000].map(|addr| entry(addr, 0x1000));
            entries[empty].length = 0.into();
            let refused = kept(&entries);
            assert!(
                matches!(
                    refused,
                    Err(Fault::Field {
                        field: "length",
                        value: 0,
                        ..
                    })
                ),
                "{refused:?}"
            );
        }
    }

    /// Memory of which each byte is a range of its own.
    struct Crumbs(Arc<File>);

    impl GuestPages for Crumbs {
        fn piece(&self, address: u64, _: u64) -> Option<Piece> {
            Some(Piece {
                file: Arc::clone(&self.0),
                offset: address,
                length: 1,
            })
        }
    }

    #[test]
    fn memory_in_many_ranges_makes_so_many_pieces_of_a_command_and_no_more() {
        let crumbs = Crumbs(Arc::new(file(0)));
        let most = u32::try_from(MAX_ENTRIES).unwrap();
        let whole = pieces(&[entry(0, most)], &crumbs).unwrap();
        assert_eq!(whole.len(), MAX_ENTRIES);
        let more = pieces(&[entry(0, most), entry(0, u32::MAX)], &crumbs);
        assert_eq!(
            more.map(|pieces| pieces.len()),
            Err(Fault::Limit("pieces are in one command", MAX_ENTRIES))
        );
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
