//! One queue from the device's side: chains that it holds, completions in any order, notifications in both directions.
//!
//! Rules:
//! - A head that the device holds is not taken again: a second completion would write into buffers that the driver has freed
//!   after the first (CVE-2026-45782). The queue is broken then, as it is when its indices make no sense.
//! - Rings that are not in guest memory are no reason to break the queue: a VMM takes memory away and brings it back while
//!   it moves. Nothing is served until they are back.
//! - `avail_event` is written before the queue counts as empty, and the ring looked at once more after it (2.7.10): with
//!   `VIRTIO_F_EVENT_IDX` a driver that is not told where to kick never does.
//! - Each step is short: a caller that locks around it lets go in between, whatever the driver does meanwhile.
//! - Lines for the log go through the caller's limiter. A guest makes a new ring with each reset, and must not get a new burst of lines with it.

use std::sync::atomic::Ordering;

use thiserror::Error;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemory, Permissions};

use super::chain::{self, NoRoom, Space};
use super::{CURSOR_QUEUE, QUEUE_SIZE};
use crate::ratelimit::RateLimiter;

/// `VIRTQ_AVAIL_F_NO_INTERRUPT` (2.7.6).
const AVAIL_F_NO_INTERRUPT: u16 = 1;
/// Bytes of one descriptor, of one entry of the available ring and of one of the used ring (2.7).
const ENTRIES: [u64; 3] = [16, 2, 8];
/// Bytes of a ring besides its entries: flags, index, event.
const RING_OVERHEAD: u64 = 6;

/// The queue cannot go on: the driver has to reset the device (`DEVICE_NEEDS_RESET`, 2.1.2).
#[derive(Debug, Error, PartialEq, Eq)]
pub enum Broken {
    /// More entries than the ring has, or the index went backwards.
    #[error("its available index makes no sense")]
    AvailableIndex,
    /// There is no such descriptor, so it cannot even be given back.
    #[error("head {0} is outside its descriptor table")]
    Head(u16),
    /// The device has not given it back yet.
    #[error("head {0} was made available again while the device held it")]
    HeldHead(u16),
}

/// What [`Ring::next`] found.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// A command; its bytes are in the caller's buffer. To be given back by [`Ring::finish`] with this head.
    Command(u16),
    /// Nothing to execute this time, but more may be there: call again.
    Again,
    /// Nothing. The driver notifies when there is.
    Empty,
    /// The rings are not in guest memory. To be tried again when that changes.
    Unreachable,
}

/// The device's side of one queue.
#[derive(Debug)]
pub struct Ring {
    index: u16,
    /// By head. `held` slots wait for their response.
    slots: Vec<Slot>,
    /// Chains given back since the driver was last considered.
    returned: bool,
    /// The driver was asked not to notify.
    quiet: bool,
}

#[derive(Debug, Default)]
struct Slot {
    held: bool,
    space: Space,
}

impl Ring {
    /// Queue number `index`, with nothing in it.
    pub fn new(index: u16) -> Self {
        Self {
            index,
            slots: std::iter::repeat_with(Slot::default)
                .take(QUEUE_SIZE.into())
                .collect(),
            returned: false,
            quiet: false,
        }
    }

    /// Takes the next command off the queue, with its bytes copied to `command`.
    pub fn next<M: GuestMemory>(
        &mut self,
        queue: &mut Queue,
        mem: &M,
        command: &mut Vec<u8>,
        log: &mut RateLimiter,
    ) -> Result<Next, Broken> {
        if !reachable(queue, mem) {
            log.warn(format_args!(
                "queue {}: its rings are not in guest memory",
                self.index
            ));
            return Ok(Next::Unreachable);
        }
        if !self.quiet {
            self.quiet = queue.disable_notification(mem).is_ok();
        }
        // The rings were reachable: what remains is an index that makes no sense.
        let mut available = queue.iter(mem).map_err(|_| Broken::AvailableIndex)?;
        let Some(chain) = available.next() else {
            self.quiet = false;
            return match queue.enable_notification(mem) {
                Ok(false) => Ok(Next::Empty),
                Ok(true) => Ok(Next::Again),
                Err(_) => Ok(Next::Unreachable),
            };
        };
        let head = chain.head_index();
        let size = queue.size();
        let slot = self
            .slots
            .get_mut(usize::from(head))
            .filter(|_| head < size);
        let slot = slot.ok_or(Broken::Head(head))?;
        if slot.held {
            return Err(Broken::HeldHead(head));
        }
        match chain::gather(chain, mem, command, &mut slot.space) {
            Ok(()) => {
                slot.held = true;
                Ok(Next::Command(head))
            }
            Err(malformed) => {
                slot.space.clear();
                log.warn(format_args!(
                    "queue {}: the chain at head {head} is dropped: {malformed}",
                    self.index
                ));
                self.give_back(queue, mem, (head, 0), log);
                Ok(Next::Again)
            }
        }
    }

    /// Gives the chain at `head` back with `response`. A head that is not held is ignored.
    pub fn finish<M: GuestMemory>(
        &mut self,
        queue: &mut Queue,
        mem: &M,
        head: u16,
        response: &[u8],
        log: &mut RateLimiter,
    ) {
        let Some(slot) = self
            .slots
            .get_mut(usize::from(head))
            .filter(|slot| slot.held)
        else {
            return;
        };
        slot.held = false;
        let length = match slot.space.write(mem, response) {
            Ok(length) => length,
            Err(no_room) => {
                // A driver that wants no answer to a cursor command says so by making no room.
                let unasked = self.index == CURSOR_QUEUE
                    && matches!(no_room, NoRoom::TooSmall { room: 0, .. });
                if !unasked {
                    log.warn(format_args!(
                        "queue {}: no response for head {head}: {no_room}",
                        self.index
                    ));
                }
                0
            }
        };
        slot.space.clear();
        self.give_back(queue, mem, (head, length), log);
    }

    fn give_back<M: GuestMemory>(
        &mut self,
        queue: &mut Queue,
        mem: &M,
        (head, length): (u16, u32),
        log: &mut RateLimiter,
    ) {
        if !reachable(queue, mem) || queue.add_used(mem, head, length).is_err() {
            log.warn(format_args!(
                "queue {}: head {head} is lost: the used ring is not in guest memory",
                self.index
            ));
        }
        self.returned = true;
    }

    /// Whether the driver wants an interrupt for what was given back since the last call (2.7.7.2, 2.7.10).
    pub fn wants_interrupt<M: GuestMemory>(&mut self, queue: &mut Queue, mem: &M) -> bool {
        if !std::mem::take(&mut self.returned) {
            return false;
        }
        // An interrupt too many costs a wake-up, one too few a guest that waits for ever.
        if queue.event_idx_enabled() {
            return queue.needs_notification(mem).unwrap_or(true);
        }
        std::sync::atomic::fence(Ordering::SeqCst);
        mem.load::<u16>(GuestAddress(queue.avail_ring()), Ordering::Relaxed)
            .map_or(true, |flags| {
                u16::from_le(flags) & AVAIL_F_NO_INTERRUPT == 0
            })
    }

    /// Where the response to a chain goes that the device holds.
    pub(crate) fn room_of(&self, head: u16) -> Option<Vec<(u64, u32)>> {
        let slot = self.slots.get(usize::from(head)).filter(|slot| slot.held);
        slot.map(|slot| slot.space.segments())
    }

    /// The device holds a chain that another one has taken.
    pub(crate) fn hold(&mut self, head: u16, room: &[(u64, u32)]) {
        if let Some(slot) = self.slots.get_mut(usize::from(head)) {
            slot.held = true;
            slot.space = Space::of(room);
        }
    }

    /// How many chains the device holds.
    pub fn held(&self) -> usize {
        self.slots.iter().filter(|slot| slot.held).count()
    }
}

/// Whether all three parts of the queue are in guest memory. virtio-queue would log each failure, which a guest can cause at
/// will.
fn reachable<M: GuestMemory>(queue: &Queue, mem: &M) -> bool {
    let size = u64::from(queue.size());
    let [table, available, used] = ENTRIES.map(|entry| entry * size);
    let parts = [
        (queue.desc_table(), table, Permissions::Read),
        (
            queue.avail_ring(),
            available + RING_OVERHEAD,
            Permissions::Read,
        ),
        (queue.used_ring(), used + RING_OVERHEAD, Permissions::Write),
    ];
    queue.ready()
        && parts.into_iter().all(|(address, length, access)| {
            usize::try_from(length)
                .is_ok_and(|length| mem.check_range(GuestAddress(address), length, access))
        })
}

#[cfg(test)]
mod tests;
