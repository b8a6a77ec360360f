//! A viewer's side: what it sees, opens, releases and hands in.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use rustix::rand::{GetRandomFlags, getrandom};

use super::foreign::Foreign;
use super::state::{Calls, State, ViewerId, ViewerState, Waiting};
use super::{Event, ExportError, ExportId, Exports, MAX_TOKENS, MAX_WAITING, OPEN_TIMEOUT};

/// One host process that looks. When it drops, nothing is open or used by it any more, and its tokens are gone.
#[derive(Debug)]
pub struct Viewer {
    exports: Arc<Exports>,
    viewer: ViewerId,
    events: Receiver<Event>,
}

impl Viewer {
    pub(super) fn new(exports: Arc<Exports>, viewer: ViewerId, events: Receiver<Event>) -> Self {
        Self {
            exports,
            viewer,
            events,
        }
    }

    /// What happens, in order. Disconnected when this viewer left too much of it unread ([`super::MAX_EVENTS`]).
    pub fn events(&self) -> &Receiver<Event> {
        &self.events
    }

    /// Whether it left too much unread or unreleased: then nothing is open or used by it any more.
    pub fn is_dropped(&self) -> bool {
        self.exports
            .with(|state, _| !state.viewers.contains_key(&self.viewer))
    }

    fn with<R>(
        &self,
        work: impl FnOnce(&mut ViewerState, &mut Calls) -> Result<R, ExportError>,
    ) -> Result<R, ExportError> {
        self.exports.with(|state, calls| {
            let viewer = state.viewers.get_mut(&self.viewer);
            let result = work(viewer.ok_or(ExportError::Dropped)?, calls);
            state.drop_slow(calls);
            result
        })
    }

    /// Asks for all blobs: [`Event::Listing`].
    pub fn list(&self, tag: u64) {
        self.exports.with(|state, calls| {
            let blobs = state.listing();
            if let Some(viewer) = state.viewers.get_mut(&self.viewer) {
                State::tell(viewer, Event::Listing { tag, blobs }, calls);
            }
            state.drop_slow(calls);
        });
    }

    /// Asks for a descriptor: [`Event::Opened`], at once where there is one already.
    pub fn open(&self, tag: u64, id: ExportId) {
        self.exports
            .with(|state, calls| state.wish(self.viewer, tag, id, calls));
    }

    /// Fails wishes to open that are older than [`OPEN_TIMEOUT`]. The time until the next one is.
    pub fn expire(&self) -> Option<Duration> {
        let now = Instant::now();
        let next = self.with(|viewer, calls| {
            while let Some(&Waiting { tag, id, deadline }) = viewer.waiting.front() {
                if deadline > now {
                    return Ok(Some(deadline - now));
                }
                viewer.waiting.pop_front();
                let result = Err(ExportError::TimedOut);
                State::tell(viewer, Event::Opened { tag, id, result }, calls);
            }
            Ok(None)
        });
        next.unwrap_or(None)
    }

    /// No longer uses the buffer at `offset`, unless it was presented again after the present of number `present`.
    pub fn release(&self, id: ExportId, offset: u64, present: u64) -> Result<(), ExportError> {
        self.exports.with(|state, calls| {
            let viewer = state.viewers.get_mut(&self.viewer);
            let viewer = viewer.ok_or(ExportError::Dropped)?;
            if let Some(guest) = viewer.release(id, offset, present)? {
                state.wake_guest(guest, calls);
            }
            Ok(())
        })
    }

    /// Gives the blob and all its buffers up.
    pub fn close(&self, id: ExportId) -> Result<(), ExportError> {
        self.exports.with(|state, calls| {
            let viewer = state.viewers.get_mut(&self.viewer);
            let guest = viewer.ok_or(ExportError::Dropped)?.close(id)?;
            state.wake_guest(guest, calls);
            Ok(())
        })
    }

    /// Hands in memory; the token by which a guest imports it.
    pub fn hand_in(&self, descriptor: OwnedFd) -> Result<[u8; 16], ExportError> {
        let foreign = Foreign::check(descriptor).map_err(ExportError::NotImportable)?;
        let token = random_uuid()?;
        self.with(|viewer, _| {
            if viewer.tokens.len() >= MAX_TOKENS {
                return Err(ExportError::TooMany(MAX_TOKENS, "memories are handed in"));
            }
            viewer.tokens.insert(token, foreign);
            Ok(token)
        })
    }

    /// Nobody can import the memory of this token any more.
    pub fn take_back(&self, token: [u8; 16]) -> Result<(), ExportError> {
        // The descriptor is closed when the lock is free.
        let taken = self.with(|viewer, _| Ok(viewer.tokens.remove(&token)))?;
        taken.map(drop).ok_or(ExportError::UnknownToken)
    }
}

impl Drop for Viewer {
    fn drop(&mut self) {
        self.exports
            .with(|state, calls| state.leave(self.viewer, calls));
    }
}

impl State {
    /// A viewer wants a descriptor.
    fn wish(&mut self, viewer: ViewerId, tag: u64, id: ExportId, calls: &mut Calls) {
        let Some(viewer) = self.viewers.get_mut(&viewer) else {
            return;
        };
        let refused = match self.blobs.get_mut(&id) {
            None => Some(ExportError::UnknownBlob(id)),
            Some(blob) => match blob.descriptor.clone() {
                Some(descriptor) => {
                    viewer.open(tag, id, blob, &descriptor, calls);
                    self.wake_owner(id, calls);
                    self.drop_slow(calls);
                    return;
                }
                None if viewer.waiting.len() >= MAX_WAITING => {
                    Some(ExportError::TooMany(MAX_WAITING, "blobs are waited for"))
                }
                None => {
                    let deadline = Instant::now() + OPEN_TIMEOUT;
                    viewer.waiting.push_back(Waiting { tag, id, deadline });
                    if !std::mem::replace(&mut blob.asked, true)
                        && let Some(guest) = self.guests.get_mut(&blob.guest)
                    {
                        guest.asked.push_back(id);
                    }
                    self.wake_owner(id, calls);
                    return;
                }
            },
        };
        if let Some(error) = refused {
            let result = Err(error);
            Self::tell(viewer, Event::Opened { tag, id, result }, calls);
            self.drop_slow(calls);
        }
    }
}

/// A UUID of version 4.
fn random_uuid() -> Result<[u8; 16], ExportError> {
    let mut uuid = [0; 16];
    // So few bytes come whole.
    getrandom(&mut uuid, GetRandomFlags::empty())
        .map_err(|errno| ExportError::System("getrandom", errno))?;
    let [_, _, _, _, _, _, version, _, variant, ..] = &mut uuid;
    *version = *version & 0x0f | 0x40;
    *variant = *variant & 0x3f | 0x80;
    Ok(uuid)
}
