//! `cargo xtask fuzz`: builds the fuzz targets with coverage, and runs each for a while.
//!
//! Stable Rust can count coverage. Nightly adds AddressSanitizer, and is used where it is installed. libFuzzer comes with the crate
//! libfuzzer-sys; `cargo fuzz` is not needed.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, bail};

use super::test::Totals;
use crate::progress::{note, step};
use crate::{build, nightly};

/// What rustc is told, as `cargo fuzz` does.
const COVERAGE: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing -Cdebug-assertions";
const ADDRESS_SANITIZER: &str = "-Zsanitizer=address";

/// Seconds that one input may take: waits inside the targets fail earlier, and say what for.
const INPUT_TIMEOUT: u32 = 60;
/// Longest input in bytes.
const MAX_INPUT: u32 = 4096;
/// Seconds of each target, unless somebody says otherwise.
const SECONDS: u32 = 60;
/// Of processors that others want, a tenth: targets wait for threads of their own, for seconds and not for ever.
const BACKGROUND: i32 = 10;

/// How targets are built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Build {
    /// Optimised, and with AddressSanitizer where there is nightly Rust.
    Thorough,
    /// In less than two thirds of that time.
    Quick,
}

/// What to run, and for how long.
#[derive(Debug, Clone, clap::Args)]
pub struct Flags {
    /// One of fuzz/targets; all of them without it
    pub target: Option<String>,
    /// Seconds for each
    #[arg(long, value_name = "N", default_value_t = SECONDS)]
    pub seconds: u32,
    /// Targets at a time
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub jobs: usize,
}

/// What a run came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Figures {
    executions: u64,
    /// Edges of the program that some input took.
    coverage: u64,
    /// Inputs that were kept.
    corpus: u64,
}

/// Runs all; the error names the input that failed.
pub fn run(flags: &Flags) -> Result<()> {
    let folder = build::workspace().join("fuzz");
    let mut targets = targets(&folder.join("targets"))?;
    if let Some(wanted) = &flags.target {
        if !targets.contains(wanted) {
            bail!("there is no target {wanted}: {}", targets.join(", "));
        }
        targets = vec![wanted.clone()];
    }
    let binaries = step("building the fuzz targets", || {
        build_targets(&folder, &targets, Build::Thorough)
    })?;
    let failed = run_targets(&folder, &binaries, &targets, flags)?;
    if failed > 0 {
        bail!("{failed} of {} failed; see above", targets.len());
    }
    Ok(())
}

/// Builds all, and runs each for a minute, while others have the processors: what they leave is enough. Joined for how many passed and how many
/// failed.
pub(super) fn in_background() -> JoinHandle<Result<Totals>> {
    thread::spawn(|| {
        // Of this thread, and so of what it starts.
        rustix::process::setpriority_process(None, BACKGROUND)?;
        let folder = build::workspace().join("fuzz");
        let targets = targets(&folder.join("targets"))?;
        let binaries = build_targets(&folder, &targets, Build::Quick)?;
        let flags = Flags {
            target: None,
            seconds: SECONDS,
            jobs: thread::available_parallelism()?.get(),
        };
        let failed = run_targets(&folder, &binaries, &targets, &flags)?;
        Ok(Totals {
            passed: targets.len() - failed,
            failed,
        })
    })
}

/// Runs each, as many at a time as wanted; how many failed.
fn run_targets(folder: &Path, binaries: &Path, targets: &[String], flags: &Flags) -> Result<usize> {
    let begun = AtomicUsize::new(0);
    let work = || {
        let mut failed = 0;
        while let Some(target) = targets.get(begun.fetch_add(1, Ordering::Relaxed)) {
            match run_target(folder, binaries, target, flags.seconds)? {
                Ok(figures) => println!(
                    "fuzz {target}: {} executions, coverage {}, corpus {}",
                    figures.executions, figures.coverage, figures.corpus
                ),
                Err(why) => {
                    println!("fuzz {target}: FAILED, {why}");
                    failed += 1;
                }
            }
        }
        Ok(failed)
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..flags.jobs.max(1)).map(|_| scope.spawn(work)).collect();
        let failed = workers.into_iter().map(|worker| match worker.join() {
            Ok(failed) => failed,
            Err(_) => bail!("a thread panicked"),
        });
        failed.sum()
    })
}

/// Each file of the folder is one.
fn targets(folder: &Path) -> Result<Vec<String>> {
    let mut targets = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if let Some(name) = path.file_stem().and_then(|name| name.to_str()) {
            targets.push(name.to_owned());
        }
    }
    targets.sort();
    Ok(targets)
}

/// The folder of the programs.
fn build_targets(folder: &Path, targets: &[String], how: Build) -> Result<PathBuf> {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
    if !build::works(Command::new(&compiler).arg("--version")) {
        bail!("{compiler} cannot be run: libFuzzer needs a C++ compiler; apt-get install g++");
    }
    let has_nightly = nightly::is_installed();
    if how == Build::Thorough && !has_nightly {
        note(&format!(
            "without AddressSanitizer: {} adds it",
            nightly::MISSING
        ));
    }
    let (mut command, flags, name, options) = match how {
        Build::Thorough if has_nightly => {
            let flags = format!("{COVERAGE} {ADDRESS_SANITIZER}");
            (nightly::cargo(), flags, "fuzz", &[][..])
        }
        Build::Thorough => (
            build::cargo_command(),
            COVERAGE.to_owned(),
            "fuzz-stable",
            &[][..],
        ),
        Build::Quick => {
            let options = &["--config", "profile.release.opt-level=1"][..];
            (
                build::cargo_command(),
                COVERAGE.to_owned(),
                "fuzz-quick",
                options,
            )
        }
    };
    let target = build::target().join(name);
    let host = nightly::host()?;
    command
        .args([
            "build",
            "--quiet",
            "--locked",
            "--release",
            "--target",
            &host,
        ])
        .arg("--manifest-path")
        .arg(folder.join("Cargo.toml"))
        .args(options)
        .arg("--target-dir")
        .arg(&target)
        .args(targets.iter().flat_map(|target| ["--bin", target.as_str()]))
        .env("RUSTFLAGS", flags);
    let status = command.status().context("cargo cannot be run")?;
    if !status.success() {
        bail!("the fuzz targets do not build: {status}");
    }
    Ok(target.join(host).join("release"))
}

/// The figures, or where the failure is.
fn run_target(
    folder: &Path,
    binaries: &Path,
    target: &str,
    seconds: u32,
) -> Result<Result<Figures, String>> {
    let work = build::target().join("fuzz-found");
    // What is found goes into the first folder; what is committed is only read.
    let (found, committed) = (work.join(target), folder.join("corpus").join(target));
    fs::create_dir_all(&found)?;
    let log = work.join(format!("{target}.log"));
    // It ends with us, also when we end early.
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "TERM", "--"])
        .arg(binaries.join(target))
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-timeout={INPUT_TIMEOUT}"))
        .arg(format!("-max_len={MAX_INPUT}"))
        .arg(format!(
            "-artifact_prefix={}/failed-{target}-",
            work.display()
        ))
        .arg("-print_final_stats=1")
        .arg(&found);
    if committed.is_dir() {
        command.arg(committed);
    }
    command.stdout(Stdio::null()).stderr(File::create(&log)?);
    let status = command.status().with_context(|| target.to_owned())?;
    // What a guest names itself may be in it.
    let text = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
    if status.success() {
        return Ok(Ok(figures(&text)));
    }
    Ok(Err(match failed_input(&text) {
        Some(input) => format!("input {input}, log {}", log.display()),
        None => format!("{status}, log {}", log.display()),
    }))
}

/// `#123 REDUCE cov: 45 ft: 67 corp: 8/90b ...` and `stat::number_of_executed_units: 123`.
fn figures(log: &str) -> Figures {
    let mut figures = Figures::default();
    for line in log.lines() {
        let number = |name: &str| {
            let rest = line.split_once(name)?.1.trim_start();
            let digits = rest.split(|c: char| !c.is_ascii_digit()).next()?;
            digits.parse().ok()
        };
        if line.starts_with('#') {
            figures.coverage = number("cov:").unwrap_or(figures.coverage);
            figures.corpus = number("corp:").unwrap_or(figures.corpus);
        }
        figures.executions =
            number("stat::number_of_executed_units:").unwrap_or(figures.executions);
    }
    figures
}

fn failed_input(log: &str) -> Option<&str> {
    let written = log
        .lines()
        .find_map(|line| line.split_once("Test unit written to "));
    written.map(|(_, path)| path.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_from_the_log_of_libfuzzer() {
        let log = "INFO: seed corpus: files: 3\n\
            #4\tINITED cov: 900 ft: 901 corp: 3/55b exec/s: 0 rss: 40Mb\n\
            #128\tREDUCE cov: 1234 ft: 2000 corp: 17/3Kb lim: 4 exec/s: 64 rss: 41Mb\n\
            #256\tDONE   cov: 1235 ft: 2001 corp: 18/3Kb lim: 4 exec/s: 64 rss: 41Mb\n\
            Done 256 runs in 4 second(s)\n\
            stat::number_of_executed_units: 256\n";
        let expected = Figures {
            executions: 256,
            coverage: 1235,
            corpus: 18,
        };
        assert_eq!(figures(log), expected);
        assert_eq!(failed_input(log), None);
        let log = "panicked\nartifact_prefix='/w/'; Test unit written to /w/failed-x-crash-12\n";
        assert_eq!(failed_input(log), Some("/w/failed-x-crash-12"));
    }

    #[test]
    fn each_file_of_the_folder_is_a_target() {
        let targets = targets(&build::workspace().join("fuzz/targets")).unwrap();
        assert!(
            targets.iter().any(|target| target == "envelope"),
            "{targets:?}"
        );
        let manifest = fs::read_to_string(build::workspace().join("fuzz/Cargo.toml")).unwrap();
        for target in targets {
            assert!(
                manifest.contains(&format!("path = \"targets/{target}.rs\"")),
                "{target}"
            );
        }
    }
}
