//! `bench-report RECORDS FOLDER [DOCS]`: the report of a run, and with DOCS the same in DOCS/performance.md and DOCS/bench.

use std::path::Path;

use anyhow::{Result, bail};
use hostblob_benches::report;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.as_slice() {
        [records, folder] => report::write(Path::new(records), Path::new(folder), None),
        [records, folder, docs] => {
            report::write(Path::new(records), Path::new(folder), Some(Path::new(docs)))
        }
        _ => bail!("bench-report RECORDS FOLDER [DOCS]"),
    }
}
