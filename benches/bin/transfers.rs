//! `bench-transfers quick|full`: fills and copies on the host GPU, by the guest library and by Vulkan's own calls, in turn.

use std::time::Instant;

use anyhow::{Context, Result};
use hostblob_allocator::provider::{Choice, Options, open};
use hostblob_benches::record::Record;
use hostblob_benches::transfers::{ByLibrary, ByVulkan, Transfers};
use hostblob_benches::vulkan::Vulkan;
use hostblob_benches::{Served, config, is_quick};

const LARGEST: u64 = 64 << 20;

/// Sizes, and how many of each in a round.
const SIZES: [(u64, usize); 5] = [
    (4 << 10, 250),
    (64 << 10, 250),
    (1 << 20, 100),
    (16 << 20, 10),
    (LARGEST, 4),
];

fn main() -> Result<()> {
    let rounds = if is_quick()? { 2 } else { 5 };
    let opened = open(Choice::Vulkan, &Options::default())?;
    let host = hostblob_allocator::Host::new(opened.provider, config())
        .context("no address space for the window")?;
    let served = Served::new(host);
    let vulkan = Vulkan::open()?;
    let mut library = ByLibrary::new(served.open(), LARGEST)?;
    let mut direct = ByVulkan::new(&vulkan, LARGEST)?;
    for round in 0..rounds {
        for (size, count) in SIZES {
            let mut systems: [(&str, &mut dyn Transfers); 2] =
                [("hostblob", &mut library), ("Vulkan", &mut direct)];
            for (name, transfers) in &mut systems {
                let record = |row| Record {
                    round,
                    size,
                    ..Record::new(name, row, "us")
                };
                let (mut fills, mut copies) = (record("fill"), record("copy"));
                for value in 1..=count {
                    let start = Instant::now();
                    transfers.fill(size, u32::try_from(value)?)?;
                    fills.samples.push(start.elapsed().as_secs_f64() * 1e6);
                    let start = Instant::now();
                    transfers.copy(size)?;
                    copies.samples.push(start.elapsed().as_secs_f64() * 1e6);
                }
                fills.print()?;
                copies.print()?;
            }
        }
    }
    Ok(())
}
