//! The export socket, by udmabuf: in a guest, whose kernel has it, and without it.

use std::sync::OnceLock;

use xtask::build;
use xtask::libraries::Set;
use xtask::vm::{Output, Vm};

use crate::fixture;

/// One boot for all checks: the daemon and both its sides run in the guest. `None` where it failed.
fn boot() -> &'static Output {
    static BOOT: OnceLock<Option<Output>> = OnceLock::new();
    fixture::once(&BOOT, run)
}

fn run() -> Output {
    const PATH: &str = "/program/hostblobd";
    const EXAMPLES: &str = "/program/examples";
    const PROGRAMS: [(&str, &str); 6] = [
        ("hostblob-guest", "draw_frames"),
        ("hostblob-guest", "share"),
        ("hostblob-export", "frame_to_png"),
        ("hostblob-export", "double_buffer"),
        ("hostblob-export", "hand_in"),
        ("hostblob-allocator", "each_blob"),
    ];
    let mut vm = Vm::builder(fixture::environment())
        .program(fixture::guest_program("exports"), [PATH, EXAMPLES])
        .file(fixture::hostblobd(), PATH)
        .libraries(Set::Driver)
        .expect("the guest's libraries")
        .memory_mib(1024);
    if std::env::var_os("ASAN_OPTIONS").is_some() {
        // It would look for leaks at its end, which nobody can in the sandbox.
        vm = vm.env("ASAN_OPTIONS", "detect_leaks=0");
    }
    for (package, name) in PROGRAMS {
        let program = build::host_example(package, name).expect("the example builds");
        vm = vm.file(program, &format!("{EXAMPLES}/{name}"));
    }
    let _slot = fixture::slot();
    let output = vm.run().expect("the guest runs");
    print!("{}", output.stdout);
    output
}

macro_rules! tests {
    ($($group:ident { $($name:ident,)* })*) => {
        $($(#[test] fn $name() { fixture::went_well(boot(), stringify!($name)); })*)*
    };
}
hostblob_tests::for_each_export_check!(tests);

#[test]
fn the_daemon_in_the_guest_ends_in_order() {
    let output = boot();
    assert_eq!(output.status, Some(0), "{}", output.stdout);
    fixture::clean_console(output);
}
