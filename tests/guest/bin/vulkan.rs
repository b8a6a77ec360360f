//! `vulkan ALLOCATORS MEMORY`: runs programs on the Vulkan driver that the environment names. A line for each check, as of scenarios.

use std::time::Instant;

use anyhow::{Result, bail, ensure};
use hostblob_tests::report;
use hostblob_tests::vulkan::{STOCK, Setup};

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (Some(allocators), Some(memory)) = (arguments.next(), arguments.next()) else {
        bail!("usage: vulkan ALLOCATORS MEMORY");
    };
    let setup = Setup {
        allocators: allocators.into(),
        memory: memory.into(),
        environment: Vec::new(),
        folder: std::env::temp_dir(),
    };
    let mut failed = 0;
    for (name, check) in STOCK {
        let start = Instant::now();
        let result = check(&setup);
        failed += u32::from(result.is_err());
        println!("{}", report::line(name, &result, start.elapsed()));
    }
    ensure!(failed == 0, "{failed} checks failed");
    Ok(())
}
