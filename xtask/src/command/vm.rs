//! `cargo xtask vm`: a program, or a shell, in the guest, against a fresh hostblobd.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use super::DaemonFlags;
use crate::daemon::{Daemon, DaemonBuilder};
use crate::environment::Environment;
use crate::host_packages::{self, Extent};
use crate::progress::step;
use crate::vm::Vm;

/// Runs a static program; returns its exit status.
pub fn run(flags: &DaemonFlags, program: &str, arguments: &[String]) -> Result<u8> {
    let path = PathBuf::from(program);
    ensure!(
        path.is_file(),
        "{program} is not a file: name a statically linked program"
    );
    let (environment, daemon) = prepare(flags)?;
    let daemon = daemon.start()?;
    let vm = Vm::builder(&environment)
        .device(&daemon)
        .program(path, arguments.iter())
        .tee();
    let output = vm.run()?;
    let status = output.status.with_context(|| {
        format!(
            "the guest ended before the program did; its console:\n{}",
            output.console
        )
    })?;
    Ok(u8::try_from(status).unwrap_or(1))
}

/// A shell on the guest's console.
pub fn shell(flags: &DaemonFlags) -> Result<()> {
    let (environment, daemon) = prepare(flags)?;
    let daemon = daemon.start()?;
    Vm::builder(&environment).device(&daemon).interact()
}

/// What a guest with our device needs.
pub(super) fn prepare(flags: &DaemonFlags) -> Result<(Environment, DaemonBuilder)> {
    if flags.provider != "system" {
        host_packages::ensure(Extent::Run)?;
    }
    let environment = Environment::prepare()?;
    step("building hostblobd", crate::daemon::binary)?;
    let daemon = Daemon::builder()
        .transport(flags.transport)
        .args(flags.arguments());
    Ok((environment, daemon))
}
