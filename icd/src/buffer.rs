//! `VkBuffer`: a size, and once it is bound, where in which memory it is.

use std::sync::{OnceLock, Weak};

use ash::vk;
use hostblob_guest::Memory;

use crate::chain;
use crate::device::Device;
use crate::entry::arguments::{Array, Out, from};
use crate::memory::DeviceMemory;
use crate::object::{self, Callbacks, objects};
use crate::physical::MAP_ALIGNMENT;

/// A buffer.
#[derive(Debug)]
pub(crate) struct Buffer {
    size: u64,
    /// A bit for each memory type that it can be bound to.
    types: u32,
    place: OnceLock<Place>,
}

objects! { Buffer = vk::Buffer; }

/// A byte of a memory. Does not keep it: the program frees it when it likes, and a command buffer that names it is invalid then.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) memory: Weak<Memory>,
    pub(crate) offset: u64,
}

impl Place {
    /// So many bytes further on.
    pub(crate) fn plus(&self, bytes: u64) -> Self {
        Self {
            memory: self.memory.clone(),
            offset: self.offset.saturating_add(bytes),
        }
    }
}

impl Buffer {
    /// Bytes.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Where byte `offset` is; `None` before it is bound.
    pub(crate) fn at(&self, offset: u64) -> Option<Place> {
        Some(self.place.get()?.plus(offset))
    }
}

pub(crate) fn create(
    device: &Device,
    info: &vk::BufferCreateInfo<'_>,
    callbacks: Option<Callbacks>,
    out: Out<'_, vk::Buffer>,
) -> Result<(), vk::Result> {
    // Sparse and protected ones are of features that are not there.
    if !info.flags.is_empty() {
        return Err(vk::Result::ERROR_OUT_OF_DEVICE_MEMORY);
    }
    // SAFETY: the chain of a structure that the program filled.
    let external = unsafe { chain::find::<vk::ExternalMemoryBufferCreateInfo<'_>>(info.p_next) };
    let is_external = external.is_some_and(|external| !external.handle_types.is_empty());
    let types = device.types();
    let buffer = Buffer {
        size: info.size,
        types: if is_external {
            types.visible
        } else {
            types.all
        },
        place: OnceLock::new(),
    };
    out.set(object::create(buffer, device.callbacks(callbacks))?);
    Ok(())
}

fn requirements_of(buffer: &Buffer) -> vk::MemoryRequirements {
    vk::MemoryRequirements {
        // Whole words, so that fills reach the end.
        size: buffer.size.checked_next_multiple_of(4).unwrap_or(u64::MAX),
        alignment: MAP_ALIGNMENT,
        memory_type_bits: buffer.types,
    }
}

pub(crate) fn requirements(_: &Device, buffer: &Buffer, out: Out<'_, vk::MemoryRequirements>) {
    out.set(requirements_of(buffer));
}

pub(crate) fn requirements2(
    _: &Device,
    info: &vk::BufferMemoryRequirementsInfo2<'_>,
    out: &mut vk::MemoryRequirements2<'_>,
) {
    // SAFETY: a live buffer, by the valid usage of the structure.
    let buffer: &Buffer = unsafe { from(info.buffer) };
    out.memory_requirements = requirements_of(buffer);
    let more = |kind, structure| {
        if kind == vk::StructureType::MEMORY_DEDICATED_REQUIREMENTS {
            let out: &mut vk::MemoryDedicatedRequirements<'_> =
                // SAFETY: `sType` says that it is one.
                unsafe { chain::as_mut(structure) };
            out.prefers_dedicated_allocation = vk::FALSE;
            out.requires_dedicated_allocation = vk::FALSE;
        }
    };
    // SAFETY: the chain of a structure that the program filled.
    unsafe { chain::each(out.p_next, more) };
}

fn bind_one(buffer: &Buffer, memory: &DeviceMemory, offset: u64) {
    // Once only, by valid usage; of two the first holds.
    let _ = buffer.place.set(Place {
        memory: memory.weak(),
        offset,
    });
}

pub(crate) fn bind(_: &Device, buffer: &Buffer, memory: &DeviceMemory, offset: vk::DeviceSize) {
    bind_one(buffer, memory, offset);
}

pub(crate) fn bind2(_: &Device, count: u32, infos: Array<'_, vk::BindBufferMemoryInfo<'_>>) {
    // SAFETY: the count belongs to the array.
    for info in unsafe { infos.take(count) } {
        // SAFETY: a live buffer, by the valid usage of the structure.
        let buffer: &Buffer = unsafe { from(info.buffer) };
        // SAFETY: and live memory.
        let memory: &DeviceMemory = unsafe { from(info.memory) };
        bind_one(buffer, memory, info.memory_offset);
    }
}
