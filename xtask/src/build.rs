//! Which binaries are needed, and how they are made: those of the host, and static ones for the guest.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Guest programs are linked statically: the guest has no C library.
const GUEST_FLAGS: &str = "-C target-feature=+crt-static";
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// What rustc says of a library that is a shared one elsewhere, and no lint can turn off.
const NO_SHARED_LIBRARY: &str =
    "warning: dropping unsupported crate type `cdylib` for target `x86_64-unknown-linux-gnu`\n\n";

/// The checkout.
pub fn workspace() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_owned()
}

/// Where cargo builds.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from)
}

/// The cargo that runs us, or the one of the PATH.
pub fn cargo_command() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Whether it runs and succeeds, whatever it says.
pub(crate) fn works(command: &mut Command) -> bool {
    let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

/// Runs cargo in the checkout; what it prints goes to standard error.
pub fn cargo(arguments: &[&str], environment: &[(&str, &str)]) -> Result<()> {
    let mut command = cargo_command();
    command
        .args(arguments)
        .current_dir(workspace())
        .envs(environment.iter().copied());
    let status = command.status().context("cargo cannot be run")?;
    if !status.success() {
        bail!("cargo {} ended with {status}", arguments.join(" "));
    }
    Ok(())
}

/// Environment variable: the folder with this host's programs, examples and libraries, where they are built already. Without it, each is built
/// when it is wanted, optimised.
pub const HOST_ENV: &str = "HOSTBLOB_HOST_PROGRAMS";
/// Environment variable: the same for the guest.
pub const GUEST_ENV: &str = "HOSTBLOB_GUEST_PROGRAMS";

/// Builds something of a package for this host, unless that was done; returns the folder that it is in.
fn host(package: &str, what: &[&str]) -> Result<PathBuf> {
    if let Some(built) = std::env::var_os(HOST_ENV) {
        return Ok(built.into());
    }
    let arguments = ["build", "--quiet", "--release", "--package", package];
    cargo(&[&arguments[..], what].concat(), &[])?;
    Ok(target().join("release"))
}

/// Builds the tests, and with them all that [`HOST_ENV`] is about, with checks of overflow and without waiting for the optimiser: `cargo test` finds
/// it done, by the same choice of packages. Chosen apart, they have other features and are built once more. Returns the folder.
pub fn tests() -> Result<PathBuf> {
    let targets = ["--lib", "--bins", "--examples", "--tests"];
    cargo(
        &[&["build", "--quiet", "--workspace"], &targets[..]].concat(),
        &[],
    )?;
    Ok(target().join("debug"))
}

/// Builds a program for this host; returns where it is.
pub fn host_binary(package: &str, name: &str) -> Result<PathBuf> {
    Ok(host(package, &["--bin", name])?.join(name))
}

/// Builds an example for this host; returns where it is.
pub fn host_example(package: &str, name: &str) -> Result<PathBuf> {
    Ok(host(package, &["--example", name])?
        .join("examples")
        .join(name))
}

/// Builds the Vulkan driver for this host; returns its manifest, beside which it lies.
pub fn vulkan_driver() -> Result<PathBuf> {
    const MANIFEST: &str = "vulkan_hostblob.json";
    let manifest = host_library("hostblob-icd")?.join(MANIFEST);
    std::fs::copy(workspace().join("icd").join(MANIFEST), &manifest)
        .with_context(|| format!("cannot write {}", manifest.display()))?;
    Ok(manifest)
}

/// Compiles the C program that knows Vulkan alone; returns where it is. It wants the Vulkan loader where it runs.
pub fn vulkan_memory() -> Result<PathBuf> {
    let program = target().join("vulkan_memory");
    let mut command = Command::new("cc");
    command
        .args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-O2", "-o"])
        .arg(&program)
        .arg(workspace().join("icd/examples/vulkan_memory.c"))
        .arg("-lvulkan");
    let status = command.status().context("cc cannot be run")?;
    if !status.success() {
        bail!("cc ended with {status}; it needs libvulkan-dev: run `cargo xtask setup`");
    }
    Ok(program)
}

/// Builds the libraries of a package for this host; returns the folder that they are in.
pub fn host_library(package: &str) -> Result<PathBuf> {
    host(package, &["--lib"])
}

/// Builds all programs for the guest, and the guest library for C programs, optimised and static, unless that was done; returns the folder that they
/// are in.
pub fn guest() -> Result<PathBuf> {
    if let Some(built) = std::env::var_os(GUEST_ENV) {
        return Ok(built.into());
    }
    let folder = target().join("guest");
    let text = folder.to_string_lossy();
    let arguments = [
        "build",
        "--release",
        "--quiet",
        "--package=hostblob-tests",
        "--bins",
        "--package=hostblob-guest",
        "--lib",
        "--target",
        TARGET,
        "--target-dir",
        &text,
    ];
    let mut command = cargo_command();
    command
        .args(arguments)
        .current_dir(workspace())
        .env("RUSTFLAGS", GUEST_FLAGS);
    let output = command.stdin(Stdio::null()).output();
    let output = output.context("cargo cannot be run")?;
    let told = String::from_utf8_lossy(&output.stderr);
    eprint!("{}", told.replace(NO_SHARED_LIBRARY, ""));
    if !output.status.success() {
        bail!("cargo {} ended with {}", arguments.join(" "), output.status);
    }
    Ok(folder.join(TARGET).join("release"))
}
