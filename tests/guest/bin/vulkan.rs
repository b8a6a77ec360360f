//! `vulkan ALLOCATORS MEMORY`: runs programs on the Vulkan driver that the environment names. A line for each check, as of scenarios.
//! `vulkan --tell MEMORY`: shows what vulkaninfo and the C program have to say.

use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use hostblob_tests::report;
use hostblob_tests::vulkan::{STOCK, Setup};

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (Some(allocators), Some(memory)) = (arguments.next(), arguments.next()) else {
        bail!("usage: vulkan ALLOCATORS MEMORY | --tell MEMORY");
    };
    if allocators == "--tell" {
        return tell(&memory);
    }
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

/// Shows the devices that vulkaninfo lists, and runs the C program.
fn tell(memory: &str) -> Result<()> {
    let output = Command::new("vulkaninfo").arg("--summary").output();
    let output = output.context("vulkaninfo cannot be run")?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success(),
        "vulkaninfo ended with {}: {text}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    let devices = text.split_once("Devices:").map_or("", |(_, rest)| rest);
    for line in devices.lines().filter(|line| line.starts_with('\t')) {
        println!("vulkaninfo: {}", line.trim());
    }
    let status = Command::new(memory).status();
    let status = status.with_context(|| format!("{memory} cannot be run"))?;
    ensure!(status.success(), "{memory} ended with {status}");
    Ok(())
}
