//! A dma-buf made of ranges of memfds, by the kernel's udmabuf driver.
//!
//! That is how GPUs get at window memory whose drivers refuse host pointers into shared files (amdgpu), and how other processes get
//! the pages of one blob and no other's. The kernel pins the pages as long as the dma-buf lives.

use std::ffi::c_void;
use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, opcode};

use super::Piece;

/// The device node.
const PATH: &str = "/dev/udmabuf";

/// The kernel's default for `size_limit_mb`, should its parameter not be readable.
const DEFAULT_LIMIT_MB: u64 = 64;

/// Close-on-exec for the dma-buf (`UDMABUF_FLAGS_CLOEXEC`).
const FLAG_CLOEXEC: u32 = 1;

/// An open /dev/udmabuf.
#[derive(Debug)]
pub(crate) struct Udmabuf {
    device: File,
    size_limit: u64,
}

impl Udmabuf {
    /// Opens the device; a line that says why not, and what helps.
    pub(crate) fn open() -> Result<Self, String> {
        let device = File::options()
            .read(true)
            .write(true)
            .open(PATH)
            .map_err(|error| format!("{PATH}: {error}{}", remedy(error.kind())))?;
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
    pub(crate) fn size_limit(&self) -> u64 {
        self.size_limit
    }

    /// Makes a dma-buf of pieces of memfds, one after the other, that are sealed against shrinking and not against writing. At most
    /// as many as the module parameter `list_limit` says, 1,024 unless the administrator raises it.
    pub(crate) fn create(&self, pieces: &[Piece]) -> Result<OwnedFd, Errno> {
        let mut list = Vec::with_capacity(HEADER_BYTES + pieces.len() * ITEM_BYTES);
        list.extend_from_slice(&FLAG_CLOEXEC.to_ne_bytes());
        let count = u32::try_from(pieces.len()).map_err(|_| Errno::INVAL)?;
        list.extend_from_slice(&count.to_ne_bytes());
        for piece in pieces {
            let memfd = u32::try_from(piece.file.as_raw_fd()).map_err(|_| Errno::BADF)?;
            list.extend_from_slice(&memfd.to_ne_bytes());
            list.extend_from_slice(&[0; 4]);
            list.extend_from_slice(&piece.offset.to_ne_bytes());
            list.extend_from_slice(&piece.length.to_ne_bytes());
        }
        // SAFETY: the bytes are those of the structure that this ioctl of this device takes (linux/udmabuf.h), with as many items as
        // its header says; the kernel checks all of its numbers.
        unsafe { rustix::ioctl::ioctl(self.device.as_fd(), CreateList(list)) }
    }
}

/// What who runs the host can do about it.
fn remedy(error: ErrorKind) -> &'static str {
    match error {
        ErrorKind::NotFound => "; load the kernel module: modprobe udmabuf",
        ErrorKind::PermissionDenied => "; give this user access to it",
        _ => "",
    }
}

/// `struct udmabuf_create_list`: flags and count.
const HEADER_BYTES: usize = 8;
/// `struct udmabuf_create_item`: memfd, padding, offset, size.
const ITEM_BYTES: usize = 24;

/// `struct udmabuf_create_list` with its items, as bytes: C's flexible array.
struct CreateList(Vec<u8>);

// SAFETY: `UDMABUF_CREATE_LIST` is `_IOW('u', 0x43, struct udmabuf_create_list)`: it reads the structure behind the pointer and as
// many items after it as that says, writes nothing, and answers with a fresh descriptor.
unsafe impl Ioctl for CreateList {
    type Output = OwnedFd;

    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        opcode::write::<[u32; HEADER_BYTES / 4]>(b'u', 0x43)
    }

    fn as_ptr(&mut self) -> *mut c_void {
        self.0.as_mut_ptr().cast()
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

    #[test]
    fn who_lacks_it_is_told_what_to_do() {
        for (error, told) in [
            (rustix::io::Errno::NOENT, "modprobe udmabuf"),
            (rustix::io::Errno::ACCESS, "give this user access"),
        ] {
            let kind = std::io::Error::from(error).kind();
            assert!(remedy(kind).contains(told), "{error}");
        }
        if !std::path::Path::new(PATH).exists() {
            let why = Udmabuf::open().unwrap_err();
            assert!(why.starts_with(PATH), "{why}");
            assert!(
                why.ends_with("; load the kernel module: modprobe udmabuf"),
                "{why}"
            );
        }
    }

    /// The device is missing on most test machines: at least the number is the header's.
    #[test]
    fn the_ioctl_is_that_of_the_kernel_header() {
        assert_eq!(CreateList(Vec::new()).opcode(), 0x4008_7543);
    }
}
