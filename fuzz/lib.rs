//! What all targets start from.

pub mod commands;
pub mod model;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use hostblob_allocator::provider::{
    Choice, CompletionSink, Description, Options, Provider, REFUSED, Request, Session, open,
};
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
    let opened = open(Choice::System, &Options::default()).expect("plain memory");
    host_over(opened.provider, memory_limit, context_limit)
}

/// The same, whose GPU refuses the next of its work, once, where that is set.
pub fn refusing_host(memory_limit: u64, context_limit: u64) -> (Arc<Host>, Arc<AtomicBool>) {
    let opened = open(Choice::System, &Options::default()).expect("plain memory");
    let refuses = Arc::new(AtomicBool::new(false));
    let provider = Refusing(opened.provider, Arc::clone(&refuses));
    let host = host_over(Arc::new(provider), memory_limit, context_limit);
    (host, refuses)
}

struct Refusing<P>(P, Arc<AtomicBool>);

impl Provider for Refusing<Arc<dyn Provider>> {
    fn description(&self) -> &Description {
        self.0.description()
    }

    fn connect(&self, sink: CompletionSink) -> Box<dyn Session> {
        Box::new(Refusing(self.0.connect(sink), Arc::clone(&self.1)))
    }
}

impl Session for Refusing<Box<dyn Session>> {
    fn submit(&mut self, sequence: u64, request: Request) {
        let is_work = matches!(
            request,
            Request::Attach { .. }
                | Request::Allocate { .. }
                | Request::Fill { .. }
                | Request::Copy { .. }
        );
        let refuses = is_work && self.1.swap(false, Ordering::SeqCst);
        self.0
            .submit(sequence, if refuses { REFUSED } else { request });
    }
}

fn host_over(provider: Arc<dyn Provider>, memory_limit: u64, context_limit: u64) -> Arc<Host> {
    let config = Config {
        window_size: 2 << 20,
        memory_limit,
        context_limit,
        context_share: 0,
        warm: hostblob_allocator::window::Warmth::up_to(16 * PAGE),
    };
    Host::new(provider, config).expect("a host")
}

/// A device of plain memory, with a window of 2 MiB.
pub fn gpu(waker: Waker) -> Gpu {
    gpu_of(host(), waker)
}

/// The same, of a host of one's own.
pub fn gpu_of(host: &Arc<Host>, waker: Waker) -> Gpu {
    Gpu::new(host, DEFAULT_CAPSET_ID, BlobMem::all(), waker).expect("a window")
}
