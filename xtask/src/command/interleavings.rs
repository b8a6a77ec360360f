//! `cargo xtask interleavings`: what threads can do to each other, in every order, under the model checker loom.
//!
//! The models are unit tests in modules of this name, behind `--cfg loom`: under it the code that they look at meets the checker's locks and words
//! in place of its own. They are built apart, so that nothing else is built again for them.

use anyhow::{Result, bail};

use super::test::{Totals, run_tests};
use crate::build;

/// Packages that have models.
const PACKAGES: [&str; 2] = ["hostblob-protocol", "hostblob-allocator"];

/// How far to look.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Flags {
    /// Threads are interrupted so often in one order of events; without it as often as takes a minute in all
    #[arg(long, value_name = "N")]
    pub preemptions: Option<u32>,
    /// Only models whose name contains this
    pub filter: Option<String>,
}

/// Runs the models; the error says that one failed.
pub fn run(flags: &Flags) -> Result<()> {
    let (totals, success) = explore(flags)?;
    println!("{} passed, {} failed", totals.passed, totals.failed);
    match (success, totals.passed) {
        (true, 0) => bail!("no model has such a name"),
        (true, _) => Ok(()),
        (false, _) => bail!("models failed; see above"),
    }
}

/// What the models came to, and whether all of them hold.
pub(super) fn explore(flags: &Flags) -> Result<(Totals, bool)> {
    let mut command = build::cargo_command();
    command.args(["test", "--quiet", "--lib", "--no-fail-fast"]);
    for package in PACKAGES {
        command.args(["--package", package]);
    }
    // The checker itself is what takes the time.
    for package in ["loom", "generator"] {
        let optimised = format!("profile.dev.package.{package}.opt-level=3");
        command.args(["--config", &optimised]);
    }
    let filter = flags.filter.as_deref().unwrap_or_default();
    let rust_flags = std::env::var("RUSTFLAGS").unwrap_or_default();
    command
        .arg("--target-dir")
        .arg(build::target().join("interleavings"))
        .args(["--", "--nocapture"])
        .arg(format!("interleavings::{filter}"))
        .env("RUSTFLAGS", format!("{rust_flags} --cfg loom"))
        .current_dir(build::workspace());
    if let Some(preemptions) = flags.preemptions {
        command.env("LOOM_MAX_PREEMPTIONS", preemptions.to_string());
    }
    run_tests(&mut command)
}
