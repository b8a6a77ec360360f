//! Device memory that has a file of its own: a dma-buf that VK_EXT_external_memory_dma_buf exports.
//!
//! Memory of the device that the CPU sees well (a card's BAR, all of it where processor and GPU share their memory) cannot be pages of
//! the window. Its dma-buf can be mapped where a VMM maps each blob by itself. Every allocation is one object of the driver,
//! dedicated to its buffer: a dma-buf shows all of an object, and no guest may see what is beside its own bytes.

use std::fs::File;
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::Arc;

use ash::vk;
use rustix::fs::SeekFrom;

use super::attach::{Backing, Buffer, GpuBytes, Strategy, allows};
use super::device::Device;
use super::local::{LocalPool, Reserved};
use crate::provider::{Elsewhere, ProviderError};

const HANDLE: vk::ExternalMemoryHandleTypeFlags = vk::ExternalMemoryHandleTypeFlags::DMA_BUF_EXT;

/// Memory that the driver can export.
pub(super) struct ExportedMemory {
    raw: vk::DeviceMemory,
    device: Arc<Device>,
    _reserved: Reserved,
}

impl Drop for ExportedMemory {
    fn drop(&mut self) {
        // SAFETY: the buffer bound to it was dropped before (field order of `GpuBytes`), so no work uses it. What a descriptor of it
        // holds is the kernel's.
        unsafe { self.device.raw.free_memory(self.raw, None) };
        self.device.uncount_import();
    }
}

/// Why the device exports nothing; `None` where it may.
pub(super) fn missing(device: &Device) -> Option<String> {
    if device.memory_fd.is_none() {
        return Some("no VK_EXT_external_memory_dma_buf".to_owned());
    }
    let features = device.external_features(HANDLE);
    let exportable = features.contains(vk::ExternalMemoryFeatureFlags::EXPORTABLE);
    (!exportable).then(|| "buffers cannot be exported".to_owned())
}

/// A buffer of `length` bytes, whole pages, in memory of the host's type `memory_type` that can be exported. Its contents are undefined.
pub(super) fn allocate(
    pool: &Arc<LocalPool>,
    length: u64,
    memory_type: u32,
) -> Result<GpuBytes, ProviderError> {
    let device = pool.device();
    let buffer = Buffer::new(device, length, Some(Strategy::DmaBuf))?;
    let needs = buffer.requirements();
    if !allows(needs.memory_type_bits, memory_type) {
        return Err(ProviderError::Driver(format!(
            "a buffer that is exported may live in memory types {:#x}, not in type {memory_type}",
            needs.memory_type_bits
        )));
    }
    let reserved = pool.reserve(needs.size)?;
    let mut export = vk::ExportMemoryAllocateInfo::default().handle_types(HANDLE);
    let mut dedicated = vk::MemoryDedicatedAllocateInfo::default().buffer(buffer.raw);
    // VUID-VkMemoryDedicatedAllocateInfo-buffer-02965: the size is exactly what the buffer needs.
    let info = vk::MemoryAllocateInfo::default()
        .allocation_size(needs.size)
        .memory_type_index(memory_type)
        .push_next(&mut export)
        .push_next(&mut dedicated);
    device.count_import()?;
    let allocated = device
        .fault()
        // SAFETY: the handle type is exportable (`missing`, asked by the probe), the memory type is one of the buffer's, and the buffer lives.
        .and_then(|()| unsafe { device.raw.allocate_memory(&info, None) });
    let raw = allocated.map_err(|result| {
        device.uncount_import();
        device.refusal("vkAllocateMemory of exported memory", result)
    })?;
    let memory = ExportedMemory {
        raw,
        device: Arc::clone(device),
        _reserved: reserved,
    };
    buffer.bind(raw, 0)?;
    device.name(buffer.raw, format_args!("exported {length:#x}"));
    Ok(GpuBytes {
        buffer,
        _backing: Backing::Exported(memory),
    })
}

/// The dma-buf of a buffer's memory, of at least `length` bytes.
pub(super) fn export(bytes: &GpuBytes, length: u64) -> Result<Elsewhere, ProviderError> {
    let Backing::Exported(memory) = &bytes._backing else {
        return Err(ProviderError::Invalid("memory of another kind".to_owned()));
    };
    let device = &memory.device;
    let functions = device
        .memory_fd
        .as_ref()
        .ok_or_else(|| ProviderError::Driver("dma-bufs are not offered".to_owned()))?;
    let info = vk::MemoryGetFdInfoKHR::default()
        .memory(memory.raw)
        .handle_type(HANDLE);
    let descriptor = device
        .fault()
        // SAFETY: the memory was allocated with this handle type (VUID-VkMemoryGetFdInfoKHR-handleType-00671).
        .and_then(|()| unsafe { functions.get_memory_fd(&info) })
        .map_err(|result| device.refusal("vkGetMemoryFdKHR", result))?;
    // SAFETY: the driver gives a new descriptor, which belongs to the caller.
    let file = File::from(unsafe { OwnedFd::from_raw_fd(descriptor) });
    let size = rustix::fs::seek(&file, SeekFrom::End(0))
        .map_err(|error| ProviderError::Driver(format!("size of a dma-buf: {error}")))?;
    if size < length {
        return Err(ProviderError::Driver(format!(
            "the dma-buf of {length} bytes has {size}"
        )));
    }
    Ok(Elsewhere::File(Arc::new(file)))
}
