//! What the VMM said about one queue, until all of it makes a queue that runs.

use std::sync::atomic::Ordering;

use thiserror::Error;
use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddress, GuestMemoryMmap};

use crate::virtqueue::QUEUE_SIZE;

/// Why there can be no such queue.
#[derive(Debug, Error)]
pub(super) enum BadQueue {
    #[error(
        "a queue of {0} entries: a power of two up to {QUEUE_SIZE} is expected (crosvm: max-queue-size={QUEUE_SIZE})"
    )]
    Size(u32),
    #[error("its available ring starts at {0}: less than 65536 is expected")]
    Base(u32),
    #[error("one of its parts is not in guest memory, or not aligned")]
    Address,
}

/// Guest addresses of a queue's parts.
#[derive(Debug, Clone, Copy)]
pub(super) struct Parts {
    pub(super) descriptors: u64,
    pub(super) available: u64,
    pub(super) used: u64,
}

/// One queue.
#[derive(Debug, Default)]
pub(super) struct Registers {
    size: u16,
    parts: Option<Parts>,
    /// Next entry of the available ring.
    pub(super) base: u16,
    /// SET_VRING_KICK came: the VMM has started the queue.
    pub(super) started: bool,
    /// By SET_VRING_ENABLE, or because there is no such message.
    pub(super) enabled: bool,
    /// The engine has it.
    pub(super) running: bool,
}

impl Registers {
    pub(super) fn set_size(&mut self, size: u32) -> Result<(), BadQueue> {
        let valid = u16::try_from(size)
            .ok()
            .filter(|size| size.is_power_of_two() && *size <= QUEUE_SIZE);
        self.size = valid.ok_or(BadQueue::Size(size))?;
        Ok(())
    }

    pub(super) fn set_base(&mut self, base: u32) -> Result<(), BadQueue> {
        self.base = u16::try_from(base).map_err(|_| BadQueue::Base(base))?;
        Ok(())
    }

    pub(super) fn set_parts(&mut self, parts: Parts) {
        self.parts = Some(parts);
    }

    /// Whether it should run.
    pub(super) fn complete(&self) -> bool {
        self.started && self.enabled && self.size > 0 && self.parts.is_some()
    }

    /// The queue, which goes on at `base`, and with its used ring where the memory says.
    pub(super) fn queue(
        &self,
        memory: &GuestMemoryMmap,
        event_idx: bool,
    ) -> Result<Queue, BadQueue> {
        let bad = |_| BadQueue::Address;
        let parts = self.parts.ok_or(BadQueue::Address)?;
        let mut queue = Queue::new(QUEUE_SIZE).map_err(bad)?;
        queue.set_size(self.size);
        queue
            .try_set_desc_table_address(GuestAddress(parts.descriptors))
            .map_err(bad)?;
        queue
            .try_set_avail_ring_address(GuestAddress(parts.available))
            .map_err(bad)?;
        queue
            .try_set_used_ring_address(GuestAddress(parts.used))
            .map_err(bad)?;
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        queue.set_next_avail(self.base);
        let used = queue.used_idx(memory, Ordering::Acquire).map_err(bad)?;
        queue.set_next_used(used.0);
        Ok(queue)
    }
}
