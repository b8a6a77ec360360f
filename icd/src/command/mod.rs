//! Command pools and command buffers: lists of transfers.

pub(crate) mod pool;
pub(crate) mod recording;

use std::sync::Arc;

use ash::vk;
use hostblob_guest::{Memory, Transfer};
use parking_lot::Mutex;

use crate::buffer::Place;
use crate::object::objects;

/// A recorded transfer.
#[derive(Debug, Clone)]
enum Recorded {
    Fill { at: Place, length: u64, value: u32 },
    Copy { from: Place, to: Place, length: u64 },
}

/// What a command buffer does.
#[derive(Debug, Clone, Default)]
pub(crate) struct Transfers {
    list: Vec<Recorded>,
    /// The bytes of vkCmdUpdateBuffer, until the list is gone.
    staged: Vec<Arc<Memory>>,
}

impl Transfers {
    fn append(&mut self, other: &Transfers) {
        self.list.extend_from_slice(&other.list);
        self.staged.extend_from_slice(&other.staged);
    }

    /// In parts of at most so many.
    pub(crate) fn chunks(&self, most: usize) -> impl Iterator<Item = Batch<'_>> {
        self.list.chunks(most.max(1)).map(Batch)
    }
}

/// Some of them.
pub(crate) struct Batch<'a>(&'a [Recorded]);

impl Batch<'_> {
    /// Keeps the memory that they use; `None` where some of it is gone.
    pub(crate) fn hold(&self) -> Option<Held<'_>> {
        let memory = |place: &Place| place.memory.upgrade();
        let hold = |one: &Recorded| match one {
            Recorded::Fill { at, .. } => Some((memory(at)?, None)),
            Recorded::Copy { from, to, .. } => Some((memory(from)?, Some(memory(to)?))),
        };
        let memories = self.0.iter().map(hold).collect::<Option<_>>()?;
        Some(Held {
            list: self.0,
            memories,
        })
    }
}

/// Transfers whose memory stays.
pub(crate) struct Held<'a> {
    list: &'a [Recorded],
    memories: Vec<(Arc<Memory>, Option<Arc<Memory>>)>,
}

impl Held<'_> {
    /// As the guest library wants them.
    pub(crate) fn transfers(&self) -> Vec<Transfer<'_>> {
        let pairs = self.list.iter().zip(&self.memories);
        pairs
            .map(|(one, (first, second))| match one {
                Recorded::Fill { at, length, value } => Transfer::Fill {
                    memory: first,
                    offset: at.offset,
                    length: *length,
                    value: *value,
                },
                Recorded::Copy { from, to, length } => Transfer::Copy {
                    source: first,
                    source_offset: from.offset,
                    destination: second.as_ref().unwrap_or(first),
                    destination_offset: to.offset,
                    length: *length,
                },
            })
            .collect()
    }
}

#[derive(Debug, Default)]
struct State {
    recording: Transfers,
    /// The first error of the recording, for vkEndCommandBuffer.
    failed: Option<vk::Result>,
    recorded: Option<Arc<Transfers>>,
}

/// A command buffer. The program sees to it that one thread at a time uses it; the lock is for the language.
#[derive(Debug)]
pub(crate) struct CommandBuffer {
    /// Where the bytes of updates are staged.
    guest: hostblob_guest::Device,
    state: Mutex<State>,
}

objects! { CommandBuffer = vk::CommandBuffer; }

impl CommandBuffer {
    /// What it does, once its recording has ended.
    pub(crate) fn recorded(&self) -> Option<Arc<Transfers>> {
        self.state.lock().recorded.clone()
    }
}
