//! The commands of contexts and resources that are not ours. Ids that somebody else has were refused before.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use hostblob_allocator::provider::{Elsewhere, Piece};
use hostblob_allocator::window::Span;
use hostblob_allocator::{BlobSpec, Error, Mapped, Mapping};
use hostblob_protocol::virtio_gpu::{MAX_RINGS, blob_flag, blob_mem, map_cache};
use rustix::fs::{MemfdFlags, OFlags, SealFlags, SeekFrom};
use rutabaga_gfx::{
    RUTABAGA_CAPSET_CROSS_DOMAIN, ResourceCreate3D, ResourceCreateBlob, RutabagaHandle,
    RutabagaIntoRawDescriptor, RutabagaResult, Transfer3D,
};

use super::pages::Pages;
use super::stream::Stream;
use super::thread::{State, Thread};
use super::{Blob, Context, MAX_CONTEXTS, MAX_RESOURCES, Renderer, Resource, descriptors_left};
use crate::gpu::fault::Fault;

/// Descriptors that a cross-domain context has: its connection, an epoll, two eventfds with a copy of each.
const CONTEXT_DESCRIPTORS: u32 = 6;

/// Bytes of one step of a copy.
const COPY_CHUNK: usize = 64 << 10;

/// Bits of `map_info` that the guest is told: how it is cached.
const CACHE_MASK: u32 = 0x0f;

/// Ring of a cross-domain context on which its channel answers. Its ring 0 is for queries, which are answered at once.
const CHANNEL_RING: u8 = 1;

/// Rings of a cross-domain context.
const CROSS_DOMAIN_RINGS: u32 = 2;

impl Renderer {
    /// Calls rutabaga, if it is there. One that is lost by it is not called again.
    fn call<R: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut State) -> RutabagaResult<R> + Send + 'static,
    ) -> Result<R, Fault> {
        let Some(thread) = &self.thread else {
            return Err(Fault::RendererLost("it was lost before"));
        };
        let result = thread.call(work);
        if let Err(Fault::RendererLost(reason)) = result {
            self.lose(reason);
        }
        result
    }

    /// GET_CAPSET.
    pub(in crate::gpu) fn capset(&mut self, id: u32, version: u32) -> Result<Vec<u8>, Fault> {
        self.call(move |state| state.rutabaga.get_capset(id, version))
    }

    /// CTX_CREATE of one of the capsets here.
    pub(in crate::gpu) fn create_context(
        &mut self,
        id: u32,
        context_init: u32,
        capset: u32,
        name: String,
    ) -> Result<(), Fault> {
        if id == 0 || self.contexts.contains_key(&id) {
            return Err(Error::ContextIdTaken(id).into());
        }
        if self.contexts.len() >= MAX_CONTEXTS {
            return Err(Error::TooManyContexts(MAX_CONTEXTS).into());
        }
        descriptors_left(CONTEXT_DESCRIPTORS)?;
        self.call(move |state| state.rutabaga.create_context(id, context_init, Some(&name)))?;
        let context = Context {
            quota: self.host.context_quota(),
            stream: (capset == RUTABAGA_CAPSET_CROSS_DOMAIN).then(Stream::default),
        };
        self.contexts.insert(id, context);
        Ok(())
    }

    /// CTX_DESTROY. Who waits for its fences need not wait longer.
    pub(in crate::gpu) fn destroy_context(&mut self, id: u32) -> Result<(), Fault> {
        self.contexts.remove(&id).ok_or(Error::UnknownContext(id))?;
        self.fences.end_context(id);
        for resource in self.resources.values_mut() {
            resource.attached.remove(&id);
        }
        if self.thread.is_none() {
            return Ok(());
        }
        self.call(move |state| state.rutabaga.destroy_context(id))
    }

    /// CTX_ATTACH_RESOURCE of a resource that was made here, or lent.
    pub(in crate::gpu) fn attach(&mut self, context: u32, id: u32) -> Result<(), Fault> {
        self.context(context)?;
        let resource = self.resource_mut(id)?;
        if !resource.attached.insert(context) {
            return Ok(());
        }
        let attached = self.call(move |state| state.rutabaga.context_attach_resource(context, id));
        if attached.is_err()
            && let Ok(resource) = self.resource_mut(id)
        {
            resource.attached.remove(&context);
        }
        attached
    }

    /// CTX_DETACH_RESOURCE.
    pub(in crate::gpu) fn detach(&mut self, context: u32, id: u32) -> Result<(), Fault> {
        self.context(context)?;
        if self.resource_mut(id)?.attached.remove(&context) {
            self.call(move |state| state.rutabaga.context_detach_resource(context, id))?;
        }
        Ok(())
    }

    /// Makes a blob of the guest's pages, which is nobody's, known here: a context of ours here is to use it.
    pub(in crate::gpu) fn lend(&mut self, id: u32, pieces: &[Piece]) -> Result<(), Fault> {
        if self.resources.contains_key(&id) {
            return Ok(());
        }
        self.room()?;
        let (pages, count) = self.map_pages(pieces)?;
        let spec = ResourceCreateBlob {
            blob_mem: blob_mem::GUEST,
            blob_flags: blob_flag::USE_MAPPABLE,
            blob_id: 0,
            size: pages.iovec().len as u64,
        };
        let mapped = Arc::clone(&pages);
        self.call(move |state| create_blob(state, 0, id, spec, Some(mapped)))?;
        self.insert(id, Some((pages, count)), None, None, true);
        Ok(())
    }

    /// SUBMIT_3D.
    pub(in crate::gpu) fn submit(&mut self, id: u32, data: &[u8]) -> Result<(), Fault> {
        let context = self.context(id)?;
        if let Some(stream) = context.stream {
            let (sent, needs) = stream.check(data)?;
            descriptors_left(needs.descriptors)?;
            // Before it is sent: what fails has been begun.
            self.context(id)?.stream = Some(sent);
        }
        let mut data = data.to_vec();
        self.call(move |state| state.rutabaga.submit_command(id, &mut data, &[]))
    }

    /// RESOURCE_CREATE_BLOB by one of the contexts here.
    pub(in crate::gpu) fn create_blob(
        &mut self,
        context: u32,
        spec: &BlobSpec,
        pieces: Option<&[Piece]>,
    ) -> Result<(), Fault> {
        let maker = self.context(context)?;
        let cross_domain = maker.stream.is_some();
        let quota = Arc::clone(&maker.quota);
        self.room()?;
        descriptors_left(1)?;
        let page = u64::from(self.host.capset().page_size);
        if spec.size == 0 || !spec.size.is_multiple_of(page) {
            return Err(Fault::Field {
                field: "size",
                value: spec.size,
                expected: "a multiple of the page size, not 0",
            });
        }
        if cross_domain && u32::try_from(spec.blob_id).is_err() {
            return Err(Fault::Field {
                field: "blob_id",
                value: spec.blob_id,
                expected: "an id of the context, 32 bits",
            });
        }
        if pieces.is_some() == (spec.blob_mem == blob_mem::HOST3D) {
            return Err(Fault::Field {
                field: "nr_entries",
                value: pieces.map_or(0, <[Piece]>::len) as u64,
                expected: "pages for a blob of guest pages, and none for others",
            });
        }
        let host_memory = spec.blob_mem != blob_mem::GUEST;
        let charged = if host_memory { spec.size } else { 0 };
        let charge = self.host.charge(&quota, charged).map_err(Error::from)?;
        let pages = pieces.map(|pieces| self.map_pages(pieces)).transpose()?;
        // A cross-domain blob is for others to have: rutabaga gives its only descriptor away otherwise.
        let shared = if cross_domain {
            blob_flag::USE_SHAREABLE
        } else {
            0
        };
        let asked = ResourceCreateBlob {
            blob_mem: spec.blob_mem,
            blob_flags: spec.blob_flags | shared,
            blob_id: spec.blob_id,
            size: spec.size,
        };
        let (id, mapped) = (spec.resource_id, pages.as_ref());
        let mapped = mapped.map(|(pages, _)| Arc::clone(pages));
        self.call(move |state| create_blob(state, context, id, asked, mapped))?;
        let blob = Blob {
            size: spec.size,
            mappable: host_memory && spec.blob_flags & blob_flag::USE_MAPPABLE != 0,
            mapped: None,
        };
        self.insert(id, pages, Some(blob), Some(charge), false);
        Ok(())
    }

    /// RESOURCE_CREATE_3D.
    pub(in crate::gpu) fn create_3d(
        &mut self,
        id: u32,
        asked: ResourceCreate3D,
    ) -> Result<(), Fault> {
        self.room()?;
        self.call(move |state| state.rutabaga.resource_create_3d(id, asked))?;
        self.insert(id, None, None, None, false);
        Ok(())
    }

    /// RESOURCE_ATTACH_BACKING.
    pub(in crate::gpu) fn attach_backing(
        &mut self,
        id: u32,
        pieces: &[Piece],
    ) -> Result<(), Fault> {
        if self.resource_mut(id)?.pages.is_some() {
            return Err(Error::HasBacking(id).into());
        }
        let (pages, count) = self.map_pages(pieces)?;
        let mapped = Arc::clone(&pages);
        self.call(move |state| {
            let attached = state.rutabaga.attach_backing(id, vec![mapped.iovec()]);
            state.pages.insert(id, mapped);
            attached
        })?;
        self.resource_mut(id)?.pages = Some((pages, count));
        Ok(())
    }

    /// RESOURCE_DETACH_BACKING.
    pub(in crate::gpu) fn detach_backing(&mut self, id: u32) -> Result<(), Fault> {
        let resource = self.resource_mut(id)?;
        let pages = resource.pages.take().ok_or(Error::NoBacking)?;
        let detached = self.call(move |state| {
            state.rutabaga.detach_backing(id)?;
            state.pages.remove(&id);
            Ok(())
        });
        if detached.is_err() {
            let _ = pages.0.replace(None);
        }
        detached
    }

    /// TRANSFER_TO_HOST_3D and TRANSFER_FROM_HOST_3D.
    pub(in crate::gpu) fn transfer(
        &mut self,
        context: u32,
        id: u32,
        to_host: bool,
        transfer: Transfer3D,
    ) -> Result<(), Fault> {
        self.resource_mut(id)?;
        self.call(move |state| {
            if to_host {
                state.rutabaga.transfer_write(context, id, transfer, None)
            } else {
                state.rutabaga.transfer_read(context, id, transfer, None)
            }
        })
    }

    /// RESOURCE_MAP_BLOB: the guest reaches the blob's file in the window, once the VMM maps it there.
    pub(in crate::gpu) fn map_blob(&mut self, id: u32, offset: u64) -> Result<Mapped, Error> {
        let page = u64::from(self.host.capset().page_size);
        let resource = self.resources.get(&id).ok_or(Error::UnknownResource(id))?;
        let blob = resource.blob.as_ref();
        let blob = blob.filter(|blob| blob.mappable).ok_or(Error::NotMappable(
            "it is no blob of the host's memory with USE_MAPPABLE",
        ))?;
        if blob.mapped.is_some() {
            return Err(Error::AlreadyMapped(id));
        }
        if !offset.is_multiple_of(page) {
            return Err(Error::Argument {
                field: "offset",
                value: offset,
                expected: "a multiple of the page size",
            });
        }
        let size = blob.size;
        let span = Span::new(offset, size, self.host.capset().window_size)?;
        let exported = self.call(move |state| {
            let handle = state.rutabaga.export_blob(id)?;
            Ok((handle, state.rutabaga.map_info(id)?))
        });
        let (handle, map_info) =
            exported.map_err(|_| Error::NotMappable("its renderer gives no descriptor of it"))?;
        let file = descriptor(handle)
            .map(File::from)
            .ok_or(Error::NotMappable("its renderer gives no descriptor of it"))?;
        // What is beyond the last page of its file would be a fault of the VMM.
        let has = rustix::fs::seek(&file, SeekFrom::End(0)).unwrap_or(0);
        if has.next_multiple_of(page) < size {
            return Err(Error::NotMappable("its memory is smaller than the blob"));
        }
        let file = if is_writable(&file) {
            file
        } else {
            copy(&file, size).map_err(|error| Error::Parking(error.to_string()))?
        };
        if let Ok(resource) = self.resource_mut(id)
            && let Some(blob) = &mut resource.blob
        {
            let elsewhere = Some(Elsewhere::File(Arc::new(file)));
            blob.mapped = Some(Mapping { span, elsewhere });
        }
        let map_info = match map_info & CACHE_MASK {
            0 => map_cache::CACHED,
            cache => cache,
        };
        Ok(Mapped { offset, map_info })
    }

    /// RESOURCE_UNMAP_BLOB.
    pub(in crate::gpu) fn unmap_blob(&mut self, id: u32) -> Result<(), Error> {
        let resource = self.resources.get_mut(&id);
        let resource = resource.ok_or(Error::UnknownResource(id))?;
        let mapped = resource.blob.as_mut().and_then(|blob| blob.mapped.take());
        mapped.map(drop).ok_or(Error::NotMapped(id))
    }

    /// RESOURCE_UNREF. When this returns nobody here uses pages of the guest any more.
    pub(in crate::gpu) fn unref(&mut self, id: u32) -> Result<(), Fault> {
        let resource = self
            .resources
            .remove(&id)
            .ok_or(Error::UnknownResource(id))?;
        if self.thread.is_none() {
            return Ok(());
        }
        let attached = resource.attached.clone();
        let gone = self.call(move |state| {
            detach_all(state, &attached, id);
            state.rutabaga.unref_resource(id)?;
            state.pages.remove(&id);
            Ok(())
        });
        if gone.is_err() {
            resource.give_pages_back();
        }
        gone
    }

    /// Whether a ring of a context, or all of it, is ever waited for. Refused where there is no such ring.
    pub(in crate::gpu) fn is_awaited(&self, context: u32, ring: Option<u8>) -> Result<bool, Fault> {
        let stream = self.contexts.get(&context).and_then(|found| found.stream);
        let (expected, rings) = match stream {
            Some(_) => ("0 or 1 of a cross-domain context", CROSS_DOMAIN_RINGS),
            None => ("less than 64", MAX_RINGS),
        };
        if let Some(ring) = ring.filter(|ring| u32::from(*ring) >= rings) {
            return Err(Fault::Field {
                field: "ring_idx",
                value: ring.into(),
                expected,
            });
        }
        // Without a channel nobody would ever reach it.
        Ok(stream.is_none_or(|stream| ring == Some(CHANNEL_RING) && stream.has_channel))
    }

    /// The last fence of a ring of a context, or of all of rutabaga, that was not reached.
    pub(in crate::gpu) fn last_fence(&self, context: u32, ring: Option<u8>) -> Option<u64> {
        self.fences.last(context, ring)
    }

    /// The fence of what was submitted so far to a ring of a context, or to all of rutabaga; `None` where there is nothing to wait for.
    pub(in crate::gpu) fn fence(
        &mut self,
        context: u32,
        ring: Option<u8>,
    ) -> Result<Option<u64>, Fault> {
        let Some(number) = self.thread.as_ref().map(Thread::next_fence) else {
            return Ok(None);
        };
        if !self.is_awaited(context, ring)? {
            return Ok(None);
        }
        let fence = self.fences.add(number, context, ring);
        let made = self.call(move |state| state.rutabaga.create_fence(fence));
        if let Err(fault) = made {
            self.fences.remove(fence.fence_id);
            return Err(fault);
        }
        self.process();
        Ok(Some(fence.fence_id))
    }

    /// Looks at fences that were reached.
    pub(in crate::gpu) fn process(&mut self) {
        if let Some(thread) = &self.thread {
            for fence in thread.reached.try_iter() {
                self.fences.reach(&fence);
            }
        }
    }

    /// Whether it was, as far as [`Renderer::process`] has looked.
    pub(in crate::gpu) fn reached(&self, fence: u64) -> bool {
        self.fences.is_reached(fence)
    }

    fn context(&mut self, id: u32) -> Result<&mut Context, Fault> {
        let context = self.contexts.get_mut(&id);
        context.ok_or_else(|| Error::UnknownContext(id).into())
    }

    fn resource_mut(&mut self, id: u32) -> Result<&mut Resource, Fault> {
        let resource = self.resources.get_mut(&id);
        resource.ok_or_else(|| Error::UnknownResource(id).into())
    }

    fn room(&self) -> Result<(), Fault> {
        if self.resources.len() >= MAX_RESOURCES {
            return Err(Fault::Limit("resources are here", MAX_RESOURCES));
        }
        Ok(())
    }

    fn insert(
        &mut self,
        id: u32,
        pages: Option<(Arc<Pages>, usize)>,
        blob: Option<Blob>,
        charge: Option<hostblob_allocator::quota::Charge>,
        lent: bool,
    ) {
        let resource = Resource {
            lent,
            pages,
            attached: BTreeSet::new(),
            blob,
            _charge: charge,
        };
        self.resources.insert(id, resource);
    }
}

#[cfg(test)]
impl Renderer {
    /// A call that does what rutabaga might.
    pub(in crate::gpu) fn call_badly(&mut self, work: impl FnOnce() + Send + 'static) {
        let call = self.call(move |_| {
            work();
            Ok(())
        });
        assert!(matches!(call, Err(Fault::RendererLost(_))));
    }
}

/// The pages are kept as long as rutabaga may have their addresses.
fn create_blob(
    state: &mut State,
    context: u32,
    id: u32,
    asked: ResourceCreateBlob,
    pages: Option<Arc<Pages>>,
) -> RutabagaResult<()> {
    let iovecs = pages.as_ref().map(|pages| vec![pages.iovec()]);
    state
        .rutabaga
        .resource_create_blob(context, id, asked, iovecs, None)?;
    if let Some(pages) = pages {
        state.pages.insert(id, pages);
    }
    Ok(())
}

/// A context keeps what is attached to it, pages of the guest too, whatever becomes of the resource.
fn detach_all(state: &mut State, contexts: &BTreeSet<u32>, id: u32) {
    for context in contexts {
        // It knows both.
        let _ = state.rutabaga.context_detach_resource(*context, id);
    }
}

/// Whether a VMM can map it: they map for writing.
fn is_writable(file: &File) -> bool {
    let access = rustix::fs::fcntl_getfl(file).map(|flags| flags & OFlags::ACCMODE);
    // What knows no seals has none.
    let seals = rustix::fs::fcntl_get_seals(file).unwrap_or(SealFlags::empty());
    access == Ok(OFlags::RDWR) && !seals.intersects(SealFlags::WRITE | SealFlags::FUTURE_WRITE)
}

/// The bytes of memory that is for reading, a keymap of the compositor's, say. The guest cannot write the compositor's, and its own nobody sees.
fn copy(file: &File, size: u64) -> std::io::Result<File> {
    let copy = rustix::fs::memfd_create("hostblob-copy", MemfdFlags::CLOEXEC)?;
    let copy = File::from(copy);
    copy.set_len(size)?;
    let mut buffer = vec![0; COPY_CHUNK];
    let mut at = 0;
    while at < size {
        let chunk = usize::try_from(size - at).map_or(COPY_CHUNK, |left| left.min(COPY_CHUNK));
        let read = file.read_at(buffer.get_mut(..chunk).unwrap_or_default(), at)?;
        if read == 0 {
            break;
        }
        copy.write_all_at(buffer.get(..read).unwrap_or_default(), at)?;
        at += read as u64;
    }
    Ok(copy)
}

fn descriptor(handle: RutabagaHandle) -> Option<OwnedFd> {
    let RutabagaHandle::MagmaGpuHandle(handle) = handle else {
        return None;
    };
    let raw = handle.os_handle.into_raw_descriptor();
    // SAFETY: it was owned by the handle, which has just given it up.
    Some(unsafe { OwnedFd::from_raw_fd(raw) })
}
