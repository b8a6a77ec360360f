//! The device as a PCI function over vfio-user: QEMU's `vfio-user-pci`, cloud-hypervisor's `--user-device`.
//!
//! | file | holds |
//! |---|---|
//! | `layout.rs` | where everything is: regions, BARs, structures |
//! | `config_space.rs` | PCI configuration space and capabilities |
//! | `common.rs` | virtio common configuration: status, features, queue registers |
//! | `interrupts.rs` | MSI-X vectors and the ISR byte |
//! | `dma.rs` | guest memory |
//! | `backend.rs` | messages of the VMM, taken apart |
//! | `session.rs` | one connection |
//!
//! The way of a command: the guest writes to the notify area of BAR 0, the VMM sends that as a message, `backend` wakes
//! the engine's thread, which reads the queue, has the device execute the command, writes the response and fires the vector that the
//! VMM gave for the queue.
//!
//! One VMM at a time: a second one waits until the first has gone. Each gets a device of its own, made when it connects.

mod backend;
mod common;
mod config_space;
pub(super) mod dma;
#[cfg(test)]
pub(super) mod fake;
#[cfg(fuzzing)]
pub mod fuzzing;
mod interrupts;
mod layout;
pub(super) mod session;

use std::fmt::Display;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};

use super::snapshot::Snapshots;
use super::{Device, TransportError, Wake};
use crate::gpu::Waker;
use crate::shutdown::Shutdown;

/// The engine, with interrupts as a PCI function has them.
type Engine<D> = super::engine::Engine<D, interrupts::Interrupts>;

/// Pause after a connection that could not be served: whoever tries again at once must not keep a processor busy.
pub(super) const PAUSE: Duration = Duration::from_millis(100);

/// Serves VMMs that connect to `listener`, one after the other, each with a device from `new_device`, until `shutdown`.
///
/// The listener has to block. What goes wrong with a connection, or with making a device for it, is logged and ends that connection.
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
        let wake = Wake::new().map_err(|error| TransportError::System("eventfd", error));
        let served = wake.and_then(|wake| match new_device(wake.waker()) {
            Ok(device) => session::run(listener, device, Arc::clone(&wake), shutdown, snapshots)
                .map(|()| true),
            Err(error) => {
                log::error!("no device for the VMM that connects: {error}");
                Ok(false)
            }
        });
        let served = served.unwrap_or_else(|error| {
            log::error!("the VMM that connects cannot be served: {error}");
            false
        });
        if !served {
            // It is told by the end of its connection, unless not even that can be done.
            drop(listener.accept());
            std::thread::sleep(PAUSE);
        }
    }
    Ok(())
}

/// Waits for a VMM; false when the daemon is to end.
pub(super) fn wait_for_connection(
    listener: &UnixListener,
    shutdown: &Shutdown,
) -> Result<bool, TransportError> {
    loop {
        if shutdown.is_requested() {
            return Ok(false);
        }
        let mut poll = [listener.as_fd(), shutdown.as_fd()]
            .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
        match rustix::event::poll(&mut poll, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(TransportError::System("poll", error.into())),
        }
        let [listener, _] = &poll;
        if listener.revents().intersects(PollFlags::IN) {
            return Ok(true);
        }
    }
}

#[cfg(test)]
mod tests;
