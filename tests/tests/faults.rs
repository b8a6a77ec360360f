//! The kernel refuses: each system call that the daemon needs fails in turn, in each of its threads, from its start on.
//!
//! strace injects the failures. Either the daemon says in one line why it does not start, or it goes on: what fails is the request that needed the
//! call, and when calls succeed again, all is served, and nothing is left behind.
//!
//! By default the first calls of each kind fail; with `HOSTBLOB_FAULTS=all` every one of them, until there is none left to fail.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use hostblob_guest::{AllocateInfo, Device, Endpoint, OpenOptions, WHOLE_SIZE};
use tempfile::NamedTempFile;
use xtask::daemon::{Daemon, DaemonBuilder};

use crate::fixture;

/// Calls, and how they fail. Memory of the process itself is not among them: no Rust program lives on where that fails.
const FAULTS: [(&str, &str); 21] = [
    ("memfd_create", "EMFILE"),
    ("ftruncate", "ENOSPC"),
    ("fallocate", "ENOSPC"),
    ("fallocate", "EINTR"),
    ("fcntl", "EMFILE"),
    ("clone3", "EAGAIN"),
    ("socket", "EMFILE"),
    ("socketpair", "EMFILE"),
    ("bind", "EACCES"),
    ("linkat", "ENOSPC"),
    ("accept4", "EMFILE"),
    ("accept4", "ECONNABORTED"),
    ("sendmsg", "ENOBUFS"),
    ("sendto", "EINTR"),
    ("sendto", "EPIPE"),
    ("recvfrom", "EINTR"),
    ("ppoll", "EINTR"),
    ("read", "EINTR"),
    ("eventfd2", "EMFILE"),
    ("mincore", "EAGAIN"),
    ("lseek", "EINVAL"),
];

/// Calls of each that fail by default.
const FIRST: u32 = 3;

/// Longest time that anything takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// Some of what is freed is zeroed, some given back.
fn builder() -> DaemonBuilder {
    let sizes = ["--window", "67108864", "--warm-limit", "65536"];
    Daemon::builder().args(["--provider", "system"]).args(sizes)
}

fn connect(daemon: &Daemon) -> hostblob_guest::Result<Device> {
    Device::open(&OpenOptions {
        endpoint: Endpoint::Socket(daemon.local_socket()),
        timeout: Duration::from_secs(2),
        ..OpenOptions::default()
    })
}

/// What a client does: memories of their own and of a block, the host's hand at them, and their ends.
fn work(daemon: &Daemon) -> hostblob_guest::Result<()> {
    let device = connect(daemon)?;
    for size in [4096, 1 << 20] {
        let memory = device.allocate(&AllocateInfo::new(size).dedicated())?;
        let mut first = [1; 8];
        memory.read(0, &mut first)?;
        assert_eq!(first, [0; 8], "memory that is new");
        memory.write(0, &[7; 4096])?;
        device
            .fill(&memory, 0, WHOLE_SIZE, 0x0101_0101)?
            .wait(None)?;
        memory.read(0, &mut first)?;
        assert_eq!(first, [1; 8], "after a fill that is done");
    }
    let small = device.allocate(&AllocateInfo::new(700))?;
    small.write(0, &[3; 700])?;
    // What was freed is cleaned meanwhile.
    std::thread::sleep(Duration::from_millis(50));
    device.budget(0)?;
    Ok(())
}

fn descriptors(daemon: &Daemon) -> usize {
    fs::read_dir(format!("/proc/{}/fd", daemon.pid())).map_or(0, Iterator::count)
}

fn eventually(daemon: &Daemon, what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(
            Instant::now() < deadline,
            "{what}: not so\n{}",
            daemon.log()
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Lets the daemon's calls succeed again.
fn stop_tracing(daemon: &Daemon) {
    let tracer = || {
        let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).ok()?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("TracerPid:"))?;
        rustix::process::Pid::from_raw(line.trim().parse().ok()?)
    };
    if let Some(pid) = tracer() {
        // It may have ended with the daemon.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
    eventually(daemon, "strace lets go", || tracer().is_none());
}

/// One run in which the `number`th call of each thread fails; false where no call was left to fail.
fn fail(call: &str, error: &str, number: u32, usual: usize) -> bool {
    let what = format!("{call} number {number} fails with {error}");
    let trace = NamedTempFile::new().expect("a file");
    let inject = format!("inject={call}:error={error}:when={number}");
    let filter = format!("trace={call}");
    let path = trace.path().to_string_lossy().into_owned();
    let strace = [
        "strace", "-D", "-I", "2", "-f", "-qq", "-o", &path, "-e", &filter, "-e", &inject, "--",
    ];
    let injected = || {
        let text = fs::read_to_string(trace.path()).unwrap_or_default();
        text.contains("(INJECTED)")
    };
    match builder().under(strace).start() {
        Err(refused) => {
            let text = format!("{refused:#}");
            assert!(
                injected(),
                "{what}: it does not start, and not for that: {text}"
            );
            assert!(text.contains("ended with exit status: 1"), "{what}: {text}");
            let lines = text
                .lines()
                .filter(|line| line.contains("error") || line.contains("panicked"));
            assert!(
                lines.count() <= 1 && !text.contains("panicked"),
                "{what}: {text}"
            );
        }
        Ok(mut daemon) => {
            let served = work(&daemon);
            stop_tracing(&daemon);
            if !daemon.is_running() && daemon.log().contains("hostblobd: no thread for") {
                // It ended while it started, after the first of its sockets was there.
                assert!(injected() && call == "clone3", "{what}: {}", daemon.log());
                return true;
            }
            assert!(daemon.is_running(), "{what}: {}", daemon.log());
            work(&daemon).unwrap_or_else(|error| {
                panic!(
                    "{what}, then ({served:?}) {error} though calls succeed: {}",
                    daemon.log()
                )
            });
            eventually(&daemon, &format!("{what}: no descriptor is left"), || {
                descriptors(&daemon) <= usual
            });
            daemon.stop().expect("it ends");
            assert!(
                !daemon.log().contains("panicked"),
                "{what}: {}",
                daemon.log()
            );
        }
    }
    injected()
}

#[test]
fn each_call_fails_in_turn() {
    let strace = Command::new("strace").arg("--version").output();
    assert!(strace.is_ok(), "no strace: run `cargo xtask setup`");
    let all = std::env::var("HOSTBLOB_FAULTS").is_ok_and(|value| value == "all");
    fixture::hostblobd();
    let daemon = builder().start().expect("hostblobd starts");
    let idle = descriptors(&daemon);
    work(&daemon).expect("work without a fault");
    eventually(&daemon, "a client leaves no descriptor", || {
        descriptors(&daemon) == idle
    });
    fixture::finish(daemon);
    for (call, error) in FAULTS {
        let last = if all { u32::MAX } else { FIRST };
        let failed = (1..=last).take_while(|&number| fail(call, error, number, idle));
        println!("{call}: {error}: {} runs with a failure", failed.count());
    }
}
