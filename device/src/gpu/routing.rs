//! Who serves what: ours, a 2D resource, or a renderer of rutabaga.
//!
//! | thing | is served by |
//! |---|---|
//! | a context | whoever offers the capset that it was made with; of none, a renderer of 3D resources, else [`super::images`] |
//! | a blob of the host's memory, a transfer, a submission | whoever made the context |
//! | a 2D resource | [`super::images`]; it belongs to no context, and may be attached to any |
//! | a blob of the guest's own pages | ours; lent to other renderers when one of their contexts attaches it |
//!
//! Ids are one space: what one has is taken for all.

use hostblob_allocator::{BlobSpec, Error, Fence, Guest, Mapped, Mapping};
use hostblob_capset::WindowMode;
use hostblob_protocol::virtio_gpu::{CtrlHdr, FLAG_FENCE, FLAG_INFO_RING_IDX, MemEntry, blob_mem};

use super::Gpu;
use super::backing::{self, GuestPages};
use super::fault::Fault;
use super::renderers::Renderer;

/// Low byte of `virtio_gpu_ctx_create.context_init`.
const CONTEXT_INIT_CAPSET_ID_MASK: u32 = 0xff;

/// A context that Linux makes of its own accord, for a file that has asked for none.
const NO_CAPSET: u32 = 0;

/// What a response waits for.
#[derive(Debug, Default)]
pub(super) struct Until {
    pub(super) ours: Fence,
    /// A fence of another renderer.
    pub(super) theirs: Option<u64>,
}

impl Until {
    /// Whether that is over, as far as [`Gpu::process`] has looked.
    pub(super) fn is_over(&self, guest: &Guest, theirs: Option<&Renderer>) -> bool {
        let theirs = theirs.zip(self.theirs);
        guest.reached(&self.ours) && theirs.is_none_or(|(theirs, fence)| theirs.reached(fence))
    }
}

/// The timeline of a command that asks for a fence: a ring, or all of its context.
fn asked_ring(header: &CtrlHdr) -> Option<Option<u8>> {
    let flags = header.flags.get();
    let ring = (flags & FLAG_INFO_RING_IDX != 0).then_some(header.ring_idx);
    (flags & FLAG_FENCE != 0).then_some(ring)
}

impl Gpu {
    /// The renderer that offers a capset, unless it is ours.
    pub(super) fn renderer_of_capset(&mut self, capset: u32) -> Option<&mut Renderer> {
        self.renderer
            .as_mut()
            .filter(|theirs| theirs.serves(capset))
    }

    /// The renderer that has a context, unless it is ours.
    pub(super) fn renderer_of(&mut self, context: u32) -> Option<&mut Renderer> {
        self.renderer
            .as_mut()
            .filter(|theirs| theirs.has_context(context))
    }

    /// The renderer that made a resource, unless it is ours.
    pub(super) fn renderer_of_resource(&mut self, resource: u32) -> Option<&mut Renderer> {
        self.renderer
            .as_mut()
            .filter(|theirs| theirs.owns(resource))
    }

    /// Whether anybody has a resource of this id.
    pub(super) fn has_resource(&self, id: u32) -> bool {
        let theirs = self.renderer.as_ref();
        self.guest.has_resource(id)
            || self.images.has(id)
            || theirs.is_some_and(|theirs| theirs.owns(id))
    }

    /// The id of a new resource.
    pub(super) fn check_free(&self, id: u32) -> Result<(), Fault> {
        if id == 0 || self.has_resource(id) {
            return Err(Error::ResourceIdTaken(id).into());
        }
        Ok(())
    }

    pub(super) fn make_context(
        &mut self,
        id: u32,
        context_init: u32,
        name: String,
    ) -> Result<(), Fault> {
        if self.check_context(id).is_ok() {
            return Err(Error::ContextIdTaken(id).into());
        }
        let capset = context_init & CONTEXT_INIT_CAPSET_ID_MASK;
        if capset == NO_CAPSET {
            return match self.renderer.as_mut().filter(|theirs| theirs.has_3d()) {
                Some(theirs) => theirs.create_context(id, context_init, capset, name),
                None => self.images.create_context(id),
            };
        }
        if capset == self.capset_id {
            return Ok(self.guest.create_context(id, &name)?);
        }
        let theirs = self.renderer_of_capset(capset).ok_or(Fault::Field {
            field: "context_init",
            value: capset.into(),
            expected: "the id of a capset that GET_CAPSET_INFO names",
        })?;
        theirs.create_context(id, context_init, capset, name)
    }

    pub(super) fn destroy_context(&mut self, id: u32) -> Result<(), Fault> {
        self.refusals.forget(id);
        if self.images.destroy_context(id) {
            return Ok(());
        }
        match self.renderer_of(id) {
            Some(theirs) => theirs.destroy_context(id),
            None => Ok(self.guest.destroy_context(id)?),
        }
    }

    pub(super) fn attach_resource(&mut self, context: u32, resource: u32) -> Result<(), Fault> {
        if self.is_loose(context, resource) {
            return self.check_pair(context, resource);
        }
        let theirs_context = self.renderer_of(context).is_some();
        let Some(theirs) = self.renderer.as_mut().filter(|_| theirs_context) else {
            return Ok(self.guest.attach_resource(context, resource)?);
        };
        if !theirs.owns(resource) {
            if !self.guest.has_resource(resource) {
                return Err(Error::UnknownResource(resource).into());
            }
            let pieces = self.guest.guest_pieces(resource).ok_or(Fault::Field {
                field: "resource_id",
                value: resource.into(),
                expected: "a resource of the same renderer, or pages of the guest",
            })?;
            theirs.lend(resource, pieces)?;
        }
        theirs.attach(context, resource)
    }

    pub(super) fn detach_resource(&mut self, context: u32, resource: u32) -> Result<(), Fault> {
        if self.is_loose(context, resource) {
            return self.check_pair(context, resource);
        }
        match self.renderer_of(context) {
            Some(theirs) => theirs.detach(context, resource),
            None => Ok(self.guest.detach_resource(context, resource)?),
        }
    }

    /// Whether nothing comes of attaching one to the other: a 2D resource belongs to no context, and a context of no capset uses nothing.
    fn is_loose(&self, context: u32, resource: u32) -> bool {
        self.images.has(resource) || self.images.has_context(context)
    }

    fn check_pair(&self, context: u32, resource: u32) -> Result<(), Fault> {
        self.check_context(context)?;
        if !self.has_resource(resource) {
            return Err(Error::UnknownResource(resource).into());
        }
        Ok(())
    }

    /// Whether anybody has a context of this id.
    pub(super) fn check_context(&self, id: u32) -> Result<(), Fault> {
        let theirs = self.renderer.as_ref();
        let known = self.guest.has_context(id)
            || self.images.has_context(id)
            || theirs.is_some_and(|theirs| theirs.has_context(id));
        if known {
            Ok(())
        } else {
            Err(Error::UnknownContext(id).into())
        }
    }

    pub(super) fn make_blob(
        &mut self,
        context: u32,
        spec: &BlobSpec,
        entries: Option<Vec<MemEntry>>,
        pages: &dyn GuestPages,
    ) -> Result<(), Fault> {
        self.check_free(spec.resource_id)?;
        self.backings
            .check_room(entries.as_deref().unwrap_or_default())?;
        let pieces = entries.as_ref();
        let pieces = pieces.map(|entries| backing::pieces(entries, pages));
        let pieces = pieces.transpose()?;
        match self.renderer_of(context) {
            Some(theirs) if spec.blob_mem != blob_mem::GUEST => {
                theirs.create_blob(context, spec, pieces.as_deref())?;
            }
            // Pages of the guest are nobody's.
            Some(_) => self.guest.create_blob(0, spec, pieces)?,
            None => self.guest.create_blob(context, spec, pieces)?,
        }
        if let Some(entries) = entries {
            self.backings.insert(spec.resource_id, entries);
        }
        Ok(())
    }

    pub(super) fn attach_pages(
        &mut self,
        resource: u32,
        entries: Vec<MemEntry>,
        pages: &dyn GuestPages,
    ) -> Result<(), Fault> {
        if self.images.has(resource) {
            return self.images.attach_backing(resource, entries, pages);
        }
        self.backings.check_room(&entries)?;
        let pieces = backing::pieces(&entries, pages)?;
        match self.renderer_of_resource(resource) {
            Some(theirs) => theirs.attach_backing(resource, &pieces)?,
            None => self.guest.attach_backing(resource, pieces)?,
        }
        self.backings.insert(resource, entries);
        Ok(())
    }

    /// The guest has its pages back when the fence is reached.
    pub(super) fn detach_backing(&mut self, resource: u32) -> Result<Fence, Fault> {
        if self.images.has(resource) {
            self.images.detach_backing(resource)?;
            return Ok(Fence::default());
        }
        let fence = match self.renderer_of_resource(resource) {
            Some(theirs) => {
                theirs.detach_backing(resource)?;
                Fence::default()
            }
            None => {
                let fence = self.guest.detach_backing(resource)?;
                self.take_back(resource);
                fence
            }
        };
        self.backings.remove(resource);
        Ok(fence)
    }

    /// Pages of the guest that were lent are lent no longer.
    fn take_back(&mut self, resource: u32) {
        if let Some(theirs) = &mut self.renderer
            && theirs.has_resource(resource)
            && let Err(fault) = theirs.unref(resource)
        {
            let line = format_args!("resource {resource} was lent, and is taken back: {fault}");
            self.refusals.warn(None, line);
        }
    }

    /// Where it is ours the end is reached with the fence.
    pub(super) fn unref(&mut self, resource: u32) -> Result<Fence, Fault> {
        let fence = if self.images.has(resource) {
            self.images.unref(resource);
            Fence::default()
        } else if let Some(theirs) = self.renderer_of_resource(resource) {
            theirs.unref(resource)?;
            Fence::default()
        } else {
            let fence = self.guest.unref(resource)?;
            self.take_back(resource);
            fence
        };
        self.backings.remove(resource);
        Ok(fence)
    }

    pub(super) fn map_resource(&mut self, resource: u32, offset: u64) -> Result<Mapped, Fault> {
        let on_demand = self.window_mode() == WindowMode::OnDemand;
        match self.renderer_of_resource(resource) {
            Some(_) if !on_demand => Err(Fault::NotMapped(
                "it is memory of another renderer: those are mapped with --window-mode on-demand (and --transport vhost-user)"
                    .to_owned(),
            )),
            Some(theirs) => Ok(theirs.map_blob(resource, offset)?),
            None => Ok(self.guest.map_blob(resource, offset)?),
        }
    }

    pub(super) fn unmap_resource(&mut self, resource: u32) -> Result<(), Fault> {
        match self.renderer_of_resource(resource) {
            Some(theirs) => theirs.unmap_blob(resource)?,
            None => self.guest.unmap_blob(resource)?,
        }
        Ok(())
    }

    /// What the guest reaches where a blob is mapped, if somebody has to know.
    pub(super) fn mapping(&self, resource: u32) -> Option<Mapping> {
        match self.window_mode() {
            WindowMode::Premapped => None,
            WindowMode::OnDemand => {
                let theirs = self.renderer.as_ref();
                let theirs = theirs.and_then(|theirs| theirs.mapping(resource));
                theirs.or_else(|| self.guest.mapping(resource))
            }
        }
    }

    /// The VMM has changed the guest's memory.
    pub(super) fn change_pages(&mut self, pages: &dyn GuestPages) {
        let log = &mut self.refusals;
        self.backings.changed(&mut self.guest, pages, log);
        self.images.pages_changed(pages, log);
        let Some(theirs) = &mut self.renderer else {
            return;
        };
        for (resource, entries) in self.backings.iter() {
            if theirs.owns(resource) {
                let pieces = backing::pieces(entries, pages).ok();
                theirs.pages_changed(resource, pieces.as_deref(), log);
            } else if theirs.has_resource(resource) {
                theirs.pages_changed(resource, self.guest.guest_pieces(resource), log);
            }
        }
    }

    /// Whether there can be the fence that a command asks for: it is refused before it does anything otherwise.
    pub(super) fn check_fence(&self, header: &CtrlHdr) -> Result<(), Fault> {
        let context = header.ctx_id.get();
        let theirs = self.renderer.as_ref();
        match (asked_ring(header), theirs) {
            (Some(ring), Some(theirs)) if theirs.has_context(context) => {
                theirs.is_awaited(context, ring).map(drop)
            }
            _ => Ok(()),
        }
    }

    /// What it asks to wait for of another renderer, when it was executed. It cannot be refused any more: where the renderer makes no fence after
    /// all, the response waits for none.
    pub(super) fn their_fence(&mut self, header: &CtrlHdr) -> Option<u64> {
        let context = header.ctx_id.get();
        let (ring, theirs) = (asked_ring(header)?, self.renderer.as_mut()?);
        let fence = if theirs.has_context(context) {
            theirs.fence(context, ring)
        } else if context == 0 && theirs.has_3d() {
            // Of the guest as a whole.
            theirs.fence(0, None)
        } else {
            Ok(None)
        };
        fence.unwrap_or_else(|fault| {
            let known = self.check_context(context).is_ok().then_some(context);
            let line = format_args!("context {context}: the response waits for no fence: {fault}");
            self.refusals.warn(known, line);
            None
        })
    }

    /// What a refused command waits for of another renderer: what was begun before it on its timeline. Linux takes a fence that is reached for all
    /// before it, so the refusal must not come first. Nothing new is begun.
    pub(super) fn their_last_fence(&self, header: &CtrlHdr) -> Option<u64> {
        let (ring, theirs) = (asked_ring(header)?, self.renderer.as_ref()?);
        theirs.last_fence(header.ctx_id.get(), ring)
    }

    /// What it asks to wait for of ours.
    pub(super) fn our_fence(&self, header: &CtrlHdr) -> Fence {
        let fence = asked_ring(header).map(|ring| self.guest.fence(header.ctx_id.get(), ring));
        fence.unwrap_or_default()
    }

    /// Looks at what has finished.
    pub(super) fn process(&mut self) {
        self.guest.process_completions();
        if let Some(theirs) = &mut self.renderer {
            theirs.process();
        }
        self.images.serve_exports();
    }
}
