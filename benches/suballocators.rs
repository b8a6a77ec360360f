//! Suballocators behind one trait: the guest library, VMA, gpu-allocator, and malloc with memory that is made zero.

use std::hint::black_box;
use std::sync::Barrier;
use std::time::Instant;

use anyhow::{Context, Result, anyhow};
use ash::vk;
use gpu_allocator::MemoryLocation;
use gpu_allocator::vulkan::{
    Allocation, AllocationCreateDesc, AllocationScheme, Allocator, AllocatorCreateDesc,
};
use hostblob_guest::{AllocateInfo, Device, Memory};
use parking_lot::Mutex;
use vk_mem::Alloc;

use crate::vulkan::Vulkan;

/// Gives out memory that the process can write, from any thread.
pub trait Suballocator: Sync {
    /// A piece of memory.
    type Held: Send;
    /// `size` bytes, mapped: their address has been asked for.
    ///
    /// # Errors
    /// Where there is no memory.
    fn allocate(&self, size: u64) -> Result<Self::Held>;
    /// The end of it.
    ///
    /// # Errors
    /// Where the allocator does not know it.
    fn free(&self, held: Self::Held) -> Result<()>;
    /// Bytes that it holds in blocks, where that can be told.
    fn block_bytes(&self) -> Option<u64>;
    /// Times that it asked the host for something, where that can be told.
    fn doorbells(&self) -> Option<u64> {
        None
    }
}

/// The guest library.
impl Suballocator for Device {
    type Held = Memory;

    fn allocate(&self, size: u64) -> Result<Memory> {
        let memory = Device::allocate(self, &AllocateInfo::new(size))?;
        black_box(memory.map()?);
        Ok(memory)
    }

    fn free(&self, held: Memory) -> Result<()> {
        drop(held);
        Ok(())
    }

    fn block_bytes(&self) -> Option<u64> {
        Some(self.statistics().block_bytes)
    }

    fn doorbells(&self) -> Option<u64> {
        Some(self.statistics().commands)
    }
}

/// What a driver asks of memory for buffers.
fn requirements(vulkan: &Vulkan, size: u64) -> vk::MemoryRequirements {
    vk::MemoryRequirements {
        size,
        alignment: 64,
        memory_type_bits: 1 << vulkan.memory_type,
    }
}

/// The Vulkan Memory Allocator, with its own lock.
pub struct Vma<'a> {
    vulkan: &'a Vulkan,
    allocator: vk_mem::Allocator,
}

impl<'a> Vma<'a> {
    /// Of this device.
    ///
    /// # Errors
    /// As VMA has them.
    pub fn new(vulkan: &'a Vulkan) -> Result<Self> {
        let Vulkan {
            instance,
            device,
            physical,
            ..
        } = vulkan;
        let mut info = vk_mem::AllocatorCreateInfo::new(instance, device, *physical);
        info.vulkan_api_version = vk::API_VERSION_1_3;
        // SAFETY: the device outlives the allocator by the borrow.
        let allocator = unsafe { vk_mem::Allocator::new(info) }?;
        Ok(Self { vulkan, allocator })
    }
}

impl Suballocator for Vma<'_> {
    type Held = vk_mem::Allocation;

    fn allocate(&self, size: u64) -> Result<Self::Held> {
        let info = vk_mem::AllocationCreateInfo {
            flags: vk_mem::AllocationCreateFlags::MAPPED
                | vk_mem::AllocationCreateFlags::HOST_ACCESS_RANDOM,
            required_flags: vk::MemoryPropertyFlags::HOST_VISIBLE,
            ..Default::default()
        };
        let requirements = requirements(self.vulkan, size);
        // SAFETY: the requirements name a memory type of this device.
        let held = unsafe { self.allocator.allocate_memory(&requirements, &info) }?;
        black_box(self.allocator.get_allocation_info(&held).mapped_data);
        Ok(held)
    }

    fn free(&self, mut held: Self::Held) -> Result<()> {
        // SAFETY: of this allocator, and never used again.
        unsafe { self.allocator.free_memory(&mut held) };
        Ok(())
    }

    fn block_bytes(&self) -> Option<u64> {
        let statistics = self.allocator.calculate_statistics().ok()?;
        Some(statistics.total.statistics.blockBytes)
    }
}

/// The crate gpu-allocator, which asks its user for a lock.
pub struct GpuAllocator<'a> {
    vulkan: &'a Vulkan,
    allocator: Mutex<Allocator>,
}

impl<'a> GpuAllocator<'a> {
    /// Of this device.
    ///
    /// # Errors
    /// As gpu-allocator has them.
    pub fn new(vulkan: &'a Vulkan) -> Result<Self> {
        let allocator = Allocator::new(&AllocatorCreateDesc {
            instance: vulkan.instance.clone(),
            device: vulkan.device.clone(),
            physical_device: vulkan.physical,
            debug_settings: Default::default(),
            buffer_device_address: false,
            allocation_sizes: Default::default(),
        })?;
        Ok(Self {
            vulkan,
            allocator: Mutex::new(allocator),
        })
    }
}

impl Suballocator for GpuAllocator<'_> {
    type Held = Allocation;

    fn allocate(&self, size: u64) -> Result<Allocation> {
        let held = self.allocator.lock().allocate(&AllocationCreateDesc {
            name: "bench",
            requirements: requirements(self.vulkan, size),
            location: MemoryLocation::CpuToGpu,
            linear: true,
            allocation_scheme: AllocationScheme::GpuAllocatorManaged,
        })?;
        black_box(held.mapped_ptr());
        Ok(held)
    }

    fn free(&self, held: Allocation) -> Result<()> {
        Ok(self.allocator.lock().free(held)?)
    }

    fn block_bytes(&self) -> Option<u64> {
        Some(self.allocator.lock().capacity())
    }
}

/// What a program does that has no GPU: memory of the process, made zero.
#[derive(Debug, Clone, Copy)]
pub struct Malloc;

impl Suballocator for Malloc {
    type Held = Vec<u8>;

    fn allocate(&self, size: u64) -> Result<Vec<u8>> {
        let mut held = Vec::with_capacity(usize::try_from(size)?);
        // Not `vec![0; n]`, which asks for pages that are zero already, and leaves them for later.
        held.resize(black_box(held.capacity()), 0);
        Ok(black_box(held))
    }

    fn free(&self, held: Vec<u8>) -> Result<()> {
        drop(held);
        Ok(())
    }

    fn block_bytes(&self) -> Option<u64> {
        None
    }
}

/// Times of `samples` batches of `batch` pairs of allocate and free on each of `threads`: nanoseconds of wall time for a pair.
///
/// # Errors
/// The first one of any thread.
pub fn pairs<A: Suballocator>(
    allocator: &A,
    threads: usize,
    sizes: &[u64],
    batch: usize,
    samples: usize,
) -> Result<Vec<f64>> {
    let work = |thread: usize, sample: usize| -> Result<()> {
        // Each batch goes on where the last one of this thread ended, each thread begins elsewhere.
        let start = sample * batch + thread * sizes.len() / threads;
        for &size in sizes.iter().cycle().skip(start % sizes.len()).take(batch) {
            allocator.free(allocator.allocate(size)?)?;
        }
        Ok(())
    };
    let per_pair = |nanoseconds: f64| nanoseconds / as_number(batch * threads);
    if threads == 1 {
        return (0..samples)
            .map(|sample| {
                let start = Instant::now();
                work(0, sample)?;
                Ok(per_pair(start.elapsed().as_secs_f64() * 1e9))
            })
            .collect();
    }
    let barrier = Barrier::new(threads);
    let times = std::thread::scope(|scope| {
        let spawn = |thread| {
            let (barrier, work) = (&barrier, &work);
            scope.spawn(move || -> Result<Vec<(Instant, Instant)>> {
                let mut times = Vec::new();
                for sample in 0..samples {
                    barrier.wait();
                    let start = Instant::now();
                    work(thread, sample)?;
                    times.push((start, Instant::now()));
                }
                Ok(times)
            })
        };
        let handles: Vec<_> = (0..threads).map(spawn).collect();
        let join = |handle: std::thread::ScopedJoinHandle<'_, Result<Vec<_>>>| {
            handle.join().map_err(|_| anyhow!("a thread panicked"))?
        };
        handles.into_iter().map(join).collect::<Result<Vec<_>>>()
    })?;
    // From the first thread's begin to the last one's end.
    (0..samples)
        .map(|sample| {
            let of_sample = || times.iter().filter_map(|times| times.get(sample));
            let first = of_sample().map(|&(start, _)| start).min();
            let last = of_sample().map(|&(_, end)| end).max();
            let (first, last) = first.zip(last).context("no thread")?;
            Ok(per_pair(last.duration_since(first).as_secs_f64() * 1e9))
        })
        .collect()
}

/// Counts here are far below 2^53.
pub fn as_number(count: usize) -> f64 {
    count as f64
}

/// Sizes from 4 KiB to 1 MiB, as many of each doubling: the same ones in every run.
pub fn mixed_sizes() -> Vec<u64> {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    (0..1024)
        .map(|_| {
            let low = 4096 << random.below(8);
            low + random.below(low / 256 + 1) * 256
        })
        .collect()
}

/// A generator of its own: Vigna's xorshift64*, so that all runs see the same.
#[derive(Debug, Clone)]
pub struct Random(pub u64);

impl Random {
    /// Below `end`, which is not 0.
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_within_bounds_and_mixed() {
        let sizes = mixed_sizes();
        assert!(sizes.iter().all(|size| (4096..=1 << 20).contains(size)));
        for low in (0..8).map(|power| 4096_u64 << power) {
            let number = sizes.iter().filter(|&&size| (low..low * 2).contains(&size));
            assert!(number.count() > 64, "few from {low} on");
        }
    }

    #[test]
    fn every_thread_takes_part() {
        for threads in [1, 3] {
            let times = pairs(&Malloc, threads, &[4096, 8192], 5, 7).unwrap();
            assert_eq!(times.len(), 7);
            assert!(times.iter().all(|&time| time > 0.0));
        }
    }
}
