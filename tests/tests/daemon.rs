//! hostblobd as a program: how it starts, refuses, and ends.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Output};

use hostblob_guest::{Device, OpenOptions};
use hostblob_tests::scenario::WINDOW;

use xtask::vm::Transport;

use crate::driver::processes;
use crate::fixture::{self, Provider};

fn hostblobd(arguments: &[&str]) -> Output {
    let mut command = Command::new(fixture::hostblobd());
    command.env("RUST_BACKTRACE", "1").args(arguments);
    command.output().expect("hostblobd runs")
}

/// It ended with an error, and said so in one line that has `needle`.
fn refuses(arguments: &[&str], needle: &str) {
    let output = hostblobd(arguments);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.code().is_some_and(|code| code != 0),
        "{arguments:?}: {:?}",
        output.status
    );
    let lines: Vec<_> = text.lines().filter(|line| line.contains(needle)).collect();
    assert_eq!(
        lines.len(),
        1,
        "{arguments:?}: one line with {needle:?} in:\n{text}"
    );
    for bad in ["panicked", "backtrace", "Stack", "    at "] {
        assert!(!text.contains(bad), "{arguments:?}: {bad:?} in:\n{text}");
    }
    assert!(
        output.stdout.is_empty(),
        "{arguments:?}: {}",
        String::from_utf8_lossy(&output.stdout)
    );
}

/// What the kernel says of each thread of a process.
fn threads(pid: i32) -> Vec<String> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).expect("it runs");
    let status = |thread: std::fs::DirEntry| std::fs::read_to_string(thread.path().join("status"));
    threads
        .flatten()
        .map(status)
        .collect::<Result<_, _>>()
        .expect("it goes on")
}

#[test]
fn each_thread_has_given_up_what_it_does_not_need() {
    let has = |status: &str, name: &str, value: &str| {
        let line = status.lines().find(|line| line.starts_with(name));
        let word = line.and_then(|line| line.split_whitespace().nth(1));
        assert_eq!(word, Some(value), "{name} of {status}");
    };
    let builder = fixture::daemon(Provider::Vulkan, WINDOW).transport(Transport::VfioUser);
    let daemon = builder.start().expect("hostblobd starts");
    let [launcher, driver] = processes(&daemon).expect("its processes");
    let own = i32::try_from(daemon.pid()).expect("a process id");
    // What everybody has here: a container may have given up some of it before.
    let everybody = std::fs::read_to_string("/proc/self/status").expect("our status");
    let of_everybody = |name: &str| {
        let line = everybody.lines().find_map(|line| line.strip_prefix(name));
        line.expect("the field").trim()
    };
    // The launcher starts programs: it has all system calls.
    for (pid, filtered) in [
        (own, "2"),
        (launcher, of_everybody("Seccomp:")),
        (driver, "2"),
    ] {
        let threads = threads(pid);
        assert!(pid == launcher || threads.len() > 1);
        for status in threads {
            has(&status, "NoNewPrivs:", "1");
            has(&status, "Seccomp:", filtered);
            for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
                has(&status, set, "0000000000000000");
            }
        }
    }
    // A guest decides how many files its memory is in.
    let limits = std::fs::read_to_string(format!("/proc/{driver}/limits")).expect("its limits");
    let files = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"));
    let files: Vec<&str> = files.expect("its limit").split_whitespace().collect();
    assert_eq!(files[0], files[1], "soft and hard");
    fixture::finish(daemon);
    let builder = fixture::daemon(Provider::Vulkan, WINDOW).args(["--sandbox", "off"]);
    let daemon = builder.start().expect("hostblobd starts");
    let [_, driver] = processes(&daemon).expect("its processes");
    for pid in [i32::try_from(daemon.pid()).expect("a process id"), driver] {
        for status in threads(pid) {
            for name in ["NoNewPrivs:", "Seccomp:"] {
                has(&status, name, of_everybody(name));
            }
        }
    }
    fixture::finish(daemon);
}

#[test]
fn wrong_flags_are_one_clear_line() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("s").to_string_lossy().into_owned();
    let local = ["--local-socket", &socket, "--provider", "system"];
    let with = |more: &[&'static str]| [&local[..], more].concat();
    refuses(&[], "not provided");
    let closed = folder.path().join("closed");
    std::fs::create_dir(&closed).unwrap();
    std::fs::set_permissions(&closed, Permissions::from_mode(0o555)).unwrap();
    let inside = closed.join("s").to_string_lossy().into_owned();
    refuses(
        &["--local-socket", &inside, "--provider", "system"],
        "no permission",
    );
    refuses(&with(&["--window", "3G"]), "power of two");
    refuses(&with(&["--window", "1M"]), "2 MiB");
    refuses(&with(&["--window", "lots"]), "error:");
    refuses(&with(&["--memory-limit", "1"]), "limit");
    refuses(&with(&["--context-limit", "0"]), "limit");
    refuses(&with(&["--capset-id", "64"]), "error:");
    refuses(&with(&["--log", "loud"]), "error:");
    refuses(&with(&["--frobnicate"]), "--frobnicate");
    refuses(
        &["--local-socket", &socket, "--provider", "magic"],
        "error:",
    );
    refuses(
        &[
            "--local-socket",
            "/nonexistent/folder/s",
            "--provider",
            "system",
        ],
        "/nonexistent/folder/s",
    );
    let vmm = ["--socket-path", &socket, "--transport", "carrier-pigeon"];
    refuses(&vmm, "error:");
    for (flag, value, said) in [
        (
            "--wayland-socket",
            "/nonexistent/wayland-0",
            "no compositor answers",
        ),
        ("--capsets", "nonsense", "docs/renderers.md"),
        ("--display", "1920", "1920x1080"),
    ] {
        refuses(&["--socket-path", &socket, flag, value], said);
        refuses(&with(&[flag, value]), "error:");
    }
    let on_demand = ["--window-mode", "on-demand"];
    refuses(&with(&on_demand), "--transport vhost-user");
    let vmm = ["--socket-path", &socket, "--provider", "system"];
    refuses(&[&vmm[..], &on_demand].concat(), "--transport vhost-user");
    refuses(&with(&["--window-mode", "sometimes"]), "error:");
    assert!(
        !Path::new(&socket).exists(),
        "a daemon that did not start left its socket"
    );
}

#[test]
fn a_gpu_that_is_not_there_is_one_clear_line() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("s").to_string_lossy().into_owned();
    let arguments = [
        "--local-socket",
        &socket,
        "--provider",
        "vulkan",
        "--device",
        "no such GPU",
    ];
    refuses(&arguments, "no such GPU");
}

#[test]
fn sigterm_ends_it_and_removes_its_sockets() {
    for provider in [Provider::System, Provider::Vulkan] {
        let daemon = fixture::vm_daemon(Transport::VfioUser, provider, WINDOW);
        assert!(daemon.socket().exists() && daemon.local_socket().exists());
        let device = Device::open(&OpenOptions::socket(daemon.local_socket())).unwrap();
        let blob = device.create_plain_blob(4096).unwrap();
        blob.write(0, b"held while it ends").unwrap();
        let socket = daemon.local_socket();
        fixture::finish(daemon);
        assert!(UnixStream::connect(&socket).is_err());
        let error = device.budget(0).expect_err("nobody answers");
        assert_eq!(
            error.status(),
            Some(hostblob_guest::Status::DeviceLost),
            "{error}"
        );
        // The mapping is the client's as long as it wants it, and no access to it faults; what is in it is lost.
        let mut bytes = [1; 18];
        blob.read(0, &mut bytes).unwrap();
        assert!(
            bytes == [0; 18] || bytes == *b"held while it ends",
            "{bytes:?}"
        );
    }
}

#[test]
fn a_second_daemon_on_a_live_socket_is_refused() {
    let first = fixture::daemon(Provider::System, WINDOW).start().unwrap();
    let socket = first.local_socket();
    let path = socket.to_string_lossy();
    refuses(&["--local-socket", &path, "--provider", "system"], &path);
    let device = Device::open(&OpenOptions::socket(&socket)).expect("the first is there still");
    device.create_plain_blob(4096).unwrap();
    fixture::finish(first);
}

#[test]
fn a_socket_of_a_killed_daemon_is_taken_over() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("s");
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    assert!(socket.exists(), "left behind, as by SIGKILL");
    let arguments = ["--provider", "system", "--local-socket"];
    let mut child = Command::new(fixture::hostblobd())
        .args(arguments)
        .arg(&socket)
        .spawn()
        .unwrap();
    let opened = (0..500).find_map(|_| {
        std::thread::sleep(std::time::Duration::from_millis(10));
        Device::open(&OpenOptions::socket(&socket)).ok()
    });
    let blob = opened.map(|device| device.create_plain_blob(4096));
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(matches!(blob, Some(Ok(_))), "{blob:?}");
}

#[test]
fn info_says_what_the_host_offers() {
    let output = hostblobd(&["info"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    for needle in [
        "Vulkan",
        "udmabuf",
        "vfio-user-pci",
        "memory-backend-memfd",
        "--user-device",
        "crosvm run",
    ] {
        assert!(text.contains(needle), "no {needle:?} in:\n{text}");
    }
}

#[test]
fn help_describes_each_flag() {
    let output = hostblobd(&["--help"]);
    let text = String::from_utf8_lossy(&output.stdout);
    for flag in [
        "--socket-path",
        "--transport",
        "--window",
        "--provider",
        "--device",
        "--memory-limit",
        "--context-limit",
        "--capset-id",
        "--local-socket",
        "--log",
    ] {
        assert!(text.contains(flag), "no {flag} in:\n{text}");
    }
}
