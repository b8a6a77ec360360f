//! A VkBuffer over a range of a file: the two ways of attaching.
//!
//! Each attachment is an import of exactly its own range. Importing larger chunks once would be cheaper to keep but wrong: a
//! driver pins the pages of an import, so when a neighbour's range is cleaned by punching a hole, the
//! GPU would keep the old pages of that part while the CPU gets new ones.
//!
//! Every object is in a guard as soon as it exists; a step that fails drops what came before.

use std::fmt;
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd};
use std::sync::Arc;

use ash::vk;

use super::device::Device;
use super::export::ExportedMemory;
use super::local::LocalMemory;
use crate::provider::ProviderError;
use crate::provider::mapping::SharedFile;
use crate::provider::udmabuf::Udmabuf;

/// How the GPU gets at window memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Strategy {
    /// VK_EXT_external_memory_host over the provider's own shared mapping of the file.
    HostPointer,
    /// A dma-buf that udmabuf makes of the range, imported by VK_EXT_external_memory_dma_buf.
    DmaBuf,
}

impl Strategy {
    /// As in [`crate::provider::Description::attach_strategy`].
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::HostPointer => "host pointer",
            Self::DmaBuf => "udmabuf dma-buf",
        }
    }

    pub(super) fn handle_type(self) -> vk::ExternalMemoryHandleTypeFlags {
        match self {
            Self::HostPointer => vk::ExternalMemoryHandleTypeFlags::HOST_ALLOCATION_EXT,
            Self::DmaBuf => vk::ExternalMemoryHandleTypeFlags::DMA_BUF_EXT,
        }
    }
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What the buffers here are for.
pub(super) const USAGE: vk::BufferUsageFlags = vk::BufferUsageFlags::from_raw(
    vk::BufferUsageFlags::TRANSFER_SRC.as_raw() | vk::BufferUsageFlags::TRANSFER_DST.as_raw(),
);

/// A VkBuffer.
pub(super) struct Buffer {
    pub(super) raw: vk::Buffer,
    device: Arc<Device>,
}

impl Buffer {
    /// Makes a buffer; with `external`, one that imported memory can be bound to
    /// (VUID-vkBindBufferMemory-memory-02985).
    pub(super) fn new(
        device: &Arc<Device>,
        size: u64,
        external: Option<Strategy>,
    ) -> Result<Self, ProviderError> {
        // VUID-VkBufferCreateInfo-size-00912 and -06409. lavapipe takes any size and crashes later.
        if size == 0 || device.facts.max_buffer_size.is_some_and(|max| size > max) {
            return Err(ProviderError::Invalid(format!(
                "a buffer of {size} bytes, the driver's largest is {:?}",
                device.facts.max_buffer_size
            )));
        }
        let mut handles = vk::ExternalMemoryBufferCreateInfo::default();
        let mut info = vk::BufferCreateInfo::default()
            .size(size)
            .usage(USAGE)
            .sharing_mode(vk::SharingMode::EXCLUSIVE);
        if let Some(strategy) = external {
            handles = handles.handle_types(strategy.handle_type());
            info = info.push_next(&mut handles);
        }
        let raw = device
            .fault()
            // SAFETY: `info` and its chain are valid and live during the call; the size was checked.
            .and_then(|()| unsafe { device.raw.create_buffer(&info, None) })
            .map_err(|result| device.refusal("vkCreateBuffer", result))?;
        Ok(Self {
            raw,
            device: Arc::clone(device),
        })
    }

    pub(super) fn requirements(&self) -> vk::MemoryRequirements {
        // SAFETY: the buffer is alive and of this device.
        unsafe { self.device.raw.get_buffer_memory_requirements(self.raw) }
    }

    /// Binds memory, which the caller keeps until after the buffer is dropped. Once per buffer.
    pub(super) fn bind(&self, memory: vk::DeviceMemory, offset: u64) -> Result<(), ProviderError> {
        self.device
            .fault()
            // SAFETY: the buffer is unbound (VUID-vkBindBufferMemory-buffer-07459: called once, right after `new`), and the
            // callers check size, alignment and memory type against `requirements` (-01035 to -01037).
            .and_then(|()| unsafe { self.device.raw.bind_buffer_memory(self.raw, memory, offset) })
            .map_err(|result| self.device.refusal("vkBindBufferMemory", result))
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: no submitted work uses it (VUID-vkDestroyBuffer-buffer-00922): the worker hands attachments to the
        // waiter, which drops them after their last work; all other buffers never reached a queue or were waited for.
        unsafe { self.device.raw.destroy_buffer(self.raw, None) };
    }
}

/// Memory imported from a range of a file.
pub(super) struct Imported {
    raw: vk::DeviceMemory,
    device: Arc<Device>,
    /// Keeps the pages mapped: a host pointer must stay valid as long as its import.
    _file: Arc<SharedFile>,
}

impl Drop for Imported {
    fn drop(&mut self) {
        // SAFETY: the buffer bound to it was dropped before (field order of `GpuBytes`), so no work uses it.
        unsafe { self.device.raw.free_memory(self.raw, None) };
        self.device.uncount_import();
    }
}

/// Memory behind a buffer.
#[allow(dead_code, reason = "held for their drop")]
pub(super) enum Backing {
    Imported(Imported),
    Local(LocalMemory),
    Exported(ExportedMemory),
}

/// A buffer with its memory: what an attachment is. Dropped in the order of the fields.
pub(super) struct GpuBytes {
    pub(super) buffer: Buffer,
    pub(super) _backing: Backing,
}

/// A range of a file to attach, and how.
pub(super) struct Target<'a> {
    pub(super) file: &'a Arc<SharedFile>,
    pub(super) offset: u64,
    pub(super) length: u64,
    /// The host's own index.
    pub(super) memory_type: u32,
}

/// Attaches ranges of files to one device, by one strategy.
pub(super) struct Attacher {
    device: Arc<Device>,
    strategy: Strategy,
    udmabuf: Option<Arc<Udmabuf>>,
}

impl Attacher {
    pub(super) fn new(
        device: &Arc<Device>,
        strategy: Strategy,
        udmabuf: Option<Arc<Udmabuf>>,
    ) -> Self {
        Self {
            device: Arc::clone(device),
            strategy,
            udmabuf,
        }
    }

    pub(super) fn strategy(&self) -> Strategy {
        self.strategy
    }

    /// Offsets and lengths must be multiples of it.
    pub(super) fn alignment(&self) -> u64 {
        let page = rustix::param::page_size() as u64;
        match self.strategy {
            Strategy::HostPointer => self
                .device
                .facts
                .host_pointer_alignment
                .map_or(page, |alignment| alignment.max(page)),
            Strategy::DmaBuf => page,
        }
    }

    /// The longest range that can be attached.
    pub(super) fn max_length(&self) -> u64 {
        let facts = &self.device.facts;
        let driver = facts
            .max_buffer_size
            .map_or(facts.max_allocation_size, |max| {
                max.min(facts.max_allocation_size)
            });
        match (self.strategy, &self.udmabuf) {
            (Strategy::DmaBuf, Some(udmabuf)) => driver.min(udmabuf.size_limit()),
            _ => driver,
        }
    }

    /// Attaches the GPU to a range.
    pub(super) fn attach(&self, target: &Target<'_>) -> Result<GpuBytes, ProviderError> {
        let Target { offset, length, .. } = *target;
        if length > self.max_length() {
            return Err(ProviderError::Invalid(format!(
                "{length} bytes are more than can be attached at once ({})",
                self.max_length()
            )));
        }
        let buffer = Buffer::new(&self.device, length, Some(self.strategy))?;
        let needs = buffer.requirements();
        if needs.size > length || !allows(needs.memory_type_bits, target.memory_type) {
            return Err(ProviderError::Driver(format!(
                "a buffer of {length} bytes needs {} bytes of memory types {:#x}, not type {}",
                needs.size, needs.memory_type_bits, target.memory_type
            )));
        }
        let memory = match self.strategy {
            Strategy::HostPointer => self.import_pointer(target)?,
            Strategy::DmaBuf => self.import_dma_buf(target)?,
        };
        buffer.bind(memory.raw, 0)?;
        self.device
            .name(buffer.raw, format_args!("window {offset:#x}+{length:#x}"));
        self.device
            .name(memory.raw, format_args!("window {offset:#x}+{length:#x}"));
        Ok(GpuBytes {
            buffer,
            _backing: Backing::Imported(memory),
        })
    }

    fn import_pointer(&self, target: &Target<'_>) -> Result<Imported, ProviderError> {
        let host = self.device.host_pointers.as_ref().ok_or_else(not_offered)?;
        let pointer = target
            .file
            .mapping()
            .range(target.offset, target.length)?
            .as_ptr();
        let grain = self.alignment();
        if !(pointer.addr() as u64).is_multiple_of(grain) || !target.length.is_multiple_of(grain) {
            return Err(ProviderError::Invalid(format!(
                "{} bytes at {} are not aligned to {grain}",
                target.length, target.offset
            )));
        }
        let kind = self.strategy.handle_type();
        let mut properties = vk::MemoryHostPointerPropertiesEXT::default();
        // SAFETY: `pointer` is the start of a live mapping (VUID-vkGetMemoryHostPointerPropertiesEXT-handleType-01754):
        // `range` checked it; the offset is aligned as `alignment` asks.
        unsafe {
            (host.fp().get_memory_host_pointer_properties_ext)(
                self.device.raw.handle(),
                kind,
                pointer,
                &mut properties,
            )
        }
        .result()
        .map_err(|result| {
            self.device
                .refusal("vkGetMemoryHostPointerPropertiesEXT", result)
        })?;
        self.check_type(properties.memory_type_bits, target.memory_type)?;
        let mut import = vk::ImportMemoryHostPointerInfoEXT::default()
            .handle_type(kind)
            .host_pointer(pointer);
        // VUID-VkMemoryAllocateInfo-allocationSize-01745, VUID-VkImportMemoryHostPointerInfoEXT-pHostPointer-01749: both
        // multiples of minImportedHostPointerAlignment.
        let info = vk::MemoryAllocateInfo::default().push_next(&mut import);
        self.import(target, info)
    }

    fn import_dma_buf(&self, target: &Target<'_>) -> Result<Imported, ProviderError> {
        let memory_fd = self.device.memory_fd.as_ref().ok_or_else(not_offered)?;
        let udmabuf = self.udmabuf.as_ref().ok_or_else(not_offered)?;
        let dma_buf = udmabuf
            .create(&target.file.pieces(target.offset, target.length))
            .map_err(|error| {
                ProviderError::Driver(format!("UDMABUF_CREATE of {}: {error}", target.length))
            })?;
        let kind = self.strategy.handle_type();
        let mut properties = vk::MemoryFdPropertiesKHR::default();
        // SAFETY: an open dma-buf (VUID-vkGetMemoryFdPropertiesKHR-fd-00673); the call does not take it over.
        unsafe { memory_fd.get_memory_fd_properties(kind, dma_buf.as_raw_fd(), &mut properties) }
            .map_err(|result| self.device.refusal("vkGetMemoryFdPropertiesKHR", result))?;
        self.check_type(properties.memory_type_bits, target.memory_type)?;
        let mut import = vk::ImportMemoryFdInfoKHR::default()
            .handle_type(kind)
            .fd(dma_buf.as_raw_fd());
        let info = vk::MemoryAllocateInfo::default().push_next(&mut import);
        let memory = self.import(target, info)?;
        // A successful import takes the descriptor over; a failed one leaves it to us.
        let _ = OwnedFd::into_raw_fd(dma_buf);
        Ok(memory)
    }

    fn check_type(&self, bits: u32, memory_type: u32) -> Result<(), ProviderError> {
        // VUID-VkMemoryAllocateInfo-memoryTypeIndex-01744 and -00648.
        if allows(bits, memory_type) {
            return Ok(());
        }
        Err(ProviderError::Driver(format!(
            "{}: the driver takes memory types {bits:#x}, not type {memory_type}",
            self.strategy
        )))
    }

    /// Allocates with an import in the chain of `info`.
    fn import(
        &self,
        target: &Target<'_>,
        info: vk::MemoryAllocateInfo<'_>,
    ) -> Result<Imported, ProviderError> {
        let info = info
            .allocation_size(target.length)
            .memory_type_index(target.memory_type);
        self.device.count_import()?;
        let allocated = self
            .device
            .fault()
            // SAFETY: the callers checked size, alignment and type against what the driver said about this very range,
            // whose mapping the result keeps.
            .and_then(|()| unsafe { self.device.raw.allocate_memory(&info, None) });
        match allocated {
            Ok(raw) => Ok(Imported {
                raw,
                device: Arc::clone(&self.device),
                _file: Arc::clone(target.file),
            }),
            Err(result) => {
                self.device.uncount_import();
                Err(self.device.refusal("vkAllocateMemory of an import", result))
            }
        }
    }
}

fn not_offered() -> ProviderError {
    ProviderError::Driver("the way of attaching is not offered".to_owned())
}

/// Whether a bit mask of memory types has this one.
pub(super) fn allows(bits: u32, memory_type: u32) -> bool {
    1_u32
        .checked_shl(memory_type)
        .is_some_and(|bit| bits & bit != 0)
}
