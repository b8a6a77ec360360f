//! What attaches a host GPU API to bytes.
//!
//! The bytes themselves live in files that the window owns (the window memfd, the parking memfd); a provider only
//! attaches to ranges of them, so losing a provider loses no guest byte. It is spoken to in messages that
//! carry no pointers: a later provider may live in another process.
//!
//! | module | answers |
//! |---|---|
//! | `vulkan` | a host GPU through Vulkan |
//! | `gl` | a host GPU through OpenGL |
//! | `system` | no GPU: the CPU does it |
//! | `process` | any of them, in a process of its own |
//! | `fake` | for tests: counts, refuses, holds back |
//! | `select` | which of them this host gets |
//! | `inventory` | what this host could offer, for people |
//! | `table`, `mapping`, `outlet`, `udmabuf`, `trial` | what the providers share: checks, mapped files, sinks, probing |
//! | `front`, `desk`, `lane` | what providers with threads share: sessions, serving, the order of answers |
//!
//! The order of things, which every provider keeps:
//! - requests of one session take effect in the order of submission (a `Fill` after a `Copy` of the same bytes sees it);
//! - each request is answered by exactly one [`Completion`] with its sequence number, and completions arrive
//!   in the order of submission;
//! - when the completion of `Release` arrives, the GPU no longer reaches those bytes;
//! - when the completion of `Fill` or `Copy` arrives, the CPU sees the result.
//!
//! After [`ProviderError::DeviceLost`] the GPU does nothing any more of what it was asked: a `Release` that fails so has released all the same. Where
//! another one takes over (`process`), later requests are served.

mod desk;
mod elsewhere;
mod front;
mod inventory;
mod lane;
mod mapping;
mod outlet;
mod select;
mod table;
mod trial;
pub(crate) mod udmabuf;

pub mod fake;
pub mod gl;
pub mod process;
pub mod system;
pub mod vulkan;

#[cfg(test)]
pub(crate) use mapping::sealed_memfd;

#[cfg(test)]
mod contract;
#[cfg(test)]
mod faults;

use std::borrow::Cow;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use elsewhere::{Elsewhere, HostAddress};
pub use inventory::{DeviceReport, Inventory, inventory};
pub use select::{Choice, DeviceSelector, OpenError, Opened, Options, ParseChoiceError, open};

/// The bits of [`MemoryType::property_flags`] and [`Heap::flags`] that a guest can meet.
pub mod property {
    /// `VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT`.
    pub const DEVICE_LOCAL: u32 = 1;
    /// `VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT`.
    pub const HOST_VISIBLE: u32 = 2;
    /// `VK_MEMORY_PROPERTY_HOST_COHERENT_BIT`.
    pub const HOST_COHERENT: u32 = 4;
    /// `VK_MEMORY_PROPERTY_HOST_CACHED_BIT`.
    pub const HOST_CACHED: u32 = 8;
    /// `VK_MEMORY_HEAP_DEVICE_LOCAL_BIT`.
    pub const HEAP_DEVICE_LOCAL: u32 = 1;
}

/// A file registered with a provider session: the window, the parking file, or pieces of the files of others. Never reused
/// within a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FileId(pub u64);

/// A range of somebody else's file: guest memory, or memory that a host process handed in.
#[derive(Debug, Clone)]
pub struct Piece {
    /// What holds the bytes; open for reading and writing.
    pub file: Arc<File>,
    /// First byte in it: a multiple of the page size.
    pub offset: u64,
    /// Bytes: a multiple of the page size, not 0.
    pub length: u64,
}

/// Bytes that the GPU can reach, named by the caller. Never reused within a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct AttachmentId(pub u64);

/// What a session asks of its provider. `M` and `P` stand for the memory that it names: descriptors, or in a message what is beside it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Request<M = OwnedFd, P = Vec<Piece>> {
    /// Makes `length` bytes of a memfd known under `file`. Sent once per file, before any `Attach` to it.
    ///
    /// The memfd is sealed with `F_SEAL_SHRINK` (others hold it too, and a page that goes away under the provider's
    /// mapping would be a SIGBUS; udmabuf asks for the seal as well) and not with `F_SEAL_WRITE`.
    AddFile {
        /// The name for later requests.
        file: FileId,
        /// The memfd; mapped shared by the provider.
        descriptor: M,
        /// Bytes of the file that may be attached; a multiple of the page size.
        length: u64,
    },
    /// Makes pieces of files known under `file`, as if they were one, in the order given. Whoever owns the files does not shrink
    /// them, or ends: an access past the end of a file is a SIGBUS. Nobody else is asked for seals here, because guest memory is the
    /// VMM's, and a dma-buf has none.
    AddPieces {
        /// The name for later requests.
        file: FileId,
        /// Not empty.
        pieces: P,
    },
    /// Forgets a file. What is attached to it stays so until its `Release`.
    RemoveFile {
        /// What `AddFile` or `AddPieces` named.
        file: FileId,
    },
    /// Attaches the GPU to a range of a file. `offset` and `length` are multiples of
    /// [`Description::attach_alignment`].
    Attach {
        /// The name for later requests.
        attachment: AttachmentId,
        /// The file that holds the bytes.
        file: FileId,
        /// First byte in the file.
        offset: u64,
        /// Bytes; never 0.
        length: u64,
        /// Index into [`Description::memory_types`], of placement [`Placement::Window`].
        memory_type: u32,
    },
    /// Allocates device memory; it reads as zeros.
    Allocate {
        /// The name for later requests.
        attachment: AttachmentId,
        /// Bytes; never 0.
        length: u64,
        /// Index into [`Description::memory_types`], of placement [`Placement::Device`] or [`Placement::Exported`].
        memory_type: u32,
    },
    /// Asks where the CPU finds memory of placement [`Placement::Exported`]. It may be used once the `Allocate` has succeeded: until
    /// then it has what others left there.
    Export {
        /// What `Allocate` named.
        attachment: AttachmentId,
    },
    /// Detaches or frees, after all earlier work on the attachment has finished.
    Release {
        /// What `Attach` or `Allocate` named.
        attachment: AttachmentId,
    },
    /// Writes `value` over a range (`vkCmdFillBuffer`): `offset` and `length` are multiples of 4, inside the attachment.
    Fill {
        /// Where.
        attachment: AttachmentId,
        /// First byte within the attachment.
        offset: u64,
        /// Bytes; never 0.
        length: u64,
        /// Four bytes, little-endian, repeated.
        value: u32,
    },
    /// Copies bytes between attachments (`vkCmdCopyBuffer`); the two ranges do not overlap, neither in one attachment
    /// nor in the file where two attachments share bytes.
    Copy {
        /// From where.
        source: AttachmentId,
        /// First byte within the source.
        source_offset: u64,
        /// To where.
        destination: AttachmentId,
        /// First byte within the destination.
        destination_offset: u64,
        /// Bytes; never 0.
        length: u64,
    },
}

impl<M, P> Request<M, P> {
    /// The same, whatever stands for memory; `None` where the request names some.
    pub(crate) fn without_memory<N, Q>(self) -> Option<Request<N, Q>> {
        Some(match self {
            Self::AddFile { .. } | Self::AddPieces { .. } => return None,
            Self::RemoveFile { file } => Request::RemoveFile { file },
            Self::Attach {
                attachment,
                file,
                offset,
                length,
                memory_type,
            } => Request::Attach {
                attachment,
                file,
                offset,
                length,
                memory_type,
            },
            Self::Allocate {
                attachment,
                length,
                memory_type,
            } => Request::Allocate {
                attachment,
                length,
                memory_type,
            },
            Self::Export { attachment } => Request::Export { attachment },
            Self::Release { attachment } => Request::Release { attachment },
            Self::Fill {
                attachment,
                offset,
                length,
                value,
            } => Request::Fill {
                attachment,
                offset,
                length,
                value,
            },
            Self::Copy {
                source,
                source_offset,
                destination,
                destination_offset,
                length,
            } => Request::Copy {
                source,
                source_offset,
                destination,
                destination_offset,
                length,
            },
        })
    }
}

/// Goes to a provider in place of a request that somebody before it has refused: it does nothing and comes back as an error, in its turn and from
/// the provider's thread.
pub const REFUSED: Request = Request::Fill {
    attachment: AttachmentId(u64::MAX),
    offset: 0,
    length: 0,
    value: 0,
};

/// Why a provider did not do what was asked. The state is as before the request.
#[derive(Debug, Clone, PartialEq, Eq, Error, Serialize, Deserialize)]
pub enum ProviderError {
    /// The host has no memory left for it.
    #[error("out of host memory: {0}")]
    OutOfHostMemory(String),
    /// The device has no memory left for it.
    #[error("out of device memory: {0}")]
    OutOfDeviceMemory(String),
    /// The GPU or its driver is gone; so is what was allocated on it.
    #[error("device lost: {0}")]
    DeviceLost(String),
    /// The request names something that does not exist or is out of range: a mistake of the caller.
    #[error("invalid request: {0}")]
    Invalid(String),
    /// The driver refused for a reason of its own.
    #[error("driver refused: {0}")]
    Driver(String),
}

/// The answer to one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Completion {
    /// As passed to [`Session::submit`].
    pub sequence: u64,
    /// Done, or why not. `Export` alone brings something.
    pub result: Result<Option<Elsewhere>, ProviderError>,
}

/// Where completions go; called from the provider's threads, must not block. (When a provider's thread could not be
/// started or died, `submit` itself calls it with [`ProviderError::DeviceLost`]: hold no lock there that the sink takes.)
pub type CompletionSink = Box<dyn Fn(Completion) + Send>;

/// Where the bytes of a memory type live.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Placement {
    /// In the window: the guest can map it; the GPU is attached to it.
    Window,
    /// In device memory: only the GPU reaches it.
    Device,
    /// In device memory that has a file, or an address, of its own: a guest can map it where blobs are mapped one by one.
    Exported,
}

/// A memory heap as the guest should see it (`VkMemoryHeap`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heap {
    /// Bytes.
    pub size: u64,
    /// `VkMemoryHeapFlags`.
    pub flags: u32,
}

/// A memory type as the guest should see it (`VkMemoryType`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryType {
    /// `VkMemoryPropertyFlags`.
    pub property_flags: u32,
    /// Index into [`Description::heaps`].
    pub heap: u32,
    /// Where its bytes live.
    pub placement: Placement,
}

/// How exported memory is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExportKind {
    /// By a file: any VMM can map it.
    File,
    /// By an address: a VMM in this process can map it.
    Address,
}

/// Which API a provider speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProviderKind {
    /// None: plain memory, and the CPU fills and copies.
    System,
    /// Vulkan.
    Vulkan,
    /// OpenGL.
    Gl,
}

/// What a provider offers, found out by probing when it starts and constant afterwards.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// The API.
    pub kind: ProviderKind,
    /// `VkPhysicalDeviceProperties::deviceName` or its like.
    pub device_name: String,
    /// `VkPhysicalDeviceDriverProperties`: driver name and info.
    pub driver_name: String,
    /// How the GPU is attached to window memory, for people: `host pointer`, `udmabuf dma-buf`, `cpu`.
    pub attach_strategy: Cow<'static, str>,
    /// PCI vendor, or 0.
    pub vendor_id: u32,
    /// PCI device, or 0.
    pub device_id: u32,
    /// `VkPhysicalDeviceIDProperties::deviceUUID`.
    pub device_uuid: [u8; 16],
    /// `VkPhysicalDeviceIDProperties::driverUUID`.
    pub driver_uuid: [u8; 16],
    /// Heaps in the order of the guest's view.
    pub heaps: Vec<Heap>,
    /// Types in the order of the guest's view, as the Vulkan specification orders memory types. All host-visible
    /// types are coherent: what cannot promise that is not offered. Those of placement [`Placement::Exported`] come last, and so do the
    /// heaps that only they use: a guest that cannot map them sees neither.
    pub memory_types: Vec<MemoryType>,
    /// What `Export` gives.
    pub exports: ExportKind,
    /// Offsets and lengths of `Attach` are multiples of it: a power of two, at least the page size.
    pub attach_alignment: u64,
    /// `VkPhysicalDeviceLimits::nonCoherentAtomSize`; 1 where all types are coherent.
    pub non_coherent_atom_size: u64,
    /// Largest `Attach` or `Allocate` in bytes: `maxMemoryAllocationSize` and the limits of the attach strategy.
    pub max_allocation_size: u64,
}

impl Description {
    /// Where the bytes of a memory type live.
    #[must_use]
    pub fn placement(&self, memory_type: u32) -> Option<Placement> {
        let index = usize::try_from(memory_type).ok()?;
        self.memory_types.get(index).map(|found| found.placement)
    }
}

/// A host GPU API, shared by all guests of a daemon.
pub trait Provider: Send + Sync {
    /// What it offers.
    fn description(&self) -> &Description;

    /// Opens a session for one guest. Dropping the session releases all that it attached and
    /// allocated, after the work in flight; nothing is delivered to the sink afterwards.
    ///
    /// The drop does not wait for the GPU, which may reach the session's bytes a little longer. Whoever wants to reuse
    /// bytes of a file sends `Release` and awaits its completion first. A session must not be dropped from within its
    /// own sink.
    fn connect(&self, sink: CompletionSink) -> Box<dyn Session>;
}

/// One guest's connection to a provider.
pub trait Session: Send {
    /// Queues a request; never blocks on the GPU. `sequence` grows with each call.
    fn submit(&mut self, sequence: u64, request: Request);
}
