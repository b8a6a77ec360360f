//! `cargo xtask coverage`: which lines of the host's code its own tests run; what end-to-end tests run beyond that is not seen here.
//!
//! Lines of tests are not counted: they run always, and say nothing. `counted.rs` says what a test is.

mod counted;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::setup;
use crate::{build, daemon};
use counted::Counted;

/// Folders of what is measured.
const CRATES: [&str; 3] = ["protocol", "allocator", "device"];

/// Least part of each crate's lines, in percent.
const LEAST: u64 = 90;

/// What to print.
#[derive(Debug, Clone, clap::Args)]
pub struct Flags {
    /// Print the lines that no test runs
    #[arg(long)]
    pub missed: bool,
}

/// Of a crate, or of all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Figures {
    lines: u64,
    run: u64,
    /// The same, with the tests' own lines.
    all_lines: u64,
    all_run: u64,
}

/// How often each line of each file was run.
type Lines = BTreeMap<PathBuf, BTreeMap<usize, u64>>;

/// Measures, and prints a table; an error where a crate has too little.
pub fn run(flags: &Flags) -> Result<()> {
    setup::run()?;
    let lines = measure()?;
    let mut total = Figures::default();
    let mut low = Vec::new();
    println!(
        "{:10} {:>7} {:>7} {:>7}   with the tests' own lines",
        "crate", "lines", "run", ""
    );
    for name in CRATES {
        let folder = build::workspace().join(name);
        let counted = Counted::of(&folder.join("src"))?;
        let figures = figures(&lines, &folder, &counted, flags.missed);
        print(name, figures);
        if figures.run * 100 < figures.lines * LEAST {
            low.push(name);
        }
        total.add(figures);
    }
    print("all", total);
    if !low.is_empty() {
        bail!(
            "less than {LEAST} % of the lines of {}; --missed prints them",
            low.join(", ")
        );
    }
    Ok(())
}

/// Runs the crates' own tests, instrumented.
fn measure() -> Result<Lines> {
    check_tools()?;
    let target = build::target().join("coverage");
    let environment = environment(&target)?;
    let run = |arguments: &[&str]| {
        let mut command = build::cargo_command();
        command.args(arguments).current_dir(build::workspace());
        command
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .env("CARGO_TARGET_DIR", &target)
            .env(daemon::SANDBOX_ENV, "off")
            // Else it installs llvm-tools where it believes to be in a CI.
            .env("CARGO_LLVM_COV_SETUP", "no");
        let status = command.status().context("cargo cannot be run")?;
        if !status.success() {
            bail!("cargo {} ended with {status}", arguments.join(" "));
        }
        Ok(())
    };
    run(&["llvm-cov", "clean", "--profraw-only"])?;
    let packages = CRATES.map(|name| format!("--package=hostblob-{name}"));
    let packages = packages.iter().map(String::as_str);
    let tests: Vec<_> = ["test", "--locked"].into_iter().chain(packages).collect();
    run(&tests)?;
    let path = target.join("report.lcov");
    let output = path.to_string_lossy();
    run(&["llvm-cov", "report", "--lcov", "--output-path", &output])?;
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    Ok(read_lcov(&text))
}

/// What reads profiles comes with rustc. Before the build: without it, all of that would be in vain.
fn check_tools() -> Result<()> {
    let mut command = Command::new("rustc");
    let output = command.args(["--print", "target-libdir"]).output();
    let output = output.context("rustc cannot be run")?.stdout;
    let libraries = PathBuf::from(String::from_utf8_lossy(&output).trim());
    let is_there = libraries.with_file_name("bin/llvm-profdata").exists();
    if !is_there && std::env::var_os("LLVM_PROFDATA").is_none() {
        bail!("llvm-tools are missing: rustup component add llvm-tools");
    }
    Ok(())
}

/// What instruments whatever cargo builds in the folder `target`.
fn environment(target: &Path) -> Result<Vec<(String, String)>> {
    let mut command = Command::new("cargo-llvm-cov");
    command
        .args(["llvm-cov", "show-env"])
        .env("CARGO_TARGET_DIR", target)
        .current_dir(build::workspace());
    let output = command
        .output()
        .context("cargo-llvm-cov is missing: cargo install --locked cargo-llvm-cov")?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let variable = |line: &str| {
        let (name, value) = line.split_once('=')?;
        Some((name.to_owned(), value.trim_matches('\'').to_owned()))
    };
    Ok(text.lines().filter_map(variable).collect())
}

/// `SF:` begins a file, `DA:12,3` says that line 12 was run three times.
fn read_lcov(text: &str) -> Lines {
    let mut lines = Lines::new();
    let mut file = None;
    for line in text.lines() {
        if let Some(path) = line.strip_prefix("SF:") {
            file = Some(lines.entry(path.into()).or_default());
        } else if let (Some(data), Some(file)) = (line.strip_prefix("DA:"), &mut file) {
            let mut numbers = data.split(',').map(str::parse::<u64>);
            if let (Some(Ok(number)), Some(Ok(count))) = (numbers.next(), numbers.next()) {
                *file
                    .entry(usize::try_from(number).unwrap_or(usize::MAX))
                    .or_default() += count;
            }
        }
    }
    lines
}

fn figures(lines: &Lines, folder: &Path, counted: &Counted, print_missed: bool) -> Figures {
    let mut figures = Figures::default();
    let files = lines.iter().filter(|(path, _)| path.starts_with(folder));
    for (path, lines) in files {
        let mut missed = Vec::new();
        for (&number, &count) in lines {
            let is_run = u64::from(count > 0);
            figures.all_lines += 1;
            figures.all_run += is_run;
            if counted.has(path, number) {
                figures.lines += 1;
                figures.run += is_run;
                if count == 0 {
                    missed.push(number.to_string());
                }
            }
        }
        if print_missed && !missed.is_empty() {
            println!("{}: {}", path.display(), missed.join(" "));
        }
    }
    figures
}

fn print(name: &str, figures: Figures) {
    let Figures {
        lines,
        run,
        all_lines,
        all_run,
    } = figures;
    println!(
        "{name:10} {lines:>7} {run:>7} {:>6.2}%   {:.2}%",
        percent(run, lines),
        percent(all_run, all_lines)
    );
}

#[expect(
    clippy::cast_precision_loss,
    reason = "lines of code are fewer than 2^52"
)]
fn percent(part: u64, whole: u64) -> f64 {
    100.0 * part as f64 / whole.max(1) as f64
}

impl Figures {
    fn add(&mut self, other: Self) {
        self.lines += other.lines;
        self.run += other.run;
        self.all_lines += other.all_lines;
        self.all_run += other.all_run;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_read_by_file_and_line() {
        let text = "SF:/w/a.rs\nFN:3,name\nDA:3,0\nDA:4,12\nend_of_record\nSF:/w/b.rs\nDA:1,1\nend_of_record\n";
        let lines = read_lcov(text);
        let of = |path: &str| {
            lines[Path::new(path)]
                .iter()
                .map(|(&n, &c)| (n, c))
                .collect::<Vec<_>>()
        };
        assert_eq!(of("/w/a.rs"), [(3, 0), (4, 12)]);
        assert_eq!(of("/w/b.rs"), [(1, 1)]);
    }
}
