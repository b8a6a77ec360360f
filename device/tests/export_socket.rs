//! hostblobd itself: the export socket is there with the daemon, and goes with it.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "helpers of tests state what they expect, as tests do"
)]

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hostblob_export::{Client, Error};
use rustix::process::{Pid, Signal};

const LONG: Duration = Duration::from_secs(20);

fn hostblobd(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hostblobd"));
    // A build that measures itself writes files.
    if let Some(mode) = std::env::var_os("HOSTBLOB_SANDBOX") {
        command.arg("--sandbox").arg(mode);
    }
    command
        .args(["--provider", "system", "--log", "warn", "--local-socket"])
        .arg(folder.join("local.sock"))
        .arg("--export-socket")
        .arg(folder.join("export.sock"))
        .stderr(Stdio::piped());
    command
}

fn connect(path: &Path, daemon: &mut Child) -> Client {
    let deadline = Instant::now() + LONG;
    loop {
        match Client::connect(path) {
            Ok(client) => return client,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        assert!(daemon.try_wait().unwrap().is_none(), "hostblobd ended");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn the_socket_comes_and_goes_with_the_daemon() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("export.sock");
    let mut daemon = hostblobd(folder.path()).spawn().unwrap();
    let mut client = connect(&path, &mut daemon);
    assert_eq!(client.list().unwrap(), []);
    let mode = std::fs::metadata(&path).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::mode(&mode.permissions());
    assert_eq!(mode & 0o077, 0, "the socket is for its owner alone");

    let child = Pid::from_child(&daemon);
    rustix::process::kill_process(child, Signal::TERM).unwrap();
    assert!(matches!(client.next_event(LONG), Err(Error::HungUp)));
    let output = daemon.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(!path.exists());
}

#[test]
fn a_path_that_is_taken_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("export.sock");
    std::fs::write(&path, "mine").unwrap();
    let output = hostblobd(folder.path()).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success());
    assert!(
        errors.contains("export.sock: exists and is not a socket"),
        "{errors}"
    );
    assert_eq!(std::fs::read(&path).unwrap(), b"mine");
    assert!(!folder.path().join("local.sock").exists());
}
