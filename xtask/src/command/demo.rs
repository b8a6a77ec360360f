//! `cargo xtask demo`: the main job, end to end, told as a short story.

mod icd;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::DaemonFlags;
use crate::daemon::Daemon;
use crate::environment::Environment;
use crate::host_packages::{self, Extent};
use crate::progress::{note, step};
use crate::vm::{Output, Vm};
use crate::{build, command};

const PROGRAM: &str = "demo";

/// Runs it; an error says why it failed.
pub fn run(flags: &DaemonFlags, no_vm: bool, icd: bool) -> Result<()> {
    if icd {
        icd::run(flags, no_vm)
    } else if no_vm {
        over_the_socket(flags)
    } else {
        in_the_guest(flags)
    }
}

fn in_the_guest(flags: &DaemonFlags) -> Result<()> {
    let (environment, daemon) = command::vm::prepare(flags)?;
    let programs = step("building the guest program", build::guest)?;
    let mut daemon = daemon.start()?;
    tell_of_the_boot(flags, &environment, &daemon);
    let vm = Vm::builder(&environment)
        .device(&daemon)
        .program(programs.join(PROGRAM), [] as [&str; 0])
        .tee();
    let output = vm.run()?;
    finish(&mut daemon)?;
    succeeded(&output)
}

fn tell_of_the_boot(flags: &DaemonFlags, environment: &Environment, daemon: &Daemon) {
    println!();
    println!(
        "host:  hostblobd serves {} ({})",
        flags.transport.name(),
        provider(daemon)
    );
    println!(
        "host:  {} boots a stock Debian kernel",
        environment.qemu.version()
    );
}

fn succeeded(output: &Output) -> Result<()> {
    match output.status {
        Some(0) => Ok(()),
        Some(status) => bail!("the guest program ended with status {status}"),
        None => bail!(
            "the guest ended before its program did; its console:\n{}",
            output.console
        ),
    }
}

fn over_the_socket(flags: &DaemonFlags) -> Result<()> {
    if flags.provider != "system"
        && let Err(error) = host_packages::ensure(Extent::Run)
    {
        note(&format!("{error:#}"));
    }
    if !host_packages::has_vulkan() {
        note("no Vulkan loader and driver on this host: going on with plain system memory");
    }
    step("building hostblobd", crate::daemon::binary)?;
    let (program, mut daemon) = program_and_daemon(flags, PROGRAM)?;
    let status = run_program(&program, &daemon)?;
    finish(&mut daemon)?;
    if !status {
        bail!("the program found something wrong; see above");
    }
    Ok(())
}

/// A program for this host, and a daemon that serves the local socket.
fn program_and_daemon(flags: &DaemonFlags, name: &str) -> Result<(PathBuf, Daemon)> {
    let program = step("building the program", || {
        build::host_binary("hostblob-tests", name)
    })?;
    let daemon = Daemon::builder().args(flags.arguments()).start()?;
    println!();
    println!(
        "host:  hostblobd serves its local socket ({})",
        provider(&daemon)
    );
    Ok((program, daemon))
}

fn run_program(program: &Path, daemon: &Daemon) -> Result<bool> {
    let mut command = Command::new(program);
    command.arg("--socket").arg(daemon.local_socket());
    let status = command
        .status()
        .with_context(|| format!("{} cannot be run", program.display()))?;
    Ok(status.success())
}

/// The daemon's own words on its provider.
fn provider(daemon: &Daemon) -> String {
    let log = daemon.log();
    // "provider: ", or "provider, in a process of its own: ".
    let line = log.lines().find_map(|line| line.split_once("provider"));
    let reason = line.and_then(|(_, rest)| rest.split_once(": "));
    reason.map_or_else(
        || "provider unknown".to_owned(),
        |(_, reason)| reason.to_owned(),
    )
}

fn finish(daemon: &mut Daemon) -> Result<()> {
    let status = daemon.stop()?;
    if !status.success() {
        bail!("hostblobd ended with {status}; its log:\n{}", daemon.log());
    }
    println!("host:  hostblobd ended in order");
    Ok(())
}
