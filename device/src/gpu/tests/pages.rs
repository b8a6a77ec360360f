//! Blobs in the guest's own pages, with memory as a VMM gives it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::AtomicU64;

use hostblob_allocator::provider::Provider;
use hostblob_allocator::provider::system::SystemProvider;
use hostblob_capset::Offer;
use hostblob_protocol::Status;
use hostblob_protocol::answers::{MIN_SIZE, Ring};
use hostblob_protocol::request::{Copy, ImportResource, OpenAnswers, Request};
use hostblob_protocol::virtio_gpu::{
    MemEntry, ResourceAttachBacking, ResourceUuid, TransferHost3d,
};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};

use super::*;
use crate::gpu::backing::{Backings, MAX_KEPT_ENTRIES};

const MEMORY: u64 = 64 * PAGE;
const RING: u32 = 100;
const RING_OFFSET: u64 = (2 << 20) - PAGE;

/// A guest with memory, and a context 1 with an answers ring.
struct Machine {
    gpu: Gpu,
    memory: GuestMemoryMmap,
    file: File,
    sequence: u64,
}

fn memory_of(file: &File, offset: u64) -> GuestMemoryMmap {
    let file = FileOffset::new(file.try_clone().unwrap(), offset);
    let size = (MEMORY / 2) as usize;
    GuestMemoryMmap::from_ranges_with_files([(GuestAddress(0x10_0000), size, Some(file))]).unwrap()
}

impl Machine {
    fn new() -> Self {
        Self::with(Arc::new(SystemProvider::new(None)))
    }

    fn with(provider: Arc<dyn Provider>) -> Self {
        let limits = Limits {
            window_size: 2 << 20,
            memory_limit: 1 << 20,
            context_limit: 1 << 20,
            context_share: 0,
            warm: hostblob_allocator::window::Warmth::up_to(0),
        };
        let host = Host::new(provider, limits).unwrap();
        let gpu = Gpu::new(&host, CAPSET_ID, BlobMem::all(), Arc::new(|| {})).unwrap();
        let flags = rustix::fs::MemfdFlags::CLOEXEC;
        let file = File::from(rustix::fs::memfd_create("guest", flags).unwrap());
        file.set_len(MEMORY).unwrap();
        let memory = memory_of(&file, 0);
        let mut machine = Self {
            gpu,
            memory,
            file,
            sequence: 0,
        };
        machine.ok(cmd::CTX_CREATE, 1, &context_body());
        machine.ok(cmd::RESOURCE_CREATE_BLOB, 1, &blob(RING, 0, 1));
        let mapped = machine.run(cmd::RESOURCE_MAP_BLOB, 0, &map(RING, RING_OFFSET));
        assert_eq!(mapped.unwrap().kind(), resp::OK_MAP_INFO);
        let offer = Offer::EVERYTHING;
        let open = OpenAnswers {
            resource_id: RING,
            major: offer.major,
            minor: offer.minor,
            requests: offer.requests,
            create_flags: offer.create_flags,
        };
        assert_eq!(machine.ask(open), Status::Ok);
        machine
    }

    fn run<T: IntoBytes + Immutable + ?Sized>(
        &mut self,
        kind: u32,
        context: u32,
        body: &T,
    ) -> Option<Response> {
        let command = bytes(header(kind, context), body);
        self.gpu.execute(7, &command, &self.memory)
    }

    fn ok<T: IntoBytes + Immutable + ?Sized>(&mut self, kind: u32, context: u32, body: &T) {
        let response = self.run(kind, context, body).unwrap_or_else(|| self.late());
        assert_eq!(response.kind(), resp::OK_NODATA, "{kind:#x}");
    }

    /// The response that was kept.
    fn late(&mut self) -> Response {
        loop {
            let mut done = self.gpu.completed();
            if let Some((tag, response)) = done.pop() {
                assert!(tag == 7 && done.is_empty());
                return response;
            }
            std::thread::yield_now();
        }
    }

    fn refused<T: IntoBytes + Immutable + ?Sized>(&mut self, kind: u32, body: &T, code: u32) {
        let response = self.run(kind, 1, body).expect("an answer at once");
        assert_eq!(response.kind(), code, "{kind:#x}");
    }

    fn send(&mut self, request: impl Into<Request>) -> u64 {
        self.sequence += 1;
        let data = EnvelopeBuilder::new(self.sequence).request(request).build();
        self.ok(cmd::SUBMIT_3D, 1, submit(&data).as_slice());
        self.sequence
    }

    fn answer(&mut self, sequence: u64) -> Option<(Status, [u64; 2])> {
        self.gpu.completed();
        let mut bytes = vec![0; MIN_SIZE];
        rustix::io::pread(self.gpu.window_fd(), &mut bytes, RING_OFFSET).unwrap();
        let words: Vec<_> = bytes
            .chunks_exact(8)
            .map(|word| AtomicU64::new(u64::from_ne_bytes(word.try_into().unwrap())))
            .collect();
        let answer = Ring::new(&words).unwrap().read(sequence)?;
        Some((answer.status, answer.details))
    }

    fn ask(&mut self, request: impl Into<Request>) -> Status {
        let sequence = self.send(request);
        loop {
            if let Some((status, _)) = self.answer(sequence) {
                return status;
            }
            std::thread::yield_now();
        }
    }

    /// A blob of guest pages as Linux makes one: by no context, then attached to the process's.
    fn guest_blob(&mut self, resource: u32, pages: &[u64]) {
        let body = guest_blob(resource, blob_mem::GUEST, pages);
        self.ok(cmd::RESOURCE_CREATE_BLOB, 0, body.as_slice());
        self.ok(cmd::CTX_ATTACH_RESOURCE, 1, &only(resource));
    }

    fn name(&mut self, resource: u32, client_id: u64) -> Status {
        self.ask(ImportResource {
            client_id,
            resource_id: resource,
        })
    }

    fn fill(&mut self, client_id: u64, offset: u64, length: u64, value: u32) -> Status {
        self.ask(fill(client_id, offset, length, value))
    }

    /// The first word of a page of guest memory.
    fn word(&self, page: u64) -> u32 {
        let mut word = [0; 4];
        self.file.read_exact_at(&mut word, page * PAGE).unwrap();
        u32::from_le_bytes(word)
    }
}

fn fill(client_id: u64, offset: u64, length: u64, value: u32) -> Fill {
    let range = MemoryRange {
        client_id,
        offset,
        length,
    };
    Fill { range, value }
}

fn count(pages: &[u64]) -> u32 {
    u32::try_from(pages.len()).unwrap()
}

fn entries(pages: &[u64]) -> Vec<u8> {
    let entry = |page: &u64| MemEntry {
        addr: (0x10_0000 + page * PAGE).into(),
        length: 4096.into(),
        padding: 0.into(),
    };
    pages
        .iter()
        .flat_map(|page| entry(page).as_bytes().to_vec())
        .collect()
}

fn guest_blob(resource: u32, blob_mem: u32, pages: &[u64]) -> Vec<u8> {
    let create = ResourceCreateBlob {
        blob_mem: blob_mem.into(),
        blob_flags: blob_flag::USE_SHAREABLE.into(),
        nr_entries: count(pages).into(),
        ..blob(resource, 0, pages.len() as u64)
    };
    [create.as_bytes(), &entries(pages)].concat()
}

fn attach(resource: u32, pages: &[u64]) -> Vec<u8> {
    let attach = ResourceAttachBacking {
        resource_id: resource.into(),
        nr_entries: count(pages).into(),
    };
    [attach.as_bytes(), &entries(pages)].concat()
}

#[test]
fn the_gpu_works_on_scattered_pages_of_the_guest() {
    let mut machine = Machine::new();
    machine.guest_blob(1, &[9, 3, 4, 20]);
    assert_eq!(machine.name(1, 50), Status::Ok);
    assert_eq!(machine.fill(50, 0, 2 * PAGE, 7), Status::Ok);
    assert_eq!(machine.fill(50, 3 * PAGE, PAGE, 8), Status::Ok);
    let words: Vec<_> = (0..32).map(|page| machine.word(page)).collect();
    let mut expected = [0; 32];
    (expected[9], expected[3], expected[20]) = (7, 7, 8);
    assert_eq!(words, expected);

    // To memory of the host and back into another guest blob.
    let create = Create {
        client_id: 60,
        size: 4 * PAGE,
        memory: MemorySelector::Properties(0),
        flags: CreateFlags::HOST_VISIBLE,
        alignment: 0,
        expected_cache: CacheMode::Any,
    };
    assert_eq!(machine.ask(create), Status::Ok);
    machine.guest_blob(2, &[31, 30, 29, 28]);
    assert_eq!(machine.name(2, 61), Status::Ok);
    let copy = |from, to| Copy {
        source: MemoryRange {
            client_id: from,
            offset: 0,
            length: 4 * PAGE,
        },
        destination_client_id: to,
        destination_offset: 0,
    };
    assert_eq!(machine.ask(copy(50, 60)), Status::Ok);
    assert_eq!(machine.ask(copy(60, 61)), Status::Ok);
    let words: Vec<_> = (28..32).map(|page| machine.word(page)).collect();
    assert_eq!(words, [8, 0, 7, 7]);
}

#[test]
fn without_backing_there_is_nothing_to_use() {
    let mut machine = Machine::new();
    let empty = ResourceCreateBlob {
        nr_entries: 0.into(),
        size: (2 * PAGE).into(),
        blob_mem: blob_mem::GUEST.into(),
        ..blob(1, 0, 2)
    };
    machine.ok(cmd::RESOURCE_CREATE_BLOB, 0, &empty);
    machine.ok(cmd::CTX_ATTACH_RESOURCE, 1, &only(1));
    assert_eq!(machine.name(1, 50), Status::Ok);
    assert_eq!(machine.fill(50, 0, 4, 1), Status::NoBacking);
    let invalid = resp::ERR_INVALID_PARAMETER;
    machine.refused(cmd::RESOURCE_DETACH_BACKING, &only(1), invalid);
    machine.ok(
        cmd::RESOURCE_ATTACH_BACKING,
        0,
        attach(1, &[5, 6]).as_slice(),
    );
    assert_eq!(machine.fill(50, PAGE, 4, 1), Status::Ok);
    assert_eq!(machine.word(6), 1);
    let again = attach(1, &[7, 8]);
    machine.refused(cmd::RESOURCE_ATTACH_BACKING, again.as_slice(), invalid);
    machine.ok(cmd::RESOURCE_DETACH_BACKING, 0, &only(1));
    assert_eq!(machine.fill(50, 0, 4, 1), Status::NoBacking);
    machine.ok(cmd::RESOURCE_ATTACH_BACKING, 0, again.as_slice());
    assert_eq!(machine.fill(50, 0, 4, 9), Status::Ok);
    assert_eq!((machine.word(7), machine.word(5)), (9, 0));
    // The name outlives the blob, its pages do not.
    machine.ok(cmd::RESOURCE_UNREF, 0, &only(1));
    assert_eq!(machine.fill(50, 0, 4, 1), Status::NoBacking);
}

#[test]
fn nonsense_is_refused_and_changes_nothing() {
    let mut machine = Machine::new();
    let (invalid, resource) = (resp::ERR_INVALID_PARAMETER, resp::ERR_INVALID_RESOURCE_ID);
    let mut create = |body: Vec<u8>, code| {
        machine.refused(cmd::RESOURCE_CREATE_BLOB, body.as_slice(), code);
    };
    create(guest_blob(1, blob_mem::HOST3D, &[1]), invalid);
    create(guest_blob(1, 0, &[1]), invalid);
    create(guest_blob(1, 4, &[1]), invalid);
    create(guest_blob(1, blob_mem::GUEST, &[40]), invalid);
    create(
        guest_blob(1, blob_mem::GUEST, &[0, u64::MAX >> 13]),
        invalid,
    );
    create(guest_blob(RING, blob_mem::GUEST, &[0]), resource);
    let whole = guest_blob(1, blob_mem::GUEST, &[0, 1]);
    create(whole[..whole.len() - 1].to_vec(), invalid);
    let mut short = whole.clone();
    short[12..16].copy_from_slice(&1_u32.to_le_bytes());
    create(short, invalid);
    let mut named = whole.clone();
    named[16..24].copy_from_slice(&5_u64.to_le_bytes());
    create(named, invalid);
    let mut many = whole.clone();
    many[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
    create(many, invalid);
    let mut odd = whole.clone();
    odd[32..40].copy_from_slice(&(0x10_0000_u64 + 512).to_le_bytes());
    create(odd, invalid);
    let mut nothing = whole;
    nothing[40..44].copy_from_slice(&0_u32.to_le_bytes());
    create(nothing, invalid);
    let other_context = machine.run(
        cmd::RESOURCE_CREATE_BLOB,
        0,
        guest_blob(1, blob_mem::HOST3D_GUEST, &[1]).as_slice(),
    );
    assert_eq!(other_context.unwrap().kind(), resp::ERR_INVALID_CONTEXT_ID);
    machine.guest_blob(1, &[0]);
    machine.refused(cmd::RESOURCE_MAP_BLOB, &map(1, 0), invalid);
    machine.refused(cmd::RESOURCE_ATTACH_BACKING, &[0_u8; 4], invalid);
    let ring = attach(RING, &[1]);
    machine.refused(cmd::RESOURCE_ATTACH_BACKING, ring.as_slice(), invalid);
    assert_eq!(machine.name(RING + 1, 9), Status::InvalidArgument);
    machine.ok(cmd::CTX_DETACH_RESOURCE, 1, &only(1));
    assert_eq!(machine.name(1, 9), Status::InvalidArgument);
}

/// Entries cost the guest nothing: it may name the same pages for each of its blobs, and in a way that makes few pieces of many entries. Here the
/// VMM shows the same file twice, and every other page is named where it is shown first.
#[test]
fn what_is_kept_of_a_guests_pages_is_bounded() {
    const PAGES: u64 = 256;
    const SECOND: u64 = 1 << 30;
    let mut machine = Machine::new();
    let file = Arc::new(machine.file.try_clone().unwrap());
    file.set_len(PAGES * PAGE).unwrap();
    let size = usize::try_from(PAGES * PAGE).unwrap();
    let range = |at| {
        let file = FileOffset::from_arc(Arc::clone(&file), 0);
        (GuestAddress(at), size, Some(file))
    };
    machine.memory =
        GuestMemoryMmap::from_ranges_with_files([range(0x10_0000), range(SECOND)]).unwrap();
    let scattered: Vec<u64> = (0..PAGES)
        .map(|page| page + page % 2 * ((SECOND - 0x10_0000) / PAGE))
        .collect();
    let blobs = u32::try_from(MAX_KEPT_ENTRIES / scattered.len()).unwrap();
    for resource in 1000..1000 + blobs {
        let body = guest_blob(resource, blob_mem::GUEST, &scattered);
        machine.ok(cmd::RESOURCE_CREATE_BLOB, 0, body.as_slice());
    }
    let kept = |machine: &Machine| machine.gpu.backings.kept();
    assert_eq!(kept(&machine), 65_536);
    let full = resp::ERR_OUT_OF_MEMORY;
    let one_more = guest_blob(1, blob_mem::GUEST, &[0]);
    machine.refused(cmd::RESOURCE_CREATE_BLOB, one_more.as_slice(), full);
    let empty = ResourceCreateBlob {
        nr_entries: 0.into(),
        blob_mem: blob_mem::GUEST.into(),
        ..blob(1, 0, 1)
    };
    machine.ok(cmd::RESOURCE_CREATE_BLOB, 0, &empty);
    let attach_one = attach(1, &[0]);
    machine.refused(cmd::RESOURCE_ATTACH_BACKING, attach_one.as_slice(), full);
    // It can be had again when something is given up: by UNREF, DETACH_BACKING, and a reset.
    machine.ok(cmd::RESOURCE_UNREF, 0, &only(1000));
    machine.ok(cmd::RESOURCE_DETACH_BACKING, 0, &only(1001));
    assert_eq!(kept(&machine), 65_536 - 2 * 256);
    machine.ok(cmd::RESOURCE_ATTACH_BACKING, 0, attach_one.as_slice());
    assert_eq!(kept(&machine), 65_536 - 2 * 256 + 1);
    machine.gpu.reset();
    assert_eq!(kept(&machine), 0);
}

/// 262,140 entries of nothing beside one page, and a page in entries of 16 bytes: neither is kept as it came.
#[test]
fn one_page_is_kept_as_one_entry_however_it_is_named() {
    let mut machine = Machine::new();
    let create = |ranges: &[(u64, u32)]| {
        let asked = ResourceCreateBlob {
            blob_mem: blob_mem::GUEST.into(),
            nr_entries: u32::try_from(ranges.len()).unwrap().into(),
            ..blob(1, 0, 1)
        };
        let mut bytes = asked.as_bytes().to_vec();
        for (at, length) in ranges {
            let entry = MemEntry {
                addr: (0x10_0000 + at).into(),
                length: (*length).into(),
                padding: 0.into(),
            };
            bytes.extend(entry.as_bytes());
        }
        bytes
    };
    let mut hollow = vec![(0, 0); 262_139];
    hollow.push((0, 4096));
    let (kind, invalid) = (cmd::RESOURCE_CREATE_BLOB, resp::ERR_INVALID_PARAMETER);
    machine.refused(kind, create(&hollow).as_slice(), invalid);
    assert_eq!(machine.gpu.backings.kept(), 0);
    let crumbs: Vec<_> = (0..256).map(|n| (5 * PAGE + 16 * n, 16)).collect();
    machine.ok(kind, 0, create(&crumbs).as_slice());
    machine.ok(cmd::CTX_ATTACH_RESOURCE, 1, &only(1));
    assert_eq!(machine.gpu.backings.kept(), 1);
    assert_eq!(machine.name(1, 50), Status::Ok);
    assert_eq!(machine.fill(50, 0, PAGE, 7), Status::Ok);
    assert_eq!([4, 5, 6].map(|page| machine.word(page)), [0, 7, 0]);
}

/// A snapshot of a host that kept entries as they came.
#[test]
fn entries_of_an_earlier_host_are_read_and_joined() {
    let mut machine = Machine::new();
    machine.guest_blob(1, &[9, 3, 4]);
    assert_eq!(machine.name(1, 50), Status::Ok);
    let mut saved = Vec::new();
    machine.gpu.save(&mut saved).unwrap();
    let mut other = Machine::new();
    other.gpu.reset();
    other.gpu.restore(&mut &*saved).unwrap();
    let kept: Vec<_> = other.gpu.backings.iter().collect();
    let pairs = |entries: &[MemEntry]| -> Vec<(u64, u32)> {
        let pairs = entries.iter();
        pairs.map(|e| (e.addr.get(), e.length.get())).collect()
    };
    let (resource, entries) = kept[0];
    assert_eq!((kept.len(), resource), (1, 1));
    assert_eq!(pairs(entries), [(0x10_9000, 4096), (0x10_3000, 8192)]);

    let mut backings = Backings::default();
    for (addr, length) in [(0x9000, 4096), (0, 0), (0x3000, 4096), (0x4000, 4096)] {
        backings.append(1, addr, length).unwrap();
    }
    let kept: Vec<_> = backings.iter().map(|(_, entries)| pairs(entries)).collect();
    assert_eq!(kept, [[(0x9000, 4096), (0x3000, 8192)]]);
    assert_eq!(backings.kept(), 2);
}

/// QEMU makes what it maps for us a part of guest memory.
#[test]
fn the_window_is_no_guest_memory() {
    let mut machine = Machine::new();
    let window = File::from(machine.gpu.window_fd().try_clone_to_owned().unwrap());
    machine.memory = memory_of(&window, 0);
    let body = guest_blob(1, blob_mem::GUEST, &[3]);
    let code = resp::ERR_INVALID_PARAMETER;
    machine.refused(cmd::RESOURCE_CREATE_BLOB, body.as_slice(), code);
}

#[test]
fn transfers_move_the_box_and_nothing_else() {
    let mut machine = Machine::new();
    let body = guest_blob(1, blob_mem::HOST3D_GUEST, &[2, 1]);
    machine.ok(cmd::RESOURCE_CREATE_BLOB, 1, body.as_slice());
    assert_eq!(machine.name(1, 50), Status::Ok);
    machine.file.write_all_at(&[3; 8192], PAGE).unwrap();
    let transfer = |x: u32, w: u32, h: u32, stride: u32, offset: u64| TransferHost3d {
        x: x.into(),
        w: w.into(),
        h: h.into(),
        d: 1.into(),
        stride: stride.into(),
        offset: offset.into(),
        resource_id: 1.into(),
        ..TransferHost3d::default()
    };
    // Two rows of 8 bytes at 16, 100 bytes apart, to the host; then the whole of the host's memory to the guest.
    machine.ok(cmd::TRANSFER_TO_HOST_3D, 1, &transfer(16, 8, 2, 100, 4092));
    machine.ok(cmd::TRANSFER_FROM_HOST_3D, 1, &transfer(0, 8192, 1, 0, 0));
    assert_eq!(
        machine.fill(50, 0, 4, 0),
        Status::Ok,
        "in order: all is done"
    );
    let mut bytes = [0; 8192];
    // The blob's first page is the memory's second.
    machine
        .file
        .read_exact_at(&mut bytes[..4096], 2 * PAGE)
        .unwrap();
    machine
        .file
        .read_exact_at(&mut bytes[4096..], PAGE)
        .unwrap();
    let mut expected = [0; 8192];
    expected[16..24].fill(3);
    expected[116..124].fill(3);
    assert!(bytes == expected);

    let invalid = resp::ERR_INVALID_PARAMETER;
    let to_host = cmd::TRANSFER_TO_HOST_3D;
    machine.refused(to_host, &transfer(0, 8193, 1, 0, 0), invalid);
    machine.refused(to_host, &transfer(0, 1, 1, 0, 8192), invalid);
    machine.guest_blob(2, &[7]);
    let no_shadow = TransferHost3d {
        resource_id: 2.into(),
        ..transfer(0, 1, 1, 0, 0)
    };
    machine.refused(to_host, &no_shadow, invalid);
    let level = TransferHost3d {
        level: 1.into(),
        ..transfer(0, 1, 1, 0, 0)
    };
    machine.refused(to_host, &level, invalid);
}

#[test]
fn the_guest_has_its_pages_back_when_the_gpu_has_let_go() {
    let fake = Arc::new(FakeProvider::new());
    let mut machine = Machine::with(Arc::clone(&fake) as Arc<dyn Provider>);
    for (resource, kind) in [(1, cmd::RESOURCE_DETACH_BACKING), (2, cmd::RESOURCE_UNREF)] {
        machine.guest_blob(resource, &[1, 5]);
        assert_eq!(machine.name(resource, resource.into()), Status::Ok);
        fake.hold();
        let sequence = machine.send(fill(resource.into(), 0, PAGE, 1));
        assert!(machine.run(kind, 0, &only(resource)).is_none());
        assert_eq!(machine.gpu.completed(), []);
        assert_eq!(machine.answer(sequence), None);
        fake.release_all();
        assert_eq!(machine.late().kind(), resp::OK_NODATA);
    }
}

#[test]
fn a_vmm_that_moves_the_memory_is_followed() {
    let mut machine = Machine::new();
    machine.guest_blob(1, &[3]);
    assert_eq!(machine.name(1, 50), Status::Ok);
    assert_eq!(machine.fill(50, 0, 4, 1), Status::Ok);
    assert_eq!(machine.word(3), 1);
    machine.gpu.guest_pages_changed(&GuestMemoryMmap::default());
    assert_eq!(machine.fill(50, 0, 4, 2), Status::NoBacking);
    let moved = memory_of(&machine.file, MEMORY / 2);
    machine.gpu.guest_pages_changed(&moved);
    assert_eq!(machine.fill(50, 0, 4, 3), Status::Ok);
    assert_eq!((machine.word(3), machine.word(32 + 3)), (1, 3));
}

#[test]
fn pages_that_are_lost_do_not_fill_the_log() {
    let mut machine = Machine::new();
    for resource in 1..=30 {
        machine.guest_blob(resource, &[3]);
    }
    let (there, gone) = (machine.memory.clone(), GuestMemoryMmap::default());
    let start = std::time::Instant::now();
    let lines = crate::transport::lines::logged(|| {
        for _ in 0..20 {
            machine.gpu.guest_pages_changed(&gone);
            machine.gpu.guest_pages_changed(&there);
        }
    });
    // A burst, and two a second.
    let most = 20 + 2 * (start.elapsed().as_secs() + 1);
    assert!(lines.len() as u64 <= most, "{}", lines.len());
    let reason = "has lost its pages: 0x103000 is no guest memory that the host can use";
    assert!(lines.iter().all(|line| line.contains(reason)), "{lines:?}");
}

#[test]
fn a_shareable_blob_has_one_uuid() {
    let mut machine = Machine::new();
    machine.guest_blob(1, &[3]);
    let mut uuid = || {
        let response = machine.run(cmd::RESOURCE_ASSIGN_UUID, 0, &only(1)).unwrap();
        assert_eq!(response.kind(), resp::OK_RESOURCE_UUID);
        ResourceUuid::read_from_bytes(&response.as_bytes()[24..]).unwrap()
    };
    let first = uuid();
    assert_eq!(first, uuid());
    let import = hostblob_protocol::request::Import {
        client_id: 5,
        uuid: first.uuid,
    };
    assert_eq!(machine.ask(import), Status::Ok);
    assert_eq!(machine.fill(5, 0, 4, 6), Status::Ok);
    assert_eq!(machine.word(3), 6);
    assert_eq!(machine.ask(import), Status::ClientIdInUse);
    let unknown = hostblob_protocol::request::Import {
        client_id: 6,
        uuid: [1; 16],
    };
    assert_eq!(machine.ask(unknown), Status::UnknownUuid);
}

#[test]
fn a_restored_device_finds_the_guests_pages_again() {
    let mut machine = Machine::new();
    machine.guest_blob(1, &[9, 3]);
    assert_eq!(machine.name(1, 50), Status::Ok);
    assert_eq!(machine.fill(50, PAGE, 4, 5), Status::Ok);
    let body = guest_blob(2, blob_mem::HOST3D_GUEST, &[7]);
    machine.ok(cmd::RESOURCE_CREATE_BLOB, 1, body.as_slice());
    let mut saved = Vec::new();
    machine.gpu.save(&mut saved).unwrap();

    let mut other = Machine::new();
    let in_use = other.gpu.restore(&mut &*saved);
    assert!(matches!(in_use, Err(RestoreError::Guest(_))));
    other.gpu.reset();
    for at in (0..saved.len()).step_by(97) {
        let mut flipped = saved.clone();
        flipped[at] ^= 1 << (at % 8);
        assert!(other.gpu.restore(&mut &*flipped).is_err());
        assert!(other.gpu.restore(&mut &saved[..at]).is_err());
        assert!(other.gpu.is_new());
    }
    other.gpu.restore(&mut &*saved).unwrap();
    other.sequence = machine.sequence;
    assert_eq!(other.fill(50, 0, 4, 6), Status::NoBacking);
    // The VMM says where the guest's memory is, which holds what it held.
    let size = usize::try_from(MEMORY).unwrap();
    let mut bytes = vec![0; size];
    machine.file.read_exact_at(&mut bytes, 0).unwrap();
    other.file.write_all_at(&bytes, 0).unwrap();
    let memory = other.memory.clone();
    other.gpu.guest_pages_changed(&memory);
    assert_eq!(other.fill(50, 0, 4, 6), Status::Ok);
    assert_eq!((other.word(9), other.word(3)), (6, 5));
    let back = TransferHost3d {
        w: 4096.into(),
        h: 1.into(),
        d: 1.into(),
        resource_id: 2.into(),
        ..TransferHost3d::default()
    };
    other.ok(cmd::TRANSFER_FROM_HOST_3D, 1, &back);
    let mut again = Vec::new();
    other.gpu.save(&mut again).unwrap();
    assert_eq!(again.len(), saved.len());
}

#[test]
fn a_device_with_a_command_under_way_is_not_saved() {
    let fake = Arc::new(FakeProvider::new());
    let mut machine = Machine::with(Arc::clone(&fake) as Arc<dyn Provider>);
    machine.guest_blob(1, &[1]);
    assert_eq!(machine.name(1, 50), Status::Ok);
    fake.hold();
    machine.send(fill(50, 0, PAGE, 1));
    assert!(
        machine
            .run(cmd::RESOURCE_DETACH_BACKING, 0, &only(1))
            .is_none()
    );
    let refused = machine.gpu.save(&mut Vec::new());
    assert!(matches!(refused, Err(SaveError::Busy(1))));
    fake.release_all();
    machine.late();
    machine.gpu.save(&mut Vec::new()).unwrap();
}

#[test]
fn a_snapshot_belongs_to_its_capset_id() {
    let mut machine = Machine::new();
    let mut saved = Vec::new();
    machine.gpu.save(&mut saved).unwrap();
    let host = Arc::clone(machine.gpu.guest().host());
    let mut other = Gpu::new(&host, CAPSET_ID + 1, BlobMem::all(), Arc::new(|| {})).unwrap();
    let error = other.restore(&mut &*saved).unwrap_err();
    assert!(error.to_string().contains("--capset-id 48"), "{error}");
}
