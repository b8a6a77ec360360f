//! Nightly Rust, for what stable Rust has not: sanitizers.

use std::process::{Command, Stdio};

use anyhow::{Context, Result};

/// Where it is not installed.
pub const MISSING: &str = "rustup toolchain install nightly";

/// Whether it is installed.
pub fn is_installed() -> bool {
    let mut command = Command::new("rustc");
    command.args(["+nightly", "--version"]);
    let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

/// Its cargo. The cargo that runs us is of one toolchain: rustup's finds the other.
pub fn cargo() -> Command {
    let mut command = Command::new("cargo");
    command.arg("+nightly");
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
