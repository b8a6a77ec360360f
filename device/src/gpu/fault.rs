//! From what is wrong to the error code of the specification, in one place.

use hostblob_allocator::Error;
use hostblob_allocator::provider::ProviderError;
use hostblob_protocol::virtio_gpu::resp;
use thiserror::Error as ThisError;

/// Why a command was refused.
#[derive(Debug, Clone, PartialEq, Eq, ThisError)]
pub(super) enum Fault {
    /// The allocator refused.
    #[error(transparent)]
    Allocator(#[from] Error),
    /// Shorter than its structure, or than what its fields announce.
    #[error("{needed} bytes are needed after the header, {available} are there")]
    Truncated { needed: usize, available: usize },
    /// A field is outside its documented values.
    #[error("{field} is {value:#x}: {expected}")]
    Field {
        field: &'static str,
        value: u64,
        expected: &'static str,
    },
    /// No file is behind a guest-physical address.
    #[error("{address:#x} is no guest memory that the host can use")]
    NotMemory { address: u64 },
    /// The transport could not map the window.
    #[error("the VMM does not give the guest the window")]
    NoWindow,
    /// The transport could not map a blob.
    #[error("the blob is not mapped: {0}")]
    NotMapped(String),
    /// The device has no such scanout.
    #[error("scanout {0} does not exist: there is scanout 0 with --display, else none")]
    NoScanout(u32),
    /// What a guest may have at most, beyond its bytes.
    #[error("{1} {0}, that is the limit")]
    Limit(&'static str, usize),
    /// The guest's pages cannot be used.
    #[error("pages of the guest: {0}")]
    Pages(String),
    /// Another renderer refused.
    #[error("rutabaga: {reason}")]
    Renderer { response: u32, reason: String },
    /// Another renderer does not answer.
    #[error("the renderer is lost: {0}")]
    RendererLost(&'static str),
    /// The command exists, but no feature that this device offers has it; or it does not exist.
    #[error("the command is not served by this device")]
    NotServed,
}

impl Fault {
    /// `VIRTIO_GPU_RESP_ERR_*` (virtio 1.3, 5.7.6.7).
    pub(super) fn response(&self) -> u32 {
        match self {
            Fault::Allocator(error) => allocator_response(error),
            Fault::Truncated { .. } | Fault::Field { .. } | Fault::NotMemory { .. } => {
                resp::ERR_INVALID_PARAMETER
            }
            Fault::NoWindow | Fault::NotMapped(_) | Fault::Limit(..) | Fault::Pages(_) => {
                resp::ERR_OUT_OF_MEMORY
            }
            Fault::Renderer { response, .. } => *response,
            Fault::NoScanout(_) => resp::ERR_INVALID_SCANOUT_ID,
            Fault::NotServed | Fault::RendererLost(_) => resp::ERR_UNSPEC,
        }
    }
}

fn allocator_response(error: &Error) -> u32 {
    match error {
        Error::UnknownContext(_) | Error::ContextIdTaken(_) => resp::ERR_INVALID_CONTEXT_ID,
        Error::UnknownResource(_) | Error::ResourceIdTaken(_) | Error::Orphaned(_) => {
            resp::ERR_INVALID_RESOURCE_ID
        }
        Error::TooManyContexts(_)
        | Error::TooManyObjects(_)
        | Error::Fragmented { .. }
        | Error::Quota(_)
        | Error::TooMuchWork(_)
        | Error::Parking(_)
        | Error::GpuTimeout(_)
        | Error::Provider(
            ProviderError::OutOfHostMemory(_) | ProviderError::OutOfDeviceMemory(_),
        ) => resp::ERR_OUT_OF_MEMORY,
        Error::Provider(_) => resp::ERR_UNSPEC,
        _ => resp::ERR_INVALID_PARAMETER,
    }
}
