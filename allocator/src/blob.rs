//! What the guest owns: memories, blobs, and the legal changes between their states.
//!
//! ```text
//! memory   Nowhere ──map──> Window ──another blob needs the place──> Parked ──map──> Window
//!             └──GPU use before any map──> Parked
//!          Unbacked ──attach backing──> Pages ──detach backing──> Unbacked
//!          Foreign ──map──> Foreign, with a place in the window ──unmap──> Foreign
//!          Device ──first map or export──> Exported ──map──> Exported, with a place in the window ──unmap──> Exported
//! blob     created ──map──> mapped ──unmap──> created (the bytes stay where they are)
//! ```
//!
//! A memory owns its bytes: the lease or the parking spot is inside it, so bytes are given back when, and only when, the memory
//! drops. A memory dies with its names and its blob: whoever of them is the last.

mod slice;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use hostblob_protocol::request::CreateFlags;
use uuid::Uuid;

pub(crate) use slice::Slice;

use crate::context::ContextRef;
use crate::exports::ExportId;
use crate::provider::{AttachmentId, Elsewhere, FileId, Piece};
use crate::quota::Charge;
use crate::window::{Lease, ParkingSpot};

/// Key of a memory within its guest; never reused. Also the owner number of its lease.
pub(crate) type MemoryKey = u64;

/// Where a memory's bytes are. What is large and rare is in boxes: each memory has room for one of these.
#[derive(Debug)]
pub(crate) enum Home {
    /// Never written: zeros.
    Nowhere,
    /// In the window, at the place of the last mapping.
    Window(Lease),
    /// In the parking file.
    Parked(Box<ParkingSpot>),
    /// In device memory, under its attachment.
    Device {
        /// When it will be known where the CPU finds it: the point of the request, once somebody has asked.
        exposed_at: Option<u64>,
    },
    /// In device memory, under its attachment, where the CPU finds it.
    Exported {
        bytes: Elsewhere,
        /// As for `Foreign`.
        place: Option<Box<Lease>>,
    },
    /// In the guest's own pages.
    Pages(Box<Pages>),
    /// In memory of a host process.
    Foreign {
        pages: Box<Pages>,
        /// Where it is mapped. The place is kept free of others; its own bytes stay unused.
        place: Option<Box<Lease>>,
    },
    /// In pages of the guest, once it attaches some.
    Unbacked,
}

impl Home {
    /// The place in the window of bytes that are not the window's, where they can have one.
    pub(crate) fn place_mut(&mut self) -> Option<&mut Option<Box<Lease>>> {
        match self {
            Self::Foreign { place, .. } | Self::Exported { place, .. } => Some(place),
            _ => None,
        }
    }
}

/// Bytes in files that are not ours.
#[derive(Debug)]
pub(crate) struct Pages {
    /// The pieces as one file of the provider's session.
    pub(crate) file: FileId,
    pub(crate) pieces: Vec<Piece>,
    /// The provider knows the file. It is told on the first GPU use.
    pub(crate) known: bool,
    /// Counts the pieces of all of a guest's pages.
    count: Arc<AtomicUsize>,
    /// What it is charged with beside that.
    _charge: Option<Charge>,
}

impl Pages {
    pub(crate) fn new(
        file: FileId,
        pieces: Vec<Piece>,
        count: &Arc<AtomicUsize>,
        charge: Option<Charge>,
    ) -> Box<Self> {
        count.fetch_add(pieces.len(), Ordering::Relaxed);
        Box::new(Self {
            file,
            pieces,
            known: false,
            count: Arc::clone(count),
            _charge: charge,
        })
    }

    /// Whether both are the same bytes.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        let same = |(a, b): (&Piece, &Piece)| {
            Arc::ptr_eq(&a.file, &b.file) && (a.offset, a.length) == (b.offset, b.length)
        };
        self.pieces.len() == other.pieces.len() && self.pieces.iter().zip(&other.pieces).all(same)
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        self.count.fetch_sub(self.pieces.len(), Ordering::Relaxed);
    }
}

/// What a context calls a memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Name {
    pub(crate) context: ContextRef,
    pub(crate) client_id: u64,
    /// It came by an import, and counts as an object of its context; the first name counts with the memory.
    pub(crate) imported: bool,
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
    /// All names; none where only the blob refers to it. Contexts find it by theirs.
    pub(crate) names: Vec<Name>,
    /// `None` for most: as if all of it were.
    pub(crate) shared: Option<Box<Shared>>,
    /// For logs, and for host processes.
    pub(crate) label: Option<Box<str>>,
    pub(crate) size: u64,
    pub(crate) memory_type: u32,
    pub(crate) flags: CreateFlags,
    pub(crate) binding: Binding,
    /// The GPU reaches the bytes under this name.
    pub(crate) attachment: Option<AttachmentId>,
    /// Sequence of the last release of an attachment: before its completion the bytes must not move.
    pub(crate) released_at: u64,
    pub(crate) home: Home,
    /// Given back last. None for bytes that are not ours.
    pub(crate) _charge: Option<Charge>,
}

/// What others know a memory by.
#[derive(Debug)]
pub(crate) struct Shared {
    /// What it is shared as.
    pub(crate) uuid: Option<Uuid>,
    /// What host processes know it by.
    pub(crate) export: Option<ExportId>,
    /// What another device of the VM was given.
    pub(crate) lent: Option<Arc<OwnedFd>>,
    /// Other devices of the VM were told of it.
    pub(crate) announced: bool,
}

impl Shared {
    const NOT: Self = Self {
        uuid: None,
        export: None,
        lent: None,
        announced: false,
    };
}

impl Memory {
    /// Memory that nobody has a name for, or has used or shared.
    pub(crate) fn new(context: ContextRef, size: u64, memory_type: u32, home: Home) -> Self {
        Self {
            context,
            names: Vec::new(),
            shared: None,
            label: None,
            size,
            memory_type,
            flags: CreateFlags::empty(),
            binding: Binding::Unbound,
            attachment: None,
            released_at: 0,
            home,
            _charge: None,
        }
    }

    /// What others know it by.
    pub(crate) fn shared(&self) -> &Shared {
        self.shared.as_deref().unwrap_or(&Shared::NOT)
    }

    /// As [`Memory::shared`], to be changed.
    pub(crate) fn shared_mut(&mut self) -> &mut Shared {
        self.shared.get_or_insert_with(|| Box::new(Shared::NOT))
    }

    /// Checks a guest's range against the size.
    pub(crate) fn slice(&self, offset: u64, length: u64) -> Result<Slice, crate::Error> {
        Slice::new(offset, length, self.size).ok_or(crate::Error::Range {
            offset,
            length,
            size: self.size,
        })
    }

    /// The name that dies with the blob, where both were created in one.
    pub(crate) fn name_of_blob(&self) -> Option<Name> {
        let mut first = self.names.iter().filter(|name| !name.imported);
        first
            .next()
            .copied()
            .filter(|_| self.flags.contains(CreateFlags::MAP_DIRECTLY))
    }

    /// Whether its bytes are those of a blob whose pages are the guest's.
    pub(crate) fn is_guest_backed(&self) -> bool {
        matches!(self.home, Home::Pages(_) | Home::Unbacked)
    }

    /// The bytes, where the CPU reaches them.
    pub(crate) fn words(&self) -> Option<&[AtomicU64]> {
        match &self.home {
            Home::Window(lease) => Some(lease.words()),
            Home::Parked(spot) => Some(spot.file().words(spot.span())),
            Home::Nowhere
            | Home::Device { .. }
            | Home::Exported { .. }
            | Home::Pages(_)
            | Home::Foreign { .. }
            | Home::Unbacked => None,
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
    /// The guest's pages beside the host's memory, of a `BLOB_MEM_HOST3D_GUEST`.
    pub(crate) shadow: Option<MemoryKey>,
    pub(crate) mappable: bool,
    pub(crate) mapped: bool,
    /// Contexts that it is attached to.
    pub(crate) attached: Vec<u32>,
}
