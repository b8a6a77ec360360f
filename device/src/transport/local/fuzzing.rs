//! What the fuzz target `local_stream` drives: one connection, in the thread that calls.

use std::os::unix::net::UnixStream;
use std::sync::Arc;

use hostblob_allocator::Host;
use hostblob_protocol::DEFAULT_CAPSET_ID;

use super::client;
use crate::shutdown::Shutdown;

/// Serves one client, until it leaves or breaks the rules.
///
/// # Panics
/// Where the process is out of descriptors.
#[expect(clippy::expect_used, reason = "a fuzzer that cannot start ends")]
pub fn serve(stream: UnixStream, host: &Arc<Host>) {
    let shutdown = Shutdown::new().expect("eventfd");
    if let Err(error) = client::serve(stream, host, DEFAULT_CAPSET_ID, &shutdown) {
        log::debug!("{error}");
    }
}
