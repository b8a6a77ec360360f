//! The export socket: host processes see memory that a guest shares, and hand in memory of their own.
//!
//! A connection is a *viewer*. Each message is a [`Frame`] and a payload of its kind's type below, encoded as those of
//! [`crate::request`]. [`Opened`] and [`HandIn`] come with one file descriptor (SCM_RIGHTS), which travels with the first byte of
//! their frame; no other message does.
//!
//! The daemon speaks first: [`Hello`]. Then it sends what happens, with tag 0, and answers each request with messages of the
//! request's tag, of which [`Answer`], [`Opened`] or [`Token`] is the last. Everything that a viewer hears is in the order in which it
//! happened: a listing, or the descriptor of a blob, stands between what was before and what came after.
//!
//! A viewer has a blob *open* from [`Opened`] until it sends [`Close`] or leaves. It *uses* a buffer of an open blob from each
//! [`Presented`], and from [`Opened`] where the buffer had been presented before, until it sends [`Release`] or [`Close`], or leaves.
//!
//! A frame that breaks these rules ends the connection. `docs/export.md` tells the whole story.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use thiserror::Error;
use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::envelope::{DecodeError, decode_payload, encode_payload};
use crate::request::MAX_DEBUG_NAME;

/// Version of the messages. Others cannot talk.
pub const VERSION: u32 = 1;
/// Longest payload in bytes: what one frame can make a peer buffer.
pub const MAX_PAYLOAD: u32 = 512;
/// [`Frame::tag`] of what no request asked for.
pub const NO_TAG: u64 = 0;

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
    /// Which payload: [`Request::kind`] or [`Event::kind`].
    pub kind: U32,
    /// The viewer's name for a request, not [`NO_TAG`]; the answers have it.
    pub tag: U64,
}
/// Bytes of a [`Frame`].
pub const FRAME_SIZE: usize = size_of::<Frame>();
const _: () = assert!(FRAME_SIZE == 16);

/// The daemon's greeting, the first message of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`VERSION`].
    pub version: u32,
}

/// A blob that can be opened: new, or listed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blob {
    /// The daemon's name for it. It is never given to another one.
    pub blob: u64,
    /// The UUID under which contexts of the guest share it.
    pub uuid: [u8; 16],
    /// Bytes.
    pub size: u64,
    /// The guest's name for it, of at most [`MAX_DEBUG_NAME`] bytes: for people.
    #[serde(deserialize_with = "short_name")]
    pub name: String,
}

/// A buffer in a blob: new, changed, or listed after its blob. There is one at an offset: a second one takes its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Buffer {
    /// In which blob.
    pub blob: u64,
    /// What the guest says of it.
    pub layout: Layout,
    /// Number of its last present, 0 if there was none. Presents of one blob are counted together, so the largest number is the newest
    /// buffer. Not 0 in what comes before [`Opened`]: the viewer uses the buffer.
    pub present: u64,
}

/// What a guest says of a buffer ([`crate::request::Publish`]). The bytes lie inside the blob: the daemon has looked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Layout {
    /// First byte in the blob.
    pub offset: u64,
    /// Pixels in a row.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// Bytes from one row to the next.
    pub stride: u32,
    /// `DRM_FORMAT_*`; 0 where the bytes are no image.
    pub fourcc: u32,
    /// `DRM_FORMAT_MOD_*`.
    pub modifier: u64,
}

/// The guest took the description of a buffer back. Who uses the buffer still does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Withdrawn {
    /// In which blob.
    pub blob: u64,
    /// Where.
    pub offset: u64,
}

/// A buffer of a blob that the viewer has open has new contents. The viewer uses it from now on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Presented {
    /// In which blob.
    pub blob: u64,
    /// Where.
    pub offset: u64,
    /// Number of this present: more than that of every earlier one of the blob.
    pub present: u64,
}

/// The guest gave the blob up: it can no longer be opened. Who has it open keeps descriptor and bytes, until [`Close`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Destroyed {
    /// Which.
    pub blob: u64,
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// [`Outcome::number`].
    pub outcome: u32,
    /// With [`Outcome::Refused`] the guest's [`crate::Status`], otherwise 0.
    pub status: u32,
}

/// The answer to [`Open`]: the viewer has the blob open now. Its buffers came before it, as [`Buffer`] with the same tag.
///
/// The descriptor is of a dma-buf, or of a memfd, that holds the blob's bytes and nothing else. It is the same buffer each time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opened {
    /// Which.
    pub blob: u64,
    /// Bytes.
    pub size: u64,
}

/// The answer to [`HandIn`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// What a guest imports: random, so that only who is told can.
    pub token: [u8; 16],
}

/// Asks for all blobs: [`Blob`] for each, followed by its [`Buffer`]s, then [`Answer`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct List {}

/// Asks for a descriptor of a blob: [`Opened`], or [`Answer`] with the reason why not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Open {
    /// Which.
    pub blob: u64,
}

/// The viewer no longer uses a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    /// A blob that it has open.
    pub blob: u64,
    /// A buffer that it uses.
    pub offset: u64,
    /// [`Presented::present`], or [`Buffer::present`], as the viewer has seen it last. It goes on using the buffer where
    /// there has been another one meanwhile.
    pub present: u64,
}

/// The viewer gives up a blob and all use of its buffers. It has closed the descriptor, or will not look at it again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Close {
    /// A blob that it has open.
    pub blob: u64,
}

/// Hands in memory for guests to import: a memfd that cannot shrink (F_SEAL_SHRINK), or a dma-buf. Answered with [`Token`], or
/// [`Answer`] with the reason why not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandIn {}

/// Takes a token back: nobody can import it any more. Imports that were made live on. Leaving takes all back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TakeBack {
    /// What [`Token`] gave to this viewer.
    pub token: [u8; 16],
}

/// Borrowed until its length is checked: bincode fills a String of the announced length before it looks whether so much is
/// there.
fn short_name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let name = <&str>::deserialize(deserializer)?;
    if name.len() > MAX_DEBUG_NAME {
        return Err(D::Error::custom(format_args!(
            "name of {} bytes, at most {MAX_DEBUG_NAME} are allowed",
            name.len()
        )));
    }
    Ok(name.to_owned())
}

/// Why a frame is not a message of this protocol.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum FrameError {
    /// Longer than [`MAX_PAYLOAD`].
    #[error("a frame of {0} bytes, at most {MAX_PAYLOAD} are allowed")]
    TooLong(u32),
    /// No message of this direction has this number.
    #[error("a frame of unknown kind {0}")]
    UnknownKind(u32),
    /// The payload is not a value of its type.
    #[error("a frame of kind {kind}: {reason}")]
    Payload {
        /// The frame's kind.
        kind: u32,
        /// What is wrong.
        reason: String,
    },
}

impl Frame {
    /// Bytes of payload, if so many are allowed.
    pub fn payload_length(&self) -> Result<usize, FrameError> {
        match self.length.get() {
            length if length > MAX_PAYLOAD => Err(FrameError::TooLong(length)),
            length => Ok(length as usize),
        }
    }
}

fn decode<'de, T: Deserialize<'de>>(kind: u16, payload: &'de [u8]) -> Result<T, FrameError> {
    decode_payload(kind, payload).map_err(|error| FrameError::Payload {
        kind: kind.into(),
        reason: match error {
            DecodeError::Payload { reason, .. } => reason,
            other => other.to_string(),
        },
    })
}

fn encode<T: Serialize>(kind: u16, tag: u64, payload: &T) -> Vec<u8> {
    let mut bytes = Frame::default().as_bytes().to_vec();
    encode_payload(payload, &mut bytes);
    let length = bytes.len() - FRAME_SIZE;
    if let Ok((frame, _)) = Frame::mut_from_prefix(&mut bytes) {
        frame.length = U32::new(u32::try_from(length).unwrap_or(u32::MAX));
        frame.kind = U32::new(kind.into());
        frame.tag = U64::new(tag);
    }
    bytes
}

macro_rules! messages {
    ($(#[$meta:meta])* $set:ident { $($number:literal $name:ident,)+ } descriptor with $($with:ident)|+) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        #[allow(missing_docs, reason = "each variant holds the type of the same name, documented there")]
        pub enum $set {
            $($name($name),)+
        }

        impl $set {
            /// All kinds.
            pub const KINDS: &'static [u32] = &[$($number,)+];

            /// The number under which this message travels.
            pub const fn kind(&self) -> u32 {
                match self {
                    $($set::$name(_) => $number,)+
                }
            }

            /// Whether a descriptor travels with it.
            pub const fn has_descriptor(&self) -> bool {
                matches!(self, $($set::$with(_))|+)
            }

            /// The payload of a frame of this kind.
            pub fn decode(kind: u32, payload: &[u8]) -> Result<Self, FrameError> {
                match kind {
                    $($number => decode($number, payload).map($set::$name),)+
                    other => Err(FrameError::UnknownKind(other)),
                }
            }

            /// Frame and payload.
            pub fn encode(&self, tag: u64) -> Vec<u8> {
                match self {
                    $($set::$name(payload) => encode($number, tag, payload),)+
                }
            }
        }

        $(impl From<$name> for $set {
            fn from(payload: $name) -> $set {
                $set::$name(payload)
            }
        })+
    };
}

messages! {
    /// What the daemon says.
    Event {
        1 Hello,
        2 Blob,
        3 Buffer,
        4 Withdrawn,
        5 Presented,
        6 Destroyed,
        7 Answer,
        8 Opened,
        9 Token,
    }
    descriptor with Opened
}

messages! {
    /// What a viewer asks.
    Request {
        32 List,
        33 Open,
        34 Release,
        35 Close,
        36 HandIn,
        37 TakeBack,
    }
    descriptor with HandIn
}

macro_rules! outcomes {
    ($($(#[$meta:meta])* $name:ident = $number:literal, $message:literal;)+) => {
        /// How a request of a viewer ended.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Error)]
        #[repr(u32)]
        pub enum Outcome {
            $($(#[$meta])* #[error($message)] $name = $number,)+
        }

        impl Outcome {
            /// All, by number.
            pub const ALL: &'static [Outcome] = &[$(Outcome::$name,)+];

            /// The outcome of this number. One that is not known here counts as [`Outcome::Internal`].
            pub const fn from_number(number: u32) -> Outcome {
                match number {
                    $($number => Outcome::$name,)+
                    _ => Outcome::Internal,
                }
            }
        }
    };
}

outcomes! {
    /// Done.
    Done = 0, "success";
    /// There is no such blob, or no longer.
    UnknownBlob = 1, "there is no such blob";
    /// The viewer does not have the blob open.
    NotOpen = 2, "the blob is not open";
    /// The viewer does not use the buffer.
    NotInUse = 3, "the buffer is not in use";
    /// The guest's side cannot give a descriptor; [`Answer::status`] says why.
    Refused = 4, "the host cannot give a descriptor";
    /// The guest's side did not answer in time.
    TimedOut = 5, "no descriptor came in time";
    /// A limit of the daemon is reached.
    TooMany = 6, "a limit of the daemon is reached";
    /// Neither a memfd that cannot shrink and can be written, nor a dma-buf, or of a size that is not a number of pages.
    BadMemory = 7, "neither a writable memfd that is sealed against shrinking nor a dma-buf, of whole pages";
    /// The viewer has no such token.
    UnknownToken = 8, "there is no such token";
    /// A mistake of the daemon's; its log has it.
    Internal = 9, "internal error of the daemon";
}

impl Outcome {
    /// The number that travels.
    pub const fn number(self) -> u32 {
        self as u32
    }
}
