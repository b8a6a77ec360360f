//! What is given up cannot be had again, so each test runs this program once more and asks it from there.

use std::fs::{self, File};
use std::io;
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;
use std::thread;

use clap::Parser;
use rustix::mm::{MapFlags, ProtFlags};

use super::*;
use crate::cli::Cli;

/// Names what the other process is to be.
const ROLE: &str = "HOSTBLOB_TEST_SANDBOX";
/// A folder of the test's own.
const FOLDER: &str = "HOSTBLOB_TEST_FOLDER";

/// Something that a process asks for.
type Ask = fn(&Path) -> io::Result<()>;

/// What each process asks for, whoever it is, from a thread that was there before and from one that was not.
const REFUSED_TO_ALL: [(&str, Ask); 13] = [
    ("read what every user may", |_| opened("/etc/passwd")),
    ("read another process", |_| {
        opened(&format!(
            "/proc/{}/environ",
            rustix::process::getppid().unwrap().as_raw_nonzero()
        ))
    }),
    ("make a file", |folder| {
        File::create(folder.join("new")).map(drop)
    }),
    ("write a file", |folder| {
        fs::OpenOptions::new()
            .write(true)
            .open(folder.join("file"))
            .map(drop)
    }),
    ("make a folder", |folder| {
        fs::create_dir(folder.join("folder"))
    }),
    ("move a file", |folder| {
        fs::rename(folder.join("file"), folder.join("other"))
    }),
    ("execute a program", |_| {
        Command::new("/bin/true").status().map(drop)
    }),
    ("make a process", |_| forked()),
    ("listen to the network", |_| {
        TcpListener::bind("127.0.0.1:0").map(drop)
    }),
    ("connect to a socket", |folder| {
        UnixStream::connect(folder.join("socket")).map(drop)
    }),
    ("look into another process", |_| traced()),
    ("end another process", |_| signalled()),
    ("have a capability", |_| gained()),
];

fn opened(path: &str) -> io::Result<()> {
    File::open(path).map(drop)
}

fn done(result: libc::c_long) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// A process without the C library's help, by the older call: not a thread.
fn forked() -> io::Result<()> {
    // SAFETY: a copy of this process with a stack of its own, which ends at once.
    let child = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) };
    if child == 0 {
        // SAFETY: ends the copy, whatever the state of this program.
        unsafe { libc::_exit(0) };
    }
    done(child)
}

fn traced() -> io::Result<()> {
    let parent = rustix::process::getppid().unwrap().as_raw_nonzero().get();
    // SAFETY: attaching changes no memory of ours.
    done(unsafe { libc::ptrace(libc::PTRACE_SEIZE, parent, 0, 0) })
}

/// By the call that a process may send signals to itself with. This one would change nothing.
fn signalled() -> io::Result<()> {
    let parent = rustix::process::getppid().unwrap().as_raw_nonzero().get();
    // SAFETY: signal 0 only asks.
    done(unsafe { libc::syscall(libc::SYS_tgkill, parent, parent, 0) })
}

fn gained() -> io::Result<()> {
    let sets = rustix::thread::CapabilitySets {
        effective: rustix::thread::CapabilitySet::NET_ADMIN,
        permitted: rustix::thread::CapabilitySet::NET_ADMIN,
        inheritable: rustix::thread::CapabilitySet::empty(),
    };
    Ok(rustix::thread::set_capabilities(None, sets)?)
}

/// Pages that can be executed.
fn code() -> io::Result<()> {
    let (prot, flags) = (ProtFlags::READ | ProtFlags::EXEC, MapFlags::PRIVATE);
    // SAFETY: new pages, which nobody uses.
    let mapped = unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), 4096, prot, flags) };
    Ok(mapped.map(drop)?)
}

/// Not a test: what the other processes do.
#[test]
fn inside() {
    let Some(role) = std::env::var_os(ROLE) else {
        return;
    };
    let folder = PathBuf::from(std::env::var_os(FOLDER).unwrap());
    let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let (socket, save) = (path("socket"), path("save/state"));
    let needs = match role.to_str().unwrap() {
        "driver" => Needs::of_driver(),
        "daemon" => {
            Needs::of_daemon(&Cli::parse_from(["hostblobd", "--local-socket", &socket]).serve)
        }
        "saver" => {
            let flags = ["hostblobd", "--socket-path", &socket, "--save", &save];
            Needs::of_daemon(&Cli::parse_from(flags).serve)
        }
        other => panic!("{other}"),
    };
    // The threads of this program's tests are older: what a thread has for itself is asked of this one and the next.
    let sandbox = Sandbox::enter(Mode::On, needs.clone()).unwrap();
    let (ask, asked) = std::sync::mpsc::channel::<()>();
    let older = {
        let folder = folder.clone();
        thread::spawn(move || asked.recv().map(|()| refused_to_all(&folder)))
    };
    let listener = (!needs.driver).then(|| UnixListener::bind(&socket).unwrap());
    sandbox.close().unwrap();
    ask.send(()).unwrap();
    older.join().unwrap().unwrap();
    refused_to_all(&folder);
    // A thread is what there may be more of.
    thread::spawn({
        let folder = folder.clone();
        move || refused_to_all(&folder)
    })
    .join()
    .unwrap();
    works(&needs, &folder);
    drop(listener);
    println!("everything was asked");
}

fn refused_to_all(folder: &Path) {
    for (what, ask) in REFUSED_TO_ALL {
        let kind = ask(folder).map_err(|error| error.kind());
        assert_eq!(kind, Err(io::ErrorKind::PermissionDenied), "{what}");
    }
}

/// What one needs works, and is refused to the others.
fn works(needs: &Needs, folder: &Path) {
    let allowed = |is_needed: bool, what: &str, result: io::Result<()>| {
        let kind = result.map_err(|error| error.kind());
        let expected = if is_needed {
            Ok(())
        } else {
            Err(io::ErrorKind::PermissionDenied)
        };
        assert_eq!(kind, expected, "{what}");
    };
    allowed(needs.driver, "a library", opened("/usr/lib/os-release"));
    allowed(needs.driver, "code", code());
    let save = folder.join("save");
    allowed(
        needs.save.is_some(),
        "a snapshot",
        File::create(save.join("new")).map(drop),
    );
    allowed(
        needs.save.is_some(),
        "its name",
        fs::rename(save.join("new"), save.join("state")),
    );
    allowed(
        !needs.driver,
        "a socket's end",
        fs::remove_file(folder.join("socket")),
    );
    // What a descriptor is, and memory, is everybody's.
    let memory = rustix::fs::memfd_create("m", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let link = fs::read_link(format!("/proc/self/fd/{}", memory.as_raw_fd())).unwrap();
    assert!(link.to_str().unwrap().starts_with("/memfd:m"), "{link:?}");
    UnixStream::pair().unwrap();
}

fn run(role: &str) {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("file"), "old").unwrap();
    fs::create_dir(folder.path().join("save")).unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["sandbox::tests::inside", "--exact", "--nocapture"])
        .env(ROLE, role)
        .env(FOLDER, folder.path())
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    let wrong = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{role}: {told}{wrong}");
    assert!(
        told.contains("everything was asked"),
        "{role}: {told}{wrong}"
    );
    assert_eq!(fs::read(folder.path().join("file")).unwrap(), b"old");
}

#[test]
fn the_daemon_opens_and_executes_nothing() {
    run("daemon");
}

#[test]
fn a_daemon_that_saves_writes_there_alone() {
    run("saver");
}

#[test]
fn a_driver_reads_drivers_and_nothing_else() {
    run("driver");
}
