use std::fs::File;
use std::sync::Arc;

use hostblob_allocator::provider::Elsewhere;
use hostblob_allocator::window::PAGE;
use proptest::prelude::*;

use super::*;

const PAGES: u64 = 32;

fn span(page: u64, pages: u64) -> Span {
    Span::new(page * PAGE, pages * PAGE, PAGES * PAGE).unwrap()
}

fn own(page: u64, pages: u64) -> Mapping {
    Mapping {
        span: span(page, pages),
        elsewhere: None,
    }
}

fn file() -> Arc<File> {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    Arc::new(rustix::fs::memfd_create("foreign", flags).unwrap().into())
}

fn of(file: &Arc<File>, page: u64, pages: u64) -> Mapping {
    Mapping {
        span: span(page, pages),
        elsewhere: Some(Elsewhere::File(Arc::clone(file))),
    }
}

/// Maps as a VMM that does what it is told.
fn map(table: &mut Table, mapping: &Mapping) -> Result<Plan, NoRoom> {
    let plan = table.plan(mapping)?;
    if let Plan::MapAfter(spans) = &plan {
        spans.iter().for_each(|span| table.remove(*span));
        table.insert(mapping.clone(), true);
    }
    Ok(plan)
}

fn after(spans: impl IntoIterator<Item = Span>) -> Result<Plan, NoRoom> {
    Ok(Plan::MapAfter(spans.into_iter().collect()))
}

#[test]
fn what_was_released_serves_the_same_place_again_and_no_other() {
    let mut table = Table::new(4);
    assert_eq!(map(&mut table, &own(0, 4)), after([]));
    assert!(!table.release(span(0, 4)));
    assert_eq!(map(&mut table, &own(0, 4)), Ok(Plan::Cached));
    table.release(span(0, 4));
    assert_eq!(map(&mut table, &own(0, 3)), after([span(0, 4)]));
    table.release(span(0, 3));
    assert_eq!(map(&mut table, &own(4, 1)), after([]));
    assert_eq!(table.all(), [span(0, 3), span(4, 1)]);
}

#[test]
fn what_is_in_use_is_never_in_the_way_of_another() {
    let mut table = Table::new(4);
    map(&mut table, &own(4, 4)).unwrap();
    for taken in [own(4, 4), own(0, 5), own(7, 1), own(0, 32)] {
        assert_eq!(table.plan(&taken), Err(NoRoom::InUse), "{taken:?}");
    }
    assert_eq!(table.plan(&own(0, 4)), after([]));
    assert_eq!(table.plan(&own(8, 1)), after([]));
}

#[test]
fn a_full_table_gives_up_what_was_used_longest_ago() {
    let mut table = Table::new(3);
    for page in 0..3 {
        map(&mut table, &own(page, 1)).unwrap();
    }
    assert_eq!(table.plan(&own(9, 1)), Err(NoRoom::Full(3)));
    table.release(span(2, 1));
    table.release(span(0, 1));
    assert_eq!(map(&mut table, &own(9, 1)), after([span(2, 1)]));
    // One in the way makes room enough.
    assert_eq!(map(&mut table, &own(0, 2)), Err(NoRoom::InUse));
    table.release(span(1, 1));
    assert_eq!(map(&mut table, &own(0, 2)), after([span(1, 1), span(0, 1)]));
    assert_eq!(table.all(), [span(0, 2), span(9, 1)]);
}

#[test]
fn memory_of_host_processes_is_not_kept() {
    let mut table = Table::new(4);
    let (one, other) = (file(), file());
    map(&mut table, &of(&one, 0, 2)).unwrap();
    assert!(table.release(span(0, 2)), "to be unmapped at once");
    // As long as that has not been done, nothing is served from it.
    for wanted in [of(&one, 0, 2), of(&other, 0, 2), own(0, 2)] {
        assert_eq!(table.plan(&wanted), after([span(0, 2)]), "{wanted:?}");
    }
    table.remove(span(0, 2));
    map(&mut table, &own(0, 2)).unwrap();
    table.release(span(0, 2));
    assert_eq!(table.plan(&of(&one, 0, 2)), after([span(0, 2)]));
}

#[test]
fn what_is_not_known_serves_nobody() {
    let mut table = Table::new(2);
    map(&mut table, &own(0, 1)).unwrap();
    table.doubt_all();
    assert_eq!(table.plan(&own(0, 1)), after([span(0, 1)]));
    table.remove(span(0, 1));
    table.insert(own(0, 1), false);
    assert_eq!(map(&mut table, &own(0, 1)), after([span(0, 1)]));
    table.release(span(0, 1));
    table.doubt(span(0, 1));
    assert_eq!(table.plan(&own(0, 1)), after([span(0, 1)]));
    assert!(!table.release(span(7, 1)), "what there is not");
}

/// The same, the slow way: a list in the order of use, the oldest first.
#[derive(Default)]
struct Model(Vec<(Span, bool, bool)>);

impl Model {
    const LIMIT: usize = 5;

    /// `wanted` as (span, foreign); what goes, or a refusal.
    fn plan(&mut self, wanted: Span, foreign: bool) -> Result<Option<Vec<Span>>, NoRoom> {
        let cached = self
            .0
            .iter()
            .position(|known| *known == (wanted, false, false));
        if let Some(at) = cached.filter(|_| !foreign) {
            let (span, _, _) = self.0.remove(at);
            self.0.push((span, true, false));
            return Ok(None);
        }
        let overlaps = |span: Span| span.intersection(wanted).is_some();
        if self
            .0
            .iter()
            .any(|(span, used, _)| *used && overlaps(*span))
        {
            return Err(NoRoom::InUse);
        }
        let mut gone = Vec::new();
        let mut left = Vec::new();
        for (span, used, _) in &self.0 {
            if overlaps(*span) {
                gone.push(*span);
            } else {
                left.push((*span, *used));
            }
        }
        while left.len() >= Self::LIMIT {
            let oldest = left.iter().position(|(_, used)| !used);
            let (span, _) = left.remove(oldest.ok_or(NoRoom::Full(Self::LIMIT))?);
            gone.push(span);
        }
        Ok(Some(gone))
    }
}

#[derive(Debug, Clone)]
enum Step {
    Map {
        page: u64,
        pages: u64,
        foreign: bool,
    },
    Release(prop::sample::Index),
    DoubtAll,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..PAGES - 4, 1_u64..5, prop::bool::weighted(0.2))
            .prop_map(|(page, pages, foreign)| Step::Map { page: page / 2 * 2, pages, foreign }),
        5 => any::<prop::sample::Index>().prop_map(Step::Release),
        1 => Just(Step::DoubtAll),
    ]
}

proptest! {
    #[test]
    fn behaves_as_a_list_in_the_order_of_use(steps in prop::collection::vec(step(), 1..80)) {
        let mut table = Table::new(Model::LIMIT);
        // (span, in use, foreign or not known), and what the VMM has.
        let mut model = Model::default();
        let mut vmm: Vec<Span> = Vec::new();
        let foreign_file = file();
        for step in steps {
            match step {
                Step::Map { page, pages, foreign } => {
                    let wanted = if foreign { of(&foreign_file, page, pages) } else { own(page, pages) };
                    let expected = model.plan(wanted.span, foreign);
                    match (table.plan(&wanted), expected) {
                        (Ok(Plan::Cached), Ok(None)) => prop_assert!(vmm.contains(&wanted.span)),
                        (Ok(Plan::MapAfter(mut spans)), Ok(Some(mut gone))) => {
                            spans.sort();
                            gone.sort();
                            prop_assert_eq!(&spans, &gone);
                            for span in spans {
                                let at = vmm.iter().position(|known| *known == span);
                                vmm.remove(at.expect("exactly what was mapped"));
                                table.remove(span);
                            }
                            prop_assert!(vmm.iter().all(|span| span.intersection(wanted.span).is_none()));
                            vmm.push(wanted.span);
                            table.insert(wanted.clone(), true);
                            model.0.retain(|(span, _, _)| !gone.contains(span));
                            model.0.push((wanted.span, true, foreign));
                        }
                        (Err(error), Err(expected)) => prop_assert_eq!(error, expected),
                        (plan, expected) => prop_assert!(false, "{:?}, {:?}", plan, expected),
                    }
                }
                Step::Release(index) => {
                    let used: Vec<usize> = (0..model.0.len()).filter(|at| model.0[*at].1).collect();
                    if used.is_empty() {
                        continue;
                    }
                    let (span, _, foreign) = model.0.remove(used[index.index(used.len())]);
                    prop_assert_eq!(table.release(span), foreign);
                    model.0.push((span, false, foreign));
                }
                Step::DoubtAll => {
                    table.doubt_all();
                    model.0.iter_mut().for_each(|known| (known.1, known.2) = (false, true));
                }
            }
            prop_assert!(vmm.len() <= Model::LIMIT);
            let (mut all, mut known) = (table.all(), vmm.clone());
            all.sort();
            known.sort();
            prop_assert_eq!(all, known);
        }
    }
}
