//! Limits, and what a second process of the same guest has while the first does its worst.

use super::*;
use crate::context::{MAX_CONTEXT_JOBS, MAX_CONTEXTS, MAX_GUEST_JOBS};
use crate::guest::blobs::MAX_ATTACHED;
use crate::provider::fake::Seen;

const SHARE: u64 = 6;
const QUIET: u32 = 1;
const GREEDY: u32 = 2;

/// A quiet context, with a ring; each context has a share of 6 pages.
fn with_shares() -> Fixture {
    let mut fixture = Fixture::with(|provider, config| {
        let config = Config {
            context_share: SHARE * PAGE,
            ..config
        };
        Host::new(provider, config).unwrap()
    });
    fixture.open(QUIET, RING, RING_OFFSET);
    fixture
}

fn fill(client_id: u64) -> Fill {
    Fill {
        range: range(client_id, 0, PAGE),
        value: 7,
    }
}

/// What the quiet one does, with its share: memory, and work on it. How many requests its provider gets for that.
fn works_as_ever(fixture: &mut Fixture, page: u64) -> usize {
    let before = fixture.fake.count();
    for (number, client) in (0..).zip(100..100 + SHARE - 1) {
        fixture.allocate(
            QUIET,
            client,
            u32::try_from(client).unwrap(),
            page + number,
            1,
        );
        assert!(fixture.all(page + number, 1, 0));
        assert_eq!(fixture.ask(QUIET, fill(client)).status, Status::Ok);
        assert!(fixture.all(page + number, 1, 0x7_0000_0007));
    }
    let requests = fixture.fake.count() - before;
    for client in 100..100 + SHARE - 1 {
        fixture.guest.unref(u32::try_from(client).unwrap()).unwrap();
    }
    let all = fixture.guest.work.submitted();
    fixture.guest.wait_for(all).unwrap();
    requests
}

/// A table of parked memories is small, and what is parked is charged: who parks much takes nothing from others.
#[test]
fn there_is_always_a_spot_for_what_is_charged() {
    let mut fixture = Fixture::with_context();
    fixture.open(2, RING + 1, RING_OFFSET - PAGE);
    fixture.allocate(2, 1, 1, 0, 1);
    fixture.write(0, 1, 0x22);
    fixture.guest.unmap_blob(1).unwrap();
    for client_id in 1..=38 {
        let flags = CreateFlags::HOST_VISIBLE;
        assert_eq!(fixture.create(1, client_id, 1, flags), Status::Ok);
        let fill = Fill {
            range: range(client_id, 0, PAGE),
            value: u32::try_from(client_id).unwrap(),
        };
        assert_eq!(fixture.ask(1, fill).status, Status::Ok, "{client_id}");
    }
    assert!(fixture.guest.parking.len() > 2);
    // The other context's bytes make room, and come back.
    fixture.allocate(2, 2, 2, 0, 1);
    assert!(fixture.all(0, 1, 0));
    fixture.guest.map_blob(1, PAGE).unwrap();
    assert!(fixture.all(1, 1, 0x22));
}

#[test]
fn a_greedy_context_leaves_others_their_share() {
    let mut fixture = with_shares();
    let alone = works_as_ever(&mut fixture, 100);
    fixture.guest.create_context(GREEDY, "greedy").unwrap();
    let mut resource = 10;
    while fixture.plain(GREEDY, resource, PAGE).is_ok() {
        resource += 1;
    }
    assert_eq!(resource - 10, 40, "its own limit");
    fixture.guest.create_context(3, "greedy too").unwrap();
    let held = resource;
    while fixture.plain(3, resource, PAGE).is_ok() {
        resource += 1;
    }
    assert_eq!(
        u64::from(resource - held),
        64 - 40 - SHARE,
        "what is left of all"
    );
    assert_eq!(fixture.guest.host.used(), 64 * PAGE);
    let budget = fixture.ask(QUIET, QueryBudget { heap: 0 }).details;
    assert_eq!(budget, [SHARE * PAGE, PAGE], "it is told so");
    assert_eq!(works_as_ever(&mut fixture, 100), alone);
    // What ends is for others, but for what somebody sees.
    fixture.guest.destroy_context(3).unwrap();
    fixture.guest.destroy_context(GREEDY).unwrap();
    assert_eq!(fixture.guest.host.used(), SHARE * PAGE);
}

#[test]
fn a_flood_of_contexts_leaves_others_their_share() {
    let mut fixture = with_shares();
    let alone = works_as_ever(&mut fixture, 100);
    let mut id = 2;
    let refused = loop {
        match fixture.guest.create_context(id, "one of many") {
            Ok(()) => id += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, Error::Quota(_)), "{refused:?}");
    assert_eq!(u64::from(id - 2), 64 / SHARE - 1);
    // Each takes what it can get, and more.
    for context in 2..id {
        for number in 0..100 {
            let _ = fixture.plain(context, context * 10_000 + number, PAGE);
        }
        let mapped = fixture
            .guest
            .map_blob(context * 10_000, u64::from(context) * PAGE);
        mapped.unwrap();
    }
    assert_eq!(works_as_ever(&mut fixture, 100), alone);
    // Those that end, but for a blob that is mapped, hold that and no share: new ones find room.
    for context in 2..id {
        fixture.guest.destroy_context(context).unwrap();
    }
    assert_eq!(
        fixture.guest.host.used(),
        (SHARE + u64::from(id) - 2) * PAGE
    );
    fixture.guest.create_context(2, "later").unwrap();
}

#[test]
fn there_is_a_limit_of_contexts() {
    let mut fixture = Fixture::new();
    for id in 1..=MAX_CONTEXTS {
        let id = u32::try_from(id).unwrap();
        fixture.guest.create_context(id, "").unwrap();
    }
    let refused = fixture.guest.create_context(u32::MAX, "");
    assert_eq!(refused, Err(Error::TooManyContexts(MAX_CONTEXTS)));
    for id in 1..=MAX_CONTEXTS {
        let id = u32::try_from(id).unwrap();
        fixture.guest.destroy_context(id).unwrap();
    }
    assert_eq!(fixture.guest.all_jobs.used(), 0);
    fixture.guest.create_context(u32::MAX, "").unwrap();
}

/// Every other page is somebody's: the largest place is a page, and that is enough for a share.
#[test]
fn a_fragmented_window_leaves_room_for_a_share() {
    let mut fixture = Fixture::with(|provider, config| {
        let config = Config {
            memory_limit: 300 * PAGE,
            context_limit: 300 * PAGE,
            context_share: SHARE * PAGE,
            ..config
        };
        Host::new(provider, config).unwrap()
    });
    fixture.open(QUIET, RING, RING_OFFSET);
    let alone = works_as_ever(&mut fixture, 1);
    fixture.guest.create_context(GREEDY, "greedy").unwrap();
    let pages = WINDOW / PAGE - 2;
    for page in (0..pages).step_by(2) {
        let resource = 2000 + u32::try_from(page).unwrap();
        fixture.plain(GREEDY, resource, PAGE).unwrap();
        fixture.guest.map_blob(resource, page * PAGE).unwrap();
    }
    assert_eq!(fixture.create(QUIET, 50, 2, DIRECT), Status::Ok);
    fixture.blob(QUIET, 50, 50, 2 * PAGE).unwrap();
    for page in 0..pages - 1 {
        let refused = fixture.guest.map_blob(50, page * PAGE);
        assert!(matches!(refused, Err(Error::Occupied { .. })), "{page}");
    }
    fixture.guest.unref(50).unwrap();
    // In the holes, for as many requests of its provider as ever.
    let before = fixture.fake.count();
    for (number, client) in (0..).zip(100..100 + SHARE - 1) {
        let page = 2 * number + 1;
        fixture.allocate(QUIET, client, u32::try_from(client).unwrap(), page, 1);
        assert_eq!(fixture.ask(QUIET, fill(client)).status, Status::Ok);
        assert!(fixture.all(page, 1, 0x7_0000_0007));
    }
    assert_eq!(fixture.fake.count() - before, alone);
}

#[test]
fn work_under_way_is_limited_and_each_context_has_some() {
    let mut fixture = with_shares();
    fixture.open(GREEDY, RING + 1, RING_OFFSET - PAGE);
    fixture.allocate(QUIET, 1, 1, 0, 1);
    fixture.allocate(GREEDY, 1, 2, 1, 1);
    fixture.ask(QUIET, fill(1));
    fixture.ask(GREEDY, fill(1));
    fixture.fake.hold();
    let fills = |fake: &FakeProvider| fake.count_of(|seen| matches!(seen, Seen::Fill { .. }));
    let start = fills(&fixture.fake);
    // An envelope of 64 at a time, and one of them is refused in the middle.
    let flood = |fixture: &mut Fixture, context: u32| {
        fixture.sequence += 1;
        let mut envelope = EnvelopeBuilder::new(fixture.sequence);
        for _ in 0..60 {
            envelope = envelope.request(Fill {
                range: range(1, 0, 4),
                value: 7,
            });
        }
        let bytes = envelope.build();
        fixture.guest.submit(context, 0, &bytes).unwrap();
        fixture.sequence
    };
    let mut last = 0;
    for _ in 0..MAX_CONTEXT_JOBS / 60 + 5 {
        last = flood(&mut fixture, GREEDY);
    }
    let under_way = fills(&fixture.fake) - start;
    assert_eq!(under_way as u64, MAX_CONTEXT_JOBS);
    // The quiet one has its work taken, which comes after what is under way.
    let quiet = fixture.send(QUIET, fill(1));
    assert_eq!(fills(&fixture.fake) - start, under_way + 1);
    assert_eq!(fixture.peek(QUIET, quiet), None);
    assert!(fixture.guest.all_jobs.used() <= MAX_GUEST_JOBS);
    let refused = fixture.peek(GREEDY, last).unwrap();
    assert_eq!(refused.status, Status::OutOfHostMemory);
    fixture.fake.release_all();
    // As long as it takes on a busy host.
    let all = fixture.guest.work.submitted();
    while !fixture.guest.work.reached(all) {
        fixture.guest.process_completions();
        std::thread::yield_now();
    }
    assert_eq!(fixture.answer(QUIET, quiet).status, Status::Ok);
    assert_eq!(
        fixture.ask(GREEDY, fill(1)).status,
        Status::Ok,
        "some is done"
    );
}

/// Moving memory waits until the GPU lets go of it, and everybody's commands are behind.
#[test]
fn a_busy_gpu_is_waited_for_once() {
    let mut fixture = with_shares();
    fixture.open(GREEDY, RING + 1, RING_OFFSET - PAGE);
    fixture.allocate(GREEDY, 1, 2, 1, 1);
    fixture.ask(GREEDY, fill(1));
    fixture.fake.hold();
    fixture.send(GREEDY, fill(1));
    fixture.guest.unmap_blob(2).unwrap();
    let start = std::time::Instant::now();
    for page in 10..20 {
        let refused = fixture.guest.map_blob(2, page * PAGE);
        assert_eq!(refused, Err(Error::GpuTimeout(GPU_TIMEOUT)));
    }
    assert!(start.elapsed() < 5 * GPU_TIMEOUT, "{:?}", start.elapsed());
    fixture.fake.release_all();
    while fixture.guest.map_blob(2, 20 * PAGE).is_err() {
        std::thread::yield_now();
    }
    assert!(fixture.all(20, 1, 0x7_0000_0007));
    // Later waits are waits again.
    works_as_ever(&mut fixture, 100);
}

#[test]
fn a_blob_is_attached_to_so_many_contexts() {
    let mut fixture = Fixture::with_context();
    fixture.plain(1, 5, PAGE).unwrap();
    let attached = u32::try_from(MAX_ATTACHED).unwrap();
    for id in 0..=attached {
        fixture.guest.create_context(10 + id, "").unwrap();
    }
    for id in 0..attached {
        fixture.guest.attach_resource(10 + id, 5).unwrap();
        fixture.guest.attach_resource(10 + id, 5).unwrap();
    }
    let refused = fixture.guest.attach_resource(10 + attached, 5);
    assert_eq!(refused, Err(Error::TooManyObjects(MAX_ATTACHED as u64)));
    fixture.guest.detach_resource(10, 5).unwrap();
    fixture.guest.attach_resource(10 + attached, 5).unwrap();
}
