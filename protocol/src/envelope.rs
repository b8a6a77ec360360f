//! The frame around requests: a header, then a chain of structures.
//!
//! ```text
//! envelope   magic u32 | major u16 | minor u16 | length u32 | reserved u32 | sequence u64
//! structure  type u16 | version u16 | length u32 | payload, zero-padded to 8 bytes
//! ```
//!
//! `length` of the envelope counts all of it, padding included; that of a structure counts its payload alone. A structure of
//! unknown type, or of a version that is newer than known, is skipped when its type is optional and refused when it is
//! [`REQUIRED`]. A minor version that is newer than ours is fine: what it
//! adds are structures. The header itself is the same in every version, another major one included, so that
//! [`Envelope::peek_sequence`] finds out whom to tell.

use bincode::config::{Configuration, Fixint, Limit, LittleEndian};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::request::{DEBUG_NAME, DebugName, Import, MAX_DEBUG_NAME, REQUIRED, Request};
use crate::status::Status;
use crate::{VERSION_MAJOR, VERSION_MINOR};

/// First bytes of an envelope: `HBLB`.
pub const MAGIC: u32 = u32::from_le_bytes(*b"HBLB");

/// Longest envelope in bytes. A guest that sends a longer one gets [`Status::Malformed`] before any structure of it is
/// read.
pub const MAX_LENGTH: usize = 4096;

/// Most structures in one envelope: bounds the work of one command.
pub const MAX_STRUCTURES: usize = 64;

/// Structures start at multiples of this many bytes.
const ALIGNMENT: usize = 8;

/// Structure type of the request that names memory by its UUID.
const IMPORT: u16 = Request::Import(Import {
    client_id: 0,
    uuid: [0; 16],
})
.structure_type();

/// Version of every structure that exists so far.
const STRUCTURE_VERSION: u16 = 1;

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct EnvelopeHeader {
    magic: U32,
    major: U16,
    minor: U16,
    length: U32,
    reserved: U32,
    sequence: U64,
}

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct StructureHeader {
    structure_type: U16,
    version: U16,
    length: U32,
}

/// Bytes of the envelope's header.
pub const ENVELOPE_HEADER_SIZE: usize = size_of::<EnvelopeHeader>();
/// Bytes of a structure's header.
pub const STRUCTURE_HEADER_SIZE: usize = size_of::<StructureHeader>();
const _: () = assert!(ENVELOPE_HEADER_SIZE == 24 && STRUCTURE_HEADER_SIZE == 8);

/// Why bytes are not an envelope that can be served here.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// Shorter than what its headers announce.
    #[error("{what} needs {needed} bytes, {available} are there")]
    Truncated {
        /// Which part.
        what: &'static str,
        /// Bytes that it needs.
        needed: usize,
        /// Bytes that are left.
        available: usize,
    },
    /// Longer than [`MAX_LENGTH`].
    #[error("the envelope has {0} bytes, at most {MAX_LENGTH} are allowed")]
    TooLong(usize),
    /// More than [`MAX_STRUCTURES`].
    #[error("the envelope has more than {MAX_STRUCTURES} structures")]
    TooManyStructures,
    /// Does not begin with [`MAGIC`].
    #[error("magic {0:#010x} is not that of an envelope")]
    BadMagic(u32),
    /// Of another major version.
    #[error("protocol version {0}.{1} is not {VERSION_MAJOR}.x")]
    MajorVersion(u16, u16),
    /// Reserved bytes or padding are not zero.
    #[error("reserved bytes are not zero")]
    ReservedNotZero,
    /// The header's length is not the number of bytes.
    #[error("the envelope says {announced} bytes, {available} are there")]
    LengthMismatch {
        /// The header's word.
        announced: usize,
        /// What came.
        available: usize,
    },
    /// A required structure that is not known here.
    #[error("required structure {0:#06x} is unknown")]
    UnknownRequired(u16),
    /// A required structure in a version that is not known here.
    #[error("structure {0:#06x} has version {1}, 1 to {STRUCTURE_VERSION} are known")]
    UnknownVersion(u16, u16),
    /// A payload that is not a value of its type: too short, too long, or with a flag or enumerator that its version
    /// does not have.
    #[error("structure {structure_type:#06x}: {reason}")]
    Payload {
        /// Of which structure.
        structure_type: u16,
        /// What is wrong.
        reason: String,
    },
}

impl DecodeError {
    /// The status that answers such bytes.
    pub fn status(&self) -> Status {
        match self {
            DecodeError::MajorVersion(..) | DecodeError::UnknownVersion(..) => {
                Status::UnsupportedVersion
            }
            DecodeError::UnknownRequired(_) => Status::Unsupported,
            _ => Status::Malformed,
        }
    }
}

/// A decoded envelope: requests in order, and what optional structures said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    /// Chosen by the guest; the answer carries it. 0 wants no answer.
    pub sequence: u64,
    /// In the order of the chain, which is the order of execution. None is fine: such an envelope does nothing, and is
    /// answered.
    pub requests: Vec<Request>,
    /// The name for what the envelope creates, wherever in the chain it stands; of several, the last.
    pub debug_name: Option<DebugName>,
}

impl Envelope {
    /// The sequence number of bytes that may not decode any further, so that even then an answer finds its asker.
    ///
    /// Works for any major version, since the header never changes. `None` where the bytes have no header of this
    /// protocol.
    pub fn peek_sequence(bytes: &[u8]) -> Option<u64> {
        let (header, _) = EnvelopeHeader::read_from_prefix(bytes).ok()?;
        (header.magic.get() == MAGIC).then_some(header.sequence.get())
    }

    /// The UUIDs that the requests of an envelope import, in order; none where `bytes` do not decode.
    ///
    /// For whoever has to find memory before it executes them. Of an envelope without IMPORT only the headers are read.
    pub fn imports(bytes: &[u8]) -> Vec<[u8; 16]> {
        let envelope = has_structure(bytes, IMPORT).then(|| Self::decode(bytes));
        let Some(Ok(envelope)) = envelope else {
            return Vec::new();
        };
        let uuid = |request: &Request| match request {
            Request::Import(import) => Some(import.uuid),
            _ => None,
        };
        envelope.requests.iter().filter_map(uuid).collect()
    }

    /// Decodes all of `bytes`: nothing may follow the envelope.
    ///
    /// Checks the form alone: whether client ids exist, sizes fit and ranges lie inside is for who executes the requests.
    pub fn decode(bytes: &[u8]) -> Result<Envelope, DecodeError> {
        let (header, mut rest) = check_header(bytes)?;
        let mut envelope = Envelope {
            sequence: header.sequence.get(),
            requests: Vec::new(),
            debug_name: None,
        };
        for _ in 0..MAX_STRUCTURES {
            if rest.is_empty() {
                return Ok(envelope);
            }
            let (structure, payload, next) = split_structure(rest)?;
            envelope.take(structure, payload)?;
            rest = next;
        }
        if rest.is_empty() {
            Ok(envelope)
        } else {
            Err(DecodeError::TooManyStructures)
        }
    }

    fn take(&mut self, structure: StructureHeader, payload: &[u8]) -> Result<(), DecodeError> {
        let structure_type = structure.structure_type.get();
        let version = structure.version.get();
        let required = structure_type & REQUIRED != 0;
        let known = structure_type == DEBUG_NAME || Request::TYPES.contains(&structure_type);
        match (known, version) {
            (true, STRUCTURE_VERSION) => {}
            (true, _) if required => {
                return Err(DecodeError::UnknownVersion(structure_type, version));
            }
            (false, _) if required => return Err(DecodeError::UnknownRequired(structure_type)),
            _ => return Ok(()),
        }
        if structure_type == DEBUG_NAME {
            // Borrowed until its length is checked: bincode fills a String of the announced length before it looks
            // whether so much is there. A struct of one field has the encoding of the field.
            let name: &str = decode_payload(structure_type, payload)?;
            if name.len() > MAX_DEBUG_NAME {
                return Err(DecodeError::Payload {
                    structure_type,
                    reason: format!(
                        "name of {} bytes, at most {MAX_DEBUG_NAME} are allowed",
                        name.len()
                    ),
                });
            }
            self.debug_name = Some(DebugName {
                name: name.to_owned(),
            });
        } else if let Some(request) = Request::decode(structure_type, payload) {
            self.requests.push(request?);
        }
        Ok(())
    }
}

fn check_header(bytes: &[u8]) -> Result<(EnvelopeHeader, &[u8]), DecodeError> {
    if bytes.len() > MAX_LENGTH {
        return Err(DecodeError::TooLong(bytes.len()));
    }
    let (header, rest) =
        EnvelopeHeader::read_from_prefix(bytes).map_err(|_| DecodeError::Truncated {
            what: "the envelope header",
            needed: ENVELOPE_HEADER_SIZE,
            available: bytes.len(),
        })?;
    if header.magic.get() != MAGIC {
        return Err(DecodeError::BadMagic(header.magic.get()));
    }
    if header.major.get() != VERSION_MAJOR {
        return Err(DecodeError::MajorVersion(
            header.major.get(),
            header.minor.get(),
        ));
    }
    if header.reserved.get() != 0 {
        return Err(DecodeError::ReservedNotZero);
    }
    let announced = header.length.get() as usize;
    if announced != bytes.len() {
        return Err(DecodeError::LengthMismatch {
            announced,
            available: bytes.len(),
        });
    }
    Ok((header, rest))
}

/// Whether a structure of this type is there, as far as the headers are good.
fn has_structure(bytes: &[u8], structure_type: u16) -> bool {
    let Ok((_, mut rest)) = check_header(bytes) else {
        return false;
    };
    for _ in 0..MAX_STRUCTURES {
        match split_structure(rest) {
            Ok((header, ..)) if header.structure_type.get() == structure_type => return true,
            Ok((_, _, next)) => rest = next,
            Err(_) => return false,
        }
    }
    false
}

/// Header, payload, and what follows the padding.
fn split_structure(bytes: &[u8]) -> Result<(StructureHeader, &[u8], &[u8]), DecodeError> {
    let (header, rest) =
        StructureHeader::read_from_prefix(bytes).map_err(|_| DecodeError::Truncated {
            what: "a structure header",
            needed: STRUCTURE_HEADER_SIZE,
            available: bytes.len(),
        })?;
    let length = header.length.get() as usize;
    let padded = length
        .checked_next_multiple_of(ALIGNMENT)
        .unwrap_or(usize::MAX);
    let truncated = DecodeError::Truncated {
        what: "a structure",
        needed: padded,
        available: rest.len(),
    };
    let (body, next) = rest
        .split_at_checked(padded)
        .ok_or_else(|| truncated.clone())?;
    let (payload, padding) = body.split_at_checked(length).ok_or(truncated)?;
    if padding.iter().any(|&byte| byte != 0) {
        return Err(DecodeError::ReservedNotZero);
    }
    Ok((header, payload, next))
}

/// bincode as this protocol uses it; the crate appears in no other file.
fn bincode_config() -> Configuration<LittleEndian, Fixint, Limit<MAX_LENGTH>> {
    bincode::config::standard()
        .with_little_endian()
        .with_fixed_int_encoding()
        .with_limit::<MAX_LENGTH>()
}

pub(crate) fn decode_payload<'de, T: Deserialize<'de>>(
    structure_type: u16,
    payload: &'de [u8],
) -> Result<T, DecodeError> {
    let error = |reason| DecodeError::Payload {
        structure_type,
        reason,
    };
    let (value, used) = bincode::serde::borrow_decode_from_slice(payload, bincode_config())
        .map_err(|e| error(e.to_string()))?;
    if used != payload.len() {
        return Err(error(format!(
            "{} bytes, its version has {used}",
            payload.len()
        )));
    }
    Ok(value)
}

pub(crate) fn encode_payload<T: Serialize>(payload: &T, into: &mut Vec<u8>) {
    // The types are fixed-size integers and strings of at most MAX_DEBUG_NAME bytes (the builder checks), and a Vec
    // takes every byte: bincode has no way to refuse. An empty payload would be refused by the peer, not misread.
    if let Ok(bytes) = bincode::serde::encode_to_vec(payload, bincode_config()) {
        into.extend_from_slice(&bytes);
    }
}

/// Puts an envelope together.
///
/// It does not look at the limits: more than [`MAX_LENGTH`] bytes or [`MAX_STRUCTURES`] structures are refused by the peer.
#[derive(Debug, Clone)]
pub struct EnvelopeBuilder {
    bytes: Vec<u8>,
}

impl EnvelopeBuilder {
    /// An envelope without structures. `sequence` 0 wants no answer.
    pub fn new(sequence: u64) -> Self {
        let header = EnvelopeHeader {
            magic: U32::new(MAGIC),
            major: U16::new(VERSION_MAJOR),
            minor: U16::new(VERSION_MINOR),
            length: U32::new(0),
            reserved: U32::new(0),
            sequence: U64::new(sequence),
        };
        Self {
            bytes: header.as_bytes().to_vec(),
        }
    }

    /// Appends a request.
    #[must_use]
    pub fn request(self, request: impl Into<Request>) -> Self {
        let request = request.into();
        let mut payload = Vec::new();
        request.encode(&mut payload);
        self.structure(request.structure_type(), STRUCTURE_VERSION, &payload)
    }

    /// Appends a name, cut at a character boundary to [`MAX_DEBUG_NAME`] bytes.
    #[must_use]
    pub fn debug_name(self, name: &str) -> Self {
        let name = name
            .get(..name.floor_char_boundary(MAX_DEBUG_NAME))
            .unwrap_or_default();
        let mut payload = Vec::new();
        encode_payload(
            &DebugName {
                name: name.to_owned(),
            },
            &mut payload,
        );
        self.structure(DEBUG_NAME, STRUCTURE_VERSION, &payload)
    }

    /// Appends a structure of any type, as a peer of another version may send it: header, `payload`, padding.
    ///
    /// [`EnvelopeBuilder::request`] and [`EnvelopeBuilder::debug_name`] are for those known here.
    #[must_use]
    pub fn structure(mut self, structure_type: u16, version: u16, payload: &[u8]) -> Self {
        let header = StructureHeader {
            structure_type: U16::new(structure_type),
            version: U16::new(version),
            length: U32::new(u32::try_from(payload.len()).unwrap_or(u32::MAX)),
        };
        self.bytes.extend_from_slice(header.as_bytes());
        self.bytes.extend_from_slice(payload);
        self.bytes
            .resize(self.bytes.len().next_multiple_of(ALIGNMENT), 0);
        self
    }

    /// The bytes, a multiple of 8 of them; `DRM_IOCTL_VIRTGPU_RESOURCE_CREATE_BLOB` takes a multiple of 4 as its
    /// command.
    #[must_use]
    pub fn build(mut self) -> Vec<u8> {
        let length = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        if let Ok((header, _)) = EnvelopeHeader::mut_from_prefix(&mut self.bytes) {
            header.length = U32::new(length);
        }
        self.bytes
    }
}
