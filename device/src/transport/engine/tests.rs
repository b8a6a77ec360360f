use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::transport::lines::logged;
use crate::transport::vfio_user::fake::{Control, FakeDevice};
use crate::virtqueue::QUEUE_SIZE;

const SIZE: u16 = 8;
const AVAILABLE: u32 = 0x1000;
const USED: u32 = 0x2000;

#[test]
fn tags_come_back_as_they_were() {
    let tag = Tag {
        generation: 0xfedc_ba98,
        queue: 1,
        head: 255,
    };
    assert_eq!(Tag::unpack(tag.pack()), tag);
    assert_eq!(tag.pack(), 0xfedc_ba98_0001_00ff);
}

/// A queue in a memory of zeros: each of its descriptors is an empty chain.
fn queue() -> Queue {
    let mut queue = Queue::new(QUEUE_SIZE).unwrap();
    queue.set_size(SIZE);
    queue.set_desc_table_address(Some(0), Some(0));
    queue.set_avail_ring_address(Some(AVAILABLE), Some(0));
    queue.set_used_ring_address(Some(USED), Some(0));
    queue.set_ready(true);
    queue
}

/// A driver that polls.
struct Silent;

impl Signals for Silent {
    fn raise(&self, _: Source) {}
    fn reset(&self) {}
}

fn engine() -> (Engine<FakeDevice, Silent>, GuestMemoryMmap, Control) {
    let wake = Wake::new().unwrap();
    let (device, control) = FakeDevice::new(wake.waker());
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x4000)]).unwrap();
    let engine = Engine::new(device, wake, Silent);
    engine.set_memory(memory.clone());
    engine.set_bus_master(true);
    (engine, memory, control)
}

/// Lines that one queue may log: a burst, and two a second.
fn most_lines(start: Instant) -> usize {
    let seconds = usize::try_from(start.elapsed().as_secs()).unwrap();
    20 + 2 * (seconds + 1)
}

#[test]
fn a_guest_that_starts_its_queue_again_and_again_does_not_fill_the_log() {
    let (engine, memory, _) = engine();
    let (mut command, start) = (Vec::new(), Instant::now());
    let index = GuestAddress(u64::from(AVAILABLE) + 2);
    let starts: [(&str, &dyn Fn()); 2] = [
        ("a reset", &|| {
            engine.reset();
            engine.start([Some(queue()), None]);
        }),
        ("a VMM that stops and starts it", &|| {
            engine.stop_queue(0);
            engine.start_queue(0, queue());
        }),
    ];
    for (what, begin) in starts {
        let lines = logged(|| {
            for round in 0..200_u16 {
                memory.write_slice(&[0; 0x4000], GuestAddress(0)).unwrap();
                begin();
                memory.write_obj(4_u16, index).unwrap();
                engine.turn(&mut command, &mut LateWindow::premapped());
                let used: u16 = memory.read_obj(GuestAddress(u64::from(USED) + 2)).unwrap();
                assert_eq!(used, 4, "dropped, and given back: {what}, {round}");
                memory.write_obj(200_u16, index).unwrap();
                engine.turn(&mut command, &mut LateWindow::premapped());
                assert!(engine.needs_reset(), "{what}, {round}");
            }
        });
        assert!(lines.len() <= most_lines(start), "{what}: {}", lines.len());
    }
}

/// Of a guest without contexts that is a look at each of its blobs, 262,144 for each command.
#[test]
fn where_the_window_is_premapped_nobody_asks_whether_it_is_in_use() {
    let (engine, memory, control) = engine();
    engine.start([Some(queue()), None]);
    // A chain of a command and room for its response.
    memory
        .write_obj([0x3000_u64, 5 | 1 << 32 | 1 << 48], GuestAddress(0))
        .unwrap();
    memory
        .write_obj([0x3800_u64, 64 | 2 << 32], GuestAddress(16))
        .unwrap();
    memory.write_slice(b"hello", GuestAddress(0x3000)).unwrap();
    memory
        .write_obj(1_u16, GuestAddress(u64::from(AVAILABLE) + 2))
        .unwrap();
    engine.turn(&mut Vec::new(), &mut LateWindow::premapped());
    let mut response = [0; 5];
    memory
        .read_slice(&mut response, GuestAddress(0x3800))
        .unwrap();
    assert_eq!(&response, b"olleh");
    assert_eq!(control.state.lock().looks, 0);
}
