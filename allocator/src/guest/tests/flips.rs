//! Bits flip in all that a guest can write to while the host works: it harms nobody else.

use std::sync::atomic::{AtomicBool, AtomicU64};

use super::*;

const HOSTILE: u32 = 1;
const VICTIM: u32 = 2;
/// What the hostile context has: the first pages, and the last one as its ring.
const HOSTILE_PAGES: u64 = 16;
const VICTIM_PAGE: u64 = 20;
const VICTIM_PAGES: u64 = 4;
const VICTIM_RING_OFFSET: u64 = RING_OFFSET - PAGE;
const VICTIM_VALUE: u64 = 0x1234_5678_9abc_def0;
const ROUNDS: u64 = 100;
/// Every so many rounds the guest is saved and restored elsewhere.
const ROUNDS_OF_A_SNAPSHOT: u64 = 25;

/// Ends the thread that flips, also where the test fails.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Memory with bytes of its own, moved out of the window and back, filled and copied by the GPU.
fn work(fixture: &mut Fixture, round: u64) {
    let clients = [round * 2 + 1, round * 2 + 2];
    for (client, resource) in clients.into_iter().zip([5, 6]) {
        fixture.send(HOSTILE, create(client, 4 * PAGE, DIRECT));
        fixture.blob(HOSTILE, resource, client, 4 * PAGE).unwrap();
        fixture
            .guest
            .map_blob(resource, PAGE * (round % 8))
            .unwrap();
        let fill = Fill {
            range: range(client, 0, 4 * PAGE),
            value: 7,
        };
        fixture.send(HOSTILE, fill);
        fixture.guest.unmap_blob(resource).unwrap();
    }
    // The second one is in the first one's place.
    fixture.guest.map_blob(5, 8 * PAGE).unwrap();
    let copy = Copy {
        source: range(clients[0], 0, 4 * PAGE),
        destination_client_id: clients[1],
        destination_offset: 0,
    };
    let sequence = fixture.send(HOSTILE, copy);
    fixture
        .guest
        .wait_for(fixture.guest.work.submitted())
        .unwrap();
    let answer = fixture.peek(HOSTILE, sequence);
    assert!(answer.is_none_or(|answer| answer.sequence == sequence));
    fixture.guest.unref(5).unwrap();
    fixture.guest.unref(6).unwrap();
    fixture
        .guest
        .wait_for(fixture.guest.work.submitted())
        .unwrap();
    assert_eq!(fixture.used(HOSTILE), 1, "the ring");
}

/// The other context's answers are its own, and so are its bytes: zeros at first.
fn live(fixture: &mut Fixture, round: u64) {
    fixture.allocate(VICTIM, round + 1, 9, VICTIM_PAGE, VICTIM_PAGES);
    assert!(fixture.all(VICTIM_PAGE, VICTIM_PAGES, 0), "round {round}");
    fixture.write(VICTIM_PAGE, VICTIM_PAGES, VICTIM_VALUE);
    let usage = fixture.ask(VICTIM, QueryBudget { heap: 0 }).details[1];
    assert_eq!(usage, (VICTIM_PAGES + 1) * PAGE, "round {round}");
}

#[test]
fn bits_that_flip_while_the_host_works_harm_nobody_else() {
    let mut fixture = Fixture::new();
    fixture.open(HOSTILE, RING, RING_OFFSET);
    fixture.open(VICTIM, RING + 1, VICTIM_RING_OFFSET);
    let address = fixture.guest.window().address().cast::<AtomicU64>();
    let words = usize::try_from(WINDOW).unwrap() / size_of::<u64>();
    // SAFETY: the whole window is mapped there until the fixture drops, which is after the threads have ended; words that others may write to.
    let words = unsafe { std::slice::from_raw_parts(address.as_ptr(), words) };
    let (flips, done) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let its_pages = words
                .iter()
                .take(usize::try_from(HOSTILE_PAGES * PAGE / 8).unwrap());
            let its_ring = words.iter().skip(usize::try_from(RING_OFFSET / 8).unwrap());
            let its: Vec<&AtomicU64> = its_pages.chain(its_ring).collect();
            let mut noise = 0x9e37_79b9_7f4a_7c15_u64;
            while !done.load(Ordering::Relaxed) {
                noise ^= noise << 13;
                noise ^= noise >> 7;
                noise ^= noise << 17;
                let at = usize::try_from(noise % its.len() as u64).unwrap();
                its[at].fetch_xor(1 << (noise >> 58), Ordering::Relaxed);
                flips.fetch_add(1, Ordering::Relaxed);
            }
        });
        let _done = Done(&done);
        for round in 0..ROUNDS {
            work(&mut fixture, round);
            live(&mut fixture, round);
            if round % ROUNDS_OF_A_SNAPSHOT == 0 {
                let mut snapshot = Vec::new();
                fixture.guest.save(&mut snapshot).unwrap();
                let mut elsewhere = Fixture::new();
                elsewhere.guest.restore(&mut snapshot.as_slice()).unwrap();
                assert!(elsewhere.all(VICTIM_PAGE, VICTIM_PAGES, VICTIM_VALUE));
            }
            assert!(fixture.all(VICTIM_PAGE, VICTIM_PAGES, VICTIM_VALUE));
            fixture.guest.unmap_blob(9).unwrap();
            fixture.guest.unref(9).unwrap();
        }
    });
    assert!(flips.load(Ordering::Relaxed) > ROUNDS, "{flips:?}");
    fixture.guest.reset();
    assert_eq!(fixture.guest.host.used(), 0);
}
