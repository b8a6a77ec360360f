//! QEMU is killed while its guest maps and unmaps memory, again and again, under one daemon: what the guest had is given back, and the next one
//! finds a working device and zeros.
//!
//! `HOSTBLOB_KILLS` says how often, for a long run.

use std::time::{Duration, Instant};

use hostblob_guest::{AllocateInfo, Device, OpenOptions};
use hostblob_tests::scenario::WINDOW;
use xtask::daemon::Daemon;
use xtask::vm::Transport;

use crate::driver::driver;
use crate::fixture::{self, Held, Provider};
use crate::lifecycle::start;

/// Longest time until everything is given back.
const PATIENCE: Duration = Duration::from_secs(20);
/// More than a context's limit leaves of the daemon's.
const LARGE: u64 = 192 << 20;

/// What is left of the daemon's memory limit, to the byte: a context has less than it may have while another one has much. `None` where there
/// is not even that much.
fn left(daemon: &Daemon) -> Option<u64> {
    let options = OpenOptions::socket(daemon.local_socket());
    let [one, other] = [(); 2].map(|()| Device::open(&options).expect("a connection"));
    let _large = one.allocate(&AllocateInfo::new(LARGE).dedicated()).ok()?;
    Some(other.budget(0).expect("a budget").budget)
}

/// Waits until it is so.
fn eventually<T: std::fmt::Debug>(
    daemon: &Daemon,
    now: impl Fn() -> T,
    is_so: impl Fn(&T) -> bool,
) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let found = now();
        if is_so(&found) {
            return;
        }
        assert!(Instant::now() < deadline, "{found:?}: {}", daemon.log());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What both processes hold when nothing happens any more.
fn settled(now: impl Fn() -> [Held; 2]) -> [Held; 2] {
    let deadline = Instant::now() + PATIENCE;
    let mut last = now();
    loop {
        std::thread::sleep(Duration::from_millis(300));
        let next = now();
        if next == last {
            return next;
        }
        assert!(Instant::now() < deadline, "{last:?}, then {next:?}");
        last = next;
    }
}

fn qemu_is_killed_and_started_again(transport: Transport) {
    let kills = fixture::kills(2);
    let _slot = fixture::slot();
    let daemon = fixture::daemon(Provider::Vulkan, WINDOW)
        .transport(transport)
        .start()
        .expect("hostblobd starts");
    let child = driver(&daemon).expect("the process with the driver");
    let pids = [daemon.pid().to_string(), child.as_raw_nonzero().to_string()];
    let held = || [0, 1].map(|index| Held::of(&pids[index]));
    let free = left(&daemon);
    assert!(free.is_some(), "{}", daemon.log());
    let mut first = None;
    for kill in 1..=kills {
        let mut vm = start(&daemon, "churn", 2);
        vm.wait_for("lived", 1).expect("memory comes and goes");
        // At another place of it each time.
        std::thread::sleep(Duration::from_millis(u64::from(kill) * 37 % 200));
        vm.kill().expect("QEMU is killed");
        eventually(&daemon, || left(&daemon), |left| *left == free);
        let first = *first.get_or_insert_with(|| settled(held));
        eventually(&daemon, held, |now| {
            now.iter()
                .zip(first)
                .all(|(now, first)| now.is_within(first))
        });
        println!("kill {kill}: {:?}", held());
    }
    let output = start(&daemon, "wait", 1).wait().expect("the guest runs");
    fixture::succeeded(&output);
    assert!(output.stdout.contains("done"), "{}", output.stdout);
    fixture::finish(daemon);
}

mod vfio_user {
    #[test]
    fn qemu_is_killed_and_started_again() {
        super::qemu_is_killed_and_started_again(super::Transport::VfioUser);
    }
}

mod vhost_user {
    #[test]
    fn qemu_is_killed_and_started_again() {
        super::qemu_is_killed_and_started_again(super::Transport::VhostUser);
    }
}
