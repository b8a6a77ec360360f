//! `driver_dies TIMES [SOCKET]`: uses the GPU without a pause while the process with its driver is killed from outside, until it has seen that so
//! often. Whatever dies, memory that was written stays as it was, and new memory is given, mapped and zero.
//!
//! Prints `ready` when it begins, then how it went.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use hostblob_guest::{
    AllocateInfo, Device, Endpoint, Error, Fence, Memory, OpenOptions, Status, WHOLE_SIZE,
};
use hostblob_tests::pattern;
use hostblob_tests::scenario::PATIENCE;
use hostblob_tests::scenario::gpu::private;

const SIZE: u64 = 1 << 20;
/// The driver is there again after so many pauses, or never.
const TRIES: u32 = 2000;
const PAUSE: Duration = Duration::from_millis(10);

/// Whether GPU work was done; `false` where it was lost.
fn is_done(fence: hostblob_guest::Result<Fence>) -> Result<bool> {
    let done = fence.and_then(|fence| fence.wait(Some(PATIENCE)));
    match done.map_err(anyhow::Error::from) {
        Ok(()) => Ok(true),
        Err(error) if is_lost(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Device memory, from a driver that is there.
fn device_memory(device: &Device) -> Result<Memory> {
    for _ in 0..TRIES {
        match private(device, SIZE) {
            Err(error) if is_lost(&error) => std::thread::sleep(PAUSE),
            other => return other,
        }
    }
    bail!("the driver does not come back")
}

fn is_lost(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<Error>();
    error.and_then(Error::status) == Some(Status::DeviceLost)
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let times: u32 = arguments
        .next()
        .context("driver_dies TIMES [SOCKET]")?
        .parse()?;
    let mut options = OpenOptions::default();
    if let Some(socket) = arguments.next() {
        options.endpoint = Endpoint::Socket(PathBuf::from(socket));
    }
    let device = Device::open(&options)?;
    let mapped = || device.allocate(&AllocateInfo::new(SIZE).dedicated());
    let (from, to, kept) = (mapped()?, mapped()?, mapped()?);
    pattern::write(&kept, 7)?;
    println!("ready");
    let mut local = device_memory(&device)?;
    let (mut rounds, mut deaths, mut lost) = (0_u64, 0_u32, 0_u32);
    while deaths < times {
        rounds += 1;
        let lost_before = lost;
        // What the CPU wrote is what the GPU copies, as soon as there is one.
        pattern::write(&from, rounds)?;
        let mut tries = 0;
        while !is_done(device.copy(&from, 0, &to, 0, SIZE))? {
            lost += 1;
            tries += 1;
            ensure!(tries < TRIES, "the driver does not come back");
            std::thread::sleep(PAUSE);
        }
        pattern::check(&to, rounds).context("what was copied")?;
        pattern::check(&from, rounds).context("what was written")?;
        pattern::check(&kept, 7).context("what nobody touched")?;
        // Mapping asks nothing of the driver.
        let fresh = mapped()?;
        pattern::check_zero(&fresh).context("new memory")?;
        pattern::write(&fresh, rounds)?;
        // Device memory goes with the driver: it is lost, or it has what the GPU put there.
        if is_done(device.fill(&local, 0, WHOLE_SIZE, 0x0101_0101))?
            && is_done(device.copy(&local, 0, &fresh, 0, SIZE))?
        {
            let mut bytes = [0; 8];
            fresh.read(SIZE - 8, &mut bytes)?;
            if bytes != [1; 8] {
                bail!("device memory has {bytes:?}");
            }
        } else {
            lost += 1;
            local = device_memory(&device)?;
        }
        // Of one driver, or of more: not of one that an earlier round has missed.
        deaths += u32::from(lost > lost_before);
    }
    println!("{rounds} rounds, {deaths} with a driver that died, {lost} requests lost, no byte");
    Ok(())
}
