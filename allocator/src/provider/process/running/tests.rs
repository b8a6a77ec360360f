//! What is taken of a process that says more than it was asked.

use std::os::fd::BorrowedFd;

use super::*;

fn done(session: u64, text: &str) -> FromChild {
    FromChild::Done {
        session,
        sequence: 7,
        result: match text {
            "" => Ok(()),
            text => Err(ProviderError::Driver(text.to_owned())),
        },
    }
}

/// How many answers are kept of those that a process says, which was asked twice by session 1, and twice by session 2 that has gone. It is alive.
fn kept(say: impl Fn(&UnixStream)) -> usize {
    let (socket, theirs) = UnixStream::pair().unwrap();
    let owed = Arc::<Mutex<Owed>>::default();
    for session in [1, 1, 2, 2] {
        owed.lock().asked(session);
    }
    owed.lock().closed(2);
    let heard = reader(&socket, &owed).unwrap();
    say(&theirs);
    let mut kept = 0;
    loop {
        match heard.recv_timeout(Duration::from_secs(30)) {
            Ok(heard) => {
                assert_eq!((heard.session, heard.sequence), (1, 7));
                kept += 1;
            }
            Err(crossbeam_channel::RecvTimeoutError::Disconnected) => return kept,
            Err(error) => panic!("it is still listened to: {error}"),
        }
    }
}

#[test]
fn what_a_process_was_not_asked_for_is_not_kept_and_ends_it() {
    let send = |socket: &UnixStream, frame: &FromChild, files: &[BorrowedFd<'_>]| {
        wire::send(socket, frame, files).unwrap();
    };
    let of = |sessions: &'static [u64]| {
        move |socket: &UnixStream| {
            for session in sessions {
                send(socket, &done(*session, ""), &[]);
            }
        }
    };
    assert_eq!(kept(of(&[1, 1, 1])), 2);
    assert_eq!(kept(of(&[2, 1, 2, 2])), 1, "those of 2 are for nobody");
    assert_eq!(kept(of(&[3, 3, 3])), 0, "two could be of one that has gone");
    let failed = FromChild::Failed("late".to_owned());
    assert_eq!(kept(|socket| send(socket, &failed, &[])), 0);
    for (bytes, expected) in [(60_000, 1), (70_000, 0)] {
        let text = "a".repeat(bytes);
        let say = |socket: &UnixStream| {
            send(socket, &done(1, &text), &[]);
            send(socket, &failed, &[]);
        };
        assert_eq!(kept(say), expected, "a text of {bytes} bytes");
    }
    for (files, expected) in [(1, 1), (2, 0)] {
        let say = |socket: &UnixStream| {
            send(socket, &done(1, ""), &[socket.as_fd(); 2][..files]);
            send(socket, &failed, &[]);
        };
        assert_eq!(kept(say), expected, "{files} descriptors");
    }
}
