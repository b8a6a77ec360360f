//! Split virtqueues as every virtqueue transport serves them (virtio 1.3, 2.7).
//!
//! | file | holds |
//! |---|---|
//! | `chain.rs` | one descriptor chain: its readable bytes, its writable space, what makes it malformed |
//! | `ring.rs` | one queue: which chains the device holds, completion in any order, notifications both ways |
//!
//! A transport owns the [`Queue`](virtio_queue::Queue) (addresses, size, indices) and the guest memory, and hands both to a
//! [`Ring`] for each step. Nothing here waits, locks, or knows where a notification comes from.
//!
//! Rules: guest bytes are copied once and the copy is what counts; every guest number is bounded by what the chain itself
//! brings; a chain that breaks the rules costs its own completion, a queue that breaks them costs the queue.

mod chain;
mod ring;

pub use chain::{MAX_COMMAND_BYTES, MAX_DESCRIPTORS, Malformed, NoRoom};
pub use ring::{Broken, Next, Ring};

use crate::gpu::{Gpu, GuestPages, Response};

/// The control queue (virtio 1.3, 5.7.2).
pub const CONTROL_QUEUE: u16 = 0;
/// The cursor queue. Without scanouts there is no cursor: its commands get the answer that they would get on the control queue.
pub const CURSOR_QUEUE: u16 = 1;
/// How many queues the device has.
pub const QUEUES: usize = 2;
/// Entries of each queue, which a driver may lower.
pub const QUEUE_SIZE: u16 = 256;

/// `VIRTIO_F_INDIRECT_DESC` (virtio 1.3, 6): a descriptor may point to a table of descriptors.
pub const F_INDIRECT_DESC: u64 = 1 << 28;
/// `VIRTIO_F_EVENT_IDX`: each side says after which entry it wants to hear from the other.
pub const F_EVENT_IDX: u64 = 1 << 29;
/// `VIRTIO_F_VERSION_1`: not a legacy device.
pub const F_VERSION_1: u64 = 1 << 32;

/// What the device offers: what its commands serve, and what the queues here serve.
///
/// `VIRTIO_F_ACCESS_PLATFORM`, `VIRTIO_F_RING_PACKED` and `VIRTIO_F_RING_RESET` are not: there is no code behind them.
pub fn offered_features(device: u64) -> u64 {
    device | F_VERSION_1 | F_EVENT_IDX | F_INDIRECT_DESC
}

/// Executes what comes out of a queue.
pub trait CommandHandler {
    /// Executes one command. `None` when it is fenced and not done: it then comes out of [`Self::completed`]. `pages` is the guest's
    /// memory, where the command needs it.
    fn execute(&mut self, tag: u64, command: &[u8], pages: &dyn GuestPages) -> Option<Response>;

    /// The responses that became ready since the last call, in whatever order.
    fn completed(&mut self) -> Vec<(u64, Response)>;
}

impl CommandHandler for Gpu {
    fn execute(&mut self, tag: u64, command: &[u8], pages: &dyn GuestPages) -> Option<Response> {
        Gpu::execute(self, tag, command, pages)
    }

    fn completed(&mut self) -> Vec<(u64, Response)> {
        Gpu::completed(self)
    }
}
