//! Guests that are reset and rebooted: the daemon goes on, the next guest finds a working device and zeros.

use std::time::{Duration, Instant};

use hostblob_tests::scenario::WINDOW;
use xtask::daemon::Daemon;
use xtask::vm::{Transport, Vm};

use crate::fixture::{self, Provider};

/// Longest time for a boot on a busy host; it takes 4 to 6 s on an idle one.
const BOOT_TIMEOUT: Duration = Duration::from_secs(90);

/// Resets in a row: 2, or what the environment says for a long run.
fn resets() -> u32 {
    let text = std::env::var("HOSTBLOB_RESETS").unwrap_or_else(|_| "2".to_owned());
    text.parse().expect("HOSTBLOB_RESETS is a number")
}

macro_rules! over_transport {
    ($module:ident $transport:ident: $($test:ident,)*) => {
        mod $module {
            $(#[test] fn $test() { super::$test(super::Transport::$transport); })*
        }
    };
}

over_transport! { vfio_user VfioUser:
    guest_reboots_in_order,
    guest_reboots_with_memory_held_and_work_under_way,
    guest_kernel_panics_with_memory_held,
    machine_is_reset_with_memory_held,
    machine_stops_and_goes_on,
    machine_is_saved_while_it_stands,
    daemon_ends_under_a_running_guest,
    hostile_driver_is_survived,
}

// Not here: what resets a guest that holds memory. QEMU 11.1.3 ends with SIGSEGV then, whether the guest reboots by force, panics or is reset
// by QMP, since it has mapped the window and its reset unmaps that; see docs/vhost-user.md.
over_transport! { vhost_user VhostUser:
    guest_reboots_in_order,
    machine_is_reset_with_memory_held_and_qemu_may_end,
    machine_stops_and_goes_on,
    machine_is_saved_while_it_stands,
    daemon_ends_under_a_running_guest,
}

/// A guest that holds memory, and is reset or ends in this way.
pub(crate) fn start(daemon: &Daemon, way: &str, boots: u32) -> Vm {
    let timeout = BOOT_TIMEOUT * boots;
    let boots = boots.to_string();
    let program = fixture::guest_program("resets");
    let vm = Vm::builder(fixture::environment())
        .device(daemon)
        .timeout(timeout)
        .program(program, [way, boots.as_str()]);
    vm.start().expect("the guest starts")
}

/// The program resets its machine itself.
fn resets_itself(transport: Transport, way: &str) {
    let _slot = fixture::slot();
    let daemon = fixture::vm_daemon(transport, Provider::Vulkan, WINDOW);
    let output = start(&daemon, way, resets() + 1)
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
        resets() + 1,
        "{}\n--- console\n{}",
        output.stdout,
        output.console
    );
    let expected: Vec<_> = (1..=resets() + 1)
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

fn guest_reboots_in_order(transport: Transport) {
    resets_itself(transport, "orderly");
}

fn guest_reboots_with_memory_held_and_work_under_way(transport: Transport) {
    resets_itself(transport, "forced");
}

fn guest_kernel_panics_with_memory_held(transport: Transport) {
    resets_itself(transport, "panic");
}

fn machine_is_reset_with_memory_held(transport: Transport) {
    let _slot = fixture::slot();
    let daemon = fixture::vm_daemon(transport, Provider::Vulkan, WINDOW);
    let mut vm = start(&daemon, "wait", resets() + 1);
    for boot in 1..=resets() {
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
    assert_eq!(output.boots, resets() + 1, "{}", output.stdout);
    fixture::finish(daemon);
}

/// Whatever becomes of QEMU: the daemon goes on, and the next guest finds a working device and zeros.
fn machine_is_reset_with_memory_held_and_qemu_may_end(transport: Transport) {
    let _slot = fixture::slot();
    let daemon = fixture::vm_daemon(transport, Provider::Vulkan, WINDOW);
    let mut vm = start(&daemon, "wait", 2);
    vm.wait_for("held in boot 1\n", 1).expect("memory is held");
    vm.qmp()
        .and_then(|mut qmp| qmp.system_reset())
        .expect("QEMU resets the machine");
    match vm.wait() {
        Ok(output) if output.boots == 2 => assert_eq!(output.status, Some(0), "{}", output.stdout),
        Ok(output) => println!("QEMU ended in the reset:\n{}", output.console),
        Err(error) => panic!("{error:#}"),
    }
    let output = start(&daemon, "wait", 1).wait().expect("the guest runs");
    fixture::succeeded(&output);
    fixture::finish(daemon);
}

/// QMP's `stop` and `cont`, over and over, while a program creates, maps, checks and writes blobs. Over vhost-user its context has the window
/// mapped all the while: see docs/vhost-user.md for what QEMU does otherwise.
fn machine_stops_and_goes_on(transport: Transport) {
    const STOPS: u32 = 25;
    let _slot = fixture::slot();
    let daemon = fixture::vm_daemon(transport, Provider::Vulkan, WINDOW);
    let vm = Vm::builder(fixture::environment())
        .device(&daemon)
        .program(fixture::guest_program("raw_blobs"), ["8000"]);
    let mut vm = vm.start().expect("the guest starts");
    vm.wait_for("written and freed", 1)
        .expect("the program is half through");
    let mut qmp = vm.qmp().expect("QEMU's monitor answers");
    let mut stops = 0;
    while stops < STOPS && !vm.stdout().contains("live at once") {
        qmp.stop().expect("QEMU stops");
        std::thread::sleep(Duration::from_millis(20));
        qmp.cont().expect("QEMU goes on");
        std::thread::sleep(Duration::from_millis(30));
        stops += 1;
    }
    println!("{stops} stops while the program ran");
    assert!(stops >= STOPS / 5, "{stops} stops");
    let output = vm.wait().expect("the guest runs");
    fixture::succeeded(&output);
    assert!(output.stdout.contains("live at once"), "{}", output.stdout);
    fixture::finish(daemon);
}

/// What a guest holds is saved while its machine stands; another daemon takes it in, and the guest goes on with the first.
fn machine_is_saved_while_it_stands(transport: Transport) {
    let _slot = fixture::slot();
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("state");
    let with = |flag: &str| {
        fixture::daemon(Provider::Vulkan, WINDOW)
            .transport(transport)
            .args([flag.as_ref(), file.as_os_str()])
            .start()
            .expect("hostblobd starts")
    };
    let daemon = with("--save");
    let mut vm = start(&daemon, "wait", 2);
    vm.wait_for("held in boot 1\n", 1).expect("memory is held");
    let mut qmp = vm.qmp().expect("QEMU's monitor answers");
    qmp.stop().expect("QEMU stops");
    let pid = i32::try_from(daemon.pid())
        .ok()
        .and_then(rustix::process::Pid::from_raw);
    rustix::process::kill_process(pid.expect("a pid"), rustix::process::Signal::USR1)
        .expect("a signal");
    let deadline = Instant::now() + BOOT_TIMEOUT;
    while !file.exists() {
        assert!(Instant::now() < deadline, "no state: {}", daemon.log());
        std::thread::sleep(Duration::from_millis(20));
    }
    let size = file.metadata().expect("a file").len();
    assert!(
        size > 64 << 20,
        "{size} bytes, of two contexts with 38 MiB each"
    );
    let other = with("--restore");
    assert!(other.log().contains("restored from"), "{}", other.log());
    fixture::finish(other);
    qmp.cont().expect("QEMU goes on");
    vm.kill().expect("QEMU is killed");
    fixture::finish(daemon);
}

/// The daemon ends while a guest uses it: in order, and at once. QEMU is on its own then.
fn daemon_ends_under_a_running_guest(transport: Transport) {
    let _slot = fixture::slot();
    let daemon = fixture::vm_daemon(transport, Provider::Vulkan, WINDOW);
    let mut vm = start(&daemon, "wait", 2);
    vm.wait_for("held in boot 1\n", 1).expect("memory is held");
    fixture::finish(daemon);
    vm.kill().expect("QEMU is killed");
}

/// The guest is its own driver, and does its worst on the queue. Over vfio-user alone: a vhost-user device cannot say that it needs a reset.
fn hostile_driver_is_survived(transport: Transport) {
    let daemon = fixture::vm_daemon(transport, Provider::System, WINDOW);
    let output = fixture::run_in_guest(&daemon, &fixture::guest_program("hostile_driver"), &[]);
    print!("{}", output.stdout);
    assert_eq!(
        output.status,
        Some(0),
        "{}\n--- console\n{}\n--- log\n{}",
        output.stdout,
        output.console,
        daemon.log()
    );
    assert!(output.stdout.contains("the kernel's driver works"));
    // Each with its reason, and not without end.
    let log = daemon.log();
    for reason in [
        "descriptor 0 of the chain has length 0",
        "the descriptor list breaks off after",
        "is readable and comes after a writable one",
        "are not in guest memory",
        "command 0xdead0000 of context 0 answered 0x1200: the command is not served by this device",
    ] {
        assert!(log.contains(reason), "{reason}: {log}");
    }
    let dropped = log.matches("is dropped:").count();
    assert!((10..60).contains(&dropped), "{dropped} lines: {log}");
    let refused = log.matches("command 0xdead").count();
    assert!((10..100).contains(&refused), "{refused} lines: {log}");
    fixture::finish(daemon);
}
