//! Status numbers, their text, and the text of the last error.

use std::ffi::{CString, c_char};

use hostblob_protocol::Status;

use super::handle;
use crate::error::{Error, code};

/// Outcome of a call. Numbers below 0x10000 are those that the host answers; a number keeps its meaning for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub enum hb_status {
    /// Done.
    HB_OK = 0,
    /// The request bytes are malformed.
    HB_ERROR_MALFORMED = 1,
    /// The protocol or structure version is not supported.
    HB_ERROR_UNSUPPORTED_VERSION = 2,
    /// The host, or this way to it, does not serve the request.
    HB_ERROR_UNSUPPORTED = 3,
    /// An argument is outside its documented values.
    HB_ERROR_INVALID_ARGUMENT = 4,
    /// No memory has this client id.
    HB_ERROR_UNKNOWN_CLIENT_ID = 5,
    /// The client id is in use.
    HB_ERROR_CLIENT_ID_IN_USE = 6,
    /// No memory type fits the request.
    HB_ERROR_INVALID_MEMORY_TYPE = 7,
    /// The cache mode differs from the expected one.
    HB_ERROR_CACHE_MODE_MISMATCH = 8,
    /// The memory cannot be mapped with this access.
    HB_ERROR_ACCESS_MISMATCH = 9,
    /// The host, or this process, is out of memory.
    HB_ERROR_OUT_OF_HOST_MEMORY = 10,
    /// The GPU is out of memory.
    HB_ERROR_OUT_OF_DEVICE_MEMORY = 11,
    /// The context's memory limit is reached.
    HB_ERROR_CONTEXT_QUOTA_EXCEEDED = 12,
    /// The device's memory limit is reached.
    HB_ERROR_DEVICE_QUOTA_EXCEEDED = 13,
    /// The window has no room.
    HB_ERROR_WINDOW_EXHAUSTED = 14,
    /// The context has too many objects.
    HB_ERROR_TOO_MANY_OBJECTS = 15,
    /// The memory cannot be mapped.
    HB_ERROR_NOT_MAPPABLE = 16,
    /// Offset and length do not lie inside the memory.
    HB_ERROR_OUT_OF_RANGE = 17,
    /// The device, its GPU or its driver is gone; everything after fails like this.
    HB_ERROR_DEVICE_LOST = 18,
    /// Flags disagree with the memory's.
    HB_ERROR_FLAGS_MISMATCH = 19,
    /// The memory is bound already.
    HB_ERROR_ALREADY_BOUND = 20,
    /// The host's GPU driver refused.
    HB_ERROR_DRIVER_FAILURE = 21,
    /// Internal error of the host.
    HB_ERROR_HOST_INTERNAL = 22,
    /// The memory has no guest pages attached.
    HB_ERROR_NO_BACKING = 24,
    /// A host process uses the memory.
    HB_ERROR_IN_USE = 25,
    /// Nothing is shared under this UUID.
    HB_ERROR_UNKNOWN_UUID = 26,
    /// The memory was not allocated to be shared.
    HB_ERROR_NOT_SHAREABLE = 27,
    /// Nothing here offers hostblob.
    HB_ERROR_NO_DEVICE = 0x10000,
    /// The time to wait was over first, here or at the host.
    HB_TIMEOUT = 0x10001,
    /// The device and this library speak different versions.
    HB_ERROR_INCOMPATIBLE = 0x10002,
    /// The operating system refused.
    HB_ERROR_IO = 0x10003,
    /// Internal error of this library.
    HB_ERROR_INTERNAL = 0x10004,
}

use hb_status::*;

/// Every status.
const ALL: &[hb_status] = &[
    HB_OK,
    HB_ERROR_MALFORMED,
    HB_ERROR_UNSUPPORTED_VERSION,
    HB_ERROR_UNSUPPORTED,
    HB_ERROR_INVALID_ARGUMENT,
    HB_ERROR_UNKNOWN_CLIENT_ID,
    HB_ERROR_CLIENT_ID_IN_USE,
    HB_ERROR_INVALID_MEMORY_TYPE,
    HB_ERROR_CACHE_MODE_MISMATCH,
    HB_ERROR_ACCESS_MISMATCH,
    HB_ERROR_OUT_OF_HOST_MEMORY,
    HB_ERROR_OUT_OF_DEVICE_MEMORY,
    HB_ERROR_CONTEXT_QUOTA_EXCEEDED,
    HB_ERROR_DEVICE_QUOTA_EXCEEDED,
    HB_ERROR_WINDOW_EXHAUSTED,
    HB_ERROR_TOO_MANY_OBJECTS,
    HB_ERROR_NOT_MAPPABLE,
    HB_ERROR_OUT_OF_RANGE,
    HB_ERROR_DEVICE_LOST,
    HB_ERROR_FLAGS_MISMATCH,
    HB_ERROR_ALREADY_BOUND,
    HB_ERROR_DRIVER_FAILURE,
    HB_ERROR_HOST_INTERNAL,
    HB_ERROR_NO_BACKING,
    HB_ERROR_IN_USE,
    HB_ERROR_UNKNOWN_UUID,
    HB_ERROR_NOT_SHAREABLE,
    HB_ERROR_NO_DEVICE,
    HB_TIMEOUT,
    HB_ERROR_INCOMPATIBLE,
    HB_ERROR_IO,
    HB_ERROR_INTERNAL,
];

impl hb_status {
    fn from_number(number: u32) -> Option<Self> {
        // The host's clock or ours: one status.
        if number == Status::Timeout.number() {
            return Some(HB_TIMEOUT);
        }
        ALL.iter().copied().find(|status| *status as u32 == number)
    }

    pub(super) fn of(error: &Error) -> Self {
        Self::from_number(error.code()).unwrap_or(HB_ERROR_INTERNAL)
    }

    fn text(self) -> &'static std::ffi::CStr {
        match self {
            HB_OK => c"success",
            HB_ERROR_MALFORMED => c"the request bytes are malformed",
            HB_ERROR_UNSUPPORTED_VERSION => c"the protocol or structure version is not supported",
            HB_ERROR_UNSUPPORTED => c"the request is not supported by this host",
            HB_ERROR_INVALID_ARGUMENT => c"an argument is outside its documented values",
            HB_ERROR_UNKNOWN_CLIENT_ID => c"no memory has this client id in this context",
            HB_ERROR_CLIENT_ID_IN_USE => c"the client id is already in use in this context",
            HB_ERROR_INVALID_MEMORY_TYPE => c"no memory type fits the request",
            HB_ERROR_CACHE_MODE_MISMATCH => c"the cache mode differs from the expected one",
            HB_ERROR_ACCESS_MISMATCH => c"the memory cannot be mapped with this access",
            HB_ERROR_OUT_OF_HOST_MEMORY => c"the host is out of memory",
            HB_ERROR_OUT_OF_DEVICE_MEMORY => c"the GPU is out of memory",
            HB_ERROR_CONTEXT_QUOTA_EXCEEDED => c"the context's memory limit is reached",
            HB_ERROR_DEVICE_QUOTA_EXCEEDED => c"the device's memory limit is reached",
            HB_ERROR_WINDOW_EXHAUSTED => c"the window has no room for the blob",
            HB_ERROR_TOO_MANY_OBJECTS => c"the context has too many objects",
            HB_ERROR_NOT_MAPPABLE => c"the memory cannot be mapped by the guest",
            HB_ERROR_OUT_OF_RANGE => c"offset and length do not lie inside the memory",
            HB_ERROR_DEVICE_LOST => c"the GPU or its driver is lost",
            HB_ERROR_FLAGS_MISMATCH => c"the flags of the request and of the blob disagree",
            HB_ERROR_ALREADY_BOUND => c"the memory is bound to a blob already",
            HB_ERROR_DRIVER_FAILURE => c"the GPU driver refused the request",
            HB_ERROR_HOST_INTERNAL => c"internal error of the host",
            HB_ERROR_NO_BACKING => c"the memory has no guest pages attached",
            HB_ERROR_IN_USE => c"a host process uses the memory",
            HB_ERROR_UNKNOWN_UUID => c"nothing is shared under this UUID",
            HB_ERROR_NOT_SHAREABLE => c"the memory was not created to be shared",
            HB_ERROR_NO_DEVICE => c"no hostblob device",
            HB_TIMEOUT => c"the time to wait is over",
            HB_ERROR_INCOMPATIBLE => c"the device and this library cannot talk",
            HB_ERROR_IO => c"the operating system refused",
            HB_ERROR_INTERNAL => c"internal error of the guest library",
        }
    }
}

/// One English sentence for a status. Never NULL; lives for ever. Any number may be passed.
#[unsafe(no_mangle)]
pub extern "C" fn hb_status_string(status: u32) -> *const c_char {
    hb_status::from_number(status)
        .map_or(c"unknown status", hb_status::text)
        .as_ptr()
}

/// The `VkResult` that a Vulkan driver returns for a status. Any number may be passed.
#[unsafe(no_mangle)]
pub extern "C" fn hb_status_vk_result(status: u32) -> i32 {
    if let Some(status) = Status::from_number(status) {
        return status.vk_result();
    }
    let nothing = String::new;
    let error = match status {
        code::NO_DEVICE => Error::NoDevice(nothing()),
        code::TIMEOUT => Error::Timeout,
        code::INCOMPATIBLE => Error::Incompatible(nothing()),
        code::IO => Error::Io {
            what: nothing(),
            errno: 0,
        },
        _ => Error::Internal(nothing()),
    };
    error.vk_result()
}

/// What the last call of this thread that failed had to say; "" when none has. Never NULL. The text lives until this
/// thread's next call that fails: copy what you keep.
#[unsafe(no_mangle)]
pub extern "C" fn hb_last_error() -> *const c_char {
    handle::LAST_ERROR
        .try_with(|text| text.borrow().as_ptr())
        .unwrap_or(c"".as_ptr())
}

/// For [`hb_last_error`]: a text without inner zeros.
pub(super) fn text(message: &str) -> CString {
    CString::new(message.replace('\0', " ")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CStr;

    fn string(status: u32) -> String {
        // SAFETY: `hb_status_string` returns C strings that live for ever.
        unsafe { CStr::from_ptr(hb_status_string(status)) }
            .to_str()
            .unwrap()
            .to_owned()
    }

    #[test]
    fn every_status_of_the_protocol_has_its_number_text_and_result() {
        for status in Status::ALL {
            let ours = hb_status::from_number(status.number()).expect("a number of ours");
            assert_eq!(ours.text().to_str().unwrap(), status.message());
            assert_eq!(hb_status_vk_result(status.number()), status.vk_result());
        }
        let ours = ALL
            .iter()
            .filter(|status| (**status as u32) < code::FIRST)
            .count();
        assert_eq!(ours, Status::ALL.len() - 1, "all but the timeout");
        assert_eq!(hb_status::from_number(23), Some(HB_TIMEOUT));
        assert_eq!(string(12345), "unknown status");
        assert_eq!(string(0x10001), "the time to wait is over");
        assert_eq!(hb_status_vk_result(0x10001), 2);
        assert_eq!(hb_status::of(&Error::Timeout), HB_TIMEOUT);
    }
}
