//! What a guest may send to a cross-domain context: a sequence of commands, each with its size.
//!
//! Rutabaga takes them as they come. What would hurt there is refused here: sizes that do not move on, a second INIT (whose first thread nobody
//! would end), channels other than the Wayland socket, and commands for things that this device does not have.

use hostblob_protocol::virtio_gpu::CmdSubmit;
use zerocopy::byteorder::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use crate::gpu::fault::Fault;

/// Commands of `cross_domain_protocol.h`.
pub(super) mod command {
    pub(crate) const INIT: u8 = 1;
    pub(crate) const GET_IMAGE_REQUIREMENTS: u8 = 2;
    pub(crate) const POLL: u8 = 3;
    pub(crate) const SEND: u8 = 4;
    pub(crate) const WRITE: u8 = 7;
}

/// A blob of the context, by its resource id.
const ID_BLOB: u32 = 1;
/// A pipe that the host makes, and reads for the guest.
const ID_READ_PIPE: u32 = 3;
/// No channel: queries alone.
const CHANNEL_NONE: u32 = 0;
/// The Wayland socket.
const CHANNEL_WAYLAND: u32 = 1;

/// Descriptors in one SEND.
pub const MAX_IDENTIFIERS: u32 = 28;
/// Largest side of an image, in pixels.
pub const MAX_IMAGE_SIDE: u32 = 16384;
/// Different images that one context may ask about: rutabaga keeps each answer, about 100 bytes, until the context ends.
pub const MAX_IMAGE_QUERIES: u32 = 65536;
/// Largest submission, in bytes: 16 messages of the largest size that a compositor is sent at once.
pub const MAX_STREAM: usize = 64 << 10;

#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    command: u8,
    ring_idx: u8,
    size: U16,
    padding: U32,
}

#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Init {
    header: Header,
    query_ring: U32,
    channel_ring: U32,
    channel: U32,
}

#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct ImageQuery {
    header: Header,
    width: U32,
    height: U32,
    format: U32,
    flags: U32,
}

#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Send {
    header: Header,
    count: U32,
    data_size: U32,
    identifiers: [U32; MAX_IDENTIFIERS as usize],
    types: [U32; MAX_IDENTIFIERS as usize],
    sizes: [U32; MAX_IDENTIFIERS as usize],
}

#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Write {
    header: Header,
    identifier: U32,
    hang_up: U32,
    data_size: U32,
    padding: U32,
}

/// A UUID after [`Init`], which no channel that is served here has.
const INIT_UUID: usize = 16;

/// What one context has sent so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Stream {
    initialized: bool,
    /// There is a thread that answers on the channel's ring.
    pub(super) has_channel: bool,
    image_queries: u32,
}

/// What a submission needs besides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Needs {
    /// Descriptors that it opens here.
    pub(super) descriptors: u32,
}

fn field(field: &'static str, value: impl Into<u64>, expected: &'static str) -> Fault {
    let value = value.into();
    Fault::Field {
        field,
        value,
        expected,
    }
}

fn read<T: FromBytes>(bytes: &[u8]) -> Result<T, Fault> {
    let read = T::read_from_prefix(bytes).map(|(value, _)| value);
    read.map_err(|_| truncated(size_of::<T>(), bytes))
}

fn truncated(needed: usize, bytes: &[u8]) -> Fault {
    Fault::Truncated {
        needed: needed.saturating_add(size_of::<CmdSubmit>()),
        available: bytes.len(),
    }
}

/// `data_size` bytes follow the structure, within the command.
fn has_data<T>(command: &[u8], data_size: U32) -> Result<(), Fault> {
    let size = usize::try_from(data_size.get()).unwrap_or(usize::MAX);
    let needed = size_of::<T>().saturating_add(size);
    if needed > command.len() {
        return Err(truncated(needed, command));
    }
    Ok(())
}

impl Stream {
    /// Checks a submission: what the context will have sent when rutabaga has taken it.
    pub(super) fn check(mut self, mut bytes: &[u8]) -> Result<(Self, Needs), Fault> {
        if bytes.len() > MAX_STREAM {
            let size = bytes.len() as u64;
            return Err(field(
                "size",
                size,
                "at most 64 KiB for a cross-domain context",
            ));
        }
        let mut needs = Needs::default();
        while !bytes.is_empty() {
            let header: Header = read(bytes)?;
            let size = usize::from(header.size.get());
            if size < size_of::<Header>() {
                return Err(field("cmd_size", header.size.get(), "at least 8"));
            }
            let (command, rest) = bytes
                .split_at_checked(size)
                .ok_or_else(|| truncated(size, bytes))?;
            self.check_command(header.command, command, &mut needs)?;
            bytes = rest;
        }
        Ok((self, needs))
    }

    fn check_command(&mut self, kind: u8, bytes: &[u8], needs: &mut Needs) -> Result<(), Fault> {
        match kind {
            command::INIT => self.check_init(bytes),
            command::GET_IMAGE_REQUIREMENTS => self.check_image(bytes),
            command::POLL => Ok(()),
            command::SEND => check_send(bytes, needs),
            command::WRITE => has_data::<Write>(bytes, read::<Write>(bytes)?.data_size),
            other => Err(field(
                "cmd",
                other,
                "INIT, GET_IMAGE_REQUIREMENTS, POLL, SEND or WRITE",
            )),
        }
    }

    fn check_init(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        let init: Init = read(bytes)?;
        let (short, long) = (size_of::<Init>(), size_of::<Init>() + INIT_UUID);
        if bytes.len() != short && bytes.len() != long {
            return Err(field("cmd_size", bytes.len() as u64, "20 or 36 of INIT"));
        }
        if std::mem::replace(&mut self.initialized, true) {
            return Err(field("cmd", command::INIT, "one INIT of a context"));
        }
        match init.channel.get() {
            CHANNEL_NONE => Ok(()),
            CHANNEL_WAYLAND => {
                self.has_channel = true;
                Ok(())
            }
            other => Err(field("channel_type", other, "0, or 1 for Wayland")),
        }
    }

    fn check_image(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        let image: ImageQuery = read(bytes)?;
        for (name, side) in [("width", image.width), ("height", image.height)] {
            if !(1..=MAX_IMAGE_SIDE).contains(&side.get()) {
                return Err(field(name, side.get(), "1 to 16384"));
            }
        }
        self.image_queries += 1;
        if self.image_queries > MAX_IMAGE_QUERIES {
            let limit = MAX_IMAGE_QUERIES as usize;
            return Err(Fault::Limit("images are known to the context", limit));
        }
        Ok(())
    }
}

fn check_send(bytes: &[u8], needs: &mut Needs) -> Result<(), Fault> {
    let send: Send = read(bytes)?;
    let count = send.count.get();
    if count > MAX_IDENTIFIERS {
        return Err(field("num_identifiers", count, "at most 28"));
    }
    for kind in send.types.iter().take(count as usize) {
        match kind.get() {
            // Passed on, and closed here.
            ID_BLOB => needs.descriptors += 1,
            ID_READ_PIPE => needs.descriptors += 2,
            other => return Err(field("identifier_type", other, "1 (blob) or 3 (read pipe)")),
        }
    }
    has_data::<Send>(bytes, send.data_size)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A command with these words after its header.
    fn message(kind: u8, words: &[u32], data: &[u8]) -> Vec<u8> {
        let size = u16::try_from(8 + 4 * words.len() + data.len()).unwrap();
        let mut bytes = vec![kind, 0];
        bytes.extend(size.to_le_bytes());
        bytes.extend([0; 4]);
        bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        bytes.extend(data);
        bytes
    }

    /// A SEND of `data` with identifiers (type, id).
    fn send(identifiers: &[(u32, u32)], data: &[u8]) -> Vec<u8> {
        let counts = [identifiers.len(), data.len()];
        let mut words = counts.map(|count| u32::try_from(count).unwrap()).to_vec();
        let mut ids = [0; 84];
        for (at, (kind, id)) in identifiers.iter().take(28).enumerate() {
            (ids[at], ids[28 + at]) = (*id, *kind);
        }
        words.extend(ids);
        message(command::SEND, &words, data)
    }

    fn check(bytes: &[u8]) -> Result<(Stream, Needs), Fault> {
        Stream::default().check(bytes)
    }

    #[test]
    fn what_a_wayland_proxy_sends_is_taken() {
        let init = message(command::INIT, &[1, 2, CHANNEL_WAYLAND], &[]);
        let image = message(command::GET_IMAGE_REQUIREMENTS, &[64, 64, 0, 0], &[]);
        let poll = message(command::POLL, &[0], &[]);
        let sent = send(&[(ID_BLOB, 5), (ID_READ_PIPE, 0x8000_0001)], b"hello");
        let write = message(command::WRITE, &[7, 0, 3, 0], b"abc");
        let all = [init, image, poll, sent, write].concat();
        let (stream, needs) = check(&all).unwrap();
        assert!(stream.has_channel && stream.initialized);
        assert_eq!(stream.image_queries, 1);
        assert_eq!(needs.descriptors, 3);
        let long = message(command::INIT, &[1, 2, CHANNEL_NONE], &[0; 16]);
        assert!(!check(&long).unwrap().0.has_channel);
        assert_eq!(check(&[]).unwrap().0, Stream::default());
    }

    #[test]
    fn what_would_hurt_is_refused() {
        let with_size = |size: u16| {
            let mut bytes = message(command::POLL, &[0], &[]);
            bytes[2..4].copy_from_slice(&size.to_le_bytes());
            bytes
        };
        let init = |channel| message(command::INIT, &[1, 2, channel], &[]);
        let mut overlong = send(&[], b"abc");
        overlong[12] = 4;
        let mut too_many = send(&[], b"");
        too_many[8] = 29;
        let bad: &[(&str, Vec<u8>)] = &[
            ("no header", vec![3; 7]),
            ("a size that does not move on", with_size(0)),
            ("less than a header", with_size(7)),
            ("more than there is", with_size(13)),
            ("an internal socket", init(u32::MAX)),
            ("PipeWire", init(0x10)),
            ("two INITs", [init(1), init(0)].concat()),
            (
                "an INIT of an odd size",
                message(command::INIT, &[1, 2, 1, 0], &[]),
            ),
            ("half an INIT", message(command::INIT, &[1, 2], &[])),
            ("no width", message(2, &[0, 1, 0, 0], &[])),
            ("too high", message(2, &[1, MAX_IMAGE_SIDE + 1, 0, 0], &[])),
            ("overflow", message(2, &[u32::MAX, u32::MAX, 0, 0], &[])),
            ("half a query", message(2, &[1, 1], &[])),
            ("half a SEND", message(command::SEND, &[0, 0], &[])),
            ("data that is not there", overlong),
            ("too many identifiers", too_many),
            ("a socket", send(&[(7, 1)], b"")),
            (
                "a WRITE without its data",
                message(command::WRITE, &[7, 0, 1, 0], &[]),
            ),
            (
                "a WRITE of 4 GiB",
                message(command::WRITE, &[7, 0, u32::MAX, 0], &[]),
            ),
            ("the host's answer", message(5, &[0; 90], &[])),
            ("a sentinel", message(8, &[0; 8], &[])),
            ("an event", message(11, &[0; 4], &[])),
            ("a file of virtio-fs", message(12, &[0; 8], &[])),
            ("a socket's name", message(13, &[0; 8], &[])),
            ("no command", message(0, &[0], &[])),
            ("too long", vec![0; MAX_STREAM + 1]),
        ];
        for (what, bytes) in bad {
            let refused = check(bytes).expect_err(what);
            let invalid = hostblob_protocol::virtio_gpu::resp::ERR_INVALID_PARAMETER;
            assert_eq!(refused.response(), invalid, "{what}");
        }
    }

    #[test]
    fn image_queries_are_counted() {
        let query = message(command::GET_IMAGE_REQUIREMENTS, &[1, 1, 0, 0], &[]);
        let mut stream = Stream {
            image_queries: MAX_IMAGE_QUERIES - 1,
            ..Stream::default()
        };
        stream = stream.check(&query).unwrap().0;
        assert!(matches!(stream.check(&query), Err(Fault::Limit(..))));
    }
}
