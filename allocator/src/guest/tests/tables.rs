//! The tables against naive ones: everything that can happen to two blobs in a few commands.

use super::*;

const CONTEXT: u32 = 1;
const IDS: [u32; 2] = [1, 2];
/// Of each blob.
const PAGES: u64 = 2;

#[derive(Debug, Clone, Copy)]
enum Step {
    Create(u32),
    Map(u32, u64),
    Unmap(u32),
    Unref(u32),
    /// The context ends, and another one takes its id.
    Renew,
}

/// What a blob must be.
#[derive(Debug, Clone, Copy)]
struct Naive {
    has_memory: bool,
    /// The context that created it; not one that took its id.
    has_owner: bool,
    mapped: Option<u64>,
    /// What its bytes are.
    value: u64,
}

type Table = [Option<Naive>; IDS.len()];

fn index(id: u32) -> usize {
    id as usize - 1
}

/// Whether the command succeeds; if so, it is done.
fn expect(table: &mut Table, step: Step) -> bool {
    let overlaps = |at: u64, page: u64| at < page + PAGES && page < at + PAGES;
    match step {
        Step::Create(id) if table[index(id)].is_none() => {
            table[index(id)] = Some(Naive {
                has_memory: true,
                has_owner: true,
                mapped: None,
                value: 0,
            });
            true
        }
        Step::Map(id, page) => {
            let mut mapped = table.iter().flatten().filter_map(|blob| blob.mapped);
            let is_free = !mapped.any(|at| overlaps(at, page));
            match &mut table[index(id)] {
                Some(blob) if blob.has_memory && blob.mapped.is_none() && is_free => {
                    blob.mapped = Some(page);
                    true
                }
                _ => false,
            }
        }
        Step::Unmap(id) => table[index(id)]
            .as_mut()
            .is_some_and(|blob| blob.mapped.take().is_some()),
        Step::Unref(id) => table[index(id)].take().is_some(),
        Step::Renew => {
            for blob in table.iter_mut().flatten() {
                // What is mapped stays until UNREF.
                if std::mem::take(&mut blob.has_owner) {
                    blob.has_memory = blob.mapped.is_some();
                }
            }
            true
        }
        Step::Create(_) => false,
    }
}

fn execute(fixture: &mut Fixture, step: Step) -> bool {
    match step {
        Step::Create(id) => fixture.plain(CONTEXT, id, PAGES * PAGE).is_ok(),
        Step::Map(id, page) => fixture.guest.map_blob(id, page * PAGE).is_ok(),
        Step::Unmap(id) => fixture.guest.unmap_blob(id).is_ok(),
        Step::Unref(id) => fixture.guest.unref(id).is_ok(),
        Step::Renew => {
            let ended = fixture.guest.destroy_context(CONTEXT);
            ended
                .and_then(|()| fixture.guest.create_context(CONTEXT, "test"))
                .is_ok()
        }
    }
}

#[test]
fn all_short_histories_agree_with_naive_tables() {
    let of_one = |id| {
        [
            Step::Create(id),
            Step::Map(id, 0),
            Step::Map(id, 1),
            Step::Unmap(id),
            Step::Unref(id),
        ]
    };
    let mut steps: Vec<Step> = IDS.into_iter().flat_map(of_one).collect();
    steps.push(Step::Renew);
    let mut fixture = Fixture::new();
    for history in 0..steps.len().pow(4) {
        fixture.guest.create_context(CONTEXT, "test").unwrap();
        let mut table: Table = [None; IDS.len()];
        // One blob is there from the beginning: four more steps reach what would take five.
        let chosen = (0..4).scan(history, |rest, _| {
            let step = steps[*rest % steps.len()];
            *rest /= steps.len();
            Some(step)
        });
        for (at, step) in std::iter::once(Step::Create(1)).chain(chosen).enumerate() {
            let expected = expect(&mut table, step);
            assert_eq!(
                execute(&mut fixture, step),
                expected,
                "history {history}: {step:?} at {at}"
            );
            for (id, blob) in IDS.into_iter().zip(&mut table) {
                assert_eq!(fixture.guest.has_resource(id), blob.is_some());
                let Some(blob) = blob else { continue };
                let Some(page) = blob.mapped else { continue };
                assert!(
                    fixture.all(page, PAGES, blob.value),
                    "history {history}: blob {id} at {at}"
                );
                blob.value = u64::from(id) << 32 | at as u64;
                fixture.write(page, PAGES, blob.value);
            }
            let living = table
                .iter()
                .flatten()
                .filter(|blob| blob.has_memory)
                .count();
            assert_eq!(
                fixture.guest.memories.len(),
                living,
                "history {history} at {at}"
            );
        }
        fixture.guest.reset();
        assert_eq!(fixture.guest.host.used(), 0, "history {history}");
    }
}
