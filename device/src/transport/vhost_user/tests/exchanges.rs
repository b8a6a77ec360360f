//! What crosvm and QEMU do, from the first message on.

use std::sync::atomic::Ordering;
use std::time::Duration;

use hostblob_protocol::virtio_gpu::{cmd, resp};
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserMMapFlags, VhostUserProtocolFeatures as Features,
};

use super::vmm::{
    Answer, Daemon, MEMORY, USER, Vmm, WINDOW, bytes, crosvm, kind_of, map_body, memfd, only, qemu,
};
use crate::transport::vfio_user::fake::{FakeDevice, KEEP, answer};
use crate::transport::vhost_user::messages::PROTOCOL_FEATURES;

/// A context with a mapped blob.
fn hold_a_blob(vmm: &mut Vmm, context: u32, resource: u32) {
    assert_eq!(vmm.create_context(context), resp::OK_NODATA);
    assert_eq!(vmm.create_blob(context, resource), resp::OK_NODATA);
    assert_eq!(vmm.map_blob(resource), resp::OK_MAP_INFO);
}

#[test]
fn crosvm_finds_the_device_and_maps_the_window_once() {
    let daemon = Daemon::start();
    let mut vmm = Vmm::connect(&daemon.path);
    assert_eq!(crosvm::open(&mut vmm), Some((1, WINDOW)));
    // VIRGL, RESOURCE_UUID, RESOURCE_BLOB, CONTEXT_INIT, BLOB_ALIGNMENT; indirect descriptors, event index, version 1.
    assert_eq!(vmm.features, 0b111101 | 0b111 << 28 | 1 << 32);
    let (_, config) = vmm
        .frontend
        .get_config(8, 8, VhostUserConfigFlags::WRITABLE, &[0; 8])
        .unwrap();
    assert_eq!(config, [0, 0, 0, 0, 1, 0, 0, 0], "no scanouts, one capset");
    crosvm::negotiate(&mut vmm);
    crosvm::activate(&mut vmm, [0, 0]);

    assert_eq!(vmm.create_context(1), resp::OK_NODATA);
    assert_eq!(vmm.create_blob(1, 1), resp::OK_NODATA);
    assert_eq!(vmm.create_blob(1, 2), resp::OK_NODATA);
    assert!(vmm.shmem.names().is_empty(), "not before a blob is mapped");
    assert_eq!(vmm.map_blob(1), resp::OK_MAP_INFO);
    assert_eq!(vmm.map_blob(2), resp::OK_MAP_INFO);
    assert_eq!(vmm.shmem.names(), ["map"]);
    let (_, request) = vmm.shmem.log.lock()[0];
    assert_eq!(request.shmid, 1);
    let (file, shm, length) = (request.fd_offset, request.shm_offset, request.len);
    assert_eq!((file, shm, length), (0, 0, WINDOW));
    assert_eq!({ request.flags }, VhostUserMMapFlags::WRITABLE.bits());
    let length = vmm.shmem.mapped.lock()[0].2.metadata();
    assert_eq!(length.unwrap().len(), WINDOW);

    assert_eq!(vmm.unmap_blob(1), resp::OK_NODATA);
    assert_eq!(vmm.unmap_blob(2), resp::OK_NODATA);
    assert_eq!(vmm.shmem.names(), ["map"], "the context is still there");
    assert_eq!(vmm.destroy_context(1), resp::OK_NODATA);
    // By the time of the response, not some time later.
    assert_eq!(vmm.shmem.names(), ["map", "unmap"]);
    let (_, request) = vmm.shmem.log.lock()[1];
    let range = (request.shmid, request.shm_offset, request.len);
    assert_eq!(range, (1, 0, WINDOW));
    assert!(!vmm.shmem.is_mapped());
}

#[test]
fn crosvm_sleeps_and_wakes() {
    let daemon = Daemon::start();
    let mut vmm = crosvm::start(&daemon.path);
    hold_a_blob(&mut vmm, 1, 1);
    let bases = crosvm::deactivate(&mut vmm);
    assert_eq!(bases, [3, 0], "commands of each queue");
    // Notified while asleep: nothing happens until it wakes.
    vmm.offer(0, &bytes(cmd::RESOURCE_UNMAP_BLOB, 0, &only(1)));
    std::thread::sleep(Duration::from_millis(30));
    assert!(vmm.try_response(0).is_none());
    crosvm::activate(&mut vmm, bases);
    assert_eq!(kind_of(&vmm.response(0)), resp::OK_NODATA);
    assert_eq!(vmm.map_blob(1), resp::OK_MAP_INFO, "the context lives");
    assert_eq!(vmm.shmem.names(), ["map"], "and so does the mapping");
}

#[test]
fn crosvm_resets_and_its_mapping_survives_that() {
    let daemon = Daemon::start();
    let mut vmm = crosvm::start(&daemon.path);
    hold_a_blob(&mut vmm, 1, 1);
    // `reset` has no message of its own: the driver's queue begins anew.
    crosvm::deactivate(&mut vmm);
    vmm.fresh_queues();
    crosvm::negotiate(&mut vmm);
    crosvm::activate(&mut vmm, [0, 0]);
    hold_a_blob(&mut vmm, 1, 1);
    assert_eq!(vmm.shmem.names(), ["map", "unmap", "map"]);
    assert!(vmm.shmem.is_mapped());
}

#[test]
fn each_connection_has_a_device_of_its_own() {
    let daemon = Daemon::start();
    for _ in 0..3 {
        let mut vmm = crosvm::start(&daemon.path);
        hold_a_blob(&mut vmm, 1, 1);
        assert_eq!(vmm.shmem.names(), ["map"]);
    }
}

#[test]
fn qemu_changes_the_memory_before_it_answers() {
    let daemon = Daemon::start();
    let mut vmm = qemu::run(&daemon.path, PROTOCOL_FEATURES);
    assert_eq!(vmm.create_context(1), resp::OK_NODATA);
    assert_eq!(vmm.create_blob(1, 1), resp::OK_NODATA);
    // The window becomes a range of guest memory, and QEMU waits until the device knows, in the middle of SHMEM_MAP.
    let mut region = vmm.region();
    region.guest_phys_addr = 0xfc_0000_0000;
    region.userspace_addr = USER + MEMORY;
    let mut frontend = vmm.frontend.clone();
    let window = memfd(MEMORY);
    *vmm.shmem.during_map.lock() = Some(Box::new(move || {
        region.mmap_handle = std::os::fd::AsRawFd::as_raw_fd(&window);
        frontend.add_mem_region(&region).unwrap();
        // A processor of the guest reads the configuration meanwhile.
        let flags = VhostUserConfigFlags::empty();
        frontend.get_config(0, 24, flags, &[0; 24]).unwrap();
        frontend.set_config(4, flags, &[1, 0, 0, 0]).unwrap();
        drop(window);
    }));
    assert_eq!(vmm.map_blob(1), resp::OK_MAP_INFO);
    assert_eq!(vmm.shmem.names(), ["map"]);
}

#[test]
fn qemu_stops_the_device_while_it_is_asked_for_the_window() {
    let daemon = Daemon::start();
    let mut vmm = qemu::run(&daemon.path, PROTOCOL_FEATURES);
    assert_eq!(vmm.create_context(1), resp::OK_NODATA);
    assert_eq!(vmm.create_blob(1, 1), resp::OK_NODATA);
    let mut frontend = vmm.frontend.clone();
    *vmm.shmem.during_map.lock() = Some(Box::new(move || {
        for index in 0..2 {
            frontend.get_vring_base(index).unwrap();
        }
        frontend.reset_device().unwrap();
    }));
    vmm.offer(0, &bytes(cmd::RESOURCE_MAP_BLOB, 0, &map_body(1)));
    while !vmm.shmem.is_mapped() {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(
        vmm.try_response(0).is_none(),
        "the command went with the reset"
    );
    // QEMU unmaps by itself when it resets a device.
    vmm.shmem.mapped.lock().clear();
    vmm.fresh_queues();
    qemu::start(&mut vmm, [0, 0]);
    hold_a_blob(&mut vmm, 1, 1);
    assert_eq!(vmm.shmem.names(), ["map", "unmap", "map"], "to be sure");
}

#[test]
fn qemu_resets_without_a_word_and_nothing_is_left() {
    let daemon = Daemon::start();
    let mut vmm = qemu::run(&daemon.path, PROTOCOL_FEATURES);
    for _ in 0..3 {
        hold_a_blob(&mut vmm, 1, 1);
        // `virtio_reset`: RESET_DEVICE is agreed on, and not sent.
        qemu::stop(&mut vmm);
        vmm.shmem.mapped.lock().clear();
        vmm.fresh_queues();
        qemu::start(&mut vmm, [0, 0]);
    }
    let expected = ["map", "unmap", "map", "unmap", "map"];
    assert_eq!(vmm.shmem.names(), expected, "to be sure");
}

#[test]
fn qemu_stops_and_continues_the_vm() {
    let daemon = Daemon::start();
    let mut vmm = qemu::run(&daemon.path, PROTOCOL_FEATURES);
    hold_a_blob(&mut vmm, 1, 1);
    let bases = qemu::stop(&mut vmm);
    qemu::start(&mut vmm, bases);
    assert_eq!(vmm.unmap_blob(1), resp::OK_NODATA);
    assert_eq!(vmm.create_blob(1, 2), resp::OK_NODATA);
}

#[test]
fn an_interrupt_that_came_to_nothing_is_made_up_for() {
    let daemon = Daemon::start();
    let mut vmm = crosvm::start(&daemon.path);
    assert_eq!(vmm.create_context(1), resp::OK_NODATA);
    let _ = vmm.queues[0].call.read();
    // All responses were given back; the VMM took the call away before the last one's interrupt.
    let bases = crosvm::deactivate(&mut vmm);
    crosvm::activate(&mut vmm, bases);
    let start = std::time::Instant::now();
    while vmm.queues[0].call.read().is_err() {
        assert!(start.elapsed().as_secs() < 10, "no interrupt");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

#[test]
fn a_response_that_comes_while_the_vm_sleeps_is_given_when_it_wakes() {
    let (send, controls) = std::sync::mpsc::channel();
    let daemon = Daemon::serving(move |waker| {
        let (device, control) = FakeDevice::new(waker);
        send.send(control).unwrap();
        Ok(device)
    });
    let mut vmm = crosvm::start(&daemon.path);
    let control = controls.recv().unwrap();
    let command = [KEEP; 24];
    vmm.offer(0, &command);
    while control.kept() == 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    let bases = crosvm::deactivate(&mut vmm);
    control.complete(0);
    std::thread::sleep(Duration::from_millis(30));
    assert!(vmm.try_response(0).is_none(), "guest memory is left alone");
    crosvm::activate(&mut vmm, bases);
    assert_eq!(vmm.response(0), answer(&command));
}

#[test]
fn many_commands_with_few_notifications() {
    let daemon = Daemon::start();
    for event_idx in [true, false] {
        let mut vmm = Vmm::connect(&daemon.path);
        crosvm::open(&mut vmm);
        if !event_idx {
            vmm.features &= !crate::virtqueue::F_EVENT_IDX;
        }
        crosvm::negotiate(&mut vmm);
        crosvm::activate(&mut vmm, [0, 0]);
        assert_eq!(vmm.create_context(1), resp::OK_NODATA);
        for round in 0..500 {
            for queue in [0, 1] {
                for _ in 0..1 + round % 5 {
                    vmm.offer(queue, &bytes(cmd::GET_DISPLAY_INFO, 0, &()));
                }
            }
            for queue in [0, 1] {
                for _ in 0..1 + round % 5 {
                    assert_eq!(kind_of(&vmm.response(queue)), resp::OK_DISPLAY_INFO);
                }
            }
        }
        assert!(vmm.queues[0].kicks > 0);
    }
}

#[test]
fn without_shared_memory_regions_everything_but_mapping_works() {
    let daemon = Daemon::start();
    for lacks in [
        Features::SHMEM,
        Features::REPLY_ACK | Features::CONFIGURE_MEM_SLOTS,
        Features::BACKEND_REQ,
    ] {
        let mut vmm = Vmm::connect(&daemon.path);
        let protocol = PROTOCOL_FEATURES - lacks - Features::CONFIGURE_MEM_SLOTS;
        qemu::open(&mut vmm, protocol);
        vmm.frontend.set_mem_table(&[vmm.region()]).unwrap();
        qemu::start(&mut vmm, [0, 0]);
        assert_eq!(vmm.create_context(1), resp::OK_NODATA);
        assert_eq!(vmm.create_blob(1, 1), resp::OK_NODATA);
        assert_eq!(vmm.map_blob(1), resp::ERR_OUT_OF_MEMORY);
        assert_eq!(vmm.unmap_blob(1), resp::ERR_INVALID_PARAMETER);
        assert_eq!(vmm.destroy_context(1), resp::OK_NODATA);
        assert!(vmm.shmem.names().is_empty());
    }
}

#[test]
fn a_refused_or_unanswered_mapping_fails_the_command_and_changes_nothing() {
    let daemon = Daemon::start();
    let mut vmm = qemu::run(&daemon.path, PROTOCOL_FEATURES);
    assert_eq!(vmm.create_context(1), resp::OK_NODATA);
    assert_eq!(vmm.create_blob(1, 1), resp::OK_NODATA);
    *vmm.shmem.answer.lock() = Answer::No;
    assert_eq!(vmm.map_blob(1), resp::ERR_OUT_OF_MEMORY);
    *vmm.shmem.answer.lock() = Answer::Never;
    assert_eq!(vmm.map_blob(1), resp::ERR_OUT_OF_MEMORY);
    // The answer comes late, and the window is mapped then. That is found out and put in order.
    *vmm.shmem.answer.lock() = Answer::Yes;
    assert_eq!(vmm.map_blob(1), resp::OK_MAP_INFO);
    assert_eq!(vmm.shmem.names(), ["map", "map", "unmap", "map"]);
    let overlaps = vmm.shmem.overlaps.load(Ordering::Relaxed);
    assert_eq!(overlaps, 0, "it is never asked to map over what it has");
    assert!(vmm.shmem.is_mapped());
    assert_eq!(vmm.unmap_blob(1), resp::OK_NODATA);
}
