//! A program that knows Vulkan alone, in a guest with our driver and in one of the strongest peer with Mesa's Venus, in turn.

use std::path::Path;

use anyhow::Result;

use super::guests::{MEMORY_MIB, Peers, System, TIMEOUT, ask_all, end};
use super::{Extents, Records};
use crate::build;
use crate::daemon::Daemon;
use crate::environment::Environment;
use crate::libraries::Set;
use crate::peers::Screen;
use crate::progress::step;
use crate::vm::{Transport, Vm, VmBuilder};

/// Other memories that live meanwhile.
const LIVE: &str = "0,1000";

/// Who is measured, as the report has it.
const OURS: &str = "hostblob's driver";
const PEER: &str = "Venus";

/// Venus, of the guest's Mesa.
const VENUS: &str = "/usr/share/vulkan/icd.d/virtio_icd.json";

/// Boots both, and asks them in turn.
pub(super) fn measure(
    environment: &Environment,
    peers: &Peers,
    program: &Path,
    extents: Extents,
    records: &mut Records,
) -> Result<()> {
    let driver = step("building the Vulkan driver", build::vulkan_driver)?;
    let screen = Screen::start()?;
    let daemon = Daemon::builder().transport(Transport::VfioUser).start()?;
    let peer = &peers.new;
    let ours = guest(environment, program, extents)?
        .device(&daemon)
        .vulkan_driver(&driver);
    let venus = guest(&peer.environment, program, extents)?.env("VK_DRIVER_FILES", VENUS);
    let venus = peer.configure(venus, &screen);
    let rounds = extents.slow_rounds;
    let mut systems = Vec::new();
    for (name, about, vm, daemon) in [
        (OURS, environment.qemu.version(), ours, Some(daemon)),
        (PEER, peer.about(), venus, None),
    ] {
        systems.extend(System::boot(name, &about, &vm, daemon, rounds, records)?);
    }
    step("booting two guests with Vulkan", || {
        systems
            .iter_mut()
            .try_for_each(|system| system.wait(records))
    })?;
    ask_all(&mut systems, records)?;
    end(systems)
}

/// A guest that waits to be asked. Venus takes 10 to 30 ms for a memory, so there are fewer than of blobs.
fn guest<'a>(
    environment: &'a Environment,
    program: &Path,
    extents: Extents,
) -> Result<VmBuilder<'a>> {
    let (small, large) = (extents.blobs.div_ceil(3), extents.large.div_ceil(2));
    let medium = small.div_ceil(2);
    let sizes = format!("4096x{small},1048576x{medium},1048576x{medium}d,67108864x{large}");
    let vm = Vm::builder(environment)
        .program(program, [LIVE.to_owned(), sizes])
        .memory_mib(MEMORY_MIB)
        .timeout(TIMEOUT);
    vm.libraries(Set::Client)
}
