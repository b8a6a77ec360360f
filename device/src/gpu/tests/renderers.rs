//! Contexts of other renderers beside ours: who gets which command, and what a compositor and a guest's memory see of it.

#![allow(
    clippy::cast_possible_truncation,
    reason = "tests: the sizes are their own"
)]

mod detached;
mod fenced;

use std::fs::File;
use std::io::{IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use hostblob_protocol::virtio_gpu::MemEntry;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use tempfile::TempDir;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};

use super::*;
use crate::gpu::renderers::{CALL_TIMEOUT, MAX_CONTEXTS, MAX_LOST, Offer, Renderers};

const CROSS_DOMAIN: u32 = 5;
const OURS: u32 = 1;
const THEIRS: u32 = 2;
/// Guest blobs of a page each, and where they are.
const QUERY: u32 = 10;
const CHANNEL: u32 = 11;
const CHANNEL_PAGE: u64 = 1;
const IMAGE: u32 = 20;

/// A guest beside a compositor.
struct World {
    gpu: Gpu,
    host: Arc<Host>,
    memory: GuestMemoryMmap,
    file: File,
    compositor: UnixListener,
    renderers: Arc<Renderers>,
    _folder: TempDir,
}

fn memory() -> (GuestMemoryMmap, File) {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let file = File::from(rustix::fs::memfd_create("guest", flags).unwrap());
    file.set_len(16 * PAGE).unwrap();
    let offset = FileOffset::new(file.try_clone().unwrap(), 0);
    let range = (GuestAddress(0), 16 * 4096, Some(offset));
    (
        GuestMemoryMmap::from_ranges_with_files([range]).unwrap(),
        file,
    )
}

impl World {
    fn new(mode: WindowMode) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("wayland");
        let compositor = UnixListener::bind(&path).unwrap();
        let renderers = Renderers::start(Offer {
            wayland: Some(path),
            ..Offer::default()
        });
        let renderers = renderers.unwrap();
        // The connection that only tells whether somebody is there.
        drop(compositor.accept().unwrap());
        let limits = Limits {
            window_size: 2 << 20,
            memory_limit: 1 << 20,
            context_limit: 1 << 20,
            context_share: 0,
            warm: hostblob_allocator::window::Warmth::up_to(0),
        };
        let host = Host::new(Arc::new(FakeProvider::new()), limits).unwrap();
        let (memory, file) = memory();
        let mut world = Self {
            gpu: Self::gpu(&host, &renderers, mode),
            host,
            memory,
            file,
            compositor,
            renderers,
            _folder: folder,
        };
        world.ok(cmd::CTX_CREATE, OURS, &context_body());
        world
    }

    fn gpu(host: &Arc<Host>, renderers: &Arc<Renderers>, mode: WindowMode) -> Gpu {
        let waker: Waker = Arc::new(|| {});
        let gpu = Gpu::in_mode(host, CAPSET_ID, BlobMem::all(), mode, Arc::clone(&waker));
        gpu.unwrap().with_renderers(renderers, waker)
    }

    /// With a cross-domain context that has its rings, and a channel to the compositor.
    fn connected(mode: WindowMode) -> (Self, UnixStream) {
        let mut world = Self::new(mode);
        let stream = world.connect();
        (world, stream)
    }

    fn connect(&mut self) -> UnixStream {
        self.ok(cmd::CTX_CREATE, THEIRS, &cross_domain());
        self.ring(QUERY, 0);
        self.ring(CHANNEL, CHANNEL_PAGE);
        self.ok(cmd::SUBMIT_3D, THEIRS, submit(&init(1)).as_slice());
        self.compositor.accept().unwrap().0
    }

    /// A blob of a page of the guest, as Linux makes one: by no context, then attached to the process's.
    fn ring(&mut self, resource: u32, page: u64) {
        let create = ResourceCreateBlob {
            blob_mem: blob_mem::GUEST.into(),
            nr_entries: 1.into(),
            ..blob(resource, 0, 1)
        };
        let entry = MemEntry {
            addr: (page * PAGE).into(),
            length: 4096.into(),
            padding: 0.into(),
        };
        let body = [create.as_bytes(), entry.as_bytes()].concat();
        self.ok(cmd::RESOURCE_CREATE_BLOB, 0, body.as_slice());
        self.ok(cmd::CTX_ATTACH_RESOURCE, THEIRS, &only(resource));
    }

    fn run<T: IntoBytes + Immutable + ?Sized>(&mut self, kind: u32, context: u32, body: &T) -> u32 {
        let command = bytes(header(kind, context), body);
        let response = self.gpu.execute(0, &command, &self.memory);
        response.expect("an answer at once").kind()
    }

    fn ok<T: IntoBytes + Immutable + ?Sized>(&mut self, kind: u32, context: u32, body: &T) {
        assert_eq!(self.run(kind, context, body), resp::OK_NODATA, "{kind:#x}");
    }

    /// POLL with a fence on a ring.
    fn poll(&mut self, tag: u64, ring: u8) -> Option<Response> {
        let fenced = CtrlHdr {
            flags: (FLAG_FENCE | FLAG_INFO_RING_IDX).into(),
            fence_id: tag.into(),
            ring_idx: ring,
            ..header(cmd::SUBMIT_3D, THEIRS)
        };
        let command = bytes(fenced, submit(&message(3, &[0, 0], &[])).as_slice());
        self.gpu.execute(tag, &command, &self.memory)
    }

    /// The tags of what comes out within a time.
    fn late(&mut self, time: Duration) -> Vec<u64> {
        let deadline = Instant::now() + time;
        loop {
            let done = self.gpu.completed();
            if !done.is_empty() || Instant::now() > deadline {
                return done.into_iter().map(|(tag, _)| tag).collect();
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn page(&self, page: u64) -> Vec<u8> {
        let mut bytes = vec![0; 4096];
        self.file.read_exact_at(&mut bytes, page * PAGE).unwrap();
        bytes
    }

    /// A blob that the compositor can be given.
    fn image(&mut self) -> u64 {
        let query = message(2, &[64, 64, u32::from_le_bytes(*b"XR24"), 0], &[]);
        self.ok(cmd::SUBMIT_3D, THEIRS, submit(&query).as_slice());
        let ring = self.page(0);
        let size = u64::from_le_bytes(ring[40..48].try_into().unwrap());
        let id = u32::from_le_bytes(ring[48..52].try_into().unwrap());
        let body = blob(IMAGE, id.into(), size / PAGE);
        self.ok(cmd::RESOURCE_CREATE_BLOB, THEIRS, &body);
        self.ok(cmd::CTX_ATTACH_RESOURCE, THEIRS, &only(IMAGE));
        size
    }
}

fn cross_domain() -> CtxCreate {
    CtxCreate {
        context_init: CROSS_DOMAIN.into(),
        ..CtxCreate::default()
    }
}

/// A command with these words after its header.
fn message(kind: u8, words: &[u32], data: &[u8]) -> Vec<u8> {
    let size = u16::try_from(8 + 4 * words.len() + data.len()).unwrap();
    let words = words.iter().flat_map(|word| word.to_le_bytes());
    let header = [&[kind, 0][..], &size.to_le_bytes(), &[0; 4]].concat();
    header
        .into_iter()
        .chain(words)
        .chain(data.to_vec())
        .collect()
}

fn init(channel: u32) -> Vec<u8> {
    message(1, &[QUERY, CHANNEL, channel], &[])
}

/// SEND of bytes with memory of a resource.
fn send(data: &[u8], resource: Option<u32>) -> Vec<u8> {
    let mut words = vec![u32::from(resource.is_some()), data.len() as u32];
    let mut ids = [0; 84];
    (ids[0], ids[28]) = (resource.unwrap_or(0), 1);
    words.extend(ids);
    message(4, &words, data)
}

/// What the compositor gets.
fn receive(stream: &UnixStream) -> (Vec<u8>, Vec<OwnedFd>) {
    let mut data = [0; 256];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut data)];
    let got = rustix::net::recvmsg(stream, &mut parts, &mut control, RecvFlags::empty()).unwrap();
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(more) = message {
            descriptors.extend(more);
        }
    }
    (data[..got.bytes].to_vec(), descriptors)
}

fn inode(file: impl AsFd) -> (u64, u64) {
    let stat = rustix::fs::fstat(file).unwrap();
    (stat.st_dev, stat.st_ino)
}

#[test]
fn capsets_of_ours_and_theirs_are_listed_together() {
    let mut world = World::new(WindowMode::Premapped);
    let (config, _) = Config::read_from_prefix(world.gpu.config()).unwrap();
    assert_eq!(config.num_capsets.get(), 2);
    let mut info = |index: u32| {
        let index = GetCapsetInfo {
            capset_index: index.into(),
            ..Default::default()
        };
        let info = run(&mut world.gpu, cmd::GET_CAPSET_INFO, 0, &index);
        let words = info.as_bytes()[24..].as_chunks::<4>().0.iter();
        let words: Vec<u32> = words.map(|word| u32::from_le_bytes(*word)).collect();
        (info.kind(), words)
    };
    assert_eq!(info(0).1[0], CAPSET_ID);
    let (kind, theirs) = info(1);
    assert_eq!(
        (kind, theirs[0], theirs[2]),
        (resp::OK_CAPSET_INFO, CROSS_DOMAIN, 16)
    );
    for index in [2, u32::MAX] {
        assert_eq!(info(index).0, resp::ERR_INVALID_PARAMETER);
    }
    let mut capset = |id: u32| {
        let asked = GetCapset {
            capset_id: id.into(),
            ..Default::default()
        };
        run(&mut world.gpu, cmd::GET_CAPSET, 0, &asked)
    };
    let theirs = capset(CROSS_DOMAIN);
    assert_eq!(theirs.kind(), resp::OK_CAPSET);
    // Version 1; the Wayland channel, and no other.
    assert_eq!(theirs.as_bytes()[24..32], [1, 0, 0, 0, 2, 0, 0, 0]);
    assert_eq!(capset(CAPSET_ID).kind(), resp::OK_CAPSET);
    assert_eq!(capset(6).kind(), resp::ERR_INVALID_PARAMETER);
}

#[test]
fn bytes_go_both_ways_and_ours_is_not_disturbed() {
    let (mut world, mut compositor) = World::connected(WindowMode::Premapped);
    assert!(world.gpu.window_in_use());
    world.ok(
        cmd::SUBMIT_3D,
        THEIRS,
        submit(&send(b"hello", None)).as_slice(),
    );
    assert_eq!(receive(&compositor).0, b"hello");

    assert_eq!(world.poll(7, 1), None);
    assert!(world.late(Duration::from_millis(20)).is_empty());
    // Meanwhile ours works, and answers at once.
    world.ok(cmd::RESOURCE_CREATE_BLOB, OURS, &blob(1, 0, 1));
    assert_eq!(
        world.run(cmd::RESOURCE_MAP_BLOB, 0, &map(1, 0)),
        resp::OK_MAP_INFO
    );

    compositor.write_all(b"world").unwrap();
    assert_eq!(world.late(Duration::from_secs(10)), [7]);
    let ring = world.page(CHANNEL_PAGE);
    assert_eq!(
        (ring[0], &ring[12..16]),
        (5, &[5, 0, 0, 0][..]),
        "RECEIVE of 5 bytes"
    );
    assert_eq!(&ring[352..357], b"world");
    assert!(world.poll(8, 0).is_some(), "a query is answered at once");
    assert_eq!(world.page(2), [0; 4096], "no other page");
}

#[test]
fn a_blob_is_the_compositors_memory_too() {
    let (mut world, compositor) = World::connected(WindowMode::OnDemand);
    let size = world.image();
    assert_eq!((size, world.host.used()), (16384, 16384));
    let body = submit(&send(b"pool", Some(IMAGE)));
    world.ok(cmd::SUBMIT_3D, THEIRS, body.as_slice());
    let (data, descriptors) = receive(&compositor);
    assert_eq!((data.as_slice(), descriptors.len()), (&b"pool"[..], 1));

    assert_eq!(
        world.run(cmd::RESOURCE_MAP_BLOB, 0, &map(IMAGE, PAGE)),
        resp::OK_MAP_INFO
    );
    let Some(WindowChange::Map(mapping)) = world.gpu.window_change() else {
        panic!("it is to be mapped");
    };
    assert_eq!((mapping.span.start(), mapping.span.len()), (PAGE, size));
    assert_eq!(
        inode(mapping.elsewhere.as_ref().unwrap().file().unwrap()),
        inode(&descriptors[0])
    );
    let p = resp::ERR_INVALID_PARAMETER;
    assert_eq!(
        world.run(cmd::RESOURCE_MAP_BLOB, 0, &map(IMAGE, PAGE)),
        p,
        "twice"
    );
    world.ok(cmd::RESOURCE_UNMAP_BLOB, 0, &only(IMAGE));
    assert_eq!(
        world.gpu.window_change(),
        Some(WindowChange::Unmap(mapping))
    );
    assert_eq!(
        world.run(cmd::RESOURCE_UNMAP_BLOB, 0, &only(IMAGE)),
        p,
        "twice"
    );
    for offset in [1, 2 << 20, u64::MAX - 4095, (2 << 20) - PAGE] {
        assert_eq!(
            world.run(cmd::RESOURCE_MAP_BLOB, 0, &map(IMAGE, offset)),
            p,
            "{offset:#x}"
        );
        assert_eq!(world.gpu.window_change(), None);
    }
    // The transport could not: it is not mapped, and can be later.
    let mapped = bytes(header(cmd::RESOURCE_MAP_BLOB, 0), &map(IMAGE, 0));
    world.gpu.execute(9, &mapped, &NoPages).unwrap();
    assert!(world.gpu.not_mapped(9, &mapped, "no room").is_some());
    assert_eq!(
        world.run(cmd::RESOURCE_MAP_BLOB, 0, &map(IMAGE, 0)),
        resp::OK_MAP_INFO
    );
    // While it is mapped: the transport is told.
    world.gpu.window_change();
    world.ok(cmd::RESOURCE_UNREF, 0, &only(IMAGE));
    assert!(matches!(
        world.gpu.window_change(),
        Some(WindowChange::Unmap(_))
    ));
    assert_eq!(world.host.used(), 0);
}

/// A keymap, say: sealed, and not of whole pages.
#[test]
fn memory_that_the_compositor_sends_for_reading_is_mapped_as_a_copy() {
    let (mut world, compositor) = World::connected(WindowMode::OnDemand);
    let flags = rustix::fs::MemfdFlags::CLOEXEC | rustix::fs::MemfdFlags::ALLOW_SEALING;
    let keymap = File::from(rustix::fs::memfd_create("keymap", flags).unwrap());
    keymap.write_all_at(&[7; 5000], 0).unwrap();
    rustix::fs::fcntl_add_seals(&keymap, rustix::fs::SealFlags::WRITE).unwrap();
    assert_eq!(world.poll(1, 1), None);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = rustix::net::SendAncillaryBuffer::new(&mut space);
    let files = [keymap.as_fd()];
    control.push(rustix::net::SendAncillaryMessage::ScmRights(&files));
    let bytes = [std::io::IoSlice::new(b"keymap")];
    let none = rustix::net::SendFlags::empty();
    rustix::net::sendmsg(&compositor, &bytes, &mut control, none).unwrap();
    assert_eq!(world.late(Duration::from_secs(10)), [1]);
    let ring = world.page(CHANNEL_PAGE);
    let word = |at: usize| u32::from_le_bytes(ring[at..at + 4].try_into().unwrap());
    // One identifier, of a blob, of 5000 bytes.
    assert_eq!([word(8), word(128), word(240)], [1, 1, 5000]);
    let id = u64::from(word(16));
    let large = blob(40, id, 3);
    world.ok(cmd::RESOURCE_CREATE_BLOB, THEIRS, &large);
    let p = resp::ERR_INVALID_PARAMETER;
    assert_eq!(
        world.run(cmd::RESOURCE_MAP_BLOB, 0, &map(40, 0)),
        p,
        "beyond its end"
    );
    let again = world.run(cmd::RESOURCE_CREATE_BLOB, THEIRS, &blob(41, id, 2));
    assert_eq!(again, p, "an identifier is used once");
    world.ok(cmd::RESOURCE_UNREF, 0, &only(40));

    assert_eq!(world.poll(2, 1), None);
    let mut control = rustix::net::SendAncillaryBuffer::new(&mut space);
    control.push(rustix::net::SendAncillaryMessage::ScmRights(&files));
    rustix::net::sendmsg(&compositor, &bytes, &mut control, none).unwrap();
    assert_eq!(world.late(Duration::from_secs(10)), [2]);
    let ring = world.page(CHANNEL_PAGE);
    let id = u32::from_le_bytes(ring[16..20].try_into().unwrap());
    world.ok(cmd::RESOURCE_CREATE_BLOB, THEIRS, &blob(41, id.into(), 2));
    assert_eq!(
        world.run(cmd::RESOURCE_MAP_BLOB, 0, &map(41, 0)),
        resp::OK_MAP_INFO
    );
    let Some(WindowChange::Map(mapping)) = world.gpu.window_change() else {
        panic!("it is to be mapped");
    };
    let file = mapping.elsewhere.as_ref().unwrap().file().unwrap();
    assert_ne!(inode(file), inode(&keymap));
    let mut seen = vec![1; 8192];
    file.read_exact_at(&mut seen, 0).unwrap();
    assert!(seen[..5000].iter().all(|byte| *byte == 7));
    assert!(seen[5000..].iter().all(|byte| *byte == 0));
}

#[test]
fn a_premapped_window_says_which_mode_can() {
    let (mut world, _compositor) = World::connected(WindowMode::Premapped);
    world.image();
    let refused = world.run(cmd::RESOURCE_MAP_BLOB, 0, &map(IMAGE, 0));
    assert_eq!(refused, resp::ERR_OUT_OF_MEMORY);
    assert_eq!(world.gpu.window_change(), None);
}

#[test]
fn rings_move_with_the_guests_memory() {
    let (mut world, mut compositor) = World::connected(WindowMode::Premapped);
    let (memory, file) = memory();
    world.gpu.guest_pages_changed(&memory);
    let old = std::mem::replace(&mut world.file, file);
    world.memory = memory;
    assert_eq!(world.poll(1, 1), None);
    compositor.write_all(b"moved").unwrap();
    assert_eq!(world.late(Duration::from_secs(10)), [1]);
    assert_eq!(&world.page(CHANNEL_PAGE)[352..357], b"moved");
    let mut bytes = vec![0; 16 * 4096];
    old.read_exact_at(&mut bytes, 0).unwrap();
    assert!(
        bytes.iter().all(|byte| *byte == 0),
        "the old pages are not written"
    );
    // Nowhere: what the host writes is lost, and nothing else.
    world.gpu.guest_pages_changed(&NoPages);
    assert_eq!(world.poll(2, 1), None);
    compositor.write_all(b"lost").unwrap();
    assert_eq!(world.late(Duration::from_secs(10)), [2]);
    assert_eq!(&world.page(CHANNEL_PAGE)[352..357], b"moved");
}

#[test]
fn who_waits_is_answered_when_its_context_ends() {
    let (mut world, compositor) = World::connected(WindowMode::Premapped);
    assert_eq!(world.poll(1, 1), None);
    assert_eq!(world.poll(2, 1), None);
    world.ok(cmd::CTX_DESTROY, THEIRS, &());
    let mut answered = world.late(Duration::from_secs(10));
    answered.sort_unstable();
    assert_eq!(answered, [1, 2]);
    assert_eq!(receive(&compositor).0, b"", "the connection has ended");
    assert_eq!(
        world.run(cmd::CTX_DESTROY, THEIRS, &()),
        resp::ERR_INVALID_CONTEXT_ID
    );
    // Its rings are the guest's again, and can be others'.
    world.ok(cmd::RESOURCE_UNREF, 0, &only(QUERY));
    world.ok(cmd::RESOURCE_UNREF, 0, &only(CHANNEL));
    drop(world.connect());
}

#[test]
fn a_reset_and_the_next_guest_find_nothing() {
    let (mut world, _compositor) = World::connected(WindowMode::OnDemand);
    world.image();
    assert_eq!(world.poll(1, 1), None);
    let saved = world.gpu.save(&mut Vec::new()).unwrap_err().to_string();
    assert!(saved.contains("under way"), "{saved}");
    world.gpu.reset();
    assert_eq!((world.host.used(), world.gpu.is_new()), (0, true));
    assert!(
        world.late(Duration::from_millis(20)).is_empty(),
        "nobody waits"
    );
    assert!(!world.gpu.window_in_use());
    world.ok(cmd::CTX_CREATE, OURS, &context_body());
    let compositor = world.connect();
    let saved = world.gpu.save(&mut Vec::new()).unwrap_err().to_string();
    assert!(saved.contains("contexts of another renderer"), "{saved}");
    assert_eq!(world.poll(2, 1), None);

    // The daemon's next connection: the same renderer, without the last one's contexts.
    world.gpu = World::gpu(&world.host, &world.renderers, WindowMode::OnDemand);
    assert_eq!(receive(&compositor).0, b"", "the connection has ended");
    let mut compositor = world.connect();
    assert_eq!(world.poll(3, 1), None);
    compositor.write_all(b"again").unwrap();
    assert_eq!(world.late(Duration::from_secs(10)), [3]);
}

#[test]
fn nonsense_is_refused_and_disturbs_nobody() {
    let (mut world, compositor) = World::connected(WindowMode::OnDemand);
    world.image();
    world.ok(cmd::RESOURCE_CREATE_BLOB, OURS, &blob(1, 0, 1));
    let (p, r, x) = (
        resp::ERR_INVALID_PARAMETER,
        resp::ERR_INVALID_RESOURCE_ID,
        resp::ERR_INVALID_CONTEXT_ID,
    );
    let mut check = |kind, context, body: &[u8], code: u32| {
        assert_eq!(world.run(kind, context, body), code, "{kind:#x} {body:x?}");
    };
    // Ids are one space.
    check(cmd::CTX_CREATE, OURS, cross_domain().as_bytes(), x);
    check(cmd::CTX_CREATE, THEIRS, context_body().as_bytes(), x);
    check(cmd::CTX_CREATE, 0, cross_domain().as_bytes(), x);
    check(
        cmd::RESOURCE_CREATE_BLOB,
        OURS,
        blob(IMAGE, 0, 1).as_bytes(),
        r,
    );
    check(
        cmd::RESOURCE_CREATE_BLOB,
        THEIRS,
        blob(1, 1, 1).as_bytes(),
        r,
    );
    check(
        cmd::RESOURCE_CREATE_BLOB,
        THEIRS,
        blob(QUERY, 1, 1).as_bytes(),
        r,
    );
    // Nobody's memory is another's.
    check(cmd::CTX_ATTACH_RESOURCE, THEIRS, only(1).as_bytes(), p);
    check(cmd::CTX_ATTACH_RESOURCE, OURS, only(IMAGE).as_bytes(), r);
    check(cmd::CTX_ATTACH_RESOURCE, THEIRS, only(99).as_bytes(), r);
    check(cmd::CTX_DETACH_RESOURCE, THEIRS, only(99).as_bytes(), r);
    check(cmd::SUBMIT_3D, THEIRS, &submit(&send(b"", Some(1))), r);
    check(
        cmd::SUBMIT_3D,
        THEIRS,
        &submit(&send(b"", Some(QUERY))),
        resp::ERR_UNSPEC,
    );
    // Blobs that no query was made for, or of another size.
    check(
        cmd::RESOURCE_CREATE_BLOB,
        THEIRS,
        blob(30, 0, 1).as_bytes(),
        p,
    );
    check(
        cmd::RESOURCE_CREATE_BLOB,
        THEIRS,
        blob(30, 1 << 32, 1).as_bytes(),
        p,
    );
    check(
        cmd::RESOURCE_CREATE_BLOB,
        THEIRS,
        blob(30, 2, 0).as_bytes(),
        p,
    );
    check(
        cmd::RESOURCE_CREATE_BLOB,
        THEIRS,
        blob(30, 2, 1).as_bytes(),
        resp::ERR_UNSPEC,
    );
    let huge = resp::ERR_OUT_OF_MEMORY;
    check(
        cmd::RESOURCE_CREATE_BLOB,
        THEIRS,
        blob(30, 2, 1 << 40).as_bytes(),
        huge,
    );
    // Streams.
    check(cmd::SUBMIT_3D, THEIRS, &submit(&[0; 64]), p);
    check(cmd::SUBMIT_3D, THEIRS, &submit(&init(1)), p);
    check(cmd::SUBMIT_3D, THEIRS, &submit(&init(0)), p);
    check(cmd::RESOURCE_CREATE_3D, THEIRS, &[0; 48], resp::ERR_UNSPEC);
    check(cmd::RESOURCE_ASSIGN_UUID, 0, only(IMAGE).as_bytes(), r);
    // A ring that this kind of context does not have.
    assert_eq!(world.poll(5, 2).map(|response| response.kind()), Some(p));
    assert_eq!(world.host.used(), 16384 + PAGE);
    world.ok(
        cmd::SUBMIT_3D,
        THEIRS,
        submit(&send(b"still here", None)).as_slice(),
    );
    assert_eq!(receive(&compositor).0, b"still here");
}

#[test]
fn without_a_channel_nobody_waits() {
    let mut world = World::new(WindowMode::Premapped);
    world.ok(cmd::CTX_CREATE, THEIRS, &cross_domain());
    assert!(world.poll(1, 1).is_some());
    world.ring(QUERY, 0);
    world.ok(cmd::SUBMIT_3D, THEIRS, submit(&init(0)).as_slice());
    assert!(world.poll(2, 1).is_some());
    // Queries need none.
    world.image();
    world.ok(cmd::CTX_DESTROY, THEIRS, &());
}

#[test]
fn contexts_are_limited() {
    let mut world = World::new(WindowMode::Premapped);
    for id in 0..MAX_CONTEXTS as u32 {
        world.ok(cmd::CTX_CREATE, 100 + id, &cross_domain());
    }
    let one_more = world.run(cmd::CTX_CREATE, 99, &cross_domain());
    assert_eq!(one_more, resp::ERR_OUT_OF_MEMORY);
    world.ok(cmd::CTX_DESTROY, 100, &());
    world.ok(cmd::CTX_CREATE, 99, &cross_domain());
}

#[test]
fn a_renderer_that_panics_is_lost_and_ours_goes_on() {
    let (mut world, _compositor) = World::connected(WindowMode::OnDemand);
    world.image();
    assert_eq!(world.poll(1, 1), None);
    let lose = |world: &mut World| {
        let renderer = world.gpu.renderer.as_mut().unwrap();
        renderer.call_badly(|| panic!("as asked by a test"));
    };
    lose(&mut world);
    assert_eq!(
        world.late(Duration::from_secs(10)),
        [1],
        "nobody waits any more"
    );
    world.ok(cmd::RESOURCE_CREATE_BLOB, OURS, &blob(1, 0, 1));
    let lost = world.run(cmd::SUBMIT_3D, THEIRS, submit(&send(b"", None)).as_slice());
    assert_eq!(lost, resp::ERR_UNSPEC);
    assert!(world.poll(2, 1).is_some());
    // What the guest has can be given up, and is its own again.
    for resource in [IMAGE, QUERY, CHANNEL] {
        world.ok(cmd::RESOURCE_UNREF, 0, &only(resource));
    }
    world.ok(cmd::CTX_DESTROY, THEIRS, &());
    assert_eq!(world.host.used(), PAGE);
    for number in 1..MAX_LOST {
        world.gpu.reset();
        assert_eq!(
            world.run(cmd::CTX_CREATE, THEIRS, &cross_domain()),
            resp::OK_NODATA,
            "{number}"
        );
        lose(&mut world);
    }
    world.gpu.reset();
    assert_eq!(
        world.run(cmd::CTX_CREATE, THEIRS, &cross_domain()),
        resp::ERR_UNSPEC,
        "enough"
    );
    world.ok(cmd::CTX_CREATE, OURS, &context_body());
}

#[test]
fn a_renderer_that_hangs_is_left_alone() {
    let (mut world, _compositor) = World::connected(WindowMode::Premapped);
    let (release, hanging) = std::sync::mpsc::channel::<()>();
    let start = Instant::now();
    let renderer = world.gpu.renderer.as_mut().unwrap();
    renderer.call_badly(move || {
        let _ = hanging.recv();
    });
    assert!(start.elapsed() < CALL_TIMEOUT * 2);
    world.ok(cmd::RESOURCE_CREATE_BLOB, OURS, &blob(1, 0, 1));
    world.gpu.reset();
    drop(world.connect());
    drop(release);
}

#[test]
fn what_cannot_be_offered_is_told_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nobody");
    let start = |wayland: Option<&std::path::Path>, capsets: &[&str]| {
        let offer = Offer {
            wayland: wayland.map(Into::into),
            capsets: capsets.iter().map(|name| (*name).to_owned()).collect(),
        };
        Renderers::start(offer).unwrap_err().to_string()
    };
    let missing = start(Some(&path), &[]);
    assert!(
        missing.contains("--wayland-socket") && missing.contains("nobody"),
        "{missing}"
    );
    std::fs::write(&path, "a file").unwrap();
    assert!(start(Some(&path), &[]).contains("no compositor answers"));
    assert!(start(None, &[]).contains("nothing is to be offered"));
    for name in ["", "cross-domain", "magma", "gfxstream-vulkan", "nonsense"] {
        assert!(start(None, &[name]).contains("--capsets"), "{name}");
    }
}
