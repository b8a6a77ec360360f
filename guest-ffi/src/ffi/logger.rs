//! Log messages of a C program: to stderr, when `HOSTBLOB_LOG` asks for them and no Rust logger is there.

use std::io::Write;
use std::sync::Once;

use log::{LevelFilter, Log, Metadata, Record};

use crate::options::ENV_LOG;

struct Stderr;

impl Log for Stderr {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("hostblob")
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            // Nobody to tell when stderr is closed.
            let _ = writeln!(
                std::io::stderr(),
                "hostblob: {}: {}",
                record.level().as_str().to_lowercase(),
                record.args()
            );
        }
    }

    fn flush(&self) {}
}

/// Starts logging, the first time that it is called.
pub(super) fn start() {
    static START: Once = Once::new();
    START.call_once(|| {
        let level = std::env::var(ENV_LOG)
            .ok()
            .and_then(|level| level.parse().ok());
        let Some(level) = level.filter(|level| *level != LevelFilter::Off) else {
            return;
        };
        if log::set_logger(&Stderr).is_ok() {
            log::set_max_level(level);
        }
    });
}
