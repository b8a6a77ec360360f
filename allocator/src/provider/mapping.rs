//! Memory of this process that the provider itself maps: a window file, or private bytes of the system provider.
//!
//! It is shared with a guest that writes whenever it likes. So nothing here makes a reference into it, nothing is
//! read to decide anything, and the only accesses are bulk copies between raw pointers. Each range is checked
//! against the mapping in the one function that turns an offset into a pointer.

use std::ffi::c_void;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::{self, NonNull};

use rustix::fs::SealFlags;
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};

use super::ProviderError;

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
        let length = whole(length)?;
        // SAFETY: as in `shared`.
        let base = unsafe {
            rustix::mm::mmap_anonymous(
                ptr::null_mut(),
                length,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
        };
        Self::from_base(base, length)
    }

    fn from_base(base: Result<*mut c_void, Errno>, length: usize) -> Result<Self, ProviderError> {
        let base = base.map_err(|error| match error {
            Errno::NOMEM | Errno::AGAIN => {
                ProviderError::OutOfHostMemory(format!("mmap of {length} bytes: {error}"))
            }
            // A file that may not be written, say.
            _ => ProviderError::Invalid(format!("mmap of {length} bytes: {error}")),
        })?;
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

/// A file that the caller registered: mapped whole and shared, and kept open for udmabuf.
#[derive(Debug)]
pub(super) struct SharedFile {
    mapping: Mapping,
    descriptor: OwnedFd,
    length: u64,
}

impl SharedFile {
    /// Checks and maps a file.
    ///
    /// It must be at least `length` long and sealed against shrinking: without the seal whoever else holds the
    /// descriptor could cut it short, and the next access here would be a SIGBUS (udmabuf asks for the same seal).
    pub(super) fn new(descriptor: OwnedFd, length: u64) -> Result<Self, ProviderError> {
        let page = rustix::param::page_size() as u64;
        if length == 0 || !length.is_multiple_of(page) {
            return Err(ProviderError::Invalid(format!(
                "file length {length} is not a multiple of the page size {page}"
            )));
        }
        let stat = rustix::fs::fstat(&descriptor)
            .map_err(|error| ProviderError::Invalid(format!("fstat of a file: {error}")))?;
        if u64::try_from(stat.st_size).unwrap_or(0) < length {
            return Err(ProviderError::Invalid(format!(
                "file has {} bytes, {length} were announced",
                stat.st_size
            )));
        }
        let seals = rustix::fs::fcntl_get_seals(&descriptor)
            .map_err(|error| ProviderError::Invalid(format!("file is not a memfd: {error}")))?;
        if !seals.contains(SealFlags::SHRINK) {
            return Err(ProviderError::Invalid(
                "memfd is not sealed with F_SEAL_SHRINK".to_owned(),
            ));
        }
        Ok(Self {
            mapping: Mapping::shared(descriptor.as_fd(), length)?,
            descriptor,
            length,
        })
    }

    /// The bytes.
    pub(super) fn mapping(&self) -> &Mapping {
        &self.mapping
    }

    /// The memfd.
    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }

    /// Bytes that may be attached.
    pub(super) fn length(&self) -> u64 {
        self.length
    }
}

/// A memfd of `length` zero bytes, sealed against shrinking: what `AddFile` takes. For probes and tests.
pub(super) fn sealed_memfd(name: &str, length: u64) -> Result<OwnedFd, Errno> {
    use rustix::fs::MemfdFlags;
    let descriptor =
        rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    rustix::fs::ftruncate(&descriptor, length)?;
    rustix::fs::fcntl_add_seals(&descriptor, SealFlags::SHRINK)?;
    Ok(descriptor)
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
