//! Mapped memory: who owns the address range, and the only places that touch its bytes.
//!
//! The bytes are shared with the host and its GPU, which change them at any time. So nothing here makes a `&[u8]` of
//! them: they are copied in and out, or read as atomic words.

use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use hostblob_protocol::Status;
use rustix::mm::{MapFlags, ProtFlags};

use crate::error::{Error, Result};

/// An address range of ours: unmapped on drop.
#[derive(Debug)]
pub(crate) struct Region {
    address: NonNull<u8>,
    length: usize,
}

// SAFETY: the range is plain memory that belongs to no thread; all accesses go through raw pointers or atomics.
unsafe impl Send for Region {}
// SAFETY: as above; `&Region` gives out an address and a length, which never change.
unsafe impl Sync for Region {}

impl Region {
    /// Maps `length` bytes of `fd` from `offset` on, shared, readable and writable.
    pub(crate) fn map(
        fd: BorrowedFd<'_>,
        offset: u64,
        length: u64,
    ) -> Result<Arc<Self>, rustix::io::Errno> {
        let length = usize::try_from(length).map_err(|_| rustix::io::Errno::NOMEM)?;
        let flags = MapFlags::SHARED | MapFlags::NORESERVE;
        // SAFETY: the kernel picks a free range (no MAP_FIXED), so no memory of this process changes under anyone.
        let address = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                length,
                ProtFlags::READ | ProtFlags::WRITE,
                flags,
                fd,
                offset,
            )
        }?;
        let address = NonNull::new(address.cast()).ok_or(rustix::io::Errno::NOMEM)?;
        Ok(Arc::new(Self { address, length }))
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: `map` made this range, nobody else knows it as theirs, and each `Mapping` into it holds an Arc of us,
        // so the last of them is gone. Callers that kept a raw address were told that it ends here.
        let unmapped = unsafe { rustix::mm::munmap(self.address.as_ptr().cast(), self.length) };
        if let Err(errno) = unmapped {
            log::warn!("munmap of {} bytes: {errno}", self.length);
        }
    }
}

/// Part of a region: where the bytes of one blob are.
#[derive(Debug, Clone)]
pub(crate) struct Mapping {
    region: Arc<Region>,
    offset: usize,
    length: usize,
}

impl Mapping {
    /// `None` where the part does not lie in the region.
    pub(crate) fn new(region: Arc<Region>, offset: u64, length: u64) -> Option<Self> {
        let (offset, length) = (usize::try_from(offset).ok()?, usize::try_from(length).ok()?);
        (offset.checked_add(length)? <= region.length).then_some(Self {
            region,
            offset,
            length,
        })
    }

    /// The whole region.
    pub(crate) fn whole(region: Arc<Region>) -> Self {
        Self {
            offset: 0,
            length: region.length,
            region,
        }
    }

    /// The address of byte `offset`; `None` past the end.
    pub(crate) fn address_of(&self, offset: u64) -> Option<NonNull<u8>> {
        let offset = usize::try_from(offset)
            .ok()
            .filter(|&offset| offset <= self.length)?;
        let from_region = self.offset.checked_add(offset)?;
        // SAFETY: `offset <= self.length`, and `new` checked that `self.offset + self.length` lies in the region, which is
        // one mapping that lives as long as our Arc: the sum stays inside it, or one past its end.
        Some(unsafe { self.region.address.add(from_region) })
    }

    pub(crate) fn address(&self) -> NonNull<u8> {
        // SAFETY: `new` checked that `self.offset` lies in the region, which lives as long as our Arc.
        unsafe { self.region.address.add(self.offset) }
    }

    fn check(&self, offset: u64, length: usize) -> Result<NonNull<u8>> {
        let end = offset.checked_add(length as u64);
        if end.is_none_or(|end| end > self.length as u64) {
            return Err(Error::status_of(
                Status::OutOfRange,
                format!("{length} bytes at {offset} of a mapping of {}", self.length),
            ));
        }
        self.address_of(offset)
            .ok_or_else(|| Error::Internal("a checked offset is outside its mapping".to_owned()))
    }

    /// Copies out of the mapping.
    pub(crate) fn read(&self, offset: u64, into: &mut [u8]) -> Result<()> {
        let from = self.check(offset, into.len())?;
        // SAFETY: `check` found `into.len()` bytes at `from` inside the region, mapped readable as long as our Arc lives;
        // `into` is the caller's own memory and cannot overlap it. Bytes that the host changes meanwhile arrive old or new.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), into.as_mut_ptr(), into.len()) };
        Ok(())
    }

    /// Copies into the mapping.
    pub(crate) fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let to = self.check(offset, bytes.len())?;
        // SAFETY: as in `read`, and the region is mapped writable.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to.as_ptr(), bytes.len()) };
        Ok(())
    }

    /// The mapping as 64-bit words; `None` where it does not start at a multiple of 8.
    pub(crate) fn words(&self) -> Option<&[AtomicU64]> {
        let first = self.address().cast::<AtomicU64>();
        if !first.is_aligned() {
            return None;
        }
        let count = self.length / size_of::<AtomicU64>();
        // SAFETY: `new` checked that these bytes lie in the region, mapped readable and writable while `self` holds its Arc, which
        // the lifetime of the slice ends before; alignment was checked above; all access to atomics may be shared.
        Some(unsafe { std::slice::from_raw_parts(first.as_ptr(), count) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::MemfdFlags;
    use std::os::fd::AsFd;

    #[test]
    fn bounds_are_kept_and_bytes_arrive() {
        let fd = rustix::fs::memfd_create("region", MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&fd, 8192).unwrap();
        let region = Region::map(fd.as_fd(), 0, 8192).unwrap();
        assert!(Mapping::new(region.clone(), 4096, 4097).is_none());
        assert!(Mapping::new(region.clone(), u64::MAX, 2).is_none());
        let part = Mapping::new(region.clone(), 4096, 4096).unwrap();
        part.write(4092, b"last").unwrap();
        assert_eq!(
            part.write(4093, b"last").unwrap_err().status(),
            Some(Status::OutOfRange)
        );
        assert_eq!(
            part.read(u64::MAX, &mut [0; 2]).unwrap_err().status(),
            Some(Status::OutOfRange)
        );
        let mut bytes = [0; 4];
        Mapping::whole(region).read(8188, &mut bytes).unwrap();
        assert_eq!(&bytes, b"last");
        assert_eq!(part.words().unwrap().len(), 512);
        assert!(part.address_of(4096).is_some() && part.address_of(4097).is_none());
    }
}
