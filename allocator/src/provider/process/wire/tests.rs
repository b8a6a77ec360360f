//! Frames that do not go through the socket at once, while signals interrupt both ends.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::*;

impl Frame for String {
    const MOST_BYTES: usize = MAX_FRAME;
    const MOST_FILES: usize = MAX_DESCRIPTORS;
}

impl Frame for usize {
    const MOST_BYTES: usize = MAX_FRAME;
    const MOST_FILES: usize = MAX_DESCRIPTORS;
}

static INTERRUPTED: AtomicUsize = AtomicUsize::new(0);

extern "C" fn count(_: libc::c_int) {
    INTERRUPTED.fetch_add(1, Ordering::Relaxed);
}

/// Interrupts system calls, which are not taken up again.
fn prepare() {
    // SAFETY: all zeros are a sigaction: no flags, nothing blocked.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = count as *const () as usize;
    // SAFETY: the handler changes an atomic alone.
    let result = unsafe { libc::sigaction(libc::SIGUSR2, &raw const action, std::ptr::null_mut()) };
    assert_eq!(result, 0);
}

#[test]
fn frames_are_whole_in_pieces_and_under_signals() {
    use std::os::unix::thread::JoinHandleExt;
    const FRAMES: usize = 20;
    prepare();
    let (ours, theirs) = UnixStream::pair().unwrap();
    rustix::net::sockopt::set_socket_send_buffer_size(&ours, 1).unwrap();
    let text = |number: usize| number.to_string().repeat(300_000);
    let sender = std::thread::spawn(move || {
        for number in 0..FRAMES {
            let files = [ours.as_fd(); 3];
            send(&ours, &text(number), &files[..number % 4]).unwrap();
        }
    });
    let receiver = std::thread::spawn(move || {
        for number in 0..FRAMES {
            let frame = receive::<String>(&theirs).unwrap();
            let (found, files) = frame.expect("another frame");
            assert!(found == text(number), "frame {number}");
            assert_eq!((files.files.len(), files.is_cut), (number % 4, false));
        }
        assert!(receive::<String>(&theirs).unwrap().is_none());
    });
    while !receiver.is_finished() {
        for thread in [sender.as_pthread_t(), receiver.as_pthread_t()] {
            // SAFETY: neither is joined, so both are there, finished or not.
            unsafe { libc::pthread_kill(thread, libc::SIGUSR2) };
        }
        std::thread::sleep(Duration::from_micros(100));
    }
    sender.join().unwrap();
    receiver.join().unwrap();
    let interrupted = INTERRUPTED.load(Ordering::Relaxed);
    println!("{interrupted} signals");
    assert!(interrupted > 10, "{interrupted} signals are no reason");
}

/// Says that this test is the process that has little.
const FEW: &str = "HOSTBLOB_TEST_FEW_DESCRIPTORS";

/// In a process of its own: the limit is that of all threads.
#[test]
fn descriptors_without_room_are_missed_and_the_next_frame_is_whole() {
    if std::env::var_os(FEW).is_none() {
        let name = "provider::process::wire::tests::descriptors_without_room_are_missed_and_the_next_frame_is_whole";
        let mut command = std::process::Command::new(std::env::current_exe().unwrap());
        let output = command.args([name, "--exact"]).env(FEW, "1").output();
        let output = output.unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && text.contains("1 passed"),
            "{text}"
        );
        return;
    }
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let (ours, theirs) = UnixStream::pair().unwrap();
    for sent in [3, 1] {
        send(&ours, &sent, &[ours.as_fd(); 3][..sent]).unwrap();
    }
    // The next descriptor would have this number, as those below it are taken.
    let next = ours.try_clone().unwrap();
    let room = u64::try_from(std::os::fd::AsRawFd::as_raw_fd(&next)).unwrap() + 1;
    drop(next);
    let limit = Rlimit {
        current: Some(room),
        ..getrlimit(Resource::Nofile)
    };
    setrlimit(Resource::Nofile, limit).unwrap();
    for (sent, is_cut) in [(3, true), (1, false)] {
        let (number, beside) = receive::<usize>(&theirs).unwrap().expect("a frame");
        assert_eq!(number, sent);
        assert_eq!((beside.files.len(), beside.is_cut), (1, is_cut));
    }
}
