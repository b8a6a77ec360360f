//! What threads wait for: fences, semaphores, events, and the loss of the device.

pub(crate) mod event;
pub(crate) mod fence;
pub(crate) mod monitor;
pub(crate) mod semaphore;
