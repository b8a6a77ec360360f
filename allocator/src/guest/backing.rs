//! Blobs in the guest's own pages: RESOURCE_ATTACH_BACKING, RESOURCE_DETACH_BACKING, and the transfers of blobs that have both.
//!
//! The host uses the pages where they are. They come as pieces of the VMM's files, are mapped one after the other by the provider
//! when the GPU first needs them, and are imported as a range of the window is. The guest gets them back when the response to
//! DETACH_BACKING or UNREF comes, which waits until the GPU, and whoever has the blob open, has let go of them.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::Ordering;

use super::blobs::BlobSpec;
use super::transfer::Transfer;
use super::{Fence, Guest};
use crate::Error;
use crate::blob::{Binding, Home, Memory, MemoryKey, Pages};
use crate::context::ContextRef;
use crate::provider::{FileId, Piece, Request};
use crate::quota::Charge;
use crate::window::PAGE;
use crate::work::Pending;

/// Most pieces that the pages of one blob may lie in: 64 MiB of single pages. Each costs a mapping (VMA) of the process.
pub const MAX_PIECES: usize = 16384;

/// Most pieces of all blobs of a guest: half of the mappings that Linux gives a process (`vm.max_map_count`, 65,530).
pub const MAX_GUEST_PIECES: usize = 32768;

impl Guest {
    /// RESOURCE_ATTACH_BACKING: the blob's bytes are these pages, as many as the blob has.
    pub fn attach_backing(&mut self, resource_id: u32, pieces: Vec<Piece>) -> Result<(), Error> {
        let key = self.backed(resource_id)?;
        let memory = self.memories.get(&key).ok_or(Error::NoBacking)?;
        if matches!(memory.home, Home::Pages(_)) {
            return Err(Error::HasBacking(resource_id));
        }
        let pages = self.pages(resource_id, memory.size, pieces, 0)?;
        if let Some(memory) = self.memories.get_mut(&key) {
            memory.home = Home::Pages(pages);
        }
        Ok(())
    }

    /// RESOURCE_DETACH_BACKING: the guest has its pages back when the fence is reached.
    pub fn detach_backing(&mut self, resource_id: u32) -> Result<Fence, Error> {
        let key = self.backed(resource_id)?;
        let memory = self.memories.get(&key).ok_or(Error::NoBacking)?;
        match memory.home {
            Home::Pages(_) => Ok(self.release_pages(key)),
            _ => Err(Error::NoBacking),
        }
    }

    /// The VMM has changed the guest's memory, and the blob's pages are these now, or nowhere. Nothing happens where they are the
    /// same. GPU work under way ends with the old ones.
    pub fn replace_backing(
        &mut self,
        resource_id: u32,
        pieces: Option<Vec<Piece>>,
    ) -> Result<(), Error> {
        let key = self.backed(resource_id)?;
        let size = self.memories.get(&key).map_or(0, |memory| memory.size);
        let gone = self.guest_pieces(resource_id).map_or(0, <[Piece]>::len);
        let pages = pieces.map(|pieces| self.pages(resource_id, size, pieces, gone));
        let now = self.memories.get(&key).map(|memory| &memory.home);
        if let (Some(Ok(pages)), Some(Home::Pages(now))) = (&pages, now)
            && pages.is_same(now)
        {
            return Ok(());
        }
        self.release_pages(key);
        if let (Some(pages), Some(memory)) = (pages.transpose()?, self.memories.get_mut(&key)) {
            memory.home = Home::Pages(pages);
        }
        Ok(())
    }

    /// The guest's pages that a blob is made of, where it is made of nothing else.
    pub fn guest_pieces(&self, resource_id: u32) -> Option<&[Piece]> {
        let key = self.blobs.get(&resource_id)?.memory?;
        match &self.memories.get(&key)?.home {
            Home::Pages(pages) => Some(&pages.pieces),
            _ => None,
        }
    }

    /// TRANSFER_TO_HOST_3D (`to_host`) or TRANSFER_FROM_HOST_3D of a `BLOB_MEM_HOST3D_GUEST`, on `ring` of the context.
    pub fn transfer(
        &mut self,
        context: u32,
        ring: u8,
        resource_id: u32,
        to_host: bool,
        transfer: &Transfer,
    ) -> Result<(), Error> {
        let blob = self
            .blobs
            .get(&resource_id)
            .ok_or(Error::UnknownResource(resource_id))?;
        let shadow = blob.shadow.ok_or(Error::Backing {
            resource: resource_id,
            reason: "transfers are for HOST3D_GUEST blobs: all others have one memory",
        })?;
        let host = blob.memory.ok_or(Error::Orphaned(resource_id))?;
        let size = self.memories.get(&shadow).map_or(0, |memory| memory.size);
        let rows = transfer.rows(size)?;
        let before = self.work.submitted();
        let mut jobs = Some(self.jobs(context, rows.len() as u64)?);
        let guest = self.attach(shadow)?;
        let host = self.attach(host)?;
        for (left, row) in (0..rows.len()).rev().zip(rows) {
            let (source, source_offset, destination, destination_offset) = if to_host {
                (guest, row.guest, host, row.host)
            } else {
                (host, row.host, guest, row.guest)
            };
            let copy = Request::Copy {
                source,
                source_offset,
                destination,
                destination_offset,
                length: row.length,
            };
            // They end in order.
            let last = jobs.take_if(|_| left == 0);
            let pending = last.map_or(Pending::Work, Pending::Job);
            self.work.submit(copy, pending);
        }
        self.note_work(context, ring, before);
        Ok(())
    }

    /// The memory of a blob that is, or is to be, guest pages.
    fn backed(&self, resource_id: u32) -> Result<MemoryKey, Error> {
        let blob = self
            .blobs
            .get(&resource_id)
            .ok_or(Error::UnknownResource(resource_id))?;
        let guest_backed = |key: &MemoryKey| {
            let memory = self.memories.get(key);
            memory.is_some_and(|memory| memory.is_guest_backed())
        };
        blob.shadow
            .or(blob.memory.filter(guest_backed))
            .ok_or(Error::Backing {
                resource: resource_id,
                reason: "HOST3D blobs have no guest pages",
            })
    }

    /// Checks pages for a blob of `size` bytes, which are instead of `gone` pieces. Pieces that continue each other are joined.
    pub(super) fn pages(
        &mut self,
        resource: u32,
        size: u64,
        pieces: Vec<Piece>,
        gone: usize,
    ) -> Result<Box<Pages>, Error> {
        let wrong = |reason| Err(Error::Backing { resource, reason });
        let mut joined: Vec<Piece> = Vec::new();
        let mut length = 0_u64;
        for piece in pieces {
            if !piece.offset.is_multiple_of(PAGE) || !piece.length.is_multiple_of(PAGE) {
                return wrong("not whole pages");
            }
            length = match length.checked_add(piece.length) {
                Some(sum) if piece.length != 0 => sum,
                _ => return wrong("an empty piece, or more than 2^64 bytes"),
            };
            match joined.last_mut() {
                Some(last)
                    if std::sync::Arc::ptr_eq(&last.file, &piece.file)
                        && last.offset.checked_add(last.length) == Some(piece.offset) =>
                {
                    last.length = last.length.saturating_add(piece.length);
                }
                _ => joined.push(piece),
            }
        }
        if length != size {
            return wrong("the pages are not as many bytes as the blob");
        }
        if joined.iter().any(|piece| self.is_ours(piece)) {
            // A VMM may have made the window a part of guest memory. Its bytes belong to leases, which this would go around.
            return wrong("pages of the window");
        }
        self.new_pages(joined, gone, None)
    }

    /// A file of pieces, instead of `gone` others: each piece is a mapping of the provider's process, until it has let go of it.
    pub(super) fn new_pages(
        &mut self,
        pieces: Vec<Piece>,
        gone: usize,
        charge: Option<Charge>,
    ) -> Result<Box<Pages>, Error> {
        let all = self.pieces.load(Ordering::Relaxed) + pieces.len();
        let limits = [
            (pieces.len(), MAX_PIECES),
            (all.saturating_sub(gone), MAX_GUEST_PIECES),
        ];
        for (pieces, limit) in limits {
            if pieces > limit {
                return Err(Error::Fragmented { pieces, limit });
            }
        }
        self.next_file += 1;
        let file = FileId(self.next_file);
        Ok(Pages::new(file, pieces, &self.pieces, charge))
    }

    /// Whether a file is the window, by whatever descriptor. What cannot be told counts as the window.
    fn is_ours(&self, piece: &Piece) -> bool {
        let identity = |file: BorrowedFd<'_>| {
            let stat = rustix::fs::fstat(file).ok()?;
            Some((stat.st_dev, stat.st_ino))
        };
        let theirs = identity(piece.file.as_fd());
        theirs.is_none() || theirs == identity(self.window_fd())
    }

    /// Memory that is, or will be, pages of the guest. It is not charged: the bytes are the guest's.
    pub(super) fn guest_memory(
        &mut self,
        spec: &BlobSpec,
        memory_type: u32,
        pages: Option<Box<Pages>>,
    ) -> MemoryKey {
        self.insert_memory(Memory {
            flags: spec.shareable(),
            binding: Binding::Bound(spec.resource_id),
            ..Memory::new(
                ContextRef::NOBODY,
                spec.size,
                memory_type,
                pages.map_or(Home::Unbacked, Home::Pages),
            )
        })
    }

    /// Takes pages that are not ours from a memory, if it has any. The guest has its own back when the fence is reached: when the GPU,
    /// and whoever has the memory open, has let go of them.
    pub(super) fn release_pages(&mut self, key: MemoryKey) -> Fence {
        let Some(memory) = self
            .memories
            .get_mut(&key)
            .filter(|memory| matches!(memory.home, Home::Pages(_) | Home::Foreign { .. }))
        else {
            return Fence::default();
        };
        if let Some(shared) = &mut memory.shared {
            // Other devices that ask get the next pages.
            shared.lent = None;
        }
        let home = std::mem::replace(&mut memory.home, Home::Unbacked);
        let (Home::Pages(pages) | Home::Foreign { pages, .. }) = home else {
            return Fence::default();
        };
        if let Some(attachment) = memory.attachment.take() {
            memory.released_at = self
                .work
                .submit(Request::Release { attachment }, Pending::Release);
        }
        let mut fence = Fence::at(memory.released_at);
        if pages.known {
            let file = pages.file;
            self.work
                .submit(Request::RemoveFile { file }, Pending::Forget(pages));
        }
        if let Some(until) = self.hide(key) {
            fence.join(self.hold(until));
        }
        fence
    }
}
