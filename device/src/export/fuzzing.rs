//! What the fuzz target `export_socket` drives: one connection, in the thread that calls.

use std::os::unix::net::UnixStream;
use std::sync::Arc;

use hostblob_allocator::exports::Exports;

use super::viewer;
use crate::shutdown::Shutdown;

/// Serves one viewer, until it leaves or breaks the rules.
///
/// # Panics
/// Where the process is out of descriptors.
#[expect(clippy::expect_used, reason = "a fuzzer that cannot start ends")]
pub fn serve(socket: UnixStream, exports: &Arc<Exports>) {
    let shutdown = Shutdown::new().expect("eventfd");
    if let Err(error) = viewer::serve(socket, exports, &shutdown) {
        log::debug!("{error}");
    }
}
