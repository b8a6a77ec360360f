//! What the window's threads can do to each other, in every order: models for loom, over the real states and the real worker.
//!
//! `cargo xtask interleavings` runs them. The bytes are pages of the checker: a page that two threads touch, where nothing says who comes first,
//! fails the model, in whatever order they happen to come.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use loom::cell::UnsafeCell;
use loom::thread::{JoinHandle, spawn};

use super::ranges::{Bytes, Ranges, Use};
use super::*;

const COUNT: usize = 3;
const PAGES: u64 = COUNT as u64;

fn span(page: u64, pages: u64) -> Span {
    Span::new(page * PAGE, pages * PAGE, PAGES * PAGE).unwrap()
}

#[derive(Debug, Clone, Copy, Default)]
struct Page {
    value: u64,
    exists: bool,
}

/// A few pages in place of the memfd.
#[derive(Debug)]
struct Pages {
    pages: [UnsafeCell<Page>; COUNT],
    /// As the kernel counts them: nobody touches a page for it.
    resident: AtomicU64,
    may_punch: bool,
}

impl Pages {
    fn new(may_punch: bool) -> Self {
        Self {
            pages: std::array::from_fn(|_| UnsafeCell::new(Page::default())),
            resident: AtomicU64::new(0),
            may_punch,
        }
    }

    fn page(&self, page: u64) -> Page {
        // SAFETY: the checker ends the model where somebody else may write here at the same time.
        self.pages[index(page)].with(|page| unsafe { *page })
    }

    fn change(&self, page: u64, change: impl FnOnce(&mut Page)) {
        self.pages[index(page)].with_mut(|page| {
            // SAFETY: as above.
            let page = unsafe { &mut *page };
            let before = u64::from(page.exists);
            change(page);
            let after = u64::from(page.exists);
            let difference = after.wrapping_sub(before).wrapping_mul(PAGE);
            self.resident.fetch_add(difference, Ordering::Relaxed);
        });
    }

    fn write(&self, span: Span) {
        for page in pages_of(span) {
            self.change(page, |page| {
                *page = Page {
                    value: !0,
                    exists: true,
                }
            });
        }
    }

    fn assert_zero(&self, span: Span) {
        for page in pages_of(span) {
            assert_eq!(self.page(page).value, 0, "page {page} of {span:?}");
        }
    }
}

fn index(page: u64) -> usize {
    usize::try_from(page).unwrap()
}

fn pages_of(span: Span) -> std::ops::Range<u64> {
    span.start() / PAGE..span.end() / PAGE
}

impl Bytes for Pages {
    fn size(&self) -> u64 {
        PAGES * PAGE
    }

    fn resident(&self) -> u64 {
        self.resident.load(Ordering::Relaxed)
    }

    fn zero_resident(&self, whole: Span, mut resident: impl FnMut(Span)) {
        for page in pages_of(whole) {
            self.change(page, |page| page.value = 0);
            if self.page(page).exists {
                resident(span(page, 1));
            }
        }
    }

    fn punch(&self, span: Span) -> rustix::io::Result<()> {
        if !self.may_punch {
            return Err(rustix::io::Errno::NOMEM);
        }
        for page in pages_of(span) {
            self.change(page, |page| *page = Page::default());
        }
        Ok(())
    }
}

/// Some pages and their worker.
struct Model {
    ranges: Arc<Ranges<Pages>>,
    worker: JoinHandle<()>,
}

const FOREVER: Duration = Duration::MAX;

impl Model {
    fn new(warm_pages: u64, time: Duration) -> Self {
        Self::over(Pages::new(true), warm_pages, time)
    }

    fn over(pages: Pages, warm_pages: u64, time: Duration) -> Self {
        let warmth = Warmth {
            limit: warm_pages * PAGE,
            time,
        };
        let (ranges, dirty) = Ranges::new(pages, warmth);
        let worker = {
            let ranges = Arc::clone(&ranges);
            spawn(move || ranges.work(&dirty))
        };
        Self { ranges, worker }
    }

    fn thread(&self, life: impl FnOnce(&Arc<Ranges<Pages>>) + 'static) -> JoinHandle<()> {
        let ranges = Arc::clone(&self.ranges);
        spawn(move || life(&ranges))
    }

    /// The worker ends, and then everything is accounted for.
    fn end(self) {
        self.ranges.end();
        self.worker.join().unwrap();
        check_all(&self.ranges);
    }
}

/// Takes a place, finds zeros, writes, and gives it up: whether it was free.
fn use_once(ranges: &Arc<Ranges<Pages>>, span: Span) -> bool {
    let Ok(lease) = ranges.place(span, 1) else {
        return false;
    };
    ranges.bytes.assert_zero(lease.span());
    ranges.bytes.write(lease.span());
    true
}

/// When no thread is left: nothing is held or being cleaned, what is not dirty reads as zeros, and what is warm is what is counted.
fn check_all(ranges: &Ranges<Pages>) {
    let state = ranges.state.lock();
    let mut dirty = [false; COUNT];
    let mut warm = 0;
    for (span, used) in state.extents.iter() {
        match used {
            Use::Dirty => pages_of(span).for_each(|page| dirty[index(page)] = true),
            Use::Warm(_) => warm += span.len(),
            Use::Held(_) | Use::Cleaning => panic!("{span:?} is lost: {used:?}"),
        }
    }
    assert_eq!(warm, state.warm.bytes());
    assert!(warm <= ranges.warmth.limit);
    for page in 0..PAGES {
        let Page { value, .. } = ranges.bytes.page(page);
        assert!(
            dirty[index(page)] || value == 0,
            "page {page} is neither dirty nor clean"
        );
    }
}

/// How often threads are interrupted in one order of events, at most: `LOOM_MAX_PREEMPTIONS` says otherwise.
const PREEMPTIONS: usize = 3;

fn explore(name: &str, model: impl Fn() + Send + Sync + 'static) {
    let count = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&count);
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound.get_or_insert(PREEMPTIONS);
    builder.check(move || {
        counted.fetch_add(1, Ordering::Relaxed);
        model();
    });
    println!("{name}: {} interleavings", count.load(Ordering::Relaxed));
}

/// Two owners of places that overlap, and the worker.
#[test]
fn places_are_apart_and_zero() {
    explore("places_are_apart_and_zero", || {
        let model = Model::new(0, FOREVER);
        let other = model.thread(|ranges| {
            use_once(ranges, span(0, 2));
        });
        use_once(&model.ranges, span(1, 2));
        other.join().unwrap();
        model.end();
    });
}

/// A place is taken again and again while the worker cleans it, chunk by chunk.
#[test]
fn a_place_comes_back_as_zeros() {
    explore("a_place_comes_back_as_zeros", || {
        let model = Model::new(PAGES, FOREVER);
        assert!(use_once(&model.ranges, span(0, 2)));
        assert!(use_once(&model.ranges, span(1, 2)));
        assert!(use_once(&model.ranges, span(1, 1)));
        model.end();
    });
}

/// Clean pages make room for younger ones while somebody takes them.
#[test]
fn warm_pages_that_go_are_not_taken() {
    explore("warm_pages_that_go_are_not_taken", || {
        let model = Model::new(1, FOREVER);
        let other = model.thread(|ranges| {
            assert!(use_once(ranges, span(0, 1)));
            assert!(use_once(ranges, span(0, 1)));
        });
        assert!(use_once(&model.ranges, span(1, 1)));
        assert!(use_once(&model.ranges, span(1, 2)));
        other.join().unwrap();
        model.end();
    });
}

/// So they do when nobody has needed them for long.
#[test]
fn warm_pages_that_cool_are_not_taken() {
    explore("warm_pages_that_cool_are_not_taken", || {
        let model = Model::new(PAGES, Duration::ZERO);
        let clock = model.thread(|ranges| {
            ranges.dirty.let_time_pass();
            ranges.dirty.let_time_pass();
        });
        assert!(use_once(&model.ranges, span(0, 2)));
        assert!(use_once(&model.ranges, span(1, 1)));
        clock.join().unwrap();
        model.end();
    });
}

/// Who looks at the window as a whole clears what is nobody's, and nothing else.
#[test]
fn what_is_somebodys_is_not_swept() {
    for may_punch in [true, false] {
        let name = format!("what_is_somebodys_is_not_swept, may_punch {may_punch}");
        explore(&name, move || {
            let pages = Pages::new(may_punch);
            // A guest's kernel was here, and no blob.
            pages.write(span(1, 2));
            let (ranges, _dirty) = Ranges::new(pages, Warmth::up_to(0));
            let worker = {
                let ranges = Arc::clone(&ranges);
                spawn(move || ranges.sweep(0))
            };
            let lease = ranges.place(span(0, 1), 1).unwrap();
            ranges.bytes.assert_zero(lease.span());
            ranges.bytes.write(lease.span());
            worker.join().unwrap();
            assert_eq!(ranges.bytes.page(0).value, !0);
            ranges.bytes.assert_zero(span(1, 2));
            drop(lease);
            check_all(&ranges);
        });
    }
}

/// Pages that another process has go with their lease, or nobody gets that place again.
#[test]
fn what_went_outside_is_never_given() {
    for may_punch in [true, false] {
        let name = format!("what_went_outside_is_never_given, may_punch {may_punch}");
        explore(&name, move || {
            let model = Model::over(Pages::new(may_punch), 0, FOREVER);
            let mut lease = model.ranges.place(span(0, 2), 7).unwrap();
            model.ranges.bytes.write(span(0, 2));
            lease.give_outside();
            let other = model.thread(move |ranges| {
                let was_free = use_once(ranges, span(1, 1));
                assert!(may_punch || !was_free);
            });
            drop(lease);
            other.join().unwrap();
            let again = model.ranges.place(span(0, 2), 1);
            assert_eq!(again.is_ok(), may_punch);
            drop(again);
            model.ranges.end();
            model.worker.join().unwrap();
            if may_punch {
                check_all(&model.ranges);
            }
        });
    }
}

/// Who waits until all is clean is woken, whoever cleans.
#[test]
fn who_waits_for_all_to_be_clean_is_woken() {
    explore("who_waits_for_all_to_be_clean_is_woken", || {
        let model = Model::new(0, FOREVER);
        let other = {
            let ranges = Arc::clone(&model.ranges);
            spawn(move || {
                assert!(use_once(&ranges, span(0, 2)));
                ranges.place(span(0, 2), 1).unwrap()
            })
        };
        model.ranges.settle();
        drop(other.join().unwrap());
        model.end();
    });
}

/// The worker ends when it is told to, whatever is freed meanwhile; leases may live longer than it.
#[test]
fn the_worker_ends() {
    explore("the_worker_ends", || {
        let model = Model::new(0, FOREVER);
        let lease = model.ranges.place(span(2, 1), 1).unwrap();
        let other = model.thread(|ranges| assert!(use_once(ranges, span(0, 2))));
        let ranges = Arc::clone(&model.ranges);
        model.ranges.end();
        model.worker.join().unwrap();
        drop(lease);
        other.join().unwrap();
        check_all(&ranges);
        assert!(use_once(&ranges, span(1, 2)));
    });
}
