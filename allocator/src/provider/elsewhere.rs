//! Where the CPU finds bytes that are not the window's.

use std::any::Any;
use std::ffi::c_void;
use std::fmt;
use std::fs::File;
use std::ptr::NonNull;
use std::sync::Arc;

/// Bytes outside the window that a VMM can map into it.
#[derive(Debug, Clone)]
pub enum Elsewhere {
    /// All of a file: a memfd or a dma-buf.
    File(Arc<File>),
    /// Memory of this process.
    Address(Arc<HostAddress>),
}

impl Elsewhere {
    /// The file, where there is one.
    #[must_use]
    pub fn file(&self) -> Option<&Arc<File>> {
        match self {
            Self::File(file) => Some(file),
            Self::Address(_) => None,
        }
    }
}

/// Two are equal that are the same.
impl PartialEq for Elsewhere {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::File(a), Self::File(b)) => Arc::ptr_eq(a, b),
            (Self::Address(a), Self::Address(b)) => Arc::ptr_eq(a, b),
            (Self::File(_), Self::Address(_)) | (Self::Address(_), Self::File(_)) => false,
        }
    }
}

impl Eq for Elsewhere {}

/// Memory of this process, there as long as the value is.
pub struct HostAddress {
    base: NonNull<c_void>,
    length: u64,
    /// What keeps it there.
    _owner: Box<dyn Any + Send + Sync>,
}

// SAFETY: an address and a length that never change. Who uses the address answers for the access: the guest shares the bytes anyway.
unsafe impl Send for HostAddress {}
// SAFETY: as for `Send`.
unsafe impl Sync for HostAddress {}

impl HostAddress {
    /// `length` bytes from `base` on, that may be read and written as long as `owner` lives.
    pub(super) fn new(
        base: NonNull<c_void>,
        length: u64,
        owner: impl Any + Send + Sync,
    ) -> Arc<Self> {
        Arc::new(Self {
            base,
            length,
            _owner: Box::new(owner),
        })
    }

    /// The first byte, aligned to a page.
    #[must_use]
    pub fn base(&self) -> NonNull<c_void> {
        self.base
    }

    /// Bytes: whole pages.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.length
    }
}

impl fmt::Debug for HostAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostAddress")
            .field("length", &self.length)
            .finish_non_exhaustive()
    }
}
