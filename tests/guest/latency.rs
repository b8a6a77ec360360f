//! How long things take, seen from a guest process: a table for people and one line for machines. Nothing is asserted about times.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use hostblob_guest::{AllocateInfo, Blob, Device};

use crate::raw::{Mapped, Node, RawBlob};
use crate::scenario::PATIENCE;

/// Live blobs beside the measured ones.
pub const LIVE: [usize; 4] = [0, 100, 1_000, 10_000];

const ROUND_TRIP: &str = "round trip of a request";

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// One measured thing.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// What.
    pub what: String,
    /// Live blobs meanwhile.
    pub live: usize,
    /// How many times.
    pub count: usize,
    /// Microseconds.
    pub median: f64,
    /// Microseconds.
    pub p90: f64,
    /// Microseconds.
    pub p99: f64,
}

impl Row {
    fn new(what: impl Into<String>, live: usize, mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        let at = |percent: usize| {
            times[(times.len() * percent / 100).min(times.len() - 1)].as_secs_f64() * 1e6
        };
        Self {
            what: what.into(),
            live,
            count: times.len(),
            median: at(50),
            p90: at(90),
            p99: at(99),
        }
    }
}

/// Who makes blobs.
pub trait Maker {
    /// A mapped blob.
    type Held;
    /// Creates, maps, and maps into this process.
    fn make(&self, size: u64) -> Result<Self::Held>;
    /// Writes each page.
    fn touch(&self, held: &Self::Held) -> Result<()>;
    /// Gives it back.
    fn release(&self, held: Self::Held) -> Result<()>;
    /// Waits until all that was given back is gone.
    fn settle(&self) -> Result<()>;
}

/// By ioctls alone.
impl Maker for Node {
    type Held = (RawBlob, Mapped);

    fn make(&self, size: u64) -> Result<Self::Held> {
        let blob = self.create(size)?;
        let mapped = self.map(&blob)?;
        Ok((blob, mapped))
    }

    fn touch(&self, held: &Self::Held) -> Result<()> {
        held.1.touch();
        Ok(())
    }

    fn release(&self, held: Self::Held) -> Result<()> {
        drop(held.1);
        self.close(held.0)
    }

    /// The kernel destroys blobs in a work queue, and tells nobody when it is through with 10,000.
    fn settle(&self) -> Result<()> {
        std::thread::sleep(Duration::from_secs(3));
        Ok(())
    }
}

/// By the library, for where there is no kernel.
impl Maker for Device {
    type Held = Blob;

    fn make(&self, size: u64) -> Result<Blob> {
        Ok(self.create_plain_blob(size)?)
    }

    fn touch(&self, held: &Blob) -> Result<()> {
        (0..held.size())
            .step_by(4096)
            .try_for_each(|offset| Ok(held.write(offset, &[1])?))
    }

    fn release(&self, held: Blob) -> Result<()> {
        drop(held);
        Ok(())
    }

    /// The device handles commands in order, and [`Device::budget`] waits for its answer.
    fn settle(&self) -> Result<()> {
        self.budget(0)?;
        Ok(())
    }
}

/// How often the levels of [`LIVE`] are gone through, so that a slow moment of the machine falls on all of them.
const ROUNDS: usize = 4;

/// Blobs of 4 KiB beside [`LIVE`] others, and of 1 MiB and 64 MiB: until mapped, first touch of every page, and release.
pub fn blobs<M: Maker>(maker: &M, count: usize) -> Result<Vec<Row>> {
    ensure!(count > 0, "nothing to measure");
    let mut small = LIVE.map(|_| Times::default());
    for _ in 0..ROUNDS {
        let mut live = Vec::new();
        for (number, times) in LIVE.into_iter().zip(&mut small) {
            while live.len() < number {
                live.push(maker.make(4 * KIB)?);
            }
            times.add(maker, 4 * KIB, count.div_ceil(ROUNDS))?;
        }
        live.into_iter().try_for_each(|held| maker.release(held))?;
        maker.settle()?;
    }
    let mut rows = Vec::new();
    for (live, times) in LIVE.into_iter().zip(small) {
        rows.extend(times.rows("4 KiB", live));
    }
    for (name, size, count) in [("1 MiB", MIB, count.div_ceil(2)), ("64 MiB", 64 * MIB, 4)] {
        let mut times = Times::default();
        times.add(maker, size, count)?;
        rows.extend(times.rows(name, 0));
    }
    Ok(rows)
}

/// The stages of a blob's life.
#[derive(Debug, Default)]
struct Times {
    made: Vec<Duration>,
    touched: Vec<Duration>,
    released: Vec<Duration>,
}

impl Times {
    /// Measures `count` blobs, after one that is none of them.
    fn add<M: Maker>(&mut self, maker: &M, size: u64, count: usize) -> Result<()> {
        maker.release(maker.make(size)?)?;
        for _ in 0..count {
            let start = Instant::now();
            let held = maker.make(size)?;
            self.made.push(start.elapsed());
            let start = Instant::now();
            maker.touch(&held)?;
            self.touched.push(start.elapsed());
            let start = Instant::now();
            maker.release(held)?;
            self.released.push(start.elapsed());
        }
        Ok(())
    }

    fn rows(self, size: &str, live: usize) -> [Row; 3] {
        let stages = [
            ("create + map + mmap", self.made),
            ("first touch of each page", self.touched),
            ("release", self.released),
        ];
        stages.map(|(stage, times)| Row::new(format!("blob of {size}: {stage}"), live, times))
    }
}

/// Small memories out of a block, and host GPU copies until their fence.
pub fn library(device: &Device, count: usize) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    let keep = device.allocate(&AllocateInfo::new(4 * KIB))?;
    ensure!(keep.is_suballocated(), "4 KiB have a blob of their own");
    // In batches: one is shorter than a look at the clock.
    const BATCH: u32 = 64;
    let mut times = Vec::new();
    for _ in 0..count {
        let start = Instant::now();
        for _ in 0..BATCH {
            drop(device.allocate(&AllocateInfo::new(4 * KIB))?);
        }
        times.push(start.elapsed() / BATCH);
    }
    rows.push(Row::new(
        "library: allocate + free 4 KiB from a block",
        1,
        times,
    ));
    // What no creation can be faster than: a command and its interrupt.
    let mut times = Vec::new();
    for _ in 0..count {
        let start = Instant::now();
        device.budget(0)?;
        times.push(start.elapsed());
    }
    rows.push(Row::new(ROUND_TRIP, 1, times));
    for (name, size) in [("4 KiB", 4 * KIB), ("1 MiB", MIB)] {
        let info = AllocateInfo::new(size).dedicated();
        let (from, to) = (device.allocate(&info)?, device.allocate(&info)?);
        let mut times = Vec::new();
        for round in 0..count.div_ceil(2) {
            let value = [round as u8 | 1; 8];
            from.write(size - 8, &value)?;
            let start = Instant::now();
            device.copy(&from, 0, &to, 0, size)?.wait(Some(PATIENCE))?;
            times.push(start.elapsed());
            let mut found = [0; 8];
            to.read(size - 8, &mut found)?;
            ensure!(found == value, "the copy of round {round} is not there");
        }
        rows.push(Row::new(
            format!("host GPU copy of {name}, until its fence"),
            2,
            times,
        ));
    }
    Ok(rows)
}

/// For people.
pub fn table(rows: &[Row]) -> String {
    let mut text = format!(
        "{:<48} {:>6} {:>6} {:>11} {:>11} {:>11}\n",
        "microseconds", "live", "runs", "median", "90 %", "99 %"
    );
    for row in rows {
        text += &format!(
            "{:<48} {:>6} {:>6} {:>11.2} {:>11.2} {:>11.2}\n",
            row.what, row.live, row.count, row.median, row.p90, row.p99
        );
    }
    text
}

/// How much slower a 4 KiB blob is made among the most live ones than among none.
pub fn ratio(rows: &[Row]) -> Option<f64> {
    let median = |live| {
        let row = rows
            .iter()
            .find(|row| row.live == live && row.what.starts_with("blob of 4 KiB: create"));
        row.map(|row| row.median)
    };
    Some(median(LIVE[LIVE.len() - 1])? / median(LIVE[0])?)
}

/// For machines: one line of JSON after `latency: `.
pub fn line(rows: &[Row]) -> String {
    let one = |row: &Row| {
        format!(
            r#"{{"what":"{}","live":{},"count":{},"median_us":{:.3},"p90_us":{:.3},"p99_us":{:.3}}}"#,
            row.what, row.live, row.count, row.median, row.p90, row.p99
        )
    };
    let rows: Vec<_> = rows.iter().map(one).collect();
    format!("latency: [{}]", rows.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_of_known_times() {
        let times = (1..=100).rev().map(Duration::from_micros).collect();
        let row = Row::new("x", 3, times);
        assert_eq!(
            (row.count, row.median, row.p90, row.p99),
            (100, 51.0, 91.0, 100.0)
        );
        assert_eq!(
            line(&[row]),
            r#"latency: [{"what":"x","live":3,"count":100,"median_us":51.000,"p90_us":91.000,"p99_us":100.000}]"#
        );
    }
}
