//! Which lines count: those of `src` that are compiled without `cfg(test)`.
//!
//! The attribute is looked for in the text, which rustfmt has laid out: what it is on ends with a line of its own indentation.

use std::collections::HashMap;
use std::fs;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// A provider that tests alone use, of other crates too: it has no attribute.
const FAKE: &str = "allocator/src/provider/fake.rs";

/// In a test build, or in a special one.
const ATTRIBUTES: [&str; 2] = ["#[cfg(test)]", "#[cfg(all(test, loom))]"];

/// The files, and their lines that do not count.
#[derive(Debug)]
pub(super) struct Counted(HashMap<PathBuf, Vec<RangeInclusive<usize>>>);

impl Counted {
    /// All files below `folder`, but for those that are modules of tests.
    pub(super) fn of(folder: &Path) -> Result<Self> {
        let mut files = HashMap::new();
        let mut tests = Vec::new();
        let mut folders = vec![folder.to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
                let path = entry?.path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_some_and(|end| end == "rs") && !path.ends_with(FAKE) {
                    let text = fs::read_to_string(&path)?;
                    let items = test_items(&text);
                    let modules = items.iter().filter_map(|item| item.module);
                    tests.extend(modules.map(|module| children(&path).join(module)));
                    let lines = items.iter().map(|item| item.lines.clone()).collect();
                    files.insert(path, lines);
                }
            }
        }
        files.retain(|path, _| {
            !tests
                .iter()
                .any(|test| path.with_extension("").starts_with(test))
        });
        Ok(Self(files))
    }

    pub(super) fn has(&self, path: &Path, line: usize) -> bool {
        let skipped = self.0.get(path);
        skipped.is_some_and(|skipped| !skipped.iter().any(|lines| lines.contains(&line)))
    }
}

/// Where the modules of a file are.
fn children(path: &Path) -> PathBuf {
    match path.file_stem().and_then(|stem| stem.to_str()) {
        Some("lib" | "main" | "mod") => path.with_file_name(""),
        _ => path.with_extension(""),
    }
}

/// What has the attribute.
#[derive(Debug, PartialEq, Eq)]
struct Item<'a> {
    lines: RangeInclusive<usize>,
    /// The name, if it is a module in a file of its own.
    module: Option<&'a str>,
}

fn test_items(text: &str) -> Vec<Item<'_>> {
    let mut items = Vec::new();
    let mut lines = text.lines().zip(1..);
    while let Some((line, start)) = lines.next() {
        if !ATTRIBUTES.contains(&line.trim()) {
            continue;
        }
        let indentation = line.len() - line.trim_start().len();
        let is_its = |line: &str| line.len() - line.trim_start().len() == indentation;
        let mut item = Item {
            lines: start..=start,
            module: None,
        };
        let mut is_block = None;
        for (line, number) in lines.by_ref() {
            item.lines = start..=number;
            let trimmed = line.trim();
            if !is_its(line) || trimmed.starts_with("#[") || trimmed.starts_with("//") {
                continue;
            }
            item.module = item.module.or_else(|| {
                trimmed
                    .strip_suffix(';')?
                    .split_once("mod ")
                    .map(|(_, name)| name)
            });
            let is_block = *is_block.get_or_insert(trimmed.ends_with('{'));
            if trimmed == "}" || !is_block && trimmed.ends_with([';', ',', '}']) {
                break;
            }
        }
        items.push(item);
    }
    items
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build;

    #[test]
    fn what_has_the_attribute_does_not_count() {
        let text = "\
#[cfg(test)]
use a::b;
fn counts() {}
#[cfg(test)]
#[path = \"x.rs\"]
pub(super) mod own_file;
struct S {
    #[cfg(test)]
    field: u32,
    counts: u32,
}
impl S {
    #[cfg(test)]
    fn long(
        &self,
    ) -> bool {
        if true {
        }
        true
    }
    fn counts() {
        #[cfg(test)]
        if x {
            return;
        }
        counts();
    }
}
#[cfg(test)]
mod tests {
    fn f() {
    }
}
";
        let items = test_items(text);
        let ranges: Vec<_> = items.iter().map(|item| item.lines.clone()).collect();
        assert_eq!(ranges, [1..=2, 4..=6, 8..=9, 13..=20, 22..=25, 29..=33]);
        let modules: Vec<_> = items.iter().filter_map(|item| item.module).collect();
        assert_eq!(modules, ["own_file"]);
    }

    #[test]
    fn tests_of_this_workspace_do_not_count() {
        let workspace = build::workspace();
        for folder in super::super::CRATES {
            let counted = Counted::of(&workspace.join(folder).join("src")).unwrap();
            assert!(counted.0.len() > 5, "{folder}");
            for (path, skipped) in &counted.0 {
                let text = fs::read_to_string(path).unwrap();
                let skipped = |line| skipped.iter().any(|lines| lines.contains(&line));
                for (line, number) in text.lines().zip(1..) {
                    assert!(
                        !line.contains("#[test]") || skipped(number),
                        "{}:{number}",
                        path.display()
                    );
                }
            }
        }
    }
}
