//! `resets WAY BOOTS`: holds memory and lets the machine be reset, over and over; in each boot the memory must be zeros and work.
//!
//! `HOSTBLOB_BOOT` counts boots from 1; in boot BOOTS it ends. Before, it prints `held` and does what WAY says:
//! - `orderly`: frees everything, waits until the device has heard of it, then reboots;
//! - `forced`: reboots (as `reboot -f`) while this process and another hold memory;
//! - `panic`: the kernel panics, and reboots by that;
//! - `wait`: waits to be reset, or killed, from outside;
//! - `churn`: instead maps, writes and unmaps memory with GPU work under way, until it is killed from outside.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hostblob_guest::{AllocateInfo, Device, Memory, OpenOptions, WHOLE_SIZE};
use hostblob_tests::pattern;
use hostblob_tests::raw::Node;
use hostblob_tests::scenario::PATIENCE;
use rustix::system::{RebootCommand, reboot};

/// Longest time until something from outside ends the machine.
const END: Duration = Duration::from_secs(120);

const SIZES: [u64; 5] = [4096, 65536, 1 << 20, 5 << 20, 32 << 20];

/// A device that works, with all of its memory zeros at first, and dirty now.
fn use_device() -> Result<(Device, Vec<Memory>)> {
    let device = Device::open(&OpenOptions::default())?;
    let mut held = Vec::new();
    for size in SIZES {
        let memory = device.allocate(&AllocateInfo::new(size).dedicated())?;
        pattern::check_zero(&memory).with_context(|| format!("{size} bytes"))?;
        held.push(memory);
    }
    let plain = device.create_plain_blob(1 << 20)?;
    pattern::check_zero(&plain).context("plain blob")?;
    for (seed, memory) in (1..).zip(&held) {
        pattern::write(memory, seed)?;
    }
    for pair in held.windows(2) {
        let [from, to] = pair else {
            bail!("windows of 2")
        };
        device
            .copy(from, 0, to, to.size() - from.size(), from.size())?
            .wait(Some(PATIENCE))?;
    }
    for (seed, pair) in (1..).zip(held.windows(2)) {
        let [from, to] = pair else {
            bail!("windows of 2")
        };
        let start = to.size() - from.size();
        let rest = pattern::bytes(seed + 1, 0, start);
        pattern::check_at(to, 0, &rest).context("beside the copy")?;
    }
    Ok((device, held))
}

/// Maps, writes and unmaps, with GPU work under way on what goes.
fn churn() -> Result<()> {
    let device = Device::open(&OpenOptions::default())?;
    let start = Instant::now();
    let mut lived = 0_u64;
    while start.elapsed() < END {
        for size in [4096, 65536, 1 << 20] {
            let memory = device.allocate(&AllocateInfo::new(size).dedicated())?;
            pattern::check_zero(&memory).with_context(|| format!("memory {lived}"))?;
            pattern::write(&memory, lived)?;
            let fence = device.fill(&memory, 0, WHOLE_SIZE, 0xffff_ffff)?;
            std::mem::forget(fence);
            lived += 1;
        }
        println!("lived {lived}");
    }
    bail!("nothing ended the machine")
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [way, boots] = arguments.as_slice() else {
        bail!("resets WAY BOOTS")
    };
    if way == "churn" {
        return churn();
    }
    let boots: u32 = boots.parse()?;
    let boot: u32 = std::env::var("HOSTBLOB_BOOT")?.parse()?;
    let (device, held) = use_device().with_context(|| format!("boot {boot}"))?;
    let (second, more) = use_device().with_context(|| format!("boot {boot}, second context"))?;
    println!("held in boot {boot}");
    if boot >= boots {
        println!("done");
        return Ok(());
    }
    match way.as_str() {
        "orderly" => {
            drop((held, more, device, second));
            Node::open_card()?.catch_up()?;
            reboot(RebootCommand::Restart)?;
        }
        "forced" => {
            // Work that is under way when the machine goes.
            for memory in held.iter().rev() {
                let fence = device.fill(memory, 0, WHOLE_SIZE, 0xffff_ffff)?;
                std::mem::forget(fence);
            }
            reboot(RebootCommand::Restart)?;
        }
        "panic" => {
            std::fs::write("/proc/sys/kernel/sysrq", "1")?;
            std::fs::write("/proc/sysrq-trigger", "c")?;
        }
        "wait" => {}
        other => bail!("no way {other}"),
    }
    std::thread::sleep(END);
    ensure!(false, "nothing reset the machine");
    Ok(())
}
