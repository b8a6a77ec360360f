//! What all targets start from.

use std::sync::{Arc, OnceLock};

use hostblob_allocator::provider::{Choice, Options, open};
use hostblob_allocator::{Config, Host};
use hostblob_device::gpu::{BlobMem, Gpu, Waker};
use hostblob_protocol::DEFAULT_CAPSET_ID;

fn host() -> &'static Arc<Host> {
    static HOST: OnceLock<Arc<Host>> = OnceLock::new();
    HOST.get_or_init(|| {
        let config = Config {
            window_size: 2 << 20,
            memory_limit: 1 << 20,
            context_limit: 1 << 20,
            context_share: 0,
            warm: hostblob_allocator::window::Warmth::up_to(0),
        };
        let opened = open(Choice::System, &Options::default()).expect("plain memory");
        Host::new(opened.provider, config).expect("a host")
    })
}

/// A device of plain memory, with a window of 2 MiB.
pub fn gpu(waker: Waker) -> Gpu {
    Gpu::new(host(), DEFAULT_CAPSET_ID, BlobMem::all(), waker).expect("a window")
}
