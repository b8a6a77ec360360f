//! Blobs mapped one by one.

use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use hostblob_allocator::provider::ExportKind;
use hostblob_allocator::provider::fake::FakeProvider;
use hostblob_allocator::provider::system::SystemProvider;
use hostblob_capset::{Capset, WindowMode};
use hostblob_protocol::EnvelopeBuilder;
use hostblob_protocol::request::{
    BindClientId, CacheMode, Create, CreateFlags, Fill, Import, MemoryRange, MemorySelector,
};
use hostblob_protocol::virtio_gpu::{GetCapset, cmd, resp};
use rustix::fs::{MemfdFlags, SealFlags};

use super::vmm::{Answer, CAPSET_ID, Daemon, USER, Vmm, WINDOW, bytes, crosvm, qemu};
use crate::transport::mappings::MAX_MAPPINGS;
use crate::transport::vhost_user::messages::PROTOCOL_FEATURES;

const PAGE: u64 = 4096;

/// A guest with context 1 and blobs 1 to `blobs`, of a page each, mapped at the page of their number.
fn with_blobs(daemon: &Daemon, blobs: u32) -> Vmm {
    let mut vmm = crosvm::start(&daemon.path);
    assert_eq!(vmm.create_context(1), resp::OK_NODATA);
    for resource in 1..=blobs {
        assert_eq!(vmm.create_blob(1, resource), resp::OK_NODATA);
        assert_eq!(vmm.map_blob(resource), resp::OK_MAP_INFO);
    }
    vmm
}

fn never_over_another(vmm: &Vmm) {
    assert_eq!(vmm.shmem.overlaps.load(Ordering::Relaxed), 0);
}

#[test]
fn the_guest_is_told_so() {
    let (daemon, _exports) = Daemon::on_demand();
    let mut vmm = crosvm::start(&daemon.path);
    let asked = GetCapset {
        capset_id: CAPSET_ID.into(),
        ..GetCapset::default()
    };
    vmm.offer(0, &bytes(cmd::GET_CAPSET, 0, &asked));
    let response = vmm.response(0);
    let capset = Capset::decode(&response[24..]).unwrap();
    assert_eq!(capset.window_mode, WindowMode::OnDemand);
}

#[test]
fn each_blob_is_a_mapping_which_serves_the_next_one_there() {
    let (daemon, _exports) = Daemon::on_demand();
    let mut vmm = with_blobs(&daemon, 2);
    let expected = [("map", PAGE, PAGE), ("map", 2 * PAGE, PAGE)];
    assert_eq!(vmm.shmem.requests(), expected);
    for (offset, _, file) in vmm.shmem.mapped.lock().iter() {
        assert_eq!(file.metadata().unwrap().len(), WINDOW, "{offset:#x}");
    }
    // The same place again: by the same blob, and by another one.
    assert_eq!(vmm.unmap_blob(1), resp::OK_NODATA);
    assert_eq!(vmm.map_blob(1), resp::OK_MAP_INFO);
    assert_eq!(vmm.unref(1), resp::OK_NODATA);
    assert_eq!(vmm.create_blob(1, 3), resp::OK_NODATA);
    assert_eq!(vmm.map_blob_at(3, PAGE), resp::OK_MAP_INFO);
    assert_eq!(vmm.shmem.requests(), []);

    // A larger one needs the place of both.
    assert_eq!(vmm.unmap_blob(2), resp::OK_NODATA);
    assert_eq!(vmm.unmap_blob(3), resp::OK_NODATA);
    assert_eq!(vmm.create_blob_of(1, 4, 0, 2 * PAGE), resp::OK_NODATA);
    assert_eq!(vmm.map_blob_at(4, PAGE), resp::OK_MAP_INFO);
    let mut requests = vmm.shmem.requests();
    requests[..2].sort_unstable();
    let expected = [
        ("unmap", PAGE, PAGE),
        ("unmap", 2 * PAGE, PAGE),
        ("map", PAGE, 2 * PAGE),
    ];
    assert_eq!(requests, expected);

    // By the time of the response.
    assert_eq!(vmm.destroy_context(1), resp::OK_NODATA);
    assert!(vmm.shmem.is_mapped(), "the blob still is");
    assert_eq!(vmm.unmap_blob(4), resp::OK_NODATA);
    assert_eq!(vmm.shmem.requests(), [("unmap", PAGE, 2 * PAGE)]);
    assert!(!vmm.shmem.is_mapped());
    never_over_another(&vmm);
}

#[test]
fn what_is_cached_goes_with_the_last_context() {
    let (daemon, _exports) = Daemon::on_demand();
    let mut vmm = with_blobs(&daemon, 3);
    assert_eq!(vmm.create_context(2), resp::OK_NODATA);
    for resource in 1..=3 {
        assert_eq!(vmm.unref(resource), resp::OK_NODATA);
    }
    assert_eq!(vmm.destroy_context(1), resp::OK_NODATA);
    assert_eq!(vmm.shmem.requests().len(), 3, "the other one may map again");
    assert_eq!(vmm.destroy_context(2), resp::OK_NODATA);
    assert_eq!(vmm.shmem.requests().len(), 3);
    assert!(!vmm.shmem.is_mapped());
    // It begins again as it began.
    assert_eq!(vmm.create_context(1), resp::OK_NODATA);
    assert_eq!(vmm.create_blob(1, 1), resp::OK_NODATA);
    assert_eq!(vmm.map_blob(1), resp::OK_MAP_INFO);
    assert_eq!(vmm.shmem.requests(), [("map", PAGE, PAGE)]);
}

#[test]
fn a_guest_that_maps_too_many_blobs_is_refused_and_goes_on() {
    let (daemon, _exports) = Daemon::on_demand();
    let limit = u32::try_from(MAX_MAPPINGS).unwrap();
    let mut vmm = with_blobs(&daemon, limit);
    assert_eq!(vmm.create_blob(1, limit + 1), resp::OK_NODATA);
    assert_eq!(vmm.map_blob(limit + 1), resp::ERR_OUT_OF_MEMORY);
    let refused = vmm.unmap_blob(limit + 1);
    assert_eq!(refused, resp::ERR_INVALID_PARAMETER, "it is not mapped");
    assert_eq!(vmm.shmem.mapped.lock().len(), MAX_MAPPINGS);
    assert_eq!(vmm.shmem.requests().len(), MAX_MAPPINGS);
    // One goes, and the place that was used longest ago with it.
    assert_eq!(vmm.unmap_blob(9), resp::OK_NODATA);
    assert_eq!(vmm.unmap_blob(5), resp::OK_NODATA);
    assert_eq!(vmm.map_blob(limit + 1), resp::OK_MAP_INFO);
    let place = u64::from(limit + 1) * PAGE;
    let expected = [("unmap", 9 * PAGE, PAGE), ("map", place, PAGE)];
    assert_eq!(vmm.shmem.requests(), expected);
    assert_eq!(vmm.destroy_context(1), resp::OK_NODATA);
    never_over_another(&vmm);
}

#[test]
fn a_refused_or_unanswered_mapping_fails_its_command_alone() {
    let (daemon, _exports) = Daemon::on_demand();
    let mut vmm = with_blobs(&daemon, 1);
    assert_eq!(vmm.create_blob(1, 2), resp::OK_NODATA);
    assert_eq!(vmm.create_blob(1, 3), resp::OK_NODATA);
    *vmm.shmem.answer.lock() = Answer::No;
    assert_eq!(vmm.map_blob(2), resp::ERR_OUT_OF_MEMORY);
    assert_eq!(vmm.unmap_blob(2), resp::ERR_INVALID_PARAMETER);
    *vmm.shmem.answer.lock() = Answer::Never;
    assert_eq!(vmm.map_blob(2), resp::ERR_OUT_OF_MEMORY);
    // It is mapped after all, too late. That is put in order before it is asked for again.
    *vmm.shmem.answer.lock() = Answer::Yes;
    vmm.shmem.requests();
    assert_eq!(vmm.map_blob(3), resp::OK_MAP_INFO);
    assert_eq!(vmm.map_blob(2), resp::OK_MAP_INFO);
    let expected = [
        ("map", 3 * PAGE, PAGE),
        ("unmap", 2 * PAGE, PAGE),
        ("map", 2 * PAGE, PAGE),
    ];
    assert_eq!(vmm.shmem.requests(), expected);
    never_over_another(&vmm);
}

#[test]
fn a_reset_leaves_no_mapping_to_the_next_guest() {
    let (daemon, _exports) = Daemon::on_demand();
    for by_vmm in [false, true] {
        let mut vmm = with_blobs(&daemon, 2);
        crosvm::deactivate(&mut vmm);
        if by_vmm {
            vmm.shmem.mapped.lock().clear();
        }
        vmm.fresh_queues();
        crosvm::negotiate(&mut vmm);
        crosvm::activate(&mut vmm, [0, 0]);
        assert_eq!(vmm.create_context(1), resp::OK_NODATA);
        assert!(!vmm.shmem.is_mapped(), "by the first response");
        assert_eq!(vmm.create_blob(1, 1), resp::OK_NODATA);
        assert_eq!(vmm.map_blob(1), resp::OK_MAP_INFO);
        let names = ["map", "map", "unmap", "unmap", "map"];
        assert_eq!(vmm.shmem.names(), names);
        never_over_another(&vmm);
    }
}

#[test]
fn a_paused_vm_is_asked_for_nothing() {
    let (daemon, _exports) = Daemon::on_demand();
    let mut vmm = with_blobs(&daemon, 2);
    assert_eq!(vmm.unmap_blob(2), resp::OK_NODATA);
    let bases = crosvm::deactivate(&mut vmm);
    crosvm::activate(&mut vmm, bases);
    assert_eq!(vmm.map_blob(2), resp::OK_MAP_INFO);
    assert_eq!(vmm.shmem.requests().len(), 2, "mappings survive a pause");
}

#[test]
fn qemu_changes_the_memory_with_each_mapping() {
    let (daemon, _exports) = Daemon::on_demand();
    let mut vmm = qemu::run(&daemon.path, PROTOCOL_FEATURES);
    assert_eq!(vmm.create_context(1), resp::OK_NODATA);
    for resource in 1..=8 {
        assert_eq!(vmm.create_blob(1, resource), resp::OK_NODATA);
        // It waits within SHMEM_MAP until the device knows.
        let mut region = vmm.region();
        region.memory_size = PAGE;
        region.mmap_offset = u64::from(resource) * PAGE;
        region.guest_phys_addr = 0xfc_0000_0000 + region.mmap_offset;
        region.userspace_addr = USER + (1 << 32) + region.mmap_offset;
        let mut frontend = vmm.frontend.clone();
        *vmm.shmem.during_map.lock() = Some(Box::new(move || {
            use vhost::vhost_user::VhostUserFrontend;
            frontend.add_mem_region(&region).unwrap();
        }));
        assert_eq!(vmm.map_blob(resource), resp::OK_MAP_INFO);
    }
    assert_eq!(vmm.shmem.names(), ["map"; 8]);
}

#[test]
fn memory_of_a_host_process_is_mapped_with_its_own_descriptor() {
    let (daemon, exports) = Daemon::on_demand();
    let viewer = exports.join(Arc::new(|| {})).unwrap();
    let memory = rustix::fs::memfd_create("theirs", MemfdFlags::ALLOW_SEALING).unwrap();
    rustix::fs::ftruncate(&memory, 2 * PAGE).unwrap();
    rustix::fs::fcntl_add_seals(&memory, SealFlags::SHRINK).unwrap();
    let inode = rustix::fs::fstat(&memory).unwrap().st_ino;
    let uuid = viewer.hand_in(memory).unwrap();

    let mut vmm = with_blobs(&daemon, 1);
    vmm.shmem.requests();
    let client_id = 7;
    let envelope = EnvelopeBuilder::new(1)
        .request(Import { client_id, uuid })
        .request(BindClientId { client_id })
        .build();
    assert_eq!(vmm.submit(1, &envelope), resp::OK_NODATA);
    let size = 2 * PAGE;
    assert_eq!(vmm.create_blob_of(1, 2, 7, size), resp::OK_NODATA);
    assert_eq!(vmm.map_blob_at(2, 4 * PAGE), resp::OK_MAP_INFO);
    let (name, request) = vmm.shmem.log.lock()[0];
    assert_eq!(name, "map");
    let place = (request.fd_offset, request.shm_offset, request.len);
    assert_eq!(place, (0, 4 * PAGE, size));
    let theirs = |vmm: &Vmm| vmm.shmem.mapped.lock()[1].2.metadata().unwrap().ino();
    assert_eq!(theirs(&vmm), inode);
    // The place is taken.
    assert_eq!(vmm.create_blob(1, 3), resp::OK_NODATA);
    assert_eq!(vmm.map_blob_at(3, 5 * PAGE), resp::ERR_INVALID_PARAMETER);
    vmm.shmem.requests();

    // It goes with its blob, before the response, and comes again.
    assert_eq!(vmm.unmap_blob(2), resp::OK_NODATA);
    assert_eq!(vmm.shmem.requests(), [("unmap", 4 * PAGE, size)]);
    assert_eq!(vmm.map_blob_at(3, 5 * PAGE), resp::OK_MAP_INFO);
    assert_eq!(vmm.map_blob_at(2, 8 * PAGE), resp::OK_MAP_INFO);
    assert_eq!(vmm.unref(2), resp::OK_NODATA);
    let expected = [
        ("map", 5 * PAGE, PAGE),
        ("map", 8 * PAGE, size),
        ("unmap", 8 * PAGE, size),
    ];
    assert_eq!(vmm.shmem.requests(), expected);
    never_over_another(&vmm);
}

#[test]
fn device_memory_is_mapped_with_its_own_descriptor() {
    let system = SystemProvider::exporting(None, ExportKind::File);
    let (daemon, _exports) = Daemon::on_demand_over(FakeProvider::over(system));
    let mut vmm = with_blobs(&daemon, 1);
    vmm.shmem.requests();
    let size = 2 * PAGE;
    let create = Create {
        client_id: 7,
        size,
        memory: MemorySelector::Index(2),
        flags: CreateFlags::HOST_VISIBLE | CreateFlags::MAP_DIRECTLY | CreateFlags::SHAREABLE,
        alignment: 0,
        expected_cache: CacheMode::Any,
    };
    let fill = Fill {
        range: MemoryRange {
            client_id: 7,
            offset: PAGE,
            length: PAGE,
        },
        value: 9,
    };
    let envelope = EnvelopeBuilder::new(1)
        .request(create)
        .request(fill)
        .build();
    assert_eq!(vmm.submit(1, &envelope), resp::OK_NODATA);
    assert_eq!(vmm.create_blob_of(1, 2, 7, size), resp::OK_NODATA);
    assert_eq!(vmm.map_blob_at(2, 4 * PAGE), resp::OK_MAP_INFO);
    let (name, request) = vmm.shmem.log.lock()[0];
    assert_eq!(name, "map");
    let place = (request.fd_offset, request.shm_offset, request.len);
    assert_eq!(place, (0, 4 * PAGE, size));
    // The descriptor is of these bytes and no others, and the GPU has written them.
    {
        let mapped = vmm.shmem.mapped.lock();
        let file = &mapped[1].2;
        assert_eq!(file.metadata().unwrap().len(), size);
        let mut bytes = [0; 4];
        file.read_exact_at(&mut bytes, PAGE).unwrap();
        assert_eq!(bytes, [9, 0, 0, 0]);
    }
    vmm.shmem.requests();
    // It goes with its blob, before the response.
    assert_eq!(vmm.unref(2), resp::OK_NODATA);
    assert_eq!(vmm.shmem.requests(), [("unmap", 4 * PAGE, size)]);
    never_over_another(&vmm);
}
