//! The export socket: host processes get at what guests share (messages: [`hostblob_protocol::export`], story: `docs/export.md`).
//!
//! Each connection is a [`Viewer`](hostblob_allocator::exports::Viewer) on a thread of its own. Only processes of the daemon's own user
//! are served. One that breaks the rules, stops reading or goes away loses its connection and all that it had open, and no
//! guest waits for it.

#[cfg(fuzzing)]
pub mod fuzzing;
mod viewer;

use std::io;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::thread::JoinHandle;

use hostblob_allocator::exports::{Exports, MAX_VIEWERS};

use crate::shutdown::Shutdown;
use crate::transport::accept::Service;

/// Serves `listener` on a thread of its own until `shutdown`. Joining the thread waits for all connections to end.
pub fn spawn(
    listener: UnixListener,
    exports: Arc<Exports>,
    shutdown: Shutdown,
) -> io::Result<JoinHandle<()>> {
    let service = Service {
        name: "export socket",
        thread: "hostblob-export",
        client_thread: "hostblob-viewer",
        most: MAX_VIEWERS,
    };
    let ended = shutdown.clone();
    let serve = move |stream| viewer::serve(stream, &exports, &ended);
    service.spawn(listener, shutdown, Arc::new(serve))
}

#[cfg(test)]
mod tests;
