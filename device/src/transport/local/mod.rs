//! The local socket: the same device without a VM (framing: [`hostblob_protocol::local`]).
//!
//! Each connection is a guest of its own on a thread of its own, with its own window. A client that breaks the framing, stops
//! reading or goes away loses its connection and all that it held, and nobody else notices.

mod client;
#[cfg(fuzzing)]
pub mod fuzzing;
mod offsets;

use std::io;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::thread::JoinHandle;

use hostblob_allocator::Host;

use super::accept::Service;
use crate::shutdown::Shutdown;

/// Connections at a time: each has a window, two threads and a few descriptors.
pub const MAX_CLIENTS: usize = 64;

/// Serves `listener` on a thread of its own until `shutdown`. Joining the thread waits for all connections to end.
pub fn spawn(
    listener: UnixListener,
    host: Arc<Host>,
    capset_id: u32,
    shutdown: Shutdown,
) -> io::Result<JoinHandle<()>> {
    let service = Service {
        name: "local socket",
        thread: "hostblob-local",
        client_thread: "hostblob-client",
        most: MAX_CLIENTS,
    };
    let ended = shutdown.clone();
    let serve = move |stream| client::serve(stream, &host, capset_id, &ended);
    service.spawn(listener, shutdown, Arc::new(serve))
}

#[cfg(test)]
mod tests;
