//! Why a call is refused, and which number says so.

use hostblob_allocator::Error as Refusal;
use hostblob_allocator::provider::{OpenError, ProviderError};
use rutabaga_gfx::RutabagaError;
use thiserror::Error as ThisError;

pub(crate) type Result<T> = std::result::Result<T, Error>;

/// Why a call is refused.
#[derive(Debug, ThisError)]
pub(crate) enum Error {
    /// hostblob refused.
    #[error(transparent)]
    Ours(#[from] Refusal),
    /// rutabaga_gfx refused.
    #[error("rutabaga_gfx: {0}")]
    Theirs(#[from] RutabagaError),
    /// A mistake somewhere below.
    #[error("panic; its message is on stderr")]
    Panic,
    #[error("a device cannot be finished by its own callback")]
    Callback,
    #[error("{0:#x} is no device: it was finished, or never initialised")]
    Handle(usize),
    #[error("{0} is NULL or not aligned")]
    Pointer(&'static str),
    #[error("{0} is not UTF-8")]
    Text(&'static str),
    #[error("{name} has {count} elements, {most} are the most")]
    Count {
        name: &'static str,
        count: usize,
        most: usize,
    },
    #[error("{field} is {value:#x}: {expected}")]
    Field {
        field: &'static str,
        value: u64,
        expected: &'static str,
    },
    #[error("{kind} id {id} is in use")]
    Taken { kind: &'static str, id: u32 },
    #[error("resource {resource} was made by {by}, context {context} was not")]
    Strangers {
        context: u32,
        resource: u32,
        by: &'static str,
    },
    /// Guest memory cannot be used by others than the VMM.
    #[error("guest memory at {address:#x}: {reason}")]
    Pages {
        address: usize,
        reason: &'static str,
    },
    #[error("/proc/self/{0}: {1}")]
    Proc(&'static str, std::io::Error),
    #[error("{asked} bytes asked for 2D resources, {used} of {limit} are in use")]
    Limit { asked: u64, used: u64, limit: u64 },
    #[error("{0} are the most")]
    Full(&'static str),
    #[error("{0}")]
    NotServed(&'static str),
    #[error("blobs cannot be exported: {0}")]
    NoExport(String),
    #[error("{variable}={value}: {reason}")]
    Environment {
        variable: &'static str,
        value: String,
        reason: String,
    },
    #[error(transparent)]
    Provider(#[from] OpenError),
    #[error("{0}: {1}")]
    System(&'static str, std::io::Error),
}

impl Error {
    /// A negative errno. rutabaga_gfx says -EINVAL to everything, and so do we but where something else helps.
    pub(crate) fn errno(&self) -> i32 {
        -match self {
            Self::Panic => libc::ESRCH,
            Self::Ours(error) => ours(error),
            Self::Limit { .. } | Self::Full(_) => libc::ENOMEM,
            Self::NotServed(_) | Self::NoExport(_) => libc::EOPNOTSUPP,
            Self::Callback => libc::EDEADLK,
            Self::Provider(_) => libc::ENODEV,
            Self::System(_, error) | Self::Proc(_, error) => {
                error.raw_os_error().unwrap_or(libc::EIO)
            }
            _ => libc::EINVAL,
        }
    }
}

fn ours(error: &Refusal) -> i32 {
    match error {
        Refusal::TooManyContexts(_)
        | Refusal::TooManyObjects(_)
        | Refusal::Fragmented { .. }
        | Refusal::Quota(_)
        | Refusal::Parking(_)
        | Refusal::GpuTimeout(_)
        | Refusal::Provider(
            ProviderError::OutOfHostMemory(_) | ProviderError::OutOfDeviceMemory(_),
        ) => libc::ENOMEM,
        Refusal::Unsupported(_) => libc::EOPNOTSUPP,
        Refusal::Provider(_) | Refusal::Export(_) => libc::EIO,
        _ => libc::EINVAL,
    }
}
