//! How long things take, seen from a guest process: one measurement for the demo, the tests and `cargo xtask bench`.
//! Nothing is asserted about times.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hostblob_guest::protocol::EnvelopeBuilder;
use hostblob_guest::{AllocateInfo, Blob, Device};

use crate::raw::{CAPSET_ID, Mapped, Node, RawBlob};
use crate::scenario::PATIENCE;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// What is measured. The names are those of the records that `hostblob-benches` reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Row {
    /// A blob created, mapped by the host, mapped into this process.
    Map,
    /// Each of its pages written for the first time.
    Touch,
    /// The blob unmapped and closed. The host's part of it comes later.
    Release,
    /// A command that does nothing, until its response.
    RoundTrip,
    /// memcpy into a mapped blob.
    CopyToBlob,
    /// memcpy into memory of the guest.
    CopyToRam,
    /// memset of memory of the guest that is there already.
    WarmMemset,
    /// The library's allocation from a block, and its end.
    Library,
    /// The library's copy by the host GPU, until its fence.
    GpuCopy,
}

impl Row {
    /// In records.
    pub fn name(self) -> &'static str {
        match self {
            Row::Map => "map",
            Row::Touch => "touch",
            Row::Release => "release",
            Row::RoundTrip => "round-trip",
            Row::CopyToBlob => "copy-to-blob",
            Row::CopyToRam => "copy-to-ram",
            Row::WarmMemset => "warm-memset",
            Row::Library => "library",
            Row::GpuCopy => "gpu-copy",
        }
    }

    fn title(self) -> &'static str {
        match self {
            Row::Map => "create + map + mmap",
            Row::Touch => "first touch of each page",
            Row::Release => "release",
            Row::RoundTrip => "round trip of an empty command",
            Row::CopyToBlob => "memcpy into a blob",
            Row::CopyToRam => "memcpy into the guest's memory",
            Row::WarmMemset => "memset of warm memory",
            Row::Library => "library: allocate + free from a block",
            Row::GpuCopy => "host GPU copy, until its fence",
        }
    }
}

/// Times of one thing.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// What.
    pub row: Row,
    /// Bytes; 0 where there are none.
    pub size: u64,
    /// Blobs alive meanwhile.
    pub live: usize,
    /// Each time.
    pub times: Vec<Duration>,
}

impl Series {
    fn new(row: Row, size: u64, live: usize) -> Self {
        Self {
            row,
            size,
            live,
            times: Vec::new(),
        }
    }

    fn time<T>(&mut self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let start = Instant::now();
        let done = work()?;
        self.times.push(start.elapsed());
        Ok(done)
    }

    /// Microseconds; no more than `percent` of the times are below.
    fn percentile(&self, percent: usize) -> f64 {
        let mut times = self.times.clone();
        times.sort_unstable();
        let last = times.len().saturating_sub(1);
        let at = times.get((times.len() * percent / 100).min(last));
        at.map_or(f64::NAN, |time| time.as_secs_f64() * 1e6)
    }

    /// For machines: `bench ` and a line of JSON. Times in microseconds.
    pub fn line(&self) -> String {
        let samples: Vec<_> = self
            .times
            .iter()
            .map(|time| format!("{:.3}", time.as_secs_f64() * 1e6))
            .collect();
        format!(
            r#"bench {{"row":"{}","size":{},"live":{},"unit":"us","samples":[{}]}}"#,
            self.row.name(),
            self.size,
            self.live,
            samples.join(",")
        )
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

    /// The kernel destroys blobs in a work queue, and tells nobody when it is through: what comes after it on the queue does.
    fn settle(&self) -> Result<()> {
        std::thread::sleep(Duration::from_secs(1));
        self.release(self.make(4 * KIB)?)
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

/// What one round goes through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Live blobs of 4 KiB beside the measured ones; rising.
    pub live: Vec<usize>,
    /// Sizes, and how many blobs of each at each number of live ones.
    pub sizes: Vec<(u64, usize)>,
}

impl Plan {
    /// `0,100,1000` and `4096x250,1048576x50`.
    pub fn parse(live: &str, sizes: &str) -> Result<Self> {
        let live = live
            .split(',')
            .map(str::parse)
            .collect::<Result<Vec<usize>, _>>()?;
        ensure!(live.is_sorted(), "numbers of live blobs must rise");
        let size = |text: &str| {
            let (size, count) = text.split_once('x').context("SIZExCOUNT")?;
            Ok((size.parse()?, count.parse()?))
        };
        let plan = Self {
            live,
            sizes: sizes.split(',').map(size).collect::<Result<_>>()?,
        };
        ensure!(
            plan.sizes.iter().all(|&(_, count)| count > 0),
            "nothing to measure"
        );
        Ok(plan)
    }
}

/// One round of blobs' lives: so a slow moment of the machine falls on all numbers of live blobs, where there are several rounds.
pub fn lives<M: Maker>(maker: &M, plan: &Plan) -> Result<Vec<Series>> {
    let mut all = Vec::new();
    let mut beside = Vec::new();
    for &live in &plan.live {
        while beside.len() < live {
            beside.push(maker.make(4 * KIB)?);
        }
        for &(size, count) in &plan.sizes {
            let [mut map, mut touch, mut release] =
                [Row::Map, Row::Touch, Row::Release].map(|row| Series::new(row, size, live));
            maker.release(maker.make(size)?)?;
            for _ in 0..count {
                let held = map.time(|| maker.make(size))?;
                touch.time(|| maker.touch(&held))?;
                release.time(|| maker.release(held))?;
            }
            all.extend([map, touch, release]);
        }
    }
    beside
        .into_iter()
        .try_for_each(|held| maker.release(held))?;
    maker.settle()?;
    Ok(all)
}

/// What no creation can be faster than: an empty command, and its interrupt.
pub fn round_trips(node: &Node, capset: u64, count: usize) -> Result<Series> {
    // To hostblob an envelope without requests; for Venus no bytes are no commands.
    let command = if capset == CAPSET_ID {
        EnvelopeBuilder::new(0).build()
    } else {
        Vec::new()
    };
    let blob = node.create(4 * KIB)?;
    drop(node.map(&blob)?);
    let mut series = Series::new(Row::RoundTrip, 0, 1);
    for _ in 0..count {
        series.time(|| {
            node.submit_for(&command, &blob)?;
            node.wait(&blob)
        })?;
    }
    node.close(blob)?;
    Ok(series)
}

/// Sizes of [`copies`], and how many of each.
const COPIES: [(u64, usize); 4] = [(4 * KIB, 250), (64 * KIB, 250), (MIB, 60), (16 * MIB, 6)];

/// memcpy into a blob and into memory of the guest, in turn; and memset of 64 MiB, which creating as much is compared with.
pub fn copies(node: &Node) -> Result<Vec<Series>> {
    let mut all = Vec::new();
    for (size, count) in COPIES {
        let length = usize::try_from(size)?;
        let source = vec![0x5a_u8; length];
        let ram = Mapped::anonymous(size)?;
        ram.touch();
        let held = node.make(size)?;
        held.1.touch();
        let [mut to_blob, mut to_ram] =
            [Row::CopyToBlob, Row::CopyToRam].map(|row| Series::new(row, size, 1));
        for _ in 0..count {
            to_blob.time(|| {
                held.1.copy_from(&source);
                Ok(())
            })?;
            to_ram.time(|| {
                ram.copy_from(&source);
                Ok(())
            })?;
        }
        node.release(held)?;
        all.extend([to_blob, to_ram]);
    }
    let mut warm = Mapped::anonymous(64 * MIB)?;
    warm.touch();
    let mut memset = Series::new(Row::WarmMemset, 64 * MIB, 0);
    for value in 0..COPIES[3].1 {
        // Not bytes that are all the same: memset's string instruction is slow where it is emulated.
        memset.time(|| {
            std::hint::black_box(&mut warm).fill(value as u64);
            Ok(())
        })?;
    }
    all.push(memset);
    Ok(all)
}

/// How often [`measure`] goes through the numbers of live blobs.
const ROUNDS: usize = 4;

/// Four rounds as one: some `count` blobs of 4 KiB beside 0 to 10,000 others, fewer of 1 MiB and 64 MiB.
pub fn measure<M: Maker>(maker: &M, count: usize) -> Result<Vec<Series>> {
    let plan = Plan {
        live: vec![0, 100, 1_000, 10_000],
        sizes: vec![(4 * KIB, count.div_ceil(ROUNDS))],
    };
    let large = Plan {
        live: vec![0],
        sizes: vec![(MIB, count.div_ceil(2 * ROUNDS)), (64 * MIB, 1)],
    };
    let mut all: Vec<Series> = Vec::new();
    for _ in 0..ROUNDS {
        for series in [lives(maker, &plan)?, lives(maker, &large)?].concat() {
            let same = |one: &&mut Series| {
                (one.row, one.size, one.live) == (series.row, series.size, series.live)
            };
            match all.iter_mut().find(same) {
                Some(one) => one.times.extend(series.times),
                None => all.push(series),
            }
        }
    }
    Ok(all)
}

/// Small memories out of a block, and host GPU copies until their fence.
pub fn library(device: &Device, count: usize) -> Result<Vec<Series>> {
    let keep = device.allocate(&AllocateInfo::new(4 * KIB))?;
    ensure!(keep.is_suballocated(), "4 KiB have a blob of their own");
    // In batches: one is shorter than a look at the clock.
    const BATCH: u32 = 64;
    let mut small = Series::new(Row::Library, 4 * KIB, 1);
    for _ in 0..count {
        let start = Instant::now();
        for _ in 0..BATCH {
            drop(device.allocate(&AllocateInfo::new(4 * KIB))?);
        }
        small.times.push(start.elapsed() / BATCH);
    }
    let mut all = vec![small];
    for size in [4 * KIB, MIB] {
        let info = AllocateInfo::new(size).dedicated();
        let (from, to) = (device.allocate(&info)?, device.allocate(&info)?);
        let mut copies = Series::new(Row::GpuCopy, size, 2);
        for round in 0..count.div_ceil(2) {
            let value = [round as u8 | 1; 8];
            from.write(size - 8, &value)?;
            copies.time(|| Ok(device.copy(&from, 0, &to, 0, size)?.wait(Some(PATIENCE))?))?;
            let mut found = [0; 8];
            to.read(size - 8, &mut found)?;
            ensure!(found == value, "the copy of round {round} is not there");
        }
        all.push(copies);
    }
    Ok(all)
}

/// For people.
pub fn table(all: &[Series]) -> String {
    let mut text = format!(
        "{:<40} {:>8} {:>6} {:>6} {:>11} {:>11} {:>11}\n",
        "microseconds", "size", "live", "runs", "median", "90 %", "99 %"
    );
    for series in all {
        text += &format!(
            "{:<40} {:>8} {:>6} {:>6} {:>11.2} {:>11.2} {:>11.2}\n",
            series.row.title(),
            size(series.size),
            series.live,
            series.times.len(),
            series.percentile(50),
            series.percentile(90),
            series.percentile(99)
        );
    }
    text
}

fn size(bytes: u64) -> String {
    match bytes {
        0 => "-".to_owned(),
        bytes if bytes >= MIB => format!("{} MiB", bytes / MIB),
        bytes => format!("{} KiB", bytes / KIB),
    }
}

/// How much slower a 4 KiB blob is made among 10,000 live ones than among none.
pub fn ratio(all: &[Series]) -> Option<f64> {
    let median = |live| {
        let mut series = all.iter();
        let found = series.find(|one| (one.row, one.size, one.live) == (Row::Map, 4 * KIB, live));
        found.map(|series| series.percentile(50))
    };
    Some(median(10_000)? / median(0)?)
}

/// What `cargo xtask bench` asks of the program in the guest, a line each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// One round of all that is measured here.
    Round,
    /// So many blobs of 4 KiB, one after the other: for who counts meanwhile what the host does.
    Lives(usize),
    /// Ends.
    End,
}

impl Request {
    /// A line.
    pub fn parse(line: &str) -> Result<Self> {
        match line.trim().split(' ').collect::<Vec<_>>().as_slice() {
            ["round"] => Ok(Self::Round),
            ["lives", count] => Ok(Self::Lives(count.parse()?)),
            ["end"] => Ok(Self::End),
            _ => bail!("no request: {line:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_of_known_times() {
        let series = Series {
            times: (1..=100).rev().map(Duration::from_micros).collect(),
            ..Series::new(Row::Map, 4096, 3)
        };
        let found = [50, 90, 99].map(|percent| series.percentile(percent));
        assert_eq!(found, [51.0, 91.0, 100.0]);
    }

    #[test]
    fn records_are_lines() {
        let mut series = Series::new(Row::Touch, 65536, 100);
        series.times = vec![Duration::from_nanos(1_500), Duration::from_micros(20)];
        assert_eq!(
            series.line(),
            r#"bench {"row":"touch","size":65536,"live":100,"unit":"us","samples":[1.500,20.000]}"#
        );
    }

    #[test]
    fn plans_and_requests_are_read() {
        let plan = Plan::parse("0,100", "4096x250,65536x2").unwrap();
        assert_eq!(plan.live, [0, 100]);
        assert_eq!(plan.sizes, [(4096, 250), (65536, 2)]);
        for (live, sizes) in [
            ("", "1x1"),
            ("0,x", "1x1"),
            ("100,0", "1x1"),
            ("0", "1"),
            ("0", "1x0"),
        ] {
            assert!(Plan::parse(live, sizes).is_err(), "{live} {sizes}");
        }
        assert_eq!(Request::parse("lives 20\n").unwrap(), Request::Lives(20));
        assert!(Request::parse("lives").is_err());
    }
}
