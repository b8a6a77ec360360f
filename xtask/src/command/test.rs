//! `cargo xtask test`: everything that must hold before a change lands.

use std::io::{BufRead, BufReader};
use std::ops::AddAssign;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::{fuzz, interleavings, setup};
use crate::progress::step;
use crate::{build, cache};

/// Pinned, so that a new release of the tool does not change what passes.
const CARGO_DENY: &str = "0.20.2";

/// What to leave out.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Flags {
    /// Only tests whose name contains this; checks of style are left out
    #[arg(long, value_name = "TEXT")]
    pub filter: Option<String>,
}

/// Counts of tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Totals {
    pub(super) passed: usize,
    pub(super) failed: usize,
}

impl AddAssign for Totals {
    fn add_assign(&mut self, more: Self) {
        self.passed += more.passed;
        self.failed += more.failed;
    }
}

/// Runs all; the error says what failed.
pub fn run(flags: &Flags) -> Result<()> {
    setup::run()?;
    // Later steps look at all crates offline.
    step("fetching crates", || {
        build::cargo(&["fetch", "--quiet", "--locked"], &[])
    })?;
    let fuzzing = flags.filter.is_none().then(fuzz::in_background);
    if flags.filter.is_none() {
        checks()?;
    }
    let guest = step("building the guest programs", build::guest)?;
    let host = step("building the tests", build::tests)?;
    let mut arguments = vec!["test", "--workspace", "--no-fail-fast"];
    if let Some(filter) = &flags.filter {
        arguments.extend(["--", filter]);
    }
    let mut command = build::cargo_command();
    command.args(arguments).current_dir(build::workspace());
    command
        .env(build::HOST_ENV, host)
        .env(build::GUEST_ENV, guest);
    let (mut totals, mut success) = run_tests(&mut command)?;
    if flags.filter.is_none() {
        let (models, hold) = interleavings::explore(&interleavings::Flags::default())?;
        totals += models;
        success &= hold;
    }
    if let Some(fuzzing) = fuzzing {
        let fuzzed = step("waiting for the fuzz targets", || match fuzzing.join() {
            Ok(fuzzed) => fuzzed,
            Err(_) => bail!("a thread panicked"),
        })?;
        totals += fuzzed;
        success &= fuzzed.failed == 0;
    }
    println!("{} passed, {} failed", totals.passed, totals.failed);
    if !success {
        bail!("tests failed; see above");
    }
    Ok(())
}

fn checks() -> Result<()> {
    step("cargo fmt", || {
        build::cargo(&["fmt", "--all", "--check"], &[])
    })?;
    let deny = cargo_deny()?;
    step("cargo deny", || {
        let mut command = Command::new(deny);
        command.args([
            "--offline",
            "--log-level",
            "error",
            "check",
            "licenses",
            "bans",
            "sources",
        ]);
        let status = command.current_dir(build::workspace()).status()?;
        if status.success() {
            Ok(())
        } else {
            bail!("cargo deny ended with {status}")
        }
    })?;
    let deny_warnings = ["--", "-D", "warnings"];
    let clippy = [
        &["clippy", "--quiet", "--workspace", "--all-targets"][..],
        &deny_warnings,
    ]
    .concat();
    step("cargo clippy", || build::cargo(&clippy, &[]))?;
    let doc = ["doc", "--quiet", "--workspace", "--no-deps"];
    step("cargo doc", || {
        build::cargo(&doc, &[("RUSTDOCFLAGS", "-D warnings")])
    })
}

/// The tool: from the PATH, else from the cache, where it is built once.
fn cargo_deny() -> Result<PathBuf> {
    let installed = Command::new("cargo-deny").arg("--version").output();
    if installed.is_ok_and(|output| output.status.success()) {
        return Ok("cargo-deny".into());
    }
    let name = format!("cargo-deny-{CARGO_DENY}");
    let folder = cache::entry(&name, "building cargo-deny (some minutes)", |folder| {
        let root = folder.to_string_lossy().into_owned();
        let target = format!("{root}/target");
        let arguments = [
            "install",
            "cargo-deny",
            "--version",
            CARGO_DENY,
            "--locked",
            "--debug",
            "--quiet",
            "--root",
            &root,
            "--target-dir",
            &target,
        ];
        build::cargo(&arguments, &[("CARGO_PROFILE_DEV_DEBUG", "0")])?;
        std::fs::remove_dir_all(target)?;
        Ok(())
    })?;
    Ok(folder.join("bin/cargo-deny"))
}

/// Runs `cargo test`, shows what it prints, and adds up its results.
pub(super) fn run_tests(command: &mut Command) -> Result<(Totals, bool)> {
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .context("cargo cannot be run")?;
    let mut totals = Totals::default();
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).lines() {
            let line = line?;
            println!("{line}");
            if let Some(result) = parse_result(&line) {
                totals += result;
            }
        }
    }
    Ok((totals, child.wait()?.success()))
}

/// `test result: ok. 3 passed; 1 failed; ...`
fn parse_result(line: &str) -> Option<Totals> {
    let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let count = |what: &str| {
        counts
            .split(';')
            .find_map(|part| part.trim().strip_suffix(what)?.trim().parse::<usize>().ok())
    };
    Some(Totals {
        passed: count("passed")?,
        failed: count("failed")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_read() {
        let line = "test result: FAILED. 12 passed; 3 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.1s";
        assert_eq!(
            parse_result(line),
            Some(Totals {
                passed: 12,
                failed: 3
            })
        );
        assert_eq!(parse_result("test a::b ... ok"), None);
        assert_eq!(parse_result("test result: ok"), None);
    }
}
