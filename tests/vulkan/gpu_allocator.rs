//! The crate gpu-allocator: what its example for buffers does, on a device without graphics, and whether the bytes are right.

use ::gpu_allocator::MemoryLocation;
use ::gpu_allocator::vulkan::{
    Allocation, AllocationCreateDesc, AllocationScheme, Allocator, AllocatorCreateDesc,
};
use anyhow::{Context, Result, ensure};
use ash::vk;

use crate::gpu::{Gpu, same};

const LOCATIONS: [MemoryLocation; 3] = [
    MemoryLocation::GpuOnly,
    MemoryLocation::CpuToGpu,
    MemoryLocation::GpuToCpu,
];

fn allocator(gpu: &Gpu) -> Result<Allocator> {
    let Gpu {
        instance,
        device,
        physical,
        ..
    } = gpu;
    Ok(Allocator::new(&AllocatorCreateDesc {
        instance: instance.clone(),
        device: device.clone(),
        physical_device: *physical,
        debug_settings: Default::default(),
        buffer_device_address: false,
        allocation_sizes: Default::default(),
    })?)
}

/// A buffer with memory of an allocator.
struct Bound {
    buffer: vk::Buffer,
    allocation: Allocation,
    size: u64,
}

impl Bound {
    fn new(
        gpu: &Gpu,
        allocator: &mut Allocator,
        location: MemoryLocation,
        size: u64,
        dedicated: bool,
    ) -> Result<Self> {
        let buffer = gpu.buffer(size)?;
        // SAFETY: the buffer is alive.
        let requirements = unsafe { gpu.device.get_buffer_memory_requirements(buffer) };
        let allocation = allocator.allocate(&AllocationCreateDesc {
            name: "a buffer",
            requirements,
            location,
            linear: true,
            allocation_scheme: match dedicated {
                true => AllocationScheme::DedicatedBuffer(buffer),
                false => AllocationScheme::GpuAllocatorManaged,
            },
        })?;
        // SAFETY: the memory was allocated for this buffer, and outlives it.
        let memory = unsafe { allocation.memory() };
        // SAFETY: likewise.
        unsafe {
            gpu.device
                .bind_buffer_memory(buffer, memory, allocation.offset())
        }?;
        Ok(Self {
            buffer,
            allocation,
            size,
        })
    }

    fn free(self, gpu: &Gpu, allocator: &mut Allocator) -> Result<()> {
        // SAFETY: the queue is done with it.
        unsafe { gpu.device.destroy_buffer(self.buffer, None) };
        Ok(allocator.free(self.allocation)?)
    }
}

/// Each location, from a block and dedicated; where it is mapped, both sides see the same bytes.
pub(crate) fn gpu_allocator_serves_each_location(gpu: &Gpu) -> Result<()> {
    let mut allocator = allocator(gpu)?;
    for location in LOCATIONS {
        for (size, dedicated) in [(512, false), (200_000, false), (64 << 10, true)] {
            let mut bound = Bound::new(gpu, &mut allocator, location, size, dedicated)?;
            ensure!(bound.allocation.is_dedicated() == dedicated, "dedicated");
            gpu.put(bound.buffer, 1, size)?;
            gpu.expect(bound.buffer, 1, size)?;
            if location != MemoryLocation::GpuOnly {
                let mapped = bound.allocation.mapped_slice_mut();
                let mapped = &mut mapped.context("it is not mapped")?[..size as usize];
                same(mapped, 1).context("the processor's view")?;
                mapped.copy_from_slice(&hostblob_tests::pattern::bytes(2, 0, size));
                gpu.expect(bound.buffer, 2, size)
                    .context("the GPU's view")?;
            }
            bound.free(gpu, &mut allocator)?;
        }
    }
    Ok(())
}

/// Many at a time, of many sizes, freed and allocated in no order: each has its own bytes.
pub(crate) fn gpu_allocator_keeps_buffers_apart(gpu: &Gpu) -> Result<()> {
    const SIZES: [u64; 5] = [256, 4096, 4100, 65_536, 100_000];
    let mut allocator = allocator(gpu)?;
    let mut held: Vec<(u64, Bound)> = Vec::new();
    for seed in 1..=60_u64 {
        let size = SIZES[seed as usize % SIZES.len()];
        let location = LOCATIONS[seed as usize % LOCATIONS.len()];
        let bound = Bound::new(gpu, &mut allocator, location, size, false)?;
        gpu.put(bound.buffer, seed, size)?;
        held.push((seed, bound));
        if seed % 3 == 0 {
            let (_, old) = held.swap_remove(seed as usize * 7 % held.len());
            old.free(gpu, &mut allocator)?;
        }
    }
    ensure!(held.len() == 40, "{} are left", held.len());
    for (seed, bound) in &held {
        gpu.expect(bound.buffer, *seed, bound.size)?;
    }
    for (_, bound) in held {
        bound.free(gpu, &mut allocator)?;
    }
    let report = allocator.generate_report();
    let left = (report.total_allocated_bytes, report.allocations.len());
    ensure!(left == (0, 0), "{left:?} are left");
    Ok(())
}
