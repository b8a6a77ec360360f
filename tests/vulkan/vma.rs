//! The Vulkan Memory Allocator, by the crate vk-mem: what its tests of buffers do, defragmentation and budgets besides, and whether the bytes
//! are right.

use std::mem::size_of;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use ash::vk;
use hostblob_tests::pattern;
use vk_mem::{
    Alloc, Allocation, AllocationCreateFlags, AllocationCreateInfo, Allocator,
    AllocatorCreateFlags, AllocatorCreateInfo, AllocatorPoolCreateFlags, MemoryUsage,
    PoolCreateInfo,
};

use crate::gpu::{Gpu, TRANSFERS, same};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// By the budget that the driver tells.
fn allocator(gpu: &Gpu) -> Result<Allocator> {
    new_allocator(gpu, AllocatorCreateFlags::EXT_MEMORY_BUDGET, vk::WHOLE_SIZE)
}

/// Of heaps that have no more than `limit` bytes. VMA's blocks are an eighth of a small heap.
fn new_allocator(gpu: &Gpu, flags: AllocatorCreateFlags, limit: u64) -> Result<Allocator> {
    let mut info = AllocatorCreateInfo::new(&gpu.instance, &gpu.device, gpu.physical);
    info.vulkan_api_version = vk::API_VERSION_1_1;
    info.flags = flags;
    let limits = [limit; vk::MAX_MEMORY_HEAPS];
    info.heap_size_limits = &limits[..gpu.memory_heaps()];
    // SAFETY: the device outlives the allocator, and has the extension.
    Ok(unsafe { Allocator::new(info) }?)
}

/// A buffer with memory of VMA. Both end when it is dropped, by when the queue must be done with it.
struct Bound<'a> {
    allocator: &'a Allocator,
    buffer: vk::Buffer,
    allocation: Allocation,
    size: u64,
}

impl<'a> Bound<'a> {
    /// Of an allocator, or of a pool of it.
    fn new(from: &'a impl Alloc, size: u64, info: &AllocationCreateInfo) -> Result<Self> {
        let buffer = vk::BufferCreateInfo::default().size(size).usage(TRANSFERS);
        // SAFETY: the allocator is alive.
        let (buffer, allocation) = unsafe { from.create_buffer(&buffer, info) }?;
        Ok(Self {
            allocator: from.allocator(),
            buffer,
            allocation,
            size,
        })
    }

    fn mapped(&mut self) -> Option<&mut [u8]> {
        let info = self.allocator.get_allocation_info(&self.allocation);
        let address: *mut u8 = info.mapped_data.cast();
        let size = self.size as usize;
        // SAFETY: so many bytes are mapped there while the buffer lives; callers wait for copies.
        (!address.is_null()).then(|| unsafe { std::slice::from_raw_parts_mut(address, size) })
    }
}

impl Drop for Bound<'_> {
    fn drop(&mut self) {
        // SAFETY: the queue is done with it, and it is not used again.
        unsafe {
            self.allocator
                .destroy_buffer(self.buffer, &mut self.allocation)
        };
    }
}

fn usage(usage: MemoryUsage, flags: AllocationCreateFlags) -> AllocationCreateInfo {
    AllocationCreateInfo {
        usage,
        flags,
        ..Default::default()
    }
}

/// By what it is for: mapped where that was asked for, and both sides see the same bytes.
pub(crate) fn vma_serves_each_usage(gpu: &Gpu) -> Result<()> {
    use AllocationCreateFlags as Flags;
    let allocator = allocator(gpu)?;
    for kind in [
        MemoryUsage::Auto,
        MemoryUsage::AutoPreferDevice,
        MemoryUsage::AutoPreferHost,
    ] {
        for flags in [
            Flags::empty(),
            Flags::DEDICATED_MEMORY,
            Flags::MAPPED | Flags::HOST_ACCESS_RANDOM,
            Flags::MAPPED | Flags::HOST_ACCESS_SEQUENTIAL_WRITE,
            Flags::MAPPED | Flags::HOST_ACCESS_RANDOM | Flags::DEDICATED_MEMORY,
        ] {
            for size in [16 * KIB, 40_000] {
                let mut bound = Bound::new(&allocator, size, &usage(kind, flags))?;
                gpu.put(bound.buffer, 1, size)?;
                gpu.expect(bound.buffer, 1, size)?;
                let wanted = flags.contains(Flags::MAPPED);
                ensure!(bound.mapped().is_some() == wanted, "mapped: not {wanted}");
                if wanted {
                    allocator.invalidate_allocation(&bound.allocation, 0, vk::WHOLE_SIZE)?;
                    let mapped = bound.mapped().context("it was mapped")?;
                    same(mapped, 1).context("the processor's view")?;
                    mapped.copy_from_slice(&pattern::bytes(2, 0, size));
                    allocator.flush_allocation(&bound.allocation, 0, vk::WHOLE_SIZE)?;
                    gpu.expect(bound.buffer, 2, size)
                        .context("the GPU's view")?;
                }
            }
        }
    }
    Ok(())
}

/// Of each memory type that buffers may have, by its index; mapped by hand and more than once where it is visible.
pub(crate) fn vma_serves_each_memory_type(gpu: &Gpu) -> Result<()> {
    const SIZE: u64 = 100_000;
    let allocator = allocator(gpu)?;
    let bits = gpu.buffer_types(SIZE)?;
    let types = gpu.memory_types();
    let allowed = (0..types.len()).filter(|index| bits & 1 << index != 0);
    let mut visible = 0;
    for index in allowed {
        let info = AllocationCreateInfo {
            memory_type_bits: 1 << index,
            ..Default::default()
        };
        let mut bound = Bound::new(&allocator, SIZE, &info)?;
        let found = allocator.get_allocation_info(&bound.allocation).memory_type;
        ensure!(found as usize == index, "type {found} instead of {index}");
        gpu.put(bound.buffer, 3, SIZE)?;
        gpu.expect(bound.buffer, 3, SIZE)?;
        if types[index].contains(vk::MemoryPropertyFlags::HOST_VISIBLE) {
            visible += 1;
            // SAFETY: the allocation is alive; what is mapped is unmapped below.
            let first = unsafe { allocator.map_memory(&mut bound.allocation) }?;
            // SAFETY: likewise.
            let second = unsafe { allocator.map_memory(&mut bound.allocation) }?;
            ensure!(first == second, "mapped twice at two places");
            allocator.invalidate_allocation(&bound.allocation, 0, vk::WHOLE_SIZE)?;
            // SAFETY: as many bytes are mapped there, and nothing writes them.
            let mapped = unsafe { std::slice::from_raw_parts(first, SIZE as usize) };
            same(mapped, 3)?;
            for _ in 0..2 {
                // SAFETY: as often as it was mapped; nothing uses the address any more.
                unsafe { allocator.unmap_memory(&mut bound.allocation) };
            }
        }
    }
    ensure!(visible > 0, "no memory type is visible");
    Ok(())
}

/// VMA's figures follow what it has.
pub(crate) fn vma_counts_blocks_and_bytes(gpu: &Gpu) -> Result<()> {
    let allocator = allocator(gpu)?;
    let counts = || -> Result<(u32, u32, u64)> {
        let total = allocator.calculate_statistics()?.total.statistics;
        Ok((
            total.blockCount,
            total.allocationCount,
            total.allocationBytes,
        ))
    };
    ensure!(counts()? == (0, 0, 0), "{:?} at first", counts()?);
    let info = usage(MemoryUsage::Auto, AllocationCreateFlags::empty());
    let bound = Bound::new(&allocator, 16 * KIB, &info)?;
    ensure!(counts()? == (1, 1, 16 * KIB), "{:?} with one", counts()?);
    drop(bound);
    ensure!(counts()? == (1, 0, 0), "{:?} at last", counts()?);
    Ok(())
}

/// Pools of both kinds give what they have, and no more.
pub(crate) fn vma_pools_have_an_end(gpu: &Gpu) -> Result<()> {
    const SIZE: u64 = 64 * KIB;
    let allocator = Arc::new(allocator(gpu)?);
    let info = usage(
        MemoryUsage::Unknown,
        AllocationCreateFlags::MAPPED | AllocationCreateFlags::HOST_ACCESS_RANDOM,
    );
    let visible = AllocationCreateInfo {
        required_flags: vk::MemoryPropertyFlags::HOST_VISIBLE,
        ..info.clone()
    };
    // SAFETY: the allocator is alive. (By vkGetDeviceBufferMemoryRequirements, which devices before 1.3 lack, vk-mem would find it too.)
    let kind = unsafe { allocator.find_memory_type_index(gpu.buffer_types(SIZE)?, &visible) }?;
    for flags in [
        AllocatorPoolCreateFlags::empty(),
        AllocatorPoolCreateFlags::LINEAR_ALGORITHM,
    ] {
        const IN_ONE: u64 = 4;
        const BLOCKS: u64 = 2;
        let pool = allocator.create_pool(&PoolCreateInfo {
            memory_type_index: kind,
            flags,
            block_size: IN_ONE * SIZE,
            max_block_count: BLOCKS as usize,
            ..Default::default()
        })?;
        let mut held = Vec::new();
        for seed in 0..IN_ONE * BLOCKS {
            let bound = Bound::new(&pool, SIZE, &info)?;
            gpu.put(bound.buffer, seed, SIZE)?;
            held.push((seed, bound));
        }
        let error = Bound::new(&pool, SIZE, &info).err();
        let error = error.context("there is more")?;
        let expected = vk::Result::ERROR_OUT_OF_DEVICE_MEMORY;
        ensure!(
            error.downcast_ref() == Some(&expected),
            "{error:#} instead of {expected}"
        );
        for (seed, mut bound) in held {
            same(bound.mapped().context("it is not mapped")?, seed)?;
        }
        Bound::new(&pool, IN_ONE * SIZE, &info).context("all of an empty block")?;
    }
    Ok(())
}

/// Buffers move together, by copies of the host GPU, and blocks are given back.
pub(crate) fn vma_defragments(gpu: &Gpu) -> Result<()> {
    const SIZE: u64 = 32 * KIB;
    let allocator = new_allocator(gpu, AllocatorCreateFlags::empty(), 8 * MIB)?;
    let info = usage(MemoryUsage::Auto, AllocationCreateFlags::empty());
    let mut held = Vec::new();
    for seed in 0..64_u64 {
        let bound = Bound::new(&allocator, SIZE, &info)?;
        if seed % 4 == 0 {
            gpu.put(bound.buffer, seed, SIZE)?;
        }
        held.push((seed, bound));
    }
    held.retain(|(seed, _)| seed % 4 == 0);
    // SAFETY: a structure of numbers and pointers that may all be 0: all defaults. vk-mem has no name for it.
    let info = unsafe { std::mem::zeroed() };
    // SAFETY: the allocator is alive.
    let context = unsafe { allocator.begin_defragmentation(&info) }?;
    let mut failure = None;
    loop {
        let mut old = Vec::new();
        let more = context.begin_pass(|moves| {
            for step in moves {
                let moved = held
                    .iter_mut()
                    .find(|(_, bound)| raw(&bound.allocation) == step.srcAllocation.cast());
                let Some((_, bound)) = moved else {
                    failure = Some(anyhow::anyhow!("an allocation that is not ours is moved"));
                    continue;
                };
                match relocate(gpu, bound, step.dstTmpAllocation.cast()) {
                    Ok(buffer) => old.push(std::mem::replace(&mut bound.buffer, buffer)),
                    Err(error) => failure = Some(error),
                }
            }
        });
        for buffer in old {
            // SAFETY: its bytes have been copied, and nobody has it any more.
            unsafe { gpu.device.destroy_buffer(buffer, None) };
        }
        if !more || failure.is_some() {
            break;
        }
    }
    let done = context.end();
    if let Some(failure) = failure {
        return Err(failure);
    }
    ensure!(done.allocationsMoved > 0, "nothing was moved");
    ensure!(done.deviceMemoryBlocksFreed > 0, "no block was freed");
    for (seed, bound) in held {
        gpu.expect(bound.buffer, seed, SIZE)?;
    }
    Ok(())
}

/// What vk-mem keeps in an allocation, and gives no other way to: it is compared with what a move names.
fn raw(allocation: &Allocation) -> *mut u8 {
    const { assert!(size_of::<Allocation>() == size_of::<*mut u8>()) };
    // SAFETY: it is one pointer, by the size above.
    unsafe { std::mem::transmute_copy(allocation) }
}

/// A buffer of the same bytes in the memory that a move leads to.
fn relocate(gpu: &Gpu, bound: &Bound, to: *mut u8) -> Result<vk::Buffer> {
    // SAFETY: as in `raw`.
    let to: Allocation = unsafe { std::mem::transmute_copy(&to) };
    let buffer = gpu.buffer(bound.size)?;
    // SAFETY: the memory was made for this move, for a buffer of this size.
    unsafe { bound.allocator.bind_buffer_memory(&to, buffer) }?;
    gpu.copy(bound.buffer, buffer, bound.size)?;
    Ok(buffer)
}

/// The driver's budget, as VMA hands it on, follows what is allocated and ends what may be.
pub(crate) fn vma_keeps_to_the_budget(gpu: &Gpu) -> Result<()> {
    let allocator = allocator(gpu)?;
    let mut frame = 0;
    // VMA asks the driver once a frame.
    let mut totals = || -> Result<(u64, u64)> {
        frame += 1;
        // SAFETY: the allocator is alive.
        unsafe { allocator.set_current_frame_index(frame) };
        let budgets = allocator.get_heap_budgets()?;
        let sum =
            |of: fn(u64, u64) -> u64| budgets.iter().map(|one| of(one.usage, one.budget)).sum();
        Ok((sum(|usage, _| usage), sum(|_, budget| budget)))
    };
    let (before, budget) = totals()?;
    ensure!(
        before < budget,
        "{before} of {budget} bytes are used at first"
    );
    let info = usage(MemoryUsage::Auto, AllocationCreateFlags::DEDICATED_MEMORY);
    let bound = Bound::new(&allocator, 32 * MIB, &info)?;
    let (with, _) = totals()?;
    ensure!(
        with >= before + 32 * MIB,
        "{before} bytes became {with} with 32 MiB more"
    );
    drop(bound);
    gpu.settles_at(before)?;
    let (after, _) = totals()?;
    ensure!(after <= before, "{with} bytes became {after}");
    let requirements = vk::MemoryRequirements {
        size: (budget + MIB) & !(MIB - 1),
        alignment: 64,
        memory_type_bits: u32::MAX,
    };
    let info = usage_within_budget();
    // SAFETY: the allocator is alive.
    let refused = unsafe { allocator.allocate_memory(&requirements, &info) }.err();
    let expected = Some(vk::Result::ERROR_OUT_OF_DEVICE_MEMORY);
    ensure!(refused == expected, "{refused:?} for more than the budget");
    Ok(())
}

fn usage_within_budget() -> AllocationCreateInfo {
    AllocationCreateInfo {
        flags: AllocationCreateFlags::WITHIN_BUDGET | AllocationCreateFlags::DEDICATED_MEMORY,
        memory_type_bits: 1,
        ..Default::default()
    }
}
