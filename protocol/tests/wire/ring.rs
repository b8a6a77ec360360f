//! The answers ring between threads: one that writes, one that reads, and one that scribbles over everything.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use hostblob_protocol::Status;
use hostblob_protocol::answers::{Answer, MIN_SIZE, Ring};
use proptest::collection::vec;
use proptest::prelude::*;

fn memory() -> Vec<AtomicU64> {
    (0..MIN_SIZE / 8).map(|_| AtomicU64::new(0)).collect()
}

/// An answer whose every word follows from its sequence.
fn answer(sequence: u64) -> Answer {
    let status = Status::ALL[usize::try_from(sequence).unwrap() % Status::ALL.len()];
    Answer {
        sequence,
        status,
        index: sequence as u32,
        details: [!sequence, sequence << 8],
    }
}

#[test]
fn sequence_zero_has_no_answer() {
    let memory = memory();
    let ring = Ring::new(&memory).unwrap();
    ring.initialise();
    assert_eq!(ring.read(0), None, "an empty slot is not an answer");
    let slots = ring.slots() as u64;
    ring.write(&answer(slots));
    ring.write(&Answer {
        sequence: 0,
        ..answer(1)
    });
    assert_eq!(
        ring.read(slots),
        Some(answer(slots)),
        "and nobody's slot is overwritten by it"
    );
}

#[test]
fn an_unknown_status_reads_as_internal() {
    let memory = memory();
    let ring = Ring::new(&memory).unwrap();
    ring.write(&answer(1));
    memory[8 + 4 + 1].store(u64::from(u32::MAX).to_le(), Ordering::Relaxed);
    assert_eq!(ring.read(1).unwrap().status, Status::Internal);
}

/// Sequences that share a slot, one after the other, none twice: a reader sees one of them, never a mixture of two.
#[test]
fn a_reader_sees_whole_answers_only() {
    const ENOUGH: u64 = 200_000;
    const PATIENCE: Duration = Duration::from_secs(5);
    // Slot 5 lies in two cache lines, so that its halves do not travel together by luck.
    let memory: Vec<AtomicU64> = (0..MIN_SIZE / 8 + 8).map(|_| AtomicU64::new(0)).collect();
    let skip = (0..8)
        .find(|skip| memory[*skip..].as_ptr().addr() % 64 == 16)
        .unwrap();
    let ring = Ring::new(&memory[skip..]).unwrap();
    let slots = ring.slots() as u64;
    let latest = AtomicU64::new(5);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut sequence = 5;
            while !done.load(Ordering::Relaxed) {
                ring.write(&answer(sequence));
                latest.store(sequence, Ordering::Relaxed);
                sequence += slots;
            }
        });
        let begin = Instant::now();
        let (mut seen, mut mixed) = (0, None);
        while seen < ENOUGH && mixed.is_none() && begin.elapsed() < PATIENCE {
            let sequence = latest.load(Ordering::Relaxed);
            for sequence in [sequence, sequence + slots, sequence + 2 * slots] {
                if let Some(read) = ring.read(sequence) {
                    mixed = (read != answer(sequence)).then_some(read).or(mixed);
                    seen += 1;
                }
            }
        }
        done.store(true, Ordering::Relaxed);
        assert_eq!(mixed, None, "after {seen} answers");
        assert_ne!(seen, 0);
    });
}

/// A guest that writes to its own ring harms its own answers: neither side panics, and the host goes on.
#[test]
fn scribbling_harms_nobody() {
    let memory = memory();
    let ring = Ring::new(&memory).unwrap();
    ring.initialise();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut noise = 0x9e37_79b9_7f4a_7c15_u64;
            while !done.load(Ordering::Acquire) {
                noise ^= noise << 13;
                noise ^= noise >> 7;
                noise ^= noise << 17;
                let at = usize::try_from(noise % memory.len() as u64).unwrap();
                memory[at].fetch_xor(1 << (noise % 64), Ordering::Relaxed);
            }
        });
        scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                for sequence in 0..300 {
                    if let Some(read) = ring.read(sequence) {
                        assert_eq!(read.sequence, sequence);
                    }
                }
                let _ = ring.is_initialised();
            }
        });
        for sequence in 0..100_000 {
            ring.write(&answer(sequence));
        }
        done.store(true, Ordering::Release);
    });
    let ring = Ring::new(&memory).unwrap();
    ring.write(&answer(9));
    assert_eq!(ring.read(9), Some(answer(9)));
}

proptest! {
    /// Any words, any sequence: an answer to that sequence or none.
    #[test]
    fn any_words(words in vec(any::<u64>(), 0..1024), sequence in any::<u64>()) {
        let memory: Vec<AtomicU64> = words.into_iter().map(AtomicU64::new).collect();
        if let Some(ring) = Ring::new(&memory) {
            prop_assert!(ring.read(sequence).is_none_or(|answer| answer.sequence == sequence));
            ring.initialise();
            prop_assert!(ring.is_initialised());
            if sequence != 0 {
                let written = Answer { sequence, status: Status::Ok, index: 1, details: [2, 3] };
                ring.write(&written);
                prop_assert_eq!(ring.read(sequence), Some(written));
            }
            prop_assert!(ring.is_initialised());
        }
    }

    /// Every sequence has its slot: a run of as many as there are slots keeps all its answers.
    #[test]
    fn a_run_of_sequences_fits(first in 1..u64::MAX - 5000) {
        let memory = memory();
        let ring = Ring::new(&memory).unwrap();
        let run = first..first + ring.slots() as u64;
        let make = |sequence| Answer { sequence, status: Status::Ok, index: 0, details: [sequence, 1] };
        run.clone().for_each(|sequence| ring.write(&make(sequence)));
        for sequence in run {
            prop_assert_eq!(ring.read(sequence), Some(make(sequence)));
        }
    }
}
