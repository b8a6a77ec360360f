//! Saved and restored: the same guest, whatever it did before; and what is no snapshot.

use std::time::Duration;

use hostblob_protocol::request::{ImportResource, Publish, Share, WaitReleased};
use proptest::prelude::*;

use super::*;
use crate::exports::{Event, Exports};
use crate::guest::snapshot::stream::{FormatError, Reader, VERSION, Writer};
use crate::guest::snapshot::{RestoreError, SaveError};
use crate::provider::fake::Seen;
use crate::provider::system::SystemProvider;
use crate::provider::vulkan::VulkanProvider;
use crate::provider::{
    CompletionSink, Description, MemoryType, Options, Piece, Placement, Session, property,
};
use crate::quota::{Exceeded, Level};

const MAGIC: [u8; 8] = *b"HBLBGUES";
const CONTEXTS: u32 = 3;

#[derive(Debug, Clone, Copy)]
enum Kind {
    Direct,
    Unbound,
    Shareable,
    Device,
}

#[derive(Debug, Clone)]
enum Op {
    Open(u32),
    Destroy(u32),
    Create(u32, u64, u64, Kind),
    Bind(u32, u64),
    Free(u32, u64),
    Blob(u32, u32, u64, u64, bool),
    Pages(u32, u64, bool),
    Detach(u32),
    Map(u32, u64),
    Unmap(u32),
    Unref(u32),
    Write(u32, u64, u64),
    Fill(u32, u64, u64, u64, u32),
    Copy(u32, u64, u64),
    Attach(u32, u32),
    Import(u32, u32, u64),
    Share(u32, u64),
}

fn op() -> impl Strategy<Value = Op> {
    let context = 1..=CONTEXTS;
    let client = 1..8_u64;
    let resource = 1..8_u32;
    let kind = prop_oneof![
        3 => Just(Kind::Direct),
        1 => Just(Kind::Unbound),
        1 => Just(Kind::Shareable),
        2 => Just(Kind::Device)
    ];
    prop_oneof![
        2 => context.clone().prop_map(Op::Open),
        1 => context.clone().prop_map(Op::Destroy),
        6 => (context.clone(), client.clone(), 1..6_u64, kind)
            .prop_map(|(context, client, pages, kind)| Op::Create(context, client, pages, kind)),
        2 => (context.clone(), client.clone()).prop_map(|(a, b)| Op::Bind(a, b)),
        1 => (context.clone(), client.clone()).prop_map(|(a, b)| Op::Free(a, b)),
        6 => (context.clone(), resource.clone(), 0..8_u64, 1..6_u64, any::<bool>())
            .prop_map(|(a, b, c, d, e)| Op::Blob(a, b, c, d, e)),
        1 => (resource.clone(), 1..6_u64, any::<bool>()).prop_map(|(a, b, c)| Op::Pages(a, b, c)),
        1 => resource.clone().prop_map(Op::Detach),
        6 => (resource.clone(), 0..24_u64).prop_map(|(a, b)| Op::Map(a, b)),
        3 => resource.clone().prop_map(Op::Unmap),
        1 => resource.clone().prop_map(Op::Unref),
        6 => (resource.clone(), 0..6_u64, 1..u64::MAX).prop_map(|(a, b, c)| Op::Write(a, b, c)),
        4 => (context.clone(), client.clone(), 0..6_u64, 1..6_u64, any::<u32>())
            .prop_map(|(a, b, c, d, e)| Op::Fill(a, b, c, d, e)),
        2 => (context.clone(), client.clone(), client.clone()).prop_map(|(a, b, c)| Op::Copy(a, b, c)),
        1 => (context.clone(), resource.clone()).prop_map(|(a, b)| Op::Attach(a, b)),
        1 => (context.clone(), resource, client.clone()).prop_map(|(a, b, c)| Op::Import(a, b, c)),
        1 => (context, client).prop_map(|(a, b)| Op::Share(a, b)),
    ]
}

fn pages_of_a_file(pages: u64) -> Vec<Piece> {
    let file = crate::provider::sealed_memfd("pages", pages * PAGE).unwrap();
    vec![Piece {
        file: Arc::new(file.into()),
        offset: 0,
        length: pages * PAGE,
    }]
}

impl Fixture {
    /// Submits and waits; what the guest sees of it.
    fn attempt(&mut self, context: u32, request: impl Into<Ask>) -> String {
        self.sequence += 1;
        let bytes = EnvelopeBuilder::new(self.sequence).request(request).build();
        let submitted = self.guest.submit(context, 0, &bytes);
        self.guest.wait_for(self.guest.work.submitted()).unwrap();
        let ring = self
            .guest
            .contexts
            .get(&context)
            .and_then(|context| context.answers)
            .and_then(|(key, _)| self.guest.memories.get(&key));
        let answer = ring
            .and_then(|memory| Ring::new(memory.words()?))
            .and_then(|ring| ring.read(self.sequence));
        let answer = answer.map(|answer| (answer.status, answer.details));
        format!("{submitted:?} {answer:?}")
    }

    /// What came of it, as the guest sees it.
    fn apply(&mut self, op: &Op) -> String {
        match *op {
            Op::Open(context) => {
                let resource = RING + context;
                let created = self.guest.create_context(context, "prop");
                let blob = self.plain(context, resource, PAGE);
                let place = RING_OFFSET - u64::from(context) * PAGE;
                let mapped = self.guest.map_blob(resource, place);
                let offer = Offer::EVERYTHING;
                let open = OpenAnswers {
                    resource_id: resource,
                    major: offer.major,
                    minor: offer.minor,
                    requests: offer.requests,
                    create_flags: offer.create_flags,
                };
                format!(
                    "{created:?} {blob:?} {mapped:?} {}",
                    self.attempt(context, open)
                )
            }
            Op::Destroy(context) => format!("{:?}", self.guest.destroy_context(context)),
            Op::Create(context, client, pages, kind) => {
                let (flags, selector) = match kind {
                    Kind::Direct => (DIRECT, MemorySelector::Properties(0x2)),
                    Kind::Unbound => (CreateFlags::HOST_VISIBLE, MemorySelector::Properties(0x2)),
                    Kind::Shareable => (
                        DIRECT | CreateFlags::SHAREABLE,
                        MemorySelector::Properties(0x2),
                    ),
                    Kind::Device => (CreateFlags::empty(), MemorySelector::Index(0)),
                };
                let create = Create {
                    memory: selector,
                    ..create(client, pages * PAGE, flags)
                };
                self.attempt(context, create)
            }
            Op::Bind(context, client_id) => self.attempt(context, BindClientId { client_id }),
            Op::Free(context, client_id) => self.attempt(context, Free { client_id }),
            Op::Blob(context, resource_id, blob_id, pages, shareable) => {
                let sharing = if shareable {
                    blob_flag::USE_SHAREABLE
                } else {
                    0
                };
                let spec = BlobSpec {
                    resource_id,
                    blob_mem: blob_mem::HOST3D,
                    blob_flags: blob_flag::USE_MAPPABLE | sharing,
                    blob_id,
                    size: pages * PAGE,
                };
                format!("{:?}", self.guest.create_blob(context, &spec, None))
            }
            Op::Pages(resource_id, pages, attached) => {
                let spec = BlobSpec {
                    resource_id,
                    blob_mem: blob_mem::GUEST,
                    blob_flags: 0,
                    blob_id: 0,
                    size: pages * PAGE,
                };
                let pieces = attached.then(|| pages_of_a_file(pages));
                format!("{:?}", self.guest.create_blob(0, &spec, pieces))
            }
            Op::Detach(resource) => format!("{:?}", self.guest.detach_backing(resource).is_ok()),
            Op::Map(resource, page) => format!("{:?}", self.guest.map_blob(resource, page * PAGE)),
            Op::Unmap(resource) => format!("{:?}", self.guest.unmap_blob(resource)),
            Op::Unref(resource) => format!("{:?}", self.guest.unref(resource).is_ok()),
            Op::Write(resource, page, value) => {
                let mapped = self.guest.blobs.get(&resource).filter(|blob| blob.mapped);
                let memory = mapped
                    .and_then(|blob| blob.memory)
                    .and_then(|key| self.guest.memories.get(&key));
                let at = usize::try_from(page * PAGE / 8).unwrap();
                let words = memory.and_then(|memory| memory.words()).unwrap_or_default();
                for word in words.iter().skip(at).take(512) {
                    word.store(value, Ordering::Relaxed);
                }
                String::new()
            }
            Op::Fill(context, client, page, pages, value) => self.attempt(
                context,
                Fill {
                    range: range(client, page * PAGE, pages * PAGE),
                    value,
                },
            ),
            Op::Copy(context, from, to) => self.attempt(
                context,
                Copy {
                    source: range(from, 0, PAGE),
                    destination_client_id: to,
                    destination_offset: 0,
                },
            ),
            Op::Attach(context, resource) => {
                format!("{:?}", self.guest.attach_resource(context, resource))
            }
            Op::Import(context, resource_id, client_id) => self.attempt(
                context,
                ImportResource {
                    client_id,
                    resource_id,
                },
            ),
            // The UUID is random.
            Op::Share(context, client_id) => {
                self.attempt(context, Share { client_id });
                String::new()
            }
        }
    }

    fn saved(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.guest.save(&mut bytes).unwrap();
        bytes
    }

    fn restore(&mut self, mut bytes: &[u8]) -> Result<(), RestoreError> {
        let restored = self.guest.restore(&mut bytes);
        if restored.is_ok() {
            assert!(bytes.is_empty(), "all was read");
        } else {
            assert!(self.is_new());
        }
        restored
    }

    fn restored(bytes: &[u8]) -> Self {
        let mut fixture = Self::new();
        fixture.restore(bytes).unwrap();
        fixture
    }

    fn is_new(&mut self) -> bool {
        self.guest
            .wait_for(self.guest.work.submitted())
            .expect("no work is stuck");
        self.guest.contexts.is_empty()
            && self.guest.blobs.is_empty()
            && self.guest.memories.is_empty()
            && self.guest.uuids.is_empty()
            && self.guest.host.used() == 0
    }

    /// Brings pages to each blob that had some, as the device does.
    fn attach_pages(&mut self, of: &Fixture) {
        for (&resource, blob) in &of.guest.blobs {
            let memory = blob.memory.and_then(|key| of.guest.memories.get(&key));
            if let Some(Memory {
                home: Home::Pages(pages),
                ..
            }) = memory.map(Box::as_ref)
            {
                let pieces = pages.pieces.clone();
                self.guest.attach_backing(resource, pieces).unwrap();
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Whatever a guest did, the restored one has the same tables and bytes, and goes on in the same way.
    #[test]
    fn a_restored_guest_is_the_same_and_goes_on_the_same(
        before in prop::collection::vec(op(), 0..60),
        after in prop::collection::vec(op(), 0..40),
    ) {
        let mut first = Fixture::with_context();
        for op in [Op::Open(2)].iter().chain(&before) {
            first.apply(op);
        }
        let bytes = first.saved();
        let mut second = Fixture::restored(&bytes);
        prop_assert!(second.saved() == bytes, "saved again, it is the same");
        prop_assert_eq!(first.guest.host.used(), second.guest.host.used());
        for (id, context) in &first.guest.contexts {
            let other = &second.guest.contexts[id];
            prop_assert_eq!(context.quota.used(), other.quota.used());
            prop_assert_eq!(context.objects, other.objects);
            prop_assert_eq!(&context.names, &other.names);
        }
        second.attach_pages(&first);
        second.sequence = first.sequence;
        for op in after.iter().filter(|op| !matches!(op, Op::Share(..))) {
            prop_assert_eq!(first.apply(op), second.apply(op), "{:?}", op);
        }
        prop_assert!(first.saved() == second.saved());
        for fixture in [&mut first, &mut second] {
            fixture.guest.reset();
            prop_assert!(fixture.is_new());
        }
    }

    /// A stranger who knows the format: each section's checksum is right, what is in it is not.
    #[test]
    fn forged_sections_are_refused_or_make_a_guest_that_works(
        before in prop::collection::vec(op(), 0..60),
        forgeries in prop::collection::vec((any::<prop::sample::Index>(), forgery()), 1..4),
        after in prop::collection::vec(op(), 0..30),
    ) {
        let mut first = Fixture::with_context();
        for op in [Op::Open(2)].iter().chain(&before) {
            first.apply(op);
        }
        let mut sections = sections(&first.saved());
        for (index, forgery) in &forgeries {
            forgery.apply(&mut sections, *index);
        }
        let mut second = Fixture::new();
        if second.restore(&stream(&sections)).is_ok() {
            for op in &after {
                second.apply(op);
            }
            second.guest.reset();
            prop_assert!(second.is_new());
        }
    }
}

type Section = (u32, Vec<u8>);

fn sections(mut bytes: &[u8]) -> Vec<Section> {
    let mut reader = Reader::new(&mut bytes, MAGIC).unwrap();
    let mut sections = Vec::new();
    while let Some((tag, payload)) = reader.next_section().unwrap() {
        sections.push((tag, payload.to_vec()));
    }
    sections
}

fn stream(sections: &[Section]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = Writer::new(&mut bytes, MAGIC).unwrap();
    for (tag, payload) in sections {
        writer.section(*tag, payload).unwrap();
    }
    writer.finish().unwrap();
    bytes
}

#[derive(Debug, Clone)]
enum Forgery {
    Flip(prop::sample::Index, u8),
    Number(prop::sample::Index, u64),
    Cut(prop::sample::Index),
    Remove,
    Repeat,
    Move(prop::sample::Index),
    Kind(u32),
}

fn forgery() -> impl Strategy<Value = Forgery> {
    let extreme = prop_oneof![
        Just(0),
        Just(1),
        Just(PAGE),
        Just(WINDOW),
        Just(WINDOW - PAGE),
        Just(u64::MAX),
        Just(u64::MAX - PAGE + 1),
        0..16_u64
    ];
    prop_oneof![
        4 => (any::<prop::sample::Index>(), 0..8_u8).prop_map(|(at, bit)| Forgery::Flip(at, bit)),
        4 => (any::<prop::sample::Index>(), extreme).prop_map(|(at, value)| Forgery::Number(at, value)),
        1 => any::<prop::sample::Index>().prop_map(Forgery::Cut),
        1 => Just(Forgery::Remove),
        1 => Just(Forgery::Repeat),
        1 => any::<prop::sample::Index>().prop_map(Forgery::Move),
        1 => (1..9_u32).prop_map(Forgery::Kind),
    ]
}

impl Forgery {
    fn apply(&self, sections: &mut Vec<Section>, index: prop::sample::Index) {
        if sections.is_empty() {
            return;
        }
        let at = index.index(sections.len());
        let (kind, payload) = &mut sections[at];
        match self {
            Self::Flip(byte, bit) if !payload.is_empty() => {
                let byte = byte.index(payload.len().min(256));
                payload[byte] ^= 1 << bit;
            }
            Self::Number(byte, value) if payload.len() >= 8 => {
                let byte = byte.index(payload.len().min(256) - 7);
                payload[byte..byte + 8].copy_from_slice(&value.to_le_bytes());
            }
            Self::Cut(byte) if !payload.is_empty() => payload.truncate(byte.index(payload.len())),
            Self::Flip(..) | Self::Number(..) | Self::Cut(_) => {}
            Self::Remove => {
                sections.remove(at);
            }
            Self::Repeat => {
                let section = sections[at].clone();
                sections.insert(at, section);
            }
            Self::Move(to) => {
                let section = sections.remove(at);
                sections.insert(to.index(sections.len() + 1), section);
            }
            Self::Kind(other) => *kind = *other,
        }
    }
}

/// A guest with some of everything.
fn rich() -> Fixture {
    let mut fixture = Fixture::with_context();
    fixture.open(2, RING + 1, RING_OFFSET - PAGE);
    fixture.allocate(1, 1, 1, 0, 4);
    fixture.write(1, 1, 0x11);
    fixture.allocate(1, 2, 2, 8, 2);
    fixture.write(8, 2, 0x22);
    fixture.guest.unmap_blob(2).unwrap();
    // The second one is parked.
    fixture.allocate(2, 1, 3, 8, 2);
    fixture.write(9, 1, 0x33);
    for op in [
        Op::Create(1, 5, 3, Kind::Device),
        Op::Fill(1, 5, 1, 1, 0x44),
        Op::Create(2, 6, 1, Kind::Shareable),
        Op::Share(2, 6),
        Op::Create(2, 7, 1, Kind::Unbound),
        Op::Attach(2, 1),
        Op::Import(2, 1, 9),
        Op::Pages(6, 2, true),
    ] {
        fixture.apply(&op);
    }
    fixture
}

#[test]
fn bytes_names_and_places_survive() {
    let bytes = rich().saved();
    let mut fixture = Fixture::restored(&bytes);
    assert!(fixture.all(0, 1, 0) && fixture.all(1, 1, 0x11) && fixture.all(2, 2, 0));
    assert!(fixture.all(8, 1, 0) && fixture.all(9, 1, 0x33));
    fixture.sequence = 100;
    fixture.guest.map_blob(2, 12 * PAGE).unwrap();
    assert!(fixture.all(12, 2, 0x22), "it was parked");
    let copy = Copy {
        source: range(5, 0, 3 * PAGE),
        destination_client_id: 1,
        destination_offset: 0,
    };
    assert_eq!(fixture.ask(1, copy).status, Status::Ok);
    assert!(
        fixture.all(0, 1, 0) && fixture.all(1, 1, 0x44_0000_0044),
        "device memory"
    );
    let fill = Fill {
        range: range(9, 0, PAGE),
        value: 7,
    };
    assert_eq!(fixture.ask(2, fill).status, Status::Ok, "another's memory");
    assert!(fixture.all(0, 1, 0x7_0000_0007));
    assert_eq!(fixture.guest.detach_backing(6), Err(Error::NoBacking));
    fixture.guest.attach_backing(6, pages_of_a_file(2)).unwrap();
}

#[test]
fn only_pages_with_something_in_them_are_saved() {
    let mut fixture = Fixture::with_context();
    let empty = fixture.saved().len();
    fixture.allocate(1, 1, 1, 0, 16);
    fixture.write(0, 16, 0);
    fixture.write(3, 1, 1);
    fixture.write(9, 2, 1);
    let more = fixture.saved().len() - empty;
    let pages = 3 * usize::try_from(PAGE).unwrap();
    assert!((pages..pages + 512).contains(&more), "{more} bytes");
}

#[test]
fn any_flipped_bit_and_any_cut_is_an_error() {
    let bytes = rich().saved();
    let mut fixture = Fixture::new();
    let contents = bytes.len();
    for at in (0..contents.min(2000)).chain((2000..contents).step_by(509)) {
        let mut flipped = bytes.clone();
        flipped[at] ^= 1 << (at % 8);
        fixture.restore(&flipped).unwrap_err();
        fixture.restore(&bytes[..at]).unwrap_err();
    }
    fixture.restore(&bytes).unwrap();
    assert!(matches!(
        fixture.guest.restore(&mut &*bytes),
        Err(RestoreError::InUse)
    ));
}

#[test]
fn what_is_no_snapshot_is_named() {
    let mut fixture = Fixture::new();
    let mut format = |bytes: &[u8]| match fixture.restore(bytes) {
        Err(RestoreError::Format(error)) => error,
        other => panic!("{other:?}"),
    };
    assert!(matches!(format(b""), FormatError::Truncated));
    assert!(matches!(format(b"ELF, or whatever"), FormatError::Magic));
    let mut newer = MAGIC.to_vec();
    newer.extend((VERSION + 1).to_le_bytes());
    assert!(matches!(format(&newer), FormatError::Version(version) if version == VERSION + 1));
    let mut long = MAGIC.to_vec();
    long.extend(VERSION.to_le_bytes());
    long.extend([1, 0, 0, 0, 255, 255, 255, 255]);
    assert!(matches!(format(&long), FormatError::TooLong(u32::MAX)));
    let unknown = stream(&[(99, vec![])]);
    assert!(matches!(
        format(&unknown),
        FormatError::Unexpected {
            section: 0,
            tag: 99
        }
    ));
    let nothing = fixture.restore(&stream(&[]));
    assert!(matches!(nothing, Err(RestoreError::Inconsistent(_))));
}

#[test]
fn work_under_way_is_waited_for_and_not_for_ever() {
    let mut fixture = Fixture::with_context();
    fixture.allocate(1, 1, 1, 0, 1);
    fixture.fake.hold();
    let fill = Fill {
        range: range(1, 0, PAGE),
        value: 3,
    };
    let sequence = fixture.send(1, fill);
    let refused = fixture.guest.save(&mut Vec::new());
    assert!(matches!(refused, Err(SaveError::GpuTimeout(_))));
    let fake = Arc::clone(&fixture.fake);
    let thread = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        fake.release_all();
    });
    let bytes = fixture.saved();
    thread.join().unwrap();
    let restored = Fixture::restored(&bytes);
    assert!(restored.all(0, 1, 0x3_0000_0003));
    let answer = restored.peek(1, sequence);
    assert_eq!(
        answer.unwrap().status,
        Status::Ok,
        "the answer was written first"
    );
}

#[test]
fn a_provider_that_refuses_leaves_both_guests_as_they_were() {
    let mut fixture = rich();
    let lost = ProviderError::OutOfDeviceMemory("injected".into());
    fixture.fake.refuse_next(lost.clone());
    let refused = fixture.guest.save(&mut Vec::new());
    assert!(matches!(refused, Err(SaveError::Provider(error)) if error == lost));
    let bytes = fixture.saved();
    // The parking file, the allocation, the detour's attachment, the copy.
    for n in 0..4 {
        let mut other = Fixture::new();
        let count = other.fake.count();
        other.fake.refuse(count + n, lost.clone());
        let restored = other.restore(&bytes);
        assert!(matches!(restored, Err(RestoreError::Provider(_))), "{n}");
        let requests = other.fake.requests();
        if !matches!(requests[count + n].request, Seen::AddFile { .. }) {
            other.restore(&bytes).unwrap();
            assert!(other.saved() == bytes);
        }
    }
}

#[test]
fn limits_of_the_new_host_hold() {
    let mut fixture = Fixture::with_context();
    for client in 1..=3 {
        assert_eq!(fixture.create(1, client, 10, DIRECT), Status::Ok);
    }
    let bytes = fixture.saved();
    let restore = |change: fn(&mut Config)| {
        let mut other = Fixture::with(|provider, mut config| {
            change(&mut config);
            Host::new(provider, config).unwrap()
        });
        other.restore(&bytes).unwrap_err()
    };
    let error = restore(|config| config.memory_limit = 30 * PAGE);
    assert!(matches!(
        error,
        RestoreError::Limit(Exceeded {
            level: Level::Device,
            ..
        })
    ));
    let error = restore(|config| config.context_limit = 30 * PAGE);
    assert!(matches!(
        error,
        RestoreError::Limit(Exceeded {
            level: Level::Context,
            ..
        })
    ));
    let error = restore(|config| config.context_limit = 9 * PAGE);
    assert!(
        matches!(error, RestoreError::Refused(_)),
        "too large for a blob"
    );
    let error = restore(|config| config.window_size = 2 * WINDOW);
    assert!(matches!(error, RestoreError::Window { .. }));
    assert!(error.to_string().contains("--window 2097152"));

    // Another guest of the same host has the rest.
    let mut other = Fixture::new();
    let mut neighbour = other.guest.host.guest(Arc::new(|| {})).unwrap();
    neighbour.create_context(1, "neighbour").unwrap();
    let spec = BlobSpec {
        resource_id: 1,
        blob_mem: blob_mem::HOST3D,
        blob_flags: 0,
        blob_id: 0,
        size: 34 * PAGE,
    };
    neighbour.create_blob(1, &spec, None).unwrap();
    let error = other.guest.restore(&mut &*bytes).unwrap_err();
    assert!(matches!(error, RestoreError::Limit(_)));
    assert_eq!(other.guest.host.used(), 34 * PAGE, "nothing stays charged");
}

/// A system provider whose types are numbered otherwise.
struct Renumbered {
    description: Description,
    system: Arc<SystemProvider>,
    /// Of the system provider.
    numbers: Vec<u32>,
}

struct RenumberedSession(Box<dyn Session>, Vec<u32>);

impl Renumbered {
    fn new(types: &[(u32, Placement)]) -> Arc<Self> {
        let system = SystemProvider::new(None);
        let mut description = system.description().clone();
        description.memory_types = types
            .iter()
            .map(|&(property_flags, placement)| MemoryType {
                property_flags,
                heap: 0,
                placement,
            })
            .collect();
        let number = |&(_, placement): &(u32, Placement)| u32::from(placement == Placement::Window);
        Arc::new(Self {
            description,
            system: Arc::new(system),
            numbers: types.iter().map(number).collect(),
        })
    }
}

impl Provider for Renumbered {
    fn description(&self) -> &Description {
        &self.description
    }

    fn connect(&self, sink: CompletionSink) -> Box<dyn Session> {
        Box::new(RenumberedSession(
            self.system.connect(sink),
            self.numbers.clone(),
        ))
    }
}

impl Session for RenumberedSession {
    fn submit(&mut self, sequence: u64, mut request: Request) {
        if let Request::Attach { memory_type, .. } | Request::Allocate { memory_type, .. } =
            &mut request
        {
            *memory_type = self.1[*memory_type as usize];
        }
        self.0.submit(sequence, request);
    }
}

const CACHED: u32 = property::HOST_VISIBLE | property::HOST_COHERENT | property::HOST_CACHED;

fn under(types: &[(u32, Placement)]) -> Fixture {
    let provider = Renumbered::new(types);
    Fixture::with(|_, config| Host::new(provider, config).unwrap())
}

#[test]
fn types_are_found_by_their_properties() {
    let bytes = rich().saved();
    let types = [
        (
            property::HOST_VISIBLE | property::HOST_COHERENT,
            Placement::Window,
        ),
        (CACHED | property::DEVICE_LOCAL, Placement::Window),
        (property::DEVICE_LOCAL, Placement::Device),
    ];
    let mut other = under(&types);
    other.restore(&bytes).unwrap();
    let numbers: Vec<u32> = [(1, 1), (1, 5)]
        .map(|(context, client)| other.guest.named(context, client).unwrap())
        .map(|key| other.guest.memories[&key].memory_type)
        .into();
    assert_eq!(numbers, [1, 2]);
    assert!(other.all(1, 1, 0x11) && other.all(9, 1, 0x33));

    // What was restored among more properties is saved with them.
    let again = other.saved();
    under(&types).restore(&again).unwrap();
    Fixture::new().restore(&again).unwrap_err();

    for (types, missing) in [
        (
            vec![
                (
                    property::HOST_VISIBLE | property::HOST_COHERENT,
                    Placement::Window,
                ),
                (property::DEVICE_LOCAL, Placement::Device),
            ],
            CACHED,
        ),
        (vec![(CACHED, Placement::Window)], property::DEVICE_LOCAL),
    ] {
        let error = under(&types).restore(&bytes).unwrap_err();
        assert!(
            matches!(error, RestoreError::NoMemoryType { properties, .. } if properties == missing),
            "{error}"
        );
    }
}

/// As where OpenGL cannot be attached to the window: blobs and answers rings need no GPU.
#[test]
fn a_guest_without_types_in_the_window_is_saved_and_restored() {
    let types = [(property::DEVICE_LOCAL, Placement::Device)];
    let mut fixture = under(&types);
    fixture.open(1, RING, RING_OFFSET);
    fixture.plain(1, 1, PAGE).unwrap();
    fixture.guest.map_blob(1, 0).unwrap();
    fixture.write(0, 1, 0x11);
    let bytes = fixture.saved();
    let mut other = under(&types);
    other.restore(&bytes).unwrap();
    assert!(other.all(0, 1, 0x11));
    // A host that has one gives it that.
    let other = Fixture::restored(&bytes);
    assert!(other.all(0, 1, 0x11));
}

/// A guest that shows memory 1, with a buffer.
fn showing() -> (Fixture, crate::exports::Viewer) {
    let exports = Exports::new();
    let viewer = exports.join(Arc::new(|| {})).unwrap();
    let mut fixture = super::exports::exporting(exports);
    fixture.open(1, RING, RING_OFFSET);
    let flags = DIRECT | CreateFlags::SHAREABLE;
    assert_eq!(fixture.create(1, 1, 1, flags), Status::Ok);
    let publish = Publish {
        client_id: 1,
        offset: 0,
        width: 8,
        height: 8,
        stride: 32,
        fourcc: 7,
        modifier: 9,
    };
    assert_eq!(fixture.ask(1, publish).status, Status::Ok);
    (fixture, viewer)
}

fn shown(viewer: &crate::exports::Viewer) -> Vec<Event> {
    viewer.events().try_iter().collect()
}

#[test]
fn what_host_processes_see_is_shown_again() {
    let (mut fixture, viewer) = showing();
    let before = shown(&viewer);
    let bytes = fixture.saved();
    fixture.guest.reset();
    shown(&viewer);
    fixture.restore(&bytes).unwrap();
    let after = shown(&viewer);
    let published = |events: &[Event]| {
        let layouts = events.iter().filter_map(|event| match event {
            Event::Published(_, buffer) => Some(buffer.layout),
            _ => None,
        });
        layouts.collect::<Vec<_>>()
    };
    assert_eq!(published(&after), published(&before));
    assert_eq!(published(&after).len(), 1);
    let error = Fixture::new().restore(&bytes).unwrap_err();
    assert!(matches!(error, RestoreError::Missing("an export socket")));
}

#[test]
fn what_host_processes_use_is_not_saved() {
    let (mut fixture, viewer) = showing();
    let added = |event: &Event| match event {
        Event::Added(blob) => Some(blob.id),
        _ => None,
    };
    let id = shown(&viewer).iter().find_map(added).unwrap();
    viewer.open(1, id);
    let refused = fixture.guest.save(&mut Vec::new());
    assert!(matches!(refused, Err(SaveError::Open(_))), "{refused:?}");
    let wait = WaitReleased {
        client_id: 1,
        offset: hostblob_protocol::request::ALL_BUFFERS,
        timeout: 60_000_000_000,
    };
    fixture.send(1, wait);
    let refused = fixture.guest.save(&mut Vec::new());
    assert!(matches!(refused, Err(SaveError::Waiting(1))), "{refused:?}");
    drop(viewer);
    fixture.saved();
}

#[test]
fn other_devices_are_told_again() {
    let (mut fixture, _viewer) = showing();
    let spec = BlobSpec {
        resource_id: 1,
        blob_mem: blob_mem::HOST3D,
        blob_flags: blob_flag::USE_MAPPABLE | blob_flag::USE_SHAREABLE,
        blob_id: 1,
        size: PAGE,
    };
    fixture.guest.create_blob(1, &spec, None).unwrap();
    let uuid = fixture.guest.assign_uuid(1).unwrap();
    assert_eq!(fixture.guest.shared_object_changes(), [(uuid, true)]);
    let bytes = fixture.saved();
    fixture.guest.shared_object(uuid).unwrap();
    let refused = fixture.guest.save(&mut Vec::new());
    assert!(matches!(refused, Err(SaveError::Open(_))), "{refused:?}");
    fixture.guest.reset();
    assert_eq!(fixture.guest.shared_object_changes(), [(uuid, false)]);
    fixture.restore(&bytes).unwrap();
    assert_eq!(fixture.guest.shared_object_changes(), [(uuid, true)]);
}

fn large_device_memory(from: &Arc<dyn Provider>, to: &Arc<dyn Provider>) {
    let new = |provider: &Arc<dyn Provider>| {
        Fixture::with(|_, config| {
            let config = Config {
                window_size: 64 << 20,
                memory_limit: 64 << 20,
                context_limit: 64 << 20,
                ..config
            };
            Host::new(Arc::clone(provider), config).unwrap()
        })
    };
    let types = &from.description().memory_types;
    let in_device = |kind: &MemoryType| kind.placement == Placement::Device;
    let device = types.iter().position(in_device).unwrap();
    let pages = (40 << 20) / PAGE;
    let mut fixture = new(from);
    fixture.open(1, RING, RING_OFFSET);
    let create = Create {
        memory: MemorySelector::Index(u32::try_from(device).unwrap()),
        ..create(1, pages * PAGE, CreateFlags::empty())
    };
    assert_eq!(fixture.ask(1, create).status, Status::Ok);
    // At the beginning, on both sides of a boundary of parts, and at the end; nothing in between.
    let written = [0, (16 << 20) / PAGE - 1, (16 << 20) / PAGE, pages - 1];
    for (page, value) in written.into_iter().zip(1..) {
        fixture.apply(&Op::Fill(1, 1, page, 1, value));
    }
    let bytes = fixture.saved();
    assert!(bytes.len() < 8 * 4096, "{} bytes", bytes.len());
    let mut other = new(to);
    other.restore(&bytes).unwrap();
    other.sequence = fixture.sequence;
    drop(fixture);
    assert_eq!(other.create(1, 2, 1, DIRECT), Status::Ok);
    other.blob(1, 1, 2, PAGE).unwrap();
    other.guest.map_blob(1, 0).unwrap();
    for (page, value) in written.into_iter().zip(1..).chain([(1, 0), (pages / 2, 0)]) {
        let copy = Copy {
            source: range(1, page * PAGE, PAGE),
            destination_client_id: 2,
            destination_offset: 0,
        };
        assert_eq!(other.ask(1, copy).status, Status::Ok);
        assert!(other.all(0, 1, value << 32 | value), "page {page}");
    }
}

fn vulkan() -> Arc<dyn Provider> {
    let vulkan = VulkanProvider::new(&Options::default());
    Arc::new(vulkan.expect("a Vulkan driver: mesa-vulkan-drivers, or cargo xtask setup"))
}

#[test]
fn large_device_memory_goes_in_parts() {
    let system: Arc<dyn Provider> = Arc::new(SystemProvider::new(None));
    large_device_memory(&system, &system);
}

#[test]
fn device_memory_of_vulkan_is_saved_and_restored() {
    let vulkan = vulkan();
    large_device_memory(&vulkan, &vulkan);
}

#[test]
fn a_guest_of_system_memory_gets_a_gpu() {
    let system: Arc<dyn Provider> = Arc::new(SystemProvider::new(None));
    large_device_memory(&system, &vulkan());
}
