//! `docs/security.md` names tests: each of them is there, and each row of the plan says what shows it or why it needs no showing.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "tests: what does not hold must stop them"
)]

use std::fs;
use std::path::Path;

fn docs() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs"))
}

fn page() -> String {
    fs::read_to_string(docs().join("security.md")).unwrap()
}

/// `[name](path.rs)`, for each link to a source file.
fn named(text: &str) -> Vec<(&str, &str)> {
    let links = text.split('[').skip(1);
    links
        .filter_map(|link| {
            let (name, rest) = link.split_once("](")?;
            let (path, _) = rest.split_once(')')?;
            path.ends_with(".rs").then_some((name, path))
        })
        .collect()
}

#[test]
fn tests_that_are_named_exist() {
    let page = page();
    let named = named(&page);
    assert!(named.len() > 50, "{}", named.len());
    for (name, path) in named {
        let source = fs::read_to_string(docs().join(path));
        let source = source.unwrap_or_else(|error| panic!("{path}: {error}"));
        assert!(source.contains(&format!("fn {name}(")), "{name} in {path}");
    }
}

#[test]
fn each_row_of_the_plan_is_answered() {
    let page = page();
    let rows = page.lines().filter(|line| line.starts_with("| T"));
    let ids: Vec<&str> = rows
        .map(|row| {
            let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
            let [id, attack, answer] = cells.as_slice() else {
                panic!("three cells: {row}")
            };
            assert!(!attack.is_empty(), "{id}");
            let is_shown = !named(answer).is_empty();
            let has_reason = answer.contains("not here: ");
            assert!(is_shown || has_reason, "{id}: {answer}");
            *id
        })
        .collect();
    let all = |ids: &[u8]| ids.iter().map(|id| format!("T{id:02}")).collect::<Vec<_>>();
    let mut plan: Vec<u8> = (1..=12).chain(15..=18).chain(20..=46).collect();
    plan.extend([50, 51, 52]);
    assert_eq!(ids, all(&plan));
}
