//! Our Vulkan driver over the local socket: a host is its own guest. What programs see in a virtual machine is in `vulkan`.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use hostblob_guest::{ENV_LOG, ENV_SOCKET};
use hostblob_tests::vulkan::{STOCK, Setup};
use tempfile::TempDir;
use xtask::daemon::Daemon;

use crate::fixture;

/// For programs on our driver alone.
fn environment(socket: &Path) -> Vec<(&'static str, PathBuf)> {
    let driver = &fixture::vulkan_programs().driver;
    vec![
        ("VK_DRIVER_FILES", driver.clone()),
        // Loaders before 1.3.207 know this one.
        ("VK_ICD_FILENAMES", driver.clone()),
        (ENV_SOCKET, socket.to_owned()),
    ]
}

fn daemon(arguments: &[&str]) -> Daemon {
    fixture::hostblobd();
    Daemon::builder()
        .args(["--provider", "vulkan", "--validation"])
        .args(arguments)
        .start()
        .expect("hostblobd starts")
}

/// The C program with a word, under no layer.
fn program(socket: &Path, word: &str) -> Command {
    let mut command = Command::new(&fixture::vulkan_programs().memory);
    command
        .arg(word)
        .envs(environment(socket))
        .env(ENV_LOG, "debug");
    command
}

fn must_end_well(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}\n{errors}");
    text + &errors
}

#[test]
fn stock_programs_and_allocators_find_all_in_order() {
    let daemon = daemon(&["--window", "8G", "--memory-limit", "2G"]);
    let folder = TempDir::new().expect("a folder");
    let programs = fixture::vulkan_programs();
    let setup = Setup {
        allocators: programs.allocators.clone(),
        memory: programs.memory.clone(),
        environment: environment(&daemon.local_socket()),
        folder: folder.path().to_owned(),
    };
    for (name, check) in STOCK {
        if let Err(error) = check(&setup) {
            panic!("{name}: {error:#}\n--- hostblobd\n{}", daemon.log());
        }
    }
    fixture::finish(daemon);
}

#[test]
fn memory_that_the_window_has_no_room_for_cannot_be_mapped() {
    let daemon = daemon(&["--window", "64M", "--memory-limit", "512M"]);
    let output = program(&daemon.local_socket(), "window").output();
    let text = must_end_well(&output.expect("the program runs"));
    assert!(text.contains("then VK_ERROR_MEMORY_MAP_FAILED"), "{text}");
    fixture::finish(daemon);
}

/// Starts it, and returns when it is ready.
fn start(mut command: Command) -> Child {
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program runs");
    let stdout = child.stdout.as_mut().expect("it is piped");
    let mut lines = BufReader::new(stdout).lines();
    while lines.next().expect("it gets ready").expect("text") != "ready" {}
    child
}

#[test]
fn a_device_that_is_gone_is_lost_for_everything_after() {
    let mut daemon = daemon(&[]);
    let mut child = start(program(&daemon.local_socket(), "lost"));
    daemon.stop().expect("hostblobd ends");
    let mut stdin = child.stdin.take().expect("it is piped");
    stdin.write_all(b"go\n").expect("it reads");
    let text = must_end_well(&child.wait_with_output().expect("it ends"));
    assert!(
        text.contains("lost: everything said VK_ERROR_DEVICE_LOST"),
        "{text}"
    );
    assert!(
        text.contains("hostblob: error: the device is lost: "),
        "{text}"
    );
}

#[test]
fn no_daemon_is_no_device_and_a_line_of_reason() {
    let nowhere = Path::new("/nonexistent/hostblob.sock");
    let output = program(nowhere, "none").output();
    let text = must_end_well(&output.expect("the program runs"));
    let reason = "no device is listed: no hostblob device: /nonexistent/hostblob.sock: No such file or directory";
    assert!(text.contains(reason), "{text}");
}
