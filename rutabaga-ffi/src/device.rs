//! One device of the VMM: its renderers under one lock, and the thread that calls back.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use hostblob_protocol::DEFAULT_CAPSET_ID;
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
        // A VMM may know our capset, and ask for it with theirs: by the id that is set, or by the one that we give for its name. Any bit that
        // is left costs 2D, which rutabaga_gfx has where it is asked for nothing.
        wanted.capset_mask &= !(1 << settings.capset_id | 1 << DEFAULT_CAPSET_ID);
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

#[cfg(test)]
mod tests {
    use libc::iovec;

    use super::*;
    use crate::types::{rutabaga_create_3d, rutabaga_transfer};

    fn start(capset_id: &str, asked: u32) -> Device {
        let settings = Settings::new(|variable| match variable {
            "HOSTBLOB_PROVIDER" => Some("system".to_owned()),
            "HOSTBLOB_WINDOW" => Some("16M".to_owned()),
            "HOSTBLOB_CAPSET_ID" => Some(capset_id.to_owned()),
            _ => None,
        });
        let wanted = Wanted {
            capset_mask: 1 << asked,
            ..Wanted::default()
        };
        Device::new(&settings.unwrap(), wanted, Box::new(|_| {})).unwrap()
    }

    /// Pixels go into an image of 2 by 2 and come out of it again.
    fn draws(core: &mut Core) -> Result<()> {
        let image = rutabaga_create_3d {
            target: 2,
            format: 1,
            bind: 2,
            width: 2,
            height: 2,
            depth: 1,
            array_size: 0,
            last_level: 0,
            nr_samples: 0,
            flags: 0,
        };
        let all = rutabaga_transfer {
            x: 0,
            y: 0,
            z: 0,
            w: 2,
            h: 2,
            d: 1,
            level: 0,
            stride: 8,
            layer_stride: 0,
            offset: 0,
        };
        let mut from = [7_u8; 16];
        let pages = [iovec {
            iov_base: from.as_mut_ptr().cast(),
            iov_len: from.len(),
        }];
        core.create_3d(1, &image)?;
        core.attach_backing(1, &pages)?;
        core.transfer_write(0, 1, &all)?;
        let mut to = [0; 16];
        core.transfer_read(0, 1, &all, Some(&mut to))?;
        core.unref(1)?;
        assert_eq!(to, [7; 16]);
        Ok(())
    }

    /// By the bit that rutabaga_calculate_capset_mask() gives, or by that of the id that is set.
    #[test]
    fn who_asks_for_our_capset_alone_has_2d_whatever_its_id() {
        for (set, id, asked) in [("", 24, 24), ("30", 30, 24), ("30", 30, 30)] {
            let device = start(set, asked);
            let drawn = device.with(draws);
            assert!(drawn.is_ok(), "id {id}, bit {asked}: {drawn:?}");
            let (found, ..) = device.with(|core| core.capset_info(0)).unwrap();
            assert_eq!(found, id);
            assert_eq!(device.with(|core| Ok(core.capsets())).unwrap(), 1);
        }
    }
}
