//! One connection: its threads, and their end.
//!
//! The crate's server accepts its connection itself and keeps the socket to itself, so that it cannot be shut down from outside. So while it waits
//! for a message, its thread is ended by signals.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Duration;

use vfio_user::Server;

use super::Engine;
use super::backend::Backend;
use super::interrupts::Interrupts;
use super::layout;
use crate::shutdown::Shutdown;
use crate::transport::snapshot::{Saves, Snapshots};
use crate::transport::threads::{self, Ended};
use crate::transport::{Device, TransportError, Wake};

/// How long the message thread may take to end. It does not when the VMM has sent half a message or reads no replies: it is left alone then, as
/// the process is about to end.
const PATIENCE: Duration = Duration::from_secs(2);

/// Serves the connection that waits at `listener` until it ends or the daemon does.
pub(super) fn run<D: Device>(
    listener: &UnixListener,
    device: D,
    wake: Arc<Wake>,
    shutdown: &Shutdown,
    snapshots: &Snapshots,
) -> Result<(), TransportError> {
    let system = |what| move |error| TransportError::System(what, error);
    threads::prepare().map_err(system("signal handler"))?;
    let window = device
        .window_fd()
        .try_clone_to_owned()
        .map_err(system("the window's file"))?;
    let listener = listener
        .try_clone()
        .map_err(system("the listening socket"))?;
    let server = Server::from_owned_fd(
        OwnedFd::from(listener),
        true,
        layout::interrupts(),
        layout::regions(window.as_raw_fd(), device.window_size()),
    );
    let engine = Arc::new(Engine::new(device, wake, Interrupts::new()));
    let mut backend = Backend::new(Arc::clone(&engine), window);
    if let Some(held) = snapshots.take_held()
        && let Err(error) = engine.install(held)
    {
        log::error!("what the restored queues held is lost: {error}");
    }
    let _registered = snapshots.register(Arc::clone(&engine) as Arc<dyn Saves>);
    let ended = Ended::new().map_err(system("eventfd"))?;

    let queues = ended.spawn("hostblob-queues", {
        let engine = Arc::clone(&engine);
        move || engine.run()
    });
    let queues = queues.map_err(system("a thread for the queues"))?;
    let messages = ended.spawn("hostblob-vfio", move || match server.run(&mut backend) {
        Ok(()) => log::info!("the VMM disconnected"),
        // Also what the signal makes of its wait.
        Err(error) => log::info!("the connection to the VMM ended: {error}"),
    });
    let messages = match messages {
        Ok(messages) => messages,
        Err(error) => {
            engine.stop();
            threads::end_and_join(queues, "queue", threads::GRACE);
            return Err(TransportError::System("a thread for messages", error));
        }
    };
    ended.wait(shutdown);
    engine.stop();
    if threads::end_within(&messages, Duration::ZERO, PATIENCE) {
        threads::join(messages, "message");
    } else {
        log::warn!("the VMM is in the middle of a message: its connection is abandoned");
    }
    threads::end_and_join(queues, "queue", threads::GRACE);
    Ok(())
}
