//! Buffers that host processes look at.

#![allow(clippy::unwrap_used, reason = "a test states what it expects")]

mod fake;

use std::time::{Duration, Instant};

use fake::{Fake, Script};
use hostblob_guest::protocol::request::request_bit;
use hostblob_guest::{
    ALL_BUFFERS, AllocateInfo, BufferInfo, BufferPool, Device, Error, MOST_WAITS, Memory,
    OpenOptions, PoolBuffer, Request, Status,
};

const XR24: u32 = 0x3432_5258;

fn start(script: &Script) -> (Fake, Device, Memory) {
    let fake = Fake::start(script.clone());
    let device = fake.open();
    let info = AllocateInfo::new(1 << 20).shareable();
    let memory = device.allocate(&info).unwrap();
    (fake, device, memory)
}

fn status<T: std::fmt::Debug>(result: Result<T, Error>) -> Status {
    result.unwrap_err().status().unwrap()
}

fn at(offset: u64) -> BufferInfo {
    BufferInfo {
        offset,
        width: 60,
        height: 100,
        stride: 256,
        fourcc: XR24,
        modifier: 0,
    }
}

#[test]
fn buffers_are_described_and_checked() {
    let script = Script::default();
    let (_fake, device, memory) = start(&script);
    memory.publish(&at(4096)).unwrap();
    memory.present(4096).unwrap();
    memory.withdraw(4096).unwrap();
    let asked = script.asked();
    let [
        (0, Request::Publish(said)),
        (0, Request::Present(_)),
        (0, Request::Withdraw(_)),
    ] = asked.last_chunk::<3>().unwrap()
    else {
        panic!("{asked:?}");
    };
    assert_eq!(
        (said.client_id, said.offset, said.width, said.height),
        (memory.client_id(), 4096, 60, 100)
    );
    assert_eq!((said.stride, said.fourcc, said.modifier), (256, XR24, 0));

    for wrong in [
        BufferInfo { width: 0, ..at(0) },
        BufferInfo { height: 0, ..at(0) },
        BufferInfo { stride: 0, ..at(0) },
    ] {
        assert_eq!(status(memory.publish(&wrong)), Status::InvalidArgument);
    }
    let size = 1 << 20;
    for outside in [size - 25_599, size, u64::MAX] {
        assert_eq!(status(memory.publish(&at(outside))), Status::OutOfRange);
    }
    let huge = BufferInfo {
        height: u32::MAX,
        stride: u32::MAX,
        ..at(0)
    };
    assert_eq!(status(memory.publish(&huge)), Status::OutOfRange);
    assert_eq!(status(memory.wait_released(size, None)), Status::OutOfRange);
    let piece = device.allocate(&AllocateInfo::new(1 << 20)).unwrap();
    assert_eq!(status(piece.publish(&at(0))), Status::NotShareable);
    assert_eq!(status(piece.present(0)), Status::NotShareable);
    assert_eq!(status(piece.withdraw(0)), Status::NotShareable);
    assert_eq!(status(piece.wait_released(0, None)), Status::NotShareable);
}

#[test]
fn a_wait_ends_with_the_release_or_the_time() {
    let script = Script::default();
    let (_fake, _device, memory) = start(&script);
    memory.publish(&at(0)).unwrap();
    memory.wait_released(0, None).unwrap();
    memory.present(0).unwrap();
    let ask = |offset| memory.wait_released(offset, Some(Duration::ZERO));
    assert_eq!(ask(0), Err(Error::Timeout));
    assert_eq!(ask(ALL_BUFFERS), Err(Error::Timeout));
    assert_eq!(ask(4096), Ok(()));
    let time = Duration::from_millis(30);
    let begin = Instant::now();
    assert_eq!(memory.wait_released(0, Some(time)), Err(Error::Timeout));
    assert!(begin.elapsed() >= time);

    // The fence ends with the host's clock, and is no unfinished one then.
    let fence = memory.released_fence(0, Some(time)).unwrap();
    assert!(!fence.is_signaled().unwrap());
    assert_eq!(fence.wait(None), Err(Error::Timeout));
    assert_eq!(fence.is_signaled(), Err(Error::Timeout));

    let fence = memory.released_fence(0, None).unwrap();
    std::thread::scope(|scope| {
        let all = scope.spawn(|| memory.wait_released(ALL_BUFFERS, None));
        std::thread::sleep(time);
        assert!(!all.is_finished());
        script.viewers.release(0);
        assert_eq!(all.join().unwrap(), Ok(()));
    });
    assert_eq!(fence.wait(Some(Duration::from_secs(5))), Ok(()));
}

#[test]
fn long_waits_hold_nobody_back() {
    let script = Script::default();
    let fake = Fake::start(script.clone());
    // The smallest answers ring, and less time than the waits last: neither may matter.
    let device = Device::open(&OpenOptions {
        control_size: 4096,
        timeout: Duration::from_millis(500),
        ..fake.options()
    })
    .unwrap();
    let info = AllocateInfo::new(1 << 20).shareable();
    let memory = device.allocate(&info).unwrap();
    memory.present(0).unwrap();
    memory.present(4096).unwrap();
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| memory.wait_released(0, Some(Duration::from_millis(700))));
        let other = scope.spawn(|| memory.wait_released(4096, None));
        drop(memory.released_fence(0, None).unwrap());
        // Several times around the ring.
        for value in 0..600 {
            let fill = device.fill(&memory, 0, 4, value).unwrap();
            fill.wait(None).unwrap();
            device.budget(0).unwrap();
        }
        assert!(!other.is_finished());
        assert_eq!(waiter.join().unwrap(), Err(Error::Timeout));
        assert!(!other.is_finished());
        script.viewers.release(4096);
        assert_eq!(other.join().unwrap(), Ok(()));
    });

    // A ring for each.
    let waits = |asked: Vec<(u8, Request)>| {
        let waits = asked
            .into_iter()
            .filter(|(_, request)| matches!(request, Request::WaitReleased(_)));
        waits.map(|(ring, _)| ring).collect::<Vec<_>>()
    };
    let mut rings = waits(script.asked());
    rings.sort_unstable();
    assert_eq!(rings, [2, 3, 4]);
    // One is still held by the fence that was dropped.
    let many: Vec<_> = (1..MOST_WAITS)
        .map(|_| memory.released_fence(0, None).unwrap())
        .collect();
    let one_more = memory.released_fence(0, None);
    assert_eq!(status(one_more), Status::TooManyObjects);
    assert_eq!(
        memory.wait_released(0, Some(Duration::ZERO)),
        Err(Error::Timeout),
        "asking takes none"
    );
    device.fill(&memory, 0, 4, 0).unwrap().wait(None).unwrap();
    script.viewers.release(0);
    for fence in &many {
        fence.wait(Some(Duration::from_secs(5))).unwrap();
    }
    memory.wait_released(0, None).unwrap();
}

#[test]
fn a_host_that_never_answers_a_wait_is_lost() {
    // Opening takes 5 commands, the allocation 3; the wait is the 9th.
    let script = Script {
        go_silent_after: Some(8),
        ..Script::default()
    };
    let fake = Fake::start(script);
    let device = Device::open(&OpenOptions {
        timeout: Duration::from_millis(100),
        ..fake.options()
    })
    .unwrap();
    let info = AllocateInfo::new(4096).shareable();
    let memory = device.allocate(&info).unwrap();
    let wait = memory.wait_released(0, Some(Duration::from_millis(50)));
    assert!(matches!(wait, Err(Error::DeviceLost(_))), "{wait:?}");
}

#[test]
fn a_pool_has_room_for_the_buffers_it_was_made_for() {
    let script = Script::default();
    let fake = Fake::start(script.clone());
    let device = fake.open();
    // 2025 pages each: no number that the allocator likes.
    let (width, height) = (1920, 1080);
    let frame = u64::from(width * height * 4);
    let pool = BufferPool::new(&device, 3 * frame).unwrap();
    let frames = || -> Vec<PoolBuffer> {
        let frame = |_| pool.allocate(width, height, 4, XR24).unwrap();
        (0..3).map(frame).collect()
    };
    let mut buffers = frames();
    assert_eq!(
        status(pool.allocate(width, height, 4, XR24)),
        Status::OutOfHostMemory
    );
    // Any of them can go and come back.
    for index in [1, 0, 2] {
        let offset = buffers.remove(index).offset();
        let again = pool.allocate(width, height, 4, XR24).unwrap();
        assert_eq!(again.offset(), offset);
        buffers.insert(index, again);
    }
    drop(buffers);
    let mut buffers = frames();
    buffers.sort_by_key(PoolBuffer::offset);
    for (a, b) in buffers.iter().zip(&buffers[1..]) {
        assert!(a.offset() + a.size() <= b.offset());
    }
    for buffer in &buffers {
        assert_eq!(buffer.offset() % 4096, 0);
        assert_eq!((buffer.stride(), buffer.size()), (width * 4, frame));
        assert_eq!(buffer.info().fourcc, XR24);
    }
    let small = BufferPool::new(&device, 1).unwrap();
    let tiny = small.allocate(3, 3, 3, 0).unwrap();
    assert_eq!((tiny.stride(), tiny.size()), (64, 192));
    assert_eq!(status(small.allocate(1, 1, 1, 0)), Status::OutOfHostMemory);
    for (width, height, bytes) in [(0, 1, 1), (1, 0, 1), (1, 1, 0), (u32::MAX, 1, 4)] {
        let wrong = small.allocate(width, height, bytes, 0);
        assert_eq!(status(wrong), Status::InvalidArgument);
    }
    assert_eq!(status(BufferPool::new(&device, 0)), Status::InvalidArgument);
    assert_eq!(
        status(BufferPool::new(&device, u64::MAX)),
        Status::OutOfHostMemory
    );
}

#[test]
fn a_pool_buffer_lives() {
    let script = Script::default();
    let fake = Fake::start(script.clone());
    let device = fake.open();
    let pool = BufferPool::new(&device, 1 << 20).unwrap();
    let first = pool.allocate(64, 64, 4, XR24).unwrap();
    let buffer = pool.allocate(64, 64, 4, XR24).unwrap();
    drop(pool);
    let end = buffer.size();
    buffer.write(end - 4, b"last").unwrap();
    assert_eq!(status(buffer.write(end - 3, b"last")), Status::OutOfRange);
    assert_eq!(status(buffer.read(u64::MAX, &mut [0])), Status::OutOfRange);
    let mut bytes = [0; 4];
    let memory = buffer.memory();
    memory.read(buffer.offset() + end - 4, &mut bytes).unwrap();
    assert_eq!(&bytes, b"last");
    let distance = buffer.map().unwrap().addr().get() - first.map().unwrap().addr().get();
    assert_eq!(distance as u64, buffer.offset() - first.offset());

    buffer.present().unwrap();
    let ask = Some(Duration::ZERO);
    assert_eq!(buffer.wait_released(ask), Err(Error::Timeout));
    assert_eq!(first.wait_released(ask), Ok(()));
    script.viewers.release(buffer.offset());
    buffer.wait_released(None).unwrap();
    assert_eq!(status(buffer.export_dma_buf()), Status::Unsupported);

    let offset = buffer.offset();
    drop(buffer);
    device.budget(0).unwrap();
    let asked = script.asked();
    assert!(
        asked
            .iter()
            .any(|(_, request)| matches!(request, Request::Withdraw(w) if w.offset == offset))
    );
}

#[test]
fn hosts_that_take_no_buffers_and_refusals() {
    let mut script = Script::default();
    script.offer.requests &= !(request_bit::PUBLISH | request_bit::WAIT_RELEASED);
    let (_fake, device, memory) = start(&script);
    assert_eq!(status(memory.publish(&at(0))), Status::Unsupported);
    assert_eq!(
        status(memory.wait_released(0, Some(Duration::ZERO))),
        Status::Unsupported
    );
    assert_eq!(status(memory.released_fence(0, None)), Status::Unsupported);
    assert_eq!(status(BufferPool::new(&device, 4096)), Status::Unsupported);

    let script = Script {
        refuse: Some((request_bit::PUBLISH, Status::TooManyObjects)),
        ..Script::default()
    };
    let fake = Fake::start(script);
    let device = fake.open();
    let pool = BufferPool::new(&device, 4096).unwrap();
    for _ in 0..2 {
        // The place is free again.
        let refused = pool.allocate(8, 8, 4, XR24);
        assert_eq!(status(refused), Status::TooManyObjects);
    }
    let script = Script {
        refuse: Some((request_bit::WAIT_RELEASED, Status::UnknownClientId)),
        ..Script::default()
    };
    let (_fake, _device, memory) = start(&script);
    let second = Some(Duration::from_secs(1));
    assert_eq!(
        status(memory.wait_released(0, second)),
        Status::UnknownClientId
    );
}
