//! Programs that know Vulkan alone, in a guest, on our driver there: one boot for all.

use std::sync::OnceLock;

use xtask::daemon::Daemon;
use xtask::libraries::Set;
use xtask::vm::{Output, Transport, Vm};

use crate::fixture;

/// `None` where it failed.
fn boot() -> &'static Output {
    static BOOT: OnceLock<Option<Output>> = OnceLock::new();
    fixture::once(&BOOT, run)
}

fn run() -> Output {
    const ALLOCATORS: &str = "/program/allocators";
    const MEMORY: &str = "/program/vulkan_memory";
    let programs = fixture::vulkan_programs();
    fixture::hostblobd();
    // With its own limits: blocks of 256 MiB are usual with those who know nothing of the host.
    let daemon = Daemon::builder()
        .transport(Transport::VfioUser)
        .args(["--provider", "vulkan", "--validation"])
        .start()
        .expect("hostblobd starts");
    let vm = Vm::builder(fixture::environment())
        .device(&daemon)
        .libraries(Set::Client)
        .expect("the guest's libraries")
        .vulkan_driver(&programs.driver)
        .file(&programs.allocators, ALLOCATORS)
        .file(&programs.memory, MEMORY)
        .program(fixture::guest_program("vulkan"), [ALLOCATORS, MEMORY]);
    let _slot = fixture::slot();
    let output = vm.run().expect("the guest runs");
    print!("{}", output.stdout);
    fixture::finish(daemon);
    output
}

macro_rules! tests {
    ($($group:ident { $($name:ident,)* })*) => {
        $($(#[test] fn $name() { fixture::went_well(boot(), stringify!($name)); })*)*
    };
}
hostblob_tests::for_each_vulkan_check!(tests);

/// What Linux says of a creation that the quota refuses, and of what it had sent by then. Elsewhere it fails a check.
const REFUSED: &str = "*ERROR* response 0x12";

#[test]
fn the_guest_ends_in_order() {
    let mut output = boot().clone();
    let console = output.console.lines();
    output.console = console
        .filter(|line| !line.contains(REFUSED))
        .map(|line| format!("{line}\n"))
        .collect();
    fixture::succeeded(&output);
}
