//! Status codes: what the host answers to a request, and the `VkResult` a Vulkan driver makes of it.
//!
//! Numbers are never reused. One table holds number, name, `VkResult` and meaning; everything else derives from it.
//! `docs/protocol.md` has the table too, and a test compares them.

/// `VkResult` values that statuses map to (Vulkan specification, "Return Codes").
mod vk {
    pub(super) const SUCCESS: i32 = 0;
    pub(super) const TIMEOUT: i32 = 2;
    pub(super) const ERROR_OUT_OF_HOST_MEMORY: i32 = -1;
    pub(super) const ERROR_OUT_OF_DEVICE_MEMORY: i32 = -2;
    pub(super) const ERROR_DEVICE_LOST: i32 = -4;
    pub(super) const ERROR_MEMORY_MAP_FAILED: i32 = -5;
    pub(super) const ERROR_FEATURE_NOT_PRESENT: i32 = -8;
    pub(super) const ERROR_INCOMPATIBLE_DRIVER: i32 = -9;
    pub(super) const ERROR_TOO_MANY_OBJECTS: i32 = -10;
    pub(super) const ERROR_UNKNOWN: i32 = -13;
    pub(super) const ERROR_INVALID_EXTERNAL_HANDLE: i32 = -1_000_072_003;
}

macro_rules! statuses {
    ($($(#[doc = $doc:literal])+ $name:ident = $number:literal => $vk:ident, $text:literal;)+) => {
        /// The outcome of one request. Stable: a number keeps its meaning for ever.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u32)]
        #[non_exhaustive]
        pub enum Status {
            $($(#[doc = $doc])+ $name = $number,)+
        }

        impl Status {
            /// Every status, in the order of the numbers.
            pub const ALL: &'static [Status] = &[$(Status::$name,)+];

            /// The status with this number; `None` when a newer peer made it.
            pub const fn from_number(number: u32) -> Option<Status> {
                match number {
                    $($number => Some(Status::$name),)+
                    _ => None,
                }
            }

            /// The `VkResult` that a Vulkan driver returns for it.
            pub const fn vk_result(self) -> i32 {
                match self {
                    $(Status::$name => vk::$vk,)+
                }
            }

            /// One English sentence without a full stop.
            pub const fn message(self) -> &'static str {
                match self {
                    $(Status::$name => $text,)+
                }
            }
        }
    };
}

statuses! {
    /// Done.
    Ok = 0 => SUCCESS, "success";
    /// The bytes are not an envelope of this protocol, or a payload is not of its version's form: a flag or an enumerator
    /// that the version does not have, too.
    Malformed = 1 => ERROR_UNKNOWN, "the request bytes are malformed";
    /// The envelope's major version, or a required structure's version, is not known here.
    UnsupportedVersion = 2 => ERROR_INCOMPATIBLE_DRIVER, "the protocol or structure version is not supported";
    /// A required structure type that is unknown, or a request or flag that this host does not serve.
    Unsupported = 3 => ERROR_FEATURE_NOT_PRESENT, "the request is not supported by this host";
    /// A field is outside its documented values.
    InvalidArgument = 4 => ERROR_UNKNOWN, "an argument is outside its documented values";
    /// No memory of this client id in this context.
    UnknownClientId = 5 => ERROR_INVALID_EXTERNAL_HANDLE, "no memory has this client id in this context";
    /// The client id already names memory of this context.
    ClientIdInUse = 6 => ERROR_UNKNOWN, "the client id is already in use in this context";
    /// No memory type of this index, or none with the required properties.
    InvalidMemoryType = 7 => ERROR_FEATURE_NOT_PRESENT, "no memory type fits the request";
    /// The memory type's cache mode differs from the expected one.
    CacheModeMismatch = 8 => ERROR_MEMORY_MAP_FAILED, "the cache mode differs from the expected one";
    /// The memory cannot be mapped with the expected access.
    AccessMismatch = 9 => ERROR_MEMORY_MAP_FAILED, "the memory cannot be mapped with this access";
    /// The host has no memory left.
    OutOfHostMemory = 10 => ERROR_OUT_OF_HOST_MEMORY, "the host is out of memory";
    /// The GPU has no memory left.
    OutOfDeviceMemory = 11 => ERROR_OUT_OF_DEVICE_MEMORY, "the GPU is out of memory";
    /// The context's share of bytes is used up.
    ContextQuotaExceeded = 12 => ERROR_OUT_OF_DEVICE_MEMORY, "the context's memory limit is reached";
    /// The device's share of bytes is used up.
    DeviceQuotaExceeded = 13 => ERROR_OUT_OF_DEVICE_MEMORY, "the device's memory limit is reached";
    /// The window has no room at that place or of that size.
    WindowExhausted = 14 => ERROR_MEMORY_MAP_FAILED, "the window has no room for the blob";
    /// The context has as many memories or blobs as it may.
    TooManyObjects = 15 => ERROR_TOO_MANY_OBJECTS, "the context has too many objects";
    /// The memory is not host-visible, or its blob not mappable.
    NotMappable = 16 => ERROR_MEMORY_MAP_FAILED, "the memory cannot be mapped by the guest";
    /// Offset and length do not lie inside the memory.
    OutOfRange = 17 => ERROR_UNKNOWN, "offset and length do not lie inside the memory";
    /// The GPU, its driver or the device is gone.
    DeviceLost = 18 => ERROR_DEVICE_LOST, "the GPU or its driver is lost";
    /// The flags of the request and of the blob disagree.
    FlagsMismatch = 19 => ERROR_UNKNOWN, "the flags of the request and of the blob disagree";
    /// The memory is bound to a blob already, or used by one.
    AlreadyBound = 20 => ERROR_UNKNOWN, "the memory is bound to a blob already";
    /// The GPU driver refused for a reason of its own; the daemon's log has it.
    DriverFailure = 21 => ERROR_UNKNOWN, "the GPU driver refused the request";
    /// A mistake of hostblob's own; the daemon's log has it.
    Internal = 22 => ERROR_UNKNOWN, "internal error of the host";
    /// The time that was given is over.
    Timeout = 23 => TIMEOUT, "the time to wait is over";
    /// The memory is to be of guest pages, and none are attached.
    NoBacking = 24 => ERROR_UNKNOWN, "the memory has no guest pages attached";
    /// A host process has the memory open, and it must stay what and where it is.
    InUse = 25 => ERROR_UNKNOWN, "a host process uses the memory";
    /// Nothing is shared under this UUID.
    UnknownUuid = 26 => ERROR_INVALID_EXTERNAL_HANDLE, "nothing is shared under this UUID";
    /// The memory was created without `SHAREABLE`.
    NotShareable = 27 => ERROR_UNKNOWN, "the memory was not created to be shared";
}

impl Status {
    /// The number that travels.
    pub const fn number(self) -> u32 {
        self as u32
    }
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.message())
    }
}

impl std::error::Error for Status {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_dense_and_round_trip() {
        for (number, status) in Status::ALL.iter().enumerate() {
            assert_eq!(status.number() as usize, number);
            assert_eq!(Status::from_number(status.number()), Some(*status));
            assert_eq!(status.vk_result() == 0, *status == Status::Ok);
            assert!(!status.message().ends_with('.'));
        }
        assert_eq!(
            Status::from_number(u32::try_from(Status::ALL.len()).unwrap()),
            None
        );
    }
}
