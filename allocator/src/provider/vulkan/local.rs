//! Device-local memory, suballocated by gpu-allocator.
//!
//! It is zeroed by the worker before it counts as allocated: drivers and suballocators hand out old contents (63 of 63
//! tries on lavapipe). What is live is counted against the heap before the driver is asked, because lavapipe grants what
//! the machine does not have.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ash::vk;
use gpu_allocator::vulkan::{
    Allocation, AllocationCreateDesc, AllocationScheme, Allocator, AllocatorCreateDesc,
};
use gpu_allocator::{AllocationError, AllocationSizes, AllocatorDebugSettings, MemoryLocation};
use parking_lot::Mutex;

use super::attach::{Backing, Buffer, GpuBytes};
use super::device::{Device, local_share};
use super::error::VulkanError;
use crate::provider::ProviderError;

/// The first block of memory taken from the driver; blocks then double up to [`LARGEST_BLOCK`].
const FIRST_BLOCK: u64 = 16 << 20;
/// The largest block. What is larger than a block gets memory of its own.
const LARGEST_BLOCK: u64 = 256 << 20;

/// All device-local memory of a device.
pub(super) struct LocalPool {
    /// Dropped before `device`: it frees its blocks then.
    state: Mutex<State>,
    device: Arc<Device>,
    limit: u64,
    live_bytes: AtomicU64,
}

struct State {
    allocator: Allocator,
    live_dedicated: u32,
}

impl LocalPool {
    /// A pool of which at most `limit` bytes are live at a time.
    pub(super) fn new(device: &Arc<Device>, limit: u64) -> Result<Arc<Self>, VulkanError> {
        let allocator = Allocator::new(&AllocatorCreateDesc {
            instance: device.instance.raw.clone(),
            device: device.raw.clone(),
            physical_device: device.handle,
            debug_settings: AllocatorDebugSettings::default(),
            buffer_device_address: false,
            allocation_sizes: AllocationSizes::new(FIRST_BLOCK, FIRST_BLOCK)
                .with_max_device_memblock_size(LARGEST_BLOCK)
                .with_max_host_memblock_size(LARGEST_BLOCK),
        })
        .map_err(|error| VulkanError::Host {
            what: "gpu-allocator",
            reason: error.to_string(),
        })?;
        Ok(Arc::new(Self {
            state: Mutex::new(State {
                allocator,
                live_dedicated: 0,
            }),
            device: Arc::clone(device),
            limit,
            live_bytes: AtomicU64::new(0),
        }))
    }

    pub(super) fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// Counts bytes that are about to be taken from the device's heaps.
    pub(super) fn reserve(self: &Arc<Self>, size: u64) -> Result<Reserved, ProviderError> {
        self.live_bytes
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |live| {
                live.checked_add(size).filter(|live| *live <= self.limit)
            })
            .map_err(|live| too_much(size, self.limit.saturating_sub(live)))?;
        Ok(Reserved {
            size,
            pool: Arc::clone(self),
        })
    }

    /// A buffer of at least `length` bytes, whose size is a multiple of 4, with memory of the host's type
    /// `memory_type`. Its contents are undefined.
    pub(super) fn allocate(
        self: &Arc<Self>,
        length: u64,
        memory_type: u32,
    ) -> Result<GpuBytes, ProviderError> {
        let size = length
            .checked_next_multiple_of(4)
            .filter(|size| *size <= self.limit)
            .ok_or_else(|| too_much(length, self.limit))?;
        let buffer = Buffer::new(&self.device, size, None)?;
        let mut requirements = buffer.requirements();
        requirements.memory_type_bits &= 1_u32.checked_shl(memory_type).unwrap_or(0);
        let memory = self.take(requirements)?;
        // SAFETY: the memory is only bound here, and freed after the buffer (field order of `GpuBytes`).
        let raw = unsafe { memory.allocation.memory() };
        buffer.bind(raw, memory.allocation.offset())?;
        self.device
            .name(buffer.raw, format_args!("device-local {length:#x}"));
        Ok(GpuBytes {
            buffer,
            _backing: Backing::Local(memory),
        })
    }

    fn take(
        self: &Arc<Self>,
        requirements: vk::MemoryRequirements,
    ) -> Result<LocalMemory, ProviderError> {
        let reserved = self.reserve(requirements.size)?;
        let mut state = self.state.lock();
        if state.live_dedicated >= local_share(self.device.facts.max_allocation_count) / 2 {
            return Err(ProviderError::OutOfDeviceMemory(format!(
                "{} large allocations are live",
                state.live_dedicated
            )));
        }
        self.device
            .fault()
            .map_err(|result| self.device.refusal("vkAllocateMemory", result))?;
        let allocation = state
            .allocator
            .allocate(&AllocationCreateDesc {
                name: "blob",
                requirements,
                location: MemoryLocation::GpuOnly,
                linear: true,
                allocation_scheme: AllocationScheme::GpuAllocatorManaged,
            })
            .map_err(|error| match error {
                AllocationError::OutOfMemory => ProviderError::OutOfDeviceMemory(format!(
                    "the driver has no {} bytes",
                    requirements.size
                )),
                error => ProviderError::Driver(error.to_string()),
            })?;
        state.live_dedicated += u32::from(allocation.is_dedicated());
        Ok(LocalMemory {
            allocation,
            reserved,
        })
    }
}

fn too_much(asked: u64, left: u64) -> ProviderError {
    ProviderError::OutOfDeviceMemory(format!("{asked} bytes asked, {left} left"))
}

/// Bytes that count against the limit.
pub(super) struct Reserved {
    size: u64,
    pool: Arc<LocalPool>,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.pool.live_bytes.fetch_sub(self.size, Ordering::Relaxed);
    }
}

/// A piece of the pool.
pub(super) struct LocalMemory {
    allocation: Allocation,
    /// Given back after the allocation is.
    reserved: Reserved,
}

impl Drop for LocalMemory {
    fn drop(&mut self) {
        let mut state = self.reserved.pool.state.lock();
        state.live_dedicated -= u32::from(self.allocation.is_dedicated());
        if let Err(error) = state.allocator.free(std::mem::take(&mut self.allocation)) {
            log::error!("gpu-allocator: {error}");
        }
    }
}
