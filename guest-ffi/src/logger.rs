//! Log messages of a program without a Rust logger: to stderr, when `HOSTBLOB_LOG` asks for them.

use std::io::Write;
use std::sync::Once;

use log::{LevelFilter, Log, Metadata, Record};

use crate::options::ENV_LOG;

struct Stderr;

impl Log for Stderr {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().contains("hostblob")
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

/// Logs what hostblob's libraries have to say to stderr, from the level on that [`ENV_LOG`] names. Does nothing where that is not set,
/// where the program has a logger, and from the second call on. The C library calls it when a device is opened.
pub fn log_to_stderr() {
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
