//! Where bytes live, and how they move without anybody seeing them twice or somebody else's.
//!
//! Before bytes move, the GPU lets go of them: release, wait, move. Where nothing was attached, nothing waits.

use std::os::fd::AsFd;

use super::{Guest, WINDOW_FILE};
use crate::Error;
use crate::blob::{Home, MemoryKey};
use crate::provider::{AttachmentId, FileId, Request};
use crate::window::{Lease, Parking, ParkingSpot, Span};
use crate::work::Pending;

const NOT_ALLOCATED: Error = Error::NotMappable("its device memory could not be allocated");

/// Rounds of making room before a place counts as taken: each ends the use of it by at least one holder.
const MAX_EVICTION_ROUNDS: usize = 4;

impl Guest {
    /// Brings a memory's bytes to `span` of the window.
    pub(super) fn place(&mut self, key: MemoryKey, span: Span) -> Result<(), Error> {
        if let Some(Home::Window(lease)) = self.memories.get(&key).map(|memory| &memory.home)
            && lease.span() == span
        {
            return Ok(());
        }
        if self.place_of(key).is_some() {
            // The VMM maps the bytes there. They stay where they are, and so does the GPU.
            let lease = self.make_room(key, span)?;
            if let Some(place) = self.place_of(key) {
                *place = Some(Box::new(lease));
            }
            return Ok(());
        }
        if !self.may_move(key) {
            return Err(Error::InUse);
        }
        let lease = self.make_room(key, span)?;
        self.detach(key)?;
        let Some(memory) = self.memories.get_mut(&key) else {
            return Err(Error::NotMappable("the memory is gone"));
        };
        let file = self.window.file();
        match &memory.home {
            Home::Nowhere
            | Home::Device { .. }
            | Home::Exported { .. }
            | Home::Pages(_)
            | Home::Foreign { .. }
            | Home::Unbacked => {}
            Home::Window(old) => file.copy_within(span, old.span()),
            Home::Parked(spot) => file.copy_from(span, spot.file(), spot.span()),
        }
        memory.home = Home::Window(lease);
        Ok(())
    }

    /// Bytes that are not in the window need their place no more.
    pub(super) fn give_up_place(&mut self, key: MemoryKey) {
        if let Some(place) = self.place_of(key) {
            *place = None;
        }
    }

    fn place_of(&mut self, key: MemoryKey) -> Option<&mut Option<Box<Lease>>> {
        self.memories.get_mut(&key)?.home.place_mut()
    }

    /// Finds out where the CPU reaches memory of an exported type, when somebody first asks. Waits for what the GPU has to do before, at
    /// least for the zeros.
    pub(super) fn expose(&mut self, key: MemoryKey) -> Result<(), Error> {
        let memory = self.memories.get(&key);
        if memory.is_some_and(|memory| matches!(memory.home, Home::Exported { .. })) {
            return Ok(());
        }
        let attachment = memory
            .and_then(|memory| memory.attachment)
            .ok_or(NOT_ALLOCATED)?;
        // Asked once, however often a guest tries while the GPU is busy: each answer has a descriptor.
        let asked = match memory.map(|memory| &memory.home) {
            Some(Home::Device { exposed_at }) => *exposed_at,
            _ => None,
        };
        let point = match asked {
            Some(point) if !self.work.reached(point) => point,
            _ => self.work.submit(
                Request::Export { attachment },
                Pending::Export(key, attachment),
            ),
        };
        if let Some(memory) = self.memories.get_mut(&key)
            && let Home::Device { exposed_at } = &mut memory.home
        {
            *exposed_at = Some(point);
        }
        self.wait_for(point)?;
        match self.place_of(key) {
            Some(_) => Ok(()),
            None => Err(Error::NotMappable("its device memory was not exported")),
        }
    }

    /// A lease on `span`, after parking the unmapped memories that were left there.
    fn make_room(&mut self, key: MemoryKey, span: Span) -> Result<Lease, Error> {
        for _ in 0..MAX_EVICTION_ROUNDS {
            let owners = match self.window.place(span, key) {
                Ok(lease) => return Ok(lease),
                Err(owners) => owners,
            };
            let stays = |owner: &MemoryKey| self.is_mapped(*owner) || !self.may_move(*owner);
            if owners.iter().any(stays) {
                break;
            }
            for owner in owners {
                if self.memories.contains_key(&owner) {
                    self.evict(owner)?;
                } else {
                    // Retired, and the GPU is not yet done with it.
                    self.wait_for(self.work.submitted())?;
                }
            }
        }
        Err(Error::Occupied {
            offset: span.start(),
            length: span.len(),
        })
    }

    fn is_mapped(&self, key: MemoryKey) -> bool {
        let Some(memory) = self.memories.get(&key) else {
            return false;
        };
        match memory.binding {
            crate::blob::Binding::Bound(resource) => {
                self.blobs.get(&resource).is_some_and(|blob| blob.mapped)
            }
            _ => false,
        }
    }

    /// Moves an unmapped memory from the window to the parking file.
    fn evict(&mut self, key: MemoryKey) -> Result<(), Error> {
        self.detach(key)?;
        let size = self.memories.get(&key).map_or(0, |memory| memory.size);
        let spot = self.park(size)?;
        if let Some(memory) = self.memories.get_mut(&key) {
            if let Home::Window(lease) = &memory.home {
                spot.file()
                    .copy_from(spot.span(), self.window.file(), lease.span());
            }
            memory.home = Home::Parked(Box::new(spot));
        }
        Ok(())
    }

    /// What is parked is charged, so there are never more spots than the limit of memory has pages: where no file has one, there is one more file.
    fn park(&mut self, size: u64) -> Result<ParkingSpot, Error> {
        let spot = self.parking.iter().find_map(|parking| parking.park(size));
        if let Some(spot) = spot {
            return Ok(spot);
        }
        let failed = |error: std::io::Error| Error::Parking(error.to_string());
        self.next_file += 1;
        let name = FileId(self.next_file);
        let parking = Parking::new(name, self.host.config.memory_limit).map_err(failed)?;
        let file = parking.file();
        let add = Request::AddFile {
            file: name,
            descriptor: file.as_fd().try_clone_to_owned().map_err(failed)?,
            length: file.size(),
        };
        let spot = parking.park(size);
        self.work.submit(add, Pending::Work);
        self.parking.push(parking);
        spot.ok_or_else(|| Error::Parking("it is larger than the parking file".into()))
    }

    /// Gives a memory that has never been anywhere a place.
    pub(super) fn settle(&mut self, key: MemoryKey) -> Result<(), Error> {
        let Some(Home::Nowhere) = self.memories.get(&key).map(|memory| &memory.home) else {
            return Ok(());
        };
        let size = self.memories.get(&key).map_or(0, |memory| memory.size);
        let spot = self.park(size)?;
        if let Some(memory) = self.memories.get_mut(&key) {
            memory.home = Home::Parked(Box::new(spot));
        }
        Ok(())
    }

    /// Attaches the GPU to a memory, on its first use.
    pub(crate) fn attach(&mut self, key: MemoryKey) -> Result<AttachmentId, Error> {
        let gone = Error::NotMappable("the memory is gone");
        let memory = self.memories.get(&key).ok_or(gone.clone())?;
        if let Some(attachment) = memory.attachment {
            return Ok(attachment);
        }
        self.settle(key)?;
        let memory = self.memories.get_mut(&key).ok_or(gone)?;
        let (length, memory_type) = (memory.size, memory.memory_type);
        let (file, offset) = match &mut memory.home {
            Home::Window(lease) => (WINDOW_FILE, lease.span().start()),
            Home::Parked(spot) => (spot.name(), spot.span().start()),
            Home::Pages(pages) | Home::Foreign { pages, .. } => {
                let file = pages.file;
                if !std::mem::replace(&mut pages.known, true) {
                    let pieces = pages.pieces.clone();
                    let add = Request::AddPieces { file, pieces };
                    self.work.submit(add, Pending::AddPages(key, file));
                }
                (file, 0)
            }
            Home::Unbacked => return Err(Error::NoBacking),
            Home::Nowhere | Home::Device { .. } | Home::Exported { .. } => {
                return Err(NOT_ALLOCATED);
            }
        };
        let attachment = self.work.new_attachment();
        let request = Request::Attach {
            attachment,
            file,
            offset,
            length,
            memory_type,
        };
        self.work.submit(request, Pending::Attach(key, attachment));
        self.set_attachment(key, Some(attachment));
        Ok(attachment)
    }

    /// The GPU lets go of a memory's bytes, and has let go when this returns.
    fn detach(&mut self, key: MemoryKey) -> Result<(), Error> {
        let Some(memory) = self.memories.get_mut(&key) else {
            return Ok(());
        };
        if let Some(attachment) = memory.attachment.take() {
            memory.released_at = self
                .work
                .submit(Request::Release { attachment }, Pending::Release);
        }
        let released_at = memory.released_at;
        self.wait_for(released_at)
    }

    /// Ends a memory: at once, or when the GPU has let go of it.
    pub(crate) fn retire(&mut self, key: MemoryKey) {
        self.hide(key);
        self.release_pages(key);
        let Some(mut memory) = self.memories.remove(&key) else {
            return;
        };
        for name in std::mem::take(&mut memory.names) {
            self.forget(&name);
        }
        if let Some(uuid) = memory.shared().uuid {
            self.uuids.remove(&uuid);
            if memory.shared().announced {
                self.object_changes.push((uuid, false));
            }
        }
        if let Some(context) = self.owner_mut(memory.context) {
            context.objects = context.objects.saturating_sub(1);
        }
        if let Some(attachment) = memory.attachment.take() {
            self.work
                .submit(Request::Release { attachment }, Pending::Retire(memory));
        } else if !self.work.reached(memory.released_at) {
            // A release that timed out is still under way: the bytes stay until its completion.
            self.work.retire_at(memory.released_at, memory);
        }
    }
}
