//! The bytes of memories: pages that exist and are not zero.
//!
//! The CPU reads and writes the window and the parking file. Device memory takes a detour, a part at a time: through parked memory that the
//! GPU copies to or from.

use std::sync::atomic::{AtomicU64, Ordering};

use super::records::{self, tag};
use super::stream::{Payload, Writer};
use super::{RestoreError, SaveError, Unfinished};
use crate::blob::{Home, Memory, MemoryKey};
use crate::context::ContextRef;
use crate::guest::Guest;
use crate::provider::{AttachmentId, Request};
use crate::window::PAGE;
use crate::work::Pending;

/// Bytes of device memory that are copied at a time: a multiple of every page size.
const PART: u64 = 16 << 20;

/// Pages in one section.
const RUN: usize = 64;

const PAGE_BYTES: usize = 4096;
const _: () = assert!(PAGE_BYTES as u64 == PAGE);

const WORDS: usize = PAGE_BYTES / size_of::<AtomicU64>();

/// A part of a memory's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Part {
    offset: u64,
    length: u64,
}

impl Part {
    /// The one that holds `offset` of a memory of `size` bytes.
    fn around(offset: u64, size: u64) -> Self {
        let start = offset / PART * PART;
        Self {
            offset: start,
            length: size.saturating_sub(start).min(PART),
        }
    }
}

/// Writes the bytes of all memories, by key and offset.
pub(super) fn write(guest: &mut Guest, writer: &mut Writer<'_>) -> Result<(), SaveError> {
    let mut keys: Vec<MemoryKey> = guest.memories.keys().copied().collect();
    keys.sort_unstable();
    let last_key = guest.next_key;
    for key in keys {
        let Some(memory) = guest.memories.get(&key) else {
            continue;
        };
        match (&memory.home, memory.attachment) {
            (Home::Window(_) | Home::Parked(_), _) => write_memory(guest, writer, key, 0, memory)?,
            (Home::Device { .. }, Some(attachment)) => {
                let size = memory.size;
                let mut part = Part::around(0, size);
                while part.length > 0 {
                    write_device(guest, writer, key, attachment, part)?;
                    part = Part::around(part.offset + PART, size);
                }
            }
            _ => {}
        }
    }
    if guest.next_key != last_key && !matches!(guest.finish_work(), Err(Unfinished::Timeout)) {
        // The detours are gone, and their keys can be those of others.
        guest.next_key = last_key;
    }
    Ok(())
}

fn write_device(
    guest: &mut Guest,
    writer: &mut Writer<'_>,
    key: MemoryKey,
    attachment: AttachmentId,
    part: Part,
) -> Result<(), SaveError> {
    let spot = guest.detour(part.length)?;
    let copied = guest.attach(spot).map_err(SaveError::from).and_then(|at| {
        let copy = Request::Copy {
            source: attachment,
            source_offset: part.offset,
            destination: at,
            destination_offset: 0,
            length: part.length,
        };
        guest.work.submit(copy, Pending::Work);
        Ok(guest.finish_work()?)
    });
    let written = copied.and_then(|()| match guest.memories.get(&spot) {
        Some(memory) => write_memory(guest, writer, key, part.offset, memory),
        None => Ok(()),
    });
    guest.retire(spot);
    written
}

/// Writes the bytes of `memory` as those of memory `key` from `base` on.
fn write_memory(
    guest: &Guest,
    writer: &mut Writer<'_>,
    key: MemoryKey,
    base: u64,
    memory: &Memory,
) -> Result<(), SaveError> {
    let Some(words) = memory.words() else {
        return Ok(());
    };
    for (offset, length) in guest.pages_of(memory) {
        let mut run: Option<(Payload, usize)> = None;
        let pages = slice(words, offset, length).chunks(WORDS);
        for (at, page) in (0..).map(|n| base + offset + n * PAGE).zip(pages) {
            let mut bytes = [0; PAGE_BYTES];
            let mut any = 0;
            for (to, word) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(page) {
                let value = word.load(Ordering::Relaxed);
                any |= value;
                *to = value.to_ne_bytes();
            }
            if any != 0 {
                let (payload, count) =
                    run.get_or_insert_with(|| (records::encode_content(key, at), 0));
                payload.push(bytes);
                *count += 1;
            }
            let full = run.as_ref().is_some_and(|(_, count)| *count >= RUN);
            if (any == 0 || full)
                && let Some((payload, _)) = run.take()
            {
                writer.section(tag::CONTENT, payload.bytes())?;
            }
        }
        if let Some((payload, _)) = run {
            writer.section(tag::CONTENT, payload.bytes())?;
        }
    }
    Ok(())
}

/// The words of a range. What is outside is not there.
fn slice(words: &[AtomicU64], offset: u64, length: u64) -> &[AtomicU64] {
    let index = |bytes: u64| usize::try_from(bytes / size_of::<AtomicU64>() as u64).ok();
    index(offset)
        .zip(index(length))
        .and_then(|(start, length)| words.get(start..start.checked_add(length)?))
        .unwrap_or_default()
}

/// Device memory that is being written.
struct Detour {
    key: MemoryKey,
    part: Part,
    spot: MemoryKey,
}

/// Bytes on their way into memories.
pub(super) struct Contents {
    /// The guest's last key. Keys of detours are not its own.
    last_key: MemoryKey,
    /// Where the next bytes may be at the earliest: bytes come in order, and once.
    next: (MemoryKey, u64),
    detour: Option<Detour>,
}

impl Contents {
    /// For a guest whose tables are there.
    pub(super) fn new(guest: &Guest) -> Self {
        Self {
            last_key: guest.next_key,
            next: (0, 0),
            detour: None,
        }
    }

    /// Reads a section.
    pub(super) fn take(&mut self, guest: &mut Guest, payload: &[u8]) -> Result<(), RestoreError> {
        let wrong = |reason| Err(RestoreError::Inconsistent(reason));
        let (key, offset, bytes) = records::decode_content(payload)?;
        let length = bytes.len() as u64;
        if length == 0 || !length.is_multiple_of(PAGE) || !offset.is_multiple_of(PAGE) {
            return wrong("bytes that are not whole pages");
        }
        let Some(memory) = guest.memories.get(&key) else {
            return wrong("bytes of a memory that is not there");
        };
        let Some(end) = offset.checked_add(length).filter(|end| *end <= memory.size) else {
            return wrong("bytes outside their memory");
        };
        if (key, offset) < self.next {
            return wrong("bytes that come twice");
        }
        self.next = (key, end);
        match (&memory.home, memory.attachment) {
            (Home::Window(_) | Home::Parked(_), _) => {
                store(memory, offset, bytes);
                Ok(())
            }
            (Home::Device { .. }, Some(_)) => {
                let part = Part::around(offset, memory.size);
                let within = offset - part.offset;
                if within + length > part.length {
                    return wrong("bytes across parts of device memory");
                }
                let spot = self.detour_to(guest, key, part)?;
                if let Some(memory) = guest.memories.get(&spot) {
                    store(memory, within, bytes);
                }
                Ok(())
            }
            _ => wrong("bytes of a memory that has none"),
        }
    }

    /// All was read.
    pub(super) fn finish(mut self, guest: &mut Guest) -> Result<(), RestoreError> {
        self.arrive(guest)?;
        guest.next_key = self.last_key;
        Ok(())
    }

    fn detour_to(
        &mut self,
        guest: &mut Guest,
        key: MemoryKey,
        part: Part,
    ) -> Result<MemoryKey, RestoreError> {
        if let Some(detour) = &self.detour
            && (detour.key, detour.part) == (key, part)
        {
            return Ok(detour.spot);
        }
        self.arrive(guest)?;
        let spot = guest.detour(part.length)?;
        self.detour = Some(Detour { key, part, spot });
        Ok(spot)
    }

    /// The bytes of the part that was written last go where they belong.
    fn arrive(&mut self, guest: &mut Guest) -> Result<(), RestoreError> {
        let Some(Detour { key, part, spot }) = self.detour.take() else {
            return Ok(());
        };
        let to = guest
            .memories
            .get(&key)
            .and_then(|memory| memory.attachment);
        let copied = match to {
            None => Err(RestoreError::Inconsistent("device memory that is gone")),
            Some(destination) => {
                guest
                    .attach(spot)
                    .map_err(RestoreError::from)
                    .and_then(|source| {
                        let copy = Request::Copy {
                            source,
                            source_offset: 0,
                            destination,
                            destination_offset: part.offset,
                            length: part.length,
                        };
                        guest.work.submit(copy, Pending::Work);
                        guest.finish_work().map_err(RestoreError::from)
                    })
            }
        };
        guest.retire(spot);
        copied?;
        guest.finish_work().map_err(Unfinished::into)
    }
}

fn store(memory: &Memory, offset: u64, bytes: &[u8]) {
    let words = memory.words().unwrap_or_default();
    let words = slice(words, offset, bytes.len() as u64);
    for (word, bytes) in words.iter().zip(bytes.as_chunks::<8>().0) {
        word.store(u64::from_ne_bytes(*bytes), Ordering::Relaxed);
    }
}

impl Guest {
    /// Parked memory that belongs to nobody, for bytes on their way. The caller retires it.
    fn detour(&mut self, size: u64) -> Result<MemoryKey, crate::Error> {
        let memory_type = self.plain_type()?;
        let key = self.insert_memory(Memory::new(
            ContextRef::NOBODY,
            size,
            memory_type,
            Home::Nowhere,
        ));
        match self.settle(key) {
            Ok(()) => Ok(key),
            Err(error) => {
                self.retire(key);
                Err(error)
            }
        }
    }

    /// Offsets and lengths of the parts of a memory that have pages.
    fn pages_of(&self, memory: &Memory) -> Vec<(u64, u64)> {
        let (file, span) = match &memory.home {
            Home::Window(lease) => (self.window.file(), lease.span()),
            Home::Parked(spot) => (spot.file(), spot.span()),
            _ => return Vec::new(),
        };
        let parts = file.data(span).into_iter();
        parts
            .filter_map(|part| part.intersection(span))
            .map(|part| (part.start() - span.start(), part.len()))
            .collect()
    }
}
