//! `bench-vulkan LIVE SIZES`: how long memory takes by Vulkan alone, through the loader, from whichever driver it finds: vkAllocateMemory and vkMapMemory,
//! the first write of each page, vkFreeMemory. Runs in guests.
//!
//! `0,1000 4096x250,1048576x60,1048576x60d` are 250 memories of 4 KiB and 60 of 1 MiB, and as many that are dedicated to a buffer, one after the
//! other, alone and beside 1,000 of 4 KiB. Requests come on the terminal that its output goes to: `round` is answered with records and the line `done`,
//! `end` ends it.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use ash::vk;
use hostblob_benches::PAGE;
use hostblob_benches::record::Record;
use hostblob_benches::vulkan::Vulkan;

/// Memories of one size.
#[derive(Debug, Clone, Copy)]
struct Series {
    size: u64,
    count: usize,
    dedicated: bool,
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [live, sizes] = arguments.as_slice() else {
        bail!("bench-vulkan LIVE SIZES: 0,1000 4096x250,1048576x60d");
    };
    let live: Vec<usize> = live.split(',').map(str::parse).collect::<Result<_, _>>()?;
    ensure!(live.is_sorted(), "numbers of live memories must rise");
    let all: Vec<_> = sizes.split(',').map(parse).collect::<Result<_>>()?;
    let vulkan = Vulkan::open()?;
    println!("ready");
    for line in BufReader::new(File::open("/proc/self/fd/1")?).lines() {
        match line?.trim() {
            "round" => round(&vulkan, &live, &all)?,
            "end" => break,
            other => bail!("no request: {other:?}"),
        }
        println!("done");
    }
    Ok(())
}

fn parse(text: &str) -> Result<Series> {
    let (size, count) = text.split_once('x').context("SIZExCOUNT")?;
    let plain = count.trim_end_matches('d');
    Ok(Series {
        size: size.parse()?,
        count: plain.parse()?,
        dedicated: plain != count,
    })
}

fn round(vulkan: &Vulkan, live: &[usize], all: &[Series]) -> Result<()> {
    let mut beside = Vec::new();
    for &live in live {
        while beside.len() < live {
            beside.push(Held::new(vulkan, PAGE, None)?);
        }
        for &series in all {
            lives(vulkan, live, series)?;
        }
    }
    Ok(())
}

/// Memories one after the other, and a record of each part of their lives.
fn lives(vulkan: &Vulkan, live: usize, series: Series) -> Result<()> {
    let Series { size, count, .. } = series;
    let buffer = match series.dedicated {
        true => Some(Buffer::new(vulkan, size)?),
        false => None,
    };
    let buffer = buffer.as_ref().map(|buffer| buffer.buffer);
    let prefix = buffer.map_or("vulkan", |_| "vulkan dedicated");
    let record = |part: &str| -> Result<Record> {
        Ok(Record {
            size,
            live: u64::try_from(live)?,
            ..Record::new("", &format!("{prefix}: {part}"), "us")
        })
    };
    let mut map = record("map")?;
    let mut touch = record("touch")?;
    let mut ready = record("ready")?;
    let mut free = record("free")?;
    // The first one is not like others.
    drop(Held::new(vulkan, size, buffer)?);
    for _ in 0..count {
        let start = Instant::now();
        let held = Held::new(vulkan, size, buffer)?;
        let mapped = micros(start);
        held.touch();
        let touched = micros(start);
        drop(held);
        free.samples.push(micros(start) - touched);
        map.samples.push(mapped);
        touch.samples.push(touched - mapped);
        ready.samples.push(touched);
    }
    [map, touch, ready, free]
        .iter()
        .try_for_each(|record| Ok(record.print()?))
}

fn micros(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e6
}

/// A mapped memory. Freed on drop, which unmaps it.
struct Held<'a> {
    vulkan: &'a Vulkan,
    memory: vk::DeviceMemory,
    address: *mut u8,
    size: u64,
}

impl<'a> Held<'a> {
    fn new(vulkan: &'a Vulkan, size: u64, dedicated: Option<vk::Buffer>) -> Result<Self> {
        let mut of = vk::MemoryDedicatedAllocateInfo::default();
        let mut info = vk::MemoryAllocateInfo::default()
            .allocation_size(size)
            .memory_type_index(vulkan.memory_type);
        if let Some(buffer) = dedicated {
            of = of.buffer(buffer);
            info = info.push_next(&mut of);
        }
        let device = &vulkan.device;
        // SAFETY: the memory type is one of the device's, and a buffer is of this size.
        let memory = unsafe { device.allocate_memory(&info, None) }?;
        let mut held = Self {
            vulkan,
            memory,
            address: std::ptr::null_mut(),
            size,
        };
        let flags = vk::MemoryMapFlags::empty();
        // SAFETY: the memory is host-visible and not mapped.
        held.address = unsafe { device.map_memory(memory, 0, vk::WHOLE_SIZE, flags) }?.cast();
        Ok(held)
    }

    /// Writes each page.
    fn touch(&self) {
        for offset in (0..self.size).step_by(4096) {
            #[allow(clippy::cast_possible_truncation, reason = "it is mapped")]
            let address = self.address.wrapping_add(offset as usize);
            // SAFETY: `size` bytes are mapped there until the drop, and nobody else has their address.
            unsafe { address.write_volatile(1) };
        }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        // SAFETY: nothing uses it, and it is not used again.
        unsafe { self.vulkan.device.free_memory(self.memory, None) };
    }
}

/// What dedicated memory is for.
struct Buffer<'a> {
    vulkan: &'a Vulkan,
    buffer: vk::Buffer,
}

impl<'a> Buffer<'a> {
    fn new(vulkan: &'a Vulkan, size: u64) -> Result<Self> {
        let info = vk::BufferCreateInfo::default()
            .size(size)
            .usage(vk::BufferUsageFlags::TRANSFER_SRC | vk::BufferUsageFlags::TRANSFER_DST);
        // SAFETY: the device is alive.
        let buffer = unsafe { vulkan.device.create_buffer(&info, None) }?;
        let buffer = Self { vulkan, buffer };
        // SAFETY: likewise.
        let needs = unsafe { vulkan.device.get_buffer_memory_requirements(buffer.buffer) };
        let needs = needs.size;
        ensure!(needs == size, "a buffer of {size} bytes needs {needs}");
        Ok(buffer)
    }
}

impl Drop for Buffer<'_> {
    fn drop(&mut self) {
        // SAFETY: it was never bound, and is not used again.
        unsafe { self.vulkan.device.destroy_buffer(self.buffer, None) };
    }
}
