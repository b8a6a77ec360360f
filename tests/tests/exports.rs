//! The export socket, by udmabuf: in a guest, whose kernel has it, and without it.

use std::sync::OnceLock;

use hostblob_tests::exports::{CHECKS, EXAMPLES, WITHOUT_UDMABUF};
use hostblob_tests::report;
use xtask::build;
use xtask::vm::{Output, Vm};

use crate::fixture;

/// One boot for all checks: the daemon and both its sides run in the guest. `None` where it failed.
fn boot() -> &'static Output {
    static BOOT: OnceLock<Option<Output>> = OnceLock::new();
    let boot = BOOT.get_or_init(|| std::panic::catch_unwind(run).ok());
    boot.as_ref()
        .expect("the boot of these checks, which failed in another test too")
}

fn run() -> Output {
    const PATH: &str = "/program/hostblobd";
    const EXAMPLES: &str = "/program/examples";
    let guest_side = ["draw_frames", "share"].map(|name| ("hostblob-guest", name));
    let host_side =
        ["frame_to_png", "double_buffer", "hand_in"].map(|name| ("hostblob-export", name));
    let mut vm = Vm::builder(fixture::environment())
        .program(fixture::guest_program("exports"), [PATH, EXAMPLES])
        .host_program(fixture::hostblobd(), PATH)
        .expect("the libraries of hostblobd");
    for (package, name) in guest_side.into_iter().chain(host_side) {
        let program = build::host_example(package, name).expect("the example builds");
        vm = vm
            .host_program(&program, &format!("{EXAMPLES}/{name}"))
            .expect("its libraries");
    }
    let _slot = fixture::slot();
    let output = vm.run().expect("the guest runs");
    print!("{}", output.stdout);
    output
}

fn check(name: &str) {
    let output = boot();
    match report::parse(&output.stdout).get(name) {
        Some(None) => {}
        Some(Some(failure)) => panic!("{failure}\n{}", output.stdout),
        None => panic!(
            "it was not run:\n{}\n--- console\n{}",
            output.stdout, output.console
        ),
    }
}

macro_rules! tests {
    ($($name:ident,)*) => {
        $(#[test] fn $name() { check(stringify!($name)); })*

        #[test]
        fn each_check_is_a_test() {
            let all = CHECKS.iter().chain(EXAMPLES).chain(WITHOUT_UDMABUF);
            let names: Vec<_> = all.map(|(name, _)| *name).collect();
            assert_eq!(names, [$(stringify!($name)),*]);
        }
    };
}

tests! {
    frames_are_seen_without_a_copy,
    two_memories_are_flipped_with_two_descriptors,
    buffers_of_a_pool_are_offsets_in_one_descriptor,
    a_descriptor_shows_its_memory_and_nothing_else,
    freed_memory_stays_with_who_holds_it,
    memory_that_is_open_does_not_move,
    waits_end_with_release_timeout_and_leaving,
    memory_of_others_is_imported,
    example_writes_a_frame_to_a_png,
    example_flips_two_memories,
    example_flips_two_buffers_of_a_pool,
    example_fills_memory_that_was_handed_in,
    without_udmabuf_exports_are_not_offered,
    without_udmabuf_memory_of_others_is_imported,
}

#[test]
fn the_daemon_in_the_guest_ends_in_order() {
    let output = boot();
    assert_eq!(output.status, Some(0), "{}", output.stdout);
    fixture::clean_console(output);
}
