//! A guest's side: what it shows, and whether anybody looks.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use hostblob_protocol::Status;
use hostblob_protocol::request::MAX_DEBUG_NAME;

use super::foreign::Foreign;
use super::state::{BlobState, GuestId};
use super::{
    Buffer, Event, ExportError, ExportId, Exports, Layout, MAX_BLOBS, MAX_BUFFERS,
    MAX_GUEST_BUFFERS, check_layout,
};

/// What one guest shows to viewers. Nothing here waits. When it drops, all its blobs are destroyed for viewers.
#[derive(Debug)]
pub struct GuestExports {
    exports: Arc<Exports>,
    guest: GuestId,
}

impl GuestExports {
    pub(super) fn new(exports: Arc<Exports>, guest: GuestId) -> Self {
        Self { exports, guest }
    }

    /// Shows a blob of `size` bytes. The name is for people, and cut where it is longer than that of a request.
    pub fn add(&self, uuid: [u8; 16], size: u64, name: &str) -> Result<ExportId, ExportError> {
        self.exports.with(|state, calls| {
            let id = ExportId(state.next_name());
            if let Some(guest) = state.guests.get_mut(&self.guest) {
                if guest.blobs >= MAX_BLOBS {
                    return Err(ExportError::TooMany(MAX_BLOBS, "blobs are exported"));
                }
                guest.blobs += 1;
            }
            let blob = BlobState {
                guest: self.guest,
                uuid,
                size,
                name: name
                    .get(..name.floor_char_boundary(MAX_DEBUG_NAME))
                    .unwrap_or_default()
                    .into(),
                buffers: BTreeMap::new(),
                presents: 0,
                descriptor: None,
                asked: false,
            };
            state.add_blob(id, blob, calls);
            Ok(id)
        })
    }

    /// Describes a buffer in a blob. It takes the place of the one at this offset; who uses that still does.
    pub fn publish(&self, id: ExportId, layout: Layout) -> Result<(), ExportError> {
        self.exports.with(|state, calls| {
            let blob = state
                .blobs
                .get_mut(&id)
                .filter(|blob| blob.guest == self.guest)
                .ok_or(ExportError::UnknownBlob(id))?;
            check_layout(layout, blob.size)?;
            if !blob.buffers.contains_key(&layout.offset) {
                if blob.buffers.len() >= MAX_BUFFERS {
                    let what = "buffers of one blob are published";
                    return Err(ExportError::TooMany(MAX_BUFFERS, what));
                }
                if let Some(guest) = state.guests.get_mut(&self.guest) {
                    if guest.buffers >= MAX_GUEST_BUFFERS {
                        let what = "buffers of one guest are published";
                        return Err(ExportError::TooMany(MAX_GUEST_BUFFERS, what));
                    }
                    guest.buffers += 1;
                }
            }
            let buffer = Buffer { layout, present: 0 };
            blob.buffers.insert(layout.offset, buffer);
            state.tell_all(&Event::Published(id, buffer), calls);
            Ok(())
        })
    }

    /// Takes the description of the buffer at `offset` back; `false` where there is none. Who uses the buffer still does.
    pub fn withdraw(&self, id: ExportId, offset: u64) -> bool {
        self.exports.with(|state, calls| {
            let withdrawn = state
                .blobs
                .get_mut(&id)
                .filter(|blob| blob.guest == self.guest)
                .and_then(|blob| blob.buffers.remove(&offset));
            if withdrawn.is_some() {
                if let Some(guest) = state.guests.get_mut(&self.guest) {
                    guest.buffers = guest.buffers.saturating_sub(1);
                }
                state.tell_all(&Event::Withdrawn(id, offset), calls);
            }
            withdrawn.is_some()
        })
    }

    /// The buffer at `offset` has new contents: who has the blob open uses it from now on. `false` where there is no such buffer.
    pub fn present(&self, id: ExportId, offset: u64) -> bool {
        self.exports.with(|state, calls| {
            let Some(blob) = state
                .blobs
                .get_mut(&id)
                .filter(|blob| blob.guest == self.guest)
            else {
                return false;
            };
            let Some(buffer) = blob.buffers.get_mut(&offset) else {
                return false;
            };
            blob.presents += 1;
            buffer.present = blob.presents;
            for viewer in state.viewers.values_mut() {
                viewer.present(id, buffer, calls);
            }
            state.drop_slow(calls);
            true
        })
    }

    /// The buffers that are published, by their offset.
    pub fn layouts(&self, id: ExportId) -> Vec<Layout> {
        self.exports.with(|state, _| {
            let blob = state.blobs.get(&id);
            let buffers = blob.map(|blob| blob.buffers.values());
            buffers
                .into_iter()
                .flatten()
                .map(|buffer| buffer.layout)
                .collect()
        })
    }

    /// The blob is gone. Who has it open keeps it open: see [`GuestExports::is_open`].
    pub fn remove(&self, id: ExportId) {
        self.exports.with(|state, calls| {
            if state
                .blobs
                .get(&id)
                .is_some_and(|blob| blob.guest == self.guest)
            {
                state.remove_blob(id, calls);
            }
        });
    }

    /// Whether a viewer has the blob open, also after [`GuestExports::remove`].
    pub fn is_open(&self, id: ExportId) -> bool {
        self.exports.with(|state, _| {
            state
                .viewers
                .values()
                .any(|viewer| viewer.open.contains_key(&id))
        })
    }

    /// Whether a viewer uses the buffer at `offset`, also after [`GuestExports::withdraw`] and [`GuestExports::remove`].
    pub fn in_use(&self, id: ExportId, offset: u64) -> bool {
        self.exports
            .with(|state, _| state.viewers.values().any(|viewer| viewer.uses(id, offset)))
    }

    /// The next blob that somebody wants a descriptor of. Asked once for all who want it.
    pub fn next_request(&self) -> Option<DescriptorRequest> {
        let id = self.exports.with(|state, _| {
            let asked = &mut state.guests.get_mut(&self.guest)?.asked;
            let blobs = &state.blobs;
            std::iter::from_fn(|| asked.pop_front()).find(|id| blobs.contains_key(id))
        })?;
        Some(DescriptorRequest {
            exports: Arc::clone(&self.exports),
            id,
            answered: false,
        })
    }

    /// Drops the descriptor that is kept for the next who opens the blob, so that its pages may move; `false` where somebody has the
    /// blob open, or is about to.
    pub fn forget_descriptor(&self, id: ExportId) -> bool {
        self.exports.with(|state, calls| {
            let watched = state.viewers.values().any(|viewer| {
                viewer.open.contains_key(&id)
                    || viewer.waiting.iter().any(|waiting| waiting.id == id)
            });
            if let Some(blob) = state.blobs.get_mut(&id).filter(|_| !watched) {
                calls.bury(blob.descriptor.take());
            }
            !watched
        })
    }

    /// Whether a viewer has handed in memory under this token.
    pub fn has_import(&self, token: [u8; 16]) -> bool {
        self.exports.with(|state, _| {
            let mut viewers = state.viewers.values();
            viewers.any(|viewer| viewer.tokens.contains_key(&token))
        })
    }

    /// Memory that a viewer handed in under this token: the caller's for as long as it likes.
    pub fn take_import(&self, token: [u8; 16]) -> Option<Foreign> {
        self.exports.with(|state, _| {
            state
                .viewers
                .values()
                .find_map(|viewer| viewer.tokens.get(&token))
                .cloned()
        })
    }
}

impl Drop for GuestExports {
    fn drop(&mut self) {
        self.exports.with(|state, calls| {
            let mine: Vec<ExportId> = state
                .blobs
                .iter()
                .filter(|(_, blob)| blob.guest == self.guest)
                .map(|(&id, _)| id)
                .collect();
            for id in mine {
                state.remove_blob(id, calls);
            }
            state.guests.remove(&self.guest);
        });
    }
}

/// Somebody wants a descriptor of a blob. Dropping it says no.
#[derive(Debug)]
#[must_use = "somebody waits for the answer"]
pub struct DescriptorRequest {
    exports: Arc<Exports>,
    id: ExportId,
    answered: bool,
}

impl DescriptorRequest {
    /// Of which blob.
    pub fn id(&self) -> ExportId {
        self.id
    }

    /// A descriptor of the blob's bytes and nothing else, which is kept for whoever asks next; or why there is none.
    pub fn answer(mut self, answer: Result<Arc<OwnedFd>, ExportError>) {
        self.finish(answer);
    }

    fn finish(&mut self, answer: Result<Arc<OwnedFd>, ExportError>) {
        self.answered = true;
        self.exports.with(|state, calls| match answer {
            Ok(descriptor) => state.give(self.id, descriptor, calls),
            Err(error) => {
                log::warn!("export: blob {} cannot be opened: {error}", self.id);
                state.fail_waiting(self.id, &error, calls);
            }
        });
    }
}

impl Drop for DescriptorRequest {
    fn drop(&mut self) {
        if !self.answered {
            self.finish(Err(ExportError::Refused(Status::Internal)));
        }
    }
}
