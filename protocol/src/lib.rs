//! What a guest driver and hostblob say to each other, byte for byte.
//!
//! | module | answers the question |
//! |---|---|
//! | [`envelope`] | how is a request framed, and what may an old peer skip? |
//! | [`request`] | what can be asked? |
//! | [`status`] | what can be answered, and which `VkResult` is that? |
//! | [`answers`] | where does the answer appear in the guest's memory? |
//! | [`virtio_gpu`] | which virtio-gpu commands carry it (virtio 1.3, chapter 5.7)? |
//! | [`local`] | how do the same commands travel over a Unix socket, without a VM? |
//! | [`export`] | how do host processes get at shared memory? |
//!
//! Rules: little-endian, fixed-width integers, sizes and offsets in bytes. Whatever the bytes, decoding returns a
//! value or an error and never panics. What it allocates is bounded by what is there, never by what the bytes announce:
//! at most [`envelope::MAX_STRUCTURES`] requests and one name. Bytes that were valid once keep their meaning for ever:
//! golden files in `protocol/tests/golden` pin them. `docs/protocol.md` is the same for readers of other languages.
//!
//! A guest builds an envelope, sends the bytes, and waits for the answer of its sequence number:
//!
//! ```
//! use hostblob_protocol::request::{CacheMode, Create, CreateFlags, MemorySelector};
//! use hostblob_protocol::{Envelope, EnvelopeBuilder, Request};
//!
//! let create = Create {
//!     client_id: 7,
//!     size: 1 << 20,
//!     memory: MemorySelector::Index(0),
//!     flags: CreateFlags::HOST_VISIBLE | CreateFlags::MAP_DIRECTLY,
//!     alignment: 0,
//!     expected_cache: CacheMode::Any,
//! };
//! let bytes = EnvelopeBuilder::new(1).debug_name("vertices").request(create).build();
//!
//! let envelope = Envelope::decode(&bytes)?;
//! assert_eq!(envelope.sequence, 1);
//! assert_eq!(envelope.requests, [Request::Create(create)]);
//! # Ok::<(), hostblob_protocol::DecodeError>(())
//! ```

#![forbid(unsafe_code)]

pub mod answers;
pub mod envelope;
pub mod export;
pub mod local;
pub mod request;
pub mod status;
pub mod virtio_gpu;

pub use envelope::{DecodeError, Envelope, EnvelopeBuilder};
pub use request::Request;
pub use status::Status;

/// Version of this protocol, first part: differs where old bytes would be misread.
pub const VERSION_MAJOR: u16 = 1;
/// Version of this protocol, second part: grows with each addition.
pub const VERSION_MINOR: u16 = 1;
/// The virtio-gpu capset id that hostblob uses unless told otherwise.
///
/// Less than 31: Linux, 6.12 at least, keeps the known ids in a mask made of 32-bit shifts, so that contexts of id 48 cannot
/// be made (`docs/adr/0007-capset-id-24.md`). Ids 1 to 10 belong to others.
pub const DEFAULT_CAPSET_ID: u32 = 24;
