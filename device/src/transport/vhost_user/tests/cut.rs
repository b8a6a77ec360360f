//! A VMM that is cut off at each of its messages, and in the middle of it.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;

use hostblob_allocator::Host;
use hostblob_allocator::provider::fake::FakeProvider;
use vhost::vhost_user::VhostUserFrontend;

use super::vmm::{Daemon, MEMORY, USER, Vmm, WINDOW, memfd, qemu};
use crate::gpu::tests::{CAPSET_ID, host};
use crate::gpu::{BlobMem, Gpu};
use crate::transport::cut::{self, Framing, Frontend};
use crate::transport::vhost_user::messages::PROTOCOL_FEATURES;

/// A header is 12 bytes: request, flags, and the size of what follows.
const FRAMING: Framing = Framing {
    header: 12,
    length: |header| 12 + u32::from_ne_bytes(header[8..12].try_into().unwrap()) as usize,
    by_byte: false,
};

impl Frontend for Vmm {
    fn ask(&mut self, command: &[u8]) -> Vec<u8> {
        self.offer(0, command);
        self.response(0)
    }

    fn leave(&mut self, command: &[u8]) {
        self.offer(0, command);
    }

    fn window(&self) -> File {
        self.shmem.mapped.lock()[0].2.try_clone().unwrap()
    }

    fn reset(&mut self) -> bool {
        qemu::stop(self);
        self.shmem.mapped.lock().clear();
        self.fresh_queues();
        qemu::start(self, [0, 0]);
        true
    }
}

/// The VMM changes the memory in the middle of the first mapping, as QEMU does.
fn connect(path: &Path) -> Vmm {
    let vmm = qemu::run(path, PROTOCOL_FEATURES);
    let window = memfd(WINDOW);
    let mut frontend = vmm.frontend.clone();
    let mut region = vmm.region();
    (region.guest_phys_addr, region.userspace_addr) = (MEMORY, USER + MEMORY);
    region.memory_size = WINDOW;
    *vmm.shmem.during_map.lock() = Some(Box::new(move || {
        region.mmap_handle = window.as_raw_fd();
        // It may be cut off here.
        let _ = frontend.add_mem_region(&region);
    }));
    vmm
}

fn daemon() -> (Daemon, Arc<Host>, Arc<FakeProvider>) {
    let (host, fake) = host();
    let of = Arc::clone(&host);
    let new_gpu = move |waker| Gpu::new(&of, CAPSET_ID, BlobMem::all(), waker);
    (Daemon::serving(new_gpu), host, fake)
}

#[test]
fn a_vmm_that_is_cut_off_anywhere_costs_its_own_device() {
    let name =
        "transport::vhost_user::tests::cut::a_vmm_that_is_cut_off_anywhere_costs_its_own_device";
    cut::alone(name, || {
        let (daemon, host, fake) = daemon();
        cut::at_each_message(FRAMING, &daemon.path, &host, &fake, connect);
    });
}

/// Whole messages: the crate takes the rest of one that comes in pieces for nonsense, and no VMM sends such.
#[test]
fn a_vmm_is_served_under_signals() {
    let name = "transport::vhost_user::tests::cut::a_vmm_is_served_under_signals";
    cut::alone(name, || {
        let (daemon, _host, fake) = daemon();
        cut::under_signals(FRAMING, false, &daemon.path, &fake, connect);
    });
}
