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
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use tempfile::NamedTempFile;
use xtask::daemon::{Daemon, DaemonBuilder};

use crate::fixture;

/// Calls, and how they fail. Memory of the process itself is not among them: no Rust program lives on where that fails. So mmap is that of [`MAPPED`].
const FAULTS: [(&str, &str); 23] = [
    ("mmap", "ENOMEM"),
    ("memfd_create", "EMFILE"),
    ("ftruncate", "ENOSPC"),
    ("fallocate", "ENOSPC"),
    ("fallocate", "EINTR"),
    ("fcntl", "EMFILE"),
    // In the sandbox threads are made by the older call.
    ("clone3", "EAGAIN"),
    ("clone", "EAGAIN"),
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

/// Files whose mappings fail: what guests see, and where their bytes are meanwhile. As strace names them, and as Linux does.
const MAPPED: [&str; 4] = [
    "/memfd:hostblob-window",
    "/memfd:hostblob-window (deleted)",
    "/memfd:hostblob-parking",
    "/memfd:hostblob-parking (deleted)",
];

/// Calls of each that fail by default.
const FIRST: u32 = 3;

/// Longest time that anything takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// Longest time that the daemon's cleaner lets what was freed gather, on a busy machine.
const CLEANING: Duration = Duration::from_secs(5);

/// Some of what is freed is zeroed, some given back.
fn builder() -> DaemonBuilder {
    let mut sizes = vec!["--window", "67108864", "--warm-limit", "65536"];
    // So much is mapped where bytes are that nobody has mapped.
    sizes.extend(["--memory-limit", "67108864", "--context-limit", "67108864"]);
    Daemon::builder().args(["--provider", "system"]).args(sizes)
}

fn connect(daemon: &Daemon) -> hostblob_guest::Result<Device> {
    Device::open(&OpenOptions {
        endpoint: Endpoint::Socket(daemon.local_socket()),
        timeout: Duration::from_secs(2),
        ..OpenOptions::default()
    })
}

/// What a client does: memories of their own and of a block, the host's hand at them, and their ends. It stays until `is_cleaned` what it freed.
fn work(daemon: &Daemon, is_cleaned: impl Fn() -> bool) -> hostblob_guest::Result<()> {
    let device = connect(daemon)?;
    let small = device.allocate(&AllocateInfo::new(700))?;
    small.write(0, &[3; 700])?;
    // What is small is zeroed when it is freed, the last one is given back.
    for size in [4096, 65536, 1 << 20] {
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
    // Nobody has mapped it, so its bytes are elsewhere first.
    let late = device.allocate(&AllocateInfo::new(65536).deferred())?;
    device.fill(&late, 0, WHOLE_SIZE, 0x0202_0202)?.wait(None)?;
    late.map()?;
    let mut first = [1; 8];
    late.read(0, &mut first)?;
    assert_eq!(first, [2; 8], "after a fill before the map");
    drop(late);
    device.budget(0)?;
    // Nobody takes the place of what was freed last, so it is the cleaner's.
    let deadline = Instant::now() + CLEANING;
    while !is_cleaned() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
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
    let mut strace = vec![
        "strace", "-D", "-I", "2", "-f", "-qq", "-o", &path, "-e", &filter, "-e", &inject,
    ];
    if call == "mmap" {
        strace.extend(MAPPED.iter().flat_map(|file| ["-P", file]));
    }
    strace.push("--");
    let traced = || fs::read_to_string(trace.path()).unwrap_or_default();
    let injected = || traced().contains("(INJECTED)");
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
            let served = work(&daemon, || call != "fallocate" || traced().contains(call));
            stop_tracing(&daemon);
            assert!(daemon.is_running(), "{what}: {}", daemon.log());
            work(&daemon, || true).unwrap_or_else(|error| {
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
    work(&daemon, || true).expect("work without a fault");
    eventually(&daemon, "a client leaves no descriptor", || {
        descriptors(&daemon) == idle
    });
    fixture::finish(daemon);
    for (call, error) in FAULTS {
        let last = if all { u32::MAX } else { FIRST };
        let failed = (1..=last).take_while(|&number| fail(call, error, number, idle));
        let failed = failed.count();
        println!("{call}: {error}: {failed} runs with a failure");
        assert!(failed > 0, "{call} was never called: this shows nothing");
    }
}

/// Sets a limit of the running daemon: to what it may have at most, without a number.
fn limit(daemon: &Daemon, resource: Resource, number: Option<u64>) {
    // It is our child.
    let maximum = getrlimit(resource).maximum;
    let current = number.or(maximum);
    let pid = Pid::from_raw(i32::try_from(daemon.pid()).expect("a pid"));
    prlimit(pid, resource, Rlimit { current, maximum }).expect("a limit");
}

/// The daemon has `first` and then ever more of something, until a client is served: those before are refused, nothing of them is left, and with
/// the usual limit all is served. What the daemon has said.
fn with_ever_more(resource: Resource, first: impl Fn(&Daemon) -> u64, step: u64) -> String {
    fixture::hostblobd();
    let mut daemon = builder().start().expect("hostblobd starts");
    let idle = descriptors(&daemon);
    let first = first(&daemon);
    let mut refused = 0;
    loop {
        limit(&daemon, resource, Some(first + refused * step));
        let served = work(&daemon, || true);
        limit(&daemon, resource, None);
        assert!(daemon.is_running(), "{served:?}: {}", daemon.log());
        eventually(&daemon, "no descriptor is left", || {
            descriptors(&daemon) <= idle
        });
        if served.is_ok() {
            break;
        }
        assert!(refused < 1000, "{served:?}: {}", daemon.log());
        refused += 1;
    }
    println!("{resource:?}: {refused} clients were refused, the next one was served");
    assert!(refused > 0, "the limit is none");
    work(&daemon, || true).expect("with the usual limit all is served");
    assert!(!daemon.log().contains("panicked"), "{}", daemon.log());
    daemon.stop().expect("it ends");
    daemon.log()
}

#[test]
fn a_daemon_without_descriptors_refuses_and_goes_on() {
    let log = with_ever_more(Resource::Nofile, |daemon| descriptors(daemon) as u64, 1);
    assert!(log.contains("no window of 67108864 bytes"), "{log}");
}

/// mmap(2) fails for the window, and for what is as large. Some MiB are always left for the daemon's own memory: no Rust program lives on where
/// that fails.
#[test]
fn a_daemon_without_room_for_mappings_refuses_and_goes_on() {
    let size = |daemon: &Daemon| {
        let pages = fs::read_to_string(format!("/proc/{}/statm", daemon.pid())).expect("its size");
        let pages = pages
            .split(' ')
            .next()
            .and_then(|pages| pages.parse::<u64>().ok());
        pages.expect("a number") * 4096 + (40 << 20)
    };
    let log = with_ever_more(Resource::As, size, 32 << 20);
    assert!(log.contains("no window of 67108864 bytes"), "{log}");
}
