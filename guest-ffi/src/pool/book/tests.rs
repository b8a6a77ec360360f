use super::*;
use proptest::prelude::*;

const MIB: u64 = 1 << 20;

#[test]
fn one_empty_block_stays_and_the_smaller_of_two_goes() {
    let mut book = Book::default();
    book.add(2 * MIB, 'a').unwrap();
    let (first, ..) = book.allocate(2 * MIB, 1).unwrap();
    book.add(4 * MIB, 'b').unwrap();
    let (second, payload) = book.allocate(3 * MIB, 1).unwrap();
    assert_eq!((second.offset(), *payload), (0, 'b'));
    assert_eq!(book.free(second), None, "the only empty one");
    assert_eq!(book.free(first), Some('a'));
    assert_eq!(book.blocks(), (1, 4 * MIB));
    assert_eq!(book.live(), (0, 0));
    assert_eq!(book.trim(), ['b']);
}

#[test]
fn whole_blocks_and_nothing_are_sizes_too() {
    let mut book = Book::default();
    assert!(book.allocate(64, 1).is_none());
    book.add(2 * MIB, ()).unwrap();
    assert!(book.allocate(2 * MIB + 1, 1).is_none());
    assert!(book.allocate(u64::MAX, 1).is_none());
    let (place, ..) = book.allocate(2 * MIB, 4096).unwrap();
    assert!(book.allocate(1, 1).is_none());
    book.free(place);
    assert!(book.allocate(1, 1).is_some());
}

#[test]
fn a_place_is_taken_again_without_the_padding_of_its_last_owner() {
    let mut book = Book::default();
    book.add(2 * MIB, ()).unwrap();
    let (first, _) = book.allocate(UNIT, 1).unwrap();
    let (padded, _) = book.allocate(UNIT, 4 * UNIT).unwrap();
    assert_eq!((padded.offset(), padded.units()), (4 * UNIT, 4));
    book.free(padded);
    let (again, _) = book.allocate(4 * UNIT, 1).unwrap();
    assert_eq!((again.offset(), again.units()), (UNIT, 4));
    assert_eq!(first.offset(), 0);
}

#[test]
fn nodes_run_out_as_an_error() {
    let mut book = Book::default();
    book.add(64 * 1024, ()).unwrap();
    let places: Vec<_> = std::iter::from_fn(|| book.allocate(64, 64).map(|(p, ..)| p)).collect();
    assert!(places.len() > 900, "{}", places.len());
    for place in places {
        book.free(place);
    }
    assert_eq!(book.live(), (0, 0));
    assert!(book.allocate(64 * 1024, 1).is_some(), "merged again");
}

#[test]
fn the_room_of_a_request_is_enough_and_an_eighth_more_at_most() {
    let small = (1..500).map(|units| units * UNIT);
    for size in small.chain((1..=64).map(|mib| mib * MIB)) {
        let room = room(size).unwrap();
        assert!(size <= room && room <= size + size / 8, "{size}: {room}");
        let mut book = Book::default();
        book.add(room, ()).unwrap();
        assert!(book.allocate(size, 1).is_some(), "{size}");
    }
    // The room of pages is the same, counted in pages: whole ones.
    for pages in 1..2000_u32 {
        let counted = offset_allocator::ext::min_allocator_size(pages);
        assert_eq!(
            room(u64::from(pages) * 4096),
            Some(u64::from(counted) * 4096)
        );
    }
    let most = u64::from(u32::MAX) * UNIT;
    for size in [most, most + 1, u64::MAX] {
        assert_eq!(room(size), None);
    }
}

/// Units of a block that nobody has are 0.
type Units = Vec<u32>;

/// What may happen to a book, sizes and alignments in units.
#[derive(Debug, Clone, Copy)]
enum Short {
    Allocate(usize, usize),
    FreeOldest,
    FreeNewest,
    Grow(usize),
}

/// Two blocks, and four steps in every order, against one owner per unit: what is free is given, what is taken is not, and the last empty block stays.
#[test]
fn all_short_lives_agree_with_an_array() {
    use Short::{Allocate, FreeNewest, FreeOldest, Grow};
    let steps = [
        Allocate(1, 1),
        Allocate(2, 1),
        Allocate(3, 1),
        Allocate(1, 2),
        Allocate(2, 4),
        FreeOldest,
        FreeNewest,
        Grow(2),
    ];
    for life in 0..steps.len().pow(4) {
        let mut book = Book::default();
        let mut blocks: Vec<Option<Units>> = Vec::new();
        let mut live = std::collections::VecDeque::new();
        let chosen = (0..4).scan(life, |rest, _| {
            let step = steps[*rest % steps.len()];
            *rest /= steps.len();
            Some(step)
        });
        for (owner, step) in (1..).zip([Grow(5), Grow(2)].into_iter().chain(chosen)) {
            let freed = match step {
                Grow(size) => {
                    book.add(size as u64 * UNIT, blocks.len()).unwrap();
                    blocks.push(Some(vec![0; size]));
                    None
                }
                Allocate(size, alignment) => {
                    let found = book.allocate(size as u64 * UNIT, alignment as u64 * UNIT);
                    let Some((place, &block)) = found else {
                        let mut blocks = blocks.iter().flatten();
                        let fits = |block: &Units| {
                            block
                                .windows(size)
                                .any(|part| part.iter().all(|unit| *unit == 0))
                        };
                        assert!(alignment > 1 || !blocks.any(fits), "life {life}: {step:?}");
                        continue;
                    };
                    // What alignment takes is its own too.
                    let first = place.allocation.offset as usize;
                    let whole = first..first + place.units as usize;
                    let start = usize::try_from(place.offset() / UNIT).unwrap();
                    assert!(start.is_multiple_of(alignment));
                    assert!(whole.start <= start && start + size <= whole.end);
                    let units = &mut blocks[block].as_mut().unwrap()[whole];
                    assert!(units.iter().all(|unit| *unit == 0), "life {life}: {step:?}");
                    units.fill(owner);
                    live.push_back((owner, block, place));
                    continue;
                }
                FreeOldest => live.pop_front(),
                FreeNewest => live.pop_back(),
            };
            let Some((owner, block, place)) = freed else {
                continue;
            };
            for unit in blocks[block].as_mut().unwrap() {
                *unit = if *unit == owner { 0 } else { *unit };
            }
            let is_empty = |block: &&Units| block.iter().all(|unit| *unit == 0);
            let empty = blocks.iter().flatten().filter(is_empty).count();
            let one_too_many =
                blocks[block].as_ref().is_some_and(|units| is_empty(&units)) && empty > 1;
            let gone = book.free(place);
            assert_eq!(gone.is_some(), one_too_many, "life {life}");
            let gone = gone.and_then(|gone| blocks[gone].take());
            assert!(gone.is_none_or(|units| is_empty(&&units)), "life {life}");
            assert_eq!(book.blocks().0, blocks.iter().flatten().count() as u64);
            assert_eq!(book.live().0, live.len() as u64);
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    Allocate(u64, u32),
    Free(prop::sample::Index),
    Grow(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1..200_000_u64, 0..=12_u32).prop_map(|(size, shift)| Step::Allocate(size, shift)),
        4 => any::<prop::sample::Index>().prop_map(Step::Free),
        1 => (1..=4_u64).prop_map(|granules| Step::Grow(granules * MIB / 2)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Against a list of ranges: none overlap, all are aligned and inside, and when all are free, all is free.
    #[test]
    fn agrees_with_a_list_of_ranges(steps in prop::collection::vec(step(), 1..200)) {
        let mut book = Book::default();
        let mut sizes = Vec::new();
        let mut live: Vec<(Place, usize, u64, u64)> = Vec::new();
        for step in steps {
            match step {
                Step::Grow(size) => {
                    book.add(size, sizes.len()).unwrap();
                    sizes.push(size);
                }
                Step::Allocate(size, shift) => {
                    let alignment = 1 << shift;
                    let Some((place, &block)) = book.allocate(size, alignment) else {
                        continue;
                    };
                    let offset = place.offset();
                    prop_assert!(offset.is_multiple_of(alignment.max(UNIT)));
                    prop_assert!(offset + size <= sizes[block]);
                    prop_assert_eq!(book.payload(&place), Some(&block));
                    for (_, other, start, length) in &live {
                        let apart = *other != block || offset + size <= *start || start + length <= offset;
                        prop_assert!(apart, "{block}: {offset}+{size} and {start}+{length}");
                    }
                    live.push((place, block, offset, size));
                }
                Step::Free(index) if !live.is_empty() => {
                    let (place, ..) = live.swap_remove(index.index(live.len()));
                    if let Some(gone) = book.free(place) {
                        prop_assert!(live.iter().all(|(_, block, ..)| *block != gone));
                    }
                }
                Step::Free(_) => {}
            }
            prop_assert_eq!(book.live().0, live.len() as u64);
            prop_assert!(book.live().1 >= live.iter().map(|(.., size)| size).sum());
        }
        for (place, ..) in live {
            book.free(place);
        }
        prop_assert_eq!(book.live(), (0, 0));
        book.trim();
        prop_assert_eq!(book.blocks(), (0, 0));
    }
}
