//! Blobs in the guest's own pages: RESOURCE_ATTACH_BACKING, RESOURCE_DETACH_BACKING, and the transfers of blobs that have both.
//!
//! The host uses the pages where they are. They come as pieces of the VMM's files, are mapped one after the other by the provider
//! when the GPU first needs them, and are imported as a range of the window is. The guest gets them back when the response to
//! DETACH_BACKING or UNREF comes, which waits until the GPU, and whoever has the blob open, has let go of them.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::Ordering;

use super::blobs::BlobSpec;
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

/// Most rows that one transfer may have: each is a copy of its own, unless rows are contiguous.
pub const MAX_TRANSFER_ROWS: u64 = 16384;

/// TRANSFER_TO_HOST_3D and TRANSFER_FROM_HOST_3D of a blob, which has no format: `x` and `width` are bytes, `stride` and `layer_stride`
/// hold on both sides. Row `r` of layer `l` has `width` bytes, at `(z + l) * layer_stride + (y + r) * stride + x` of the host's
/// memory and at `offset + l * layer_stride + r * stride` of the guest's pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(
    missing_docs,
    reason = "the fields are those of virtio_gpu_transfer_host_3d"
)]
pub struct Transfer {
    pub x: u64,
    pub y: u64,
    pub z: u64,
    pub width: u64,
    pub height: u64,
    pub depth: u64,
    pub offset: u64,
    pub stride: u64,
    pub layer_stride: u64,
}

/// One copy of a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Row {
    host: u64,
    guest: u64,
    length: u64,
}

impl Transfer {
    /// The copies that it is made of, all inside `size` bytes on both sides.
    fn rows(&self, size: u64) -> Result<Vec<Row>, Error> {
        let argument = |field, value, expected| Error::Argument {
            field,
            value,
            expected,
        };
        let rows = self.height.checked_mul(self.depth);
        if self.width == 0 || rows.is_none_or(|rows| rows == 0) {
            return Err(argument("box", 0, "not empty"));
        }
        let contiguous = self.depth == 1 && self.height > 1 && self.stride == self.width;
        let (height, width) = if contiguous {
            (1, self.width.checked_mul(self.height))
        } else {
            (self.height, Some(self.width))
        };
        let length = width.ok_or(argument("w", self.width, "bytes inside the blob"))?;
        if rows.is_none_or(|rows| rows > MAX_TRANSFER_ROWS) && !contiguous {
            return Err(argument(
                "h",
                self.height,
                "at most 16384 rows in all layers",
            ));
        }
        let end = |start: u64| start.checked_add(length).filter(|end| *end <= size);
        let at = |base: u64, x: u64, y: u64, z: u64| {
            let row = y.checked_mul(self.stride)?;
            let layer = z.checked_mul(self.layer_stride)?;
            let start = base.checked_add(x)?.checked_add(row)?.checked_add(layer)?;
            end(start).map(|_| start)
        };
        let mut list = Vec::new();
        for layer in 0..self.depth {
            for row in 0..height {
                let host = self
                    .y
                    .checked_add(row)
                    .zip(self.z.checked_add(layer))
                    .and_then(|(y, z)| at(0, self.x, y, z));
                let (Some(host), Some(guest)) = (host, at(self.offset, 0, row, layer)) else {
                    return Err(Error::Range {
                        offset: self.offset,
                        length,
                        size,
                    });
                };
                list.push(Row {
                    host,
                    guest,
                    length,
                });
            }
        }
        Ok(list)
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    const BOX: Transfer = Transfer {
        x: 0,
        y: 0,
        z: 0,
        width: 16,
        height: 1,
        depth: 1,
        offset: 0,
        stride: 0,
        layer_stride: 0,
    };

    fn rows(transfer: Transfer) -> Result<Vec<(u64, u64, u64)>, Error> {
        let rows = transfer.rows(PAGE)?;
        Ok(rows
            .iter()
            .map(|row| (row.host, row.guest, row.length))
            .collect())
    }

    #[test]
    fn the_rows_of_the_box_and_nothing_else() {
        let line = Transfer {
            x: 8,
            offset: 100,
            ..BOX
        };
        assert_eq!(rows(line), Ok(vec![(8, 100, 16)]));
        let image = Transfer {
            x: 4,
            y: 2,
            z: 1,
            height: 2,
            depth: 2,
            offset: 1,
            stride: 32,
            layer_stride: 512,
            ..BOX
        };
        assert_eq!(
            rows(image),
            Ok(vec![
                (580, 1, 16),
                (612, 33, 16),
                (1092, 513, 16),
                (1124, 545, 16)
            ])
        );
        let block = Transfer {
            height: 256,
            stride: 16,
            ..BOX
        };
        assert_eq!(rows(block), Ok(vec![(0, 0, 4096)]), "contiguous: one copy");
    }

    #[test]
    fn what_is_not_inside_is_refused() {
        for bad in [
            Transfer { width: 0, ..BOX },
            Transfer { height: 0, ..BOX },
            Transfer { depth: 0, ..BOX },
            Transfer {
                x: PAGE - 15,
                ..BOX
            },
            Transfer {
                offset: PAGE - 15,
                ..BOX
            },
            Transfer {
                offset: u64::MAX,
                ..BOX
            },
            Transfer {
                y: u64::MAX,
                stride: 2,
                ..BOX
            },
            Transfer {
                z: 1,
                layer_stride: PAGE,
                ..BOX
            },
            Transfer {
                height: 257,
                stride: 16,
                ..BOX
            },
            Transfer {
                width: u64::MAX,
                height: 2,
                stride: u64::MAX,
                ..BOX
            },
            Transfer {
                height: u64::MAX,
                depth: u64::MAX,
                ..BOX
            },
            Transfer {
                width: 1,
                height: MAX_TRANSFER_ROWS,
                depth: 2,
                ..BOX
            },
        ] {
            assert!(bad.rows(PAGE).is_err(), "{bad:?}");
        }
    }
}
