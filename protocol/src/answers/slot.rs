//! One slot of the ring: a sequence lock over four words of shared memory.

use std::sync::atomic::{AtomicU64, Ordering, fence};

/// Words of a slot.
pub(super) const WORDS: usize = super::RECORD_SIZE / size_of::<u64>();

/// A word that others may change at any time. Tests have words that count, and words of a model checker.
pub(super) trait Word {
    fn load(&self, order: Ordering) -> u64;
    fn store(&self, value: u64, order: Ordering);
    fn fence(order: Ordering);
}

impl Word for AtomicU64 {
    #[inline]
    fn load(&self, order: Ordering) -> u64 {
        self.load(order)
    }

    #[inline]
    fn store(&self, value: u64, order: Ordering) {
        self.store(value, order);
    }

    #[inline]
    fn fence(order: Ordering) {
        fence(order);
    }
}

/// What a slot holds under its sequence number: status, detail, detail.
pub(super) type Values = [u64; WORDS - 1];

/// Only one thread may write at a time. `sequence` is not 0, and no number is written twice.
pub(super) fn write<W: Word>(slot: &[W; WORDS], sequence: u64, values: Values) {
    let [written, words @ ..] = slot;
    // The slot is empty while it changes. The fence orders this store before those that follow.
    written.store(0, Ordering::Relaxed);
    W::fence(Ordering::Release);
    for (word, value) in words.iter().zip(values) {
        word.store(value.to_le(), Ordering::Relaxed);
    }
    written.store(sequence.to_le(), Ordering::Release);
}

/// What was written under `sequence`, not 0; `None` where something else is there.
pub(super) fn read<W: Word>(slot: &[W; WORDS], sequence: u64) -> Option<Values> {
    let [written, words @ ..] = slot;
    if u64::from_le(written.load(Ordering::Acquire)) != sequence {
        return None;
    }
    let values = words.each_ref();
    let values = values.map(|word| u64::from_le(word.load(Ordering::Relaxed)));
    // Orders the loads above before the one below: a value of a later answer comes with its empty or new sequence.
    W::fence(Ordering::Acquire);
    (u64::from_le(written.load(Ordering::Relaxed)) == sequence).then_some(values)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// Counts what is done to it.
    #[derive(Default)]
    struct Counting {
        value: Cell<u64>,
        loads: Cell<u32>,
        stores: Cell<u32>,
    }

    impl Word for Counting {
        fn load(&self, _: Ordering) -> u64 {
            self.loads.update(|loads| loads + 1);
            self.value.get()
        }

        fn store(&self, value: u64, _: Ordering) {
            self.stores.update(|stores| stores + 1);
            self.value.set(value);
        }

        fn fence(_: Ordering) {}
    }

    /// The host reads nothing back, and the guest reads each value once: the number that it looks at twice tells whether they belong together.
    #[test]
    fn each_word_is_read_once() {
        let slot: [Counting; WORDS] = Default::default();
        write(&slot, 7, [1, 2, 3]);
        let loads = || slot.each_ref().map(|word| word.loads.get());
        assert_eq!(loads(), [0; 4]);
        assert_eq!(slot.each_ref().map(|word| word.stores.get()), [2, 1, 1, 1]);
        assert_eq!(read(&slot, 7), Some([1, 2, 3]));
        assert_eq!(loads(), [2, 1, 1, 1]);
        assert_eq!(read(&slot, 8), None);
        assert_eq!(loads(), [3, 1, 1, 1]);
    }
}

/// `cargo xtask interleavings`: what the two threads can do, in every order, with every value that the memory model lets a load see.
#[cfg(all(test, loom))]
mod interleavings {
    use loom::sync::Arc;
    use loom::sync::atomic::AtomicU64;
    use loom::thread::spawn;

    use super::*;

    impl Word for AtomicU64 {
        fn load(&self, order: Ordering) -> u64 {
            self.load(order)
        }

        fn store(&self, value: u64, order: Ordering) {
            self.store(value, order);
        }

        fn fence(order: Ordering) {
            loom::sync::atomic::fence(order);
        }
    }

    fn values(sequence: u64) -> Values {
        [sequence * 10, sequence * 100, sequence * 1000]
    }

    fn empty() -> Arc<[AtomicU64; WORDS]> {
        Arc::new(std::array::from_fn(|_| AtomicU64::new(0)))
    }

    fn explore(name: &str, model: impl Fn() + Send + Sync + 'static) {
        let count = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
        let counted = std::sync::Arc::clone(&count);
        let mut builder = loom::model::Builder::new();
        // Few enough to try them all.
        builder.preemption_bound = None;
        builder.check(move || {
            counted.fetch_add(1, Ordering::Relaxed);
            model();
        });
        println!("{name}: {} interleavings", count.load(Ordering::Relaxed));
    }

    /// Two answers, one after the other in the same slot: who looks for one of them finds it whole or not at all.
    #[test]
    fn an_answer_is_read_whole_or_not_at_all() {
        explore("an_answer_is_read_whole_or_not_at_all", || {
            let slot = empty();
            let host = {
                let slot = Arc::clone(&slot);
                spawn(move || {
                    write(&*slot, 1, values(1));
                    write(&*slot, 2, values(2));
                })
            };
            for sequence in [1, 2] {
                if let Some(read) = read(&*slot, sequence) {
                    assert_eq!(read, values(sequence));
                }
            }
            host.join().unwrap();
            assert_eq!((read(&*slot, 1), read(&*slot, 2)), (None, Some(values(2))));
        });
    }

    /// Who was told that there is an answer finds it, and not the one before it.
    #[test]
    fn who_was_told_finds_the_answer() {
        explore("who_was_told_finds_the_answer", || {
            let slot = empty();
            let told = Arc::new(AtomicU64::new(0));
            write(&*slot, 1, values(1));
            let host = {
                let (slot, told) = (Arc::clone(&slot), Arc::clone(&told));
                spawn(move || {
                    write(&*slot, 2, values(2));
                    told.store(1, Ordering::Release);
                })
            };
            let was_told = told.load(Ordering::Acquire) == 1;
            let found = read(&*slot, 2);
            assert!(found.is_none_or(|found| found == values(2)));
            assert!(!was_told || found.is_some());
            assert!(!was_told || read(&*slot, 1).is_none());
            host.join().unwrap();
        });
    }
}
