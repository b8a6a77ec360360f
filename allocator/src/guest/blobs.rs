//! The blob commands of virtio-gpu (virtio 1.3, 5.7.6.8): create, map, unmap, unref, attach, detach.
//!
//! Each validates everything, then changes state.

use std::sync::Arc;

use hostblob_protocol::request::CreateFlags;
use hostblob_protocol::virtio_gpu::{blob_flag, blob_mem};

use super::{Fence, Guest};
use crate::Error;
use crate::blob::{Binding, Blob, Home, Memory, MemoryKey};
use crate::context::{ContextRef, map_info};
use crate::provider::{Elsewhere, Piece, Placement};
use crate::window::Span;

/// Resources that one guest may have: bounds the table that a guest can grow.
pub const MAX_RESOURCES: usize = 1 << 18;

/// RESOURCE_CREATE_BLOB, decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlobSpec {
    /// The name of the resource: not 0, not in use.
    pub resource_id: u32,
    /// `VIRTIO_GPU_BLOB_MEM_*`.
    pub blob_mem: u32,
    /// `VIRTIO_GPU_BLOB_FLAG_*`.
    pub blob_flags: u32,
    /// A client id of the context, or 0 for plain memory.
    pub blob_id: u64,
    /// Bytes.
    pub size: u64,
}

impl BlobSpec {
    /// What the blob's flags say of sharing.
    pub(super) fn shareable(&self) -> CreateFlags {
        let shareable = blob_flag::USE_SHAREABLE | blob_flag::USE_CROSS_DEVICE;
        if self.blob_flags & shareable == 0 {
            CreateFlags::empty()
        } else {
            CreateFlags::SHAREABLE
        }
    }
}

/// Where a blob was mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapped {
    /// Bytes from the beginning of the window.
    pub offset: u64,
    /// `VIRTIO_GPU_MAP_CACHE_*`.
    pub map_info: u32,
}

/// What the guest reaches at the place of a mapped blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    /// Where in the window.
    pub span: Span,
    /// What is there, from its beginning on: memory of a host process, or of the device. `None`: the window's own bytes.
    pub elsewhere: Option<Elsewhere>,
}

/// Contexts that may be attached to one blob: with the number of blobs, it bounds a list that nobody is charged for.
pub(super) const MAX_ATTACHED: usize = 128;

/// The type of memory in the window where the GPU cannot be attached to any.
pub(crate) const NO_TYPE: u32 = u32::MAX;

const KNOWN_FLAGS: u32 =
    blob_flag::USE_MAPPABLE | blob_flag::USE_SHAREABLE | blob_flag::USE_CROSS_DEVICE;

impl Guest {
    /// RESOURCE_CREATE_BLOB. `backing` are the guest's pages, where the command brings some: whole pages, as many as the blob has.
    ///
    /// A blob of guest pages needs no context: Linux creates it without.
    pub fn create_blob(
        &mut self,
        context: u32,
        spec: &BlobSpec,
        backing: Option<Vec<Piece>>,
    ) -> Result<(), Error> {
        let me = match self.context(context) {
            Ok(context) => context.me,
            Err(_) if context == 0 && spec.blob_mem == blob_mem::GUEST => ContextRef::NOBODY,
            Err(error) => return Err(error),
        };
        if spec.resource_id == 0 || self.blobs.contains_key(&spec.resource_id) {
            return Err(Error::ResourceIdTaken(spec.resource_id));
        }
        if self.blobs.len() >= MAX_RESOURCES {
            return Err(Error::TooManyObjects(MAX_RESOURCES as u64));
        }
        if spec.blob_flags & !KNOWN_FLAGS != 0 {
            return Err(Error::Argument {
                field: "blob_flags",
                value: spec.blob_flags.into(),
                expected: "MAPPABLE, SHAREABLE, CROSS_DEVICE",
            });
        }
        self.check_size(spec.size)?;
        let has_pages = match spec.blob_mem {
            blob_mem::HOST3D => false,
            blob_mem::GUEST | blob_mem::HOST3D_GUEST => true,
            _ => return Err(Error::Unsupported("this blob_mem")),
        };
        // Nothing is changed before everything is checked: the pages before the memory that they go with.
        // No GPU needs to reach it.
        let guest_type = self.plain_type().unwrap_or(NO_TYPE);
        let pages = match backing {
            None => None,
            Some(_) if !has_pages => {
                return Err(Error::Backing {
                    resource: spec.resource_id,
                    reason: "HOST3D blobs have no guest pages",
                });
            }
            Some(pieces) => Some(self.pages(spec.resource_id, spec.size, pieces, 0)?),
        };
        let (memory, shadow) = match spec.blob_mem {
            blob_mem::GUEST if spec.blob_id != 0 => {
                return Err(Error::Argument {
                    field: "blob_id",
                    value: spec.blob_id,
                    expected: "0: a blob of guest pages has no client id",
                });
            }
            blob_mem::GUEST => (self.guest_memory(spec, guest_type, pages), None),
            _ => {
                let memory = if spec.blob_id == 0 {
                    self.plain_memory(context, spec)?
                } else {
                    self.bind_memory(context, spec)?
                };
                let shadow = has_pages.then(|| self.guest_memory(spec, guest_type, pages));
                (memory, shadow)
            }
        };
        let blob = Blob {
            context: me,
            memory: Some(memory),
            shadow,
            mappable: spec.blob_flags & blob_flag::USE_MAPPABLE != 0,
            mapped: false,
            attached: Vec::new(),
        };
        self.blobs.insert(spec.resource_id, Box::new(blob));
        Ok(())
    }

    /// Memory for a blob without args: in the window.
    fn plain_memory(&mut self, context: u32, spec: &BlobSpec) -> Result<MemoryKey, Error> {
        // It has no name, so no GPU needs to reach it.
        let memory_type = self.plain_type().unwrap_or(NO_TYPE);
        let charge = self.charge(context, spec.size)?;
        let owner = self.context(context)?.me;
        Ok(self.insert_memory(Memory {
            flags: CreateFlags::HOST_VISIBLE | spec.shareable(),
            binding: Binding::Bound(spec.resource_id),
            _charge: Some(charge),
            ..Memory::new(owner, spec.size, memory_type, Home::Nowhere)
        }))
    }

    /// The type of memory that nobody chose one for: the first in the window.
    pub(super) fn plain_type(&self) -> Result<u32, Error> {
        let types = &self.host.provider.description().memory_types;
        (0..)
            .zip(types)
            .find(|(_, found)| found.placement == Placement::Window)
            .map(|(index, _)| index)
            .ok_or(Error::NoMemoryType("HOST_VISIBLE, in the window".into()))
    }

    /// The memory that an earlier CREATE made for this blob.
    fn bind_memory(&mut self, context: u32, spec: &BlobSpec) -> Result<MemoryKey, Error> {
        let unknown = Error::UnknownClientId(spec.blob_id);
        let key = *self
            .context(context)?
            .names
            .get(&spec.blob_id)
            .ok_or(unknown.clone())?;
        let memory = self.memories.get_mut(&key).ok_or(unknown)?;
        match memory.binding {
            Binding::Ready => {}
            Binding::Unbound => return Err(Error::NotBound(spec.blob_id)),
            Binding::Bound(_) => return Err(Error::Bound(spec.blob_id)),
        }
        if memory.size != spec.size {
            return Err(Error::SizeMismatch {
                blob: spec.size,
                memory: memory.size,
            });
        }
        let mappable = spec.blob_flags & blob_flag::USE_MAPPABLE != 0;
        if memory.flags.contains(CreateFlags::HOST_VISIBLE) != mappable
            || memory.flags & CreateFlags::SHAREABLE != spec.shareable()
        {
            return Err(Error::Flags {
                blob: spec.blob_flags,
                memory: memory.flags,
            });
        }
        memory.binding = Binding::Bound(spec.resource_id);
        Ok(key)
    }

    /// `VIRTIO_GPU_MAP_CACHE_*` of a blob that can be mapped: what [`Guest::map_blob`] says too, for those who have to know before.
    pub fn map_info(&self, resource_id: u32) -> Result<u32, Error> {
        let memory = self.mappable(resource_id)?.1;
        Ok(map_info(self.cache_of(memory.memory_type)))
    }

    /// The memory of a blob that the guest may map.
    fn mappable(&self, resource_id: u32) -> Result<(MemoryKey, &Memory), Error> {
        let blob = self
            .blobs
            .get(&resource_id)
            .ok_or(Error::UnknownResource(resource_id))?;
        let key = blob.memory.ok_or(Error::Orphaned(resource_id))?;
        if !blob.mappable {
            return Err(Error::NotMappable("the blob has no USE_MAPPABLE"));
        }
        let memory = self
            .memories
            .get(&key)
            .ok_or(Error::Orphaned(resource_id))?;
        if memory.is_guest_backed() {
            return Err(Error::NotMappable("its bytes are pages of the guest"));
        }
        if self.placement(memory.memory_type) == Placement::Device {
            return Err(Error::NotMappable("its memory type is not host-visible"));
        }
        Ok((key, memory))
    }

    /// RESOURCE_MAP_BLOB: the blob's bytes are the window's from `offset` on.
    pub fn map_blob(&mut self, resource_id: u32, offset: u64) -> Result<Mapped, Error> {
        let (key, memory) = self.mappable(resource_id)?;
        let (size, memory_type) = (memory.size, memory.memory_type);
        if self.blobs.get(&resource_id).is_some_and(|blob| blob.mapped) {
            return Err(Error::AlreadyMapped(resource_id));
        }
        if !offset.is_multiple_of(u64::from(self.capset.page_size)) {
            return Err(Error::Argument {
                field: "offset",
                value: offset,
                expected: "a multiple of the capset's page size",
            });
        }
        let span = Span::new(offset, size, self.window.size())?;
        if self.placement(memory_type) == Placement::Exported {
            self.expose(key)?;
        }
        self.place(key, span)?;
        if let Some(blob) = self.blobs.get_mut(&resource_id) {
            blob.mapped = true;
        }
        Ok(Mapped {
            offset,
            map_info: map_info(self.cache_of(memory_type)),
        })
    }

    /// RESOURCE_UNMAP_BLOB: the bytes stay the blob's, and where they are until somebody else needs the place.
    pub fn unmap_blob(&mut self, resource_id: u32) -> Result<(), Error> {
        let blob = self
            .blobs
            .get_mut(&resource_id)
            .ok_or(Error::UnknownResource(resource_id))?;
        if !blob.mapped {
            return Err(Error::NotMapped(resource_id));
        }
        blob.mapped = false;
        if let Some(key) = blob.memory {
            self.give_up_place(key);
        }
        Ok(())
    }

    /// What a VMM that maps each blob by itself has to map for this one; `None` while it is not mapped.
    pub fn mapping(&self, resource_id: u32) -> Option<Mapping> {
        let blob = self.blobs.get(&resource_id).filter(|blob| blob.mapped)?;
        let (lease, elsewhere) = match &self.memories.get(&blob.memory?)?.home {
            Home::Window(lease) => (lease, None),
            Home::Foreign { pages, place } => {
                let file = Arc::clone(&pages.pieces.first()?.file);
                (place.as_deref()?, Some(Elsewhere::File(file)))
            }
            Home::Exported { bytes, place } => (place.as_deref()?, Some(bytes.clone())),
            _ => return None,
        };
        Some(Mapping {
            span: lease.span(),
            elsewhere,
        })
    }

    /// RESOURCE_UNREF: ends the resource, mapped or not, and the memory with it unless that has a name of its own.
    ///
    /// Done when the fence is reached: until then somebody may use pages that are the guest's.
    pub fn unref(&mut self, resource_id: u32) -> Result<Fence, Error> {
        let blob = self
            .blobs
            .remove(&resource_id)
            .ok_or(Error::UnknownResource(resource_id))?;
        let mut fence = Fence::default();
        if let Some(shadow) = blob.shadow {
            fence.join(self.release_pages(shadow));
            self.retire(shadow);
        }
        let Some(key) = blob.memory else {
            return Ok(fence);
        };
        let memory = self.memories.get(&key);
        if memory.is_some_and(|memory| memory.is_guest_backed()) {
            fence.join(self.release_pages(key));
        }
        let Some(memory) = self.memories.get_mut(&key) else {
            return Ok(fence);
        };
        memory.binding = Binding::Unbound;
        let name = memory.name_of_blob();
        self.give_up_place(key);
        if let Some(name) = name {
            self.forget_name(key, name.context, name.client_id);
        }
        let names = self.memories.get(&key).map(|memory| memory.names.len());
        if names == Some(0) {
            self.retire(key);
        }
        Ok(fence)
    }

    /// CTX_ATTACH_RESOURCE.
    pub fn attach_resource(&mut self, context: u32, resource_id: u32) -> Result<(), Error> {
        self.context(context)?;
        let blob = self
            .blobs
            .get_mut(&resource_id)
            .ok_or(Error::UnknownResource(resource_id))?;
        if blob.attached.contains(&context) {
            return Ok(());
        }
        if blob.attached.len() >= MAX_ATTACHED {
            return Err(Error::TooManyObjects(MAX_ATTACHED as u64));
        }
        blob.attached.push(context);
        Ok(())
    }

    /// CTX_DETACH_RESOURCE.
    pub fn detach_resource(&mut self, context: u32, resource_id: u32) -> Result<(), Error> {
        self.context(context)?;
        let blob = self
            .blobs
            .get_mut(&resource_id)
            .ok_or(Error::UnknownResource(resource_id))?;
        blob.attached.retain(|&attached| attached != context);
        Ok(())
    }
}
