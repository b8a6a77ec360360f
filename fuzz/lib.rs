//! What all targets start from.

pub mod commands;
pub mod model;

use std::sync::{Arc, OnceLock};

use hostblob_allocator::provider::{Choice, Options, open};
use hostblob_allocator::{Config, Host};
use hostblob_device::gpu::{BlobMem, Gpu, Waker};
use hostblob_protocol::DEFAULT_CAPSET_ID;

/// A page of the guest.
pub const PAGE: u64 = 4096;

/// The one host of a target, of plain memory: each guest has a window of 2 MiB, and all may hold 1 MiB.
pub fn host() -> &'static Arc<Host> {
    static HOST: OnceLock<Arc<Host>> = OnceLock::new();
    HOST.get_or_init(|| host_with(1 << 20, 1 << 20))
}

/// A host whose guests, and whose contexts, may hold so many bytes.
pub fn host_with(memory_limit: u64, context_limit: u64) -> Arc<Host> {
    let config = Config {
        window_size: 2 << 20,
        memory_limit,
        context_limit,
        context_share: 0,
        warm: hostblob_allocator::window::Warmth::up_to(16 * PAGE),
    };
    let opened = open(Choice::System, &Options::default()).expect("plain memory");
    Host::new(opened.provider, config).expect("a host")
}

/// A device of plain memory, with a window of 2 MiB.
pub fn gpu(waker: Waker) -> Gpu {
    gpu_of(host(), waker)
}

/// The same, of a host of one's own.
pub fn gpu_of(host: &Arc<Host>, waker: Waker) -> Gpu {
    Gpu::new(host, DEFAULT_CAPSET_ID, BlobMem::all(), waker).expect("a window")
}
