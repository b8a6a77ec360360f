//! What threads meet at. Under `--cfg loom` it is the model checker's: `cargo xtask interleavings`.

#[cfg(loom)]
mod checked;

#[cfg(loom)]
pub(super) use checked::{Condvar, Mutex, Receiver, Sender, channel, sleep};
#[cfg(not(loom))]
pub(super) use crossbeam_channel::{Receiver, Sender, unbounded as channel};
#[cfg(not(loom))]
pub(super) use parking_lot::{Condvar, Mutex};
#[cfg(not(loom))]
pub(super) use std::thread::sleep;

pub(super) use crossbeam_channel::RecvTimeoutError;
