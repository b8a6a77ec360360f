//! What a guest can ask: one serde type per structure, and the number under which it travels.
//!
//! Payloads are bincode 2 with fixed-width little-endian integers: the fields in order, without gaps. An enumeration is a u32, the
//! position of its variant from 0, and then the variant's field; a string is its length in bytes as a u64, and then UTF-8.
//!
//! What a field may hold is said here and checked by the host when it executes the request; flags and enumerators are
//! checked when it is decoded ([`DecodeError::Payload`]).
//!
//! A new request is a new line in `requests!` and a type above it; a new field, flag or enumerator is a new structure or a new
//! version of one, never a change of what is here.

use serde::{Deserialize, Serialize};

use crate::envelope::{DecodeError, decode_payload, encode_payload};

/// Top bit of a structure type: a peer that does not know the type must refuse the envelope.
pub const REQUIRED: u16 = 0x8000;

/// Structure type of [`DebugName`], an optional structure.
pub const DEBUG_NAME: u16 = 0x0001;

/// Longest debug name in bytes: a name is for logs, and a longer one would be a way to fill them.
pub const MAX_DEBUG_NAME: usize = 64;

macro_rules! flags {
    ($(#[$meta:meta])* $name:ident { $($(#[doc = $doc:literal])+ $flag:ident = $value:expr;)+ }) => {
        bitflags::bitflags! {
            $(#[$meta])*
            #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
            pub struct $name: u32 {
                $($(#[doc = $doc])+ const $flag = $value;)+
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                self.bits().serialize(serializer)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let bits = u32::deserialize(deserializer)?;
                Self::from_bits(bits)
                    .ok_or_else(|| serde::de::Error::custom(format_args!("unknown flags {bits:#x}")))
            }
        }
    };
}

flags! {
    /// How memory is created.
    CreateFlags {
        /// The guest will map it: its blob carries `VIRTIO_GPU_BLOB_FLAG_USE_MAPPABLE`, and the blob of
        /// memory without this flag does not.
        HOST_VISIBLE = 1 << 0;
        /// It may be exported: its blob carries `USE_SHAREABLE` or `USE_CROSS_DEVICE` or both, and the blob of memory without
        /// this flag carries neither.
        SHAREABLE = 1 << 1;
        /// Initialise, allocate and map in one request: the memory belongs to the blob that is created with
        /// this client id as `blob_id`, and dies with it. Needs `HOST_VISIBLE`. Without it the memory lives until [`Free`], or
        /// until the blob that still uses it is gone, and [`BindClientId`] comes before the blob.
        MAP_DIRECTLY = 1 << 2;
    }
}

flags! {
    /// What a mapping is used for.
    Access {
        /// Loads.
        READ = 1 << 0;
        /// Stores.
        WRITE = 1 << 1;
    }
}

/// CPU cache mode of a guest mapping (`VIRTIO_GPU_MAP_CACHE_*`), as expected by the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum CacheMode {
    /// Whatever the memory type has.
    Any,
    /// Write-back cached.
    Cached,
    /// Uncached.
    Uncached,
    /// Write-combining.
    WriteCombined,
}

/// Which memory type to allocate from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum MemorySelector {
    /// The type of this index in the capset.
    Index(u32),
    /// The first type that has all of these `VkMemoryPropertyFlags`.
    Properties(u32),
}

/// Opens the conversation: says where the context's answers go, and what the guest agreed to speak.
///
/// Sent once per context, before any other request whose answer matters. The host negotiates with the same function as
/// the guest (`hostblob_capset::negotiate`). See [`crate::answers`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenAnswers {
    /// virtio-gpu resource id of a mapped blob of `blob_id` 0, at least [`crate::answers::MIN_SIZE`] bytes long.
    pub resource_id: u32,
    /// The guest's protocol version, first part.
    pub major: u16,
    /// The guest's protocol version, second part.
    pub minor: u16,
    /// Requests that the guest will send: bit `n` stands for the request of number `n`, see [`Request::bit`].
    pub requests: u64,
    /// Flags that the guest will use in [`Create`].
    pub create_flags: CreateFlags,
}

/// Creates memory and names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Create {
    /// The name within the context: not 0, not in use.
    pub client_id: u64,
    /// Bytes: a multiple of the capset's `page_size`, not 0, at most its `max_blob_size`. The blob has the same size.
    pub size: u64,
    /// From which memory type.
    pub memory: MemorySelector,
    /// How.
    pub flags: CreateFlags,
    /// Alignment in bytes that the guest wants for the memory's start in the window and on the GPU: 0 (any) or a
    /// power of two up to the capset's page size, which every memory has.
    pub alignment: u64,
    /// The cache mode that the guest will map it with; a different one is an error
    /// ([`CacheModeMismatch`](crate::Status::CacheModeMismatch)).
    pub expected_cache: CacheMode,
}

/// Binds memory that was created without [`CreateFlags::MAP_DIRECTLY`] to the blob being created: the next
/// RESOURCE_CREATE_BLOB whose `blob_id` is this client id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BindClientId {
    /// Memory of this context; also the `blob_id` of the creation that follows.
    pub client_id: u64,
}

/// States how the guest maps memory, and is refused where that is not what it has. It maps nothing by itself: that is
/// RESOURCE_MAP_BLOB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Map {
    /// Host-visible memory of this context.
    pub client_id: u64,
    /// The cache mode of the guest's mapping.
    pub expected_cache: CacheMode,
    /// What the mapping is for; not empty.
    pub access: Access,
}

/// The guest no longer maps the memory. Its contents stay. It unmaps nothing by itself: that is RESOURCE_UNMAP_BLOB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unmap {
    /// Memory of this context.
    pub client_id: u64,
}

/// Gives up the name. The memory dies with it, or with the blob that still uses it. The name may be used again at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Free {
    /// Memory of this context.
    pub client_id: u64,
}

/// A range of one memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryRange {
    /// Memory of this context.
    pub client_id: u64,
    /// First byte, from the beginning of the memory.
    pub offset: u64,
    /// Bytes, not 0; the range ends inside the memory ([`OutOfRange`](crate::Status::OutOfRange)).
    pub length: u64,
}

/// Makes CPU writes visible to the GPU (`vkFlushMappedMemoryRanges`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flush {
    /// Which bytes: offset and length are multiples of the capset's `non_coherent_atom_size`.
    pub range: MemoryRange,
}

/// Makes GPU writes visible to the CPU (`vkInvalidateMappedMemoryRanges`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invalidate {
    /// Which bytes: offset and length are multiples of the capset's `non_coherent_atom_size`.
    pub range: MemoryRange,
}

/// Fills a range on the host GPU (`vkCmdFillBuffer`). Its answer comes when the GPU is done, before the fence of the
/// command is signalled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fill {
    /// Which bytes: offset and length are multiples of 4.
    pub range: MemoryRange,
    /// Four bytes, little-endian, repeated.
    pub value: u32,
}

/// Copies between any two memories of the context on the host GPU (`vkCmdCopyBuffer`).
///
/// Any offsets and lengths; ranges within one memory must not overlap. Its answer comes when the GPU is done, before the fence of
/// the command is signalled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Copy {
    /// From where, and how many bytes.
    pub source: MemoryRange,
    /// To which memory of this context.
    pub destination_client_id: u64,
    /// First byte there. The length is the source's.
    pub destination_offset: u64,
}

/// Names shared memory in this context: memory that another context of this guest shares, that a host process handed in, or that
/// another device of the VM has under this UUID.
///
/// The memory lives until its last name and its blob are gone. Memory of the host that has no blob can get one of this context, by
/// [`BindClientId`]. Hosts of version 1.0 answer [`Unsupported`](crate::Status::Unsupported) and do not offer it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Import {
    /// The name within this context: not 0, not in use.
    pub client_id: u64,
    /// What [`Share`] or RESOURCE_ASSIGN_UUID gave, the token of memory that a host process handed in, or the UUID of an object of
    /// another device.
    pub uuid: [u8; 16],
}

/// Names the memory of a blob that is attached to this context (CTX_ATTACH_RESOURCE): one that another process of the guest passed
/// on, or one made of guest pages (`VIRTIO_GPU_BLOB_MEM_GUEST`), which has no client id of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportResource {
    /// The name within this context: not 0, not in use.
    pub client_id: u64,
    /// virtio-gpu resource id.
    pub resource_id: u32,
}

/// Consents that other contexts of this guest import the memory, and asks for its name: the UUID that RESOURCE_ASSIGN_UUID gives
/// for its blob, random, so that only who is told can import.
///
/// The answer's details are the UUID's bytes, little-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// Memory of this context, created with [`CreateFlags::SHAREABLE`].
    pub client_id: u64,
}

/// Describes a buffer inside shareable memory to host processes: the arguments of SET_SCANOUT_BLOB. One memory may hold several, at
/// different offsets; a second one at the same offset takes the place of the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Publish {
    /// Memory of this context, created with [`CreateFlags::SHAREABLE`].
    pub client_id: u64,
    /// First byte of the buffer in the memory.
    pub offset: u64,
    /// Pixels in a row; not 0.
    pub width: u32,
    /// Rows; not 0. All `stride * height` bytes lie inside the memory.
    pub height: u32,
    /// Bytes from one row to the next; not 0.
    pub stride: u32,
    /// `DRM_FORMAT_*`; 0 where the bytes are no image.
    pub fourcc: u32,
    /// `DRM_FORMAT_MOD_*`.
    pub modifier: u64,
}

/// Takes a description back: the buffer at this offset is no longer shown to host processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Withdraw {
    /// Memory of this context.
    pub client_id: u64,
    /// As in [`Publish`].
    pub offset: u64,
}

/// A published buffer has new contents: every host process that has the memory open is told, and uses the buffer until it
/// says that it has released it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Present {
    /// Memory of this context.
    pub client_id: u64,
    /// As in [`Publish`].
    pub offset: u64,
}

/// In [`WaitReleased`]: all buffers, and the memory itself, which no host process has open then.
pub const ALL_BUFFERS: u64 = u64::MAX;

/// Waits until no host process uses a buffer any more.
///
/// Its answer comes then, before the fence of the command is signalled, or when the time is over
/// ([`Timeout`](crate::Status::Timeout)). It is on the timeline of the ring that it was submitted to, and keeps no other waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitReleased {
    /// Memory of this context.
    pub client_id: u64,
    /// The buffer that must be released, as in [`Publish`], or [`ALL_BUFFERS`].
    pub offset: u64,
    /// Nanoseconds from now; 0 asks and does not wait. More than a day counts as a day.
    pub timeout: u64,
}

/// Asks how much a heap still has for this context (`VK_EXT_memory_budget`).
///
/// The answer's details are budget and usage in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueryBudget {
    /// Index into the capset's heaps.
    pub heap: u32,
}

/// A name for logs and debuggers, for the memory that the same envelope creates, or that a MAP in it names. Optional.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DebugName {
    /// At most [`MAX_DEBUG_NAME`] bytes; a longer one is an error.
    pub name: String,
}

macro_rules! requests {
    ($($number:literal $name:ident $bit:ident),+ $(,)?) => {
        /// A structure that asks for something. All are [`REQUIRED`] and of version 1.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[allow(missing_docs, reason = "each variant holds the type of the same name, documented there")]
        pub enum Request {
            $($name($name),)+
        }

        impl Request {
            /// Structure types of all requests.
            pub const TYPES: &'static [u16] = &[$(REQUIRED | $number,)+];

            /// The structure type under which this request travels.
            pub const fn structure_type(&self) -> u16 {
                match self {
                    $(Request::$name(_) => REQUIRED | $number,)+
                }
            }

            /// The bit that stands for this request in sets of requests: `1 << number`.
            pub const fn bit(&self) -> u64 {
                match self {
                    $(Request::$name(_) => request_bit::$bit,)+
                }
            }

            /// The set of all requests known here.
            pub const ALL: u64 = $(1 << $number)|+;

            /// `None` when the type is not a request known here.
            pub(crate) fn decode(
                structure_type: u16,
                payload: &[u8],
            ) -> Option<Result<Request, DecodeError>> {
                $(if structure_type == REQUIRED | $number {
                    return Some(decode_payload(structure_type, payload).map(Request::$name));
                })+
                None
            }

            pub(crate) fn encode(&self, into: &mut Vec<u8>) {
                match self {
                    $(Request::$name(payload) => encode_payload(payload, into),)+
                }
            }
        }

        /// Sets of requests: one bit each.
        pub mod request_bit {
            $(
                #[doc = concat!("[`super::", stringify!($name), "`]")]
                pub const $bit: u64 = 1 << $number;
            )+
        }

        $(impl From<$name> for Request {
            fn from(payload: $name) -> Request {
                Request::$name(payload)
            }
        })+
    };
}

requests! {
    1 OpenAnswers OPEN_ANSWERS,
    2 Create CREATE,
    3 BindClientId BIND_CLIENT_ID,
    4 Map MAP,
    5 Unmap UNMAP,
    6 Free FREE,
    7 Flush FLUSH,
    8 Invalidate INVALIDATE,
    9 Fill FILL,
    10 Copy COPY,
    11 Import IMPORT,
    12 QueryBudget QUERY_BUDGET,
    13 ImportResource IMPORT_RESOURCE,
    14 Share SHARE,
    15 Publish PUBLISH,
    16 Withdraw WITHDRAW,
    17 Present PRESENT,
    18 WaitReleased WAIT_RELEASED,
}
