//! What no sane VMM does: the device does not panic, leaks nothing, and serves the next one.

use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use hostblob_protocol::virtio_gpu::{cmd, resp};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vmm_sys_util::eventfd::EventFd;

use super::vmm::{
    Answer, Daemon, F_PROTOCOL_FEATURES, MEMORY, SIZE, USER, Vmm, bytes, crosvm, kind_of, map_body,
    memfd, only, qemu,
};
use crate::transport::cut::alone;
use crate::transport::line::jam;
use crate::transport::vhost_user::channel::REPLY_TIMEOUT;
use crate::transport::vhost_user::messages::PROTOCOL_FEATURES;

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// A message as bytes, with descriptors. Whether it arrives is the other side's affair.
fn send(stream: &UnixStream, request: u32, flags: u32, body: &[u8], files: &[BorrowedFd<'_>]) {
    let mut message = [request, flags, body.len() as u32]
        .map(u32::to_ne_bytes)
        .concat();
    message.extend_from_slice(body);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(40))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !files.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(files));
    }
    let flags = SendFlags::NOSIGNAL;
    let _ = rustix::net::sendmsg(stream, &[IoSlice::new(&message)], &mut control, flags);
}

/// Waits until the daemon has closed the connection.
fn drained(mut stream: UnixStream) {
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
    }
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// The daemon serves an honest VMM.
fn still_works(daemon: &Daemon) {
    let mut vmm = crosvm::start(&daemon.path);
    assert_eq!(vmm.create_context(1), resp::OK_NODATA);
    assert_eq!(vmm.create_blob(1, 1), resp::OK_NODATA);
    assert_eq!(vmm.map_blob(1), resp::OK_MAP_INFO);
}

#[test]
fn messages_of_every_kind_size_and_order_leave_nothing_behind() {
    alone(
        "transport::vhost_user::tests::hostile::messages_of_every_kind_size_and_order_leave_nothing_behind",
        || {
            let daemon = Daemon::start();
            still_works(&daemon);
            let before = descriptors();
            let event = EventFd::new(0).unwrap();
            let memory = memfd(0x10_0000);
            let (pair, _other) = UnixStream::pair().unwrap();
            // SAFETY: the eventfd is open until the end of this function.
            let event = unsafe { BorrowedFd::borrow_raw(std::os::fd::AsRawFd::as_raw_fd(&event)) };
            let bodies = [
                vec![],
                words(&[0]),
                words(&[1]),
                words(&[u64::MAX]),
                words(&[1, 0, 0x10_0000, USER, 0]),
                words(&[0, 0, 0x10_0000, USER, 0]),
                words(&[0, u64::MAX, u64::MAX, u64::MAX, u64::MAX]),
                words(&[0, USER, USER + 0x1000, USER + 0x2000, 0]),
                words(&[0x18 << 32, 0]),
                vec![0xff; 0xfff],
                vec![0; 3],
            ];
            let all: Vec<BorrowedFd<'_>> =
                vec![event, memory.as_fd(), pair.as_fd(), event, memory.as_fd()];
            let files: [&[BorrowedFd<'_>]; 5] =
                [&[], &[event], &[memory.as_fd()], &[pair.as_fd()], &all];
            for request in (0..48).chain([0xff, u32::MAX]) {
                for flags in [0x1, 0x9, 0x5, 0x0] {
                    for negotiated in [false, true] {
                        let stream = UnixStream::connect(&daemon.path).unwrap();
                        if negotiated {
                            send(&stream, 1, 1, &[], &[]);
                            send(&stream, 16, 1, &words(&[PROTOCOL_FEATURES.bits()]), &[]);
                            send(&stream, 2, 1, &words(&[F_PROTOCOL_FEATURES]), &[]);
                        }
                        let body = &bodies[(request as usize + flags as usize) % bodies.len()];
                        send(&stream, request, flags, body, files[request as usize % 5]);
                        drained(stream);
                    }
                }
            }
            let mut random = 0x2545_f491_4f6c_dd1d_u64;
            for _ in 0..300 {
                let stream = UnixStream::connect(&daemon.path).unwrap();
                send(&stream, 1, 1, &[], &[]);
                send(&stream, 16, 1, &words(&[PROTOCOL_FEATURES.bits()]), &[]);
                send(&stream, 2, 1, &words(&[F_PROTOCOL_FEATURES]), &[]);
                for _ in 0..8 {
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    let body = &bodies[(random >> 8) as usize % bodies.len()];
                    let files = files[(random >> 16) as usize % files.len()];
                    send(&stream, (random % 46) as u32, 0x9, body, files);
                }
                drained(stream);
            }
            still_works(&daemon);
            settled(before);
        },
    );
}

/// The last connection's threads may still be letting go.
fn settled(before: usize) {
    let start = Instant::now();
    while descriptors() > before {
        let lists: Vec<_> = std::fs::read_dir("/proc/self/fd")
            .unwrap()
            .filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok())
            .collect();
        assert!(
            start.elapsed() < Duration::from_secs(5),
            "{before} before: {lists:?}"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn connections_that_come_and_go_leave_nothing_behind() {
    alone(
        "transport::vhost_user::tests::hostile::connections_that_come_and_go_leave_nothing_behind",
        || {
            let daemon = Daemon::start();
            still_works(&daemon);
            let before = descriptors();
            for _ in 0..50 {
                still_works(&daemon);
                drop(UnixStream::connect(&daemon.path).unwrap());
                let mut half = UnixStream::connect(&daemon.path).unwrap();
                half.write_all(&[1, 0, 0]).unwrap();
            }
            still_works(&daemon);
            settled(before);
        },
    );
}

#[test]
fn queues_that_cannot_be_are_refused() {
    let daemon = Daemon::start();
    type Step = fn(&mut Vmm) -> bool;
    let steps: [Step; 14] = [
        |vmm| vmm.frontend.set_vring_num(0, 0).is_err(),
        |vmm| vmm.frontend.set_vring_num(0, 3).is_err(),
        |vmm| vmm.frontend.set_vring_num(0, 512).is_err(),
        |vmm| vmm.frontend.set_vring_num(2, SIZE).is_err(),
        |vmm| {
            let mut parts = vmm.parts(0);
            parts.desc_table_addr = USER + MEMORY;
            vmm.frontend.set_vring_addr(0, &parts).is_err()
        },
        |vmm| {
            let mut parts = vmm.parts(0);
            parts.avail_ring_addr = USER - 2;
            vmm.frontend.set_vring_addr(0, &parts).is_err()
        },
        |vmm| {
            let mut parts = vmm.parts(0);
            parts.used_ring_addr = u64::MAX - 3;
            vmm.frontend.set_vring_addr(0, &parts).is_err()
        },
        |vmm| vmm.frontend.get_vring_base(7).is_err(),
        |vmm| vmm.frontend.set_vring_enable(9, true).is_err(),
        |vmm| vmm.frontend.set_features(1 << 34).is_err(),
        |vmm| vmm.frontend.remove_mem_region(&vmm.region()).is_ok(),
        |vmm| vmm.frontend.add_mem_region(&vmm.region()).is_err(),
        |vmm| {
            let mut region = vmm.region();
            (region.guest_phys_addr, region.memory_size) = (MEMORY, MEMORY * 2);
            vmm.frontend.add_mem_region(&region).is_err()
        },
        |vmm| {
            let mut region = vmm.region();
            region.memory_size = MEMORY / 2;
            vmm.frontend.remove_mem_region(&region).is_err()
        },
    ];
    for (number, step) in steps.into_iter().enumerate() {
        let mut vmm = qemu::run(&daemon.path, PROTOCOL_FEATURES);
        assert!(step(&mut vmm), "step {number}");
    }
    still_works(&daemon);
}

#[test]
fn queues_start_when_all_is_said_whatever_the_order() {
    let daemon = Daemon::start();
    for order in 0..24 {
        let mut vmm = Vmm::connect(&daemon.path);
        qemu::open(&mut vmm, PROTOCOL_FEATURES);
        vmm.frontend.set_features(vmm.features).unwrap();
        vmm.frontend.add_mem_region(&vmm.region()).unwrap();
        // A driver that is too early.
        vmm.offer(0, &bytes(cmd::GET_DISPLAY_INFO, 0, &()));
        let mut steps = vec![0, 1, 2, 3];
        let mut left = order;
        let mut said = Vec::new();
        for choices in (1..=4).rev() {
            said.push(steps.remove(left % choices));
            left /= choices;
        }
        let parts = vmm.parts(0);
        let (frontend, queue) = (&mut vmm.frontend, &vmm.queues[0]);
        frontend.set_vring_call(0, &queue.call).unwrap();
        for step in said {
            match step {
                0 => frontend.set_vring_num(0, SIZE).unwrap(),
                1 => frontend.set_vring_addr(0, &parts).unwrap(),
                2 => frontend.set_vring_kick(0, &queue.kick).unwrap(),
                _ => frontend.set_vring_enable(0, true).unwrap(),
            }
        }
        vmm.response(0);
        // And again and again.
        vmm.frontend.set_vring_enable(0, false).unwrap();
        vmm.offer(0, &bytes(cmd::GET_DISPLAY_INFO, 0, &()));
        vmm.frontend.set_vring_enable(0, true).unwrap();
        vmm.response(0);
    }
}

#[test]
fn memory_that_is_taken_away_under_a_queue_is_not_touched_and_may_come_back() {
    let daemon = Daemon::start();
    let mut vmm = qemu::run(&daemon.path, PROTOCOL_FEATURES);
    assert_eq!(vmm.create_context(1), resp::OK_NODATA);
    vmm.frontend.remove_mem_region(&vmm.region()).unwrap();
    vmm.offer(0, &bytes(cmd::CTX_DESTROY, 1, &()));
    vmm.queues[0].kick.write(1).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    assert!(vmm.try_response(0).is_none());
    vmm.frontend.add_mem_region(&vmm.region()).unwrap();
    vmm.response(0);
    assert_eq!(vmm.create_context(1), resp::OK_NODATA);
}

#[test]
fn the_end_comes_at_once_whatever_the_vmm_is_doing() {
    // In the middle of a message.
    let mut daemon = Daemon::start();
    let mut half = UnixStream::connect(&daemon.path).unwrap();
    half.write_all(&[1, 0, 0, 0, 1, 0]).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    assert!(daemon.end() < REPLY_TIMEOUT);
    // While an answer about the window is awaited.
    let mut daemon = Daemon::start();
    let mut vmm = qemu::run(&daemon.path, PROTOCOL_FEATURES);
    assert_eq!(vmm.create_context(1), resp::OK_NODATA);
    assert_eq!(vmm.create_blob(1, 1), resp::OK_NODATA);
    *vmm.shmem.answer.lock() = Answer::Never;
    vmm.offer(0, &bytes(cmd::RESOURCE_MAP_BLOB, 0, &map_body(1)));
    while vmm.shmem.names().is_empty() {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(daemon.end() < REPLY_TIMEOUT);
}

/// A line's flags are the VMM's too: here its counter is full, and who writes to it waits until somebody reads.
#[test]
fn a_vmm_whose_lines_block_is_answered_and_the_end_comes_at_once() {
    let mut daemon = Daemon::start();
    let mut vmm = qemu::run(&daemon.path, PROTOCOL_FEATURES);
    assert_eq!(vmm.create_context(1), resp::OK_NODATA);
    let jam_call = |vmm: &Vmm| {
        let call = vmm.queues[0].call.as_raw_fd();
        // SAFETY: the queue keeps it open.
        jam(unsafe { BorrowedFd::borrow_raw(call) });
    };
    jam_call(&vmm);
    for resource in 1..4 {
        vmm.ask_for_interrupt(0);
        vmm.offer(0, &bytes(cmd::RESOURCE_UNREF, 0, &only(resource)));
        let start = Instant::now();
        while vmm.try_response(0).is_none() {
            assert!(start.elapsed() < Duration::from_secs(10), "no answer");
            std::thread::sleep(Duration::from_millis(1));
        }
        let answer = vmm.response(0);
        assert_eq!(kind_of(&answer), resp::ERR_INVALID_RESOURCE_ID);
        jam_call(&vmm);
    }
    // A message that fires: the queue goes on where it was.
    let bases = qemu::stop(&mut vmm);
    qemu::start(&mut vmm, bases);
    jam_call(&vmm);
    vmm.ask_for_interrupt(0);
    vmm.offer(0, &bytes(cmd::RESOURCE_UNREF, 0, &only(9)));
    assert!(daemon.end() < Duration::from_secs(2));
}
