//! `cargo xtask bench`: everything that is measured, in one run, beside peers: a report with ratios, bars and plots.
//!
//! | module | measures |
//! |---|---|
//! | `guests` | what a guest waits for, under hostblobd and under other devices, in turn |
//! | `vulkan` | what a program waits for that knows Vulkan alone, on our driver and on Venus |
//! | `host` | the library and the daemon without a virtual machine: times, instructions, system calls, bytes |
//! | `traced` | what a daemon asks of its kernel |
//!
//! All of it goes, as records, into one file, from which the program `report` of the package `hostblob-benches` makes the report.

mod guests;
mod host;
mod traced;
mod vulkan;

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};

use crate::environment::Environment;
use crate::host_packages::{self, Extent};
use crate::progress::{note, step};
use crate::{apt, build};

const PACKAGE: &str = "hostblob-benches";

/// How much.
#[derive(Debug, Clone, clap::Args)]
pub struct Flags {
    /// Few rounds: to see that everything runs. The figures mean nothing
    #[arg(long)]
    pub quick: bool,
    /// Put the tables and plots into docs/performance.md and docs/bench
    #[arg(long)]
    pub docs: bool,
    /// Measure this part alone
    #[arg(long, conflicts_with = "docs")]
    pub only: Option<Part>,
}

/// What can be measured alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// Blobs in guests.
    Guests,
    /// Vulkan in guests.
    Vulkan,
    /// The library and the daemon, without a virtual machine.
    Host,
}

/// How often things are repeated.
#[derive(Debug, Clone, Copy)]
struct Extents {
    /// Rounds in which the systems take turns. The first is dropped.
    rounds: u32,
    /// Of the systems in which a blob takes 20 ms.
    slow_rounds: u32,
    /// Blobs of 4 KiB to 1 MiB at a time.
    blobs: usize,
    /// Blobs of 64 MiB at a time.
    large: usize,
    /// Most live blobs.
    live: &'static str,
}

const FULL: Extents = Extents {
    rounds: 5,
    slow_rounds: 3,
    blobs: 250,
    large: 12,
    live: "0,100,1000,10000",
};

const QUICK: Extents = Extents {
    rounds: 2,
    slow_rounds: 2,
    blobs: 10,
    large: 1,
    live: "0,100",
};

/// The file that everything measured goes into, a line of JSON each.
struct Records {
    file: File,
    path: PathBuf,
}

impl Records {
    fn new(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let path = folder.join("records.jsonl");
        let file =
            File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self { file, path })
    }

    fn add(&mut self, record: &Value) -> Result<()> {
        writeln!(self.file, "{record}")
            .with_context(|| format!("cannot write {}", self.path.display()))
    }

    /// One number of a row that is counted, not timed.
    fn count(&mut self, system: &str, row: &str, unit: &str, value: f64) -> Result<()> {
        self.add(&json!({ "system": system, "row": row, "unit": unit, "samples": [value] }))
    }

    /// Why a system has no (further) figures.
    fn missing(&mut self, system: &str, why: &str) -> Result<()> {
        note(&format!("{system}: {why}"));
        self.add(&json!({ "system": system, "missing": why }))
    }

    /// The lines of a program that begin with `bench `, with further members.
    fn take(&mut self, output: &str, more: &[(&str, Value)]) -> Result<usize> {
        let mut taken = 0;
        for line in output.lines() {
            let Some(text) = line.trim_end().strip_prefix("bench ") else {
                continue;
            };
            let mut record: Map<String, Value> =
                serde_json::from_str(text).with_context(|| format!("not a record: {text:.80}"))?;
            record.extend(
                more.iter()
                    .map(|(name, value)| ((*name).to_owned(), value.clone())),
            );
            self.add(&Value::Object(record))?;
            taken += 1;
        }
        Ok(taken)
    }
}

/// The programs of the bench.
struct Programs {
    folder: PathBuf,
}

impl Programs {
    fn build() -> Result<Self> {
        build::cargo(
            &[
                "build",
                "--release",
                "--quiet",
                "--package",
                PACKAGE,
                "--bins",
            ],
            &[],
        )?;
        Ok(Self {
            folder: build::target().join("release"),
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(format!("bench-{name}"))
    }

    fn command(&self, name: &str) -> Command {
        Command::new(self.path(name))
    }
}

/// Runs all of it.
pub fn run(flags: &Flags) -> Result<()> {
    let start = Instant::now();
    host_packages::ensure(Extent::Bench)?;
    let environment = Environment::prepare()?;
    let peers = guests::peers(&environment)?;
    step("building hostblobd", crate::daemon::binary)?;
    let guest = step("building the guest program", build::guest)?;
    let programs = step("building the programs of the bench", Programs::build)?;
    let extents = if flags.quick { QUICK } else { FULL };
    let folder = build::target().join("bench");
    let mut records = Records::new(&folder)?;
    records.add(&json!({ "about": about(&environment, flags.quick) }))?;
    let wanted = |part| flags.only.is_none_or(|only| only == part);
    if wanted(Part::Guests) {
        let program = guest.join("latency");
        guests::measure(&environment, &peers, &program, extents, &mut records)?;
    }
    if wanted(Part::Vulkan) {
        let program = programs.path("vulkan");
        vulkan::measure(&environment, &peers, &program, extents, &mut records)?;
    }
    if wanted(Part::Host) {
        host::measure(&programs, flags.quick, &mut records)?;
    }
    let docs = flags.docs.then(|| build::workspace().join("docs"));
    step("the report", || {
        report(&programs, &records.path, &folder, docs.as_deref())
    })?;
    let text = fs::read_to_string(folder.join("report.md"))?;
    println!("{text}");
    note(&format!(
        "measured in {:.1} minutes; report.md, report.json and plots are in {}",
        start.elapsed().as_secs_f32() / 60.0,
        folder.display()
    ));
    Ok(())
}

fn report(programs: &Programs, records: &Path, folder: &Path, docs: Option<&Path>) -> Result<()> {
    let mut command = programs.command("report");
    command.arg(records).arg(folder).args(docs);
    apt::run(&mut command).map(drop)
}

/// What was measured where, for people.
fn about(environment: &Environment, quick: bool) -> Value {
    let first = |command: &mut Command| {
        let text = apt::run(command).unwrap_or_default();
        text.lines().next().unwrap_or("unknown").to_owned()
    };
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    json!({
        "quick": quick,
        "date": first(Command::new("date").args(["-u", "+%Y-%m-%d"])),
        "commit": first(Command::new("git").args(["-C"]).arg(build::workspace()).args(["describe", "--always", "--dirty"])),
        "processor": format!("{} x {}", cores, name.map_or("unknown", |(_, name)| name)),
        "kernel": first(Command::new("uname").arg("-r")),
        "qemu": environment.qemu.version(),
    })
}

/// Runs a program to its end: its standard output, or all that it says of its failure.
fn output(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let done = command
        .output()
        .with_context(|| format!("{program} cannot be run"))?;
    let text = String::from_utf8_lossy(&done.stdout).into_owned();
    if !done.status.success() {
        bail!(
            "{program} ended with {}: {}",
            done.status,
            String::from_utf8_lossy(&done.stderr).trim()
        );
    }
    Ok(text)
}
