//! One descriptor chain (virtio 1.3, 2.7.4 and 2.7.5): readable bytes copied out, writable space remembered.
//!
//! A chain is walked once. Its readable bytes are copied once, and its writable part is kept as addresses, checked against
//! guest memory now and again when the response is written: the memory may have moved in between.

use thiserror::Error;
use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestAddress, GuestMemory, Permissions};

/// Longest command. A guest that wants more would make us hold more: one command at a time, so this is all it can take.
/// 20,000 honest scatter entries are 320 KB, and Linux splits larger command streams.
pub const MAX_COMMAND_BYTES: usize = 4 << 20;

/// Most descriptors in one chain. [`MAX_COMMAND_BYTES`] in pages of 4 KiB are 1,024; without a bound an indirect table of 65,535
/// entries is walked while the rings are locked.
pub const MAX_DESCRIPTORS: usize = 2048;

/// Why a chain is given back unexecuted.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum Malformed {
    /// A loop, an index or table out of range, a nested or odd-sized indirect table, or more than 4 GiB.
    #[error("the descriptor list breaks off after {0} descriptors")]
    BreaksOff(usize),
    /// More than [`MAX_DESCRIPTORS`].
    #[error("it has more than {MAX_DESCRIPTORS} descriptors")]
    TooManyDescriptors,
    /// An empty buffer.
    #[error("descriptor {0} of the chain has length 0")]
    Empty(usize),
    /// Readable after writable (2.7.4.2).
    #[error("descriptor {0} of the chain is readable and comes after a writable one")]
    Order(usize),
    /// More than [`MAX_COMMAND_BYTES`].
    #[error("the command is longer than {MAX_COMMAND_BYTES} bytes")]
    TooLong,
    /// Not guest memory.
    #[error("{length:#x} bytes at {address:#x} are not in guest memory")]
    OutsideMemory {
        /// Where.
        address: u64,
        /// How many.
        length: u32,
    },
}

/// A response that has no place in its chain.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum NoRoom {
    /// The driver asked for less than the command answers.
    #[error("the response has {response} bytes, and the chain has room for {room}")]
    TooSmall {
        /// Bytes of the response.
        response: usize,
        /// Writable bytes of the chain.
        room: u64,
    },
    /// The memory was there when the command came.
    #[error("{length:#x} bytes at {address:#x} are no longer in guest memory")]
    Gone {
        /// Where.
        address: u64,
        /// How many.
        length: u32,
    },
}

/// The device-writable part of a chain.
#[derive(Debug, Default)]
pub(super) struct Space {
    segments: Vec<(GuestAddress, u32)>,
}

/// Segments whose memory a finished [`Space`] keeps for its next chain.
const KEPT_SEGMENTS: usize = 8;

impl Space {
    /// Of these addresses and lengths. They are checked when they are written to.
    pub(super) fn of(segments: &[(u64, u32)]) -> Self {
        let segments = segments.iter();
        Self {
            segments: segments
                .map(|&(at, length)| (GuestAddress(at), length))
                .collect(),
        }
    }

    /// Its addresses and lengths.
    pub(super) fn segments(&self) -> Vec<(u64, u32)> {
        let segments = self.segments.iter();
        segments.map(|&(at, length)| (at.0, length)).collect()
    }

    /// Forgets the chain.
    pub(super) fn clear(&mut self) {
        self.segments.clear();
        self.segments.shrink_to(KEPT_SEGMENTS);
    }

    /// Writable bytes.
    pub(super) fn room(&self) -> u64 {
        // At most MAX_DESCRIPTORS times 4 GiB.
        self.segments
            .iter()
            .map(|(_, length)| u64::from(*length))
            .sum()
    }

    /// Writes a response, all of it or nothing, and returns its length for the used ring (2.7.8).
    pub(super) fn write<M: GuestMemory>(&self, mem: &M, response: &[u8]) -> Result<u32, NoRoom> {
        let too_small = NoRoom::TooSmall {
            response: response.len(),
            room: self.room(),
        };
        let Ok(length) = u32::try_from(response.len()) else {
            return Err(too_small);
        };
        if u64::from(length) > self.room() {
            return Err(too_small);
        }
        let mut rest = response;
        for &(address, length) in &self.segments {
            let length = usize::try_from(length)
                .unwrap_or(usize::MAX)
                .min(rest.len());
            let (now, later) = rest.split_at(length);
            if mem.write_slice(now, address).is_err() {
                let length = u32::try_from(length).unwrap_or(u32::MAX);
                return Err(NoRoom::Gone {
                    address: address.0,
                    length,
                });
            }
            rest = later;
            if rest.is_empty() {
                break;
            }
        }
        Ok(length)
    }
}

/// Copies the readable part of `chain` to `command` and notes the writable part in `space`, both replaced.
pub(super) fn gather<M: GuestMemory>(
    chain: DescriptorChain<&M>,
    mem: &M,
    command: &mut Vec<u8>,
    space: &mut Space,
) -> Result<(), Malformed> {
    command.clear();
    space.clear();
    let mut ended = false;
    let mut count = 0;
    for descriptor in chain {
        if count == MAX_DESCRIPTORS {
            return Err(Malformed::TooManyDescriptors);
        }
        let (address, length) = (descriptor.addr(), descriptor.len());
        if length == 0 {
            return Err(Malformed::Empty(count));
        }
        if descriptor.is_write_only() {
            check(mem, address, length, Permissions::Write)?;
            space.segments.push((address, length));
        } else {
            if !space.segments.is_empty() {
                return Err(Malformed::Order(count));
            }
            append(mem, address, length, command)?;
        }
        count += 1;
        ended = !descriptor.has_next();
    }
    // virtio-queue ends a chain silently where it cannot follow it. A chain that is whole ends with a descriptor that says so.
    if ended {
        Ok(())
    } else {
        Err(Malformed::BreaksOff(count))
    }
}

fn check<M: GuestMemory>(
    mem: &M,
    address: GuestAddress,
    length: u32,
    access: Permissions,
) -> Result<usize, Malformed> {
    let outside = Malformed::OutsideMemory {
        address: address.0,
        length,
    };
    match usize::try_from(length) {
        Ok(bytes) if mem.check_range(address, bytes, access) => Ok(bytes),
        _ => Err(outside),
    }
}

fn append<M: GuestMemory>(
    mem: &M,
    address: GuestAddress,
    length: u32,
    command: &mut Vec<u8>,
) -> Result<(), Malformed> {
    let start = command.len();
    let end = usize::try_from(length)
        .ok()
        .and_then(|length| start.checked_add(length))
        .filter(|end| *end <= MAX_COMMAND_BYTES)
        .ok_or(Malformed::TooLong)?;
    check(mem, address, length, Permissions::Read)?;
    command.resize(end, 0);
    let outside = Malformed::OutsideMemory {
        address: address.0,
        length,
    };
    let to = command.get_mut(start..).unwrap_or_default();
    mem.read_slice(to, address).map_err(|_| outside)
}
