//! Contexts and resources of rutabaga_gfx, as it is: 2D, cross-domain, and what else it was built with.
//!
//! It trusts its caller, and a VMM's calls are a guest's. So what it would read out of bounds, or allocate without end, is refused here,
//! and a panic in it ends the call alone.

use std::collections::{HashMap, HashSet};
use std::io::IoSliceMut;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use libc::iovec;
use rutabaga_gfx::{
    Resource3DInfo, ResourceCreate3D, ResourceCreateBlob, Rutabaga, RutabagaBuilder,
    RutabagaComponentType, RutabagaDescriptor, RutabagaError, RutabagaFence, RutabagaFenceHandler,
    RutabagaFromRawDescriptor, RutabagaHandle, RutabagaImportData, RutabagaIntoRawDescriptor,
    RutabagaIovec, RutabagaMagmaHandle, RutabagaPath, RutabagaResult, RutabagaWsi, Transfer3D,
};

use crate::error::{Error, Result};
use crate::types::{
    rutabaga_create_3d, rutabaga_create_blob, rutabaga_fence, rutabaga_import_data,
    rutabaga_mapping, rutabaga_transfer,
};

/// All formats of virtio-gpu have as many bytes per pixel.
const PIXEL: u32 = 4;

/// What the VMM wants of rutabaga_gfx.
#[derive(Debug, Default)]
pub(crate) struct Wanted {
    pub(crate) capset_mask: u64,
    /// Type and path.
    pub(crate) channels: Vec<(u32, PathBuf)>,
    pub(crate) renderer_features: Option<String>,
}

/// Everything of theirs.
pub(crate) struct Theirs {
    rutabaga: Rutabaga,
    contexts: HashSet<u32>,
    /// It has 2D resources and no contexts. Linux makes one for its console all the same, where there is any capset, and attaches
    /// its 2D resources to it: such a context is a name here.
    is_2d: bool,
    /// Bytes that rutabaga_gfx allocated for resources.
    bytes: HashMap<u32, u64>,
    /// Bytes that 2D resources may have.
    limit: u64,
}

// SAFETY: a `Rutabaga` without C renderers is maps, file descriptors and `Arc<Mutex<_>>`; its traits merely do not say so, and its worker
// threads share no more than the latter. It is used under one lock. C renderers may want their calls to come from one thread, and the C
// interface asks its caller for that.
unsafe impl Send for Theirs {}

impl Theirs {
    /// `signalled` is called, from any thread, when a fence is reached.
    pub(crate) fn new(
        wanted: Wanted,
        limit: u64,
        signalled: impl Fn(&rutabaga_fence) + Send + Sync + 'static,
    ) -> Result<Self> {
        let handler = RutabagaFenceHandler::new(move |fence: RutabagaFence| {
            signalled(&rutabaga_fence {
                flags: fence.flags,
                fence_id: fence.fence_id,
                ctx_id: fence.ctx_id,
                ring_idx: fence.ring_idx.into(),
            });
        });
        let component = match wanted.capset_mask {
            0 => RutabagaComponentType::Rutabaga2D,
            _ => RutabagaComponentType::NoneSelected,
        };
        let is_2d = component == RutabagaComponentType::Rutabaga2D;
        let path = |(path_type, path)| RutabagaPath { path, path_type };
        let paths: Vec<_> = wanted.channels.into_iter().map(path).collect();
        let builder = RutabagaBuilder::new(wanted.capset_mask, handler)
            .set_default_component(component)
            .set_use_external_blob(false)
            .set_use_egl(true)
            .set_wsi(RutabagaWsi::Surfaceless)
            .set_rutabaga_paths((!paths.is_empty()).then_some(paths))
            .set_renderer_features(wanted.renderer_features);
        Ok(Self {
            rutabaga: guarded(|| builder.build())?,
            contexts: HashSet::new(),
            is_2d,
            bytes: HashMap::new(),
            limit,
        })
    }

    pub(crate) fn capsets(&self) -> u32 {
        self.rutabaga.get_num_capsets()
    }

    /// Id, version and size.
    pub(crate) fn capset_info(&self, index: u32) -> Result<(u32, u32, u32)> {
        guarded(|| self.rutabaga.get_capset_info(index))
    }

    pub(crate) fn capset(&self, id: u32, version: u32) -> Result<Vec<u8>> {
        guarded(|| self.rutabaga.get_capset(id, version))
    }

    pub(crate) fn has_context(&self, id: u32) -> bool {
        self.contexts.contains(&id)
    }

    pub(crate) fn has_resource(&self, id: u32) -> bool {
        let info = self.rutabaga.resource3d_info(id);
        !matches!(info, Err(RutabagaError::InvalidResourceId))
    }

    pub(crate) fn create_context(&mut self, id: u32, init: u32, name: Option<&str>) -> Result<()> {
        if !self.is_2d || init != 0 {
            guarded(|| self.rutabaga.create_context(id, init, name))?;
        }
        self.contexts.insert(id);
        Ok(())
    }

    pub(crate) fn destroy_context(&mut self, id: u32) -> Result<()> {
        if self.contexts.remove(&id) && self.is_2d {
            return Ok(());
        }
        guarded(|| self.rutabaga.destroy_context(id))
    }

    pub(crate) fn attach(&mut self, context: u32, resource: u32) -> Result<()> {
        if self.is_name(context, resource) {
            return Ok(());
        }
        guarded(|| self.rutabaga.context_attach_resource(context, resource))
    }

    pub(crate) fn detach(&mut self, context: u32, resource: u32) -> Result<()> {
        if self.is_name(context, resource) {
            return Ok(());
        }
        guarded(|| self.rutabaga.context_detach_resource(context, resource))
    }

    /// Whether nothing is to be done to attach: 2D resources are there for all.
    fn is_name(&self, context: u32, resource: u32) -> bool {
        self.is_2d && self.has_context(context) && self.has_resource(resource)
    }

    pub(crate) fn submit(
        &mut self,
        context: u32,
        command: &mut [u8],
        fences: &[u64],
    ) -> Result<()> {
        guarded(|| self.rutabaga.submit_command(context, command, fences))
    }

    pub(crate) fn create_fence(&mut self, fence: &rutabaga_fence) -> Result<()> {
        let fence = RutabagaFence {
            flags: fence.flags,
            fence_id: fence.fence_id,
            ctx_id: fence.ctx_id,
            ring_idx: u8::try_from(fence.ring_idx).unwrap_or(u8::MAX),
        };
        guarded(|| self.rutabaga.create_fence(fence))
    }

    pub(crate) fn create_3d(&mut self, resource: u32, asked: &rutabaga_create_3d) -> Result<()> {
        let bytes = (u64::from(asked.width) * u64::from(asked.height)).saturating_mul(PIXEL.into());
        let used = self.bytes.values().sum::<u64>();
        // It counts the bytes of a row in 32 bits.
        let row_fits = asked.width.checked_mul(PIXEL).is_some();
        let sum = used.checked_add(bytes).filter(|sum| *sum <= self.limit);
        if !row_fits || sum.is_none() {
            return Err(Error::Limit {
                asked: bytes,
                used,
                limit: self.limit,
            });
        }
        let create = ResourceCreate3D {
            target: asked.target,
            format: asked.format,
            bind: asked.bind,
            width: asked.width,
            height: asked.height,
            depth: asked.depth,
            array_size: asked.array_size,
            last_level: asked.last_level,
            nr_samples: asked.nr_samples,
            flags: asked.flags,
        };
        guarded(|| self.rutabaga.resource_create_3d(resource, create))?;
        self.bytes.insert(resource, bytes);
        Ok(())
    }

    pub(crate) fn create_blob(
        &mut self,
        context: u32,
        resource: u32,
        blob: &rutabaga_create_blob,
        pages: Option<&[iovec]>,
        handle: Option<(OwnedFd, u32)>,
    ) -> Result<()> {
        let create = ResourceCreateBlob {
            blob_mem: blob.blob_mem,
            blob_flags: blob.blob_flags,
            blob_id: blob.blob_id,
            size: blob.size,
        };
        let pages = pages.map(vectors);
        let handle = handle.map(imported);
        guarded(|| {
            self.rutabaga
                .resource_create_blob(context, resource, create, pages, handle)
        })
    }

    pub(crate) fn import(
        &mut self,
        resource: u32,
        handle: (OwnedFd, u32),
        data: &rutabaga_import_data,
    ) -> Result<()> {
        let info = &data.info_3d;
        let data = RutabagaImportData {
            flags: data.flags,
            info_3d: Resource3DInfo {
                width: info.width,
                height: info.height,
                drm_fourcc: info.drm_fourcc,
                strides: info.strides,
                offsets: info.offsets,
                modifier: info.modifier,
            },
        };
        let handle = imported(handle);
        guarded(|| self.rutabaga.resource_import(resource, handle, data))
    }

    pub(crate) fn attach_backing(&mut self, resource: u32, pages: &[iovec]) -> Result<()> {
        guarded(|| self.rutabaga.attach_backing(resource, vectors(pages)))
    }

    pub(crate) fn detach_backing(&mut self, resource: u32) -> Result<()> {
        guarded(|| self.rutabaga.detach_backing(resource))
    }

    pub(crate) fn unref(&mut self, resource: u32) -> Result<()> {
        self.bytes.remove(&resource);
        guarded(|| self.rutabaga.unref_resource(resource))
    }

    pub(crate) fn transfer_write(
        &mut self,
        context: u32,
        resource: u32,
        asked: &rutabaga_transfer,
    ) -> Result<()> {
        guarded(|| {
            self.rutabaga
                .transfer_write(context, resource, transfer(asked), None)
        })
    }

    pub(crate) fn transfer_read(
        &mut self,
        context: u32,
        resource: u32,
        asked: &rutabaga_transfer,
        to: Option<&mut [u8]>,
    ) -> Result<()> {
        let to = to.map(IoSliceMut::new);
        guarded(|| {
            self.rutabaga
                .transfer_read(context, resource, transfer(asked), to)
        })
    }

    pub(crate) fn export(&mut self, resource: u32) -> Result<(OwnedFd, u32)> {
        guarded(|| {
            let handle = RutabagaMagmaHandle::try_from(self.rutabaga.export_blob(resource)?)?;
            let descriptor = handle.os_handle.into_raw_descriptor();
            // SAFETY: the handle has just given up its descriptor, which is nobody else's.
            let descriptor = unsafe { OwnedFd::from_raw_fd(descriptor) };
            Ok((descriptor, handle.handle_type))
        })
    }

    pub(crate) fn map_info(&self, resource: u32) -> Result<u32> {
        guarded(|| self.rutabaga.map_info(resource))
    }

    pub(crate) fn map(&mut self, resource: u32) -> Result<rutabaga_mapping> {
        let mapping = guarded(|| self.rutabaga.map(resource))?;
        Ok(rutabaga_mapping {
            ptr: std::ptr::with_exposed_provenance_mut(
                usize::try_from(mapping.ptr).unwrap_or_default(),
            ),
            size: mapping.size,
        })
    }

    pub(crate) fn unmap(&mut self, resource: u32) -> Result<()> {
        guarded(|| self.rutabaga.unmap(resource))
    }

    pub(crate) fn snapshot(&self, folder: &Path) -> Result<()> {
        guarded(|| self.rutabaga.snapshot(folder))
    }

    /// Nobody says how many bytes the resources have that come back: they are not counted.
    pub(crate) fn restore(&mut self, folder: &Path) -> Result<()> {
        guarded(|| self.rutabaga.restore(folder))
    }
}

/// A call into rutabaga_gfx. It asserts on what a guest sends: on a shareable fence of a cross-domain context, for one.
fn guarded<T>(call: impl FnOnce() -> RutabagaResult<T>) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(done) => Ok(done?),
        Err(_) => Err(Error::Panic),
    }
}

fn vectors(pages: &[iovec]) -> Vec<RutabagaIovec> {
    let vector = |page: &iovec| RutabagaIovec {
        base: page.iov_base,
        len: page.iov_len,
    };
    pages.iter().map(vector).collect()
}

fn imported((descriptor, handle_type): (OwnedFd, u32)) -> RutabagaHandle {
    let handle = RutabagaMagmaHandle {
        // SAFETY: the descriptor is given up here, to the one that takes it.
        os_handle: unsafe { RutabagaDescriptor::from_raw_descriptor(descriptor.into_raw_fd()) },
        handle_type,
    };
    handle.into()
}

fn transfer(asked: &rutabaga_transfer) -> Transfer3D {
    Transfer3D {
        x: asked.x,
        y: asked.y,
        z: asked.z,
        w: asked.w,
        h: asked.h,
        d: asked.d,
        level: asked.level,
        stride: asked.stride,
        layer_stride: asked.layer_stride,
        offset: asked.offset,
    }
}
