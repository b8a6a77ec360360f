//! The process with the GPU driver is killed under load: guests keep their memory and their mappings, and go on.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use hostblob_tests::scenario::WINDOW;
use xtask::daemon::Daemon;
use xtask::vm::{Transport, Vm};

use crate::fixture::{self, Provider};

/// How often the driver dies: 5 times, or what the environment says for a long run.
fn kills() -> u32 {
    fixture::kills(5)
}

/// The process that has the driver now.
pub(crate) fn driver(daemon: &Daemon) -> Option<rustix::process::Pid> {
    let [_, driver] = processes(daemon)?;
    rustix::process::Pid::from_raw(driver)
}

/// hostblobd's launcher, and the process with the driver that it has started.
pub(crate) fn processes(daemon: &Daemon) -> Option<[i32; 2]> {
    let launcher = child(i32::try_from(daemon.pid()).ok()?)?;
    Some([launcher, child(launcher)?])
}

/// A process' only child.
fn child(pid: i32) -> Option<i32> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    let children = threads
        .flatten()
        .filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok())
        .collect::<String>();
    children.split_whitespace().next()?.parse().ok()
}

/// How often a driver was there again.
fn served_again(daemon: &Daemon) -> usize {
    daemon.log().matches("serves again").count()
}

/// Kills the driver as soon as it serves, over and over, until `is_over`; how often.
fn kill_until(daemon: &Daemon, mut is_over: impl FnMut() -> bool) -> usize {
    let mut killed = 0;
    while !is_over() {
        if served_again(daemon) == killed
            && let Some(pid) = driver(daemon)
        {
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("a kill");
            killed += 1;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    killed
}

/// It went on without one of its own failing.
fn finish(mut daemon: Daemon, killed: usize) {
    assert!(daemon.is_running(), "{}", daemon.log());
    let status = daemon.stop().expect("hostblobd ends");
    let log = daemon.log();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(!log.contains("panicked"), "{log}");
    let again = served_again(&daemon);
    let least = usize::try_from(kills()).expect("a number");
    assert!(killed >= least && again > 0, "killed {killed} times: {log}");
    println!("killed {killed} times, served again {again} times");
}

fn over_the_local_socket(provider: Provider) {
    let daemon = fixture::daemon(provider, WINDOW)
        .start()
        .expect("hostblobd starts");
    let mut program = Command::new(fixture::host_program("driver_dies"))
        .arg(kills().to_string())
        .arg(daemon.local_socket())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let killed = kill_until(&daemon, || {
        program.try_wait().expect("its status").is_some()
    });
    let output = program.wait_with_output().expect("its output");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", daemon.log());
    print!("{text}");
    finish(daemon, killed);
}

#[test]
fn a_local_client_goes_on_with_vulkan() {
    over_the_local_socket(Provider::Vulkan);
}

#[test]
fn a_local_client_goes_on_with_gl() {
    over_the_local_socket(Provider::Gl);
}

#[test]
fn a_guest_goes_on() {
    let _slot = fixture::slot();
    let daemon = fixture::vm_daemon(Transport::VfioUser, Provider::Vulkan, WINDOW);
    let program = fixture::guest_program("driver_dies");
    let mut vm = Vm::builder(fixture::environment())
        .device(&daemon)
        .timeout(Duration::from_secs(60 + 3 * u64::from(kills())))
        .program(program, [kills().to_string()])
        .start()
        .expect("the guest starts");
    vm.wait_for("ready\n", 1).expect("the program begins");
    let killed = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| vm.wait().expect("the guest runs"));
        let killed = kill_until(&daemon, || waiting.is_finished());
        let output = waiting.join().expect("the guest's output");
        fixture::succeeded(&output);
        print!("{}", output.stdout);
        killed
    });
    finish(daemon, killed);
}

/// Plain memory needs no driver; and whoever wants it so has the driver in the daemon.
#[test]
fn without_a_driver_or_by_wish_there_is_no_process() {
    let system = fixture::daemon(Provider::System, WINDOW)
        .start()
        .expect("hostblobd starts");
    assert_eq!(driver(&system), None);
    fixture::finish(system);
    let builder = fixture::daemon(Provider::Vulkan, WINDOW).args(["--provider-process", "off"]);
    let off = builder.start().expect("hostblobd starts");
    assert_eq!(driver(&off), None);
    let maps = |pid: String| fs::read_to_string(format!("/proc/{pid}/maps")).expect("its maps");
    assert!(maps(off.pid().to_string()).contains("libvulkan"));
    fixture::finish(off);
    let mut on = fixture::daemon(Provider::Vulkan, WINDOW)
        .start()
        .expect("hostblobd starts");
    let child = driver(&on)
        .expect("the process with the driver")
        .as_raw_nonzero()
        .to_string();
    assert!(maps(child).contains("libvulkan"));
    let own = maps(on.pid().to_string());
    assert!(
        !own.contains("libvulkan") && !own.contains("libEGL"),
        "{own}"
    );
    on.stop().expect("hostblobd ends");
    assert!(!on.log().contains("was killed"), "{}", on.log());
}
