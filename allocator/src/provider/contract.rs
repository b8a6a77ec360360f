//! What every provider must do, as tests that each provider runs (`vulkan::tests`, and below for the others).

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;

use super::fake::{FakeProvider, Seen};
use super::mapping::sealed_memfd;
use super::system::SystemProvider;
use super::{
    AttachmentId, Completion, Elsewhere, ExportKind, FileId, Piece, Placement, Provider,
    ProviderError, Request, Session, property,
};

const LIMIT: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;
const WINDOW: FileId = FileId(0);

/// Exported memory, as a VMM has it.
pub(crate) struct Mapped(Place, usize);

enum Place {
    File(*mut std::ffi::c_void),
    Address(Arc<super::HostAddress>),
}

impl Mapped {
    pub(crate) fn new(elsewhere: &Elsewhere, length: u64) -> Self {
        let length = usize::try_from(length).unwrap();
        let place = match elsewhere {
            Elsewhere::Address(address) => {
                assert_eq!(address.base().addr().get() % rustix::param::page_size(), 0);
                Place::Address(Arc::clone(address))
            }
            Elsewhere::File(file) => {
                let access = rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::WRITE;
                let shared = rustix::mm::MapFlags::SHARED;
                let null = std::ptr::null_mut();
                // SAFETY: a new mapping at an address of the kernel's choice.
                let base = unsafe { rustix::mm::mmap(null, length, access, shared, file, 0) };
                Place::File(base.unwrap())
            }
        };
        Self(place, length)
    }

    fn base(&self) -> *mut u8 {
        match &self.0 {
            Place::File(base) => base.cast(),
            Place::Address(address) => address.base().as_ptr().cast(),
        }
    }

    pub(crate) fn read(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.1];
        // SAFETY: the mapping is that long, and nobody writes it: the tests await the GPU before.
        unsafe { std::ptr::copy_nonoverlapping(self.base(), bytes.as_mut_ptr(), self.1) };
        bytes
    }

    pub(crate) fn write(&self, bytes: &[u8]) {
        assert!(bytes.len() <= self.1);
        // SAFETY: inside the mapping, which nobody uses meanwhile.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.base(), bytes.len()) };
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        if let Place::File(base) = self.0 {
            // SAFETY: the whole of it, of which nobody has an address.
            unsafe { rustix::mm::munmap(base, self.1) }.unwrap();
        }
    }
}

/// A session with a window, driven one request at a time.
pub(crate) struct Guest {
    session: Box<dyn Session>,
    answers: Receiver<Completion>,
    window: OwnedFd,
    sequence: u64,
    next_attachment: u64,
    window_type: u32,
    device_type: u32,
    grain: u64,
}

fn memory_type(provider: &dyn Provider, placement: Placement) -> u32 {
    let types = &provider.description().memory_types;
    let found = types.iter().position(|kind| kind.placement == placement);
    // Whoever needs one that is not there is refused.
    found.map_or(u32::MAX, |index| u32::try_from(index).unwrap())
}

impl Guest {
    pub(crate) fn new(provider: &dyn Provider, window_size: u64) -> Self {
        let (sender, answers) = crossbeam_channel::unbounded();
        let session = provider.connect(Box::new(move |completion| {
            let _ = sender.send(completion);
        }));
        let window = sealed_memfd("contract-window", window_size).unwrap();
        let mut guest = Self {
            session,
            answers,
            sequence: 100,
            next_attachment: 0,
            window_type: memory_type(provider, Placement::Window),
            device_type: memory_type(provider, Placement::Device),
            grain: provider.description().attach_alignment,
            window,
        };
        let descriptor = guest.window.try_clone().unwrap();
        guest.ok(Request::AddFile {
            file: WINDOW,
            descriptor,
            length: window_size,
        });
        guest
    }

    pub(crate) fn submit(&mut self, request: Request) -> u64 {
        self.sequence += 1;
        self.session.submit(self.sequence, request);
        self.sequence
    }

    /// Answers that have arrived and were not taken.
    pub(crate) fn answered(&self) -> usize {
        self.answers.len()
    }

    pub(crate) fn next(&self) -> Completion {
        self.answers.recv_timeout(LIMIT).expect("an answer in time")
    }

    /// Submits and awaits the answer.
    pub(crate) fn call(&mut self, request: Request) -> Result<(), ProviderError> {
        let sequence = self.submit(request);
        let completion = self.next();
        assert_eq!(completion.sequence, sequence);
        completion.result.map(drop)
    }

    pub(crate) fn ok(&mut self, request: Request) {
        let text = format!("{request:?}");
        if let Err(error) = self.call(request) {
            panic!("{text}: {error}");
        }
    }

    #[track_caller]
    fn invalid(&mut self, request: Request) {
        let text = format!("{request:?}");
        match self.call(request) {
            Err(ProviderError::Invalid(_)) => {}
            other => panic!("{text}: {other:?}"),
        }
    }

    fn name(&mut self) -> AttachmentId {
        self.next_attachment += 1;
        AttachmentId(self.next_attachment)
    }

    pub(crate) fn attach_request(&mut self, offset: u64, length: u64) -> (AttachmentId, Request) {
        let attachment = self.name();
        let request = Request::Attach {
            attachment,
            file: WINDOW,
            offset,
            length,
            memory_type: self.window_type,
        };
        (attachment, request)
    }

    /// An attachment to a file of the test's.
    pub(crate) fn attach_to(&mut self, file: FileId, offset: u64, length: u64) -> AttachmentId {
        let attachment = self.name();
        self.ok(Request::Attach {
            attachment,
            file,
            offset,
            length,
            memory_type: self.window_type,
        });
        attachment
    }

    pub(crate) fn attach(&mut self, offset: u64, length: u64) -> AttachmentId {
        let (attachment, request) = self.attach_request(offset, length);
        self.ok(request);
        attachment
    }

    pub(crate) fn allocate_request(&mut self, length: u64) -> (AttachmentId, Request) {
        let attachment = self.name();
        let request = Request::Allocate {
            attachment,
            length,
            memory_type: self.device_type,
        };
        (attachment, request)
    }

    /// Memory of an exported type, and where it is.
    pub(crate) fn exported(&mut self, memory_type: u32, length: u64) -> (AttachmentId, Elsewhere) {
        let attachment = self.name();
        // In one burst: what is told last is there when all is done.
        self.submit(Request::Allocate {
            attachment,
            length,
            memory_type,
        });
        let last = self.submit(Request::Export { attachment });
        assert_eq!(self.next().result, Ok(None));
        let exported = self.next();
        assert_eq!(exported.sequence, last);
        (attachment, exported.result.unwrap().expect("its place"))
    }

    fn allocate(&mut self, length: u64) -> AttachmentId {
        let (attachment, request) = self.allocate_request(length);
        self.ok(request);
        attachment
    }

    pub(crate) fn read(&self, offset: u64, length: u64) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(length).unwrap()];
        let count = rustix::io::pread(&self.window, &mut bytes[..], offset).unwrap();
        assert_eq!(count, bytes.len());
        bytes
    }

    fn write(&self, offset: u64, bytes: &[u8]) {
        assert_eq!(
            rustix::io::pwrite(&self.window, bytes, offset),
            Ok(bytes.len())
        );
    }
}

fn fill(attachment: AttachmentId, offset: u64, length: u64, value: u32) -> Request {
    Request::Fill {
        attachment,
        offset,
        length,
        value,
    }
}

fn copy(from: (AttachmentId, u64), to: (AttachmentId, u64), length: u64) -> Request {
    Request::Copy {
        source: from.0,
        source_offset: from.1,
        destination: to.0,
        destination_offset: to.1,
        length,
    }
}

/// Runs the whole suite.
pub(crate) fn suite(provider: &dyn Provider) {
    description_makes_sense(provider);
    fill_then_copy_is_seen_by_the_cpu(provider);
    cpu_writes_are_copied_at_any_byte(provider);
    attachments_may_share_bytes(provider);
    a_burst_is_answered_in_order(provider);
    release_waits_for_the_work_before_it(provider);
    large_copy(provider);
    many_attachments(provider);
    nonsense_is_refused(provider);
    device_memory_reads_zero(provider);
    sessions_are_independent(provider);
    dropped_with_work_in_flight(provider);
    a_file_outlives_its_descriptor(provider);
    pieces_are_one_range(provider);
    exported_memory_is_the_gpus_and_the_cpus(provider);
    exports_of_nonsense_are_refused(provider);
}

fn description_makes_sense(provider: &dyn Provider) {
    let description = provider.description();
    assert!(description.attach_alignment.is_power_of_two());
    assert!(description.attach_alignment >= rustix::param::page_size() as u64);
    assert!(!description.device_name.is_empty());
    assert!(description.max_allocation_size >= 64 * MIB);
    for kind in &description.memory_types {
        assert!(usize::try_from(kind.heap).unwrap() < description.heaps.len());
        let visible = kind.property_flags & property::HOST_VISIBLE != 0;
        let coherent = kind.property_flags & property::HOST_COHERENT != 0;
        assert_eq!(visible, kind.placement != Placement::Device);
        assert_eq!(visible, coherent);
    }
    let placements = description.memory_types.iter().map(|kind| kind.placement);
    assert!(
        placements.is_sorted_by_key(|placement| placement == Placement::Exported),
        "exported types come last"
    );
}

fn fill_then_copy_is_seen_by_the_cpu(provider: &dyn Provider) {
    let mut guest = Guest::new(provider, MIB);
    let g = guest.grain;
    let (a, b) = (guest.attach(0, 4 * g), guest.attach(8 * g, 4 * g));
    // Three requests without waiting between them: each must see the one before.
    guest.submit(fill(a, 0, 4 * g, 0x0403_0201));
    guest.submit(copy((a, 0), (b, g), 2 * g));
    let last = guest.submit(fill(b, g, 4, 0xFFFF_FFFF));
    loop {
        let completion = guest.next();
        assert_eq!(completion.result, Ok(None));
        if completion.sequence == last {
            break;
        }
    }
    let zeros = vec![0; usize::try_from(g).unwrap()];
    let mut expected = zeros.clone();
    expected.extend([0xFF; 4]);
    expected.extend([1, 2, 3, 4].repeat(usize::try_from(2 * g).unwrap() / 4 - 1));
    expected.extend(&zeros);
    assert_eq!(guest.read(8 * g, 4 * g), expected);
    assert_eq!(guest.read(4 * g, g), zeros, "nothing beside the attachment");
}

fn cpu_writes_are_copied_at_any_byte(provider: &dyn Provider) {
    let mut guest = Guest::new(provider, MIB);
    let g = guest.grain;
    let (a, b) = (guest.attach(0, g), guest.attach(g, g));
    for round in 0..3_u8 {
        let bytes: Vec<u8> = (0..101).map(|i| i ^ round.wrapping_mul(77)).collect();
        guest.write(3, &bytes);
        guest.ok(copy((a, 3), (b, 5), 101));
        assert_eq!(guest.read(g + 5, 101), bytes);
    }
    assert_eq!(guest.read(g, 5), [0; 5]);
    assert_eq!(guest.read(g + 106, 3), [0; 3]);
    // Within one attachment, where the ranges do not overlap.
    guest.ok(copy((b, 5), (b, 205), 101));
    assert_eq!(guest.read(g + 205, 101), guest.read(g + 5, 101));
}

fn attachments_may_share_bytes(provider: &dyn Provider) {
    let mut guest = Guest::new(provider, MIB);
    let g = guest.grain;
    let (a, b, c) = (
        guest.attach(0, 2 * g),
        guest.attach(g, 2 * g),
        guest.attach(4 * g, g),
    );
    guest.submit(fill(a, g, g, 7));
    guest.submit(fill(b, 0, 4, 9));
    guest.submit(copy((a, g), (c, 0), g));
    for _ in 0..3 {
        assert_eq!(guest.next().result, Ok(None));
    }
    assert_eq!(guest.read(4 * g, 8), [9, 0, 0, 0, 7, 0, 0, 0]);
    guest.invalid(copy((a, g), (b, 8), 16));
    guest.ok(copy((a, g), (b, 16), 16));
}

fn a_burst_is_answered_in_order(provider: &dyn Provider) {
    let mut guest = Guest::new(provider, MIB);
    let g = guest.grain;
    let a = guest.attach(0, 4 * g);
    let mut expected = Vec::new();
    // Requests with and without GPU work, good and bad ones, in one stream.
    for i in 0..500_u32 {
        expected.push((guest.submit(fill(a, 0, 4 * g, i)), true));
        let (b, request) = guest.attach_request(8 * g, g);
        expected.push((guest.submit(request), true));
        expected.push((guest.submit(fill(a, 2, 4, 0)), false));
        expected.push((guest.submit(copy((a, 0), (b, 0), g)), true));
        expected.push((guest.submit(Request::Release { attachment: b }), true));
        expected.push((guest.submit(copy((a, 0), (b, 0), g)), false));
    }
    for (sequence, good) in expected {
        let completion = guest.next();
        assert_eq!(completion.sequence, sequence);
        assert_eq!(completion.result.is_ok(), good, "{completion:?}");
    }
    assert_eq!(guest.read(8 * g, 4), 499_u32.to_le_bytes());
    assert!(guest.answers.is_empty());
}

fn release_waits_for_the_work_before_it(provider: &dyn Provider) {
    const SIZE: u64 = 16 * MIB;
    let mut guest = Guest::new(provider, 2 * SIZE);
    for round in 1..6_u32 {
        let (a, b) = (guest.attach(0, SIZE), guest.attach(SIZE, SIZE));
        guest.submit(fill(a, 0, SIZE, round));
        guest.submit(copy((a, 0), (b, 0), SIZE));
        guest.submit(Request::Release { attachment: b });
        let last = guest.submit(Request::Release { attachment: a });
        while guest.next().sequence != last {}
        // The GPU is done with both: what is written now stays.
        let at_end = guest.read(2 * SIZE - 4, 4);
        assert_eq!(at_end, round.to_le_bytes());
        guest.write(2 * SIZE - 4, &[0xEE; 4]);
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!(guest.read(2 * SIZE - 4, 4), [0xEE; 4]);
    }
}

fn large_copy(provider: &dyn Provider) {
    const SIZE: u64 = 64 * MIB;
    let mut guest = Guest::new(provider, 2 * SIZE);
    let (a, b) = (guest.attach(0, SIZE), guest.attach(SIZE, SIZE));
    let pattern: Vec<u8> = (0..MIB).map(|i| (i * i).to_le_bytes()[1]).collect();
    for i in 0..64 {
        guest.write(i * MIB, &pattern);
    }
    guest.write(SIZE - 4, &[1, 2, 3, 4]);
    guest.ok(copy((a, 0), (b, 0), SIZE));
    for i in 0..63 {
        assert!(guest.read(SIZE + i * MIB, MIB) == pattern, "MiB {i}");
    }
    assert_eq!(guest.read(2 * SIZE - 4, 4), [1, 2, 3, 4]);
}

fn many_attachments(provider: &dyn Provider) {
    const MANY: u64 = 2000;
    let mut guest = Guest::new(provider, 64 * MIB);
    let g = guest.grain;
    let names: Vec<AttachmentId> = (0..MANY)
        .map(|i| {
            let (name, request) = guest.attach_request(i * g, g);
            guest.submit(request);
            name
        })
        .collect();
    for (i, name) in (0_u32..).zip(&names) {
        guest.submit(fill(*name, 0, 8, i));
    }
    for _ in 0..2 * MANY {
        assert_eq!(guest.next().result, Ok(None));
    }
    for i in (0..MANY).step_by(97) {
        let word = u32::try_from(i).unwrap().to_le_bytes();
        assert_eq!(guest.read(i * g, 4), word);
    }
    for attachment in names {
        guest.submit(Request::Release { attachment });
    }
    for _ in 0..MANY {
        assert_eq!(guest.next().result, Ok(None));
    }
}

fn nonsense_is_refused(provider: &dyn Provider) {
    const SIZE: u64 = 1 << 20;
    let mut guest = Guest::new(provider, SIZE);
    let g = guest.grain;
    let (a, b) = (guest.attach(0, 2 * g), guest.attach(2 * g, 2 * g));
    let unknown = AttachmentId(u64::MAX);
    let huge = u64::MAX - 3;
    for request in [
        fill(unknown, 0, 4, 0),
        fill(a, 0, 0, 0),
        fill(a, 1, 4, 0),
        fill(a, 0, 6, 0),
        fill(a, 2 * g, 4, 0),
        fill(a, 2 * g - 4, 8, 0),
        fill(a, huge, 8, 0),
        fill(a, 4, huge, 0),
        copy((unknown, 0), (a, 0), 4),
        copy((a, 0), (unknown, 0), 4),
        copy((a, 0), (b, 0), 0),
        copy((a, 1), (b, 0), 2 * g),
        copy((a, 0), (b, 1), 2 * g),
        copy((a, u64::MAX), (b, 0), 2),
        copy((a, 0), (b, u64::MAX), 2),
        copy((a, 0), (a, 0), 8),
        copy((a, 0), (a, 7), 8),
        copy((a, 7), (a, 0), 8),
        Request::Release {
            attachment: unknown,
        },
    ] {
        guest.invalid(request);
    }
    let types = (guest.window_type, guest.device_type);
    let attach = |offset, length, file, memory_type| Request::Attach {
        attachment: AttachmentId(77),
        file: FileId(file),
        offset,
        length,
        memory_type,
    };
    for request in [
        attach(0, 0, 0, types.0),
        attach(0, g, 1, types.0),
        attach(0, g, 0, types.1),
        attach(0, g, 0, u32::MAX),
        attach(1, g, 0, types.0),
        attach(0, g + 1, 0, types.0),
        attach(SIZE, g, 0, types.0),
        attach(SIZE - g, 2 * g, 0, types.0),
        attach(0, 1 << 63, 0, types.0),
        attach(u64::MAX - g + 1, g, 0, types.0),
        attach(g, u64::MAX - g + 1, 0, types.0),
    ] {
        guest.invalid(request);
    }
    for length in [0, 1 << 63, u64::MAX] {
        let request = Request::Allocate {
            attachment: AttachmentId(77),
            length,
            memory_type: types.1,
        };
        guest.invalid(request);
    }
    guest.invalid(Request::Allocate {
        attachment: AttachmentId(77),
        length: g,
        memory_type: types.0,
    });
    // A name that is taken, and a file that is.
    guest.invalid(Request::Attach {
        attachment: a,
        file: WINDOW,
        offset: 0,
        length: g,
        memory_type: types.0,
    });
    let descriptor = sealed_memfd("second", SIZE).unwrap();
    guest.invalid(Request::AddFile {
        file: WINDOW,
        descriptor,
        length: SIZE,
    });
    // After all of it the session works, and nothing was written.
    assert!(guest.read(0, SIZE).iter().all(|byte| *byte == 0));
    guest.ok(fill(a, 0, 4, 5));
    assert_eq!(guest.read(0, 4), [5, 0, 0, 0]);
}

fn device_memory_reads_zero(provider: &dyn Provider) {
    let mut guest = Guest::new(provider, 4 * MIB);
    let look = guest.attach(0, 4 * MIB);
    for length in [4, 4096, 65536, MIB, 4 * MIB, 30] {
        for round in 0..4 {
            // 0xA5 everywhere, then free; the next one of the size is likely the same memory.
            let old = guest.allocate(length);
            guest.ok(fill(look, 0, 4 * MIB, 0x1111_1111));
            guest.ok(copy((old, 0), (look, 0), length));
            let bytes = guest.read(0, length);
            assert!(
                bytes.iter().all(|b| *b == 0),
                "{length} bytes, round {round}"
            );
            guest.ok(fill(old, 0, length & !3, 0xA5A5_A5A5));
            guest.ok(copy((old, 0), (look, 0), length));
            assert_eq!(guest.read(0, 4), [0xA5; 4]);
            guest.ok(Request::Release { attachment: old });
        }
    }
    // In one burst, without a wait between allocating and reading.
    let (name, request) = guest.allocate_request(MIB);
    guest.submit(request);
    let last = guest.submit(copy((name, 0), (look, 0), MIB));
    while guest.next().sequence != last {}
    assert!(guest.read(0, MIB).iter().all(|byte| *byte == 0));
}

/// The index of the exported type, where there is one.
pub(crate) fn exported_type(provider: &dyn Provider) -> Option<u32> {
    Some(memory_type(provider, Placement::Exported)).filter(|index| *index != u32::MAX)
}

pub(crate) fn exported_memory_is_the_gpus_and_the_cpus(provider: &dyn Provider) {
    let Some(memory_type) = exported_type(provider) else {
        return;
    };
    let mut guest = Guest::new(provider, MIB);
    let g = guest.grain;
    let (look, seen) = guest.exported(memory_type, 2 * g);
    let look_at = Mapped::new(&seen, 2 * g);
    for round in 0..4_u8 {
        let (memory, elsewhere) = guest.exported(memory_type, 2 * g);
        let cpu = Mapped::new(&elsewhere, 2 * g);
        assert!(cpu.read().iter().all(|byte| *byte == 0), "round {round}");
        guest.ok(fill(memory, g, g, 0x0403_0201));
        let seen = cpu.read();
        let (before, after) = seen.split_at(usize::try_from(g).unwrap());
        assert!(before.iter().all(|byte| *byte == 0));
        assert!(after.chunks(4).all(|word| word == [1, 2, 3, 4]));
        let bytes: Vec<u8> = (0..2 * g).map(|i| (i % 251) as u8 ^ round).collect();
        cpu.write(&bytes);
        guest.ok(copy((memory, 1), (look, 3), g));
        let g = usize::try_from(g).unwrap();
        assert_eq!(look_at.read()[3..g + 3], bytes[1..=g]);
        let again = guest.call(Request::Export { attachment: memory });
        assert_eq!(again, Ok(()));
        guest.ok(Request::Release { attachment: memory });
        // Who has it mapped keeps it.
        assert_eq!(cpu.read(), bytes);
    }
}

fn exports_of_nonsense_are_refused(provider: &dyn Provider) {
    let mut guest = Guest::new(provider, MIB);
    let g = guest.grain;
    let (window, device) = (guest.attach(0, g), guest.allocate(g));
    for attachment in [window, device, AttachmentId(999)] {
        guest.invalid(Request::Export { attachment });
    }
}

fn sessions_are_independent(provider: &dyn Provider) {
    let mut one = Guest::new(provider, MIB);
    let mut two = Guest::new(provider, MIB);
    let g = one.grain;
    // The same names, other bytes.
    let (a, b) = (one.attach(0, g), two.attach(0, g));
    assert_eq!(a, b);
    one.ok(fill(a, 0, g, 1));
    two.ok(fill(b, 0, g, 2));
    assert_eq!(one.read(0, 4), [1, 0, 0, 0]);
    assert_eq!(two.read(0, 4), [2, 0, 0, 0]);
    one.ok(Request::Release { attachment: a });
    one.invalid(fill(a, 0, 4, 3));
    two.ok(fill(b, 0, 4, 3));
    drop(one);
    two.ok(fill(b, 4, 4, 4));
    assert_eq!(two.read(0, 8), [3, 0, 0, 0, 4, 0, 0, 0]);
}

fn dropped_with_work_in_flight(provider: &dyn Provider) {
    const SIZE: u64 = 32 * MIB;
    for _ in 0..3 {
        let delivered = Arc::new(AtomicUsize::new(0));
        let sink_count = Arc::clone(&delivered);
        let mut guest = Guest::new(provider, SIZE);
        guest.session = provider.connect(Box::new(move |_| {
            sink_count.fetch_add(1, Ordering::SeqCst);
        }));
        let descriptor = guest.window.try_clone().unwrap();
        guest.submit(Request::AddFile {
            file: WINDOW,
            descriptor,
            length: SIZE,
        });
        let (a, request) = guest.attach_request(0, SIZE);
        guest.submit(request);
        let (b, request) = guest.allocate_request(MIB);
        guest.submit(request);
        for i in 0..20 {
            guest.submit(fill(a, 0, SIZE, i));
            guest.submit(copy((a, 0), (b, 0), MIB));
        }
        let start = Instant::now();
        drop(guest);
        let took = start.elapsed();
        assert!(took < Duration::from_secs(1), "the drop took {took:?}");
        let count = delivered.load(Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(30));
        assert_eq!(
            delivered.load(Ordering::SeqCst),
            count,
            "delivered after the drop"
        );
    }
    // The provider still serves.
    let mut guest = Guest::new(provider, MIB);
    let a = guest.attach(0, MIB);
    guest.ok(fill(a, 0, MIB, 6));
    assert_eq!(guest.read(MIB - 4, 4), [6, 0, 0, 0]);
}

fn a_file_outlives_its_descriptor(provider: &dyn Provider) {
    let mut guest = Guest::new(provider, MIB);
    let unsealed = rustix::fs::memfd_create("u", rustix::fs::MemfdFlags::ALLOW_SEALING).unwrap();
    rustix::fs::ftruncate(&unsealed, MIB).unwrap();
    guest.invalid(Request::AddFile {
        file: FileId(9),
        descriptor: unsealed,
        length: MIB,
    });
    let parking = sealed_memfd("parking", MIB).unwrap();
    let reader = parking.try_clone().unwrap();
    guest.ok(Request::AddFile {
        file: FileId(9),
        descriptor: parking,
        length: MIB,
    });
    let (a, request) = guest.attach_request(0, MIB);
    let Request::Attach {
        attachment,
        offset,
        length,
        memory_type,
        ..
    } = request
    else {
        panic!("an attach");
    };
    guest.ok(Request::Attach {
        attachment,
        file: FileId(9),
        offset,
        length,
        memory_type,
    });
    guest.write(0, &[1, 2, 3, 4]);
    let w = guest.attach(0, MIB);
    guest.ok(copy((w, 0), (a, 8), 4));
    let mut bytes = [0; 12];
    rustix::io::pread(&reader, &mut bytes[..], 0).unwrap();
    assert_eq!(bytes, [0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4]);
}

/// Guest pages: pieces of two files in disorder are one attachment, which outlives the file's name.
fn pieces_are_one_range(provider: &dyn Provider) {
    let mut guest = Guest::new(provider, MIB);
    let grain = guest.grain;
    let make = || Arc::new(File::from(sealed_memfd("pages", 3 * grain).unwrap()));
    let (one, other) = (make(), make());
    let piece = |file: &Arc<File>, at: u64| Piece {
        file: Arc::clone(file),
        offset: at * grain,
        length: grain,
    };
    let file = FileId(7);
    guest.invalid(Request::RemoveFile { file });
    guest.ok(Request::AddPieces {
        file,
        pieces: vec![piece(&one, 2), piece(&other, 0), piece(&one, 0)],
    });
    let (pages, request) = guest.attach_request(0, 3 * grain);
    let Request::Attach { memory_type, .. } = request else {
        panic!("an attach");
    };
    let attach = |attachment| Request::Attach {
        attachment,
        file,
        offset: 0,
        length: 3 * grain,
        memory_type,
    };
    guest.ok(attach(pages));
    guest.ok(Request::RemoveFile { file });
    let (late, _) = guest.attach_request(0, grain);
    guest.invalid(attach(late));

    guest.ok(fill(pages, grain - 4, 8, 0x0403_0201));
    let read = |file: &File, at| {
        let mut bytes = [0; 4];
        rustix::io::pread(file, &mut bytes[..], at).unwrap();
        bytes
    };
    assert_eq!(read(&one, 3 * grain - 4), [1, 2, 3, 4]);
    assert_eq!(read(&other, 0), [1, 2, 3, 4]);
    assert_eq!(read(&one, 2 * grain), [0; 4]);
    rustix::io::pwrite(&one, &[7, 8, 9, 10], 0).unwrap();
    let w = guest.attach(0, grain);
    guest.ok(copy((pages, 2 * grain), (w, 0), 4));
    assert_eq!(guest.read(0, 4), [7, 8, 9, 10]);
    guest.ok(Request::Release { attachment: pages });
}

#[test]
fn system_keeps_the_contract() {
    suite(&SystemProvider::new(None));
}

#[test]
fn memory_is_exported_as_files_and_as_addresses() {
    for kind in [ExportKind::File, ExportKind::Address] {
        let provider = SystemProvider::exporting(None, kind);
        assert!(exported_type(&provider).is_some());
        suite(&provider);
    }
}

#[test]
fn fake_keeps_the_contract() {
    suite(&FakeProvider::new());
}

#[test]
fn system_reports_no_more_than_its_limit() {
    let provider = SystemProvider::new(Some(MIB));
    assert_eq!(provider.description().heaps[0].size, MIB);
    let mut guest = Guest::new(&provider, MIB);
    guest.allocate(MIB);
    let (_, request) = guest.allocate_request(MIB + 4096);
    guest.invalid(request);
}

#[test]
fn fake_counts_records_and_refuses() {
    let fake = FakeProvider::new();
    let mut guest = Guest::new(&fake, MIB);
    let a = guest.attach(0, MIB);
    fake.refuse_next(ProviderError::OutOfDeviceMemory("by the test".to_owned()));
    let first = guest.submit(fill(a, 0, 4, 1));
    let second = guest.submit(fill(a, 4, 4, 2));
    let refused = guest.next();
    assert_eq!(refused.sequence, first);
    assert_eq!(
        refused.result,
        Err(ProviderError::OutOfDeviceMemory("by the test".to_owned()))
    );
    assert_eq!(guest.next().sequence, second);
    assert_eq!(guest.read(0, 8), [0, 0, 0, 0, 2, 0, 0, 0]);
    assert_eq!(fake.count(), 4);
    assert_eq!(fake.count_of(|seen| matches!(seen, Seen::Fill { .. })), 2);
    let last = fake.requests().pop().unwrap();
    assert_eq!((last.session, last.sequence), (0, second));
    assert_eq!(
        last.request,
        Seen::Fill {
            attachment: a,
            offset: 4,
            length: 4,
            value: 2
        }
    );
}

#[test]
fn fake_holds_completions_until_told() {
    let fake = FakeProvider::new();
    let mut guest = Guest::new(&fake, MIB);
    let a = guest.attach(0, MIB);
    fake.hold();
    let sequences: Vec<u64> = (0..4).map(|i| guest.submit(fill(a, 0, 4, i))).collect();
    let start = Instant::now();
    while fake.held() < 4 {
        assert!(start.elapsed() < LIMIT);
        std::thread::yield_now();
    }
    assert!(guest.answers.is_empty());
    assert!(fake.release_one());
    assert_eq!(guest.next().sequence, sequences[0]);
    assert!(guest.answers.is_empty());
    fake.release_all();
    for sequence in &sequences[1..] {
        assert_eq!(guest.next().sequence, *sequence);
    }
    assert!(!fake.release_one());
    guest.ok(fill(a, 0, 4, 9));
}

#[test]
fn answers_go_to_their_own_session() {
    let system = SystemProvider::new(None);
    let mut guests: Vec<Guest> = (0..4).map(|_| Guest::new(&system, MIB)).collect();
    for (i, guest) in (0_u32..).zip(&mut guests) {
        let a = guest.attach(0, MIB);
        for _ in 0..50 {
            guest.submit(fill(a, 0, MIB, i));
        }
    }
    for (i, guest) in (0_u32..).zip(&guests) {
        for _ in 0..50 {
            assert_eq!(guest.next().result, Ok(None));
        }
        assert_eq!(guest.read(MIB - 4, 4), i.to_le_bytes());
    }
}
