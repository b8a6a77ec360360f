//! Over a real socket, with a guest that is played by the test.

mod broken;

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use hostblob_allocator::exports::{GuestExports, Layout};
use hostblob_export::{Blob, BlobId, Client, Error, Event, Mapping};
use hostblob_protocol::Status;
use rustix::fs::{MemfdFlags, SealFlags};

use super::*;

const SIZE: u64 = 1 << 20;
const SECOND: u64 = 65536;
const LONG: Duration = Duration::from_secs(20);

struct Daemon {
    exports: Arc<Exports>,
    path: PathBuf,
    shutdown: Shutdown,
    thread: Option<JoinHandle<()>>,
    _folder: tempfile::TempDir,
}

impl Daemon {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("export.sock");
        let listener = crate::transport::listen(&path).unwrap();
        let (exports, shutdown) = (Exports::new(), Shutdown::new().unwrap());
        let thread = spawn(listener, Arc::clone(&exports), shutdown.clone()).unwrap();
        Self {
            exports,
            path,
            shutdown,
            thread: Some(thread),
            _folder: folder,
        }
    }

    fn client(&self) -> Client {
        Client::connect(&self.path).unwrap()
    }

    fn guest(&self) -> Guest {
        let (send, woken) = crossbeam_channel::unbounded();
        let waker = Arc::new(move || {
            let _ = send.send(());
        });
        Guest {
            exports: self.exports.guest(waker),
            woken,
            made: 0,
        }
    }

    fn end(&mut self) {
        self.shutdown.request();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.end();
    }
}

fn memfd(text: &[u8]) -> OwnedFd {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = rustix::fs::memfd_create("export-test", flags).unwrap();
    rustix::fs::ftruncate(&fd, SIZE).unwrap();
    rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK).unwrap();
    rustix::io::pwrite(&fd, text, 0).unwrap();
    fd
}

fn layout(offset: u64) -> Layout {
    Layout {
        offset,
        width: 64,
        height: 64,
        stride: 256,
        fourcc: u32::from_le_bytes(*b"XR24"),
        modifier: 0,
    }
}

/// What a guest's thread does, in the test's.
struct Guest {
    exports: GuestExports,
    woken: Receiver<()>,
    /// Descriptors made.
    made: usize,
}

impl Guest {
    fn blob(&self, name: &str) -> BlobId {
        let id = self.exports.add([7; 16], SIZE, name).unwrap();
        self.exports.publish(id, layout(0)).unwrap();
        self.exports.publish(id, layout(SECOND)).unwrap();
        BlobId(id.0)
    }

    /// Answers requests with memfds until `done`.
    fn serve_until(&mut self, mut done: impl FnMut(&GuestExports) -> bool) {
        let deadline = Instant::now() + LONG;
        loop {
            while let Some(request) = self.exports.next_request() {
                self.made += 1;
                let text = format!("blob {}", request.id());
                request.answer(Ok(Arc::new(memfd(text.as_bytes()))));
            }
            if done(&self.exports) {
                return;
            }
            self.woken
                .recv_deadline(deadline)
                .expect("the guest is woken");
        }
    }

    /// Does the same while `client` works.
    fn serve<R: Send>(&mut self, client: impl FnOnce() -> R + Send) -> R {
        std::thread::scope(|scope| {
            let (send, ended) = crossbeam_channel::bounded::<()>(1);
            let thread = scope.spawn(move || {
                // Also when it panics.
                let _ended = send;
                client()
            });
            loop {
                self.serve_until(|_| true);
                crossbeam_channel::select! {
                    recv(self.woken) -> _ => {}
                    recv(ended) -> _ => return thread.join().unwrap(),
                }
            }
        })
    }
}

fn id(blob: BlobId) -> hostblob_allocator::exports::ExportId {
    hostblob_allocator::exports::ExportId(blob.0)
}

fn inode(descriptor: impl AsFd) -> u64 {
    rustix::fs::fstat(descriptor).unwrap().st_ino
}

fn next(client: &mut Client) -> Event {
    client.next_event(LONG).unwrap().expect("something happens")
}

#[test]
fn the_whole_life() {
    let daemon = Daemon::start();
    let mut client = daemon.client();
    assert_eq!(client.list().unwrap(), []);
    let mut guest = daemon.guest();
    let blob = guest.blob("frames");

    let Event::Added(Blob {
        id: added, name, ..
    }) = next(&mut client)
    else {
        panic!("no blob is added");
    };
    assert_eq!((added, name.as_str()), (blob, "frames"));
    for offset in [0, SECOND] {
        assert!(
            matches!(next(&mut client), Event::Published(of, buffer) if of == blob && buffer.layout == layout(offset))
        );
    }
    let listed = client.list().unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!((listed[0].size, listed[0].uuid), (SIZE, [7; 16]));
    assert_eq!(listed[0].buffers.len(), 2);

    // A buffer that was presented before is used from the opening on.
    guest.exports.present(id(blob), 0);
    let opened = guest.serve(|| client.open(blob).unwrap());
    assert_eq!((opened.size, opened.buffers.len()), (SIZE, 2));
    assert_eq!(opened.buffers[0].present, 1);
    assert!(guest.exports.in_use(id(blob), 0) && !guest.exports.in_use(id(blob), SECOND));
    client.release(blob, 0).unwrap();
    assert!(!guest.exports.in_use(id(blob), 0));

    // The same pages, and the same buffer for whoever asks.
    let mapping = Mapping::new(&opened.descriptor, opened.size).unwrap();
    let expected = format!("blob {blob}").into_bytes();
    let mut text = vec![0; expected.len()];
    mapping.read(0, &mut text).unwrap();
    assert_eq!(text, expected);
    let mut other = daemon.client();
    let again = guest.serve(|| [client.open(blob).unwrap(), other.open(blob).unwrap()]);
    for more in &again {
        assert_eq!(inode(&more.descriptor), inode(&opened.descriptor));
    }
    assert_eq!(guest.made, 1);

    for (flip, offset) in [(2, SECOND), (3, 0), (4, SECOND)] {
        guest.exports.present(id(blob), offset);
        let expected = Event::Presented {
            blob,
            offset,
            present: flip,
        };
        for client in [&mut client, &mut other] {
            assert_eq!(next(client), expected);
            assert!(guest.exports.in_use(id(blob), offset));
            client.release(blob, offset).unwrap();
        }
    }
    other.close(blob).unwrap();

    guest.exports.withdraw(id(blob), SECOND);
    guest.exports.present(id(blob), 0);
    guest.exports.remove(id(blob));
    assert_eq!(next(&mut client), Event::Withdrawn(blob, SECOND));
    assert!(matches!(next(&mut client), Event::Presented { .. }));
    assert_eq!(next(&mut client), Event::Destroyed(blob));
    assert!(guest.exports.is_open(id(blob)) && guest.exports.in_use(id(blob), 0));
    client.close(blob).unwrap();
    assert!(!guest.exports.is_open(id(blob)));
    // Who holds the descriptor still has the pages.
    mapping.read(0, &mut text).unwrap();
}

#[test]
fn a_release_is_of_what_was_seen() {
    let daemon = Daemon::start();
    let (mut client, mut guest) = (daemon.client(), daemon.guest());
    let blob = guest.blob("");
    guest.serve(|| client.open(blob).unwrap());
    guest.exports.present(id(blob), 0);
    guest.exports.present(id(blob), 0);
    while !matches!(next(&mut client), Event::Presented { present: 1, .. }) {}
    client.release(blob, 0).unwrap();
    assert!(guest.exports.in_use(id(blob), 0), "the second is unseen");
    assert!(matches!(
        next(&mut client),
        Event::Presented { present: 2, .. }
    ));
    client.release(blob, 0).unwrap();
    assert!(!guest.exports.in_use(id(blob), 0));
}

#[test]
fn refusals_say_why_and_cost_nothing() {
    let daemon = Daemon::start();
    let (mut client, mut guest) = (daemon.client(), daemon.guest());
    let blob = guest.blob("");
    let outcome = |result: Result<(), Error>| match result {
        Err(Error::Outcome(outcome)) => outcome,
        other => panic!("{other:?}"),
    };
    use hostblob_export::Outcome;
    let unknown = BlobId(u64::MAX);
    assert_eq!(
        outcome(client.open(unknown).map(drop)),
        Outcome::UnknownBlob
    );
    assert_eq!(outcome(client.release(blob, 0)), Outcome::NotOpen);
    assert_eq!(outcome(client.close(blob)), Outcome::NotOpen);
    let token = hostblob_export::Token([1; 16]);
    assert_eq!(outcome(client.take_back(token)), Outcome::UnknownToken);

    guest.exports.present(id(blob), 0);
    guest.serve(|| client.open(blob).unwrap());
    assert_eq!(outcome(client.release(blob, SECOND)), Outcome::NotInUse);
    client.release(blob, 0).unwrap();
    assert_eq!(outcome(client.release(blob, 0)), Outcome::NotInUse);
    client.close(blob).unwrap();
    assert_eq!(outcome(client.close(blob)), Outcome::NotOpen);
    assert!(!guest.exports.is_open(id(blob)));

    let other = guest.blob("");
    std::thread::scope(|scope| {
        let opening = scope.spawn(|| client.open(other));
        let request = loop {
            if let Some(request) = guest.exports.next_request() {
                break request;
            }
            guest.woken.recv_timeout(LONG).unwrap();
        };
        let reason = hostblob_allocator::exports::ExportError::Refused(Status::Unsupported);
        request.answer(Err(reason));
        let refused = opening.join().unwrap();
        assert!(matches!(refused, Err(Error::Refused(Status::Unsupported))));
    });
    assert!(client.list().unwrap().len() == 2);
}

#[test]
fn a_guest_that_does_not_answer_is_not_waited_for() {
    let daemon = Daemon::start();
    let (mut client, guest) = (daemon.client(), daemon.guest());
    let blob = guest.blob("");
    let started = Instant::now();
    assert!(matches!(
        client.open(blob),
        Err(Error::Outcome(hostblob_export::Outcome::TimedOut))
    ));
    let expected = hostblob_allocator::exports::OPEN_TIMEOUT;
    assert!(started.elapsed() >= expected && started.elapsed() < expected * 2);
    client.list().unwrap();
}

#[test]
fn who_leaves_releases_everything() {
    let daemon = Daemon::start();
    let (mut client, mut guest) = (daemon.client(), daemon.guest());
    let blob = guest.blob("");
    guest.serve(|| client.open(blob).unwrap());
    guest.exports.present(id(blob), 0);
    assert!(guest.exports.in_use(id(blob), 0));
    drop(client);
    guest.serve_until(|exports| !exports.is_open(id(blob)));
    assert!(!guest.exports.in_use(id(blob), 0));
}

#[test]
fn memory_is_handed_in() {
    let daemon = Daemon::start();
    let (mut client, guest) = (daemon.client(), daemon.guest());
    let memory = memfd(b"from the host");
    let token = client.hand_in(&memory).unwrap();
    let foreign = guest.exports.take_import(token.0).unwrap();
    assert_eq!(foreign.size, SIZE);
    assert_eq!(inode(&foreign.file), inode(&memory));
    client.take_back(token).unwrap();
    assert!(guest.exports.take_import(token.0).is_none());
    let mut text = [0; 13];
    rustix::io::pread(&foreign.file, &mut text, 0).unwrap();
    assert_eq!(&text, b"from the host");

    let null = std::fs::File::open("/dev/null").unwrap();
    assert!(matches!(
        client.hand_in(&null),
        Err(Error::Outcome(hostblob_export::Outcome::BadMemory))
    ));
    let token = client.hand_in(&memory).unwrap();
    assert_eq!(token.to_string().len(), 36);
    drop(client);
    let deadline = Instant::now() + LONG;
    while guest.exports.take_import(token.0).is_some() {
        assert!(Instant::now() < deadline, "tokens go with their viewer");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn the_end_of_the_daemon_is_noticed() {
    let mut daemon = Daemon::start();
    let (mut client, mut guest) = (daemon.client(), daemon.guest());
    let blob = guest.blob("");
    guest.serve(|| client.open(blob).unwrap());
    daemon.end();
    assert!(!guest.exports.is_open(id(blob)));
    let ended = loop {
        match client.next_event(LONG) {
            Ok(Some(_)) => {}
            other => break other,
        }
    };
    assert!(matches!(ended, Err(Error::HungUp)), "{ended:?}");
    assert!(matches!(client.list(), Err(Error::HungUp)));
    assert!(matches!(
        Client::connect(&daemon.path),
        Err(Error::Connect { .. } | Error::HungUp)
    ));
}

/// More than any socket buffer holds, to a reader that takes its time.
#[test]
fn a_long_listing_arrives_whole() {
    let daemon = Daemon::start();
    let (mut client, guest) = (daemon.client(), daemon.guest());
    for _ in 0..20 {
        let blob = guest.exports.add([7; 16], SIZE, &"n".repeat(80)).unwrap();
        for buffer in 0..800 {
            guest.exports.publish(blob, layout(buffer * 64)).unwrap();
        }
    }
    let mut late = daemon.client();
    let listed = late.list().unwrap();
    assert_eq!(listed.len(), 20);
    assert!(
        listed
            .iter()
            .all(|blob| blob.buffers.len() == 800 && blob.name.len() == 64)
    );
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(client.list().unwrap(), listed);
}

/// A process of another user can be played by root alone; without these rights nothing is tested here.
#[test]
fn other_users_are_refused() {
    use rustix::process::Uid;
    use std::os::unix::fs::PermissionsExt;

    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can play another user");
        return;
    }
    let daemon = Daemon::start();
    for path in [daemon.path.parent().unwrap(), &daemon.path] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).unwrap();
    }
    let stranger = std::thread::scope(|scope| {
        let stranger = scope.spawn(|| {
            // Linux keeps credentials per thread, and this one ends here.
            let nobody = Uid::from_raw(65534);
            rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
            Client::connect(&daemon.path).map(drop)
        });
        stranger.join().unwrap()
    });
    assert!(matches!(stranger, Err(Error::HungUp)), "{stranger:?}");
    daemon.client().list().unwrap();
}
