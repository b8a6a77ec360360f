//! What the library does when the daemon does not behave.

mod fake;

use std::time::{Duration, Instant};

use fake::{Fake, Script};
use hostblob_guest::protocol::request::request_bit;
use hostblob_guest::protocol::virtio_gpu::resp;
use hostblob_guest::{
    Access, AllocateInfo, CacheMode, Device, Error, MOST_TRANSFERS, MapInfo, OpenOptions,
    PoolOptions, Status, Transfer,
};

fn start(script: Script) -> (Fake, Device) {
    let fake = Fake::start(script);
    let device = fake.open();
    (fake, device)
}

#[test]
fn a_daemon_that_hangs_up_is_lost_for_every_later_call() {
    // After each number of commands: in the middle of opening, of a creation, of a fence.
    for most in 0..20 {
        let fake = Fake::start(Script {
            hang_up_after: Some(most),
            ..Script::default()
        });
        let begin = Instant::now();
        let Ok(device) = Device::open(&fake.options()) else {
            continue;
        };
        let mut held = Vec::new();
        let error = loop {
            match device.allocate(&AllocateInfo::new(1 << 20).dedicated()) {
                Ok(memory) => held.push(memory),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, Error::DeviceLost(_)), "{most}: {error}");
        assert_eq!(error.vk_result(), -4);
        let small = device.allocate(&AllocateInfo::new(64)).unwrap_err();
        assert!(matches!(small, Error::DeviceLost(_)), "{small}");
        assert!(matches!(device.budget(0), Err(Error::DeviceLost(_))));
        if let [first, second, ..] = &held[..] {
            first.write(0, b"still there").unwrap();
            let copy = device.copy(first, 0, second, 0, 4).unwrap_err();
            assert!(matches!(copy, Error::DeviceLost(_)));
        }
        assert!(begin.elapsed() < Duration::from_secs(5), "no call may hang");
    }
}

#[test]
fn a_fence_of_a_lost_daemon_ends() {
    // Opening takes 5 commands, the allocation 3; the fill is the 9th and is held for ever.
    let script = Script {
        reverse_fences: 9,
        hang_up_after: Some(9),
        ..Script::default()
    };
    let (_fake, device) = start(script);
    let memory = device
        .allocate(&AllocateInfo::new(4096).dedicated())
        .unwrap();
    let fence = device.fill(&memory, 0, 4096, 1).unwrap();
    assert_eq!(
        fence.wait(Some(Duration::from_millis(20))),
        Err(Error::Timeout)
    );
    assert!(!fence.is_signaled().unwrap());
    let waiter = std::thread::spawn(move || fence.wait(None));
    device
        .allocate(&AllocateInfo::new(4096).dedicated())
        .unwrap_err();
    assert!(matches!(waiter.join().unwrap(), Err(Error::DeviceLost(_))));
}

#[test]
fn a_silent_daemon_is_lost_after_the_timeout() {
    for most in 0..12 {
        let fake = Fake::start(Script {
            go_silent_after: Some(most),
            ..Script::default()
        });
        let timeout = Duration::from_millis(100);
        let options = OpenOptions {
            timeout,
            ..fake.options()
        };
        let begin = Instant::now();
        let device = match Device::open(&options) {
            Ok(device) => device,
            Err(error) => {
                assert!(matches!(error, Error::DeviceLost(_)), "{most}: {error}");
                continue;
            }
        };
        while device
            .allocate(&AllocateInfo::new(4096).dedicated())
            .is_ok()
        {}
        let error = device.allocate(&AllocateInfo::new(4096)).unwrap_err();
        assert!(matches!(error, Error::DeviceLost(_)), "{error}");
        assert!(begin.elapsed() < Duration::from_secs(5));
    }
}

#[test]
fn greetings_that_break_the_rules_are_refused() {
    let open = |script| {
        let fake = Fake::start(script);
        Device::open(&fake.options()).unwrap_err()
    };
    let error = open(Script {
        hello_version: 2,
        ..Script::default()
    });
    assert!(matches!(error, Error::Incompatible(_)), "{error}");
    let error = open(Script {
        window_bytes: fake::WINDOW - 4096,
        ..Script::default()
    });
    assert!(
        matches!(error, Error::Incompatible(_)),
        "a SIGBUS otherwise: {error}"
    );
    let error = open(Script {
        send_window: false,
        ..Script::default()
    });
    assert!(matches!(error, Error::NoDevice(_)), "{error}");
    let mut script = Script::default();
    script.offer.major += 1;
    let error = open(script);
    assert_eq!(error.code(), 0x1_0002, "{error}");
    let nobody = Device::open(&OpenOptions::socket("/nonexistent/hb.sock")).unwrap_err();
    assert!(matches!(nobody, Error::NoDevice(_)));
}

#[test]
fn every_refusal_arrives_as_its_status() {
    for &status in &Status::ALL[1..] {
        let script = Script {
            refuse: Some((request_bit::CREATE, status)),
            ..Script::default()
        };
        let (_fake, device) = start(script);
        for info in [
            AllocateInfo::new(4096),
            AllocateInfo::new(4096).dedicated(),
            AllocateInfo::new(4096).deferred(),
            AllocateInfo::new(4096).memory_type(0),
        ] {
            assert_eq!(
                device.allocate(&info).unwrap_err().status(),
                Some(status),
                "{info:?}"
            );
        }
        let script = Script {
            refuse: Some((request_bit::FILL, status)),
            ..Script::default()
        };
        let (_fake, device) = start(script);
        let memory = device.allocate(&AllocateInfo::new(4096)).unwrap();
        let fence = device.fill(&memory, 0, 4096, 7).unwrap();
        assert_eq!(fence.wait(None).unwrap_err().status(), Some(status));
        assert_eq!(
            fence.wait(None).unwrap_err().status(),
            Some(status),
            "the answer stays"
        );
    }
}

#[test]
fn refused_maps_and_maps_outside_the_window_are_errors() {
    let refuse_maps = Some(resp::ERR_OUT_OF_MEMORY);
    let (_fake, device) = start(Script {
        refuse_maps,
        ..Script::default()
    });
    let error = device
        .allocate(&AllocateInfo::new(4096).dedicated())
        .unwrap_err();
    assert_eq!(error.status(), Some(Status::WindowExhausted));
    let plain = device.create_plain_blob(4096).unwrap_err();
    assert_eq!(plain.status(), Some(Status::WindowExhausted));

    for map_at in [fake::WINDOW, fake::WINDOW - 4095, u64::MAX - 100] {
        let (_fake, device) = start(Script {
            map_at: Some(map_at),
            ..Script::default()
        });
        let error = device
            .allocate(&AllocateInfo::new(4096).dedicated())
            .unwrap_err();
        assert!(
            matches!(error, Error::Incompatible(_)),
            "{map_at:#x}: {error}"
        );
    }
}

#[test]
fn fences_that_come_in_another_order_find_their_askers() {
    let (_fake, device) = start(Script {
        reverse_fences: 3,
        ..Script::default()
    });
    let memory = device.allocate(&AllocateInfo::new(4096)).unwrap();
    let fences: Vec<_> = (0..3)
        .map(|value| device.fill(&memory, 0, 4096, value).unwrap())
        .collect();
    std::thread::scope(|scope| {
        for fence in &fences {
            scope.spawn(|| fence.wait(Some(Duration::from_secs(5))).unwrap());
        }
    });
    assert!(fences.iter().all(|fence| fence.is_signaled().unwrap()));
    let sync_file = fences[0].export_sync_file().unwrap_err();
    assert_eq!(sync_file.status(), Some(Status::Unsupported));
}

#[test]
fn thousands_of_commands_that_nobody_waits_for_do_not_stop_either_side() {
    let fake = Fake::start(Script::default());
    // The smallest ring: 126 slots.
    let options = OpenOptions {
        control_size: 4096,
        ..fake.options()
    };
    let device = Device::open(&options).unwrap();
    let memory = device.allocate(&AllocateInfo::new(1 << 20)).unwrap();
    let kept = device.fill(&memory, 0, 4, 0).unwrap();
    for value in 0..3000 {
        drop(device.fill(&memory, 0, 4096, value).unwrap());
    }
    kept.wait(None).unwrap();
    let blobs: Vec<_> = (0..500)
        .map(|_| device.create_plain_blob(4096).unwrap())
        .collect();
    drop(blobs);
    device.budget(0).unwrap();
}

#[test]
fn threads_share_a_device() {
    let (_fake, device) = start(Script {
        reverse_fences: 2,
        ..Script::default()
    });
    std::thread::scope(|scope| {
        for thread in 0..4_u8 {
            let device = &device;
            scope.spawn(move || {
                for round in 0..100 {
                    let size = 1 + u64::from(thread) * 1000 + round * 300;
                    let a = device.allocate(&AllocateInfo::new(size)).unwrap();
                    let b = device
                        .allocate(&AllocateInfo::new(size).dedicated())
                        .unwrap();
                    a.write(size - 1, &[thread]).unwrap();
                    let mut byte = [0];
                    a.read(size - 1, &mut byte).unwrap();
                    assert_eq!(byte, [thread]);
                    // Two fences: whatever the others do, the fake lets both go.
                    let fences = (
                        device.fill(&b, 0, 0x1000.min(size / 4 * 4).max(4), 0),
                        device.fill(&a, 0, 4, 0),
                    );
                    if let (Ok(first), Ok(second)) = fences {
                        first.wait(Some(Duration::from_secs(5))).ok();
                        drop(second);
                    }
                }
            });
        }
    });
    assert_eq!(device.statistics().suballocations, 0);
}

#[test]
fn blocks_shrink_where_little_is_left_and_the_caller_gets_what_there_is() {
    let (_fake, device) = start(Script {
        largest_create: 3 << 20,
        ..Script::default()
    });
    let memory = device.allocate(&AllocateInfo::new(1 << 20)).unwrap();
    assert!(memory.is_suballocated());
    assert_eq!(device.statistics().block_bytes, 2 << 20);
    let (_fake, device) = start(Script {
        largest_create: 64 << 10,
        ..Script::default()
    });
    let memory = device.allocate(&AllocateInfo::new(60_000)).unwrap();
    assert!(!memory.is_suballocated(), "a blob of its own");
    let error = device.allocate(&AllocateInfo::new(1 << 20)).unwrap_err();
    assert_eq!(error.status(), Some(Status::ContextQuotaExceeded));
}

#[test]
fn small_requests_share_blocks_and_cost_no_command() {
    let (_fake, device) = start(Script::default());
    let first = device.allocate(&AllocateInfo::new(100)).unwrap();
    let before = device.statistics();
    let many: Vec<_> = (1..1000)
        .map(|n| {
            device
                .allocate(&AllocateInfo::new(n).alignment(64 << (n % 7)))
                .unwrap()
        })
        .collect();
    for (n, memory) in (1..).zip(&many) {
        assert_eq!(memory.size(), n);
        assert_eq!(memory.client_id(), first.client_id());
        let alignment = 64 << (n % 7);
        assert_eq!(memory.offset() % alignment, 0);
        assert_eq!(memory.map().unwrap().addr().get() as u64 % alignment, 0);
        memory.write(n - 1, &[1]).unwrap();
        assert_eq!(
            memory.write(n, &[1]).unwrap_err().status(),
            Some(Status::OutOfRange)
        );
    }
    let after = device.statistics();
    assert_eq!(after.commands, before.commands);
    assert_eq!(
        (after.blocks, after.block_bytes, after.suballocations),
        (1, 16 << 20, 1000)
    );
    drop(many);
    drop(device);
    first.write(0, b"memory keeps the connection").unwrap();
}

#[test]
fn arguments_are_checked_here() {
    let (_fake, device) = start(Script::default());
    let refused = |info: AllocateInfo<'_>| device.allocate(&info).unwrap_err().status().unwrap();
    assert_eq!(refused(AllocateInfo::new(0)), Status::InvalidArgument);
    assert_eq!(
        refused(AllocateInfo::new(1).alignment(3)),
        Status::InvalidArgument
    );
    assert_eq!(
        refused(AllocateInfo::new(1).alignment(8192)),
        Status::InvalidArgument
    );
    assert_eq!(
        refused(AllocateInfo::new(1).memory_type(9)),
        Status::InvalidMemoryType
    );
    assert_eq!(
        refused(AllocateInfo::new(1).properties(0x100)),
        Status::InvalidMemoryType
    );
    assert_eq!(
        refused(AllocateInfo::new(u64::MAX)),
        Status::OutOfHostMemory
    );
    let wrong = AllocateInfo::new(1)
        .memory_type(1)
        .expected_cache(CacheMode::WriteCombined);
    assert_eq!(refused(wrong), Status::CacheModeMismatch);

    let memory = device.allocate(&AllocateInfo::new(4096)).unwrap();
    let status = |result: Result<_, Error>| result.map(drop).unwrap_err().status().unwrap();
    assert_eq!(
        status(device.fill(&memory, 1, 4, 0)),
        Status::InvalidArgument
    );
    assert_eq!(
        status(device.fill(&memory, 0, 0, 0)),
        Status::InvalidArgument
    );
    assert_eq!(status(device.fill(&memory, 4096, 4, 0)), Status::OutOfRange);
    assert_eq!(
        status(device.fill(&memory, u64::MAX - 3, 4, 0)),
        Status::OutOfRange
    );
    assert_eq!(
        status(device.copy(&memory, 0, &memory, 4, 8)),
        Status::InvalidArgument
    );
    assert_eq!(
        status(device.copy(&memory, 4090, &memory, 0, 8)),
        Status::OutOfRange
    );
    let fill = Transfer::Fill {
        memory: &memory,
        offset: 0,
        length: 4,
        value: 0,
    };
    for count in [0, MOST_TRANSFERS + 1] {
        let refused = device.transfer(&vec![fill; count]);
        assert_eq!(status(refused), Status::InvalidArgument, "{count}");
    }
    let before = device.statistics().commands;
    let most = device.transfer(&[fill; MOST_TRANSFERS]).unwrap();
    most.wait(None).unwrap();
    assert_eq!(device.statistics().commands, before + 1);
    let map = MapInfo {
        access: Access::empty(),
        ..MapInfo::default()
    };
    assert_eq!(
        memory.map_with(&map).unwrap_err().status(),
        Some(Status::InvalidArgument)
    );
    let (_other_fake, other) = start(Script::default());
    assert_eq!(
        status(other.fill(&memory, 0, 4, 0)),
        Status::InvalidArgument
    );

    let invisible = device
        .allocate(&AllocateInfo::new(4096).memory_type(0))
        .unwrap();
    assert_eq!(
        invisible.map().unwrap_err().status(),
        Some(Status::NotMappable)
    );
    let export = memory.export_dma_buf().unwrap_err();
    assert_eq!(export.status(), Some(Status::FlagsMismatch));
    let shareable = device
        .allocate(&AllocateInfo::new(4096).shareable())
        .unwrap();
    assert_eq!(
        shareable.export_dma_buf().unwrap_err().status(),
        Some(Status::Unsupported)
    );
}

#[test]
fn non_coherent_ranges_are_sent_in_whole_atoms() {
    let (_fake, device) = start(Script::default());
    let a = device
        .allocate(&AllocateInfo::new(100).memory_type(2))
        .unwrap();
    let b = device
        .allocate(&AllocateInfo::new(100).memory_type(2))
        .unwrap();
    assert_eq!(a.client_id(), b.client_id());
    assert_eq!(
        (a.offset() % 256, b.offset() % 256),
        (0, 0),
        "neighbours share no atom"
    );
    let before = device.statistics().commands;
    a.flush(10, 20).unwrap();
    a.invalidate(0, hostblob_guest::WHOLE_SIZE).unwrap();
    assert_eq!(device.statistics().commands, before + 2);
    assert_eq!(
        a.flush(90, 11).unwrap_err().status(),
        Some(Status::OutOfRange)
    );
    let coherent = device
        .allocate(&AllocateInfo::new(100).memory_type(1))
        .unwrap();
    coherent.flush(0, 100).unwrap();
    assert_eq!(
        device.statistics().commands,
        before + 3,
        "the new block's creation, no flush"
    );
}

#[test]
fn requests_that_a_host_lacks_are_unsupported_without_asking() {
    let mut script = Script::default();
    script.offer.requests &= !(request_bit::COPY | request_bit::QUERY_BUDGET);
    let (_fake, device) = start(script);
    let memory = device.allocate(&AllocateInfo::new(4096)).unwrap();
    let copy = device.copy(&memory, 0, &memory, 2048, 4).unwrap_err();
    assert_eq!(copy.status(), Some(Status::Unsupported));
    assert_eq!(
        device.budget(0).unwrap_err().status(),
        Some(Status::Unsupported)
    );
}

#[test]
fn without_blocks_every_request_has_its_blob() {
    let fake = Fake::start(Script::default());
    let pool = PoolOptions {
        dedicated_above: 0,
        ..PoolOptions::default()
    };
    let device = Device::open(&OpenOptions {
        pool,
        ..fake.options()
    })
    .unwrap();
    let memory = device.allocate(&AllocateInfo::new(1)).unwrap();
    assert!(!memory.is_suballocated());
    assert_eq!(memory.size(), 1);
}
