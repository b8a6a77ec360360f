//! Everything that can be wrong with what a guest asks, and the wire status of each, in one place.

use hostblob_capset::Mismatch;
use hostblob_protocol::request::{CacheMode, CreateFlags};
use hostblob_protocol::{DecodeError, Status};
use thiserror::Error;
use uuid::Uuid;

use crate::exports::ExportError;
use crate::provider::ProviderError;
use crate::quota::{Exceeded, Level};
use crate::window::SpanError;

/// Why a request was refused. The state is as before it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Error {
    /// The bytes are not an envelope that can be served here.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// Guest and host speak too little in common.
    #[error(transparent)]
    Negotiation(#[from] Mismatch),
    /// A request, flag or blob kind that this host does not serve.
    #[error("{0} is not served by this host")]
    Unsupported(&'static str),
    /// A field is outside its documented values.
    #[error("{field} is {value:#x}: {expected}")]
    Argument {
        /// The field's name.
        field: &'static str,
        /// What the guest sent.
        value: u64,
        /// What it may be.
        expected: &'static str,
    },
    /// No context of this id.
    #[error("context {0} does not exist")]
    UnknownContext(u32),
    /// The context id is 0 or taken.
    #[error("context id {0} is 0 or in use")]
    ContextIdTaken(u32),
    /// As many contexts as there may be.
    #[error("{0} contexts exist, that is the limit")]
    TooManyContexts(usize),
    /// No resource of this id.
    #[error("resource {0} does not exist")]
    UnknownResource(u32),
    /// The resource id is 0 or taken.
    #[error("resource id {0} is 0 or in use")]
    ResourceIdTaken(u32),
    /// The context, or the device, has as many objects as it may.
    #[error("{0} objects exist, that is the limit")]
    TooManyObjects(u64),
    /// No memory of this client id in the context.
    #[error("client id {0:#x} names no memory of this context")]
    UnknownClientId(u64),
    /// The client id names memory already.
    #[error("client id {0:#x} is in use")]
    ClientIdInUse(u64),
    /// No memory type fits.
    #[error("no memory type fits {0}")]
    NoMemoryType(String),
    /// The cache mode is not the expected one.
    #[error("cache mode {expected:?} expected, the memory type has {found:?}")]
    CacheMode {
        /// By the guest.
        expected: CacheMode,
        /// What the memory type has.
        found: CacheMode,
    },
    /// The blob's flags do not say what the memory's flags say.
    #[error("blob flags {blob:#x} do not agree with {memory:?}")]
    Flags {
        /// `VIRTIO_GPU_BLOB_FLAG_*`.
        blob: u32,
        /// Of the memory.
        memory: CreateFlags,
    },
    /// The blob's size is not the memory's.
    #[error("blob of {blob} bytes for memory of {memory}")]
    SizeMismatch {
        /// Of the blob.
        blob: u64,
        /// Of the memory.
        memory: u64,
    },
    /// The memory has a blob already, or is about to.
    #[error("client id {0:#x} is bound to a blob already")]
    Bound(u64),
    /// The memory was created without MAP_DIRECTLY, and BIND_CLIENT_ID did not come before the blob.
    #[error("client id {0:#x} was created for binding and is not bound")]
    NotBound(u64),
    /// The guest cannot map it.
    #[error("the memory cannot be mapped: {0}")]
    NotMappable(&'static str),
    /// The blob is mapped already.
    #[error("resource {0} is mapped already")]
    AlreadyMapped(u32),
    /// The blob is not mapped.
    #[error("resource {0} is not mapped")]
    NotMapped(u32),
    /// The blob's memory went with its context.
    #[error("the memory of resource {0} went with its context")]
    Orphaned(u32),
    /// The place in the window is not one.
    #[error("window: {0}")]
    Place(#[from] SpanError),
    /// Another mapped blob is there.
    #[error("window offset {offset:#x}, {length:#x} bytes: another mapped blob is there")]
    Occupied {
        /// In the window.
        offset: u64,
        /// Bytes.
        length: u64,
    },
    /// Offset and length do not lie inside the memory.
    #[error(
        "offset {offset:#x} and length {length:#x} do not lie inside memory of {size:#x} bytes"
    )]
    Range {
        /// First byte.
        offset: u64,
        /// Bytes.
        length: u64,
        /// Of the memory.
        size: u64,
    },
    /// A limit on bytes.
    #[error(transparent)]
    Quota(#[from] Exceeded),
    /// A limit on work of the GPU: it may be asked for again when some has been done.
    #[error(transparent)]
    TooMuchWork(Exceeded),
    /// The memory is to be of guest pages, and none are attached.
    #[error("no guest pages are attached to the memory")]
    NoBacking,
    /// Guest pages are attached already.
    #[error("resource {0} has guest pages already")]
    HasBacking(u32),
    /// The guest pages are not those of the blob, or no blob of this kind has any.
    #[error("backing of resource {resource}: {reason}")]
    Backing {
        /// Whose.
        resource: u32,
        /// What is wrong.
        reason: &'static str,
    },
    /// Guest pages lie in too many places.
    #[error(
        "guest pages in {pieces} pieces, {limit} are the limit: larger pages in the guest help"
    )]
    Fragmented {
        /// Runs of pages.
        pieces: usize,
        /// Past which it is refused.
        limit: usize,
    },
    /// The memory was created without SHAREABLE.
    #[error("the memory was created without SHAREABLE")]
    NotShareable,
    /// Nothing is shared under this UUID.
    #[error("nothing is shared under the UUID {0}")]
    UnknownUuid(Uuid),
    /// The time to wait is over.
    #[error("a host process still uses it")]
    Timeout,
    /// A host process has the memory open, which must stay where it is.
    #[error("a host process has the memory open: it cannot move")]
    InUse,
    /// The export socket's side refused.
    #[error("export: {0}")]
    Export(#[from] ExportError),
    /// The host cannot park more bytes, or make the file for it.
    #[error("the host cannot keep the bytes outside the window: {0}")]
    Parking(String),
    /// The GPU did not finish in time with bytes that have to move.
    #[error("the GPU did not finish within {0:?}")]
    GpuTimeout(std::time::Duration),
    /// The provider refused.
    #[error(transparent)]
    Provider(#[from] ProviderError),
}

impl Error {
    /// The status that answers it.
    pub fn status(&self) -> Status {
        match self {
            Error::Decode(error) => error.status(),
            Error::Negotiation(_) => Status::UnsupportedVersion,
            Error::Unsupported(_) => Status::Unsupported,
            Error::Argument { .. }
            | Error::UnknownContext(_)
            | Error::ContextIdTaken(_)
            | Error::UnknownResource(_)
            | Error::ResourceIdTaken(_)
            | Error::AlreadyMapped(_)
            | Error::NotMapped(_)
            | Error::Orphaned(_)
            | Error::NotBound(_)
            | Error::SizeMismatch { .. } => Status::InvalidArgument,
            Error::TooManyContexts(_) | Error::TooManyObjects(_) => Status::TooManyObjects,
            Error::UnknownClientId(_) => Status::UnknownClientId,
            Error::ClientIdInUse(_) => Status::ClientIdInUse,
            Error::NoMemoryType(_) => Status::InvalidMemoryType,
            Error::CacheMode { .. } => Status::CacheModeMismatch,
            Error::Flags { .. } => Status::FlagsMismatch,
            Error::Bound(_) => Status::AlreadyBound,
            Error::NotMappable(_) => Status::NotMappable,
            Error::Place(_) | Error::Occupied { .. } => Status::WindowExhausted,
            Error::Range { .. } => Status::OutOfRange,
            Error::Quota(Exceeded {
                level: Level::Context,
                ..
            }) => Status::ContextQuotaExceeded,
            Error::Quota(Exceeded {
                level: Level::Device,
                ..
            }) => Status::DeviceQuotaExceeded,
            Error::NoBacking => Status::NoBacking,
            Error::HasBacking(_) | Error::Backing { .. } => Status::InvalidArgument,
            Error::Fragmented { .. } => Status::TooManyObjects,
            Error::NotShareable => Status::NotShareable,
            Error::UnknownUuid(_) => Status::UnknownUuid,
            Error::Timeout => Status::Timeout,
            Error::InUse => Status::InUse,
            Error::Export(error) => error.status(),
            Error::Parking(_) | Error::GpuTimeout(_) | Error::TooMuchWork(_) => {
                Status::OutOfHostMemory
            }
            Error::Provider(error) => provider_status(error),
        }
    }
}

fn provider_status(error: &ProviderError) -> Status {
    match error {
        ProviderError::OutOfHostMemory(_) => Status::OutOfHostMemory,
        ProviderError::OutOfDeviceMemory(_) => Status::OutOfDeviceMemory,
        ProviderError::DeviceLost(_) => Status::DeviceLost,
        ProviderError::Driver(_) => Status::DriverFailure,
        // Requests are checked before they reach a provider.
        ProviderError::Invalid(_) => Status::Internal,
    }
}
