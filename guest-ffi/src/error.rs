//! What can go wrong, in one enum; its number in the C API and its `VkResult` come from here and nowhere else.

use hostblob_protocol::Status;
use thiserror::Error;

/// Result of everything here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a call failed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Error {
    /// The host refused, or this library did in its place with the status that the host would have given.
    #[error("{what}: {status}")]
    Status {
        /// The host's status.
        status: Status,
        /// What was tried.
        what: String,
    },
    /// The daemon or the device went away. Every later call on this device fails like this.
    #[error("the device is lost: {0}")]
    DeviceLost(String),
    /// Nothing here offers hostblob.
    #[error("no hostblob device: {0}")]
    NoDevice(String),
    /// There is a device, but it speaks another version or says what cannot be.
    #[error("the device and this library cannot talk: {0}")]
    Incompatible(String),
    /// The time given was over first, here or at the host.
    #[error("the time to wait is over")]
    Timeout,
    /// An argument that is wrong whatever the host.
    #[error("invalid argument: {0}")]
    InvalidArgument(String),
    /// The operating system refused.
    #[error("{what}: {}", std::io::Error::from_raw_os_error(*.errno))]
    Io {
        /// What was tried.
        what: String,
        /// `errno`.
        errno: i32,
    },
    /// A mistake of this library.
    #[error("internal error of the guest library: {0}")]
    Internal(String),
}

/// Numbers of errors that the host never answers; below [`code::FIRST`] they are those of [`Status`].
pub(crate) mod code {
    /// First number that is not a status of the protocol.
    #[cfg(test)]
    pub(crate) const FIRST: u32 = 0x1_0000;
    pub(crate) const NO_DEVICE: u32 = 0x1_0000;
    pub(crate) const TIMEOUT: u32 = 0x1_0001;
    pub(crate) const INCOMPATIBLE: u32 = 0x1_0002;
    pub(crate) const IO: u32 = 0x1_0003;
    pub(crate) const INTERNAL: u32 = 0x1_0004;
}

const VK_ERROR_INITIALIZATION_FAILED: i32 = -3;
const VK_ERROR_INCOMPATIBLE_DRIVER: i32 = -9;

impl Error {
    pub(crate) fn status_of(status: Status, what: impl Into<String>) -> Self {
        match status {
            // Whoever's clock it was: callers look for one error.
            Status::Timeout => Error::Timeout,
            status => Error::Status {
                status,
                what: what.into(),
            },
        }
    }

    pub(crate) fn io(what: impl Into<String>, errno: rustix::io::Errno) -> Self {
        Error::Io {
            what: what.into(),
            errno: errno.raw_os_error(),
        }
    }

    pub(crate) fn invalid(what: impl Into<String>) -> Self {
        Error::InvalidArgument(what.into())
    }

    /// The protocol's status that says the same, where there is one.
    pub fn status(&self) -> Option<Status> {
        match self {
            Error::Status { status, .. } => Some(*status),
            Error::DeviceLost(_) => Some(Status::DeviceLost),
            Error::InvalidArgument(_) => Some(Status::InvalidArgument),
            Error::Timeout => Some(Status::Timeout),
            _ => None,
        }
    }

    /// Whether a smaller request, or the same one later, might be granted.
    pub(crate) fn is_shortage(&self) -> bool {
        matches!(
            self.status(),
            Some(
                Status::OutOfHostMemory
                    | Status::OutOfDeviceMemory
                    | Status::ContextQuotaExceeded
                    | Status::DeviceQuotaExceeded
                    | Status::WindowExhausted
                    | Status::NotMappable
            )
        )
    }

    /// The `VkResult` that a Vulkan driver returns for it.
    pub fn vk_result(&self) -> i32 {
        match self {
            Error::NoDevice(_) => VK_ERROR_INITIALIZATION_FAILED,
            Error::Incompatible(_) => VK_ERROR_INCOMPATIBLE_DRIVER,
            Error::Io { errno, .. } => {
                let out_of_memory = [
                    rustix::io::Errno::NOMEM,
                    rustix::io::Errno::MFILE,
                    rustix::io::Errno::NFILE,
                ];
                if out_of_memory.iter().any(|e| e.raw_os_error() == *errno) {
                    Status::OutOfHostMemory.vk_result()
                } else {
                    Status::Internal.vk_result()
                }
            }
            Error::Internal(_) => Status::Internal.vk_result(),
            _ => self.status().unwrap_or(Status::Internal).vk_result(),
        }
    }

    /// The number of the `hb_status` that the C API returns for it.
    pub fn code(&self) -> u32 {
        match self {
            Error::NoDevice(_) => code::NO_DEVICE,
            Error::Timeout => code::TIMEOUT,
            Error::Incompatible(_) => code::INCOMPATIBLE,
            Error::Io { .. } => code::IO,
            Error::Internal(_) => code::INTERNAL,
            _ => self.status().unwrap_or(Status::Internal).number(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_both_kinds_never_meet() {
        assert!(
            Status::ALL
                .iter()
                .all(|status| status.number() < code::FIRST)
        );
        assert_eq!(Error::Timeout.code(), 0x1_0001);
        assert_eq!(Error::Timeout.vk_result(), 2, "VK_TIMEOUT");
        assert_eq!(Error::status_of(Status::Timeout, "wait"), Error::Timeout);
        assert_eq!(
            Error::DeviceLost(String::new()).code(),
            Status::DeviceLost.number()
        );
        let quota = Error::status_of(Status::ContextQuotaExceeded, "allocate");
        assert_eq!(quota.code(), 12);
        assert_eq!(quota.vk_result(), -2, "VK_ERROR_OUT_OF_DEVICE_MEMORY");
        assert_eq!(
            quota.to_string(),
            "allocate: the context's memory limit is reached"
        );
    }
}
