use std::sync::atomic::Ordering;

use proptest::prelude::*;

use super::*;

const PAGES: u64 = 64;

fn span(page: u64, pages: u64) -> Span {
    Span::new(page * PAGE, pages * PAGE, PAGES * PAGE).unwrap()
}

fn window(warm_pages: u64) -> Window {
    Window::new(PAGES * PAGE, Warmth::up_to(warm_pages * PAGE)).unwrap()
}

fn write(lease: &Lease) {
    lease
        .words()
        .iter()
        .for_each(|word| word.store(0xa5a5_a5a5, Ordering::Relaxed));
}

fn is_zero(lease: &Lease) -> bool {
    lease
        .words()
        .iter()
        .all(|word| word.load(Ordering::Relaxed) == 0)
}

#[test]
fn holders_are_named_and_nothing_changes() {
    let window = window(0);
    let first = window.place(span(0, 4), 1).unwrap();
    let second = window.place(span(6, 2), 2).unwrap();
    assert_eq!(window.place(span(3, 4), 3).unwrap_err(), [1, 2]);
    assert_eq!(window.place(span(7, 1), 3).unwrap_err(), [2]);
    let between = window.place(span(4, 2), 3).unwrap();
    assert_eq!(window.occupancy().held, 8 * PAGE);
    drop((first, second, between));
    window.settle();
    assert_eq!(window.occupancy(), Occupancy::default());
}

#[test]
fn a_dropped_lease_reads_as_zeros_at_once_and_after_cleaning() {
    for (warm, settle) in [(0, false), (0, true), (PAGES, false), (PAGES, true)] {
        let window = window(warm);
        for _ in 0..50 {
            let lease = window.place(span(1, 20), 1).unwrap();
            assert!(is_zero(&lease), "warm {warm}, settled {settle}");
            write(&lease);
            drop(lease);
            if settle {
                window.settle();
            }
            let part = window.place(span(5, 30), 1).unwrap();
            assert!(is_zero(&part), "warm {warm}, settled {settle}");
            write(&part);
        }
    }
}

/// Writes six places of 4 pages, one after the other, and frees each.
fn use_six_places(window: &Window) {
    for page in 0..6 {
        let lease = window.place(span(page * 4, 4), 1).unwrap();
        write(&lease);
        drop(lease);
        window.settle();
    }
}

/// What is freed last is warm, whatever was freed before.
#[test]
fn older_places_make_room_for_younger_ones() {
    let window = window(8);
    use_six_places(&window);
    // Until all are looked at: what is freed meanwhile is younger.
    let mut held = Vec::new();
    let mut warm = |page: u64| {
        let before = window.occupancy().warm;
        let lease = window.place(span(page * 4, 4), 1).unwrap();
        assert!(is_zero(&lease));
        held.push(lease);
        before - window.occupancy().warm
    };
    assert_eq!([0, 1, 2, 3].map(&mut warm), [0; 4]);
    assert_eq!([4, 5].map(&mut warm), [4 * PAGE; 2]);
    drop(held);
    // A place that is taken in part and left is as young as its latest freeing.
    drop(window.place(span(16, 2), 1).unwrap());
    window.settle();
    assert!(window.occupancy().warm <= 8 * PAGE);
}

#[test]
fn what_is_larger_than_the_budget_pushes_nothing_out() {
    let window = window(4);
    let small = window.place(span(0, 2), 1).unwrap();
    write(&small);
    drop(small);
    window.settle();
    let large = window.place(span(8, 8), 1).unwrap();
    write(&large);
    drop(large);
    window.settle();
    assert_eq!(window.occupancy().warm, 2 * PAGE);
}

#[test]
fn an_idle_window_gives_its_warm_pages_back() {
    let warmth = Warmth {
        time: std::time::Duration::from_millis(100),
        ..Warmth::up_to(PAGES * PAGE)
    };
    let window = Window::new(PAGES * PAGE, warmth).unwrap();
    let held = window.place(span(0, 4), 1).unwrap();
    write(&held);
    for page in 4..20 {
        write(&window.place(span(page, 1), 1).unwrap());
    }
    window.settle();
    assert_eq!(window.occupancy().warm, 16 * PAGE);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while window.occupancy().warm > 0 {
        assert!(
            std::time::Instant::now() < deadline,
            "{:?}",
            window.occupancy()
        );
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    window.settle();
    let occupancy = window.occupancy();
    assert_eq!((occupancy.resident, occupancy.held), (4 * PAGE, 4 * PAGE));
    assert_eq!(occupancy.extents, 1);
    assert!(is_zero(&window.place(span(4, 16), 2).unwrap()));
}

#[test]
fn the_warm_budget_is_kept() {
    let window = window(8);
    use_six_places(&window);
    let occupancy = window.occupancy();
    assert_eq!((occupancy.warm, occupancy.resident), (8 * PAGE, 8 * PAGE));
    let taken = window.place(span(20, 2), 1).unwrap();
    assert_eq!(window.occupancy().warm, 6 * PAGE);
    assert!(is_zero(&taken));
}

#[test]
fn untouched_spans_cost_nothing() {
    let window = window(PAGES);
    for _ in 0..100 {
        window.place(span(0, PAGES), 1).unwrap();
    }
    window.settle();
    assert_eq!(window.occupancy(), Occupancy::default());
}

#[test]
fn pages_where_no_blob_is_are_given_back() {
    let window = window(0);
    let held = window.place(span(8, 4), 1).unwrap();
    let words = window.file().words(span(0, PAGES));
    words
        .iter()
        .for_each(|word| word.store(1, Ordering::Relaxed));
    window.ranges.sweep(PAGES * PAGE);
    assert_eq!(
        window.occupancy().resident,
        PAGES * PAGE,
        "within the slack"
    );
    window.ranges.sweep(0);
    assert_eq!(window.occupancy().resident, 4 * PAGE);
    assert!(
        held.words()
            .iter()
            .all(|word| word.load(Ordering::Relaxed) == 1)
    );
    assert!(is_zero(&window.place(span(0, 8), 1).unwrap()));
}

/// More pages than the worker leaves alone, which nobody is charged for.
#[test]
fn who_frees_something_now_and_then_does_not_keep_the_worker_from_looking() {
    const PAGES: u64 = 8192;
    let window = Window::new(PAGES * PAGE, Warmth::up_to(0)).unwrap();
    let span = |page, pages| Span::new(page * PAGE, pages * PAGE, PAGES * PAGE).unwrap();
    let words = window.file().words(span(0, PAGES));
    for word in words.iter().step_by(512) {
        word.store(1, Ordering::Relaxed);
    }
    assert_eq!(window.occupancy().resident, PAGES * PAGE);
    let start = std::time::Instant::now();
    while window.occupancy().resident > PAGES / 2 * PAGE {
        assert!(start.elapsed().as_secs() < 30, "{:?}", window.occupancy());
        drop(window.place(span(0, 1), 1).unwrap());
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
}

#[test]
fn placing_races_with_the_worker() {
    let window = window(PAGES / 2);
    std::thread::scope(|scope| {
        for quarter in 0..4_u64 {
            let window = &window;
            scope.spawn(move || {
                for round in 0..500_u64 {
                    let offset = (round * 7) % 8;
                    let lease = window
                        .place(span(quarter * 16 + offset, 1 + round % 8), quarter)
                        .unwrap();
                    assert!(is_zero(&lease));
                    write(&lease);
                }
            });
        }
    });
    window.settle();
    let occupancy = window.occupancy();
    assert_eq!((occupancy.held, occupancy.dirty), (0, 0));
    assert_eq!(occupancy.warm, occupancy.resident);
}

/// A page of the naive model: who holds it.
type Holders = [Option<Owner>; 3];

/// What may happen to a window of three pages.
#[derive(Debug, Clone, Copy)]
enum Step {
    Place(u64, u64),
    DropOldest,
    Clean,
    Cool,
    Sweep,
}

/// Four steps in every order, without a worker: its work is among the steps. What is held keeps its bytes, and what is placed reads as zeros.
#[test]
fn all_short_lives_agree_with_an_array() {
    let whole = Span::new(0, 3 * PAGE, 3 * PAGE).unwrap();
    let places = (0..3).flat_map(|page| (1..=3 - page).map(move |pages| Step::Place(page, pages)));
    let others = [Step::DropOldest, Step::Clean, Step::Cool, Step::Sweep];
    let steps: Vec<Step> = places.chain(others).collect();
    for warm_pages in [0, 1] {
        let file = SharedFile::new("test", whole.len()).unwrap();
        let warmth = Warmth {
            limit: warm_pages * PAGE,
            time: std::time::Duration::ZERO,
        };
        let (ranges, _) = Ranges::new(file, warmth);
        let number_of_lives = steps.len().pow(4);
        for life in 0..number_of_lives {
            let mut holders: Holders = [None; 3];
            let mut leases: std::collections::VecDeque<(Owner, Lease)> = Default::default();
            let mut rest = life;
            for owner in 1..=4 {
                let step = steps[rest % steps.len()];
                rest /= steps.len();
                match step {
                    Step::Place(page, pages) => {
                        let span = Span::new(page * PAGE, pages * PAGE, whole.len()).unwrap();
                        let index = |page| usize::try_from(page).unwrap();
                        let range = index(page)..index(page + pages);
                        let mut held: Vec<Owner> =
                            holders[range.clone()].iter().flatten().copied().collect();
                        held.dedup();
                        match ranges.place(span, owner) {
                            Ok(lease) => {
                                assert_eq!(held, [0; 0]);
                                let words = lease.words().iter().step_by(512);
                                assert!(
                                    words.clone().all(|word| word.load(Ordering::Relaxed) == 0)
                                );
                                words.for_each(|word| word.store(owner, Ordering::Relaxed));
                                holders[range].fill(Some(owner));
                                leases.push_back((owner, lease));
                            }
                            Err(owners) => assert_eq!(owners, held),
                        }
                    }
                    Step::DropOldest => {
                        if let Some((owner, _)) = leases.pop_front() {
                            let its = |holder: &&mut Option<Owner>| **holder == Some(owner);
                            holders
                                .iter_mut()
                                .filter(its)
                                .for_each(|holder| *holder = None);
                        }
                    }
                    Step::Clean => ranges.clean(whole),
                    Step::Cool => ranges.cool(),
                    Step::Sweep => ranges.sweep(0),
                }
                let words = ranges.bytes.words(whole).iter().step_by(512);
                for (word, holder) in words.zip(holders) {
                    let is_kept =
                        holder.is_none_or(|holder| word.load(Ordering::Relaxed) == holder);
                    assert!(is_kept, "life {life}: {holders:?}");
                }
                let held = holders.iter().flatten().count() as u64 * PAGE;
                assert_eq!(ranges.occupancy().held, held, "life {life}: {holders:?}");
                assert!(ranges.occupancy().warm <= warm_pages * PAGE);
            }
            drop(leases);
            ranges.clean(whole);
            ranges.cool();
            assert_eq!(ranges.occupancy(), Occupancy::default(), "life {life}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Against one owner per page: who holds what, and zero on first sight.
    #[test]
    fn behaves_as_an_array_of_pages(
        warm in 0..PAGES,
        steps in prop::collection::vec((0..PAGES, 1..20_u64, any::<bool>()), 1..80),
    ) {
        let window = window(warm);
        let mut leases: Vec<(Owner, Lease)> = Vec::new();
        for (owner, (page, pages, write_it)) in (0..).zip(steps) {
            let pages = pages.min(PAGES - page);
            let wanted = span(page, pages);
            let holders: Vec<Owner> = {
                let mut found: Vec<_> = leases
                    .iter()
                    .filter(|(_, lease)| lease.span().intersection(wanted).is_some())
                    .map(|(owner, lease)| (lease.span(), *owner))
                    .collect();
                found.sort();
                found.into_iter().map(|(_, owner)| owner).collect()
            };
            match window.place(wanted, owner) {
                Ok(lease) => {
                    prop_assert!(holders.is_empty());
                    prop_assert!(is_zero(&lease));
                    if write_it {
                        write(&lease);
                    }
                    leases.push((owner, lease));
                }
                Err(owners) => {
                    prop_assert_eq!(&owners, &holders);
                    leases.retain(|(owner, _)| !owners.contains(owner));
                }
            }
        }
        let held: u64 = leases.iter().map(|(_, lease)| lease.span().len()).sum();
        prop_assert_eq!(window.occupancy().held, held);
        drop(leases);
        window.settle();
        prop_assert!(window.occupancy().resident <= warm * PAGE);
    }
}
