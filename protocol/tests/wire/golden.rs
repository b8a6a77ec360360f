//! Golden files: bytes that keep their meaning for ever, as text that a person reads and diffs. Used by `capset` too.
//!
//! A file is lines of hexadecimal bytes; `#` begins a comment. Comments may be reworded, bytes never change. To add a file,
//! add its case to the tests and run them once with `HOSTBLOB_BLESS=1`: it writes files that do not exist and
//! touches no other. Read what it wrote before it is committed.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// Bytes of one meaning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) note: String,
    pub(crate) bytes: Vec<u8>,
}

pub(crate) fn row(note: impl Into<String>, bytes: impl AsRef<[u8]>) -> Row {
    Row {
        note: note.into(),
        bytes: bytes.as_ref().to_vec(),
    }
}

pub(crate) fn concat(rows: &[Row]) -> Vec<u8> {
    rows.iter()
        .flat_map(|row| row.bytes.iter().copied())
        .collect()
}

/// Whether what is missing or out of date may be written.
pub(crate) fn bless() -> bool {
    std::env::var_os("HOSTBLOB_BLESS").is_some_and(|value| value == "1")
}

/// A folder of golden files, each of which some case must name.
pub(crate) struct Folder {
    path: PathBuf,
    seen: BTreeSet<String>,
}

impl Folder {
    pub(crate) fn new(path: impl AsRef<Path>) -> Self {
        Self {
            path: path.as_ref().to_owned(),
            seen: BTreeSet::new(),
        }
    }

    /// The golden bytes of `name`, after a comparison with those of `rows` and with `encoded`, what the code makes.
    pub(crate) fn check(
        &mut self,
        name: &str,
        about: &str,
        rows: &[Row],
        encoded: &[u8],
    ) -> Vec<u8> {
        assert!(
            self.seen.insert(name.to_owned()),
            "two cases of the name {name}"
        );
        let expected = concat(rows);
        assert_eq!(
            hex(encoded),
            hex(&expected),
            "{name}: the encoder and the case's rows differ"
        );
        let path = self.path.join(name).with_extension("hex");
        if bless() && !path.exists() {
            let mut file = File::create_new(&path).unwrap();
            file.write_all(render(about, rows).as_bytes()).unwrap();
        }
        let text = fs::read_to_string(&path).unwrap_or_else(|error| {
            panic!(
                "{}: {error}; for a new case run the tests with HOSTBLOB_BLESS=1",
                path.display()
            )
        });
        let golden = parse(&text);
        assert_eq!(
            hex(encoded),
            hex(&golden),
            "{}: these bytes must never change",
            path.display()
        );
        golden
    }

    /// No file without a case: nothing is pinned by accident, nothing is lost by deleting a case.
    pub(crate) fn finish(self) {
        let there: BTreeSet<String> = fs::read_dir(&self.path)
            .unwrap()
            .map(|entry| {
                entry
                    .unwrap()
                    .path()
                    .file_stem()
                    .unwrap()
                    .to_str()
                    .unwrap()
                    .to_owned()
            })
            .collect();
        assert_eq!(there, self.seen, "golden files and cases");
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x} ").unwrap();
        text
    })
}

fn render(about: &str, rows: &[Row]) -> String {
    let mut text = format!("# {about}\n");
    for row in rows {
        let mut note = format!("# {}", row.note);
        for line in row.bytes.chunks(16) {
            let line = format!("{:<48}{note}", hex(line));
            writeln!(text, "{}", line.trim_end()).unwrap();
            note.clear();
        }
    }
    text
}

pub(crate) fn parse(text: &str) -> Vec<u8> {
    text.lines()
        .flat_map(|line| line.split('#').next().unwrap().split_whitespace())
        .map(|byte| u8::from_str_radix(byte, 16).unwrap())
        .collect()
}

#[test]
fn text_and_bytes_are_the_same() {
    let rows = [
        row("a long one", [7; 40]),
        row("", []),
        row("short", [1, 2]),
    ];
    let text = render("about", &rows);
    assert_eq!(parse(&text), concat(&rows));
    assert!(
        text.lines()
            .all(|line| line == line.trim_end() && line.len() < 120),
        "{text}"
    );
}
