//! `bench-resident SOCKET PID SECONDS`: bytes of a daemon's window that have pages, while a client takes 256 MiB, writes them, gives them
//! back, and then idles for SECONDS.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hostblob_benches::record::Record;
use hostblob_guest::{AllocateInfo, Device, OpenOptions};

const SIZE: u64 = 1 << 20;
const COUNT: usize = 256;
const PERIOD: Duration = Duration::from_millis(50);
const PAUSE: Duration = Duration::from_secs(1);

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [socket, pid, seconds] = arguments.as_slice() else {
        anyhow::bail!("bench-resident SOCKET PID SECONDS");
    };
    let (pid, seconds): (u32, u64) = (pid.parse()?, seconds.parse()?);
    let device = Device::open(&OpenOptions::socket(socket))?;
    let files = windows(pid)?;
    let done = AtomicBool::new(false);
    let mut record = Record::new("", "resident", "bytes");
    std::thread::scope(|scope| -> Result<()> {
        let work = scope.spawn(|| {
            let result = use_memory(&device, Duration::from_secs(seconds));
            done.store(true, Ordering::Release);
            result
        });
        let start = Instant::now();
        while !done.load(Ordering::Acquire) {
            let bytes: u64 = files.iter().map(resident).sum();
            record.samples.push(bytes as f64);
            record.at.push(start.elapsed().as_secs_f64());
            std::thread::sleep(PERIOD);
        }
        work.join().map_err(|_| anyhow::anyhow!("it panicked"))?
    })?;
    Ok(record.print()?)
}

fn use_memory(device: &Device, idle: Duration) -> Result<()> {
    std::thread::sleep(PAUSE);
    let info = AllocateInfo::new(SIZE).dedicated();
    let bytes = vec![1; usize::try_from(SIZE)?];
    let mut held = Vec::new();
    for _ in 0..COUNT {
        let memory = device.allocate(&info)?;
        memory.write(0, &bytes)?;
        held.push(memory);
    }
    std::thread::sleep(PAUSE);
    drop(held);
    std::thread::sleep(idle);
    Ok(())
}

/// The memfds that the process has open.
fn windows(pid: u32) -> Result<Vec<PathBuf>> {
    let folder = format!("/proc/{pid}/fd");
    let entries = fs::read_dir(&folder).with_context(|| format!("{folder} cannot be read"))?;
    let mut files: Vec<_> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| fs::read_link(path).is_ok_and(|to| to.to_string_lossy().contains("memfd:")))
        .collect();
    // One file may be open several times.
    let number = |path: &PathBuf| fs::metadata(path).map_or(0, |data| data.ino());
    files.sort_by_key(number);
    files.dedup_by_key(|path| number(path));
    ensure!(!files.is_empty(), "process {pid} has no memfd");
    Ok(files)
}

/// Blocks of 512 bytes: pages that are there.
fn resident(file: &PathBuf) -> u64 {
    fs::metadata(file).map_or(0, |data| data.blocks() * 512)
}
