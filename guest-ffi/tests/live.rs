//! Against a real device: `HOSTBLOB_SOCKET=... cargo test -p hostblob-guest --test live -- --ignored`, or in a guest.
//!
//! The end-to-end package starts the daemon and covers far more; these are the library's own few promises.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test states what it expects"
)]

use std::os::fd::AsFd;

use hostblob_guest::protocol::request::request_bit;
use hostblob_guest::{
    Access, AllocateInfo, CacheMode, CreateFlags, Device, MapInfo, Memory, OpenOptions,
    PoolOptions, Status, TransportKind, WHOLE_SIZE,
};
use rustix::event::{PollFd, PollFlags};

fn open() -> Device {
    Device::open(&OpenOptions::default()).unwrap()
}

fn bytes(memory: &Memory) -> Vec<u8> {
    let mut bytes = vec![0xa5; usize::try_from(memory.size()).unwrap()];
    memory.read(0, &mut bytes).unwrap();
    bytes
}

#[test]
#[ignore = "needs a device"]
fn memory_of_every_kind_is_filled_copied_and_read() {
    let device = open();
    let infos = [
        AllocateInfo::new(4096),
        AllocateInfo::new(4096).dedicated().name("dedicated"),
        AllocateInfo::new(4096).deferred(),
        AllocateInfo::new(1 << 20),
        AllocateInfo::new(64 << 20),
    ];
    for from in &infos {
        for to in infos.iter().filter(|to| to.size >= from.size) {
            let source = device.allocate(from).unwrap();
            let destination = device.allocate(to).unwrap();
            source.map().unwrap();
            destination.map().unwrap();
            device
                .fill(&source, 0, WHOLE_SIZE, 0x0102_0304)
                .unwrap()
                .wait(None)
                .unwrap();
            source.write(8, b"by the guest").unwrap();
            device
                .copy(&source, 0, &destination, 0, from.size)
                .unwrap()
                .wait(None)
                .unwrap();
            let (source, destination) = (bytes(&source), bytes(&destination));
            assert_eq!(&source[..8], &[4, 3, 2, 1, 4, 3, 2, 1]);
            assert!(source == destination[..source.len()], "{from:?} to {to:?}");
        }
    }
}

#[test]
#[ignore = "needs a device"]
fn deferred_memory_keeps_its_contents_while_unmapped() {
    let device = open();
    let memory = device
        .allocate(&AllocateInfo::new(64 << 10).deferred())
        .unwrap();
    assert!(
        bytes(&memory).iter().all(|&byte| byte == 0),
        "fresh memory is zeros"
    );
    memory.write(0, b"first").unwrap();
    memory.unmap();
    let others: Vec<_> = (0..8)
        .map(|_| {
            device
                .allocate(&AllocateInfo::new(64 << 10).dedicated())
                .unwrap()
        })
        .collect();
    assert!(
        others
            .iter()
            .all(|other| bytes(other).iter().all(|&byte| byte == 0))
    );
    assert_eq!(&bytes(&memory)[..5], b"first");
    memory.unmap();
    memory.unmap();
    memory.write(5, b" and second").unwrap();
    assert_eq!(&bytes(&memory)[..16], b"first and second");
}

#[test]
#[ignore = "needs a device"]
fn the_host_refuses_what_the_guest_did_not_expect() {
    let device = open();
    let Some(index) = device.capabilities().find_type(0xe) else {
        return;
    };
    let info = AllocateInfo::new(4096).memory_type(index).dedicated();
    let error = device
        .allocate(&info.expected_cache(CacheMode::WriteCombined))
        .unwrap_err();
    assert_eq!(error.status(), Some(Status::CacheModeMismatch));
    let memory = device
        .allocate(&info.expected_cache(CacheMode::Cached))
        .unwrap();
    let wrong = MapInfo {
        expected_cache: CacheMode::Uncached,
        access: Access::READ,
    };
    assert_eq!(
        memory.map_with(&wrong).unwrap_err().status(),
        Some(Status::CacheModeMismatch)
    );
    let right = MapInfo {
        expected_cache: CacheMode::Cached,
        access: Access::READ,
    };
    memory.map_with(&right).unwrap();
    let most = device.capabilities().limits.max_blob_size;
    let error = device
        .allocate(&AllocateInfo::new(most + (1 << 40)))
        .unwrap_err();
    assert!(error.status().is_some(), "{error}");
    if device.transport() == TransportKind::Socket {
        let shareable = device.allocate(&info.shareable());
        if let Ok(memory) = shareable {
            assert_eq!(
                memory.export_dma_buf().unwrap_err().status(),
                Some(Status::Unsupported)
            );
        }
    }
}

#[test]
#[ignore = "needs a device"]
fn budget_falls_and_rises() {
    let device = open();
    if device.agreed().requests & request_bit::QUERY_BUDGET == 0 {
        return;
    }
    let before = device.budget(0).unwrap();
    let memory = device.allocate(&AllocateInfo::new(32 << 20)).unwrap();
    let during = device.budget(0).unwrap();
    assert_eq!(during.usage, before.usage + (32 << 20));
    drop(memory);
    // Linux destroys a blob some time after its handle is closed.
    let given_back = (0..1000).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(1));
        device.budget(0).unwrap().usage == before.usage
    });
    assert!(given_back, "{:?} before {before:?}", device.budget(0));
}

#[test]
#[ignore = "needs a device"]
fn another_process_maps_what_was_exported() {
    let (device, other) = (open(), open());
    let shareable = device
        .agreed()
        .create_flags
        .contains(CreateFlags::SHAREABLE);
    if device.transport() == TransportKind::Socket || !shareable {
        return;
    }
    let memory = device
        .allocate(&AllocateInfo::new(1 << 20).shareable())
        .unwrap();
    memory.write(5000, b"across processes").unwrap();
    let fd = memory.export_dma_buf().unwrap();
    let imported = other.import_dma_buf(fd.as_fd()).unwrap();
    assert_eq!((imported.size(), imported.client_id()), (1 << 20, 0));
    assert_eq!(&bytes(&imported)[5000..5016], b"across processes");
    imported.write(0, b"and back").unwrap();
    assert_eq!(&bytes(&memory)[..8], b"and back");
    // The same file gives the same handle, owned twice.
    let again = device.import_dma_buf(fd.as_fd()).unwrap();
    drop(memory);
    assert_eq!(&bytes(&again)[..8], b"and back");
    let fill = other.fill(&imported, 0, 4, 0).unwrap_err();
    assert_eq!(fill.status(), Some(Status::Unsupported));
}

#[test]
#[ignore = "needs a device"]
fn a_fence_becomes_a_sync_file() {
    let device = open();
    let memory = device.allocate(&AllocateInfo::new(4096)).unwrap();
    let fence = device.fill(&memory, 0, 4096, 1).unwrap();
    match (fence.export_sync_file(), device.transport()) {
        (Ok(fd), TransportKind::Drm) => {
            let mut fds = [PollFd::new(&fd, PollFlags::IN)];
            assert_eq!(rustix::event::poll(&mut fds, None), Ok(1));
            assert!(fence.is_signaled().unwrap());
        }
        (Err(error), TransportKind::Socket) => {
            assert_eq!(error.status(), Some(Status::Unsupported));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
#[ignore = "needs a device"]
fn plain_blobs_come_and_go() {
    let device = open();
    for round in 0..100_u8 {
        let blob = device.create_plain_blob(8192).unwrap();
        let mut page = [1; 8192];
        blob.read(0, &mut page).unwrap();
        assert!(page.iter().all(|&byte| byte == 0), "round {round}");
        blob.write(0, &[round; 8192]).unwrap();
    }
}

#[test]
#[ignore = "needs a device"]
fn threads_allocate_write_and_free_at_once() {
    let options = OpenOptions {
        pool: PoolOptions {
            shards: 4,
            ..PoolOptions::default()
        },
        ..OpenOptions::default()
    };
    let device = Device::open(&options).unwrap();
    std::thread::scope(|scope| {
        for thread in 1..=4_u8 {
            let device = &device;
            scope.spawn(move || {
                let mut live = Vec::new();
                for round in 0..2000_u64 {
                    let size = 64 + (round * 7919) % 30_000;
                    let memory = device.allocate(&AllocateInfo::new(size)).unwrap();
                    memory
                        .write(0, &vec![thread; usize::try_from(size).unwrap()])
                        .unwrap();
                    live.push(memory);
                    if live.len() > 100 {
                        let memory = live.swap_remove(usize::try_from(round % 100).unwrap());
                        assert!(bytes(&memory).iter().all(|&byte| byte == thread));
                    }
                }
            });
        }
    });
    assert_eq!(device.statistics().suballocations, 0);
    assert!(device.statistics().commands < 40);
}
