//! The device's state on its way from one daemon to another, as QEMU and crosvm ask for it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use hostblob_protocol::virtio_gpu::resp;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::{
    VhostTransferStateDirection as Direction, VhostTransferStatePhase as Phase,
    VhostUserConfigFlags,
};

use clap::Parser;

use super::vmm::{Daemon, Vmm, crosvm, qemu};
use crate::daemon::DaemonError;
use crate::shutdown::Shutdown;
use crate::transport::vfio_user::fake::{Control, FakeDevice, KEEP, answer};
use crate::transport::vhost_user::messages::PROTOCOL_FEATURES;

fn pipe() -> (File, OwnedFd) {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    (reader.into(), writer)
}

fn begin(vmm: &Vmm, direction: Direction, file: OwnedFd) -> bool {
    let begun = vmm
        .frontend
        .set_device_state_fd(direction, Phase::STOPPED, file);
    begun.is_ok_and(|other| {
        assert!(other.is_none(), "the VMM's own descriptor is used");
        true
    })
}

fn save(vmm: &Vmm) -> Option<Vec<u8>> {
    let (mut reader, writer) = pipe();
    assert!(begin(vmm, Direction::SAVE, writer));
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes).unwrap();
    vmm.frontend.check_device_state().ok().map(|()| bytes)
}

fn load(vmm: &Vmm, bytes: &[u8]) -> bool {
    let (reader, writer) = pipe();
    assert!(begin(vmm, Direction::LOAD, reader.into()));
    // It may be closed early.
    let _ = File::from(writer).write_all(bytes);
    vmm.frontend.check_device_state().is_ok()
}

fn mapped(vmm: &Vmm) -> File {
    let start = Instant::now();
    loop {
        if let Some((_, _, file)) = vmm.shmem.mapped.lock().first() {
            return file.try_clone().unwrap();
        }
        assert!(start.elapsed() < Duration::from_secs(10), "no window");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A VMM whose VM has not started.
fn incoming(daemon: &Daemon) -> Vmm {
    let mut vmm = Vmm::connect(&daemon.path);
    qemu::open(&mut vmm, PROTOCOL_FEATURES);
    vmm.frontend.add_mem_region(&vmm.region()).unwrap();
    vmm
}

#[test]
fn a_vm_moves_from_one_daemon_to_another() {
    let (first, second) = (Daemon::start(), Daemon::start());
    let mut from = qemu::run(&first.path, PROTOCOL_FEATURES);
    assert_eq!(from.create_context(1), resp::OK_NODATA);
    for resource in [1, 2] {
        assert_eq!(from.create_blob(1, resource), resp::OK_NODATA);
    }
    assert_eq!(from.map_blob(1), resp::OK_MAP_INFO);
    mapped(&from).write_all_at(b"contents", 4096 + 8).unwrap();
    let bases = qemu::stop(&mut from);
    let bytes = save(&from).unwrap();

    let mut to = incoming(&second);
    to.take_over(&from);
    assert!(load(&to, &bytes));
    assert!(
        to.shmem.names().is_empty(),
        "nothing is asked of a stopped VMM"
    );
    drop(from);
    qemu::start(&mut to, bases);
    let window = mapped(&to);
    let mut found = [0; 8];
    window.read_exact_at(&mut found, 4096 + 8).unwrap();
    assert_eq!(&found, b"contents");
    assert_eq!(to.unmap_blob(1), resp::OK_NODATA);
    assert_eq!(to.map_blob(2), resp::OK_MAP_INFO);
    assert_eq!(
        to.create_context(1),
        resp::ERR_INVALID_CONTEXT_ID,
        "it exists"
    );
    assert_eq!(to.shmem.names(), ["map"]);
    // Saved again, and the VM goes on where it is.
    let bases = qemu::stop(&mut to);
    save(&to).unwrap();
    qemu::start(&mut to, bases);
    assert_eq!(to.destroy_context(1), resp::OK_NODATA);
}

#[test]
fn what_does_not_arrive_whole_leaves_the_device_as_new() {
    let daemon = Daemon::start();
    let mut from = qemu::run(&daemon.path, PROTOCOL_FEATURES);
    assert_eq!(from.create_context(1), resp::OK_NODATA);
    assert_eq!(from.create_blob(1, 1), resp::OK_NODATA);
    qemu::stop(&mut from);
    let bytes = save(&from).unwrap();
    let mut trailing = bytes.clone();
    trailing.push(0);
    for wrong in [&b""[..], b"nonsense", &bytes[..bytes.len() - 1], &trailing] {
        assert!(!load(&from, wrong));
    }
    from.fresh_queues();
    qemu::start(&mut from, [0, 0]);
    assert_eq!(from.create_context(1), resp::OK_NODATA);
}

#[test]
fn only_a_stopped_device_and_one_transfer_at_a_time() {
    let daemon = Daemon::start();
    let mut vmm = qemu::run(&daemon.path, PROTOCOL_FEATURES);
    assert!(!begin(&vmm, Direction::SAVE, pipe().1), "the queues run");
    assert!(
        vmm.frontend.check_device_state().is_err(),
        "nothing was begun"
    );
    assert_eq!(vmm.create_context(1), resp::OK_NODATA);
    let bases = qemu::stop(&mut vmm);
    let (reader, writer) = pipe();
    assert!(begin(&vmm, Direction::LOAD, reader.into()));
    assert!(
        !begin(&vmm, Direction::SAVE, pipe().1),
        "another is under way"
    );
    drop(writer);
    assert!(vmm.frontend.check_device_state().is_err());
    assert!(vmm.frontend.check_device_state().is_err(), "asked already");
    qemu::start(&mut vmm, bases);
    assert_eq!(vmm.create_context(1), resp::OK_NODATA);
}

/// A guest with more in its memory than a pipe takes.
fn with_much(daemon: &Daemon) -> Vmm {
    let mut vmm = qemu::run(&daemon.path, PROTOCOL_FEATURES);
    assert_eq!(vmm.create_context(1), resp::OK_NODATA);
    for resource in 1..100 {
        assert_eq!(vmm.create_blob(1, resource), resp::OK_NODATA);
        assert_eq!(vmm.map_blob(resource), resp::OK_MAP_INFO);
        let at = u64::from(resource) * 4096;
        mapped(&vmm).write_all_at(&[7; 4096], at).unwrap();
    }
    vmm
}

#[test]
fn a_vmm_that_does_not_read_keeps_nobody_up() {
    let mut daemon = Daemon::start();
    let mut vmm = with_much(&daemon);
    let bases = qemu::stop(&mut vmm);
    let (reader, writer) = pipe();
    assert!(begin(&vmm, Direction::SAVE, writer));
    std::thread::sleep(Duration::from_millis(50));
    // The VM goes on: the transfer has no point any more.
    qemu::start(&mut vmm, bases);
    assert_eq!(vmm.unmap_blob(1), resp::OK_NODATA);
    drop(reader);
    assert!(vmm.frontend.check_device_state().is_err());
    // And once more, until the daemon ends.
    qemu::stop(&mut vmm);
    let (_reader, writer) = pipe();
    assert!(begin(&vmm, Direction::SAVE, writer));
    std::thread::sleep(Duration::from_millis(50));
    assert!(daemon.end() < Duration::from_secs(2));
}

/// The pipe's flags are the VMM's too: a write to it waits until somebody reads.
#[test]
fn a_vmm_whose_pipe_blocks_keeps_nobody_up() {
    let mut daemon = Daemon::start();
    let mut vmm = with_much(&daemon);
    let stuck = |vmm: &mut Vmm| {
        let bases = qemu::stop(vmm);
        let (reader, writer) = pipe();
        let ours = writer.try_clone().unwrap();
        assert!(begin(vmm, Direction::SAVE, writer));
        // Each look for room is a write now, and a pipe has less than what is saved.
        let flags = rustix::fs::fcntl_getfl(&ours).unwrap();
        let blocking = flags & !rustix::fs::OFlags::NONBLOCK;
        rustix::fs::fcntl_setfl(&ours, blocking).unwrap();
        std::thread::sleep(Duration::from_millis(300));
        (bases, reader, ours)
    };
    let (bases, reader, ours) = stuck(&mut vmm);
    // The VM goes on: the transfer is ended.
    qemu::start(&mut vmm, bases);
    assert_eq!(vmm.unmap_blob(1), resp::OK_NODATA);
    assert!(vmm.frontend.check_device_state().is_err());
    drop((reader, ours));
    // And once more, until the daemon ends. Who wants the device meanwhile is refused, and waits for nothing.
    let _kept = stuck(&mut vmm);
    let config = vmm
        .frontend
        .set_config(0, VhostUserConfigFlags::WRITABLE, &[0; 4]);
    assert!(config.is_err(), "a transfer has the device");
    assert!(daemon.end() < Duration::from_secs(2));
}

fn fake() -> (Daemon, std::sync::mpsc::Receiver<Control>) {
    let (send, controls) = std::sync::mpsc::channel();
    let daemon = Daemon::serving(move |waker| {
        let (device, control) = FakeDevice::new(waker);
        send.send(control).unwrap();
        Ok(device)
    });
    (daemon, controls)
}

#[test]
fn responses_that_the_stopped_queue_did_not_get_move_along() {
    let ((first, controls), (second, _others)) = (fake(), fake());
    let mut from = crosvm::start(&first.path);
    let control = controls.recv().unwrap();
    let command = [KEEP; 24];
    from.offer(0, &command);
    while control.kept() == 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    let bases = crosvm::deactivate(&mut from);
    assert_eq!(save(&from), None, "a command is under way");
    control.complete(0);
    let bytes = save(&from).unwrap();
    let mut to = Vmm::connect(&second.path);
    crosvm::open(&mut to);
    to.take_over(&from);
    crosvm::negotiate(&mut to);
    assert!(load(&to, &bytes));
    drop(from);
    crosvm::activate(&mut to, bases);
    assert_eq!(to.response(0), answer(&command));
    to.offer(0, b"another command");
    assert_eq!(to.response(0), answer(b"another command"));
}

/// hostblobd in this process.
struct Hostblobd {
    shutdown: Shutdown,
    thread: std::thread::JoinHandle<Result<(), DaemonError>>,
    socket: std::path::PathBuf,
}

impl Hostblobd {
    fn start(folder: &std::path::Path, name: &str, more: &[&str]) -> Self {
        let socket = folder.join(name);
        let path = socket.to_str().unwrap();
        let flags = [
            "hostblobd",
            "--transport",
            "vhost-user",
            "--provider",
            "system",
        ];
        let sizes = ["--window", "2M", "--capset-id", "30", "--socket-path", path];
        let cli = crate::cli::Cli::parse_from([&flags[..], &sizes, more].concat());
        let shutdown = Shutdown::new().unwrap();
        let ends = shutdown.clone();
        let options = cli.serve.gpu.options();
        let opened = hostblob_allocator::provider::open(cli.serve.gpu.provider, &options).unwrap();
        let serve = move || crate::daemon::serve(&cli.serve, opened.provider, &ends, || Ok(()));
        let thread = std::thread::spawn(serve);
        while !socket.exists() && !thread.is_finished() {
            std::thread::sleep(Duration::from_millis(1));
        }
        Self {
            shutdown,
            thread,
            socket,
        }
    }

    fn end(self) -> Result<(), DaemonError> {
        self.shutdown.request();
        self.thread.join().unwrap()
    }
}

fn wait_until(holds: impl Fn() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(10));
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn hostblobd_saves_on_a_signal_and_begins_with_what_was_saved() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("state");
    let path = file.to_str().unwrap();
    let daemon = Hostblobd::start(folder.path(), "first", &["--save", path]);
    let signal = || {
        let process = rustix::process::getpid();
        rustix::process::kill_process(process, rustix::process::Signal::USR1).unwrap();
    };
    let saves = || {
        let threads = std::fs::read_dir("/proc/self/task").unwrap();
        let name = |path: std::path::PathBuf| std::fs::read_to_string(path).unwrap_or_default();
        let mut names = threads.map(|thread| name(thread.unwrap().path().join("comm")));
        names.any(|name| name.trim_end() == "hostblob-save")
    };
    signal();
    std::thread::sleep(Duration::from_millis(50));
    assert!(!file.exists(), "no VMM is connected");
    let mut from = qemu::run(&daemon.socket, PROTOCOL_FEATURES);
    assert_eq!(from.create_context(1), resp::OK_NODATA);
    assert_eq!(from.create_blob(1, 1), resp::OK_NODATA);
    assert_eq!(from.map_blob(1), resp::OK_MAP_INFO);
    mapped(&from).write_all_at(b"contents", 4096).unwrap();
    let bases = qemu::stop(&mut from);
    signal();
    wait_until(|| file.exists());
    let names = std::fs::read_dir(folder.path()).unwrap();
    assert_eq!(
        names.count(),
        2,
        "the socket, and the snapshot when it is whole"
    );

    let second = Hostblobd::start(folder.path(), "second", &["--restore", path]);
    let mut to = Vmm::connect(&second.socket);
    qemu::open(&mut to, PROTOCOL_FEATURES);
    to.frontend.add_mem_region(&to.region()).unwrap();
    to.take_over(&from);
    drop(from);
    assert!(saves());
    daemon.end().unwrap();
    // Its entry goes a moment after it has ended.
    wait_until(|| !saves());
    qemu::start(&mut to, bases);
    let mut found = [0; 8];
    mapped(&to).read_exact_at(&mut found, 4096).unwrap();
    assert_eq!(&found, b"contents");
    assert_eq!(to.unmap_blob(1), resp::OK_NODATA);
    drop(to);
    // The next VM begins with nothing.
    let mut next = qemu::run(&second.socket, PROTOCOL_FEATURES);
    assert_eq!(next.create_context(1), resp::OK_NODATA);
    drop(next);
    second.end().unwrap();

    // A new driver does not find what another left.
    let third = Hostblobd::start(folder.path(), "third", &["--restore", path]);
    let mut fresh = qemu::run(&third.socket, PROTOCOL_FEATURES);
    assert_eq!(fresh.create_context(1), resp::OK_NODATA);
    drop(fresh);
    third.end().unwrap();
}

#[test]
fn hostblobd_does_not_begin_with_anything_else() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("state");
    let path = file.to_str().unwrap();
    for (contents, why) in [
        (None, "No such file"),
        (Some(&b""[..]), "it ends too early"),
        (
            Some(b"something else, of some length"),
            "does not begin as a snapshot",
        ),
    ] {
        if let Some(contents) = contents {
            std::fs::write(&file, contents).unwrap();
        }
        let daemon = Hostblobd::start(folder.path(), "s", &["--restore", path]);
        let socket = daemon.socket.clone();
        let error = daemon.end().unwrap_err().to_string();
        assert!(error.contains(path) && error.contains(why), "{error}");
        assert!(!error.contains('\n') && !socket.exists());
    }
}
