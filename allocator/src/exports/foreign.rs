//! Memory of a host process, as far as a guest may import it.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{OFlags, SealFlags, SeekFrom};
use rustix::io::Errno;
use thiserror::Error;

use crate::window::PAGE;

/// `f_type` of the kernel's dma-buf file system (linux/magic.h).
const DMA_BUF_MAGIC: u64 = 0x444d_4142;

/// What a descriptor is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForeignKind {
    /// Memory of the kernel's shmem, which keeps its size.
    Memfd,
    /// A dma-buf.
    DmaBuf,
}

/// Memory that a viewer handed in, or that another device of a VM has.
#[derive(Debug, Clone)]
pub struct Foreign {
    /// Of its own. All who import the memory have the same descriptor.
    pub file: Arc<File>,
    /// Bytes: whole pages, at least one.
    pub size: u64,
    /// What it is.
    pub kind: ForeignKind,
}

/// Why memory cannot be imported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum NotImportable {
    /// It is something else.
    #[error("the descriptor is neither of a memfd nor of a dma-buf")]
    Kind,
    /// Its owner could cut it, and every access of ours would be a SIGBUS.
    #[error("the memfd can shrink: F_SEAL_SHRINK is missing")]
    CanShrink,
    /// A guest writes.
    #[error("the memory cannot be written: it is sealed, or was opened for reading alone")]
    ReadOnly,
    /// Guests map pages.
    #[error("the memory has {0} bytes: whole pages are needed, at least one")]
    Size(u64),
    /// The system refuses.
    #[error("the descriptor cannot be looked at: {0}")]
    System(#[from] Errno),
}

impl Foreign {
    /// Looks at what was sent.
    pub(crate) fn check(descriptor: OwnedFd) -> Result<Self, NotImportable> {
        let fd = descriptor.as_fd();
        let kind = match rustix::fs::fcntl_get_seals(fd) {
            Ok(seals) if !seals.contains(SealFlags::SHRINK) => {
                return Err(NotImportable::CanShrink);
            }
            Ok(seals) if seals.intersects(SealFlags::WRITE | SealFlags::FUTURE_WRITE) => {
                return Err(NotImportable::ReadOnly);
            }
            Ok(_) => ForeignKind::Memfd,
            Err(_) if is_dma_buf(fd)? => ForeignKind::DmaBuf,
            Err(_) => return Err(NotImportable::Kind),
        };
        if rustix::fs::fcntl_getfl(fd)? & OFlags::RWMODE != OFlags::RDWR {
            return Err(NotImportable::ReadOnly);
        }
        let size = match kind {
            ForeignKind::Memfd => {
                u64::try_from(rustix::fs::fstat(fd)?.st_size).map_err(|_| Errno::OVERFLOW)?
            }
            // fstat of a dma-buf says 0.
            ForeignKind::DmaBuf => rustix::fs::seek(fd, SeekFrom::End(0))?,
        };
        if size == 0 || !size.is_multiple_of(PAGE) {
            return Err(NotImportable::Size(size));
        }
        Ok(Self {
            file: Arc::new(descriptor.into()),
            size,
            kind,
        })
    }
}

/// Whether a descriptor is of a dma-buf, which is no file that says how long it is.
pub fn is_dma_buf(descriptor: BorrowedFd<'_>) -> Result<bool, Errno> {
    let magic = rustix::fs::fstatfs(descriptor)?.f_type;
    Ok(u64::try_from(magic).is_ok_and(|magic| magic == DMA_BUF_MAGIC))
}
