//! Host processes that look at presented buffers.

use std::collections::HashSet;
use std::sync::{Condvar, Mutex};
use std::time::Duration;

use hostblob_guest::protocol::Status;
use hostblob_guest::protocol::request::ALL_BUFFERS;

/// Host processes that hold every presented buffer until they are told.
#[derive(Default)]
pub(crate) struct Viewers {
    held: Mutex<HashSet<u64>>,
    changed: Condvar,
}

impl Viewers {
    pub(super) fn hold(&self, offset: u64) {
        self.held.lock().unwrap().insert(offset);
    }

    pub(crate) fn release(&self, offset: u64) {
        self.held.lock().unwrap().remove(&offset);
        self.changed.notify_all();
    }

    fn uses(held: &HashSet<u64>, offset: u64) -> bool {
        held.contains(&offset) || offset == ALL_BUFFERS && !held.is_empty()
    }

    pub(super) fn wait(&self, offset: u64, timeout: u64) -> Status {
        let held = self.held.lock().unwrap();
        let timeout = Duration::from_nanos(timeout);
        let (held, _) = self
            .changed
            .wait_timeout_while(held, timeout, |held| Self::uses(held, offset))
            .unwrap();
        match Self::uses(&held, offset) {
            true => Status::Timeout,
            false => Status::Ok,
        }
    }
}
