//! What needs no virtual machine: the library beside other suballocators, transfers beside Vulkan's own, and the daemon's work for a
//! command in instructions, system calls and bytes.

use anyhow::{Context, Result};
use serde_json::json;
use tempfile::TempDir;

use super::traced::{self, ratio};
use super::{Programs, Records, output};
use crate::apt;
use crate::daemon::Daemon;
use crate::progress::step;

/// Where the figures of the device without a transport stand.
const DEVICE: &str = "hostblob, no transport";

/// Blobs for callgrind, which makes everything 50 times slower.
const LIVES: usize = 2_000;

/// Blobs whose lives are timed: a thousand samples of 20.
const LIVES_TIMED: usize = 20_000;

/// Blobs that live while bookkeeping is measured.
const LIVE: usize = 10_000;

/// What [`LIVES`] are measured among.
const AMONG: [usize; 2] = [0, 10_000];

/// Runs the programs of the bench.
pub(super) fn measure(programs: &Programs, quick: bool, records: &mut Records) -> Result<()> {
    let size = if quick { "quick" } else { "full" };
    for (name, what) in [
        (
            "library",
            "the library beside VMA, gpu-allocator and malloc",
        ),
        ("transfers", "transfers beside Vulkan's own"),
    ] {
        step(what, || {
            let text = output(programs.command(name).arg(size))?;
            records.take(&text, &[]).map(drop)
        })?;
    }
    step("instructions of each command", || {
        instructions(programs, records)
    })?;
    step("system calls of each command", || calls(programs, records))?;
    step("time of a blob's life in the device", || {
        for among in AMONG {
            let arguments = [LIVES, among, LIVES_TIMED].map(|number| number.to_string());
            let text = output(programs.command("commands").args(arguments))?;
            records.take(&text, &[("system", json!(DEVICE))])?;
        }
        Ok(())
    })?;
    step("bytes of each blob", || {
        let text = output(programs.command("bytes").arg(LIVE.to_string()))?;
        records.take(&text, &[("system", json!(DEVICE))]).map(drop)
    })?;
    step("resident bytes over time", || {
        resident(programs, quick, records)
    })
}

/// The functions of the bench that do nothing but hand a command to the device.
const STAGES: [&str; 5] = ["submit", "create_blob", "map_blob", "unmap_blob", "unref"];

/// Instructions, counted by callgrind, inclusive, of the thread that executes.
fn instructions(programs: &Programs, records: &mut Records) -> Result<()> {
    for among in AMONG {
        let folder = TempDir::new()?;
        let file = folder.path().join("callgrind");
        let program = programs.command("commands");
        let mut command = std::process::Command::new("valgrind");
        command
            .args(["--quiet", "--tool=callgrind"])
            .arg(format!("--callgrind-out-file={}", file.display()))
            .arg(program.get_program())
            .args([LIVES, among, LIVES].map(|number| number.to_string()));
        output(&mut command)?;
        let text = apt::run(
            std::process::Command::new("callgrind_annotate")
                .args(["--inclusive=yes", "--threshold=100", "--auto=no"])
                .arg(&file),
        )?;
        for stage in STAGES {
            let number = inclusive(&text, &format!("staged::{stage}"))
                .with_context(|| format!("callgrind has not seen staged::{stage}"))?;
            let made = matches!(stage, "submit" | "create_blob" | "map_blob");
            let commands = if made { 3 * LIVES + among } else { 3 * LIVES };
            records.add(&json!({
                "system": DEVICE, "row": format!("instructions: {stage}"), "live": among,
                "unit": "instructions", "samples": [ratio(number, commands)],
            }))?;
        }
    }
    Ok(())
}

/// `1,234,567 (12.3%)  file:function [object]`
fn inclusive(text: &str, function: &str) -> Option<u64> {
    text.lines()
        .filter(|line| line.contains(function))
        .find_map(|line| {
            let number = line.split_whitespace().next()?;
            number.replace(',', "").parse().ok()
        })
}

/// System calls of the thread that executes, by phase, and of the daemon's other threads with it.
fn calls(programs: &Programs, records: &mut Records) -> Result<()> {
    let mut command = programs.command("commands");
    command.args([LIVES.to_string(), "0".to_owned(), LIVES.to_string()]);
    let phases = traced::phases(&command)?;
    // See benches/bin/commands.rs: setting up, creations in a clean window, ends, lives one after the other, the rest.
    for (row, phase) in [
        ("calls: create + map", 1),
        ("calls: unmap + unref", 2),
        ("calls: life", 3),
    ] {
        let calls = phases.get(phase).context("the program has lost a phase")?;
        records.count(DEVICE, row, "calls", ratio(calls.total(), LIVES))?;
        for (name, number) in calls.most(3) {
            records.count(
                DEVICE,
                &format!("{row}: {name}"),
                "calls",
                ratio(number, LIVES),
            )?;
        }
    }
    Ok(())
}

/// Bytes of the window that have pages, while a client takes and gives back memory and then idles.
fn resident(programs: &Programs, quick: bool, records: &mut Records) -> Result<()> {
    let daemon = Daemon::builder().args(["--provider", "system"]).start()?;
    let mut command = programs.command("resident");
    command
        .arg(daemon.local_socket())
        .arg(daemon.pid().to_string())
        .arg(if quick { "2" } else { "12" });
    let text = output(&mut command)?;
    records.take(&text, &[("system", json!("hostblob, local socket"))])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inclusive_costs_are_read() {
        let text = "Ir\n--------\n1,234,567 (12.3%)  lib.rs:hostblob_benches::staged::map_blob [/x/bench-commands]\n\
                    77 (0.0%)  ???:other [y]\n";
        assert_eq!(inclusive(text, "staged::map_blob"), Some(1_234_567));
        assert_eq!(inclusive(text, "staged::unref"), None);
    }
}
