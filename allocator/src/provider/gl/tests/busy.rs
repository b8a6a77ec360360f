//! A GPU that takes its time: what waits, what does not, and in which order answers come.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::*;

/// Long against everything that must not wait for the GPU.
const A_WHILE: Duration = Duration::from_millis(100);

#[test]
fn answers_wait_for_the_gpu_and_keep_their_order() {
    let provider = validated();
    let busy = Arc::clone(&provider.started.busy);
    let (mut one, mut two) = (Guest::new(&provider, MIB), Guest::new(&provider, MIB));
    let a = one.attach(0, MIB);
    busy.store(true, Ordering::Relaxed);
    let mut sequences = Vec::new();
    for value in 1..5 {
        sequences.push(one.submit(fill(a, 0, MIB, value)));
        // Submissions of their own: several are in flight.
        std::thread::sleep(Duration::from_millis(2));
    }
    // Needs no GPU, and still must not overtake.
    let (b, request) = one.attach_request(0, 4096);
    sequences.push(one.submit(request));
    sequences.push(one.submit(Request::Release { attachment: b }));
    sequences.push(one.submit(Request::Release { attachment: a }));
    // Another guest does not wait for it.
    let start = Instant::now();
    two.attach(0, MIB);
    let took = start.elapsed();
    assert!(took < A_WHILE, "{took:?}");
    std::thread::sleep(A_WHILE);
    assert_eq!(one.answered(), 0);
    busy.store(false, Ordering::Relaxed);
    for sequence in sequences {
        let completion = one.next();
        assert_eq!(
            (completion.sequence, completion.result),
            (sequence, Ok(None))
        );
    }
    assert_eq!(one.read(MIB - 4, 4), [4, 0, 0, 0]);
    drop((one, two));
    finish(provider);
}

#[test]
fn two_attachments_over_the_same_bytes_take_turns() {
    let provider = validated();
    let busy = Arc::clone(&provider.started.busy);
    let mut guest = Guest::new(&provider, MIB);
    let (a, b) = (guest.attach(0, 8192), guest.attach(4096, 8192));
    let elsewhere = guest.attach(65536, 4096);
    busy.store(true, Ordering::Relaxed);
    guest.submit(fill(a, 0, 8192, 1));
    // What does not meet is given at once...
    guest.submit(fill(elsewhere, 0, 4096, 7));
    guest.submit(fill(b, 4096, 4096, 3));
    let met = Instant::now();
    while guest.read(65536, 1) != [7] || guest.read(8192, 1) != [3] {
        assert!(met.elapsed() < Duration::from_secs(10));
    }
    // ...and what does, when the earlier one is finished.
    let last = guest.submit(fill(b, 0, 4096, 2));
    std::thread::sleep(A_WHILE);
    assert_eq!(guest.read(4096, 1), [1]);
    busy.store(false, Ordering::Relaxed);
    while guest.next().sequence != last {}
    assert_eq!(guest.read(4092, 8), [1, 0, 0, 0, 2, 0, 0, 0]);
    drop(guest);
    finish(provider);
}

#[test]
fn a_session_dropped_while_the_gpu_works_is_no_hurry() {
    let provider = validated();
    let busy = Arc::clone(&provider.started.busy);
    let mut guest = Guest::new(&provider, MIB);
    let a = guest.attach(0, MIB);
    busy.store(true, Ordering::Relaxed);
    for value in 0..8 {
        guest.submit(fill(a, 0, MIB, value));
    }
    let (_, request) = guest.allocate_request(MIB);
    guest.submit(request);
    let start = Instant::now();
    drop(guest);
    let took = start.elapsed();
    assert!(took < A_WHILE, "the drop took {took:?}");
    // Nor is the provider's end: it waits.
    let counter = provider.message_counter();
    let end = std::thread::spawn(move || drop(provider));
    std::thread::sleep(A_WHILE);
    assert!(!end.is_finished());
    busy.store(false, Ordering::Relaxed);
    end.join().unwrap();
    assert_eq!(counter.count(), 0);
}
