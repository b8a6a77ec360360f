//! `cargo xtask demo --icd`: vulkaninfo and a C program that knows Vulkan alone, on our driver, without a virtual machine and in one.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::{finish, program_and_daemon, succeeded, tell_of_the_boot};
use crate::build;
use crate::command::{self, DaemonFlags};
use crate::host_packages::{self, Extent};
use crate::libraries::Set;
use crate::progress::step;
use crate::vm::Vm;

const PROGRAM: &str = "vulkan";

pub(super) fn run(flags: &DaemonFlags, no_vm: bool) -> Result<()> {
    host_packages::ensure(Extent::Clients)?;
    let driver = step("building the Vulkan driver", build::vulkan_driver)?;
    let memory = step("compiling the C program", build::vulkan_memory)?;
    step("building hostblobd", crate::daemon::binary)?;
    over_the_socket(flags, &driver, &memory)?;
    if no_vm {
        return Ok(());
    }
    in_the_guest(flags, &driver, &memory)
}

fn over_the_socket(flags: &DaemonFlags, driver: &Path, memory: &Path) -> Result<()> {
    let (program, mut daemon) = program_and_daemon(flags, PROGRAM)?;
    println!("host:  HOSTBLOB_SOCKET={}", daemon.local_socket().display());
    println!("host:  VK_DRIVER_FILES={}", driver.display());
    let status = Command::new(program)
        .arg("--tell")
        .arg(memory)
        .env("VK_DRIVER_FILES", driver)
        // Loaders before 1.3.207 know this one.
        .env("VK_ICD_FILENAMES", driver)
        .env("HOSTBLOB_SOCKET", daemon.local_socket())
        .status()
        .context("the program cannot be run")?;
    finish(&mut daemon)?;
    ensure!(
        status.success(),
        "the program found something wrong; see above"
    );
    Ok(())
}

fn in_the_guest(flags: &DaemonFlags, driver: &Path, memory: &Path) -> Result<()> {
    const MEMORY: &str = "/program/vulkan_memory";
    let (environment, daemon) = command::vm::prepare(flags)?;
    let programs = step("building the guest program", build::guest)?;
    let mut daemon = daemon.start()?;
    tell_of_the_boot(flags, &environment, &daemon);
    println!("host:  beside it Debian's Vulkan loader and vulkaninfo, and our driver");
    let vm = Vm::builder(&environment)
        .device(&daemon)
        .libraries(Set::Client)?
        .vulkan_driver(driver)
        .file(memory, MEMORY)
        .program(programs.join(PROGRAM), ["--tell", MEMORY])
        .tee();
    let output = vm.run()?;
    finish(&mut daemon)?;
    succeeded(&output)
}
