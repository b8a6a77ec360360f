//! `allocators`: gpu-allocator and the Vulkan Memory Allocator on the first Vulkan device. A line for each check, as of scenarios.
//! `allocators --mistake` does what Vulkan forbids, for the validation layer to tell.
//!
//! Their own examples and tests want a queue with graphics (gpu-allocator 0.28) or Vulkan 1.3 (vk-mem 0.5), which this device has not. These do
//! as much by the same calls, and compare bytes. Through the loader, so it is not static: an example, which the guest's programs are not.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "tests: what does not hold must stop them, and the sizes are their own"
)]

mod gpu;
mod gpu_allocator;
mod vma;

use std::time::Instant;

use anyhow::{Result, ensure};
use gpu::Gpu;
use hostblob_tests::report;

/// A check, on a device that others use before and after it.
type Check = fn(&Gpu) -> Result<()>;

macro_rules! registry {
    (stock { $($program:ident,)* } $($module:ident { $($check:ident,)* })*) => {
        const CHECKS: &[(&str, Check)] = &[$($((stringify!($check), $module::$check),)*)*];
    };
}
hostblob_tests::for_each_vulkan_check!(registry);

fn main() -> Result<()> {
    let gpu = Gpu::open()?;
    if std::env::args().nth(1).as_deref() == Some("--mistake") {
        // Whether the driver takes it is not the question.
        if let Ok(buffer) = gpu.buffer(0) {
            // SAFETY: it was never bound.
            unsafe { gpu.device.destroy_buffer(buffer, None) };
        }
        return Ok(());
    }
    // A driver may keep a block for what comes next.
    gpu.warm_up(64 << 20)?;
    let mut failed = 0;
    for (name, check) in CHECKS {
        let start = Instant::now();
        let result = apart(&gpu, *check);
        failed += u32::from(result.is_err());
        println!("{}", report::line(name, &result, start.elapsed()));
    }
    ensure!(failed == 0, "{failed} checks failed");
    Ok(())
}

/// Runs a check, which leaves no memory behind.
fn apart(gpu: &Gpu, check: Check) -> Result<()> {
    let before = gpu.usage();
    check(gpu)?;
    gpu.settles_at(before)
}
