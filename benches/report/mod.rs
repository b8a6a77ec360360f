//! The report of `cargo xtask bench`, made of its records.
//!
//! | module | answers the question |
//! |---|---|
//! | [`data`] | what are the samples of one thing? |
//! | [`bars`] | what must hold, and does it? |
//! | [`tables`] | what does a reader see? |
//! | [`plots`] | what does it look like? |

pub mod bars;
pub mod data;
pub mod plots;
pub mod tables;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::json;

use data::Data;

/// The lines between which a page has the tables.
const MARKS: [&str; 2] = ["<!-- bench: begin -->", "<!-- bench: end -->"];

/// Writes report.md, report.json and the plots into `folder`, and the same into the page performance.md of `docs`, where that is given.
///
/// # Errors
/// Where a file cannot be read, is no record, or cannot be written.
pub fn write(records: &Path, folder: &Path, docs: Option<&Path>) -> Result<()> {
    let text = fs::read_to_string(records)
        .with_context(|| format!("cannot read {}", records.display()))?;
    let data = Data::parse(&text)?;
    let plots = plots::draw(&data)?;
    let markdown = tables::markdown(&data);
    for (name, svg) in &plots {
        save(&folder.join(name), svg)?;
    }
    let page = format!("# Bench\n\n{markdown}{}", links(&plots, ""));
    save(&folder.join("report.md"), &page)?;
    let json = json!({
        "about": data.about,
        "systems": data.systems,
        "missing": data.missing,
        "bars": bars::judge(&data),
        "rows": data.summaries(),
    });
    save(
        &folder.join("report.json"),
        &serde_json::to_string_pretty(&json)?,
    )?;
    let Some(docs) = docs else {
        return Ok(());
    };
    let path = docs.join("performance.md");
    let page =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let with = format!("{markdown}{}", links(&plots, "bench/"));
    save(
        &path,
        &between(&page, &with).context("performance.md has no place for the tables")?,
    )?;
    for (name, svg) in &plots {
        save(&docs.join("bench").join(name), svg)?;
    }
    Ok(())
}

fn links(plots: &[(&str, String)], folder: &str) -> String {
    let mut text = "\n".to_owned();
    for (name, _) in plots {
        text += &format!("![{name}]({folder}{name})\n");
    }
    text
}

fn between(page: &str, text: &str) -> Option<String> {
    let [begin, end] = MARKS;
    let (before, rest) = page.split_once(begin)?;
    let (_, after) = rest.split_once(end)?;
    Some(format!("{before}{begin}\n\n{text}\n{end}{after}"))
}

fn save(path: &Path, text: &str) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_keep_what_is_around() {
        let page = "a\n<!-- bench: begin -->\nold\n<!-- bench: end -->\nb\n";
        let new = between(page, "new").unwrap();
        assert_eq!(
            new,
            "a\n<!-- bench: begin -->\n\nnew\n<!-- bench: end -->\nb\n"
        );
        assert_eq!(between(&new, "new").unwrap(), new);
        assert_eq!(between("no marks", "new"), None);
    }

    #[test]
    fn a_run_becomes_files() {
        let folder = tempfile::tempdir().unwrap();
        let records = folder.path().join("records.jsonl");
        fs::write(&records, data::tests::RUN).unwrap();
        fs::write(
            folder.path().join("performance.md"),
            "# P\n<!-- bench: begin --><!-- bench: end -->\n",
        )
        .unwrap();
        write(&records, folder.path(), Some(folder.path())).unwrap();
        let report = fs::read_to_string(folder.path().join("report.md")).unwrap();
        let page = fs::read_to_string(folder.path().join("performance.md")).unwrap();
        for (name, _) in plots::draw(&Data::parse(data::tests::RUN).unwrap()).unwrap() {
            let file = fs::read_to_string(folder.path().join("bench").join(name)).unwrap();
            assert!(file.starts_with("<svg"), "{name}");
            assert!(
                file.len() < 50 << 10,
                "{name} is too large for a page: {}",
                file.len()
            );
            assert!(report.contains(&format!("]({name})")), "{name}");
            assert!(page.contains(&format!("](bench/{name})")), "{name}");
        }
        let json = fs::read_to_string(folder.path().join("report.json")).unwrap();
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(json["systems"]["virglrenderer 1.3"], "a peer");
        assert!(json["rows"].as_array().unwrap().len() > 5);
    }
}
