//! What host processes see, and what that means for the guest.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use hostblob_protocol::request::{
    ALL_BUFFERS, Import, ImportResource, Present, Publish, Share, WaitReleased, Withdraw,
};

use hostblob_capset::WindowMode;

use super::*;
use crate::Outside;
use crate::exports::{Event, ExportError, ExportId, Exporter, Exports, MAX_BLOBS, Viewer};
use crate::guest::export::MAX_SHOWN_PAGES;
use crate::host::MAX_CONTEXT_HOLDS;
use crate::provider::Piece;
use crate::provider::fake::Seen;

/// The file that the pages are in, for hosts without udmabuf. It shows all others too: this is for what happens around it.
struct WholeFile;

impl Exporter for WholeFile {
    fn create(&self, pieces: &[Piece]) -> std::io::Result<OwnedFd> {
        Ok(pieces[0].file.try_clone()?.into())
    }
}

/// A fixture with an export socket's side.
pub(super) fn exporting(exports: Arc<Exports>) -> Fixture {
    Fixture::with(|provider, config| {
        let outside = Outside {
            exports: Some(exports),
            exporter: Some(Arc::new(WholeFile)),
        };
        Host::with_outside(provider, config, outside).unwrap()
    })
}

const CLIENT: u64 = 7;
const RESOURCE: u32 = 70;

/// A guest with context 1, and a host process that looks.
struct Shown {
    fixture: Fixture,
    viewer: Viewer,
}

impl Shown {
    fn new() -> Self {
        let exports = Exports::new();
        let viewer = exports.join(Arc::new(|| {})).unwrap();
        let mut fixture = exporting(exports);
        fixture.open(1, RING, RING_OFFSET);
        Self { fixture, viewer }
    }

    /// Memory of 4 pages at the beginning of the window, with a buffer in each page, open.
    fn with_open_memory() -> (Self, ExportId) {
        let mut shown = Self::new();
        let flags = CreateFlags::HOST_VISIBLE | CreateFlags::SHAREABLE;
        shown.create(CLIENT, flags);
        shown.blob(RESOURCE, CLIENT);
        shown.fixture.guest.map_blob(RESOURCE, 0).unwrap();
        for page in 0..4 {
            assert_eq!(shown.ask(publish(CLIENT, page)), Status::Ok);
        }
        let id = shown.listed();
        shown.open(id).unwrap();
        (shown, id)
    }

    fn ask(&mut self, request: impl Into<Ask>) -> Status {
        self.fixture.ask(1, request).status
    }

    fn create(&mut self, client_id: u64, flags: CreateFlags) {
        assert_eq!(self.fixture.create(1, client_id, 4, flags), Status::Ok);
        assert_eq!(self.ask(BindClientId { client_id }), Status::Ok);
    }

    fn blob(&mut self, resource_id: u32, blob_id: u64) {
        let spec = BlobSpec {
            resource_id,
            blob_mem: blob_mem::HOST3D,
            blob_flags: blob_flag::USE_MAPPABLE | blob_flag::USE_SHAREABLE,
            blob_id,
            size: 4 * PAGE,
        };
        self.fixture.guest.create_blob(1, &spec, None).unwrap();
    }

    fn event(&self) -> Option<Event> {
        self.viewer.events().try_recv().ok()
    }

    /// The blob that was added last.
    fn listed(&self) -> ExportId {
        let added = |event| match event {
            Event::Added(blob) => Some(blob.id),
            _ => None,
        };
        let events = self.viewer.events().try_iter();
        events.filter_map(added).last().expect("a blob was added")
    }

    fn open(&mut self, id: ExportId) -> Result<File, ExportError> {
        self.viewer.open(1, id);
        self.fixture.guest.process_completions();
        loop {
            match self.event() {
                Some(Event::Opened { result, .. }) => {
                    return result.map(|opened| opened.descriptor.try_clone().unwrap().into());
                }
                Some(_) => {}
                None => panic!("no descriptor, and no reason"),
            }
        }
    }

    fn wait(&mut self, offset: u64, timeout: u64) -> u64 {
        let client_id = CLIENT;
        let wait = WaitReleased {
            client_id,
            offset,
            timeout,
        };
        self.fixture.send(1, wait)
    }

    fn status(&mut self, sequence: u64) -> Option<Status> {
        self.fixture.guest.process_completions();
        self.fixture.peek(1, sequence).map(|answer| answer.status)
    }
}

fn publish(client_id: u64, page: u64) -> Publish {
    Publish {
        client_id,
        offset: page * PAGE,
        width: 32,
        height: 32,
        stride: 128,
        fourcc: 0x3432_5258,
        modifier: 0,
    }
}

fn present(page: u64) -> Present {
    Present {
        client_id: CLIENT,
        offset: page * PAGE,
    }
}

#[test]
fn buffers_are_shown_changed_presented_and_withdrawn() {
    let (mut shown, id) = Shown::with_open_memory();
    assert_eq!(shown.ask(present(2)), Status::Ok);
    assert!(matches!(
        shown.event(),
        Some(Event::Presented { id: of, offset, present: 1 }) if of == id && offset == 2 * PAGE
    ));
    assert_eq!(shown.ask(publish(CLIENT, 2)), Status::Ok);
    assert!(matches!(shown.event(), Some(Event::Published(of, _)) if of == id));
    let withdraw = Withdraw {
        client_id: CLIENT,
        offset: 2 * PAGE,
    };
    assert_eq!(shown.ask(withdraw), Status::Ok);
    assert!(matches!(shown.event(), Some(Event::Withdrawn(_, offset)) if offset == 2 * PAGE));
    assert_eq!(shown.ask(withdraw), Status::InvalidArgument);
    assert_eq!(shown.ask(present(2)), Status::InvalidArgument);
    assert_eq!(shown.ask(publish(CLIENT, 4)), Status::OutOfRange);
    shown.fixture.guest.unref(RESOURCE).unwrap();
    assert_eq!(shown.ask(Free { client_id: CLIENT }), Status::Ok);
    assert!(matches!(shown.event(), Some(Event::Destroyed(of)) if of == id));
}

#[test]
fn what_is_not_shareable_is_not_shown() {
    let mut shown = Shown::new();
    shown.create(8, CreateFlags::HOST_VISIBLE);
    assert_eq!(shown.ask(publish(8, 0)), Status::NotShareable);
    assert_eq!(shown.ask(Share { client_id: 8 }), Status::NotShareable);
    assert_eq!(shown.ask(publish(9, 0)), Status::UnknownClientId);
    assert!(shown.event().is_none());
    // Where nobody can look, there is nothing to show.
    let mut fixture = Fixture::with_context();
    let flags = CreateFlags::HOST_VISIBLE | CreateFlags::SHAREABLE;
    assert_eq!(fixture.create(1, 8, 4, flags), Status::Ok);
    assert_eq!(fixture.ask(1, publish(8, 0)).status, Status::Unsupported);
    assert_eq!(fixture.ask(1, Share { client_id: 8 }).status, Status::Ok);
}

#[test]
fn what_was_never_published_is_neither_withdrawn_nor_presented_nor_shown() {
    let mut shown = Shown::new();
    shown.create(CLIENT, CreateFlags::HOST_VISIBLE | CreateFlags::SHAREABLE);
    shown.create(8, CreateFlags::HOST_VISIBLE);
    let withdraw = |client_id| Withdraw {
        client_id,
        offset: 0,
    };
    assert_eq!(shown.ask(withdraw(CLIENT)), Status::InvalidArgument);
    assert_eq!(shown.ask(present(0)), Status::InvalidArgument);
    assert_eq!(shown.ask(withdraw(8)), Status::NotShareable);
    assert_eq!(shown.ask(withdraw(9)), Status::UnknownClientId);
    assert!(shown.event().is_none(), "nobody was told of it");
    let guest = &shown.fixture.guest;
    assert!(guest.uuids.is_empty() && guest.shown.is_empty());
    // Shared, it is listed, and has no buffer either.
    assert_eq!(shown.ask(Share { client_id: CLIENT }), Status::Ok);
    assert!(matches!(shown.event(), Some(Event::Added(_))));
    assert_eq!(shown.ask(withdraw(CLIENT)), Status::InvalidArgument);
    assert_eq!(shown.ask(present(0)), Status::InvalidArgument);
    assert!(shown.event().is_none());
}

#[test]
fn a_buffer_that_does_not_fit_shares_nothing() {
    let mut shown = Shown::new();
    shown.create(CLIENT, CreateFlags::HOST_VISIBLE | CreateFlags::SHAREABLE);
    assert_eq!(shown.ask(publish(CLIENT, 4)), Status::OutOfRange);
    let guest = &shown.fixture.guest;
    let memory = &guest.memories[&guest.contexts[&1].names[&CLIENT]];
    assert!(guest.uuids.is_empty() && memory.shared.is_none());
}

#[test]
fn a_share_that_is_refused_leaves_no_name() {
    let mut shown = Shown::new();
    shown.create(CLIENT, CreateFlags::HOST_VISIBLE | CreateFlags::SHAREABLE);
    let exports = shown.fixture.guest.exports.as_ref().unwrap();
    let others: Vec<ExportId> = (0..MAX_BLOBS)
        .map(|_| exports.add([0; 16], PAGE, "other").unwrap())
        .collect();
    let share = Share { client_id: CLIENT };
    assert_eq!(shown.ask(share), Status::TooManyObjects);
    let guest = &shown.fixture.guest;
    let key = guest.contexts[&1].names[&CLIENT];
    assert!(guest.uuids.is_empty() && guest.memories[&key].shared().uuid.is_none());
    // With room again it is shared.
    guest.exports.as_ref().unwrap().remove(others[0]);
    assert_eq!(shown.ask(share), Status::Ok);
    assert_eq!(shown.fixture.guest.uuids.len(), 1);
}

#[test]
fn a_wait_ends_with_the_last_release() {
    let (mut shown, id) = Shown::with_open_memory();
    let nobody = shown.wait(PAGE, 1_000_000_000);
    assert_eq!(shown.status(nobody), Some(Status::Ok), "never presented");
    for _ in 0..2 {
        assert_eq!(shown.ask(present(1)), Status::Ok);
    }
    let now = shown.wait(PAGE, 0);
    assert_eq!(shown.status(now), Some(Status::Timeout));
    let waits = shown.wait(PAGE, u64::MAX);
    let fence = shown.fixture.guest.fence(1, Some(0));
    assert_eq!(shown.status(waits), None);
    assert!(!shown.fixture.guest.reached(&fence));
    let other_ring = shown.fixture.guest.fence(1, Some(5));
    assert!(shown.fixture.guest.reached(&other_ring));
    let other_buffer = shown.wait(0, u64::MAX);
    assert_eq!(shown.status(other_buffer), Some(Status::Ok));
    shown.viewer.release(id, PAGE, 2).unwrap();
    assert_eq!(shown.status(waits), Some(Status::Ok));
    assert!(shown.fixture.guest.reached(&fence));
    assert_eq!(shown.fixture.guest.waiting(), 0);

    let open = shown.wait(ALL_BUFFERS, u64::MAX);
    assert_eq!(shown.status(open), None);
    shown.viewer.close(id).unwrap();
    assert_eq!(shown.status(open), Some(Status::Ok));
}

/// Each wait may keep a descriptor of the queue that all processes of the guest have.
#[test]
fn waits_leave_room_in_the_queue() {
    let (mut shown, id) = Shown::with_open_memory();
    for _ in 0..MAX_CONTEXT_HOLDS {
        let waits = shown.wait(ALL_BUFFERS, u64::MAX);
        assert_eq!(shown.status(waits), None);
    }
    let refused = shown.wait(ALL_BUFFERS, u64::MAX);
    assert_eq!(shown.status(refused), Some(Status::TooManyObjects));
    shown.viewer.close(id).unwrap();
    let nobody = shown.wait(ALL_BUFFERS, u64::MAX);
    assert_eq!(shown.status(nobody), Some(Status::Ok));
    assert_eq!(shown.fixture.guest.waiting(), 0);
}

#[test]
fn a_wait_ends_when_its_time_is_over() {
    let (mut shown, _) = Shown::with_open_memory();
    let waits = shown.wait(ALL_BUFFERS, 1_000_000);
    let fence = shown.fixture.guest.fence(1, None);
    let status = loop {
        if let Some(status) = shown.status(waits) {
            break status;
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    assert_eq!(status, Status::Timeout);
    assert!(shown.fixture.guest.reached(&fence));
}

impl Shown {
    /// GPU work on the open memory, and a wait for its release, in one envelope.
    fn fill_and_wait(&mut self, timeout: u64) -> u64 {
        let fill = Fill {
            range: range(CLIENT, 0, PAGE),
            value: 1,
        };
        let wait = WaitReleased {
            client_id: CLIENT,
            offset: ALL_BUFFERS,
            timeout,
        };
        self.fixture.sequence += 1;
        let envelope = EnvelopeBuilder::new(self.fixture.sequence);
        let bytes = envelope.request(fill).request(wait).build();
        self.fixture.guest.submit(1, 0, &bytes).unwrap();
        self.fixture.sequence
    }

    fn wait_for_work(&mut self) {
        let guest = &mut self.fixture.guest;
        guest.wait_for(guest.work.submitted()).unwrap();
    }
}

#[test]
fn work_and_a_wait_in_one_envelope_are_both_waited_for() {
    let (mut shown, id) = Shown::with_open_memory();
    // The release last.
    let sequence = shown.fill_and_wait(u64::MAX);
    shown.wait_for_work();
    assert_eq!(shown.status(sequence), None);
    shown.viewer.close(id).unwrap();
    assert_eq!(shown.status(sequence), Some(Status::Ok));

    // The work last, whoever opens the memory meanwhile.
    shown.open(id).unwrap();
    shown.fixture.fake.hold();
    let sequence = shown.fill_and_wait(u64::MAX);
    let fence = shown.fixture.guest.fence(1, None);
    shown.viewer.close(id).unwrap();
    assert_eq!(shown.status(sequence), None, "the FILL is not done");
    shown.open(id).unwrap();
    shown.fixture.fake.release_all();
    shown.wait_for_work();
    assert_eq!(shown.status(sequence), Some(Status::Ok));
    assert!(shown.fixture.guest.reached(&fence));

    // So it is where the time is over.
    shown.fixture.fake.hold();
    let sequence = shown.fill_and_wait(1);
    std::thread::sleep(Duration::from_millis(1));
    assert_eq!(shown.status(sequence), None);
    shown.fixture.fake.release_all();
    shown.wait_for_work();
    assert_eq!(shown.status(sequence), Some(Status::Timeout));
    assert_eq!(shown.fixture.guest.waiting(), 0);
}

#[test]
fn work_that_fails_before_a_release_is_what_the_answer_says() {
    let (mut shown, id) = Shown::with_open_memory();
    let before = shown.fill_and_wait(u64::MAX);
    shown.wait_for_work();
    let lost = ProviderError::DeviceLost("test".into());
    shown.fixture.fake.refuse_next(lost);
    let failed = shown.fill_and_wait(u64::MAX);
    shown.wait_for_work();
    assert_eq!(shown.status(failed), None);
    shown.viewer.close(id).unwrap();
    assert_eq!(shown.status(failed), Some(Status::DeviceLost));
    assert_eq!(shown.status(before), Some(Status::Ok));
}

#[test]
fn a_wait_is_the_last_of_its_envelope_and_dies_with_its_context() {
    let (mut shown, _) = Shown::with_open_memory();
    let wait = WaitReleased {
        client_id: CLIENT,
        offset: ALL_BUFFERS,
        timeout: u64::MAX,
    };
    shown.fixture.sequence += 1;
    let sequence = shown.fixture.sequence;
    let bytes = EnvelopeBuilder::new(sequence)
        .request(wait)
        .request(Free { client_id: CLIENT })
        .build();
    shown.fixture.guest.submit(1, 0, &bytes).unwrap();
    assert_eq!(shown.status(sequence), Some(Status::InvalidArgument));
    // Nobody waits for what was refused.
    assert_eq!(shown.fixture.guest.waiting(), 0);
    let refused = shown.fixture.guest.fence(1, None);
    assert!(shown.fixture.guest.reached(&refused));
    shown.wait(ALL_BUFFERS, u64::MAX);
    let fence = shown.fixture.guest.fence(1, None);
    shown.fixture.guest.destroy_context(1).unwrap();
    assert!(shown.fixture.guest.reached(&fence));
}

#[test]
fn open_memory_stays_where_it_is() {
    let (mut shown, id) = Shown::with_open_memory();
    let guest = &mut shown.fixture.guest;
    guest.unmap_blob(RESOURCE).unwrap();
    assert_eq!(guest.map_blob(RESOURCE, 8 * PAGE), Err(Error::InUse));
    // Nor does it make room.
    let other = BlobSpec {
        resource_id: 1,
        blob_mem: blob_mem::HOST3D,
        blob_flags: blob_flag::USE_MAPPABLE,
        blob_id: 0,
        size: PAGE,
    };
    guest.create_blob(1, &other, None).unwrap();
    assert!(matches!(guest.map_blob(1, 0), Err(Error::Occupied { .. })));
    shown.viewer.close(id).unwrap();
    let guest = &mut shown.fixture.guest;
    guest.map_blob(1, 0).unwrap();
    guest.map_blob(RESOURCE, 8 * PAGE).unwrap();
    shown.open(id).unwrap();
}

#[test]
fn pages_that_went_outside_are_not_used_again() {
    for outside in [false, true] {
        let mut shown = Shown::new();
        let flags = CreateFlags::HOST_VISIBLE | CreateFlags::SHAREABLE;
        shown.create(CLIENT, flags);
        shown.blob(RESOURCE, CLIENT);
        shown.fixture.guest.map_blob(RESOURCE, 0).unwrap();
        assert_eq!(shown.ask(publish(CLIENT, 0)), Status::Ok);
        if outside {
            let id = shown.listed();
            shown.open(id).unwrap();
        }
        let guest = &mut shown.fixture.guest;
        let key = guest.contexts[&1].names[&CLIENT];
        for word in guest.memories[&key].words().unwrap() {
            word.store(5, Ordering::Relaxed);
        }
        guest.unref(RESOURCE).unwrap();
        assert_eq!(shown.ask(Free { client_id: CLIENT }), Status::Ok);
        shown.fixture.guest.window().settle();
        let warm = shown.fixture.guest.window().occupancy().warm;
        assert_eq!(warm, if outside { 0 } else { 4 * PAGE });
    }
}

#[test]
fn guest_pages_come_back_when_the_last_who_looks_has_closed() {
    let mut shown = Shown::new();
    let memory = rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&memory, 8 * PAGE).unwrap();
    let pages = vec![Piece {
        file: Arc::new(memory.into()),
        offset: PAGE,
        length: 4 * PAGE,
    }];
    let spec = BlobSpec {
        resource_id: RESOURCE,
        blob_mem: blob_mem::GUEST,
        blob_flags: blob_flag::USE_SHAREABLE,
        blob_id: 0,
        size: 4 * PAGE,
    };
    let guest = &mut shown.fixture.guest;
    guest.create_blob(0, &spec, Some(pages.clone())).unwrap();
    guest.attach_resource(1, RESOURCE).unwrap();
    let import = ImportResource {
        client_id: CLIENT,
        resource_id: RESOURCE,
    };
    assert_eq!(shown.ask(import), Status::Ok);
    assert_eq!(shown.ask(publish(CLIENT, 0)), Status::Ok);
    let id = shown.listed();
    shown.open(id).unwrap();
    let detached = shown.fixture.guest.detach_backing(RESOURCE).unwrap();
    assert!(!shown.fixture.guest.reached(&detached));
    assert!(matches!(shown.event(), Some(Event::Destroyed(of)) if of == id));
    shown.viewer.close(id).unwrap();
    shown.fixture.guest.process_completions();
    assert!(shown.fixture.guest.reached(&detached));

    shown.fixture.guest.attach_backing(RESOURCE, pages).unwrap();
    assert_eq!(shown.ask(publish(CLIENT, 0)), Status::Ok);
    let again = shown.listed();
    shown.open(again).unwrap();
    let unref = shown.fixture.guest.unref(RESOURCE).unwrap();
    assert!(!shown.fixture.guest.reached(&unref));
    drop(std::mem::replace(
        &mut shown.viewer,
        Exports::new().join(Arc::new(|| {})).unwrap(),
    ));
    shown.fixture.guest.process_completions();
    assert!(shown.fixture.guest.reached(&unref), "leaving closes");
}

/// The command that ends one waits for who has it open, and keeps its place in the guest's queue.
#[test]
fn as_many_blobs_of_guest_pages_are_shown_as_may_be_waited_for() {
    let mut shown = Shown::new();
    let number = u32::try_from(MAX_SHOWN_PAGES).unwrap();
    let publish = |shown: &mut Shown, number: u32| {
        let client_id = CLIENT + u64::from(number);
        let resource_id = RESOURCE + number;
        let spec = BlobSpec {
            resource_id,
            blob_mem: blob_mem::GUEST,
            blob_flags: blob_flag::USE_SHAREABLE,
            blob_id: 0,
            size: 4 * PAGE,
        };
        let file = crate::provider::sealed_memfd("guest", 4 * PAGE).unwrap();
        let piece = Piece {
            file: Arc::new(file.into()),
            offset: 0,
            length: 4 * PAGE,
        };
        let guest = &mut shown.fixture.guest;
        guest.create_blob(0, &spec, Some(vec![piece])).unwrap();
        guest.attach_resource(1, resource_id).unwrap();
        let import = ImportResource {
            client_id,
            resource_id,
        };
        assert_eq!(shown.ask(import), Status::Ok);
        shown.ask(publish(client_id, 0))
    };
    for number in 0..number {
        assert_eq!(publish(&mut shown, number), Status::Ok, "{number}");
    }
    let last = shown.listed();
    assert_eq!(publish(&mut shown, number), Status::TooManyObjects);
    // It is no other than before while somebody has an ended one open.
    shown.open(last).unwrap();
    let end = shown.fixture.guest.unref(RESOURCE + number - 1).unwrap();
    assert!(!shown.fixture.guest.reached(&end));
    assert_eq!(publish(&mut shown, number + 1), Status::TooManyObjects);
    shown.viewer.close(last).unwrap();
    shown.fixture.guest.process_completions();
    assert_eq!(publish(&mut shown, number + 2), Status::Ok);
}

#[test]
fn memory_of_a_host_process_is_imported() {
    let mut shown = Shown::new();
    let memory = crate::provider::sealed_memfd("foreign", 4 * PAGE).unwrap();
    let file = File::from(memory.try_clone().unwrap());
    let uuid = shown.viewer.hand_in(memory).unwrap();
    let import = |client_id| Import { client_id, uuid };
    assert_eq!(shown.ask(import(0)), Status::InvalidArgument);
    assert_eq!(shown.ask(import(CLIENT)), Status::Ok);
    assert_eq!(shown.ask(import(CLIENT)), Status::ClientIdInUse);
    let fill = Fill {
        range: range(CLIENT, PAGE, 4),
        value: 9,
    };
    assert_eq!(shown.ask(fill), Status::Ok);
    let added = shown
        .fixture
        .fake
        .requests()
        .into_iter()
        .find_map(|request| match request.request {
            Seen::AddPieces { file, lengths } => Some((file, lengths)),
            _ => None,
        });
    let (name, lengths) = added.expect("the provider knows the memory");
    assert_eq!(lengths, [4 * PAGE]);
    let mut bytes = [0; 4];
    file.read_exact_at(&mut bytes, PAGE).unwrap();
    assert_eq!(bytes, [9, 0, 0, 0]);
    assert_eq!(shown.ask(Free { client_id: CLIENT }), Status::Ok);
    let removed = Seen::RemoveFile { file: name };
    assert_eq!(shown.fixture.fake.count_of(|seen| *seen == removed), 1);
    shown.viewer.take_back(uuid).unwrap();
    assert_eq!(shown.ask(import(CLIENT)), Status::UnknownUuid);
}

/// Memory of 4 pages that a host process handed in, named [`CLIENT`].
fn foreign(shown: &mut Shown) -> File {
    let memory = crate::provider::sealed_memfd("foreign", 4 * PAGE).unwrap();
    let file = File::from(memory.try_clone().unwrap());
    let uuid = shown.viewer.hand_in(memory).unwrap();
    let client_id = CLIENT;
    assert_eq!(shown.ask(Import { client_id, uuid }), Status::Ok);
    file
}

fn inode(file: &File) -> u64 {
    std::os::unix::fs::MetadataExt::ino(&file.metadata().unwrap())
}

#[test]
fn memory_of_a_host_process_is_mapped_where_blobs_are_mapped_one_by_one() {
    let mut shown = Shown::new();
    shown.fixture.guest.capset.window_mode = WindowMode::OnDemand;
    let file = foreign(&mut shown);
    let client_id = CLIENT;
    assert_eq!(shown.ask(BindClientId { client_id }), Status::Ok);
    shown.blob(RESOURCE, CLIENT);
    let guest = &mut shown.fixture;
    assert_eq!(guest.guest.mapping(RESOURCE), None);
    guest.guest.map_blob(RESOURCE, 8 * PAGE).unwrap();
    let mapping = guest.guest.mapping(RESOURCE).unwrap();
    assert_eq!(
        (mapping.span.start(), mapping.span.len()),
        (8 * PAGE, 4 * PAGE)
    );
    assert_eq!(
        inode(mapping.elsewhere.unwrap().file().unwrap()),
        inode(&file)
    );

    // Nobody else gets the place, and its own bytes are left alone.
    guest.plain(1, 2, PAGE).unwrap();
    let taken = guest.guest.map_blob(2, 9 * PAGE).unwrap_err();
    assert!(matches!(taken, Error::Occupied { .. }), "{taken}");
    let fill = Fill {
        range: range(CLIENT, 0, 4 * PAGE),
        value: 9,
    };
    assert_eq!(shown.ask(fill), Status::Ok);
    let guest = &mut shown.fixture;
    assert!(guest.all(8, 4, 0), "the GPU writes into the file");
    let mut bytes = [0; 4];
    file.read_exact_at(&mut bytes, 3 * PAGE).unwrap();
    assert_eq!(bytes, [9, 0, 0, 0]);

    // Unmapped, the place is free; mapped elsewhere it is the same file.
    guest.guest.unmap_blob(RESOURCE).unwrap();
    assert_eq!(guest.guest.mapping(RESOURCE), None);
    guest.guest.map_blob(2, 9 * PAGE).unwrap();
    let own = guest.guest.mapping(2).unwrap();
    assert_eq!(
        (own.span.start(), own.elsewhere.is_none()),
        (9 * PAGE, true)
    );
    assert!(guest.all(9, 1, 0));
    guest.guest.map_blob(RESOURCE, 0).unwrap();
    let mapping = guest.guest.mapping(RESOURCE).unwrap();
    assert_eq!(
        inode(mapping.elsewhere.unwrap().file().unwrap()),
        inode(&file)
    );
    guest.guest.unref(RESOURCE).unwrap();
    guest.plain(1, 3, PAGE).unwrap();
    guest.guest.map_blob(3, PAGE).unwrap();
}

#[test]
fn memory_of_a_host_process_is_not_mapped_into_a_whole_window() {
    let mut shown = Shown::new();
    foreign(&mut shown);
    let client_id = CLIENT;
    assert_eq!(shown.ask(BindClientId { client_id }), Status::NotMappable);
}

#[test]
fn a_mapped_memory_of_a_host_process_outlives_its_context_and_no_reset() {
    let mut shown = Shown::new();
    shown.fixture.guest.capset.window_mode = WindowMode::OnDemand;
    foreign(&mut shown);
    let client_id = CLIENT;
    assert_eq!(shown.ask(BindClientId { client_id }), Status::Ok);
    shown.blob(RESOURCE, CLIENT);
    let guest = &mut shown.fixture.guest;
    guest.map_blob(RESOURCE, 0).unwrap();
    guest.destroy_context(1).unwrap();
    assert!(
        guest
            .mapping(RESOURCE)
            .is_some_and(|m| m.elsewhere.is_some())
    );
    let held = |guest: &Guest| guest.window().occupancy().held;
    assert!(held(guest) >= 4 * PAGE);
    guest.reset();
    assert_eq!((guest.mapping(RESOURCE), held(guest)), (None, 0));
}
