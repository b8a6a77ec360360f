//! Memory of this process that the provider itself maps: a window file, pieces of guest memory, or private bytes of the system
//! provider.
//!
//! It is shared with a guest that writes whenever it likes. So nothing here makes a reference into it, nothing is
//! read to decide anything, and the only accesses are bulk copies between raw pointers. Each range is checked
//! against the mapping in the one function that turns an offset into a pointer.

use std::ffi::c_void;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::Arc;

use rustix::fs::{SealFlags, SeekFrom};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};

use super::{Piece, ProviderError};

/// Bytes of the pattern block that a fill is made of: large enough that the loop costs nothing, small enough for the stack.
const FILL_BLOCK: usize = 4096;

/// A mapping, unmapped when dropped.
#[derive(Debug)]
pub(super) struct Mapping {
    base: NonNull<c_void>,
    length: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread; `base` and `length` never change between `new` and
// `drop`, and every access goes through raw copies that assume nothing about who else writes.
unsafe impl Send for Mapping {}
// SAFETY: as for `Send`; shared use makes no references into the bytes.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the first `length` bytes of a file, shared.
    fn shared(descriptor: BorrowedFd<'_>, length: u64) -> Result<Self, ProviderError> {
        let length = whole(length)?;
        // SAFETY: a fresh mapping at an address of the kernel's choice replaces no other; it is unmapped in `drop` only.
        let base = unsafe {
            rustix::mm::mmap(
                ptr::null_mut(),
                length,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                descriptor,
                0,
            )
        };
        Self::from_base(base, length)
    }

    /// Maps private bytes that read as zeros.
    pub(super) fn private(length: u64) -> Result<Self, ProviderError> {
        Self::anonymous(length, ProtFlags::READ | ProtFlags::WRITE)
    }

    /// Maps pieces of files, shared, one after the other: `length` bytes in all.
    fn stitched(pieces: &[Piece], length: u64) -> Result<Self, ProviderError> {
        // What is not yet replaced, or could not be, is a place that nobody can touch.
        let mapping = Self::anonymous(length, ProtFlags::empty())?;
        let mut at = 0;
        for piece in pieces {
            let to = mapping.range(at, piece.length)?;
            // SAFETY: `range` has checked that all of it lies in the mapping just made, which nobody else knows yet and which is
            // unmapped, with whatever took its place, in `drop` only.
            let placed = unsafe {
                rustix::mm::mmap(
                    to.as_ptr(),
                    whole(piece.length)?,
                    ProtFlags::READ | ProtFlags::WRITE,
                    MapFlags::SHARED | MapFlags::FIXED,
                    &piece.file,
                    piece.offset,
                )
            };
            placed.map_err(|error| refused(error, piece.length))?;
            at += piece.length;
        }
        Ok(mapping)
    }

    fn anonymous(length: u64, access: ProtFlags) -> Result<Self, ProviderError> {
        let length = whole(length)?;
        // SAFETY: as in `shared`.
        let base = unsafe {
            rustix::mm::mmap_anonymous(ptr::null_mut(), length, access, MapFlags::PRIVATE)
        };
        Self::from_base(base, length)
    }

    fn from_base(base: Result<*mut c_void, Errno>, length: usize) -> Result<Self, ProviderError> {
        let base = base.map_err(|error| refused(error, length))?;
        let base = NonNull::new(base)
            .ok_or_else(|| ProviderError::OutOfHostMemory("mmap returned null".to_owned()))?;
        Ok(Self { base, length })
    }

    /// The address of a range that lies wholly inside.
    pub(super) fn range(&self, offset: u64, length: u64) -> Result<NonNull<c_void>, ProviderError> {
        let outside = || {
            ProviderError::Invalid(format!(
                "{length} bytes at {offset} are outside a mapping of {} bytes",
                self.length
            ))
        };
        let end = offset.checked_add(length).ok_or_else(outside)?;
        if usize::try_from(end).map_err(|_| outside())? > self.length {
            return Err(outside());
        }
        let offset = usize::try_from(offset).map_err(|_| outside())?;
        // SAFETY: `offset` is at most `self.length`, so the result is inside the mapping, or one past its end for an
        // empty range; the mapping lives as long as `self`.
        Ok(unsafe { self.base.byte_add(offset) })
    }

    /// Writes `value`, repeated, over a range; a trailing part of less than 4 bytes gets the first bytes of `value`.
    pub(super) fn fill(&self, offset: u64, length: u64, value: u32) -> Result<(), ProviderError> {
        let start = self.range(offset, length)?.cast::<u8>();
        let length = whole(length)?;
        let mut block = [0_u8; FILL_BLOCK];
        for word in block.chunks_exact_mut(4) {
            word.copy_from_slice(&value.to_le_bytes());
        }
        let mut done = 0;
        while done < length {
            let step = FILL_BLOCK.min(length - done);
            // SAFETY: `done < length`, which `range` has checked against the mapping that `self` keeps.
            let to = unsafe { start.byte_add(done) };
            // SAFETY: `done + step <= length` as well; `block` is on this stack and at least `step` long, so the two do
            // not overlap. Another process may write the same bytes at the same time: then they hold either value, and
            // nothing here reads them.
            unsafe { ptr::copy_nonoverlapping(block.as_ptr(), to.as_ptr(), step) };
            done += step;
        }
        Ok(())
    }

    /// Copies a range of `source` into this mapping. The ranges may overlap.
    pub(super) fn copy_from(
        &self,
        offset: u64,
        source: &Self,
        source_offset: u64,
        length: u64,
    ) -> Result<(), ProviderError> {
        let to = self.range(offset, length)?.cast::<u8>();
        let from = source.range(source_offset, length)?.cast::<u8>();
        let length = whole(length)?;
        // SAFETY: both ranges were just checked to lie inside live mappings that `self` and `source` keep; `copy` allows
        // overlap, also by way of two mappings of one file. What a concurrent writer leaves there is copied as bytes,
        // never interpreted.
        unsafe { ptr::copy(from.as_ptr(), to.as_ptr(), length) };
        Ok(())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: exactly the range that `mmap` gave; whoever uses an address of it holds a borrow or an `Arc` of `self`.
        if let Err(error) = unsafe { rustix::mm::munmap(self.base.as_ptr(), self.length) } {
            log::error!("munmap of {} bytes failed: {error}", self.length);
        }
    }
}

/// What the caller registered, a file or pieces of files: mapped as one range, shared, and kept open for udmabuf.
#[derive(Debug)]
pub(super) struct SharedFile {
    mapping: Mapping,
    pieces: Vec<Piece>,
    length: u64,
}

impl SharedFile {
    /// Checks and maps a file.
    ///
    /// It must be at least `length` long and sealed against shrinking: without the seal whoever else holds the
    /// descriptor could cut it short, and the next access here would be a SIGBUS (udmabuf asks for the same seal).
    pub(super) fn new(descriptor: OwnedFd, length: u64) -> Result<Self, ProviderError> {
        let seals = rustix::fs::fcntl_get_seals(&descriptor)
            .map_err(|error| ProviderError::Invalid(format!("file is not a memfd: {error}")))?;
        if !seals.contains(SealFlags::SHRINK) {
            return Err(ProviderError::Invalid(
                "memfd is not sealed with F_SEAL_SHRINK".to_owned(),
            ));
        }
        let piece = Piece {
            file: Arc::new(descriptor.into()),
            offset: 0,
            length,
        };
        check_piece(&piece)?;
        Ok(Self {
            mapping: Mapping::shared(piece.file.as_fd(), length)?,
            pieces: vec![piece],
            length,
        })
    }

    /// Checks and maps pieces of files, one after the other.
    pub(super) fn stitched(pieces: Vec<Piece>) -> Result<Self, ProviderError> {
        let mut length = 0_u64;
        for piece in &pieces {
            check_piece(piece)?;
            length = length
                .checked_add(piece.length)
                .ok_or_else(|| ProviderError::Invalid("more than 2^64 bytes".to_owned()))?;
        }
        Ok(Self {
            mapping: Mapping::stitched(&pieces, length)?,
            pieces,
            length,
        })
    }

    /// The bytes.
    pub(super) fn mapping(&self) -> &Mapping {
        &self.mapping
    }

    /// The pieces that a range is made of.
    pub(super) fn pieces(&self, offset: u64, length: u64) -> Vec<Piece> {
        let end = offset.saturating_add(length);
        let mut at = 0_u64;
        let mut parts = Vec::new();
        for piece in &self.pieces {
            let (from, to) = (at.max(offset), at.saturating_add(piece.length).min(end));
            if from < to {
                parts.push(Piece {
                    file: Arc::clone(&piece.file),
                    offset: piece.offset.saturating_add(from - at),
                    length: to - from,
                });
            }
            at = at.saturating_add(piece.length);
        }
        parts
    }

    /// Bytes that may be attached.
    pub(super) fn length(&self) -> u64 {
        self.length
    }
}

/// Whole pages, that the file has. A dma-buf has no size but the one that its end tells.
fn check_piece(piece: &Piece) -> Result<(), ProviderError> {
    let Piece { offset, length, .. } = *piece;
    let page = rustix::param::page_size() as u64;
    if length == 0 || !length.is_multiple_of(page) || !offset.is_multiple_of(page) {
        return Err(ProviderError::Invalid(format!(
            "{length} bytes at {offset} of a file are not whole pages of {page}"
        )));
    }
    let size = rustix::fs::seek(&piece.file, SeekFrom::End(0))
        .map_err(|error| ProviderError::Invalid(format!("size of a file: {error}")))?;
    if offset.checked_add(length).is_none_or(|end| end > size) {
        return Err(ProviderError::Invalid(format!(
            "file has {size} bytes, {length} at {offset} were announced"
        )));
    }
    Ok(())
}

/// A memfd of `length` zero bytes, sealed against shrinking: what `AddFile` takes. For probes and tests.
pub(crate) fn sealed_memfd(name: &str, length: u64) -> Result<OwnedFd, Errno> {
    use rustix::fs::MemfdFlags;
    let descriptor =
        rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    rustix::fs::ftruncate(&descriptor, length)?;
    rustix::fs::fcntl_add_seals(&descriptor, SealFlags::SHRINK)?;
    Ok(descriptor)
}

fn refused(error: Errno, length: impl std::fmt::Display) -> ProviderError {
    let text = format!("mmap of {length} bytes: {error}");
    match error {
        Errno::NOMEM | Errno::AGAIN => ProviderError::OutOfHostMemory(text),
        // A file that may not be written, say.
        _ => ProviderError::Invalid(text),
    }
}

fn whole(length: u64) -> Result<usize, ProviderError> {
    usize::try_from(length)
        .map_err(|_| ProviderError::Invalid(format!("{length} bytes do not fit this host")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: u64 = 4096;

    #[test]
    fn a_range_must_lie_inside() {
        let mapping = Mapping::private(2 * PAGE).unwrap();
        assert!(mapping.range(0, 2 * PAGE).is_ok());
        assert!(mapping.range(2 * PAGE, 0).is_ok());
        assert!(mapping.range(1, 2 * PAGE).is_err());
        assert!(mapping.range(u64::MAX, 2).is_err());
    }

    #[test]
    fn fill_and_copy_reach_exactly_their_range() {
        let descriptor = sealed_memfd("mapping-test", 2 * PAGE).unwrap();
        let reader = descriptor.try_clone().unwrap();
        let file = SharedFile::new(descriptor, 2 * PAGE).unwrap();
        file.mapping().fill(8, 4, 0x0403_0201).unwrap();
        file.mapping()
            .copy_from(PAGE, file.mapping(), 6, 8)
            .unwrap();
        let mut bytes = [0xFF_u8; 16];
        rustix::io::pread(&reader, &mut bytes[..], 4).unwrap();
        assert_eq!(bytes, [0, 0, 0, 0, 1, 2, 3, 4, 0, 0, 0, 0, 0, 0, 0, 0]);
        rustix::io::pread(&reader, &mut bytes[..], PAGE).unwrap();
        assert_eq!(bytes, [0, 0, 1, 2, 3, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn pieces_are_one_range() {
        let make = |value: u8| {
            let file = std::fs::File::from(sealed_memfd("piece", 4 * PAGE).unwrap());
            rustix::io::pwrite(&file, &[value; 16384], 0).unwrap();
            Arc::new(file)
        };
        let (a, b) = (make(1), make(2));
        let piece = |file: &Arc<std::fs::File>, page, pages| Piece {
            file: Arc::clone(file),
            offset: page * PAGE,
            length: pages * PAGE,
        };
        let pieces = vec![piece(&a, 3, 1), piece(&b, 0, 2), piece(&a, 1, 1)];
        let file = SharedFile::stitched(pieces).unwrap();
        assert_eq!(file.length(), 4 * PAGE);
        file.mapping().fill(PAGE - 4, 8, 0x0909_0909).unwrap();
        let mut bytes = [0; 4];
        rustix::io::pread(&*a, &mut bytes[..], 4 * PAGE - 4).unwrap();
        assert_eq!(bytes, [9; 4]);
        rustix::io::pread(&*b, &mut bytes[..], 0).unwrap();
        assert_eq!(bytes, [9; 4]);
        let parts = file.pieces(PAGE, 3 * PAGE);
        let parts: Vec<_> = parts.iter().map(|p| (p.offset, p.length)).collect();
        assert_eq!(parts, [(0, 2 * PAGE), (PAGE, PAGE)]);
        for bad in [
            piece(&a, 4, 1),
            piece(&a, 0, 5),
            piece(&a, u64::MAX / PAGE, 1),
        ] {
            assert!(SharedFile::stitched(vec![piece(&a, 0, 1), bad]).is_err());
        }
        assert!(SharedFile::stitched(Vec::new()).is_err());
    }

    #[test]
    fn a_file_that_could_shrink_or_is_short_is_refused() {
        use rustix::fs::MemfdFlags;
        let open = || rustix::fs::memfd_create("t", MemfdFlags::ALLOW_SEALING).unwrap();
        let unsealed = open();
        rustix::fs::ftruncate(&unsealed, PAGE).unwrap();
        let error = SharedFile::new(unsealed, PAGE).unwrap_err();
        assert!(error.to_string().contains("F_SEAL_SHRINK"), "{error}");
        let short = sealed_memfd("t", PAGE).unwrap();
        assert!(matches!(
            SharedFile::new(short, 2 * PAGE),
            Err(ProviderError::Invalid(_))
        ));
        let plain = std::fs::File::open("/proc/self/exe").unwrap();
        assert!(matches!(
            SharedFile::new(plain.into(), PAGE),
            Err(ProviderError::Invalid(_))
        ));
    }
}
