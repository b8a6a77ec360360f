//! Where guests and host processes meet: what guests share, who looks at it, and memory that comes the other way.
//!
//! A *viewer* is a connection to the export socket. Guests and viewers each have a thread of their own; they meet under one lock, which
//! is held for bookkeeping alone. Nobody waits for anybody here: a guest tells and asks through [`GuestExports`], a viewer through
//! [`Viewer`]. What a viewer hears comes through one channel, in the order in which it happened. A viewer that
//! leaves its channel unread is dropped, so no guest can be kept waiting by it.
//!
//! | file | holds |
//! |---|---|
//! | `mod.rs` | the words of both sides, limits |
//! | `guest.rs` | what a guest does |
//! | `viewer.rs` | what a viewer does |
//! | `state.rs` | the tables between them |
//! | `exporter.rs` | what makes descriptors of pages |
//! | `foreign.rs` | which memory a viewer may hand in |
//!
//! ```
//! use hostblob_allocator::exports::{Event, Exports, Layout};
//! # use std::sync::Arc;
//! # fn memory() -> Arc<std::os::fd::OwnedFd> { Arc::new(std::fs::File::open("/dev/null").unwrap().into()) }
//! let exports = Exports::new();
//! let guest = exports.guest(Arc::new(|| {}));
//! let viewer = exports.join(Arc::new(|| {}))?;
//!
//! let blob = guest.add([7; 16], 4096, "frame")?;
//! guest.publish(blob, Layout { width: 32, height: 32, stride: 128, ..Layout::default() })?;
//! viewer.open(1, blob);
//! // The viewer's wish has woken the guest.
//! let request = guest.next_request().ok_or("nobody asks")?;
//! request.answer(Ok(memory()));
//! assert!(guest.is_open(blob));
//!
//! guest.present(blob, 0);
//! assert!(guest.in_use(blob, 0));
//! let last = viewer.events().try_iter().last().ok_or("nothing happened")?;
//! assert!(matches!(last, Event::Presented { present: 1, .. }));
//! viewer.release(blob, 0, 1)?;
//! assert!(!guest.in_use(blob, 0));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod exporter;
mod foreign;
mod guest;
mod state;
mod viewer;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use hostblob_protocol::Status;
pub use hostblob_protocol::export::Layout;
use hostblob_protocol::export::Outcome;
use parking_lot::Mutex;
use thiserror::Error;

pub use exporter::{Exporter, udmabuf};
pub use foreign::{Foreign, ForeignKind, NotImportable, is_dma_buf};
pub use guest::{DescriptorRequest, GuestExports};
use state::{Calls, State};
pub use viewer::Viewer;

use crate::Waker;

/// Viewers at a time: bounds what one present costs.
pub const MAX_VIEWERS: usize = 64;
/// Blobs that one guest may show.
pub const MAX_BLOBS: usize = 4096;
/// Buffers that one blob may hold.
pub const MAX_BUFFERS: usize = 1024;
/// Buffers that all blobs of one guest may hold: bounds a listing.
pub const MAX_GUEST_BUFFERS: usize = 16384;
/// Blobs that one viewer may have open, those that are destroyed included.
pub const MAX_OPEN: usize = 4096;
/// Buffers that one viewer may use.
pub const MAX_USES: usize = 65536;
/// Blobs that one viewer may wait for.
pub const MAX_WAITING: usize = 64;
/// Memories that one viewer may have handed in: each is a descriptor of ours.
pub const MAX_TOKENS: usize = 128;
/// Events that a viewer may leave unread.
pub const MAX_EVENTS: usize = 16384;
/// How long a viewer waits for a descriptor.
pub const OPEN_TIMEOUT: Duration = Duration::from_secs(5);

/// A blob's name among all that is ever exported: never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExportId(pub u64);

impl std::fmt::Display for ExportId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// A buffer as a viewer sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffer {
    /// What the guest says of it.
    pub layout: Layout,
    /// Number of its last present, 0 if there was none. Presents of a blob are counted together.
    pub present: u64,
}

/// A blob as a viewer sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its name here.
    pub id: ExportId,
    /// The UUID that the guest shares it under.
    pub uuid: [u8; 16],
    /// Bytes.
    pub size: u64,
    /// The guest's name for it.
    pub name: Arc<str>,
    /// By offset.
    pub buffers: Vec<Buffer>,
}

/// A blob that a viewer has open.
#[derive(Debug, Clone)]
pub struct Opened {
    /// The blob's bytes and nothing else. The same for everybody who opens the blob.
    pub descriptor: Arc<OwnedFd>,
    /// Bytes.
    pub size: u64,
    /// Its buffers. The viewer uses those that were presented.
    pub buffers: Vec<Buffer>,
}

/// What a viewer hears.
#[derive(Debug, Clone)]
pub enum Event {
    /// A blob can be opened.
    Added(Listed),
    /// A buffer is there, or another one at this offset.
    Published(ExportId, Buffer),
    /// The description of the buffer at this offset is gone. Who uses the buffer still does.
    Withdrawn(ExportId, u64),
    /// A buffer of an open blob has new contents, and the viewer uses it.
    Presented {
        /// In which blob.
        id: ExportId,
        /// Where.
        offset: u64,
        /// Number of this present, more than that of every earlier one of the blob.
        present: u64,
    },
    /// A blob can no longer be opened. Who has it open still has.
    Destroyed(ExportId),
    /// What [`Viewer::list`] asked for.
    Listing {
        /// The viewer's name for its wish.
        tag: u64,
        /// All blobs.
        blobs: Vec<Listed>,
    },
    /// How a wish to open ended.
    Opened {
        /// The viewer's name for its wish.
        tag: u64,
        /// Which blob.
        id: ExportId,
        /// What came of it.
        result: Result<Opened, ExportError>,
    },
}

/// Why something was refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ExportError {
    /// No such blob, or no longer.
    #[error("blob {0} does not exist")]
    UnknownBlob(ExportId),
    /// The viewer does not have the blob open.
    #[error("blob {0} is not open")]
    NotOpen(ExportId),
    /// The viewer does not use the buffer.
    #[error("the buffer at {1:#x} of blob {0} is not in use")]
    NotInUse(ExportId, u64),
    /// The guest's side has no descriptor for it.
    #[error("no descriptor: {0}")]
    Refused(Status),
    /// The guest's side did not answer within [`OPEN_TIMEOUT`].
    #[error("no descriptor came within {OPEN_TIMEOUT:?}")]
    TimedOut,
    /// A limit.
    #[error("{0} {1}, that is the limit")]
    TooMany(usize, &'static str),
    /// A buffer that does not lie inside its blob, or has none of a size.
    #[error("{layout:?} does not lie in a blob of {size} bytes")]
    BadLayout {
        /// The buffer.
        layout: Layout,
        /// The blob.
        size: u64,
    },
    /// Memory that no guest can import.
    #[error(transparent)]
    NotImportable(NotImportable),
    /// No such token of this viewer.
    #[error("no such token")]
    UnknownToken,
    /// The viewer left too much unread or unreleased, and is no longer here.
    #[error("{MAX_EVENTS} events were not read, or {MAX_USES} buffers not released")]
    Dropped,
    /// The system refuses what it must not.
    #[error("{0}: {1}")]
    System(&'static str, rustix::io::Errno),
}

impl ExportError {
    /// What a host process is told.
    pub fn outcome(&self) -> Outcome {
        match self {
            ExportError::UnknownBlob(_) => Outcome::UnknownBlob,
            ExportError::NotOpen(_) => Outcome::NotOpen,
            ExportError::NotInUse(..) => Outcome::NotInUse,
            ExportError::Refused(_) => Outcome::Refused,
            ExportError::TimedOut => Outcome::TimedOut,
            ExportError::TooMany(..) => Outcome::TooMany,
            ExportError::NotImportable(_) => Outcome::BadMemory,
            ExportError::UnknownToken => Outcome::UnknownToken,
            ExportError::BadLayout { .. } | ExportError::Dropped | ExportError::System(..) => {
                Outcome::Internal
            }
        }
    }

    /// What a guest is told.
    pub fn status(&self) -> Status {
        match self {
            ExportError::Refused(status) => *status,
            ExportError::TimedOut => Status::Timeout,
            ExportError::TooMany(..) => Status::TooManyObjects,
            ExportError::BadLayout { .. } => Status::OutOfRange,
            ExportError::UnknownToken => Status::UnknownUuid,
            ExportError::NotImportable(NotImportable::System(_)) => Status::OutOfHostMemory,
            ExportError::NotImportable(_) => Status::Unsupported,
            _ => Status::Internal,
        }
    }
}

/// All exports of a daemon.
pub struct Exports {
    state: Mutex<State>,
}

impl std::fmt::Debug for Exports {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Exports").finish_non_exhaustive()
    }
}

impl Exports {
    /// Nothing is shared, nobody looks.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
        })
    }

    /// A guest comes. `waker` is called, from any thread, when it should look: [`GuestExports::next_request`], and whatever it asked of
    /// [`GuestExports::is_open`] and [`GuestExports::in_use`].
    pub fn guest(self: &Arc<Self>, waker: Waker) -> GuestExports {
        let guest = self.with(|state, _| state.add_guest(waker));
        GuestExports::new(Arc::clone(self), guest)
    }

    /// A viewer comes. `waker` is called, from any thread, when there is something in [`Viewer::events`], or never will be again.
    pub fn join(self: &Arc<Self>, waker: Waker) -> Result<Viewer, ExportError> {
        let (viewer, events) = self.with(|state, _| state.add_viewer(waker))?;
        Ok(Viewer::new(Arc::clone(self), viewer, events))
    }

    /// Works on the tables. Whoever has to look is woken when the lock is free, as nobody knows what a waker does.
    fn with<R>(&self, work: impl FnOnce(&mut State, &mut Calls) -> R) -> R {
        let mut calls = Calls::default();
        let result = work(&mut self.state.lock(), &mut calls);
        calls.make();
        result
    }
}

/// Whether a blob of `size` bytes has room for a buffer.
pub(crate) fn check_layout(layout: Layout, size: u64) -> Result<(), ExportError> {
    let end = u64::from(layout.stride)
        .checked_mul(layout.height.into())
        .filter(|&bytes| bytes > 0 && layout.width > 0)
        .and_then(|bytes| bytes.checked_add(layout.offset));
    if end.is_none_or(|end| end > size) {
        return Err(ExportError::BadLayout { layout, size });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
