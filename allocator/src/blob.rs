//! What the guest owns: memories, blobs, and the legal changes between their states.
//!
//! ```text
//! memory   Nowhere ──map──> Window ──another blob needs the place──> Parked ──map──> Window
//!             └──GPU use before any map──> Parked
//! blob     created ──map──> mapped ──unmap──> created (the bytes stay where they are)
//! ```
//!
//! A memory owns its bytes: the lease or the parking spot is inside it, so bytes are given back when, and only when, the memory
//! drops. A memory dies with its name and its blob: whoever of them is the last.

use std::sync::atomic::AtomicU64;

use hostblob_protocol::request::CreateFlags;

use crate::context::ContextRef;
use crate::provider::AttachmentId;
use crate::quota::Charge;
use crate::window::{Lease, ParkingSpot};

/// Key of a memory within its guest; never reused. Also the owner number of its lease.
pub(crate) type MemoryKey = u64;

/// Where a memory's bytes are.
#[derive(Debug)]
pub(crate) enum Home {
    /// Never written: zeros.
    Nowhere,
    /// In the window, at the place of the last mapping.
    Window(Lease),
    /// In the parking file.
    Parked(ParkingSpot),
    /// In device memory, under its attachment.
    Device,
}

/// How a memory relates to its blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Binding {
    /// A blob of this client id may be created: MAP_DIRECTLY, or BIND_CLIENT_ID came.
    Ready,
    /// A blob is not expected yet.
    Unbound,
    /// This resource is its blob.
    Bound(u32),
}

/// A `VkDeviceMemory`'s counterpart.
#[derive(Debug)]
pub(crate) struct Memory {
    /// Whose it is, and to whom it is charged.
    pub(crate) context: ContextRef,
    /// 0 where only the blob refers to it.
    pub(crate) client_id: u64,
    pub(crate) size: u64,
    pub(crate) memory_type: u32,
    pub(crate) flags: CreateFlags,
    pub(crate) binding: Binding,
    /// The GPU reaches the bytes under this name.
    pub(crate) attachment: Option<AttachmentId>,
    /// Sequence of the last release of an attachment: before its completion the bytes must not move.
    pub(crate) released_at: u64,
    pub(crate) home: Home,
    /// Given back last.
    pub(crate) _charge: Charge,
}

/// Part of a memory: inside it by construction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Slice {
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

impl Slice {
    pub(crate) fn overlaps(self, other: Slice) -> bool {
        // Both end inside memories, so the sums exist.
        self.offset < other.offset.saturating_add(other.length)
            && other.offset < self.offset.saturating_add(self.length)
    }
}

impl Memory {
    /// Checks a guest's range against the size.
    pub(crate) fn slice(&self, offset: u64, length: u64) -> Result<Slice, crate::Error> {
        match offset.checked_add(length) {
            Some(end) if end <= self.size && length != 0 => Ok(Slice { offset, length }),
            _ => Err(crate::Error::Range {
                offset,
                length,
                size: self.size,
            }),
        }
    }

    /// Whether the memory outlives its blob: it was created to be bound, and still has its name.
    pub(crate) fn outlives_blob(&self) -> bool {
        self.client_id != 0 && !self.flags.contains(CreateFlags::MAP_DIRECTLY)
    }

    /// The bytes, where the CPU reaches them.
    pub(crate) fn words(&self) -> Option<&[AtomicU64]> {
        match &self.home {
            Home::Window(lease) => Some(lease.words()),
            Home::Parked(spot) => Some(spot.file().words(spot.span())),
            Home::Nowhere | Home::Device => None,
        }
    }
}

/// A virtio-gpu blob resource.
#[derive(Debug)]
pub(crate) struct Blob {
    /// Who created it.
    pub(crate) context: ContextRef,
    /// `None` when the memory went with its context.
    pub(crate) memory: Option<MemoryKey>,
    pub(crate) mappable: bool,
    pub(crate) mapped: bool,
    /// Contexts that it is attached to.
    pub(crate) attached: Vec<u32>,
}
