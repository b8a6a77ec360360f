//! `cargo xtask setup`: installs what the other commands would install.

use anyhow::Result;

use crate::environment::Environment;
use crate::host_packages::{self, Extent};
use crate::progress::note;

/// Installs everything that tests need.
pub fn run() -> Result<()> {
    host_packages::ensure(Extent::Test)?;
    let environment = Environment::prepare()?;
    note(&format!("using {}", environment.qemu.version()));
    Ok(())
}
