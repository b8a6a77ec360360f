//! `bench-commands NUMBER AMONG LIVES`: blobs created, mapped and destroyed by the commands of the control queue, beside AMONG others that live.
//!
//! Prints how long a life takes where each ends before the next begins. Under strace calls of getppid tell its phases apart: setting up;
//! NUMBER creations in a part of the window that has been used and cleaned; their ends; LIVES lives; the rest.

use std::hint::black_box;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use hostblob_benches::record::Record;
use hostblob_benches::{Driver, host};

/// Lives that are timed together.
const BATCH: u32 = 20;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1).map(|text| text.parse::<u32>());
    let mut number = || {
        arguments
            .next()
            .context("bench-commands NUMBER AMONG LIVES")
    };
    let (number, among, lives) = (number()??, number()??, number()??);
    let mut driver = Driver::new(&host(), among);
    let warm: Vec<_> = (0..number).map(|_| driver.create()).collect();
    // The last one first: each gives its place, and its number, to the next.
    warm.into_iter()
        .rev()
        .for_each(|resource| driver.destroy(resource));
    settle();
    let mut held = Vec::with_capacity(usize::try_from(number)?);
    mark();
    for _ in 0..number {
        held.push(driver.create());
    }
    mark();
    held.into_iter()
        .rev()
        .for_each(|resource| driver.destroy(resource));
    settle();
    mark();
    let mut record = Record {
        live: among.into(),
        ..Record::new("", "life", "us")
    };
    for _ in 0..lives.div_ceil(BATCH) {
        let start = Instant::now();
        for _ in 0..BATCH {
            let resource = driver.create();
            driver.destroy(black_box(resource));
        }
        let time = start.elapsed().as_secs_f64() * 1e6;
        record.samples.push(time / f64::from(BATCH));
    }
    mark();
    Ok(record.print()?)
}

/// The cleaning worker needs some milliseconds, under callgrind more.
fn settle() {
    std::thread::sleep(Duration::from_secs(1));
}

fn mark() {
    let _ = rustix::process::getppid();
}
