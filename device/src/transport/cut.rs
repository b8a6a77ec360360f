//! Connections that break off at each message of a well-behaved frontend, and in the middle of it: what was there is given back, and the next
//! frontend gets a device that works.
//!
//! A relay stands between frontend and daemon. It passes on so many whole messages, perhaps a part of the next one, and then hangs up.

mod story;

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::Shutdown as Direction;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use hostblob_allocator::Host;
use hostblob_allocator::provider::fake::FakeProvider;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

pub(super) use story::{Frontend, begin, whole};

const PATIENCE: Duration = Duration::from_secs(10);
/// The thread that has the frontend, which may panic where it is cut off.
const FRONTEND: &str = "frontend";

/// Sessions under signals: one may be over before the first of them.
const SESSIONS: usize = 10;

/// How a transport's messages are told from each other.
#[derive(Clone, Copy)]
pub(super) struct Framing {
    /// Bytes of a header.
    pub(super) header: usize,
    /// Bytes of the whole message, by its header.
    pub(super) length: fn(&[u8]) -> usize,
    /// Whether the daemon gets them byte by byte.
    pub(super) by_byte: bool,
}

/// What is left of the message at which the connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rest {
    Nothing,
    /// Its header, or half of it where it is nothing else.
    Header,
    /// The same without the descriptors that it carries.
    Bare,
}

/// A message, with its descriptors.
struct Message {
    bytes: Vec<u8>,
    files: Vec<OwnedFd>,
}

/// The next bytes of a stream, and what came with them; fewer at its end.
pub(super) fn receive(stream: &UnixStream, length: usize, files: &mut Vec<OwnedFd>) -> Vec<u8> {
    let mut bytes = vec![0; length];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let into = &mut [IoSliceMut::new(&mut bytes)];
    let flags = RecvFlags::CMSG_CLOEXEC;
    let received = rustix::net::recvmsg(stream, into, &mut control, flags);
    bytes.truncate(received.map_or(0, |received| received.bytes));
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            files.extend(rights);
        }
    }
    bytes
}

fn send(stream: &UnixStream, bytes: &[u8], files: &[OwnedFd]) {
    let files: Vec<BorrowedFd<'_>> = files.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !files.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&files));
    }
    let flags = SendFlags::NOSIGNAL;
    // The other side may have gone.
    let _ = rustix::net::sendmsg(stream, &[IoSlice::new(bytes)], &mut control, flags);
}

impl Framing {
    /// The next message of a stream; `None` at its end.
    fn next(self, stream: &UnixStream) -> Option<Message> {
        let (mut bytes, mut files) = (Vec::new(), Vec::new());
        let mut length = self.header;
        while bytes.len() < length {
            let more = receive(stream, length - bytes.len(), &mut files);
            if more.is_empty() {
                return None;
            }
            bytes.extend(more);
            if bytes.len() == self.header {
                length = (self.length)(&bytes);
            }
        }
        Some(Message { bytes, files })
    }

    /// A connection whose message number `number` is the last one, or the first part of it. Whether it had descriptors; `None` where
    /// there were not as many messages.
    fn relay(
        self,
        frontend: &UnixStream,
        daemon: &UnixStream,
        number: usize,
        rest: Rest,
    ) -> Option<bool> {
        let mut passed = 0;
        while let Some(Message { bytes, files }) = self.next(frontend) {
            if passed < number {
                let (first, rest) = bytes.split_at(if self.by_byte { 1 } else { bytes.len() });
                send(daemon, first, &files);
                rest.iter().for_each(|byte| send(daemon, &[*byte], &[]));
                passed += 1;
                continue;
            }
            let part = match bytes.len() {
                all if all > self.header => self.header,
                all => all / 2,
            };
            match rest {
                Rest::Nothing => {}
                Rest::Header => send(daemon, &bytes[..part], &files),
                Rest::Bare => send(daemon, &bytes[..part], &[]),
            }
            return Some(!files.is_empty());
        }
        None
    }
}

/// Has `frontend` talk to the daemon over a relay. As [`Framing::relay`].
fn run(
    framing: Framing,
    daemon: &Path,
    number: usize,
    rest: Rest,
    frontend: impl FnOnce(&Path) + Send,
) -> Option<bool> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("relay");
    let listener = UnixListener::bind(&path).unwrap();
    std::thread::scope(|scope| {
        let named = std::thread::Builder::new().name(FRONTEND.to_owned());
        let session = named.spawn_scoped(scope, || frontend(&path)).unwrap();
        let (ours, _) = listener.accept().unwrap();
        let theirs = UnixStream::connect(daemon).unwrap();
        let (from, to) = (theirs.try_clone().unwrap(), ours.try_clone().unwrap());
        let back = scope.spawn(move || {
            let mut files = Vec::new();
            loop {
                let bytes = receive(&from, 1 << 16, &mut files);
                if bytes.is_empty() {
                    break;
                }
                send(&to, &bytes, &std::mem::take(&mut files));
            }
            let _ = to.shutdown(Direction::Both);
        });
        let cut = framing.relay(&ours, &theirs, number, rest);
        let _ = theirs.shutdown(Direction::Both);
        back.join().unwrap();
        let ended = session.join();
        if cut.is_none() {
            ended.expect("a frontend that is not cut off");
        }
        cut
    })
}

/// What this process has.
fn held() -> [usize; 3] {
    let count = |folder: &str| std::fs::read_dir(folder).unwrap().count();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let files = maps.lines().filter(|line| line.contains("memfd:")).count();
    [count("/proc/self/fd"), count("/proc/self/task"), files]
}

/// Waits until nothing is charged, and this process has no more descriptors, threads and mappings of memory files than before.
fn is_given_back(host: &Host, before: [usize; 3], when: &str) {
    let start = Instant::now();
    loop {
        let now = held();
        let more = now.iter().zip(before).any(|(now, before)| *now > before);
        if host.used() == 0 && !more {
            return;
        }
        let used = host.used();
        assert!(
            start.elapsed() < PATIENCE,
            "{when}: {used} bytes, {before:?} before, {now:?}"
        );
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A session is cut off at each of its messages, in each way, until it is not.
///
/// # Panics
/// Where something is left, or the next frontend finds no working device: while the GPU is still busy for the one that was cut off.
pub(super) fn at_each_message<F: Frontend>(
    framing: Framing,
    daemon: &Path,
    host: &Host,
    fake: &FakeProvider,
    connect: impl Fn(&Path) -> F + Sync,
) {
    let before = held();
    let mut cuts = 0;
    for number in 0.. {
        let cut = |rest| {
            let cut = run(framing, daemon, number, rest, |path| {
                whole(&mut connect(path), fake)
            });
            println!("message {number}, {rest:?}: {cut:?}");
            // Nobody lets go of the GPU before.
            begin(&mut connect(daemon));
            fake.release_all();
            is_given_back(host, before, &format!("message {number}, {rest:?}"));
            cut
        };
        let Some(has_files) = cut(Rest::Nothing) else {
            break;
        };
        cut(Rest::Header);
        if has_files {
            cut(Rest::Bare);
        }
        cuts += 1;
    }
    println!("cut off at {cuts} messages");
    assert!(cuts > 10, "a session of {cuts} messages is none");
}

/// Whole sessions while signals interrupt the daemon's threads, and where `by_byte` says so in pieces of a byte.
pub(super) fn under_signals<F: Frontend>(
    framing: Framing,
    by_byte: bool,
    daemon: &Path,
    fake: &FakeProvider,
    connect: impl Fn(&Path) -> F + Sync,
) {
    let framing = Framing { by_byte, ..framing };
    let sent = interrupted(|| {
        for _ in 0..SESSIONS {
            let session = |path: &Path| whole(&mut connect(path), fake);
            let cut = run(framing, daemon, usize::MAX, Rest::Nothing, session);
            assert_eq!(cut, None);
            fake.release_all();
        }
    });
    println!("{sent} signals");
    assert!(sent > 10, "{sent} signals are no reason");
}

/// Does something while signals interrupt the daemon's threads; how many those were.
pub(crate) fn interrupted(work: impl FnOnce() + Send) -> usize {
    extern "C" fn nothing(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    register_signal_handler(SIGRTMIN(), nothing).unwrap();
    std::thread::scope(|scope| {
        let working = scope.spawn(work);
        let mut sent = 0;
        while !working.is_finished() {
            sent += interrupt();
            std::thread::sleep(Duration::from_micros(200));
        }
        working.join().unwrap();
        sent
    })
}

/// A signal to each thread of the daemon's; how many those are.
fn interrupt() -> usize {
    let mut sent = 0;
    for thread in std::fs::read_dir("/proc/self/task").unwrap().flatten() {
        let name = std::fs::read_to_string(thread.path().join("comm"));
        if !name.is_ok_and(|name| name.starts_with("hostblob-")) {
            continue;
        }
        let id: i32 = thread.file_name().to_str().unwrap().parse().unwrap();
        // SAFETY: a signal that does nothing, to a thread of this process or to nobody.
        let result = unsafe { libc::syscall(libc::SYS_tgkill, std::process::id(), id, SIGRTMIN()) };
        sent += usize::from(result == 0);
    }
    sent
}

/// Runs a test in a process of its own, where nothing of others comes and goes. Of its threads, only a frontend may panic.
pub(crate) fn alone(test: &str, work: impl FnOnce()) {
    const ALONE: &str = "HOSTBLOB_ALONE";
    if std::env::var_os(ALONE).is_some() {
        let report = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if std::thread::current().name() != Some(FRONTEND) {
                report(panic);
            }
        }));
        return work();
    }
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(ALONE, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("1 passed"), "{text}");
    assert!(!text.contains("panicked"), "{text}");
}
