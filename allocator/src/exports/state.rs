//! The tables: blobs and buffers of guests, what viewers have open and use, and tokens.

use std::any::Any;
use std::collections::{BTreeMap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender};

use super::foreign::Foreign;
use super::{
    Buffer, Event, ExportError, ExportId, Listed, MAX_EVENTS, MAX_OPEN, MAX_USES, MAX_VIEWERS,
    Opened,
};
use crate::Waker;

pub(super) type GuestId = u64;
pub(super) type ViewerId = u64;

/// What is done when the lock is free: whom to wake, and what to drop. Closing the last descriptor of a dma-buf takes the kernel its time.
#[derive(Default)]
pub(super) struct Calls {
    wakers: Vec<Waker>,
    remains: Vec<Box<dyn Any + Send>>,
}

impl Calls {
    pub(super) fn add(&mut self, waker: &Waker) {
        if !self.wakers.iter().any(|known| Arc::ptr_eq(known, waker)) {
            self.wakers.push(Arc::clone(waker));
        }
    }

    pub(super) fn bury(&mut self, remains: impl Any + Send) {
        self.remains.push(Box::new(remains));
    }

    pub(super) fn make(self) {
        drop(self.remains);
        for waker in self.wakers {
            waker();
        }
    }
}

pub(super) struct GuestState {
    waker: Waker,
    /// Blobs that somebody wants a descriptor of, and that the guest has not been told of.
    pub(super) asked: VecDeque<ExportId>,
    pub(super) blobs: usize,
    pub(super) buffers: usize,
}

pub(super) struct BlobState {
    pub(super) guest: GuestId,
    pub(super) uuid: [u8; 16],
    pub(super) size: u64,
    pub(super) name: Arc<str>,
    pub(super) buffers: BTreeMap<u64, Buffer>,
    /// Presents of all its buffers so far.
    pub(super) presents: u64,
    pub(super) descriptor: Option<Arc<OwnedFd>>,
    /// The guest was asked for the descriptor, and has not answered.
    pub(super) asked: bool,
}

impl BlobState {
    fn listed(&self, id: ExportId) -> Listed {
        Listed {
            id,
            uuid: self.uuid,
            size: self.size,
            name: Arc::clone(&self.name),
            buffers: self.buffers.values().copied().collect(),
        }
    }
}

/// A viewer's wish that the guest has not fulfilled.
pub(super) struct Waiting {
    pub(super) tag: u64,
    pub(super) id: ExportId,
    pub(super) deadline: Instant,
}

pub(super) struct ViewerState {
    events: Sender<Event>,
    waker: Waker,
    /// Blobs that it has open, and whose they are. They stay when the blob itself goes.
    pub(super) open: BTreeMap<ExportId, GuestId>,
    /// Buffers of those that it uses: the number of the last present that it was told of.
    uses: BTreeMap<(ExportId, u64), u64>,
    /// In the order of their deadlines.
    pub(super) waiting: VecDeque<Waiting>,
    pub(super) tokens: BTreeMap<[u8; 16], Foreign>,
    /// It left too much unread, or unreleased.
    dropped: bool,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) guests: BTreeMap<GuestId, GuestState>,
    pub(super) blobs: BTreeMap<ExportId, BlobState>,
    pub(super) viewers: BTreeMap<ViewerId, ViewerState>,
    /// Names of guests, viewers and blobs come from here: 64 bits do not run out.
    last_name: u64,
}

impl State {
    pub(super) fn next_name(&mut self) -> u64 {
        self.last_name += 1;
        self.last_name
    }

    pub(super) fn add_guest(&mut self, waker: Waker) -> GuestId {
        let guest = self.next_name();
        let state = GuestState {
            waker,
            asked: VecDeque::new(),
            blobs: 0,
            buffers: 0,
        };
        self.guests.insert(guest, state);
        guest
    }

    pub(super) fn add_viewer(
        &mut self,
        waker: Waker,
    ) -> Result<(ViewerId, Receiver<Event>), ExportError> {
        if self.viewers.len() >= MAX_VIEWERS {
            return Err(ExportError::TooMany(MAX_VIEWERS, "viewers are connected"));
        }
        // Bounded by `tell`: a bounded channel would take the memory of all its events at once.
        let (events, receiver) = crossbeam_channel::unbounded();
        let viewer = self.next_name();
        let state = ViewerState {
            events,
            waker,
            open: BTreeMap::new(),
            uses: BTreeMap::new(),
            waiting: VecDeque::new(),
            tokens: BTreeMap::new(),
            dropped: false,
        };
        self.viewers.insert(viewer, state);
        Ok((viewer, receiver))
    }

    pub(super) fn wake_guest(&self, guest: GuestId, calls: &mut Calls) {
        if let Some(guest) = self.guests.get(&guest) {
            calls.add(&guest.waker);
        }
    }

    /// Sends an event. A viewer that has left too much unread is marked, and is gone after [`State::drop_slow`].
    pub(super) fn tell(viewer: &mut ViewerState, event: Event, calls: &mut Calls) {
        if viewer.events.len() >= MAX_EVENTS {
            viewer.dropped = true;
        } else {
            // Refused when the receiver is gone: then it is leaving.
            let _ = viewer.events.send(event);
        }
        calls.add(&viewer.waker);
    }

    pub(super) fn tell_all(&mut self, event: &Event, calls: &mut Calls) {
        for viewer in self.viewers.values_mut() {
            Self::tell(viewer, event.clone(), calls);
        }
        self.drop_slow(calls);
    }

    /// Removes viewers that have left too much unread or unreleased: what they use is free again.
    pub(super) fn drop_slow(&mut self, calls: &mut Calls) {
        let slow: Vec<ViewerId> = self
            .viewers
            .iter()
            .filter(|(_, viewer)| viewer.dropped)
            .map(|(&id, _)| id)
            .collect();
        for id in slow {
            log::warn!(
                "export: a viewer left {MAX_EVENTS} events unread, or {MAX_USES} buffers unreleased, and is dropped"
            );
            self.leave(id, calls);
        }
    }

    /// The viewer is gone, and everything that it had.
    pub(super) fn leave(&mut self, id: ViewerId, calls: &mut Calls) {
        if let Some(viewer) = self.viewers.remove(&id) {
            for &guest in viewer.open.values() {
                self.wake_guest(guest, calls);
            }
            calls.add(&viewer.waker);
            calls.bury(viewer);
        }
    }

    pub(super) fn listing(&self) -> Vec<Listed> {
        self.blobs
            .iter()
            .map(|(&id, blob)| blob.listed(id))
            .collect()
    }

    pub(super) fn add_blob(&mut self, id: ExportId, blob: BlobState, calls: &mut Calls) {
        let event = Event::Added(blob.listed(id));
        self.blobs.insert(id, blob);
        self.tell_all(&event, calls);
    }

    /// The blob is gone: nobody can open it. What viewers have open stays open.
    pub(super) fn remove_blob(&mut self, id: ExportId, calls: &mut Calls) {
        let Some(blob) = self.blobs.remove(&id) else {
            return;
        };
        if let Some(guest) = self.guests.get_mut(&blob.guest) {
            guest.blobs = guest.blobs.saturating_sub(1);
            guest.buffers = guest.buffers.saturating_sub(blob.buffers.len());
        }
        calls.bury(blob);
        self.fail_waiting(id, &ExportError::UnknownBlob(id), calls);
        self.tell_all(&Event::Destroyed(id), calls);
    }

    /// The guest has a descriptor for all who wait for it, and who will ask.
    pub(super) fn give(&mut self, id: ExportId, descriptor: Arc<OwnedFd>, calls: &mut Calls) {
        let Some(blob) = self.blobs.get_mut(&id) else {
            return;
        };
        blob.asked = false;
        let descriptor = Arc::clone(blob.descriptor.insert(descriptor));
        for viewer in self.viewers.values_mut() {
            for tag in viewer.take_waiting(id) {
                viewer.open(tag, id, blob, &descriptor, calls);
            }
        }
        self.wake_owner(id, calls);
        self.drop_slow(calls);
    }

    pub(super) fn wake_owner(&self, id: ExportId, calls: &mut Calls) {
        if let Some(blob) = self.blobs.get(&id) {
            self.wake_guest(blob.guest, calls);
        }
    }

    /// Nobody who waits for this blob's descriptor gets one.
    pub(super) fn fail_waiting(&mut self, id: ExportId, error: &ExportError, calls: &mut Calls) {
        if let Some(blob) = self.blobs.get_mut(&id) {
            blob.asked = false;
        }
        for viewer in self.viewers.values_mut() {
            for tag in viewer.take_waiting(id) {
                let result = Err(error.clone());
                Self::tell(viewer, Event::Opened { tag, id, result }, calls);
            }
        }
        self.drop_slow(calls);
    }
}

impl ViewerState {
    pub(super) fn uses(&self, id: ExportId, offset: u64) -> bool {
        self.uses.contains_key(&(id, offset))
    }

    fn starts_using(&mut self, id: ExportId, buffer: &Buffer) {
        self.uses.insert((id, buffer.layout.offset), buffer.present);
        self.dropped |= self.uses.len() > MAX_USES;
    }

    /// A buffer has new contents, which is news to who has the blob open.
    pub(super) fn present(&mut self, id: ExportId, buffer: &Buffer, calls: &mut Calls) {
        if self.open.contains_key(&id) {
            self.starts_using(id, buffer);
            let event = Event::Presented {
                id,
                offset: buffer.layout.offset,
                present: buffer.present,
            };
            State::tell(self, event, calls);
        }
    }

    /// The guest whose buffer is released now; nobody, where the viewer has not seen the last present yet.
    pub(super) fn release(
        &mut self,
        id: ExportId,
        offset: u64,
        present: u64,
    ) -> Result<Option<GuestId>, ExportError> {
        let guest = *self.open.get(&id).ok_or(ExportError::NotOpen(id))?;
        let told = *self
            .uses
            .get(&(id, offset))
            .ok_or(ExportError::NotInUse(id, offset))?;
        if present < told {
            return Ok(None);
        }
        self.uses.remove(&(id, offset));
        Ok(Some(guest))
    }

    /// The guest whose blob is closed now.
    pub(super) fn close(&mut self, id: ExportId) -> Result<GuestId, ExportError> {
        let guest = self.open.remove(&id).ok_or(ExportError::NotOpen(id))?;
        let offsets: Vec<u64> = self
            .uses
            .range((id, 0)..=(id, u64::MAX))
            .map(|(&(_, offset), _)| offset)
            .collect();
        for offset in offsets {
            self.uses.remove(&(id, offset));
        }
        Ok(guest)
    }

    fn take_waiting(&mut self, id: ExportId) -> Vec<u64> {
        let (mine, others) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition::<VecDeque<_>, _>(|waiting| waiting.id == id);
        self.waiting = others;
        mine.into_iter().map(|waiting| waiting.tag).collect()
    }

    /// The viewer has the blob open from now on, and uses what was presented before it had.
    pub(super) fn open(
        &mut self,
        tag: u64,
        id: ExportId,
        blob: &BlobState,
        descriptor: &Arc<OwnedFd>,
        calls: &mut Calls,
    ) {
        let result = if self.open.len() >= MAX_OPEN && !self.open.contains_key(&id) {
            Err(ExportError::TooMany(MAX_OPEN, "blobs are open"))
        } else {
            // Who opens it again has seen, or will hear of, all that was presented.
            if self.open.insert(id, blob.guest).is_none() {
                for buffer in blob.buffers.values().filter(|buffer| buffer.present > 0) {
                    self.starts_using(id, buffer);
                }
            }
            Ok(Opened {
                descriptor: Arc::clone(descriptor),
                size: blob.size,
                buffers: blob.buffers.values().copied().collect(),
            })
        };
        State::tell(self, Event::Opened { tag, id, result }, calls);
    }
}
