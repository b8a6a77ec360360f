//! The local socket: virtio-gpu commands over a Unix stream socket, without a VM.
//!
//! Each connection is a guest of its own, with its own window. The daemon plays the guest kernel where there is none: it picks
//! the window offset of a blob. Everything is little-endian.
//!
//! ```text
//! daemon -> client   HELLO: frame + Hello, the window's memfd attached (SCM_RIGHTS)
//! client -> daemon   COMMAND: frame + virtio-gpu command bytes
//! daemon -> client   RESPONSE: frame of the same tag + virtio-gpu response bytes
//! ```
//!
//! HELLO is the first frame of a connection, of tag 0. The client makes up the tags of its commands; the daemon does not look at them.
//! The commands are those of [`crate::virtio_gpu`], header included, each with `ctx_id`s and resource ids of the client's choice.
//!
//! A fenced command is answered when its work is done, so responses may come in another order than commands. To
//! RESOURCE_MAP_BLOB with [`ANY_OFFSET`], the response's `aux` is the window offset that the daemon picked; in every
//! other frame `aux` is 0. A frame that breaks these rules ends the connection.

use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Version of the framing.
pub const VERSION: u32 = 1;
/// `virtio_gpu_resource_map_blob.offset`: the daemon picks.
pub const ANY_OFFSET: u64 = u64::MAX;
/// Longest payload in bytes: what one connection can make the daemon buffer.
pub const MAX_PAYLOAD: u32 = 1 << 20;

/// [`Frame::kind`]: the daemon's greeting.
pub const HELLO: u32 = 1;
/// [`Frame::kind`]: a command.
pub const COMMAND: u32 = 2;
/// [`Frame::kind`]: the response to the command of the same tag.
pub const RESPONSE: u32 = 3;

/// What comes before each payload.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    Default,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(C)]
pub struct Frame {
    /// Bytes of payload that follow: at most [`MAX_PAYLOAD`].
    pub length: U32,
    /// [`HELLO`], [`COMMAND`] or [`RESPONSE`].
    pub kind: U32,
    /// The client's name for a command; not interpreted.
    pub tag: U64,
    /// See the module's documentation.
    pub aux: U64,
}
const _: () = assert!(size_of::<Frame>() == 24);

/// The daemon's greeting.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    Default,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(C)]
pub struct Hello {
    /// [`VERSION`].
    pub version: U32,
    /// The daemon's capset id.
    pub capset_id: U32,
    /// Bytes of the window, all of which the client may map shared.
    pub window_size: U64,
    /// What the device serves: bit `n` stands for feature bit `n`, see [`crate::virtio_gpu::F_VIRGL`] and the others.
    pub features: U64,
}
const _: () = assert!(size_of::<Hello>() == 24);
