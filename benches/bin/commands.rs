//! `bench-commands NUMBER AMONG`: blobs created, mapped and destroyed by the commands of the control queue, beside AMONG others that live.
//!
//! To be run under callgrind, or under strace, where calls of getppid tell its phases apart: setting up; NUMBER creations in a part
//! of the window that has been used and cleaned; their ends; the rest.

use std::time::Duration;

use anyhow::{Context, Result};
use hostblob_benches::{Driver, host};

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1).map(|text| text.parse::<u32>());
    let mut number = || arguments.next().context("bench-commands NUMBER AMONG");
    let (number, among) = (number()??, number()??);
    let mut driver = Driver::new(&host(), among);
    let warm: Vec<_> = (0..number).map(|_| driver.create()).collect();
    // The last one first: each gives its place, and its number, to the next.
    warm.into_iter()
        .rev()
        .for_each(|resource| driver.destroy(resource));
    // The cleaning worker needs some milliseconds, under callgrind more.
    std::thread::sleep(Duration::from_secs(1));
    let mut held = Vec::with_capacity(usize::try_from(number)?);
    mark();
    for _ in 0..number {
        held.push(driver.create());
    }
    mark();
    held.into_iter()
        .rev()
        .for_each(|resource| driver.destroy(resource));
    mark();
    Ok(())
}

fn mark() {
    let _ = rustix::process::getppid();
}
