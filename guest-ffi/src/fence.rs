//! Host work that can be waited for.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hostblob_protocol::Status;
use parking_lot::Mutex;

use crate::error::{Error, Result};
use crate::session::{Sent, Session, check};
use crate::transport::Completion;

/// Work on the host GPU, or a wait for host processes. Callable from any thread; several may wait.
///
/// Dropping it does not stop the work. Memory that the work uses must live until it is done.
#[derive(Debug)]
pub struct Fence {
    sent: Sent,
    what: &'static str,
    outcome: Mutex<Option<Result<()>>>,
    session: Arc<Session>,
}

impl Fence {
    pub(crate) fn new(session: Arc<Session>, sent: Sent, what: &'static str) -> Self {
        Self {
            sent,
            what,
            outcome: Mutex::new(None),
            session,
        }
    }

    /// Waits until the work is done. `None` waits as long as the device lives.
    ///
    /// [`Error::Timeout`] when the time was over first, [`Error::Status`] when the work failed. May be called again; the answer stays.
    pub fn wait(&self, timeout: Option<Duration>) -> Result<()> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        self.outcome(deadline).unwrap_or(Err(Error::Timeout))
    }

    /// Whether the work is done, without waiting. An error when it failed.
    pub fn is_signaled(&self) -> Result<bool> {
        let outcome = self.outcome(Some(Instant::now()));
        outcome.map_or(Ok(false), |result| result.map(|()| true))
    }

    /// How the work ended; `None` when the deadline came first.
    pub(crate) fn outcome(&self, deadline: Option<Instant>) -> Option<Result<()>> {
        if let Some(outcome) = &*self.outcome.lock() {
            return Some(outcome.clone());
        }
        let waited = self
            .session
            .transport()
            .wait(&self.sent.completion, deadline);
        match waited {
            Ok(true) => {}
            Ok(false) => return None,
            Err(error) => return Some(Err(error)),
        }
        let mut outcome = self.outcome.lock();
        if let Some(outcome) = &*outcome {
            return Some(outcome.clone());
        }
        let answer = match self.session.answer(self.sent.sequence) {
            Ok(answer) => answer,
            Err(error) => return Some(Err(error)),
        };
        let result = check(&answer, self.what);
        *outcome = Some(result.clone());
        Some(result)
    }

    /// A sync_file that signals when the work is done, for other drivers and for `poll`. [`Status::Unsupported`] over the socket.
    pub fn export_sync_file(&self) -> Result<OwnedFd> {
        match &self.sent.completion {
            Completion::SyncFile(fd) => fd.try_clone().map_err(|error| Error::Io {
                what: "dup of a sync_file".to_owned(),
                errno: error.raw_os_error().unwrap_or(0),
            }),
            Completion::Tag(_) => Err(Error::status_of(
                Status::Unsupported,
                "sync_file over a socket",
            )),
        }
    }
}

impl Drop for Fence {
    fn drop(&mut self) {
        self.session.forget(&self.sent);
    }
}
