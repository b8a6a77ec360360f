//! Contexts and resources of hostblob and of rutabaga_gfx, with one space of ids. Who made a thing gets the calls on it.
//!
//! Only a blob of guest pages that no context made belongs to nobody in particular: Linux makes it so, and says later which context is to
//! see it. Whoever of the two can have it, has it.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use libc::iovec;

use crate::error::{Error, Result};
use crate::fences::Fences;
use crate::ours::{Ours, check_ring};
use crate::theirs::Theirs;
use crate::types::{
    RUTABAGA_BLOB_MEM_GUEST, RUTABAGA_FLAG_INFO_RING_IDX, RUTABAGA_HANDLE_TYPE_MEM_DMABUF,
    rutabaga_create_3d, rutabaga_create_blob, rutabaga_fence, rutabaga_import_data,
    rutabaga_mapping, rutabaga_transfer,
};

/// The low byte of `context_init` (virtio 1.3, 5.7.6.8).
const CAPSET_ID_MASK: u32 = 0xff;

/// The renderers of a device.
pub(crate) struct Core {
    ours: Ours,
    theirs: Theirs,
    fences: Arc<Fences>,
    /// It was said that guest memory cannot be used.
    said_no_pages: bool,
}

impl Core {
    pub(crate) fn new(ours: Ours, theirs: Theirs, fences: Arc<Fences>) -> Self {
        Self {
            ours,
            theirs,
            fences,
            said_no_pages: false,
        }
    }

    /// The fences that have been reached, in order.
    pub(crate) fn take_reached(&mut self) -> Vec<rutabaga_fence> {
        self.ours.look();
        self.fences.take_reached(|fence| self.ours.reached(fence))
    }

    pub(crate) fn capsets(&self) -> u32 {
        self.theirs.capsets().saturating_add(1)
    }

    /// Id, version and size. Ours comes last: theirs are where a VMM expects them.
    pub(crate) fn capset_info(&self, index: u32) -> Result<(u32, u32, u32)> {
        if index == self.theirs.capsets() {
            let (version, bytes) = self.ours.capset();
            let size = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
            return Ok((self.ours.capset_id(), version, size));
        }
        self.theirs.capset_info(index)
    }

    pub(crate) fn capset(&self, id: u32, version: u32) -> Result<Vec<u8>> {
        if id == self.ours.capset_id() {
            return Ok(self.ours.capset().1.to_vec());
        }
        self.theirs.capset(id, version)
    }

    pub(crate) fn create_context(&mut self, id: u32, init: u32, name: &[u8]) -> Result<()> {
        if self.ours.has_context(id) || self.theirs.has_context(id) {
            return Err(Error::Taken {
                kind: "context",
                id,
            });
        }
        if init & CAPSET_ID_MASK == self.ours.capset_id() {
            return self.ours.create_context(id, name);
        }
        let name = std::str::from_utf8(name)
            .ok()
            .filter(|name| !name.is_empty());
        self.theirs.create_context(id, init, name)
    }

    pub(crate) fn destroy_context(&mut self, id: u32) -> Result<()> {
        match self.ours.has_context(id) {
            true => self.ours.destroy_context(id),
            false => self.theirs.destroy_context(id),
        }
    }

    pub(crate) fn attach(&mut self, context: u32, resource: u32) -> Result<()> {
        self.check_made_by_same(context, resource)?;
        match self.ours.has_context(context) {
            true => self.ours.attach(context, resource),
            false => self.theirs.attach(context, resource),
        }
    }

    pub(crate) fn detach(&mut self, context: u32, resource: u32) -> Result<()> {
        self.check_made_by_same(context, resource)?;
        match self.ours.has_context(context) {
            true => self.ours.detach(context, resource),
            false => self.theirs.detach(context, resource),
        }
    }

    /// A resource of one is nothing to a context of the other.
    fn check_made_by_same(&self, context: u32, resource: u32) -> Result<()> {
        let ours = self.ours.has_resource(resource);
        let theirs = self.theirs.has_resource(resource);
        let by = match self.ours.has_context(context) {
            true if theirs && !ours => "rutabaga_gfx",
            false if ours && !theirs && self.theirs.has_context(context) => "hostblob",
            _ => return Ok(()),
        };
        Err(Error::Strangers {
            context,
            resource,
            by,
        })
    }

    pub(crate) fn submit(
        &mut self,
        context: u32,
        command: &mut [u8],
        fences: &[u64],
    ) -> Result<()> {
        match self.ours.has_context(context) {
            true => self.ours.submit(context, command),
            false => self.theirs.submit(context, command, fences),
        }
    }

    /// A fence of a ring is the context's. One of the global timeline is of what the context has submitted, or all (context 0).
    pub(crate) fn create_fence(&mut self, fence: rutabaga_fence) -> Result<()> {
        check_ring(fence.ring_idx)?;
        let context = fence.ctx_id;
        let on_ring = fence.flags & RUTABAGA_FLAG_INFO_RING_IDX != 0;
        let of_ours = self.ours.has_context(context);
        let of_all = !on_ring && context == 0;
        let ours = (of_ours || of_all).then(|| self.ours.fence(context));
        self.fences.add(fence, ours, !of_ours)?;
        let created = match of_ours {
            true => Ok(()),
            false => self.theirs.create_fence(&fence),
        };
        if created.is_err() {
            self.fences.take_back(&fence);
        }
        self.fences.look();
        created
    }

    fn check_resource_id(&self, id: u32) -> Result<()> {
        if id == 0 || self.ours.has_resource(id) || self.theirs.has_resource(id) {
            return Err(Error::Taken {
                kind: "resource",
                id,
            });
        }
        Ok(())
    }

    pub(crate) fn create_3d(&mut self, resource: u32, asked: &rutabaga_create_3d) -> Result<()> {
        self.check_resource_id(resource)?;
        self.theirs.create_3d(resource, asked)
    }

    pub(crate) fn create_blob(
        &mut self,
        context: u32,
        resource: u32,
        blob: &rutabaga_create_blob,
        pages: Option<&[iovec]>,
        handle: Option<(OwnedFd, u32)>,
    ) -> Result<()> {
        self.check_resource_id(resource)?;
        let of_nobody = context == 0 && blob.blob_mem == RUTABAGA_BLOB_MEM_GUEST;
        if !of_nobody && !self.ours.has_context(context) {
            return self
                .theirs
                .create_blob(context, resource, blob, pages, handle);
        }
        if of_nobody {
            let ours = self.create_ours(resource, 0, blob, pages, handle.is_some());
            let theirs = self
                .theirs
                .create_blob(context, resource, blob, pages, handle);
            self.say_no_pages(&ours);
            return either(ours, theirs);
        }
        self.create_ours(resource, context, blob, pages, handle.is_some())
    }

    /// Where rutabaga_gfx alone can use guest memory, nobody is told otherwise why a context of ours cannot see a blob.
    fn say_no_pages(&mut self, created: &Result<()>) {
        if let Err(error @ Error::Pages { .. }) = created
            && !std::mem::replace(&mut self.said_no_pages, true)
        {
            log::warn!("contexts of hostblob cannot use guest pages: {error}");
        }
    }

    fn create_ours(
        &mut self,
        resource: u32,
        context: u32,
        blob: &rutabaga_create_blob,
        pages: Option<&[iovec]>,
        has_handle: bool,
    ) -> Result<()> {
        if has_handle {
            return Err(Error::NotServed(
                "a blob of hostblob cannot be made of a handle",
            ));
        }
        self.ours
            .create_blob(context, resource, blob, pages.unwrap_or_default())
    }

    /// Calls those who have the resource. What one of them can do is done.
    fn on<T>(
        &mut self,
        resource: u32,
        ours: impl FnOnce(&mut Ours) -> Result<T>,
        theirs: impl FnOnce(&mut Theirs) -> Result<T>,
    ) -> Result<T> {
        if !self.ours.has_resource(resource) {
            return theirs(&mut self.theirs);
        }
        if !self.theirs.has_resource(resource) {
            return ours(&mut self.ours);
        }
        either(ours(&mut self.ours), theirs(&mut self.theirs))
    }

    pub(crate) fn import(
        &mut self,
        resource: u32,
        handle: (OwnedFd, u32),
        data: &rutabaga_import_data,
    ) -> Result<()> {
        if self.ours.has_resource(resource) {
            return Err(Error::Taken {
                kind: "resource",
                id: resource,
            });
        }
        self.theirs.import(resource, handle, data)
    }

    pub(crate) fn attach_backing(&mut self, resource: u32, pages: &[iovec]) -> Result<()> {
        self.on(
            resource,
            |ours| ours.attach_backing(resource, pages),
            |theirs| theirs.attach_backing(resource, pages),
        )
    }

    pub(crate) fn detach_backing(&mut self, resource: u32) -> Result<()> {
        self.on(
            resource,
            |ours| ours.detach_backing(resource),
            |theirs| theirs.detach_backing(resource),
        )
    }

    pub(crate) fn unref(&mut self, resource: u32) -> Result<()> {
        self.on(
            resource,
            |ours| ours.unref(resource),
            |theirs| theirs.unref(resource),
        )
    }

    pub(crate) fn transfer_write(
        &mut self,
        context: u32,
        resource: u32,
        transfer: &rutabaga_transfer,
    ) -> Result<()> {
        self.on(
            resource,
            |ours| ours.transfer(context, resource, true, transfer),
            |theirs| theirs.transfer_write(context, resource, transfer),
        )
    }

    pub(crate) fn transfer_read(
        &mut self,
        context: u32,
        resource: u32,
        transfer: &rutabaga_transfer,
        to: Option<&mut [u8]>,
    ) -> Result<()> {
        let has_place = to.is_some();
        self.on(
            resource,
            |ours| match has_place {
                true => Err(Error::NotServed("a blob of hostblob has no pixels to read")),
                false => ours.transfer(context, resource, false, transfer),
            },
            |theirs| theirs.transfer_read(context, resource, transfer, to),
        )
    }

    /// A descriptor and its type.
    pub(crate) fn export(&mut self, resource: u32) -> Result<(OwnedFd, u32)> {
        self.on(
            resource,
            |ours| Ok((ours.export(resource)?, RUTABAGA_HANDLE_TYPE_MEM_DMABUF)),
            |theirs| theirs.export(resource),
        )
    }

    pub(crate) fn map_info(&mut self, resource: u32) -> Result<u32> {
        self.on(
            resource,
            |ours| ours.map_info(resource),
            |theirs| theirs.map_info(resource),
        )
    }

    pub(crate) fn map(&mut self, resource: u32) -> Result<rutabaga_mapping> {
        self.on(
            resource,
            |ours| ours.map(resource),
            |theirs| theirs.map(resource),
        )
    }

    pub(crate) fn unmap(&mut self, resource: u32) -> Result<()> {
        self.on(
            resource,
            |ours| ours.unmap(resource),
            |theirs| theirs.unmap(resource),
        )
    }

    pub(crate) fn snapshot(&self, folder: &Path) -> Result<()> {
        self.check_nothing_of_ours()?;
        self.theirs.snapshot(folder)
    }

    pub(crate) fn restore(&mut self, folder: &Path) -> Result<()> {
        self.check_nothing_of_ours()?;
        self.theirs.restore(folder)
    }

    fn check_nothing_of_ours(&self) -> Result<()> {
        match self.ours.is_empty() {
            true => Ok(()),
            false => Err(Error::NotServed(
                "snapshots of contexts and blobs of hostblob are not made through this interface: hostblobd makes them",
            )),
        }
    }
}

/// What one of two could do is done; what neither could is the first one's error.
fn either<T>(first: Result<T>, second: Result<T>) -> Result<T> {
    match (first, second) {
        (Ok(done), _) | (Err(_), Ok(done)) => Ok(done),
        (Err(error), Err(_)) => Err(error),
    }
}
