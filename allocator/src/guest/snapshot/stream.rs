//! Sections in a stream: what every part of a snapshot is written in.
//!
//! ```text
//! stream    magic [u8; 8] | version u32 | section... | section END
//! section   tag u32 | length u32 | payload | checksum u32
//! END       tag 0; payload: sections before it u64 | bytes before it u64
//! ```
//!
//! All numbers are little-endian. A checksum is the CRC-32 of the stream from its magic to the end of that section's payload, other checksums
//! left out, so sections that are lost, doubled or moved are noticed as flipped bits are. It is no signature: whoever writes a snapshot can write
//! a checksum, so what is in a section is checked as if a guest had sent it.

use std::io::{self, Read, Write};

use crc32fast::Hasher;
use thiserror::Error;

/// The version of everything in a snapshot. Another one is refused.
pub const VERSION: u32 = 1;

/// Longest payload of a section: bounds what a reader allocates before it has checked anything.
pub const MAX_SECTION: usize = 1 << 20;

const END: u32 = 0;

/// Why bytes are not a snapshot that can be read here.
#[derive(Debug, Error)]
pub enum FormatError {
    /// The source fails.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It ends in the middle.
    #[error("it ends too early")]
    Truncated,
    /// Something else, or not even that.
    #[error("it does not begin as a snapshot does")]
    Magic,
    /// Of another version.
    #[error("it has version {0}, {VERSION} can be read")]
    Version(u32),
    /// A section that is longer than any may be.
    #[error("a section of {0} bytes, at most {MAX_SECTION} are allowed")]
    TooLong(u32),
    /// Bytes have changed since they were written.
    #[error("the checksum of section {0} is wrong")]
    Checksum(u64),
    /// Sections are missing, or too many.
    #[error("its end does not fit what comes before")]
    End,
    /// A section that is unknown, or not where it belongs.
    #[error("section {section} of kind {tag} does not belong there")]
    Unexpected {
        /// Which, counted from 0.
        section: u64,
        /// Its kind.
        tag: u32,
    },
    /// A payload that is no value of its kind.
    #[error("{what}: {reason}")]
    Malformed {
        /// Of what.
        what: &'static str,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Bytes after the end.
    #[error("something follows its end")]
    Trailing,
}

/// Writes a stream.
pub struct Writer<'a> {
    sink: &'a mut dyn Write,
    digest: Hasher,
    sections: u64,
    bytes: u64,
}

impl std::fmt::Debug for Writer<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer")
            .field("sections", &self.sections)
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

impl<'a> Writer<'a> {
    /// Begins a stream.
    pub fn new(sink: &'a mut dyn Write, magic: [u8; 8]) -> io::Result<Self> {
        let mut writer = Self {
            sink,
            digest: Hasher::new(),
            sections: 0,
            bytes: 0,
        };
        writer.write(&magic)?;
        writer.write(&VERSION.to_le_bytes())?;
        Ok(writer)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.digest.update(bytes);
        self.bytes += bytes.len() as u64;
        self.sink.write_all(bytes)
    }

    /// Writes a section, of a kind that is not 0.
    pub fn section(&mut self, tag: u32, payload: &[u8]) -> io::Result<()> {
        let length = u32::try_from(payload.len())
            .ok()
            .filter(|_| payload.len() <= MAX_SECTION)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "a section is too long"))?;
        self.write(&tag.to_le_bytes())?;
        self.write(&length.to_le_bytes())?;
        self.write(payload)?;
        let checksum = self.digest.clone().finalize();
        self.sink.write_all(&checksum.to_le_bytes())?;
        self.sections += 1;
        Ok(())
    }

    /// Ends the stream.
    pub fn finish(mut self) -> io::Result<()> {
        let totals = [self.sections.to_le_bytes(), self.bytes.to_le_bytes()].concat();
        self.section(END, &totals)?;
        self.sink.flush()
    }
}

/// Reads a stream.
pub struct Reader<'a> {
    source: &'a mut dyn Read,
    digest: Hasher,
    sections: u64,
    bytes: u64,
    payload: Vec<u8>,
}

impl std::fmt::Debug for Reader<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader")
            .field("sections", &self.sections)
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

impl<'a> Reader<'a> {
    /// Begins to read. Nothing beyond the stream's end is taken from the source.
    pub fn new(source: &'a mut dyn Read, magic: [u8; 8]) -> Result<Self, FormatError> {
        let mut reader = Self {
            source,
            digest: Hasher::new(),
            sections: 0,
            bytes: 0,
            payload: Vec::new(),
        };
        if reader.read::<8>()? != magic {
            return Err(FormatError::Magic);
        }
        match u32::from_le_bytes(reader.read()?) {
            VERSION => Ok(reader),
            other => Err(FormatError::Version(other)),
        }
    }

    fn read<const N: usize>(&mut self) -> Result<[u8; N], FormatError> {
        let bytes = read_exact(self.source)?;
        self.digest.update(&bytes);
        self.bytes += N as u64;
        Ok(bytes)
    }

    /// The next section's kind and payload; `None` at the end.
    pub fn next_section(&mut self) -> Result<Option<(u32, &[u8])>, FormatError> {
        let (sections, bytes) = (self.sections, self.bytes);
        let tag = u32::from_le_bytes(self.read()?);
        let announced = u32::from_le_bytes(self.read()?);
        let length = usize::try_from(announced)
            .ok()
            .filter(|length| *length <= MAX_SECTION)
            .ok_or(FormatError::TooLong(announced))?;
        self.payload.clear();
        // It grows with what is there, not with what is announced.
        (&mut *self.source)
            .take(length as u64)
            .read_to_end(&mut self.payload)?;
        if self.payload.len() != length {
            return Err(FormatError::Truncated);
        }
        self.digest.update(&self.payload);
        self.bytes += length as u64;
        let checksum = u32::from_le_bytes(read_exact(self.source)?);
        if checksum != self.digest.clone().finalize() {
            return Err(FormatError::Checksum(sections));
        }
        if tag == END {
            let totals = [sections.to_le_bytes(), bytes.to_le_bytes()].concat();
            return if self.payload == totals {
                Ok(None)
            } else {
                Err(FormatError::End)
            };
        }
        self.sections += 1;
        Ok(Some((tag, &self.payload)))
    }

    /// What to say of the section that came last, where it does not belong.
    pub fn unexpected(&self, tag: u32) -> FormatError {
        FormatError::Unexpected {
            section: self.sections.saturating_sub(1),
            tag,
        }
    }
}

/// That nothing is left in the source.
pub fn expect_end(source: &mut dyn Read) -> Result<(), FormatError> {
    let mut one = [0];
    loop {
        return match source.read(&mut one) {
            Ok(0) => Ok(()),
            Ok(_) => Err(FormatError::Trailing),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => Err(error.into()),
        };
    }
}

fn read_exact<const N: usize>(source: &mut dyn Read) -> Result<[u8; N], FormatError> {
    let mut bytes = [0; N];
    match source.read_exact(&mut bytes) {
        Ok(()) => Ok(bytes),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(FormatError::Truncated),
        Err(error) => Err(error.into()),
    }
}

/// The fields of a payload, in order.
#[derive(Debug)]
pub struct Fields<'a> {
    what: &'static str,
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    /// The fields of a payload; `what` it is, for people.
    pub fn new(what: &'static str, payload: &'a [u8]) -> Self {
        Self {
            what,
            rest: payload,
        }
    }

    /// What is wrong with the payload.
    pub fn wrong(&self, reason: &'static str) -> FormatError {
        FormatError::Malformed {
            what: self.what,
            reason,
        }
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], FormatError> {
        let (field, rest) = self
            .rest
            .split_first_chunk::<N>()
            .ok_or_else(|| self.wrong("too short"))?;
        self.rest = rest;
        Ok(*field)
    }

    /// A number of one byte.
    pub fn u8(&mut self) -> Result<u8, FormatError> {
        self.take::<1>().map(u8::from_le_bytes)
    }

    /// A number of two bytes.
    pub fn u16(&mut self) -> Result<u16, FormatError> {
        self.take().map(u16::from_le_bytes)
    }

    /// A number of four bytes.
    pub fn u32(&mut self) -> Result<u32, FormatError> {
        self.take().map(u32::from_le_bytes)
    }

    /// A number of eight bytes.
    pub fn u64(&mut self) -> Result<u64, FormatError> {
        self.take().map(u64::from_le_bytes)
    }

    /// Sixteen bytes.
    pub fn uuid(&mut self) -> Result<[u8; 16], FormatError> {
        self.take()
    }

    /// A byte that is 0 or 1.
    pub fn flag(&mut self) -> Result<bool, FormatError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(self.wrong("a flag that is neither 0 nor 1")),
        }
    }

    /// A text of at most `most` bytes, after its length.
    pub fn text(&mut self, most: usize) -> Result<&'a str, FormatError> {
        let length = usize::from(self.u16()?);
        if length > most {
            return Err(self.wrong("a text that is too long"));
        }
        let (text, rest) = self
            .rest
            .split_at_checked(length)
            .ok_or_else(|| self.wrong("too short"))?;
        self.rest = rest;
        std::str::from_utf8(text).map_err(|_| self.wrong("a text that is not UTF-8"))
    }

    /// Whether all fields were taken.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// That all fields were taken.
    pub fn end(self) -> Result<(), FormatError> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(self.wrong("too long"))
        }
    }

    /// All bytes that are left.
    pub fn rest(self) -> &'a [u8] {
        self.rest
    }
}

/// Fields of a payload that is being made.
#[derive(Debug, Default)]
pub struct Payload(Vec<u8>);

impl Payload {
    /// Empty.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds bytes: those of a number are `to_le_bytes`.
    #[must_use]
    pub fn put(mut self, bytes: impl AsRef<[u8]>) -> Self {
        self.push(bytes);
        self
    }

    /// As [`Payload::put`], in place.
    pub fn push(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.extend_from_slice(bytes.as_ref());
    }

    /// Adds a flag.
    #[must_use]
    pub fn flag(self, flag: bool) -> Self {
        self.put([u8::from(flag)])
    }

    /// Adds a text, cut where it is longer than `most` bytes.
    #[must_use]
    pub fn text(self, text: &str, most: u16) -> Self {
        let cut = text.floor_char_boundary(most.into());
        let text = text.get(..cut).unwrap_or_default();
        let length = u16::try_from(text.len()).unwrap_or(0);
        self.put(length.to_le_bytes()).put(text)
    }

    /// The payload.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}
