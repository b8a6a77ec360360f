use std::collections::VecDeque;
use std::sync::Arc;

use hostblob_allocator::provider::Elsewhere;
use hostblob_allocator::window::PAGE;
use proptest::prelude::*;

use super::*;

const SIZE: u64 = 64 * PAGE;

fn span(page: u64, pages: u64) -> Span {
    Span::new(page * PAGE, pages * PAGE, SIZE).unwrap()
}

fn own(page: u64, pages: u64) -> Mapping {
    Mapping {
        span: span(page, pages),
        elsewhere: None,
    }
}

fn foreign(page: u64, pages: u64) -> Mapping {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let file = rustix::fs::memfd_create("foreign", flags).unwrap();
    Mapping {
        span: span(page, pages),
        elsewhere: Some(Elsewhere::File(Arc::new(file.into()))),
    }
}

fn wants(mapping: Mapping) -> Option<WindowChange> {
    Some(WindowChange::Map(mapping))
}

fn leaves(mapping: Mapping) -> Option<WindowChange> {
    Some(WindowChange::Unmap(mapping))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Yes,
    No,
    /// It does it, and its answer does not come.
    Late,
    /// It does not.
    Never,
}

/// A VMM as QEMU is: what overlaps, and what is not there, is wrong.
#[derive(Default)]
struct Vmm {
    mapped: Vec<Span>,
    log: Vec<(&'static str, Span)>,
    /// The answers to come; then `Yes`.
    answers: VecDeque<Answer>,
    /// Most that it had at a time.
    most: usize,
}

impl Vmm {
    fn answering<const N: usize>(answers: [Answer; N]) -> Self {
        Self {
            answers: answers.into(),
            ..Self::default()
        }
    }

    fn names(&self) -> Vec<&'static str> {
        self.log.iter().map(|(name, _)| *name).collect()
    }

    fn answer(&mut self, done: impl FnOnce(&mut Self) -> bool) -> Result<(), MapperError> {
        match self.answers.pop_front().unwrap_or(Answer::Yes) {
            Answer::Yes => match done(self) {
                true => Ok(()),
                false => Err(MapperError::Refused),
            },
            Answer::No => Err(MapperError::Refused),
            Answer::Late => {
                done(self);
                Err(MapperError::Unknown)
            }
            Answer::Never => Err(MapperError::Unknown),
        }
    }
}

impl WindowMapper for Vmm {
    fn map(&mut self, mapping: &Mapping) -> Result<(), MapperError> {
        let span = mapping.span;
        self.log.push(("map", span));
        let overlaps = |known: &Span| known.intersection(span).is_some();
        assert!(
            !self.mapped.iter().any(overlaps),
            "{span:?} over {:?}",
            self.mapped
        );
        self.answer(|vmm| {
            vmm.mapped.push(span);
            vmm.most = vmm.most.max(vmm.mapped.len());
            true
        })
    }

    fn unmap(&mut self, span: Span) -> Result<(), MapperError> {
        self.log.push(("unmap", span));
        // One that refuses does not have it.
        while self.mapped.contains(&span) && self.answers.front() == Some(&Answer::No) {
            self.answers.pop_front();
        }
        self.answer(|vmm| {
            let at = vmm.mapped.iter().position(|known| *known == span);
            at.map(|at| vmm.mapped.remove(at)).is_some()
        })
    }
}

#[test]
fn a_whole_window_belongs_to_one_generation_of_the_guest() {
    let mut vmm = Vmm::default();
    let mut window = LateWindow::whole(&mut vmm, SIZE).unwrap();
    window.unmap(0);
    assert_eq!(window.map(0), Some(true));
    assert_eq!(window.map(0), None);
    window.unmap(0);
    window.unmap(0);
    assert_eq!(window.map(0), Some(true));
    // Is it mapped still? What is not known is unmapped first.
    assert_eq!(window.map(1), Some(true));
    window.unmap(2);
    window.unmap(2);
    let expected = ["map", "unmap", "map", "unmap", "map", "unmap"];
    assert_eq!(vmm.names(), expected);
    assert!(vmm.mapped.is_empty());
}

#[test]
fn a_whole_window_that_failed_is_tried_again() {
    let mut vmm = Vmm::answering([Answer::No, Answer::Late, Answer::Never]);
    let mut window = LateWindow::whole(&mut vmm, SIZE).unwrap();
    assert_eq!(window.map(0), Some(false), "refused");
    window.unmap(0);
    assert_eq!(window.map(0), Some(false), "late");
    assert_eq!(window.map(0), Some(false), "cannot be unmapped first");
    assert_eq!(window.map(0), Some(true));
    assert_eq!(vmm.names(), ["map", "map", "unmap", "unmap", "map"]);
    assert_eq!(vmm.mapped, [span(0, 64)]);
}

#[test]
fn where_the_window_is_mapped_as_a_whole_nobody_asks_for_blobs() {
    let mut vmm = Vmm::default();
    let mut window = LateWindow::whole(&mut vmm, SIZE).unwrap();
    assert_eq!(window.change(0, wants(own(0, 1))), Ok(()));
    assert_eq!(window.change(0, leaves(own(0, 1))), Ok(()));
    let mut premapped = LateWindow::premapped();
    assert_eq!(premapped.map(0), None);
    assert_eq!(premapped.change(0, wants(own(0, 1))), Ok(()));
    premapped.unmap(0);
    assert!(vmm.log.is_empty());
}

#[test]
fn blobs_are_mapped_one_by_one_and_stay_until_the_last_context_goes() {
    let mut vmm = Vmm::default();
    let mut window = LateWindow::on_demand(&mut vmm);
    assert_eq!(window.map(0), None, "nothing as a whole");
    for page in [0, 4] {
        window.change(0, wants(own(page, 2))).unwrap();
    }
    window.change(0, leaves(own(0, 2))).unwrap();
    window.change(0, wants(own(0, 2))).unwrap();
    window.change(0, leaves(own(0, 2))).unwrap();
    window.change(0, leaves(own(4, 2))).unwrap();
    window.change(0, wants(own(1, 4))).unwrap();
    window.unmap(0);
    window.unmap(0);
    let expected = ["map", "map", "unmap", "unmap", "map", "unmap"];
    assert_eq!(vmm.names(), expected);
    assert!(vmm.mapped.is_empty());
}

#[test]
fn memory_of_host_processes_goes_when_it_is_unmapped() {
    let mut vmm = Vmm::default();
    let mut window = LateWindow::on_demand(&mut vmm);
    let theirs = foreign(0, 4);
    window.change(0, wants(theirs.clone())).unwrap();
    window.change(0, leaves(theirs)).unwrap();
    assert_eq!(vmm.names(), ["map", "unmap"]);

    // One that cannot be unmapped serves nobody, and is in nobody's way.
    vmm.answers = [Answer::Yes, Answer::Never].into();
    let mut window = LateWindow::on_demand(&mut vmm);
    let theirs = foreign(0, 4);
    window.change(0, wants(theirs.clone())).unwrap();
    window.change(0, leaves(theirs.clone())).unwrap();
    window.change(0, wants(theirs)).unwrap();
    let expected = ["map", "unmap", "map", "unmap", "unmap", "map"];
    assert_eq!(vmm.names(), expected);
}

#[test]
fn a_reset_leaves_nothing_to_the_next_guest() {
    let mut vmm = Vmm::default();
    let mut window = LateWindow::on_demand(&mut vmm);
    window.change(0, wants(own(0, 1))).unwrap();
    window.change(0, wants(foreign(1, 1))).unwrap();
    // The first command, whatever it is.
    window.change(1, None).unwrap();
    window.change(1, wants(own(0, 1))).unwrap();
    assert_eq!(vmm.names(), ["map", "map", "unmap", "unmap", "map"]);

    // A VMM that unmaps by itself refuses to do it again.
    let mut vmm = Vmm::answering([Answer::Yes, Answer::No]);
    let mut window = LateWindow::on_demand(&mut vmm);
    window.change(0, wants(own(0, 1))).unwrap();
    window.change(1, None).unwrap();
    window.change(1, None).unwrap();
    assert_eq!(vmm.names(), ["map", "unmap"]);
}

#[test]
fn a_vmm_that_does_not_answer_is_not_asked_again_and_again() {
    let mut vmm = Vmm::answering([Answer::Yes, Answer::Yes, Answer::Never]);
    let mut window = LateWindow::on_demand(&mut vmm);
    window.change(0, wants(own(0, 1))).unwrap();
    window.change(0, wants(own(1, 1))).unwrap();
    for page in [0, 1] {
        window.change(0, leaves(own(page, 1))).unwrap();
    }
    window.unmap(0);
    window.unmap(0);
    // What was left behind is in nobody's way.
    window.change(0, wants(own(0, 2))).unwrap();
    window.change(0, leaves(own(0, 2))).unwrap();
    window.unmap(0);
    let expected = ["map", "map", "unmap", "unmap", "unmap", "map", "unmap"];
    assert_eq!(vmm.names(), expected);
    assert!(vmm.mapped.is_empty());
}

#[test]
fn more_than_the_limit_is_refused_until_a_blob_goes() {
    let size = 1024 * PAGE;
    let blob = |page: usize| Mapping {
        span: Span::new(page as u64 * PAGE, PAGE, size).unwrap(),
        elsewhere: None,
    };
    let mut vmm = Vmm::default();
    let mut window = LateWindow::on_demand(&mut vmm);
    for page in 0..MAX_MAPPINGS {
        window.change(0, wants(blob(page))).unwrap();
    }
    let full = NotMapped::NoRoom(NoRoom::Full(MAX_MAPPINGS));
    assert_eq!(window.change(0, wants(blob(900))), Err(full));
    window.change(0, leaves(blob(7))).unwrap();
    window.change(0, wants(blob(900))).unwrap();
    assert_eq!(window.change(0, wants(blob(7))), Err(full));
    assert_eq!(vmm.most, MAX_MAPPINGS);
}

#[derive(Debug, Clone)]
enum Step {
    Map { page: u64, pages: u64, theirs: bool },
    Unmap(prop::sample::Index),
    Reset { by_vmm: bool },
    Gone,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        10 => (0_u64..60, 1_u64..5, prop::bool::weighted(0.2))
            .prop_map(|(page, pages, theirs)| Step::Map { page, pages, theirs }),
        8 => any::<prop::sample::Index>().prop_map(Step::Unmap),
        1 => any::<bool>().prop_map(|by_vmm| Step::Reset { by_vmm }),
        1 => Just(Step::Gone),
    ]
}

fn answer() -> impl Strategy<Value = Answer> {
    prop_oneof![
        12 => Just(Answer::Yes),
        2 => Just(Answer::No),
        1 => Just(Answer::Late),
        1 => Just(Answer::Never),
    ]
}

proptest! {
    /// Whatever the VMM answers: it is never asked to map over what it has, and what the guest was told is mapped, is.
    #[test]
    fn what_the_guest_was_told_is_true(
        steps in prop::collection::vec(step(), 1..60),
        answers in prop::collection::vec(answer(), 0..60),
    ) {
        let mut vmm = Vmm { answers: answers.into(), ..Vmm::default() };
        let mut table = Table::new(6);
        let mut blobs: Vec<Mapping> = Vec::new();
        for step in steps {
            let mut mappings = Mappings { mapper: &mut vmm, table };
            match step {
                Step::Map { page, pages, theirs } => {
                    let wanted = if theirs { foreign(page, pages) } else { own(page, pages) };
                    // As the leases of the window have it.
                    let taken = |blob: &Mapping| blob.span.intersection(wanted.span).is_some();
                    if !blobs.iter().any(taken) && mappings.map(&wanted).is_ok() {
                        blobs.push(wanted);
                    }
                }
                Step::Unmap(index) if !blobs.is_empty() => {
                    let blob = blobs.remove(index.index(blobs.len()));
                    if mappings.table.release(blob.span) {
                        let _ = mappings.unmap(blob.span);
                    }
                }
                Step::Unmap(_) => {}
                Step::Reset { .. } => {
                    blobs.clear();
                    mappings.table.doubt_all();
                }
                Step::Gone => {
                    for blob in blobs.drain(..) {
                        mappings.table.release(blob.span);
                    }
                    mappings.unmap_all();
                }
            }
            table = mappings.table;
            if matches!(step, Step::Reset { by_vmm: true }) {
                vmm.mapped.clear();
            }
            for blob in &blobs {
                prop_assert!(vmm.mapped.contains(&blob.span), "{:?} of {:?}", blob.span, vmm.mapped);
            }
            prop_assert!(vmm.most <= 6);
        }
    }
}
