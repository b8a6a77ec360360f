//! The device over vhost-user: crosvm's `--vhost-user`, QEMU 11's `vhost-user-test-device-pci`.
//!
//! | file | holds |
//! |---|---|
//! | `session.rs` | one connection: its threads, and their end |
//! | `messages.rs` | messages of the VMM |
//! | `registers.rs` | what the VMM said about each queue |
//! | `memory.rs` | guest memory, and the VMM's addresses for it |
//! | `signals.rs` | kicks and calls |
//! | `state.rs` | the device's state, to and from the VMM |
//! | `channel.rs` | our messages to the VMM: mapping the window |
//!
//! The queues run on the engine of vfio-user (`super::vfio_user::engine`): one thread that owns them, and one for messages. Here
//! notifications are descriptors, and the window is mapped late ([`super::WindowMapper`]).
//!
//! # Why not `VhostUserDaemon`
//!
//! The messages are read and checked by the crate `vhost` ([`vhost::vhost_user::BackendReqHandler`]). The frame around it in `vhost-user-backend`
//! 0.24 is not used: each of its daemons leaks a descriptor (the exit event), so that a fresh device for each connection would end in EMFILE;
//! its queue thread blocks in, or ends for ever over, whatever descriptor a frontend gives as a kick; it maps memory that its file
//! does not have (SIGBUS on first use); and GET_VRING_BASE loses the commands under way.
//!
//! # The deadlock to stay clear of
//!
//! A SHMEM_MAP makes QEMU change the memory while it still handles that message, and QEMU waits for our answer to the change. So the queue thread
//! waits for SHMEM_MAP under no lock, and no message of the VMM waits for the queue thread. `docs/vhost-user.md` has a picture.

mod channel;
#[cfg(fuzzing)]
pub mod fuzzing;
mod memory;
mod messages;
mod registers;
mod session;
mod signals;
mod state;

use std::fmt::Display;
use std::os::unix::net::UnixListener;

use super::snapshot::Snapshots;
use super::vfio_user::{PAUSE, wait_for_connection};
use super::{Device, TransportError, Wake};
use crate::gpu::Waker;
use crate::shutdown::Shutdown;

/// Serves VMMs that connect to `listener`, one after the other, each with a device from `new_device`, until `shutdown`.
///
/// What goes wrong with a connection, or with making a device for it, is logged and ends that connection.
pub fn serve<D: Device, E: Display>(
    listener: &UnixListener,
    new_device: impl Fn(Waker) -> Result<D, E>,
    shutdown: &Shutdown,
) -> Result<(), TransportError> {
    serve_saveable(listener, new_device, shutdown, &Snapshots::new())
}

/// As [`serve`], with devices that can be saved.
pub fn serve_saveable<D: Device, E: Display>(
    listener: &UnixListener,
    new_device: impl Fn(Waker) -> Result<D, E>,
    shutdown: &Shutdown,
    snapshots: &Snapshots,
) -> Result<(), TransportError> {
    while wait_for_connection(listener, shutdown)? {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) => {
                log::error!("the VMM that connects cannot be served: {error}");
                std::thread::sleep(PAUSE);
                continue;
            }
        };
        log::info!("a VMM connected");
        let wake = Wake::new().map_err(|error| TransportError::System("eventfd", error));
        let served = wake.and_then(|wake| match new_device(wake.waker()) {
            Ok(device) => session::run(stream, device, wake, shutdown, snapshots),
            Err(error) => {
                log::error!("no device for the VMM that connects: {error}");
                std::thread::sleep(PAUSE);
                Ok(())
            }
        });
        if let Err(error) = served {
            log::error!("the VMM that connects cannot be served: {error}");
            std::thread::sleep(PAUSE);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
