//! Messages, of the library and of those that it uses: to the VMM's debug callback where there is one, to stderr otherwise.

use std::ffi::CString;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use log::{Level, LevelFilter, Log, Metadata, Record};
use parking_lot::RwLock;

use crate::types::{
    RUTABAGA_DEBUG_ERROR, RUTABAGA_DEBUG_INFO, RUTABAGA_DEBUG_WARN, rutabaga_debug,
};

/// The least severe level that is passed on.
const ENV_LOG: &str = "HOSTBLOB_LOG";

type Callback = unsafe extern "C-unwind" fn(u64, *const rutabaga_debug);

struct Listener {
    id: u64,
    user_data: u64,
    callback: Callback,
}

struct Listeners {
    live: Vec<Listener>,
    last: u64,
}

static LISTENERS: RwLock<Listeners> = RwLock::new(Listeners {
    live: Vec::new(),
    last: 0,
});

/// A debug callback, called until this drops: no longer when the drop is over.
#[derive(Debug)]
pub(crate) struct Listening(u64);

/// Registers a device's debug callback. The oldest one is told.
pub(crate) fn listen(user_data: u64, callback: Callback) -> Listening {
    let mut listeners = LISTENERS.write();
    listeners.last += 1;
    let id = listeners.last;
    listeners.live.push(Listener {
        id,
        user_data,
        callback,
    });
    Listening(id)
}

impl Drop for Listening {
    fn drop(&mut self) {
        LISTENERS.write().live.retain(|one| one.id != self.0);
    }
}

/// Starts logging, the first time that it is called. `HOSTBLOB_LOG` says from which level on: warn without it.
pub(crate) fn start() {
    static START: Once = Once::new();
    START.call_once(|| {
        let level = std::env::var(ENV_LOG)
            .ok()
            .and_then(|level| level.parse().ok());
        if log::set_logger(&Messages).is_ok() {
            log::set_max_level(level.unwrap_or(LevelFilter::Warn));
        }
    });
}

struct Messages;

impl Log for Messages {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let text = record.args().to_string().replace('\0', " ");
        let listeners = LISTENERS.read();
        match listeners.live.first() {
            Some(listener) => listener.tell(record.level(), text),
            None => {
                let level = record.level().as_str().to_lowercase();
                // Nobody to tell when stderr is closed.
                let _ = writeln!(std::io::stderr(), "hostblob: {level}: {text}");
            }
        }
    }

    fn flush(&self) {}
}

impl Listener {
    fn tell(&self, level: Level, text: String) {
        let Ok(message) = CString::new(text) else {
            return;
        };
        let debug = rutabaga_debug {
            debug_type: match level {
                Level::Error => RUTABAGA_DEBUG_ERROR,
                Level::Warn => RUTABAGA_DEBUG_WARN,
                _ => RUTABAGA_DEBUG_INFO,
            },
            message: message.as_ptr(),
        };
        // SAFETY: the VMM's callback takes these until the device that it came with is finished, which waits for this call; the
        // structure and its text live until it returns.
        let tell = || unsafe { (self.callback)(self.user_data, &raw const debug) };
        // It must not unwind. Where it does, this may be a thread that others need.
        let _ = catch_unwind(AssertUnwindSafe(tell));
    }
}
