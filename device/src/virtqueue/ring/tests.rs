use proptest::prelude::*;
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::mock::MockSplitQueue;
use vm_memory::GuestMemoryMmap;

use super::super::{CONTROL_QUEUE, MAX_COMMAND_BYTES, MAX_DESCRIPTORS};
use super::*;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
const MEMORY: usize = 16 << 20;
/// Where tests put buffers, clear of the rings at 0.
const BUFFERS: u64 = 0x10_000;

fn memory() -> GuestMemoryMmap {
    GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap()
}

fn descriptor(address: u64, length: u32, flags: u16, next: u16) -> RawDescriptor {
    RawDescriptor::from(Descriptor::new(address, length, flags, next))
}

/// A driver: a queue of 16 entries at address 0.
struct Driver<'m> {
    mem: &'m GuestMemoryMmap,
    mock: MockSplitQueue<'m, GuestMemoryMmap>,
    queue: Queue,
    ring: Ring,
    command: Vec<u8>,
    log: RateLimiter,
}

impl<'m> Driver<'m> {
    fn new(mem: &'m GuestMemoryMmap) -> Self {
        let mock = MockSplitQueue::new(mem, 16);
        let mut queue: Queue = mock.create_queue().unwrap();
        // The mock places the used ring where the available ring's event field ends.
        queue
            .try_set_used_ring_address(GuestAddress(0x800))
            .unwrap();
        let ring = Ring::new(CONTROL_QUEUE);
        Self {
            mem,
            mock,
            queue,
            ring,
            command: Vec::new(),
            log: RateLimiter::new(),
        }
    }

    fn store(&self, index: u16, descriptor: RawDescriptor) {
        self.mock.desc_table().store(index, descriptor).unwrap();
    }

    /// Makes a head available.
    fn offer(&self, head: u16) {
        let index = self.mock.avail().idx().load();
        self.mock
            .avail()
            .ring()
            .ref_at(usize::from(index % 16))
            .unwrap()
            .store(head);
        self.mock.avail().idx().store(index.wrapping_add(1));
    }

    /// A command of these bytes and room for a response, as descriptors `head` and `head + 1`.
    fn offer_command(&self, head: u16, bytes: &[u8], room: u32) -> u64 {
        let at = BUFFERS + u64::from(head) * 0x1000;
        self.mem.write_slice(bytes, GuestAddress(at)).unwrap();
        let length = u32::try_from(bytes.len()).unwrap();
        self.store(head, descriptor(at, length, NEXT, head + 1));
        self.store(head + 1, descriptor(at + 0x800, room, WRITE, 0));
        self.offer(head);
        at + 0x800
    }

    fn next(&mut self) -> Result<Next, Broken> {
        let (queue, log) = (&mut self.queue, &mut self.log);
        self.ring.next(queue, self.mem, &mut self.command, log)
    }

    fn finish(&mut self, head: u16, response: &[u8]) {
        let (queue, log) = (&mut self.queue, &mut self.log);
        self.ring.finish(queue, self.mem, head, response, log);
    }

    fn wants_interrupt(&mut self) -> bool {
        self.ring.wants_interrupt(&mut self.queue, self.mem)
    }

    fn u16_at(&self, address: u64) -> u16 {
        self.mem.read_obj(GuestAddress(address)).unwrap()
    }

    /// Entries of the used ring: (head, length).
    fn used(&self) -> Vec<(u32, u32)> {
        (0..self.u16_at(0x802))
            .map(|n| {
                let at = 0x804 + u64::from(n % 16) * 8;
                let [id, length]: [u32; 2] = self.mem.read_obj(GuestAddress(at)).unwrap();
                (id, length)
            })
            .collect()
    }

    fn avail_event(&self) -> u16 {
        self.u16_at(0x804 + 16 * 8)
    }

    fn set_used_event(&self, value: u16) {
        let at = self.queue.avail_ring() + 4 + 16 * 2;
        self.mem.write_obj(value, GuestAddress(at)).unwrap();
    }

    fn bytes(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.mem
            .read_slice(&mut bytes, GuestAddress(address))
            .unwrap();
        bytes
    }

    /// Asserts that the one chain offered is given back with nothing in it.
    fn assert_dropped(&mut self) {
        assert_eq!(self.next(), Ok(Next::Again));
        assert_eq!(self.used(), [(0, 0)]);
        assert_eq!(self.ring.held(), 0);
        assert_eq!(self.next(), Ok(Next::Empty));
    }
}

#[test]
fn a_command_goes_in_and_its_response_comes_out() {
    let mem = memory();
    let mut driver = Driver::new(&mem);
    let to = driver.offer_command(2, b"command", 32);
    mem.write_slice(&[0xee; 40], GuestAddress(to)).unwrap();
    assert_eq!(driver.next(), Ok(Next::Command(2)));
    assert_eq!(driver.command, b"command");
    assert_eq!(driver.next(), Ok(Next::Empty));
    driver.finish(2, b"response");
    assert_eq!(driver.used(), [(2, 8)]);
    assert_eq!(driver.bytes(to, 10), b"response\xee\xee");
}

#[test]
fn the_next_command_replaces_the_last_ones_bytes() {
    let mem = memory();
    let mut driver = Driver::new(&mem);
    driver.offer_command(0, b"a long command", 8);
    driver.offer_command(2, b"b", 8);
    assert_eq!(driver.next(), Ok(Next::Command(0)));
    assert_eq!(driver.next(), Ok(Next::Command(2)));
    assert_eq!(driver.command, b"b");
}

#[test]
fn bytes_are_gathered_from_and_scattered_to_several_descriptors() {
    let mem = memory();
    let mut driver = Driver::new(&mem);
    mem.write_slice(b"firstsecond", GuestAddress(BUFFERS))
        .unwrap();
    driver.store(0, descriptor(BUFFERS, 5, NEXT, 7));
    driver.store(7, descriptor(BUFFERS + 5, 6, NEXT, 3));
    driver.store(3, descriptor(BUFFERS + 0x100, 3, NEXT | WRITE, 9));
    driver.store(9, descriptor(BUFFERS + 0x200, 100, WRITE, 0));
    driver.offer(0);
    assert_eq!(driver.next(), Ok(Next::Command(0)));
    assert_eq!(driver.command, b"firstsecond");
    driver.finish(0, b"response");
    assert_eq!(driver.used(), [(0, 8)]);
    assert_eq!(driver.bytes(BUFFERS + 0x100, 4), b"res\0");
    assert_eq!(driver.bytes(BUFFERS + 0x200, 6), b"ponse\0");
}

#[test]
fn indirect_descriptors_are_followed() {
    let mem = memory();
    let mut driver = Driver::new(&mem);
    let table = BUFFERS + 0x4000;
    mem.write_slice(b"indirect", GuestAddress(BUFFERS)).unwrap();
    let entries = [
        descriptor(BUFFERS, 8, NEXT, 1),
        descriptor(BUFFERS + 0x100, 24, WRITE, 0),
    ];
    for (at, entry) in (table..).step_by(16).zip(entries) {
        mem.write_obj(entry, GuestAddress(at)).unwrap();
    }
    driver.store(0, descriptor(table, 32, INDIRECT, 0));
    driver.offer(0);
    assert_eq!(driver.next(), Ok(Next::Command(0)));
    assert_eq!(driver.command, b"indirect");
    driver.finish(0, &[7; 24]);
    assert_eq!(driver.used(), [(0, 24)]);
    assert_eq!(driver.bytes(BUFFERS + 0x100, 24), [7; 24]);
}

#[test]
fn completions_come_in_any_order_and_once() {
    let mem = memory();
    let mut driver = Driver::new(&mem);
    for head in [0, 2, 4] {
        driver.offer_command(head, &[1], 24);
        assert_eq!(driver.next(), Ok(Next::Command(head)));
    }
    assert_eq!(driver.ring.held(), 3);
    for head in [4, 0, 4, 9, 300, 2] {
        driver.finish(head, &[5; 24]);
    }
    assert_eq!(driver.used(), [(4, 24), (0, 24), (2, 24)]);
    assert_eq!(driver.ring.held(), 0);
}

#[test]
fn a_head_that_is_held_breaks_the_queue_when_it_comes_again() {
    let mem = memory();
    let mut driver = Driver::new(&mem);
    driver.offer_command(4, &[1], 24);
    assert_eq!(driver.next(), Ok(Next::Command(4)));
    driver.offer(4);
    assert_eq!(driver.next(), Err(Broken::HeldHead(4)));
    assert_eq!(driver.used(), []);
}

#[test]
fn a_head_may_come_again_once_it_was_given_back() {
    let mem = memory();
    let mut driver = Driver::new(&mem);
    for round in 1..=40 {
        driver.offer_command(4, &[1], 24);
        assert_eq!(driver.next(), Ok(Next::Command(4)));
        driver.finish(4, &[5; 24]);
        assert_eq!(driver.u16_at(0x802), round);
    }
}

#[test]
fn a_head_outside_the_table_breaks_the_queue() {
    for head in [16, 17, 255, 256, u16::MAX] {
        let mem = memory();
        let mut driver = Driver::new(&mem);
        driver.offer(head);
        assert_eq!(driver.next(), Err(Broken::Head(head)));
        assert_eq!(driver.used(), []);
    }
}

#[test]
fn an_index_that_jumps_or_goes_back_breaks_the_queue() {
    for index in [17, 100, 0xffff] {
        let mem = memory();
        let mut driver = Driver::new(&mem);
        driver.mock.avail().idx().store(index);
        assert_eq!(driver.next(), Err(Broken::AvailableIndex));
    }
}

#[test]
fn a_loop_is_dropped() {
    let mem = memory();
    let mut driver = Driver::new(&mem);
    driver.store(0, descriptor(BUFFERS, 4, NEXT, 1));
    driver.store(1, descriptor(BUFFERS, 4, NEXT, 0));
    driver.offer(0);
    driver.assert_dropped();
}

#[test]
fn malformed_single_descriptors_are_dropped() {
    let end = MEMORY as u64;
    let cases = [
        descriptor(BUFFERS, 0, 0, 0),
        descriptor(BUFFERS, 0, WRITE, 0),
        descriptor(BUFFERS, 4, NEXT, 16),
        descriptor(BUFFERS, u32::MAX, 0, 0),
        descriptor(BUFFERS, u32::MAX, WRITE, 0),
        descriptor(end - 4, 5, 0, 0),
        descriptor(end - 4, 5, WRITE, 0),
        descriptor(end, 1, 0, 0),
        descriptor(u64::MAX, 1, 0, 0),
        descriptor(u64::MAX - 3, 8, WRITE, 0),
        descriptor(BUFFERS, 0, INDIRECT, 0),
        descriptor(BUFFERS, 17, INDIRECT, 0),
        descriptor(BUFFERS, 0xffff_fff0, INDIRECT, 0),
        descriptor(u64::MAX - 8, 32, INDIRECT, 0),
        descriptor(end, 32, INDIRECT, 0),
    ];
    for case in cases {
        let mem = memory();
        let mut driver = Driver::new(&mem);
        driver.store(0, case);
        driver.offer(0);
        driver.assert_dropped();
    }
}

#[test]
fn nested_indirect_tables_are_dropped() {
    let mem = memory();
    let mut driver = Driver::new(&mem);
    let (outer, inner) = (BUFFERS, BUFFERS + 0x100);
    mem.write_obj(descriptor(inner, 16, INDIRECT, 0), GuestAddress(outer))
        .unwrap();
    mem.write_obj(descriptor(BUFFERS + 0x200, 4, 0, 0), GuestAddress(inner))
        .unwrap();
    driver.store(0, descriptor(outer, 16, INDIRECT, 0));
    driver.offer(0);
    driver.assert_dropped();
}

#[test]
fn readable_after_writable_is_dropped() {
    let mem = memory();
    let mut driver = Driver::new(&mem);
    driver.store(0, descriptor(BUFFERS, 4, NEXT | WRITE, 1));
    driver.store(1, descriptor(BUFFERS, 4, 0, 0));
    driver.offer(0);
    driver.assert_dropped();
}

#[test]
fn lengths_that_add_up_past_4_gib_are_dropped() {
    let mem = memory();
    let mut driver = Driver::new(&mem);
    let large = u32::try_from(MEMORY).unwrap() - 0x10_000;
    let table = 0x1000;
    for n in 0..300_u16 {
        let entry = descriptor(BUFFERS, large, NEXT | WRITE, n + 1);
        mem.write_obj(entry, GuestAddress(table + u64::from(n) * 16))
            .unwrap();
    }
    driver.store(0, descriptor(table, 300 * 16, INDIRECT, 0));
    driver.offer(0);
    driver.assert_dropped();
}

#[test]
fn the_longest_command_passes_and_one_byte_more_does_not() {
    for (extra, next) in [(0, Next::Command(0)), (1, Next::Again)] {
        let mem = memory();
        let mut driver = Driver::new(&mem);
        let length = u32::try_from(MAX_COMMAND_BYTES).unwrap() + extra;
        driver.store(0, descriptor(BUFFERS, length, 0, 0));
        driver.offer(0);
        assert_eq!(driver.next(), Ok(next));
        assert!(driver.command.capacity() <= MAX_COMMAND_BYTES);
    }
}

#[test]
fn the_longest_chain_passes_and_one_descriptor_more_does_not() {
    for (count, next) in [
        (MAX_DESCRIPTORS, Next::Command(0)),
        (MAX_DESCRIPTORS + 1, Next::Again),
    ] {
        let mem = memory();
        let mut driver = Driver::new(&mem);
        let count = u16::try_from(count).unwrap();
        for n in 0..count {
            let flags = if n + 1 == count { 0 } else { NEXT };
            let entry = descriptor(0x8000, 1, flags, n + 1);
            mem.write_obj(entry, GuestAddress(BUFFERS + u64::from(n) * 16))
                .unwrap();
        }
        driver.store(0, descriptor(BUFFERS, u32::from(count) * 16, INDIRECT, 0));
        driver.offer(0);
        assert_eq!(driver.next(), Ok(next));
    }
}

#[test]
fn a_response_without_room_is_not_written_at_all() {
    let mem = memory();
    let mut driver = Driver::new(&mem);
    let to = driver.offer_command(0, &[1], 23);
    assert_eq!(driver.next(), Ok(Next::Command(0)));
    driver.finish(0, &[5; 24]);
    assert_eq!(driver.used(), [(0, 0)]);
    assert_eq!(driver.bytes(to, 24), [0; 24]);
}

#[test]
fn a_response_into_the_command_and_the_rings_goes_there_and_nowhere_else() {
    let mem = memory();
    let mut driver = Driver::new(&mem);
    driver.store(0, descriptor(BUFFERS, 4, NEXT, 1));
    driver.store(1, descriptor(BUFFERS, 4, NEXT | WRITE, 2));
    driver.store(2, descriptor(0x100, 4, WRITE, 0));
    driver.offer(0);
    assert_eq!(driver.next(), Ok(Next::Command(0)));
    driver.finish(0, &[9; 8]);
    assert_eq!(driver.used(), [(0, 8)]);
    assert_eq!(driver.bytes(BUFFERS, 5), [9, 9, 9, 9, 0]);
}

#[test]
fn memory_that_went_away_before_the_response_costs_the_response() {
    let mem = memory();
    let mut driver = Driver::new(&mem);
    driver.offer_command(0, &[1], 24);
    assert_eq!(driver.next(), Ok(Next::Command(0)));
    let less = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x8000)]).unwrap();
    let (queue, log) = (&mut driver.queue, &mut driver.log);
    driver.ring.finish(queue, &less, 0, &[5; 24], log);
    assert_eq!(
        less.read_obj::<[u32; 2]>(GuestAddress(0x804)).unwrap(),
        [0, 0]
    );
    assert_eq!(less.read_obj::<u16>(GuestAddress(0x802)).unwrap(), 1);
    assert_eq!(driver.ring.held(), 0);
}

#[test]
fn rings_that_are_not_in_memory_stop_the_queue_until_they_are_back() {
    let mem = memory();
    let mut driver = Driver::new(&mem);
    driver.offer_command(0, b"back", 24);
    let elsewhere = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(BUFFERS), 0x1000)]).unwrap();
    for memory in [&elsewhere, &GuestMemoryMmap::default()] {
        let next = driver.ring.next(
            &mut driver.queue,
            memory,
            &mut driver.command,
            &mut driver.log,
        );
        assert_eq!(next, Ok(Next::Unreachable));
        let (queue, log) = (&mut driver.queue, &mut driver.log);
        driver.ring.finish(queue, memory, 0, &[], log);
    }
    assert_eq!(driver.next(), Ok(Next::Command(0)));
    assert_eq!(driver.command, b"back");
}

#[test]
fn a_queue_at_the_end_of_the_address_space_is_unreachable() {
    let mem = memory();
    let mut driver = Driver::new(&mem);
    driver
        .queue
        .try_set_avail_ring_address(GuestAddress(u64::MAX - 1))
        .unwrap();
    assert_eq!(driver.next(), Ok(Next::Unreachable));
}

#[test]
fn without_event_idx_the_driver_is_asked_to_be_quiet_while_there_is_work() {
    let mem = memory();
    let mut driver = Driver::new(&mem);
    driver.offer_command(0, &[1], 24);
    assert_eq!(driver.next(), Ok(Next::Command(0)));
    assert_eq!(driver.u16_at(0x800), 1, "VIRTQ_USED_F_NO_NOTIFY");
    assert_eq!(driver.next(), Ok(Next::Empty));
    assert_eq!(driver.u16_at(0x800), 0);
    driver.offer_command(2, &[1], 24);
    assert_eq!(driver.next(), Ok(Next::Command(2)));
    assert_eq!(driver.u16_at(0x800), 1);
}

#[test]
fn without_event_idx_the_drivers_flag_decides_about_interrupts() {
    let mem = memory();
    let mut driver = Driver::new(&mem);
    for (head, flag) in [(0, 0_u16), (2, AVAIL_F_NO_INTERRUPT)] {
        mem.write_obj(flag, GuestAddress(driver.queue.avail_ring()))
            .unwrap();
        assert!(!driver.wants_interrupt());
        driver.offer_command(head, &[1], 24);
        assert_eq!(driver.next(), Ok(Next::Command(head)));
        assert!(!driver.wants_interrupt(), "nothing was given back yet");
        driver.finish(head, &[5; 24]);
        assert_eq!(driver.wants_interrupt(), flag == 0);
        assert!(!driver.wants_interrupt());
    }
}

#[test]
fn with_event_idx_avail_event_follows_the_queue() {
    let mem = memory();
    let mut driver = Driver::new(&mem);
    driver.queue.set_event_idx(true);
    assert_eq!(driver.next(), Ok(Next::Empty));
    assert_eq!(driver.avail_event(), 0);
    for (round, head) in [(1, 0), (2, 2), (3, 4)] {
        driver.offer_command(head, &[1], 24);
        assert_eq!(driver.next(), Ok(Next::Command(head)));
        assert_eq!(driver.next(), Ok(Next::Empty));
        assert_eq!(
            driver.avail_event(),
            round,
            "the next entry is one to notify about"
        );
    }
}

#[test]
fn with_event_idx_an_interrupt_comes_when_used_event_is_passed() {
    let mem = memory();
    let mut driver = Driver::new(&mem);
    driver.queue.set_event_idx(true);
    // The driver wants to hear of the third completion.
    driver.set_used_event(2);
    let mut wanted = Vec::new();
    for head in [0, 2, 4, 6] {
        driver.offer_command(head, &[1], 24);
        assert_eq!(driver.next(), Ok(Next::Command(head)));
        driver.finish(head, &[5; 24]);
        wanted.push(driver.wants_interrupt());
    }
    assert_eq!(wanted, [false, false, true, false]);
    // Passed within one batch.
    driver.set_used_event(4);
    for head in [8, 10] {
        driver.offer_command(head, &[1], 24);
        assert_eq!(driver.next(), Ok(Next::Command(head)));
        driver.finish(head, &[5; 24]);
    }
    assert!(driver.wants_interrupt());
}

#[test]
fn indices_wrap() {
    let mem = memory();
    let mut driver = Driver::new(&mem);
    driver.queue.set_event_idx(true);
    for round in 0..=u16::MAX {
        driver.set_used_event(round);
        driver.offer_command(2, &round.to_le_bytes(), 24);
        assert_eq!(driver.next(), Ok(Next::Command(2)));
        driver.finish(2, &[5; 24]);
        assert!(driver.wants_interrupt(), "round {round}");
    }
    assert_eq!(driver.u16_at(0x802), 0);
}

proptest! {
    /// Whatever is in the rings and the descriptors: no panic, nothing written outside what a chain names, each chain given back
    /// at most once.
    #[test]
    fn any_rings_are_survived(
        table in proptest::collection::vec((0_u64..0x9000, 0_u32..0x3000, 0_u16..8, 0_u16..20), 16),
        heads in proptest::collection::vec(0_u16..18, 16),
        index in 0_u16..20,
        event_idx: bool,
    ) {
        let mem = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x8000)]).unwrap();
        let mut driver = Driver::new(&mem);
        driver.queue.set_event_idx(event_idx);
        for (n, (address, length, flags, next)) in table.into_iter().enumerate() {
            let n = u16::try_from(n).unwrap();
            driver.store(n, descriptor(address + 0x1000, length, flags, next));
        }
        for head in heads {
            driver.offer(head);
        }
        driver.mock.avail().idx().store(index);
        let mut taken = Vec::new();
        for _ in 0..64 {
            match driver.next() {
                Ok(Next::Command(head)) => {
                    prop_assert!(!taken.contains(&head));
                    taken.push(head);
                }
                Ok(Next::Again) => {}
                Ok(Next::Empty | Next::Unreachable) | Err(_) => break,
            }
        }
        prop_assert_eq!(driver.ring.held(), taken.len());
        for head in taken {
            driver.finish(head, &[5; 24]);
        }
        prop_assert_eq!(driver.ring.held(), 0);
        prop_assert!(driver.u16_at(0x802) <= index);
    }
}
