//! The sub-commands of `cargo xtask`.

pub mod bench;
pub mod coverage;
pub mod demo;
pub mod fuzz;
pub mod install;
pub mod interleavings;
pub mod kani;
pub mod miri;
pub mod sanitize;
pub mod setup;
pub mod test;
pub mod vm;

use std::ffi::OsString;

use crate::vm::Transport;

/// Which provider a daemon is started with, for those commands that start one.
#[derive(Debug, Clone, clap::Args)]
pub struct DaemonFlags {
    /// How QEMU loads hostblobd
    #[arg(long, value_enum, default_value = "vfio-user")]
    pub transport: Transport,
    /// hostblobd's --provider: auto, vulkan, gl or system
    #[arg(long, default_value = "auto")]
    pub provider: String,
}

impl DaemonFlags {
    /// As arguments of hostblobd, but for the transport.
    fn arguments(&self) -> [OsString; 2] {
        ["--provider".into(), self.provider.clone().into()]
    }
}
