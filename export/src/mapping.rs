//! Bytes of a descriptor, to look at.

use std::ffi::c_void;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;

use rustix::fs::SeekFrom;
use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, opcode};
use rustix::mm::{MapFlags, ProtFlags};

use crate::error::{Error, Result};

/// `f_type` of the kernel's dma-buf file system (linux/magic.h).
const DMA_BUF_MAGIC: u64 = 0x444d_4142;
/// `DMA_BUF_SYNC_READ`.
const SYNC_READ: u64 = 1;
/// `DMA_BUF_SYNC_END`; `DMA_BUF_SYNC_START` is 0.
const SYNC_END: u64 = 4;

/// A blob, mapped for reading. It needs the descriptor no more, but for a copy of a dma-buf's own.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<c_void>,
    length: usize,
    /// Of a dma-buf: says when the CPU looks.
    dma_buf: Option<OwnedFd>,
}

// SAFETY: the mapping belongs to this value, and is read alone, through a pointer of its own each time.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the first `size` bytes.
    pub fn new(descriptor: impl AsFd, size: u64) -> Result<Self> {
        let descriptor = descriptor.as_fd();
        let failed = |what| move |errno| Error::System(what, errno);
        // Past the end of the file every look would be a SIGBUS. lseek, because fstat of a dma-buf says 0.
        let end = rustix::fs::seek(descriptor, SeekFrom::End(0)).map_err(failed("lseek"))?;
        let length = usize::try_from(size)
            .ok()
            .filter(|&length| length > 0 && size <= end)
            .ok_or(Error::OutOfRange {
                offset: 0,
                length: size,
                size: end,
            })?;
        let magic = rustix::fs::fstatfs(descriptor)
            .map_err(failed("fstatfs"))?
            .f_type;
        let dma_buf = u64::try_from(magic)
            .is_ok_and(|magic| magic == DMA_BUF_MAGIC)
            .then(|| descriptor.try_clone_to_owned())
            .transpose()
            .map_err(|error| {
                Error::System("dup", Errno::from_io_error(&error).unwrap_or(Errno::MFILE))
            })?;
        // SAFETY: a new mapping at a place of the kernel's choice touches no other.
        let start = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                length,
                ProtFlags::READ,
                MapFlags::SHARED,
                descriptor,
                0,
            )
        }
        .map_err(failed("mmap"))?;
        Ok(Self {
            start: NonNull::new(start).ok_or(Error::System("mmap", Errno::FAULT))?,
            length,
            dma_buf,
        })
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.length as u64
    }

    /// Whether it is of a dma-buf, and not of a memfd.
    pub fn is_dma_buf(&self) -> bool {
        self.dma_buf.is_some()
    }

    /// The first byte, for [`Mapping::size`] bytes, as long as this value lives. The guest may write at any time: call
    /// [`Mapping::begin`] before and [`Mapping::end`] after looking.
    pub fn as_ptr(&self) -> *const u8 {
        self.start.as_ptr().cast()
    }

    /// The CPU is about to look: caches are made coherent where they are not (`DMA_BUF_IOCTL_SYNC`). Nothing for a memfd.
    pub fn begin(&self) -> Result<()> {
        self.sync(SYNC_READ)
    }

    /// The CPU has looked.
    pub fn end(&self) -> Result<()> {
        self.sync(SYNC_READ | SYNC_END)
    }

    /// Copies bytes out, between [`Mapping::begin`] and [`Mapping::end`].
    pub fn read(&self, offset: u64, into: &mut [u8]) -> Result<()> {
        let out_of_range = || Error::OutOfRange {
            offset,
            length: into.len() as u64,
            size: self.size(),
        };
        let start = usize::try_from(offset).map_err(|_| out_of_range())?;
        start
            .checked_add(into.len())
            .filter(|&end| end <= self.length)
            .ok_or_else(out_of_range)?;
        self.begin()?;
        // SAFETY: `start` lies inside the mapping: it was checked above.
        let from = unsafe { self.as_ptr().add(start) };
        // SAFETY: all of `from` lies inside the mapping, which lives as long as this value; `into` is memory of the caller's, so
        // they do not overlap. The guest may write meanwhile: any bytes are a value.
        unsafe { std::ptr::copy_nonoverlapping(from, into.as_mut_ptr(), into.len()) };
        self.end()
    }

    fn sync(&self, flags: u64) -> Result<()> {
        let Some(dma_buf) = &self.dma_buf else {
            return Ok(());
        };
        loop {
            // SAFETY: `DmaBufSync` is the number and the structure of this ioctl of dma-bufs (linux/dma-buf.h).
            match unsafe { rustix::ioctl::ioctl(dma_buf, DmaBufSync { flags }) } {
                Err(Errno::INTR | Errno::AGAIN) => {}
                other => return other.map_err(|e| Error::System("DMA_BUF_IOCTL_SYNC", e)),
            }
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's, and nobody has a reference into it: `as_ptr` says so.
        let _ = unsafe { rustix::mm::munmap(self.start.as_ptr(), self.length) };
    }
}

/// `struct dma_buf_sync`.
#[repr(C)]
struct DmaBufSync {
    flags: u64,
}

// SAFETY: `DMA_BUF_IOCTL_SYNC` is `_IOW('b', 0, struct dma_buf_sync)`: it reads the structure and answers with nothing.
unsafe impl Ioctl for DmaBufSync {
    type Output = ();

    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        opcode::write::<Self>(b'b', 0)
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::from_mut(self).cast()
    }

    unsafe fn output_from_ptr(_: IoctlOutput, _: *mut c_void) -> rustix::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::MemfdFlags;

    use super::*;

    #[test]
    fn a_memfd_is_read_and_nothing_past_it() {
        let fd = rustix::fs::memfd_create("mapping", MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&fd, 8192).unwrap();
        rustix::io::pwrite(&fd, b"pixels", 5000).unwrap();
        let mapping = Mapping::new(&fd, 8192).unwrap();
        assert!(!mapping.is_dma_buf());
        let mut bytes = [0; 6];
        mapping.read(5000, &mut bytes).unwrap();
        assert_eq!(&bytes, b"pixels");
        mapping.read(8186, &mut bytes).unwrap();
        assert_eq!(&bytes, &[0; 6]);
        for offset in [8187, 8192, u64::MAX] {
            assert!(mapping.read(offset, &mut bytes).is_err());
        }
        for size in [0, 8193, u64::MAX] {
            assert!(Mapping::new(&fd, size).is_err());
        }
    }

    /// Most test machines make no dma-bufs: at least the number is the header's.
    #[test]
    fn the_ioctl_is_that_of_the_kernel_header() {
        assert_eq!(DmaBufSync { flags: 0 }.opcode(), 0x4008_6200);
    }
}
