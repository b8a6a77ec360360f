//! What happens when the driver refuses: each call once, and for good.

use super::*;
use crate::provider::gl::error::CONTEXT_LOST;

/// A stream of requests of each kind; answers come in order and in time, whatever they are.
fn scenario(guest: &mut Guest) -> Vec<Result<(), ProviderError>> {
    let (a, attach) = guest.attach_request(0, MIB);
    let (b, again) = guest.attach_request(MIB, MIB);
    let (c, allocate) = guest.allocate_request(MIB);
    // Over the same bytes as `a`: makes the worker wait by itself.
    let (d, alias) = guest.attach_request(0, MIB);
    let copy = |source, destination| Request::Copy {
        source,
        source_offset: 0,
        destination,
        destination_offset: 0,
        length: MIB,
    };
    let requests = [
        attach,
        again,
        allocate,
        alias,
        fill(a, 0, MIB, 0x1111_1111),
        copy(d, c),
        fill(a, 0, MIB, 0x2222_2222),
        copy(c, b),
        Request::Release { attachment: c },
        Request::Release { attachment: d },
        Request::Release { attachment: a },
        Request::Release { attachment: b },
    ];
    let sequences: Vec<u64> = requests.into_iter().map(|r| guest.submit(r)).collect();
    sequences
        .into_iter()
        .map(|sequence| {
            let completion = guest.next();
            assert_eq!(completion.sequence, sequence);
            completion.result.map(drop)
        })
        .collect()
}

#[test]
fn each_driver_call_may_fail_once() {
    let provider = validated();
    let faults = Arc::clone(&provider.started.faults);
    let mut guest = Guest::new(&provider, 2 * MIB);
    let before = faults.calls();
    assert!(scenario(&mut guest).iter().all(Result::is_ok));
    assert_eq!(guest.read(MIB, 4), [0x11; 4]);
    let calls = faults.calls() - before;
    assert!(calls >= 15, "{calls} calls");
    for error in [glow::OUT_OF_MEMORY, glow::INVALID_OPERATION] {
        let mut refused = 0;
        // A few more than in the good run: how requests are gathered varies.
        for call in 0..calls + 6 {
            faults.arm(call, error);
            for answer in scenario(&mut guest) {
                refused += u32::from(answer.is_err());
                assert!(
                    !matches!(answer, Err(ProviderError::DeviceLost(_))),
                    "call {call}: {answer:?}"
                );
            }
        }
        assert!(refused >= 10, "{refused} refused");
    }
    // Past the last armed call all is well again.
    for _ in 0..2 {
        scenario(&mut guest);
    }
    assert!(scenario(&mut guest).iter().all(Result::is_ok));
    drop(guest);
    finish(provider);
}

#[test]
fn memory_that_was_not_zeroed_is_not_allocated() {
    let provider = validated();
    let faults = Arc::clone(&provider.started.faults);
    let mut guest = Guest::new(&provider, MIB);
    let mut refused = 0;
    for call in 0..10 {
        faults.arm(call, glow::OUT_OF_MEMORY);
        let (attachment, request) = guest.allocate_request(MIB);
        let allocated = guest.call(request);
        let released = guest.call(Request::Release { attachment });
        if allocated.is_ok() {
            assert_eq!(released, Ok(()));
        } else {
            refused += 1;
            assert!(
                matches!(allocated, Err(ProviderError::OutOfDeviceMemory(_))),
                "call {call}: {allocated:?}"
            );
            assert!(
                matches!(released, Err(ProviderError::Invalid(_))),
                "call {call}: {released:?}"
            );
        }
    }
    // The object, its store, its zeroing.
    assert!(refused >= 3, "{refused} refused");
    drop(guest);
    finish(provider);
}

#[test]
fn a_pin_that_fails_is_the_hosts_memory() {
    let provider = validated();
    let faults = Arc::clone(&provider.started.faults);
    let mut guest = Guest::new(&provider, MIB);
    // The first call makes the name, the second pins.
    for (error, lacks_memory) in [
        (glow::OUT_OF_MEMORY, true),
        (glow::INVALID_OPERATION, false),
    ] {
        faults.arm(1, error);
        let (attachment, request) = guest.attach_request(0, MIB);
        let answer = guest.call(request);
        assert_eq!(
            matches!(answer, Err(ProviderError::OutOfHostMemory(_))),
            lacks_memory,
            "{answer:?}"
        );
        assert!(answer.is_err());
        // Nothing is attached.
        assert!(guest.call(Request::Release { attachment }).is_err());
    }
    let a = guest.attach(0, MIB);
    guest.ok(fill(a, 0, MIB, 3));
    drop(guest);
    finish(provider);
}

#[test]
fn a_lost_context_answers_everything_and_ends() {
    for call in 0..24 {
        let provider = validated();
        let faults = Arc::clone(&provider.started.faults);
        let mut guest = Guest::new(&provider, 2 * MIB);
        let mut other = Guest::new(&provider, 2 * MIB);
        assert!(scenario(&mut other).iter().all(Result::is_ok));
        faults.arm(call, CONTEXT_LOST);
        scenario(&mut guest);
        scenario(&mut guest);
        for guest in [&mut guest, &mut other] {
            for answer in scenario(guest) {
                assert!(
                    matches!(answer, Err(ProviderError::DeviceLost(_))),
                    "call {call}: {answer:?}"
                );
            }
        }
        drop((guest, other));
        finish(provider);
    }
}
