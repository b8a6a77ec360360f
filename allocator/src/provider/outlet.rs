//! Where a session's completions leave the provider.
//!
//! Owns the caller's sink, so that there is one place that can say "nothing after the session is dropped": closing
//! takes the sink out under the lock that each delivery holds.

use parking_lot::Mutex;

use super::{Completion, CompletionSink, ProviderError};

/// A sink that can be closed.
pub(super) struct Outlet {
    sink: Mutex<Option<CompletionSink>>,
}

impl Outlet {
    pub(super) fn new(sink: CompletionSink) -> Self {
        Self {
            sink: Mutex::new(Some(sink)),
        }
    }

    /// Hands a completion to the caller, or drops it after [`Outlet::close`].
    pub(super) fn deliver(&self, completion: Completion) {
        if let Some(sink) = self.sink.lock().as_ref() {
            sink(completion);
        }
    }

    /// Answers a request that reached no thread: the one that serves the session could not be started, or is gone.
    pub(super) fn deliver_gone(&self, sequence: u64) {
        self.deliver(Completion {
            sequence,
            result: Err(ProviderError::DeviceLost(
                "the provider's thread is gone".to_owned(),
            )),
        });
    }

    /// Nothing is delivered after this returns; waits for a delivery that is under way.
    pub(super) fn close(&self) {
        // The sink is dropped outside the lock: it may hold anything.
        let sink = self.sink.lock().take();
        drop(sink);
    }
}
