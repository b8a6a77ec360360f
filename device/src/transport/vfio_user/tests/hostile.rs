//! A driver that does its worst, with the real device behind a real virtqueue.

use std::os::fd::OwnedFd;

use hostblob_allocator::Host;
use hostblob_allocator::provider::fake::FakeProvider;
use hostblob_protocol::virtio_gpu::{CtrlHdr, cmd, resp};
use zerocopy::IntoBytes;

use super::*;
use crate::gpu::tests::extremes::{Case, cases, length_of, setup};
use crate::gpu::tests::{CAPSET_ID, host};
use crate::gpu::{BlobMem, Gpu};
use crate::virtqueue::{F_INDIRECT_DESC, MAX_DESCRIPTORS};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// Where a command is, where its response goes, and where a table of descriptors is.
const COMMAND: u64 = RAM + 0x2_0000;
const RESPONSE: u64 = RAM + 0x6_0000;
const TABLE: u64 = RAM + 0x8_0000;
const ROOM: u32 = 0x4000;
const END: u64 = RAM + RAM_SIZE as u64;

/// Address, length, flags, next.
type Descriptor = (u64, u32, u16, u16);

fn words((address, length, flags, next): Descriptor) -> [u64; 2] {
    let rest = u64::from(length) | u64::from(flags) << 32 | u64::from(next) << 48;
    [address, rest]
}

/// The daemon's side, with real devices.
pub(super) struct Machine {
    pub(super) path: PathBuf,
    pub(super) host: Arc<Host>,
    pub(super) fake: Arc<FakeProvider>,
    shutdown: Shutdown,
    thread: Option<JoinHandle<()>>,
    capset: usize,
}

impl Machine {
    pub(super) fn start(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("hostblob-{name}-{}", std::process::id()));
        let listener = listen(&path).unwrap();
        let shutdown = Shutdown::new().unwrap();
        let (host, fake) = host();
        let of = Arc::clone(&host);
        let new_gpu = move |waker| Gpu::new(&of, CAPSET_ID, BlobMem::all(), waker);
        let capset = new_gpu(Arc::new(|| {})).unwrap();
        let capset = capset.guest().capset().encode().len();
        let ended = shutdown.clone();
        let serve = move || serve(&listener, new_gpu, &ended).unwrap();
        Self {
            path,
            host,
            fake,
            shutdown,
            thread: Some(std::thread::spawn(serve)),
            capset,
        }
    }

    /// A driver of a new device, in the state of the table.
    fn connect(&self) -> Hostile {
        let (_, control) = FakeDevice::new(Arc::new(|| {}));
        let mut driver = Driver::new(Client::new(&self.path).unwrap(), control);
        driver.map_memory();
        driver.enable_interrupts();
        driver.negotiate(super::super::fake::FEATURES | F_VERSION_1 | F_INDIRECT_DESC);
        let mut hostile = Hostile {
            driver,
            capset: self.capset,
        };
        for case in setup() {
            hostile.step(&case);
        }
        hostile
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.shutdown.request();
        self.thread.take().unwrap().join().unwrap();
        std::fs::remove_file(&self.path).unwrap();
    }
}

struct Hostile {
    driver: Driver,
    capset: usize,
}

impl Hostile {
    /// Makes a chain available and returns what the used ring says of it: the length.
    fn chain(&mut self, descriptors: &[Descriptor]) -> u32 {
        let ring = Driver::ring(0);
        for (index, descriptor) in (0..).zip(descriptors) {
            let at = GuestAddress(ring + index * 16);
            self.driver.ram.write_obj(words(*descriptor), at).unwrap();
        }
        let ram = &self.driver.ram;
        let available = &mut self.driver.available[0];
        let slot = ring + 0x404 + u64::from(*available % SIZE) * 2;
        ram.write_obj(0_u16, GuestAddress(slot)).unwrap();
        *available = available.wrapping_add(1);
        ram.write_obj(*available, GuestAddress(ring + 0x402))
            .unwrap();
        self.driver.notify(0);
        self.used()
    }

    fn used(&mut self) -> u32 {
        let vector: &OwnedFd = &self.driver.vectors[1];
        let mut poll = [PollFd::new(vector, PollFlags::IN)];
        let patience = rustix::event::Timespec {
            tv_sec: 10,
            tv_nsec: 0,
        };
        assert_eq!(rustix::event::poll(&mut poll, Some(&patience)), Ok(1));
        rustix::io::read(vector, &mut [0; 8]).unwrap();
        let ring = Driver::ring(0) + 0x800;
        let ram = &self.driver.ram;
        let seen = &mut self.driver.seen[0];
        let index: u16 = ram.read_obj(GuestAddress(ring + 2)).unwrap();
        assert_eq!(index, seen.wrapping_add(1), "one answer for one command");
        let at = ring + 4 + u64::from(*seen % SIZE) * 8;
        *seen = index;
        let [head, length]: [u32; 2] = ram.read_obj(GuestAddress(at)).unwrap();
        assert_eq!(head, 0);
        length
    }

    fn put(&self, command: &[u8]) -> u32 {
        let ram = &self.driver.ram;
        ram.write_slice(command, GuestAddress(COMMAND)).unwrap();
        let mark = vec![0xee; ROOM as usize];
        ram.write_slice(&mark, GuestAddress(RESPONSE)).unwrap();
        u32::try_from(command.len()).unwrap()
    }

    /// The first bytes of the place for responses; the others are as they were.
    fn response(&self, length: u32) -> Vec<u8> {
        let mut bytes = vec![0; ROOM as usize];
        let ram = &self.driver.ram;
        ram.read_slice(&mut bytes, GuestAddress(RESPONSE)).unwrap();
        let rest = bytes.split_off(length as usize);
        assert!(rest.iter().all(|byte| *byte == 0xee), "past the response");
        bytes
    }

    fn step(&mut self, case: &Case) {
        let length = self.put(&case.command);
        let command = (COMMAND, length, NEXT, 1);
        let used = match length {
            // A chain has no empty descriptor.
            0 => return,
            _ => self.chain(&[command, (RESPONSE, ROOM, WRITE, 0)]),
        };
        let response = self.response(used);
        let expected = length_of(case.response, self.capset);
        assert_eq!(response.len(), expected, "{}", case.name);
        assert_eq!(response[..4], case.response.to_le_bytes(), "{}", case.name);
        assert_eq!(response[4..24], [0; 20], "{}: padding", case.name);
    }

    /// A good command is answered.
    fn works(&mut self) {
        let case = Case {
            name: "the next command".to_owned(),
            command: display_info(),
            response: resp::OK_DISPLAY_INFO,
        };
        self.step(&case);
    }
}

fn display_info() -> Vec<u8> {
    let header = CtrlHdr {
        cmd_type: cmd::GET_DISPLAY_INFO.into(),
        ..CtrlHdr::default()
    };
    header.as_bytes().to_vec()
}

#[test]
fn each_command_at_its_extremes_over_a_virtqueue() {
    let machine = Machine::start("extremes-queue");
    let mut hostile = machine.connect();
    for case in cases() {
        hostile.step(&case);
        if !case.is_refused() {
            drop(hostile);
            hostile = machine.connect();
        }
    }
}

#[test]
fn chains_that_make_no_sense_change_nothing() {
    let machine = Machine::start("chains");
    let mut hostile = machine.connect();
    // If it were executed, the blob would be gone.
    let unref: Vec<u8> = cases()
        .into_iter()
        .find(|case| case.name.starts_with("command 0x0102 as"))
        .unwrap()
        .command;
    let length = u32::try_from(unref.len()).unwrap();
    let command = (COMMAND, length, NEXT, 1);
    let room = (RESPONSE, ROOM, WRITE, 0);
    let outside = [
        RAM - 0x1000,
        RAM - 8,
        END - 8,
        END,
        0,
        1 << 63,
        u64::MAX - 4095,
        u64::MAX - 7,
    ];
    let mut chains: Vec<Vec<Descriptor>> = vec![
        // Loops, of one and of two.
        vec![(COMMAND, length, NEXT, 0)],
        vec![command, (RESPONSE, ROOM, WRITE | NEXT, 0)],
        // A next that is not there.
        vec![(COMMAND, length, NEXT, SIZE)],
        vec![(COMMAND, length, NEXT, u16::MAX)],
        // Empty, and longer than anything.
        vec![(COMMAND, 0, NEXT, 1), room],
        vec![(COMMAND, u32::MAX, NEXT, 1), room],
        vec![command, (RESPONSE, 0, WRITE, 0)],
        vec![command, (RESPONSE, u32::MAX, WRITE, 0)],
        // Readable after writable.
        vec![(RESPONSE, ROOM, WRITE | NEXT, 1), (COMMAND, length, 0, 0)],
        // Tables that are none: odd, empty, with a next, nested.
        vec![(TABLE, 24, INDIRECT, 0)],
        vec![(TABLE, 0, INDIRECT, 0)],
        vec![(TABLE, 32, INDIRECT | NEXT, 1), room],
        vec![(TABLE, 16, INDIRECT, 0)],
        vec![(END, 32, INDIRECT, 0)],
        // More descriptors than there may be, whatever is in them.
        vec![(
            TABLE,
            16 * u32::try_from(MAX_DESCRIPTORS + 1).unwrap(),
            INDIRECT,
            0,
        )],
        vec![(TABLE, 0x7_fff0, INDIRECT, 0)],
    ];
    for address in outside {
        chains.push(vec![(address, length, NEXT, 1), room]);
        chains.push(vec![command, (address, ROOM, WRITE, 0)]);
    }
    for chain in chains {
        hostile.put(&unref);
        // Thousands of descriptors of a byte, the first of which is a table again.
        let ram = &hostile.driver.ram;
        for index in 0..0x7fff_u16 {
            let flags = if index == 0 { NEXT | INDIRECT } else { NEXT };
            let tiny = (COMMAND, if index == 0 { 16 } else { 1 }, flags, index + 1);
            let at = GuestAddress(TABLE + u64::from(index) * 16);
            ram.write_obj(words(tiny), at).unwrap();
        }
        assert_eq!(hostile.chain(&chain), 0, "{chain:x?}");
        assert!(hostile.response(0).is_empty(), "{chain:x?}");
        hostile.works();
    }
    // Everything that was there is there still.
    for case in cases() {
        if case.is_refused() && case.name.contains("0x0208") {
            hostile.step(&case);
        }
    }
    let found = Case {
        name: "the blob".to_owned(),
        command: unref,
        response: resp::OK_NODATA,
    };
    hostile.step(&found);
}

/// As many descriptors as there may be, each of a byte; and answers that have no room.
#[test]
fn what_is_cut_into_bytes_is_one_command() {
    let machine = Machine::start("bytes");
    let mut hostile = machine.connect();
    let command = display_info();
    let response = length_of(resp::OK_DISPLAY_INFO, 0);
    let tiny = |of: &mut Vec<Descriptor>, base: u64, bytes: usize, flags: u16| {
        for index in 0..bytes {
            let next = u16::try_from(of.len() + 1).unwrap();
            of.push((base + index as u64, 1, flags | NEXT, next));
        }
    };
    for (room, expected) in [
        (MAX_DESCRIPTORS - command.len(), response),
        (response, response),
        // Not all of it, so nothing.
        (response - 1, 0),
        (23, 0),
        (1, 0),
        (0, 0),
    ] {
        let mut table = Vec::new();
        tiny(&mut table, COMMAND, command.len(), 0);
        tiny(&mut table, RESPONSE, room, WRITE);
        table.last_mut().unwrap().2 &= !NEXT;
        hostile.put(&command);
        for (index, descriptor) in (0..).zip(&table) {
            let at = GuestAddress(TABLE + index * 16);
            hostile
                .driver
                .ram
                .write_obj(words(*descriptor), at)
                .unwrap();
        }
        let length = u32::try_from(table.len() * 16).unwrap();
        let used = hostile.chain(&[(TABLE, length, INDIRECT, 0)]);
        assert_eq!(used as usize, expected, "room for {room}");
        hostile.response(used);
        hostile.works();
    }
}
