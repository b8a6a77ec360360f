//! Nightly Rust, for what stable Rust has not: sanitizers.

use std::process::Command;

use anyhow::{Context, Result};

use crate::build;

/// Where it is not installed.
pub const MISSING: &str = "rustup toolchain install nightly";

/// Whether it is installed.
pub fn is_installed() -> bool {
    build::works(Command::new("rustc").args(["+nightly", "--version"]))
}

/// Its cargo.
pub fn cargo() -> Command {
    let mut command = rustups_cargo();
    command.arg("+nightly");
    command
}

/// The cargo that runs us is of one toolchain: rustup's finds others, and what brings its own.
pub fn rustups_cargo() -> Command {
    let mut command = Command::new("cargo");
    for name in ["CARGO", "RUSTC", "RUSTUP_TOOLCHAIN"] {
        command.env_remove(name);
    }
    command
}

/// The target of this host: where it is named, build scripts and macros are built without the flags of what is built.
pub fn host() -> Result<String> {
    let output = Command::new("rustc")
        .arg("-vV")
        .output()
        .context("rustc cannot be run")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(line.context("rustc -vV names no host")?.to_owned())
}
