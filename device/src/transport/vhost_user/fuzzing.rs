//! What the fuzz target `vhost_messages` drives: a whole connection.

use std::os::unix::net::UnixStream;

use super::session;
use crate::gpu::Waker;
use crate::shutdown::Shutdown;
use crate::transport::snapshot::Snapshots;
use crate::transport::{Device, Wake};

/// Serves one connection, until its other end closes.
///
/// # Panics
/// Where the process is out of descriptors or threads.
#[expect(clippy::expect_used, reason = "a fuzzer that cannot start ends")]
pub fn serve_connection<D: Device>(stream: UnixStream, new_device: impl FnOnce(Waker) -> D) {
    let wake = Wake::new().expect("eventfd");
    let device = new_device(wake.waker());
    let shutdown = Shutdown::new().expect("eventfd");
    session::run(stream, device, wake, &shutdown, &Snapshots::new())
        .expect("threads and descriptors");
}
