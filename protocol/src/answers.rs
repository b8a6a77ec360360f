//! The answers ring: where the host writes {sequence, status, details} and the guest reads it without a command.
//!
//! ```text
//! byte 0    magic u32 | version u16 | record size u16 | slots u32 | reserved ... to byte 64
//! byte 64   slot 0, slot 1, ...: sequence u64 | status u32, request index u32 | detail u64 | detail u64
//! ```
//!
//! The answer to the envelope of sequence `s` appears in slot `s % slots`, so nothing is searched and nothing is counted. Sequence 0
//! has no answer: a slot that holds it is empty. The guest numbers its envelopes without gaps, uses no number twice, and keeps
//! at most `slots` sequences whose answer it has not read; if it does not, it overwrites its own answers and nobody else's.
//!
//! The host stores 0 to the sequence word, then status and details, then the sequence (release). The guest loads the sequence
//! (acquire), status and details, and then the sequence again: where it differs from the first time, the slot was overwritten and
//! its answer is lost. So an answer is never a mixture of two.
//!
//! The host only ever writes here: whatever the guest does to the page, the host reads none of it back.

mod slot;

use std::sync::atomic::{AtomicU64, Ordering};

use crate::status::Status;

/// First bytes of the ring: `HBAN`.
pub const MAGIC: u32 = u32::from_le_bytes(*b"HBAN");
/// Version of the layout.
pub const LAYOUT_VERSION: u16 = 1;
/// Bytes before slot 0.
pub const HEADER_SIZE: usize = 64;
/// Bytes of a slot.
pub const RECORD_SIZE: usize = 32;
/// Smallest blob that can hold a ring: one page of every architecture that Linux knows.
pub const MIN_SIZE: usize = 4096;
/// Largest part of a blob that is used as a ring: bounds what the host keeps mapped per context.
pub const MAX_SIZE: usize = 65536;

const WORD: usize = size_of::<u64>();
const HEADER_WORDS: usize = HEADER_SIZE / WORD;

/// The answer to one envelope.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// The envelope's sequence number, not 0.
    pub sequence: u64,
    /// The first request's failure, or [`Status::Ok`].
    pub status: Status,
    /// Index of the request that `status` speaks of: the failed one, or the last. Counts requests from 0, not optional
    /// structures; 0 where the envelope did not decode or has none.
    pub index: u32,
    /// What the last request answers; 0 after a failure, and for requests that the table does not name.
    ///
    /// | request | first | second |
    /// |---|---|---|
    /// | `Create` | memory type index | bytes charged |
    /// | `Map` | cache mode (`VIRTIO_GPU_MAP_CACHE_*`) | 0 |
    /// | `QueryBudget` | budget in bytes | usage in bytes |
    pub details: [u64; 2],
}

/// The words of a ring in memory that guest and host share.
#[derive(Debug, Clone, Copy)]
pub struct Ring<'a> {
    slots: &'a [[AtomicU64; slot::WORDS]],
    header: &'a [AtomicU64],
}

impl<'a> Ring<'a> {
    /// Looks at shared memory as a ring. Only the first [`MAX_SIZE`] bytes count.
    ///
    /// `None` where `words` has less than [`MIN_SIZE`] bytes.
    pub fn new(words: &'a [AtomicU64]) -> Option<Self> {
        if words.len() < MIN_SIZE / WORD {
            return None;
        }
        let words = words.get(..MAX_SIZE / WORD).unwrap_or(words);
        let (header, records) = words.split_at_checked(HEADER_WORDS)?;
        let (slots, _) = records.as_chunks();
        Some(Self { slots, header })
    }

    /// How many slots there are: more than 100, at most 2046.
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// `None` for sequence 0, which has no answer.
    fn slot(&self, sequence: u64) -> Option<&'a [AtomicU64; slot::WORDS]> {
        if sequence == 0 {
            return None;
        }
        let slots = u64::try_from(self.slots.len()).ok()?;
        let index = usize::try_from(sequence.checked_rem(slots)?).ok()?;
        self.slots.get(index)
    }

    /// Host: writes the header, and so tells the guest that answers come. The slots must be zero, as fresh memory is.
    pub fn initialise(&self) {
        let layout = u64::from(LAYOUT_VERSION) | (RECORD_SIZE as u64) << 16;
        let words = [u64::from(MAGIC) | layout << 32, self.slots.len() as u64];
        for (word, value) in self.header.iter().zip(words) {
            word.store(value.to_le(), Ordering::Release);
        }
    }

    /// Guest: whether the host has initialised a ring of this layout and of this size.
    pub fn is_initialised(&self) -> bool {
        let layout = u64::from(LAYOUT_VERSION) | (RECORD_SIZE as u64) << 16;
        let words = [u64::from(MAGIC) | layout << 32, self.slots.len() as u64];
        self.header
            .iter()
            .zip(words)
            .all(|(word, value)| u64::from_le(word.load(Ordering::Acquire)) == value)
    }

    /// Host: publishes an answer. One of sequence 0 has nobody who waits for it and is dropped.
    ///
    /// Only one thread may write at a time; any number may read.
    pub fn write(&self, answer: &Answer) {
        let Some(slot) = self.slot(answer.sequence) else {
            return;
        };
        let [first, second] = answer.details;
        let status = u64::from(answer.status.number()) | u64::from(answer.index) << 32;
        slot::write(slot, answer.sequence, [status, first, second]);
    }

    /// Guest: the answer to `sequence`, once it is there; `None` before, after it was overwritten, and for sequence 0.
    /// A status number that is not known here reads as [`Status::Internal`].
    pub fn read(&self, sequence: u64) -> Option<Answer> {
        let [status, details @ ..] = slot::read(self.slot(sequence)?, sequence)?;
        let (number, index) = ((status & 0xffff_ffff) as u32, (status >> 32) as u32);
        Some(Answer {
            sequence,
            status: Status::from_number(number).unwrap_or(Status::Internal),
            index,
            details,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(bytes: usize) -> Vec<AtomicU64> {
        (0..bytes / WORD).map(|_| AtomicU64::new(0)).collect()
    }

    #[test]
    fn too_small_is_refused_and_too_large_is_cut() {
        assert!(Ring::new(&memory(MIN_SIZE - WORD)).is_none());
        assert_eq!(
            Ring::new(&memory(MIN_SIZE)).unwrap().slots(),
            (4096 - 64) / 32
        );
        assert_eq!(
            Ring::new(&memory(1 << 20)).unwrap().slots(),
            (65536 - 64) / 32
        );
    }

    #[test]
    fn answers_land_in_their_slot_and_survive_others() {
        let memory = memory(MIN_SIZE);
        let ring = Ring::new(&memory).unwrap();
        assert!(!ring.is_initialised());
        ring.initialise();
        assert!(ring.is_initialised());
        let slots = ring.slots() as u64;
        for sequence in 1..=slots {
            assert_eq!(ring.read(sequence), None);
            let answer = Answer {
                sequence,
                status: Status::OutOfRange,
                index: 3,
                details: [sequence * 2, u64::MAX],
            };
            ring.write(&answer);
            assert_eq!(ring.read(sequence), Some(answer));
        }
        assert!(ring.read(1).is_some());
        ring.write(&Answer {
            sequence: 1 + slots,
            status: Status::Ok,
            index: 0,
            details: [0; 2],
        });
        assert_eq!(ring.read(1), None, "one slot, one answer");
        assert!(ring.is_initialised());
    }

    #[test]
    fn golden_bytes() {
        let memory = memory(MIN_SIZE);
        let ring = Ring::new(&memory).unwrap();
        ring.initialise();
        ring.write(&Answer {
            sequence: 1,
            status: Status::CacheModeMismatch,
            index: 2,
            details: [3, 4],
        });
        let bytes: Vec<u8> = memory
            .iter()
            .flat_map(|word| word.load(Ordering::Relaxed).to_ne_bytes())
            .collect();
        assert_eq!(bytes[..16], *b"HBAN\x01\0\x20\0\x7e\0\0\0\0\0\0\0");
        let mut record = vec![0; RECORD_SIZE];
        record[0] = 1;
        record[8] = 8;
        record[12] = 2;
        record[16] = 3;
        record[24] = 4;
        assert_eq!(
            bytes[HEADER_SIZE + RECORD_SIZE..HEADER_SIZE + 2 * RECORD_SIZE],
            record
        );
        assert!(
            bytes[16..HEADER_SIZE + RECORD_SIZE]
                .iter()
                .all(|&byte| byte == 0)
        );
    }
}
