//! `bench-library quick|full`: allocate, map and free by the guest library, VMA, gpu-allocator and malloc, in turn.

use anyhow::{Context, Result};
use hostblob_benches::record::Record;
use hostblob_benches::suballocators::{
    GpuAllocator, Malloc, Random, Suballocator, Vma, as_number, mixed_sizes, pairs,
};
use hostblob_benches::vulkan::Vulkan;
use hostblob_benches::{Served, host, is_quick};

const SMALL: u64 = 4096;
const LIVE: [usize; 3] = [0, 1_000, 20_000];
const THREADS: [usize; 3] = [1, 2, 4];

/// How often.
#[derive(Debug, Clone, Copy)]
struct Extents {
    rounds: u32,
    samples: usize,
    /// Of the long batches of several threads.
    thread_samples: usize,
    /// Bytes that are held while the pool's are counted.
    held: u64,
}

const FULL: Extents = Extents {
    rounds: 5,
    samples: 250,
    thread_samples: 100,
    held: 512 << 20,
};
const QUICK: Extents = Extents {
    rounds: 2,
    samples: 10,
    thread_samples: 5,
    held: 64 << 20,
};

fn main() -> Result<()> {
    let extents = if is_quick()? { QUICK } else { FULL };
    let vulkan = Vulkan::open()?;
    let served = Served::new(host());
    for round in 0..extents.rounds {
        for &live in &LIVE {
            among(&served.open(), "hostblob", live, round, extents)?;
            among(&Vma::new(&vulkan)?, "VMA", live, round, extents)?;
            among(
                &GpuAllocator::new(&vulkan)?,
                "gpu-allocator",
                live,
                round,
                extents,
            )?;
            among(&Malloc, "malloc + memset", live, round, extents)?;
        }
        for &threads in &THREADS {
            together(&served.open(), "hostblob", threads, round, extents)?;
            together(&Vma::new(&vulkan)?, "VMA", threads, round, extents)?;
            together(
                &GpuAllocator::new(&vulkan)?,
                "gpu-allocator",
                threads,
                round,
                extents,
            )?;
            together(&Malloc, "malloc + memset", threads, round, extents)?;
        }
    }
    doorbells(&served.open())?;
    blocks(&served.open(), "hostblob", extents.held)?;
    blocks(&Vma::new(&vulkan)?, "VMA", extents.held)?;
    blocks(&GpuAllocator::new(&vulkan)?, "gpu-allocator", extents.held)
}

/// Pairs of 4 KiB by one thread, beside `live` others.
fn among<A: Suballocator>(
    allocator: &A,
    name: &str,
    live: usize,
    round: u32,
    extents: Extents,
) -> Result<()> {
    let held: Vec<_> = (0..live)
        .map(|_| allocator.allocate(SMALL))
        .collect::<Result<_>>()?;
    let samples = pairs(allocator, 1, &[SMALL], 256, extents.samples)?;
    held.into_iter().try_for_each(|one| allocator.free(one))?;
    let record = Record {
        size: SMALL,
        live: u64::try_from(live)?,
        threads: 1,
        round,
        samples,
        ..Record::new(name, "pair", "ns")
    };
    Ok(record.print()?)
}

/// Pairs of 4 KiB, and of mixed sizes, by several threads at a time.
fn together<A: Suballocator>(
    allocator: &A,
    name: &str,
    threads: usize,
    round: u32,
    extents: Extents,
) -> Result<()> {
    // A block stays while something is in it.
    let keep = allocator.allocate(SMALL)?;
    // Batches are long beside the wake-up of a thread. Malloc's mixed ones are a hundred times slower: shorter.
    for (row, sizes, batch) in [
        ("pair of threads", vec![SMALL], 4096),
        (
            "mixed pair of threads",
            mixed_sizes(),
            if allocator.block_bytes().is_some() {
                4096
            } else {
                256
            },
        ),
    ] {
        let record = Record {
            threads: u64::try_from(threads)?,
            round,
            samples: pairs(allocator, threads, &sizes, batch, extents.thread_samples)?,
            ..Record::new(name, row, "ns")
        };
        record.print()?;
    }
    allocator.free(keep)
}

/// Requests of the host for each of many allocations of 4 KiB that all live.
fn doorbells<A: Suballocator>(allocator: &A) -> Result<()> {
    const COUNT: usize = 65_536;
    let before = allocator.doorbells().context("it does not count")?;
    let held: Vec<_> = (0..COUNT)
        .map(|_| allocator.allocate(SMALL))
        .collect::<Result<_>>()?;
    let after = allocator.doorbells().context("it does not count")?;
    held.into_iter().try_for_each(|one| allocator.free(one))?;
    let record = Record {
        size: SMALL,
        samples: vec![as_number(usize::try_from(after - before)?) / as_number(COUNT)],
        ..Record::new("hostblob", "doorbells", "per allocation")
    };
    Ok(record.print()?)
}

/// Bytes of blocks for each byte that was asked for: when all live, and after as much again was freed and allocated in no order.
fn blocks<A: Suballocator>(allocator: &A, name: &str, bytes: u64) -> Result<()> {
    let sizes = mixed_sizes();
    let mut next = sizes.iter().cycle().copied();
    let mut held = Vec::new();
    let mut total = 0;
    while total < bytes {
        let size = next.next().context("no sizes")?;
        held.push((size, allocator.allocate(size)?));
        total += size;
    }
    let ratio = |row: &str, total: u64| -> Result<()> {
        let blocks = allocator.block_bytes().context("it does not count")?;
        let ratio = as_number(usize::try_from(blocks)?) / as_number(usize::try_from(total)?);
        let record = Record {
            samples: vec![ratio],
            ..Record::new(name, row, "bytes per byte")
        };
        Ok(record.print()?)
    };
    ratio("pool when live", total)?;
    let mut random = Random(0x1234_5678_9abc_def1);
    for _ in 0..4 * held.len() {
        let place = usize::try_from(random.below(u64::try_from(held.len())?))?;
        let (old, one) = held.swap_remove(place);
        allocator.free(one)?;
        let size = next.next().context("no sizes")?;
        held.push((size, allocator.allocate(size)?));
        total = total - old + size;
    }
    ratio("pool after churn", total)?;
    held.into_iter()
        .try_for_each(|(_, one)| allocator.free(one))
}
