//! What a test's own thread logs.

use std::cell::RefCell;
use std::sync::OnceLock;

use log::{LevelFilter, Log, Metadata, Record};

thread_local! {
    static LINES: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
}

struct Recorder;

impl Log for Recorder {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        LINES.with_borrow_mut(|lines| {
            if let Some(lines) = lines {
                lines.push(record.args().to_string());
            }
        });
    }

    fn flush(&self) {}
}

/// Warnings and errors that this thread logs meanwhile.
pub(crate) fn logged(work: impl FnOnce()) -> Vec<String> {
    static SET: OnceLock<()> = OnceLock::new();
    SET.get_or_init(|| {
        log::set_logger(&Recorder).unwrap();
        log::set_max_level(LevelFilter::Warn);
    });
    LINES.set(Some(Vec::new()));
    work();
    LINES.take().unwrap_or_default()
}
