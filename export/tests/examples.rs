//! The examples do what they say, against the daemon's server and a guest that is played here.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "helpers of tests state what they expect, as tests do"
)]

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use hostblob_allocator::exports::{ExportId, Exports, GuestExports, Layout};
use hostblob_device::shutdown::Shutdown;
use rustix::fs::{MemfdFlags, SealFlags};

const SIZE: u64 = 1 << 16;
const LONG: Duration = Duration::from_secs(30);
/// A frame whose rows have a gap behind them.
const LAYOUT: Layout = Layout {
    offset: 4096,
    width: 5,
    height: 3,
    stride: 32,
    fourcc: u32::from_le_bytes(*b"XR24"),
    modifier: 0,
};

/// Cargo builds them before it runs the tests of their package.
fn example(name: &str) -> Command {
    let mut path: PathBuf = std::env::current_exe().unwrap();
    path.pop();
    path.set_file_name("examples");
    Command::new(path.join(name))
}

struct Guest {
    exports: GuestExports,
    woken: Receiver<()>,
    made: usize,
}

impl Guest {
    fn new(exports: &Arc<Exports>) -> Self {
        let (send, woken) = crossbeam_channel::unbounded();
        let waker = Arc::new(move || {
            let _ = send.send(());
        });
        Self {
            exports: exports.guest(waker),
            woken,
            made: 0,
        }
    }

    fn blob(&self) -> ExportId {
        let id = self.exports.add([3; 16], SIZE, "picture").unwrap();
        self.exports.publish(id, LAYOUT).unwrap();
        id
    }

    fn serve_until(&mut self, what: &str, mut done: impl FnMut(&GuestExports) -> bool) {
        let deadline = Instant::now() + LONG;
        loop {
            while let Some(request) = self.exports.next_request() {
                self.made += 1;
                request.answer(Ok(Arc::new(picture())));
            }
            if done(&self.exports) {
                return;
            }
            assert!(self.woken.recv_deadline(deadline).is_ok(), "{what}");
        }
    }
}

/// Blue, green and red of a pixel.
fn colour(x: u32, y: u32) -> [u8; 3] {
    [x as u8 * 40, y as u8 * 80, 200]
}

fn picture() -> OwnedFd {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = rustix::fs::memfd_create("picture", flags).unwrap();
    rustix::fs::ftruncate(&fd, SIZE).unwrap();
    rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK).unwrap();
    for (x, y) in pixels() {
        let at = LAYOUT.offset + u64::from(y * LAYOUT.stride + x * 4);
        rustix::io::pwrite(&fd, &colour(x, y), at).unwrap();
    }
    fd
}

fn pixels() -> impl Iterator<Item = (u32, u32)> {
    (0..LAYOUT.height).flat_map(|y| (0..LAYOUT.width).map(move |x| (x, y)))
}

/// Runs an example while `guest` does its part.
fn with_daemon(name: &str, argument: &str, play: impl FnOnce(&mut Guest)) -> (Guest, Output) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("export.sock");
    let listener = hostblob_device::transport::listen(&path).unwrap();
    let (exports, shutdown) = (Exports::new(), Shutdown::new().unwrap());
    let server =
        hostblob_device::export::spawn(listener, Arc::clone(&exports), shutdown.clone()).unwrap();
    let mut guest = Guest::new(&exports);
    let child = example(name)
        .arg(&path)
        .arg(argument)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    play(&mut guest);
    let output = child.wait_with_output().unwrap();
    shutdown.request();
    server.join().unwrap();
    assert!(output.status.success(), "{output:?}");
    (guest, output)
}

#[test]
fn frame_to_png() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("frame.png");
    let (guest, _) = with_daemon("frame_to_png", file.to_str().unwrap(), |guest| {
        let id = guest.blob();
        guest.serve_until("the blob is opened", |exports| exports.is_open(id));
        guest.exports.present(id, LAYOUT.offset);
        guest.serve_until("the blob is closed", |exports| !exports.is_open(id));
        assert!(!guest.exports.in_use(id, LAYOUT.offset));
    });
    assert_eq!(guest.made, 1);
    let bytes = std::io::BufReader::new(std::fs::File::open(&file).unwrap());
    let mut reader = png::Decoder::new(bytes).read_info().unwrap();
    let mut rgba = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut rgba).unwrap();
    assert_eq!((info.width, info.height), (LAYOUT.width, LAYOUT.height));
    let expected: Vec<u8> = pixels()
        .flat_map(|(x, y)| {
            let [blue, green, red] = colour(x, y);
            [red, green, blue, 255]
        })
        .collect();
    assert_eq!(rgba, expected);
}

#[test]
fn double_buffer() {
    const FLIPS: usize = 20;
    let (guest, output) = with_daemon("double_buffer", &FLIPS.to_string(), |guest| {
        let blobs = [guest.blob(), guest.blob()];
        guest.serve_until("both blobs are opened", |exports| {
            blobs.iter().all(|&id| exports.is_open(id))
        });
        for flip in 0..FLIPS {
            let id = blobs[flip % 2];
            guest.exports.present(id, LAYOUT.offset);
            // As a guest that draws into the buffer again: not before it is released.
            guest.serve_until("the buffer is released", |exports| {
                !exports.in_use(id, LAYOUT.offset)
            });
        }
        guest.serve_until("both blobs are closed", |exports| {
            blobs.iter().all(|&id| !exports.is_open(id))
        });
    });
    assert_eq!(guest.made, 2, "no new descriptor for a new frame");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("20 flips, 2 different buffers"), "{text}");
}
