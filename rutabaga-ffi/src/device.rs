//! One device of the VMM: its renderers under one lock, and the thread that calls back.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use parking_lot::Mutex;

use crate::error::{Error, Result};
use crate::fences::Fences;
use crate::messages::Listening;
use crate::ours::Ours;
use crate::routing::Core;
use crate::settings::Settings;
use crate::theirs::{Theirs, Wanted};
use crate::types::rutabaga_fence;

/// A VMM's callback for fences that are reached.
pub(crate) type Reached = Box<dyn Fn(&rutabaga_fence) + Send>;

/// A device.
pub(crate) struct Device {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// The VMM's debug callback. Last: the parts above have something to say when they end.
    pub(crate) messages: Option<Listening>,
}

struct Shared {
    core: Mutex<Core>,
    fences: Arc<Fences>,
}

impl Device {
    pub(crate) fn new(settings: &Settings, mut wanted: Wanted, reached: Reached) -> Result<Self> {
        let fences = Arc::new(Fences::default());
        let waker = Arc::clone(&fences);
        let ours = Ours::new(settings, Arc::new(move || waker.look()))?;
        let signaller = Arc::clone(&fences);
        // A VMM may know our capset, and ask for it with theirs.
        wanted.capset_mask &= !(1 << settings.capset_id);
        let theirs = Theirs::new(wanted, settings.limits.memory_limit, move |fence| {
            signaller.signalled(fence);
        })?;
        let core = Core::new(ours, theirs, Arc::clone(&fences));
        let shared = Arc::new(Shared {
            core: Mutex::new(core),
            fences,
        });
        let served = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("hostblob-fences".to_owned())
            .spawn(move || call_back(&served, &reached));
        Ok(Self {
            shared,
            thread: Mutex::new(Some(
                thread.map_err(|error| Error::System("a thread", error))?,
            )),
            messages: None,
        })
    }

    /// Whether this is called from the fence callback.
    pub(crate) fn is_calling_back(&self) -> bool {
        let thread = self.thread.lock();
        let thread = thread.as_ref().map(|thread| thread.thread().id());
        thread == Some(thread::current().id())
    }

    /// No callback is under way, or comes, after this returns. Not for the callback itself.
    pub(crate) fn end(&self) {
        self.shared.fences.end();
        let thread = self.thread.lock().take();
        if let Some(thread) = thread {
            // It catches what there is to catch.
            let _ = thread.join();
        }
    }

    /// Runs on the renderers, one caller at a time.
    pub(crate) fn with<T>(&self, work: impl FnOnce(&mut Core) -> Result<T>) -> Result<T> {
        work(&mut self.shared.core.lock())
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // One that was not handed out.
        self.end();
    }
}

/// The fence thread: callbacks in order, one at a time, with no lock held.
fn call_back(shared: &Shared, reached: &Reached) {
    while shared.fences.sleep() {
        let look = || {
            let mut core = shared.core.lock();
            core.take_reached()
        };
        // A panic costs one look, not all later fences.
        for fence in catch_unwind(AssertUnwindSafe(look)).unwrap_or_default() {
            reached(&fence);
        }
    }
}
