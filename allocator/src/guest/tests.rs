//! The guest over the fake provider: what each command changes, and what a refusal does not.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use hostblob_capset::Offer;
use hostblob_protocol::answers::{Answer, Ring};
use hostblob_protocol::request::{
    Access, BindClientId, CacheMode, Copy, Create, CreateFlags, Fill, Free, Map, MemoryRange,
    MemorySelector, OpenAnswers, QueryBudget, Request as Ask,
};
use hostblob_protocol::virtio_gpu::{blob_flag, blob_mem, map_cache};
use hostblob_protocol::{EnvelopeBuilder, Status};

use super::*;
use crate::Config;
use crate::provider::fake::FakeProvider;
use crate::provider::{Provider, ProviderError};
use crate::window::{PAGE, Span};

mod exported;
mod exports;
mod flips;
mod limits;
mod objects;
mod pages;
mod requests;
mod secrets;
mod snapshot;
mod tables;

const WINDOW: u64 = 2 << 20;
const RING: u32 = 1000;
const RING_OFFSET: u64 = WINDOW - PAGE;

struct Fixture {
    guest: Guest,
    fake: Arc<FakeProvider>,
    sequence: u64,
}

impl Fixture {
    fn new() -> Self {
        Self::with(|provider, config| Host::new(provider, config).unwrap())
    }

    fn with(host: impl FnOnce(Arc<dyn Provider>, Config) -> Arc<Host>) -> Self {
        Self::over(FakeProvider::new(), host)
    }

    fn over(fake: FakeProvider, host: impl FnOnce(Arc<dyn Provider>, Config) -> Arc<Host>) -> Self {
        let fake = Arc::new(fake);
        let config = Config {
            window_size: WINDOW,
            memory_limit: 64 * PAGE,
            context_limit: 40 * PAGE,
            context_share: 0,
            warm: crate::window::Warmth::up_to(16 * PAGE),
        };
        let host = host(Arc::clone(&fake) as Arc<dyn Provider>, config);
        let guest = host.guest(Arc::new(|| {})).unwrap();
        Self {
            guest,
            fake,
            sequence: 0,
        }
    }

    /// A context 1 with a ring.
    fn with_context() -> Self {
        let mut fixture = Self::new();
        fixture.open(1, RING, RING_OFFSET);
        fixture
    }

    fn open(&mut self, context: u32, resource: u32, offset: u64) {
        self.guest.create_context(context, "test").unwrap();
        self.plain(context, resource, PAGE).unwrap();
        self.guest.map_blob(resource, offset).unwrap();
        let offer = Offer::EVERYTHING;
        let answer = self.ask(
            context,
            OpenAnswers {
                resource_id: resource,
                major: offer.major,
                minor: offer.minor,
                requests: offer.requests,
                create_flags: offer.create_flags,
            },
        );
        assert_eq!(answer.status, Status::Ok);
    }

    fn plain(&mut self, context: u32, resource_id: u32, size: u64) -> Result<(), Error> {
        self.blob(context, resource_id, 0, size)
    }

    fn blob(
        &mut self,
        context: u32,
        resource_id: u32,
        blob_id: u64,
        size: u64,
    ) -> Result<(), Error> {
        let spec = BlobSpec {
            resource_id,
            blob_mem: blob_mem::HOST3D,
            blob_flags: blob_flag::USE_MAPPABLE,
            blob_id,
            size,
        };
        self.guest.create_blob(context, &spec, None)
    }

    /// Submits one request, waits for its answer.
    fn ask(&mut self, context: u32, request: impl Into<Ask>) -> Answer {
        let sequence = self.send(context, request);
        self.answer(context, sequence)
    }

    fn send(&mut self, context: u32, request: impl Into<Ask>) -> u64 {
        self.sequence += 1;
        let bytes = EnvelopeBuilder::new(self.sequence).request(request).build();
        self.guest.submit(context, 0, &bytes).unwrap();
        self.sequence
    }

    fn answer(&mut self, context: u32, sequence: u64) -> Answer {
        self.guest.wait_for(self.guest.work.submitted()).unwrap();
        self.peek(context, sequence).expect("an answer")
    }

    fn peek(&self, context: u32, sequence: u64) -> Option<Answer> {
        let (key, _) = self.guest.contexts[&context].answers.unwrap();
        Ring::new(self.guest.memories[&key].words().unwrap())
            .unwrap()
            .read(sequence)
    }

    fn create(&mut self, context: u32, client_id: u64, pages: u64, flags: CreateFlags) -> Status {
        self.ask(context, create(client_id, pages * PAGE, flags))
            .status
    }

    /// Creates, as one ioctl of Linux does: SUBMIT_3D, RESOURCE_CREATE_BLOB, RESOURCE_MAP_BLOB.
    fn allocate(&mut self, context: u32, client_id: u64, resource: u32, page: u64, pages: u64) {
        assert_eq!(self.create(context, client_id, pages, DIRECT), Status::Ok);
        self.blob(context, resource, client_id, pages * PAGE)
            .unwrap();
        self.guest.map_blob(resource, page * PAGE).unwrap();
    }

    fn words(&self, page: u64, pages: u64) -> &[std::sync::atomic::AtomicU64] {
        let span = Span::new(page * PAGE, pages * PAGE, WINDOW).unwrap();
        self.guest.window.file().words(span)
    }

    fn write(&self, page: u64, pages: u64, value: u64) {
        self.words(page, pages)
            .iter()
            .for_each(|word| word.store(value, Ordering::Relaxed));
    }

    fn all(&self, page: u64, pages: u64, value: u64) -> bool {
        self.words(page, pages)
            .iter()
            .all(|word| word.load(Ordering::Relaxed) == value)
    }

    fn used(&self, context: u32) -> u64 {
        self.guest.contexts[&context].quota.used() / PAGE
    }
}

const DIRECT: CreateFlags = CreateFlags::HOST_VISIBLE.union(CreateFlags::MAP_DIRECTLY);

fn create(client_id: u64, size: u64, flags: CreateFlags) -> Create {
    Create {
        client_id,
        size,
        memory: MemorySelector::Properties(0x2),
        flags,
        alignment: 0,
        expected_cache: CacheMode::Any,
    }
}

fn range(client_id: u64, offset: u64, length: u64) -> MemoryRange {
    MemoryRange {
        client_id,
        offset,
        length,
    }
}

#[test]
fn memory_is_zero_mapped_and_given_back() {
    let mut fixture = Fixture::with_context();
    for round in 1..20_u64 {
        fixture.allocate(1, round, 5, 3, 4);
        assert!(fixture.all(3, 4, 0));
        fixture.write(3, 4, !0);
        assert_eq!(fixture.used(1), 5);
        fixture.guest.unmap_blob(5).unwrap();
        fixture.guest.unref(5).unwrap();
        assert_eq!(fixture.used(1), 1);
        assert_eq!(
            fixture.ask(1, Free { client_id: round }).status,
            Status::UnknownClientId
        );
    }
}

#[test]
fn sizes_and_arguments_at_the_extremes_are_refused_and_change_nothing() {
    let mut fixture = Fixture::with_context();
    let sizes = [
        0,
        1,
        PAGE - 1,
        PAGE + 1,
        41 * PAGE,
        1 << 40,
        1 << 63,
        u64::MAX - 4095,
        u64::MAX,
    ];
    let requests = fixture.fake.count();
    for size in sizes {
        let status = fixture.ask(1, create(7, size, DIRECT)).status;
        assert_ne!(status, Status::Ok, "{size:#x}");
        assert!(fixture.plain(1, 7, size).is_err(), "{size:#x}");
    }
    let good = create(7, PAGE, DIRECT);
    for (bad, expected) in [
        (
            Create {
                client_id: 0,
                ..good
            },
            Status::InvalidArgument,
        ),
        (
            Create {
                alignment: 3,
                ..good
            },
            Status::InvalidArgument,
        ),
        (
            Create {
                alignment: 1 << 63,
                ..good
            },
            Status::InvalidArgument,
        ),
        (
            Create {
                flags: CreateFlags::MAP_DIRECTLY,
                ..good
            },
            Status::InvalidArgument,
        ),
        (
            Create {
                memory: MemorySelector::Index(99),
                ..good
            },
            Status::InvalidMemoryType,
        ),
        (
            Create {
                memory: MemorySelector::Index(u32::MAX),
                ..good
            },
            Status::InvalidMemoryType,
        ),
        (
            Create {
                memory: MemorySelector::Properties(1 << 31),
                ..good
            },
            Status::InvalidMemoryType,
        ),
        (
            Create {
                expected_cache: CacheMode::WriteCombined,
                ..good
            },
            Status::CacheModeMismatch,
        ),
    ] {
        assert_eq!(fixture.ask(1, bad).status, expected, "{bad:?}");
    }
    assert_eq!(fixture.used(1), 1);
    assert_eq!(fixture.fake.count(), requests, "no driver hears of it");
    assert_eq!(fixture.ask(1, good).status, Status::Ok);
    assert_eq!(fixture.ask(1, good).status, Status::ClientIdInUse);
    assert_eq!(fixture.used(1), 2);
}

#[test]
fn a_blob_must_agree_with_its_memory() {
    let mut fixture = Fixture::with_context();
    assert_eq!(fixture.create(1, 9, 2, DIRECT), Status::Ok);
    let good = BlobSpec {
        resource_id: 4,
        blob_mem: blob_mem::HOST3D,
        blob_flags: blob_flag::USE_MAPPABLE,
        blob_id: 9,
        size: 2 * PAGE,
    };
    let shareable = blob_flag::USE_MAPPABLE | blob_flag::USE_SHAREABLE;
    for bad in [
        BlobSpec {
            resource_id: 0,
            ..good
        },
        BlobSpec {
            resource_id: RING,
            ..good
        },
        BlobSpec {
            blob_mem: blob_mem::GUEST,
            ..good
        },
        BlobSpec {
            blob_mem: 77,
            ..good
        },
        BlobSpec {
            blob_flags: 0,
            ..good
        },
        BlobSpec {
            blob_flags: shareable,
            ..good
        },
        BlobSpec {
            blob_flags: 1 << 31,
            ..good
        },
        BlobSpec { blob_id: 8, ..good },
        BlobSpec { size: PAGE, ..good },
        BlobSpec {
            size: 3 * PAGE,
            ..good
        },
    ] {
        assert!(fixture.guest.create_blob(1, &bad, None).is_err(), "{bad:?}");
        assert!(bad.resource_id == RING || !fixture.guest.has_resource(bad.resource_id));
    }
    fixture.guest.create_context(2, "other").unwrap();
    let elsewhere = fixture.guest.create_blob(2, &good, None);
    assert_eq!(
        elsewhere,
        Err(Error::UnknownClientId(9)),
        "another context's memory"
    );
    fixture.guest.create_blob(1, &good, None).unwrap();
    let twice = BlobSpec {
        resource_id: 5,
        ..good
    };
    assert_eq!(
        fixture.guest.create_blob(1, &twice, None),
        Err(Error::Bound(9))
    );
}

#[test]
fn map_refuses_what_is_no_place_and_says_why() {
    let mut fixture = Fixture::with_context();
    fixture.allocate(1, 1, 1, 10, 4);
    assert_eq!(fixture.create(1, 2, 4, DIRECT), Status::Ok);
    fixture.blob(1, 2, 2, 4 * PAGE).unwrap();
    for offset in [
        1,
        PAGE - 1,
        WINDOW - 3 * PAGE,
        WINDOW,
        1 << 63,
        u64::MAX - 4095,
        u64::MAX,
    ] {
        assert!(fixture.guest.map_blob(2, offset).is_err(), "{offset:#x}");
    }
    for page in [7, 10, 13] {
        let occupied = Error::Occupied {
            offset: page * PAGE,
            length: 4 * PAGE,
        };
        assert_eq!(fixture.guest.map_blob(2, page * PAGE), Err(occupied));
    }
    assert_eq!(fixture.guest.unmap_blob(2), Err(Error::NotMapped(2)));
    assert_eq!(fixture.guest.map_blob(3, 0), Err(Error::UnknownResource(3)));
    let mapped = fixture.guest.map_blob(2, 14 * PAGE).unwrap();
    assert_eq!(
        mapped,
        Mapped {
            offset: 14 * PAGE,
            map_info: map_cache::CACHED
        }
    );
    assert_eq!(
        fixture.guest.map_blob(2, 14 * PAGE),
        Err(Error::AlreadyMapped(2))
    );
    assert_eq!(
        fixture.guest.map_blob(2, 20 * PAGE),
        Err(Error::AlreadyMapped(2))
    );
}

#[test]
fn contents_survive_unmap_wherever_they_are_mapped_next() {
    let mut fixture = Fixture::with_context();
    fixture.allocate(1, 1, 1, 0, 4);
    fixture.write(0, 4, 0x11);
    fixture.guest.unmap_blob(1).unwrap();
    // In place.
    fixture.guest.map_blob(1, 0).unwrap();
    assert!(fixture.all(0, 4, 0x11));
    // Elsewhere, overlapping its own old place.
    fixture.guest.unmap_blob(1).unwrap();
    fixture.guest.map_blob(1, 2 * PAGE).unwrap();
    assert!(fixture.all(2, 4, 0x11));
    // Elsewhere, after somebody took the old place, and the GPU used it meanwhile.
    fixture.guest.unmap_blob(1).unwrap();
    fixture.allocate(1, 2, 2, 0, 8);
    assert!(fixture.all(0, 8, 0), "nothing of the parked memory shows");
    let fill = Fill {
        range: range(1, PAGE, PAGE),
        value: 0x22,
    };
    assert_eq!(fixture.ask(1, fill).status, Status::Ok);
    fixture.guest.map_blob(1, 20 * PAGE).unwrap();
    assert!(fixture.all(20, 1, 0x11) && fixture.all(22, 2, 0x11));
    assert!(fixture.all(21, 1, 0x22_0000_0022));
}

#[test]
fn memory_created_without_map_directly_waits_for_its_binding() {
    let mut fixture = Fixture::with_context();
    assert_eq!(
        fixture.create(1, 3, 2, CreateFlags::HOST_VISIBLE),
        Status::Ok
    );
    assert_eq!(fixture.blob(1, 3, 3, 2 * PAGE), Err(Error::NotBound(3)));
    let fill = Fill {
        range: range(3, 0, 2 * PAGE),
        value: 5,
    };
    assert_eq!(fixture.ask(1, fill).status, Status::Ok);
    assert_eq!(
        fixture.ask(1, BindClientId { client_id: 3 }).status,
        Status::Ok
    );
    assert_eq!(
        fixture.ask(1, BindClientId { client_id: 3 }).status,
        Status::AlreadyBound
    );
    fixture.blob(1, 3, 3, 2 * PAGE).unwrap();
    fixture.guest.map_blob(3, 0).unwrap();
    assert!(
        fixture.all(0, 2, 0x5_0000_0005),
        "what the GPU wrote before"
    );
    fixture.guest.unref(3).unwrap();
    assert_eq!(fixture.used(1), 3, "the name keeps it");
    assert_eq!(
        fixture.ask(1, BindClientId { client_id: 3 }).status,
        Status::Ok
    );
    fixture.blob(1, 4, 3, 2 * PAGE).unwrap();
    assert_eq!(fixture.ask(1, Free { client_id: 3 }).status, Status::Ok);
    assert_eq!(fixture.used(1), 3, "the blob keeps it");
    fixture.guest.map_blob(4, 9 * PAGE).unwrap();
    assert!(fixture.all(9, 2, 0x5_0000_0005));
    fixture.guest.unref(4).unwrap();
    fixture
        .guest
        .wait_for(fixture.guest.work.submitted())
        .unwrap();
    assert_eq!(fixture.used(1), 1);
}

#[test]
fn gpu_work_checks_every_range() {
    let mut fixture = Fixture::with_context();
    fixture.allocate(1, 1, 1, 0, 4);
    fixture.allocate(1, 2, 2, 8, 2);
    let fill = |client_id, offset, length| Fill {
        range: range(client_id, offset, length),
        value: 1,
    };
    let copy = |from, offset, length, to, at| Copy {
        source: range(from, offset, length),
        destination_client_id: to,
        destination_offset: at,
    };
    for (request, expected) in [
        (Ask::from(fill(1, 0, 0)), Status::OutOfRange),
        (fill(1, 4 * PAGE, 4).into(), Status::OutOfRange),
        (fill(1, u64::MAX - 3, 8).into(), Status::OutOfRange),
        (fill(1, 2, 4).into(), Status::InvalidArgument),
        (fill(1, 4, 2).into(), Status::InvalidArgument),
        (fill(3, 0, 4).into(), Status::UnknownClientId),
        (fill(0, 0, 4).into(), Status::UnknownClientId),
        (copy(1, 0, 3 * PAGE, 2, 0).into(), Status::OutOfRange),
        (copy(1, 0, 8, 2, u64::MAX).into(), Status::OutOfRange),
        (copy(1, 0, 8, 1, 4).into(), Status::InvalidArgument),
        (copy(1, 0, 8, 9, 0).into(), Status::UnknownClientId),
    ] {
        assert_eq!(fixture.ask(1, request).status, expected, "{request:?}");
    }
    assert!(fixture.all(0, 4, 0) && fixture.all(8, 2, 0));
    assert_eq!(fixture.ask(1, fill(1, 0, 2 * PAGE)).status, Status::Ok);
    assert_eq!(
        fixture.ask(1, copy(1, PAGE, 2 * PAGE, 2, 0)).status,
        Status::Ok
    );
    assert_eq!(fixture.ask(1, copy(2, 0, 8, 2, 8)).status, Status::Ok);
    assert!(fixture.all(8, 1, 0x1_0000_0001) && fixture.all(9, 1, 0));
}

#[test]
fn a_fence_and_an_answer_wait_for_the_gpu() {
    let mut fixture = Fixture::with_context();
    fixture.allocate(1, 1, 1, 0, 4);
    assert_eq!(
        fixture.guest.fence(1, Some(0)),
        Fence::default(),
        "nothing was given to the GPU"
    );
    fixture
        .guest
        .wait_for(fixture.guest.work.submitted())
        .unwrap();
    fixture.fake.hold();
    let sequence = fixture.send(
        1,
        Fill {
            range: range(1, 0, PAGE),
            value: 1,
        },
    );
    let fence = fixture.guest.fence(1, Some(0));
    let other_ring = fixture.guest.fence(1, Some(1));
    assert_eq!(other_ring, Fence::default());
    // Without a ring it is on the one timeline that Linux has for all processes.
    fixture.guest.create_context(2, "another").unwrap();
    assert_eq!(fixture.guest.fence(2, Some(0)), Fence::default());
    assert_eq!(fixture.guest.fence(2, None), fence);
    assert_eq!(
        (fixture.guest.fence(1, None), fixture.guest.fence(0, None)),
        (fence.clone(), fence.clone())
    );
    fixture.guest.process_completions();
    assert!(!fixture.guest.reached(&fence));
    assert_eq!(fixture.peek(1, sequence), None);
    fixture.fake.release_all();
    fixture
        .guest
        .wait_for(fixture.guest.work.submitted())
        .unwrap();
    assert!(fixture.guest.reached(&fence));
    assert_eq!(fixture.peek(1, sequence).unwrap().status, Status::Ok);
}

#[test]
fn bytes_stay_until_the_gpu_lets_go() {
    let mut fixture = Fixture::with_context();
    fixture.allocate(1, 1, 1, 0, 4);
    fixture.fake.hold();
    fixture.send(
        1,
        Fill {
            range: range(1, 0, 4 * PAGE),
            value: 1,
        },
    );
    fixture.guest.unref(1).unwrap();
    assert_eq!(fixture.used(1), 5, "charged until then");
    let sequence = fixture.send(1, create(2, 4 * PAGE, CreateFlags::HOST_VISIBLE));
    let created = fixture
        .peek(1, sequence)
        .expect("an answer at once: it needs no GPU");
    assert_eq!(created.status, Status::Ok);
    fixture.fake.release_all();
    fixture.ask(1, BindClientId { client_id: 2 });
    fixture.blob(1, 2, 2, 4 * PAGE).unwrap();
    fixture.guest.map_blob(2, 0).unwrap();
    assert!(fixture.all(0, 4, 0));
    assert_eq!(fixture.used(1), 5);
}

#[test]
fn a_provider_that_refuses_is_told_to_the_asker_and_retried() {
    let mut fixture = Fixture::with_context();
    fixture.allocate(1, 1, 1, 0, 4);
    let out_of_memory = ProviderError::OutOfDeviceMemory("injected".into());
    fixture.fake.refuse_next(out_of_memory.clone());
    let fill = Fill {
        range: range(1, 0, PAGE),
        value: 1,
    };
    assert_eq!(fixture.ask(1, fill).status, Status::OutOfDeviceMemory);
    assert!(fixture.all(0, 1, 0));
    assert_eq!(fixture.ask(1, fill).status, Status::Ok, "attached anew");
    assert!(fixture.all(0, 1, 0x1_0000_0001));
    fixture
        .fake
        .refuse_next(ProviderError::DeviceLost("injected".into()));
    assert_eq!(fixture.ask(1, fill).status, Status::DeviceLost);
}

/// However often: a context that asks until there is some would have used up its limit.
#[test]
fn device_memory_that_the_driver_refuses_is_not_there() {
    let mut fixture = Fixture::with_context();
    let private = Create {
        memory: MemorySelector::Index(0),
        ..create(1, 4 * PAGE, CreateFlags::empty())
    };
    let used = fixture.used(1);
    for error in [
        ProviderError::OutOfDeviceMemory("injected".into()),
        ProviderError::DeviceLost("injected".into()),
    ] {
        for _ in 0..40 {
            fixture.fake.refuse_next(error.clone());
            let refused = Error::Provider(error.clone()).status();
            assert_eq!(fixture.ask(1, private).status, refused);
            assert_eq!(fixture.used(1), used);
        }
    }
    assert_eq!(
        fixture.ask(1, Free { client_id: 1 }).status,
        Status::UnknownClientId
    );
    assert!(
        !fixture
            .guest
            .memories
            .values()
            .any(|it| it.size == 4 * PAGE)
    );
    assert_eq!(fixture.ask(1, private).status, Status::Ok);
    assert_eq!(fixture.used(1), used + 4);
}

#[test]
fn quotas_at_the_exact_boundary() {
    let mut fixture = Fixture::with_context();
    assert_eq!(fixture.create(1, 1, 39, DIRECT), Status::Ok);
    assert_eq!(
        fixture.create(1, 2, 1, DIRECT),
        Status::ContextQuotaExceeded
    );
    let budget = fixture.ask(1, QueryBudget { heap: 0 });
    assert_eq!(budget.details, [40 * PAGE, 40 * PAGE]);
    fixture.open(2, RING + 1, RING_OFFSET - PAGE);
    assert_eq!(
        fixture.create(2, 1, 24, DIRECT),
        Status::DeviceQuotaExceeded
    );
    assert_eq!(fixture.create(2, 1, 23, DIRECT), Status::Ok);
    assert_eq!(fixture.ask(1, Free { client_id: 1 }).status, Status::Ok);
    assert_eq!(fixture.create(2, 2, 16, DIRECT), Status::Ok);
    assert_eq!(
        fixture.ask(2, QueryBudget { heap: 99 }).status,
        Status::InvalidArgument
    );
}

#[test]
fn a_destroyed_context_gives_back_what_nobody_sees() {
    let mut fixture = Fixture::with_context();
    fixture.open(2, RING + 1, RING_OFFSET - PAGE);
    fixture.allocate(1, 1, 1, 0, 4);
    fixture.allocate(1, 2, 2, 4, 4);
    fixture.allocate(1, 4, 4, 8, 4);
    let unbound = fixture.create(1, 3, 4, CreateFlags::HOST_VISIBLE);
    assert_eq!(unbound, Status::Ok);
    fixture.write(0, 12, !0);
    fixture.guest.attach_resource(2, 2).unwrap();
    for resource in [1, 2, RING] {
        fixture.guest.unmap_blob(resource).unwrap();
    }
    fixture.guest.destroy_context(1).unwrap();
    let kept = "one shared, one mapped, and the other context's ring";
    assert_eq!(fixture.guest.host.used(), 9 * PAGE, "{kept}");
    assert!(fixture.all(4, 8, !0), "untouched");
    fixture.guest.window.settle();
    assert!(fixture.all(0, 4, 0), "cleaned");
    let orphan = fixture.guest.map_blob(1, 0);
    assert_eq!(orphan, Err(Error::Orphaned(1)));
    for resource in [1, 2, 4, RING] {
        fixture.guest.unref(resource).unwrap();
    }
    let twice = fixture.guest.destroy_context(1);
    assert_eq!(twice, Err(Error::UnknownContext(1)));
    assert_eq!(fixture.guest.host.used(), PAGE);
}

/// A process may close its device and go on writing to what it has mapped, until the kernel ends the mapping.
#[test]
fn a_stale_mapping_never_writes_into_what_others_get() {
    let mut fixture = Fixture::with_context();
    fixture.open(2, RING + 1, RING_OFFSET - PAGE);
    fixture.allocate(1, 1, 1, 0, 4);
    fixture.guest.destroy_context(1).unwrap();
    fixture.write(0, 4, !0);
    let status = fixture.create(2, 1, 4, DIRECT);
    assert_eq!(status, Status::Ok);
    fixture.blob(2, 2, 1, 4 * PAGE).unwrap();
    let occupied = fixture.guest.map_blob(2, 0);
    assert!(matches!(occupied, Err(Error::Occupied { .. })));
    fixture.guest.unmap_blob(1).unwrap();
    fixture.guest.unref(1).unwrap();
    fixture.guest.map_blob(2, 0).unwrap();
    assert!(fixture.all(0, 4, 0));
}

#[test]
fn a_context_does_not_inherit_from_an_earlier_one_of_its_id() {
    let mut fixture = Fixture::with_context();
    fixture.open(2, RING + 1, RING_OFFSET - PAGE);
    fixture.allocate(1, 1, 1, 0, 4);
    fixture.guest.attach_resource(2, 1).unwrap();
    fixture.guest.attach_resource(2, RING).unwrap();
    fixture.guest.destroy_context(1).unwrap();
    fixture.guest.create_context(1, "later").unwrap();
    let offer = Offer::EVERYTHING;
    let open = OpenAnswers {
        resource_id: RING,
        major: offer.major,
        minor: offer.minor,
        requests: offer.requests,
        create_flags: offer.create_flags,
    };
    let bytes = EnvelopeBuilder::new(1).request(open).build();
    let refused = fixture.guest.submit(1, 0, &bytes);
    assert_eq!(refused, Err(Error::UnknownResource(RING)));
    assert_eq!(fixture.used(1), 0);
    fixture.guest.unref(1).unwrap();
    assert_eq!(fixture.guest.contexts[&1].objects, 0);
    fixture.guest.destroy_context(1).unwrap();
    assert!(fixture.guest.has_resource(RING));
    assert_eq!(fixture.guest.host.used(), 2 * PAGE);
}

#[test]
fn reset_forgets_all_and_shows_zeros() {
    let mut fixture = Fixture::with_context();
    fixture.allocate(1, 1, 1, 0, 16);
    fixture.write(0, 16, !0);
    fixture.ask(
        1,
        Fill {
            range: range(1, 0, PAGE),
            value: 1,
        },
    );
    for _ in 0..3 {
        fixture.guest.reset();
        fixture
            .guest
            .wait_for(fixture.guest.work.submitted())
            .unwrap();
        assert_eq!(fixture.guest.host.used(), 0);
        assert!(!fixture.guest.has_context(1) && !fixture.guest.has_resource(1));
        fixture.open(1, RING, RING_OFFSET);
        fixture.allocate(1, 1, 1, 4, 20);
        assert!(fixture.all(4, 20, 0));
        fixture.write(4, 20, !0);
    }
}

#[test]
fn what_is_no_envelope_is_told_to_somebody() {
    let mut fixture = Fixture::with_context();
    let bytes = EnvelopeBuilder::new(77)
        .structure(0xbeef, 1, &[1, 2, 3])
        .build();
    fixture.guest.submit(1, 0, &bytes).unwrap();
    assert_eq!(fixture.peek(1, 77).unwrap().status, Status::Unsupported);
    assert!(fixture.guest.submit(1, 0, b"garbage").is_err());
    assert!(fixture.guest.submit(1, 0, b"").is_err());
    assert!(fixture.guest.submit(9, 0, &bytes).is_err());
    fixture.guest.create_context(3, "no ring").unwrap();
    assert!(fixture.guest.submit(3, 0, &bytes).is_err());
}

#[test]
fn map_requests_check_access_and_cache() {
    let mut fixture = Fixture::with_context();
    fixture.allocate(1, 1, 1, 0, 1);
    let map = |expected_cache, access| Map {
        client_id: 1,
        expected_cache,
        access,
    };
    let all = Access::all();
    let answer = fixture.ask(1, map(CacheMode::Cached, all));
    assert_eq!(
        (answer.status, answer.details[0]),
        (Status::Ok, u64::from(map_cache::CACHED))
    );
    assert_eq!(
        fixture.ask(1, map(CacheMode::Uncached, all)).status,
        Status::CacheModeMismatch
    );
    assert_eq!(
        fixture.ask(1, map(CacheMode::Any, Access::empty())).status,
        Status::InvalidArgument
    );
}

#[test]
fn a_map_request_names_memory_anew_and_a_refused_one_does_not() {
    let mut fixture = Fixture::with_context();
    fixture.allocate(1, 1, 1, 0, 1);
    let mut named = |name, access| {
        let map = Map {
            client_id: 1,
            expected_cache: CacheMode::Any,
            access,
        };
        let bytes = EnvelopeBuilder::new(77).request(map).debug_name(name);
        fixture.guest.submit(1, 0, &bytes.build()).unwrap();
        let key = fixture.guest.contexts[&1].names[&1];
        fixture.guest.memories[&key].label.clone()
    };
    assert_eq!(named("first", Access::all()).as_deref(), Some("first"));
    assert_eq!(named("second", Access::all()).as_deref(), Some("second"));
    assert_eq!(named("third", Access::empty()).as_deref(), Some("second"));
}
