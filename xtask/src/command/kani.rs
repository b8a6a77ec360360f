//! `cargo xtask kani`: proofs, of all numbers that there are, by the model checker Kani.
//!
//! What is proved are laws of arithmetic on a guest's numbers, in modules named `proofs`. Tests try the same laws at extremes and on chosen numbers, so
//! they are looked at on machines without Kani too.

use anyhow::{Context, Result, bail};

use crate::{build, nightly};

/// Packages that have proofs.
const PACKAGES: [&str; 1] = ["hostblob-allocator"];

/// Proves all; the error says that something is not so.
pub fn run() -> Result<()> {
    let kani = || {
        let mut command = nightly::rustups_cargo();
        command.arg("kani");
        command
    };
    if !build::works(kani().arg("--version")) {
        bail!("Kani is missing: cargo install --locked kani-verifier && cargo kani setup");
    }
    for package in PACKAGES {
        let mut command = kani();
        command
            .args(["--package", package, "--lib"])
            .arg("--target-dir")
            .arg(build::target().join("kani"))
            .current_dir(build::workspace());
        let status = command.status().context("cargo cannot be run")?;
        if !status.success() {
            bail!("{package}: Kani ended with {status}; see above");
        }
    }
    Ok(())
}
