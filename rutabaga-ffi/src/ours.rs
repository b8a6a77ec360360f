//! Contexts and blobs of hostblob: a guest of the allocator, and what a VMM's addresses mean to it.

use std::collections::HashMap;
use std::ffi::c_void;
use std::os::fd::OwnedFd;

use hostblob_allocator::exports::udmabuf;
use hostblob_allocator::text::printable;
use hostblob_allocator::{
    BlobSpec, Error as Refusal, Fence, Guest, Host, Outside, Transfer, Waker, provider,
};
use hostblob_capset::{BlobMem, VERSION};
use hostblob_protocol::virtio_gpu::MAX_RINGS;
use libc::iovec;

use crate::error::{Error, Result};
use crate::pages::Files;
use crate::places::{Place, Places};
use crate::settings::Settings;
use crate::types::{
    RUTABAGA_MAP_ACCESS_RW, rutabaga_create_blob, rutabaga_mapping, rutabaga_transfer,
};

/// Places that are tried for a blob: bytes that cannot move may still be in one whose blob is gone.
const TRIES: usize = 8;

/// Everything of ours.
pub(crate) struct Ours {
    guest: Guest,
    capset_id: u32,
    capset: Vec<u8>,
    /// Why blobs cannot be exported, where they cannot.
    no_export: Option<String>,
    files: Files,
    places: Places,
    blobs: HashMap<u32, Placed>,
}

struct Placed {
    /// Bytes.
    size: u64,
    place: Option<Place>,
}

impl Ours {
    /// A guest without contexts. `waker` is called when [`Ours::reached`] may say something else.
    pub(crate) fn new(settings: &Settings, waker: Waker) -> Result<Self> {
        let opened = provider::open(settings.provider, &settings.options)?;
        log::info!("provider: {}", opened.reason);
        let (exporter, no_export) = match udmabuf() {
            Ok(exporter) => (Some(exporter), None),
            Err(why) => (None, Some(why)),
        };
        let outside = Outside {
            exports: None,
            exporter,
        };
        let host = Host::with_outside(opened.provider, settings.limits, outside);
        let host = host.map_err(|error| Error::Environment {
            variable: "HOSTBLOB_WINDOW, _MEMORY_LIMIT, _CONTEXT_LIMIT, _CONTEXT_SHARE",
            value: format!("{:?}", settings.limits),
            reason: error.to_string(),
        })?;
        // A blob's bytes are the window's, always: nothing is put over its addresses here.
        let guest = host.guest(waker);
        let guest = guest.map_err(|error| Error::System("the window", error))?;
        let mut capset = host.capset().clone();
        capset.blob_mem = BlobMem::all();
        Ok(Self {
            places: Places::new(guest.window().size(), capset.page_size.into()),
            guest,
            capset_id: settings.capset_id,
            capset: capset.encode(),
            no_export,
            files: Files::default(),
            blobs: HashMap::new(),
        })
    }

    pub(crate) fn capset_id(&self) -> u32 {
        self.capset_id
    }

    /// Version and bytes.
    pub(crate) fn capset(&self) -> (u32, &[u8]) {
        (VERSION, &self.capset)
    }

    pub(crate) fn has_context(&self, id: u32) -> bool {
        self.guest.has_context(id)
    }

    pub(crate) fn has_resource(&self, id: u32) -> bool {
        self.guest.has_resource(id)
    }

    pub(crate) fn is_empty(&self) -> bool {
        !self.guest.has_contexts() && self.blobs.is_empty()
    }

    pub(crate) fn create_context(&mut self, id: u32, name: &[u8]) -> Result<()> {
        Ok(self.guest.create_context(id, &printable(name))?)
    }

    pub(crate) fn destroy_context(&mut self, id: u32) -> Result<()> {
        Ok(self.guest.destroy_context(id)?)
    }

    pub(crate) fn attach(&mut self, context: u32, resource: u32) -> Result<()> {
        Ok(self.guest.attach_resource(context, resource)?)
    }

    pub(crate) fn detach(&mut self, context: u32, resource: u32) -> Result<()> {
        Ok(self.guest.detach_resource(context, resource)?)
    }

    /// The ring is not known here: a fence waits for all that the context has submitted.
    pub(crate) fn submit(&mut self, context: u32, command: &[u8]) -> Result<()> {
        Ok(self.guest.submit(context, 0, command)?)
    }

    /// The fence of everything that a context has submitted, or the guest as a whole (context 0).
    pub(crate) fn fence(&self, context: u32) -> Fence {
        self.guest.fence(context, None)
    }

    /// Looks at what has finished, for [`Ours::reached`].
    pub(crate) fn look(&mut self) {
        self.guest.process_completions();
    }

    pub(crate) fn reached(&self, fence: &Fence) -> bool {
        self.guest.reached(fence)
    }

    pub(crate) fn create_blob(
        &mut self,
        context: u32,
        resource: u32,
        blob: &rutabaga_create_blob,
        pages: &[iovec],
    ) -> Result<()> {
        let spec = BlobSpec {
            resource_id: resource,
            blob_mem: blob.blob_mem,
            blob_flags: blob.blob_flags,
            blob_id: blob.blob_id,
            size: blob.size,
        };
        let backing = match pages {
            [] => None,
            _ => Some(self.files.pieces(pages)?),
        };
        self.guest.create_blob(context, &spec, backing)?;
        let placed = Placed {
            size: blob.size,
            place: None,
        };
        self.blobs.insert(resource, placed);
        Ok(())
    }

    pub(crate) fn attach_backing(&mut self, resource: u32, pages: &[iovec]) -> Result<()> {
        let backing = self.files.pieces(pages)?;
        Ok(self.guest.attach_backing(resource, backing)?)
    }

    /// The guest's pages are its own again when this returns.
    pub(crate) fn detach_backing(&mut self, resource: u32) -> Result<()> {
        let fence = self.guest.detach_backing(resource)?;
        self.wait(&fence);
        Ok(())
    }

    /// The guest's pages, if it had any, are its own again when this returns.
    pub(crate) fn unref(&mut self, resource: u32) -> Result<()> {
        let fence = self.guest.unref(resource)?;
        self.wait(&fence);
        let placed = self.blobs.remove(&resource);
        if let Some(place) = placed.and_then(|placed| placed.place) {
            self.places.free(place);
        }
        Ok(())
    }

    /// The resource is gone in any case: a GPU that hangs is nothing that the VMM could do something about.
    fn wait(&mut self, fence: &Fence) {
        if let Err(error) = self.guest.wait(fence) {
            log::error!("pages are given back to the guest while the GPU uses them: {error}");
        }
    }

    pub(crate) fn map_info(&self, resource: u32) -> Result<u32> {
        Ok(self.guest.map_info(resource)? | RUTABAGA_MAP_ACCESS_RW)
    }

    pub(crate) fn map(&mut self, resource: u32) -> Result<rutabaga_mapping> {
        self.guest.map_info(resource)?;
        let placed = self.blobs.get(&resource);
        let placed = placed.ok_or(Refusal::UnknownResource(resource))?;
        let (size, place) = (placed.size, placed.place);
        let offset = match place {
            Some(place) => self.guest.map_blob(resource, place.offset)?.offset,
            None => self.map_somewhere(resource, size)?,
        };
        let offset = usize::try_from(offset).map_err(|_| Error::Full("bytes of this host"))?;
        let base = self.guest.window().address();
        Ok(rutabaga_mapping {
            ptr: base.as_ptr().wrapping_add(offset).cast::<c_void>(),
            size,
        })
    }

    /// Maps a blob that has no place yet.
    fn map_somewhere(&mut self, resource: u32, size: u64) -> Result<u64> {
        let mut occupied = Vec::new();
        let mapped = loop {
            let Some(place) = self.take_place(size) else {
                break Err(Error::Full("the bytes of HOSTBLOB_WINDOW"));
            };
            match self.guest.map_blob(resource, place.offset) {
                Ok(_) => break Ok(place),
                Err(Refusal::Occupied { .. }) if occupied.len() < TRIES => occupied.push(place),
                Err(error) => {
                    occupied.push(place);
                    break Err(error.into());
                }
            }
        };
        for place in occupied {
            self.places.free(place);
        }
        let place = mapped?;
        if let Some(placed) = self.blobs.get_mut(&resource) {
            placed.place = Some(place);
        }
        Ok(place.offset)
    }

    /// A place, if need be one where a blob is that is not mapped: its bytes move when they are overtaken.
    fn take_place(&mut self, size: u64) -> Option<Place> {
        if let Some(place) = self.places.take(size) {
            return Some(place);
        }
        for (&resource, placed) in &mut self.blobs {
            if self.guest.mapping(resource).is_none()
                && let Some(place) = placed.place.take()
            {
                self.places.free(place);
            }
        }
        self.places.take(size)
    }

    pub(crate) fn unmap(&mut self, resource: u32) -> Result<()> {
        Ok(self.guest.unmap_blob(resource)?)
    }

    /// A dma-buf of the blob's pages.
    pub(crate) fn export(&mut self, resource: u32) -> Result<OwnedFd> {
        let uuid = self.guest.assign_uuid(resource)?;
        // Nobody asks by these names here.
        self.guest.shared_object_changes();
        if let Some(why) = &self.no_export {
            return Err(Error::NoExport(why.clone()));
        }
        let descriptor = self.guest.shared_object(uuid)?;
        descriptor
            .try_clone()
            .map_err(|error| Error::System("a descriptor", error))
    }

    /// Copies between the two memories of a blob that has two.
    pub(crate) fn transfer(
        &mut self,
        context: u32,
        resource: u32,
        to_host: bool,
        asked: &rutabaga_transfer,
    ) -> Result<()> {
        if asked.level != 0 {
            return Err(Error::Field {
                field: "level",
                value: asked.level.into(),
                expected: "0: a blob has one",
            });
        }
        let transfer = Transfer {
            x: asked.x.into(),
            y: asked.y.into(),
            z: asked.z.into(),
            width: asked.w.into(),
            height: asked.h.into(),
            depth: asked.d.into(),
            offset: asked.offset,
            stride: asked.stride.into(),
            layer_stride: asked.layer_stride.into(),
        };
        Ok(self
            .guest
            .transfer(context, 0, resource, to_host, &transfer)?)
    }
}

/// That a ring is one.
pub(crate) fn check_ring(ring_idx: u32) -> Result<()> {
    if ring_idx >= MAX_RINGS {
        return Err(Error::Field {
            field: "ring_idx",
            value: ring_idx.into(),
            expected: "less than 64",
        });
    }
    Ok(())
}
