//! Guests that are reset, rebooted and killed: the daemon goes on, the next guest finds a working device and zeros.

use hostblob_tests::scenario::WINDOW;
use xtask::daemon::Daemon;
use xtask::vm::Vm;

use crate::fixture::{self, Provider};

/// Resets in a row.
const RESETS: u32 = 5;

fn start(daemon: &Daemon, way: &str, boots: u32) -> Vm {
    let boots = boots.to_string();
    let program = fixture::guest_program("resets");
    let vm = Vm::builder(fixture::environment())
        .device(daemon)
        .program(program, [way, boots.as_str()]);
    vm.start().expect("the guest starts")
}

/// The program resets its machine itself.
fn resets_itself(way: &str) {
    let _slot = fixture::slot();
    let daemon = fixture::vm_daemon(Provider::Vulkan, WINDOW);
    let output = start(&daemon, way, RESETS + 1)
        .wait()
        .expect("the guest runs");
    assert_eq!(
        output.status,
        Some(0),
        "{}\n--- console\n{}",
        output.stdout,
        output.console
    );
    assert_eq!(
        output.boots,
        RESETS + 1,
        "{}\n--- console\n{}",
        output.stdout,
        output.console
    );
    let expected: Vec<_> = (1..=RESETS + 1)
        .map(|boot| format!("held in boot {boot}"))
        .collect();
    let held: Vec<_> = output
        .stdout
        .lines()
        .map(str::trim)
        .filter(|line| line.starts_with("held"))
        .collect();
    assert_eq!(held, expected, "{}", output.stdout);
    fixture::finish(daemon);
}

#[test]
fn guest_reboots_in_order() {
    resets_itself("orderly");
}

#[test]
fn guest_reboots_with_memory_held_and_work_under_way() {
    resets_itself("forced");
}

#[test]
fn guest_kernel_panics_with_memory_held() {
    resets_itself("panic");
}

#[test]
fn machine_is_reset_with_memory_held() {
    let _slot = fixture::slot();
    let daemon = fixture::vm_daemon(Provider::Vulkan, WINDOW);
    let mut vm = start(&daemon, "wait", RESETS + 1);
    for boot in 1..=RESETS {
        vm.wait_for(&format!("held in boot {boot}\n"), 1)
            .expect("memory is held");
        vm.qmp()
            .and_then(|mut qmp| qmp.system_reset())
            .expect("QEMU resets the machine");
    }
    let output = vm.wait().expect("the guest runs");
    assert_eq!(
        output.status,
        Some(0),
        "{}\n--- console\n{}",
        output.stdout,
        output.console
    );
    assert_eq!(output.boots, RESETS + 1, "{}", output.stdout);
    fixture::finish(daemon);
}

#[test]
fn qemu_is_killed_and_started_again() {
    let _slot = fixture::slot();
    let daemon = fixture::vm_daemon(Provider::Vulkan, WINDOW);
    for _ in 0..3 {
        let mut vm = start(&daemon, "wait", 2);
        vm.wait_for("held in boot 1\n", 1).expect("memory is held");
        vm.kill().expect("QEMU is killed");
    }
    let output = start(&daemon, "wait", 1).wait().expect("the guest runs");
    fixture::succeeded(&output);
    assert!(output.stdout.contains("done"), "{}", output.stdout);
    fixture::finish(daemon);
}

/// The daemon ends while a guest uses it: in order, and at once. QEMU is on its own then.
#[test]
fn daemon_ends_under_a_running_guest() {
    let _slot = fixture::slot();
    let daemon = fixture::vm_daemon(Provider::Vulkan, WINDOW);
    let mut vm = start(&daemon, "wait", 2);
    vm.wait_for("held in boot 1\n", 1).expect("memory is held");
    fixture::finish(daemon);
    vm.kill().expect("QEMU is killed");
}
