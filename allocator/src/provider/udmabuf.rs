//! A dma-buf made of a range of a memfd, by the kernel's udmabuf driver.
//!
//! That is how GPUs get at window memory whose drivers refuse host pointers into shared files (amdgpu). The kernel
//! pins the pages of the range as long as the dma-buf lives.

use std::ffi::c_void;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, opcode};

/// The device node.
const PATH: &str = "/dev/udmabuf";

/// The kernel's default for `size_limit_mb`, should its parameter not be readable.
const DEFAULT_LIMIT_MB: u64 = 64;

/// Close-on-exec for the dma-buf (`UDMABUF_FLAGS_CLOEXEC`).
const FLAG_CLOEXEC: u32 = 1;

/// An open /dev/udmabuf.
#[derive(Debug)]
pub(super) struct Udmabuf {
    device: File,
    size_limit: u64,
}

impl Udmabuf {
    /// Opens the device; a line that says why not.
    pub(super) fn open() -> Result<Self, String> {
        let device = File::options()
            .read(true)
            .write(true)
            .open(PATH)
            .map_err(|error| format!("{PATH}: {error}"))?;
        let megabytes = std::fs::read_to_string("/sys/module/udmabuf/parameters/size_limit_mb")
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or(DEFAULT_LIMIT_MB);
        Ok(Self {
            device,
            size_limit: megabytes.saturating_mul(1 << 20),
        })
    }

    /// The largest dma-buf that the kernel makes: the module parameter `size_limit_mb`, 64 MiB unless the host's
    /// administrator raises it.
    pub(super) fn size_limit(&self) -> u64 {
        self.size_limit
    }

    /// Makes a dma-buf of a page-aligned range of a memfd that is sealed against shrinking.
    pub(super) fn create(
        &self,
        memfd: BorrowedFd<'_>,
        offset: u64,
        size: u64,
    ) -> Result<OwnedFd, Errno> {
        let memfd = u32::try_from(memfd.as_raw_fd()).map_err(|_| Errno::BADF)?;
        let create = Create {
            memfd,
            flags: FLAG_CLOEXEC,
            offset,
            size,
        };
        // SAFETY: `Create` is the structure and the number that this ioctl of this device takes (linux/udmabuf.h); the
        // kernel checks all of its numbers.
        unsafe { rustix::ioctl::ioctl(self.device.as_fd(), create) }
    }
}

/// `struct udmabuf_create`.
#[repr(C)]
struct Create {
    memfd: u32,
    flags: u32,
    offset: u64,
    size: u64,
}

// SAFETY: `UDMABUF_CREATE` is `_IOW('u', 0x42, struct udmabuf_create)`: it reads the structure behind the pointer, writes
// nothing, and answers with a fresh descriptor.
unsafe impl Ioctl for Create {
    type Output = OwnedFd;

    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        opcode::write::<Self>(b'u', 0x42)
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::from_mut(self).cast()
    }

    unsafe fn output_from_ptr(output: IoctlOutput, _: *mut c_void) -> Result<OwnedFd, Errno> {
        // SAFETY: rustix calls this only when the ioctl succeeded, and then the answer is a descriptor that the kernel
        // has just made and that nobody else owns.
        Ok(unsafe { OwnedFd::from_raw_fd(output) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The device is missing on most test machines: at least the number is the header's.
    #[test]
    fn the_ioctl_is_that_of_the_kernel_header() {
        let create = Create {
            memfd: 0,
            flags: 0,
            offset: 0,
            size: 0,
        };
        assert_eq!(size_of::<Create>(), 24);
        assert_eq!(create.opcode(), 0x4018_7542);
    }
}
