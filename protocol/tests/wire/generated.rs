//! Tables in `docs/protocol.md` that come from the code. Used by `capset` too.

use std::fs;
use std::sync::{Mutex, PoisonError};

const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/protocol.md");

/// One test at a time changes the document.
static LOCK: Mutex<()> = Mutex::new(());

/// The section between the markers of `name` is `text`. `HOSTBLOB_BLESS=1` makes it so.
pub(crate) fn compare(name: &str, text: &str) {
    let _guard = LOCK.lock().unwrap_or_else(PoisonError::into_inner);
    let document = fs::read_to_string(DOCUMENT).unwrap();
    let begin = format!("<!-- from the code: {name} -->\n");
    let (before, rest) = document
        .split_once(&begin)
        .unwrap_or_else(|| panic!("docs/protocol.md has no {begin}"));
    let (section, after) = rest.split_once("<!-- end -->").unwrap();
    if section != text && crate::golden::bless() {
        fs::write(
            DOCUMENT,
            format!("{before}{begin}{text}<!-- end -->{after}"),
        )
        .unwrap();
        return;
    }
    assert_eq!(
        section, text,
        "docs/protocol.md, {name}: run the tests with HOSTBLOB_BLESS=1 and read the diff"
    );
}
