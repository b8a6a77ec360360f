//! Peers that break the rules: they lose their connection, and nobody else notices.

use std::os::unix::net::UnixStream;

use hostblob_export::stream::Stream;
use hostblob_protocol::export::{
    Close, Event as Message, HandIn, Hello, List, Open, Release, Request,
};

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::transport::cut::{alone, interrupted};

/// A connection that has been greeted.
fn connect(daemon: &Daemon) -> UnixStream {
    let socket = UnixStream::connect(&daemon.path).unwrap();
    socket.set_read_timeout(Some(LONG)).unwrap();
    let greeting = hostblob_protocol::export::Event::from(Hello { version: 1 }).encode(0);
    let mut bytes = vec![0; greeting.len()];
    std::io::Read::read_exact(&mut &socket, &mut bytes).unwrap();
    assert_eq!(bytes, greeting);
    socket
}

fn ends(socket: &UnixStream) -> bool {
    let mut rest = Vec::new();
    match std::io::Read::read_to_end(&mut &*socket, &mut rest) {
        Ok(_) => true,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

fn frame(length: u32, kind: u32, tag: u64, payload: &[u8]) -> Vec<u8> {
    let mut bytes = length.to_le_bytes().to_vec();
    bytes.extend(kind.to_le_bytes());
    bytes.extend(tag.to_le_bytes());
    bytes.extend(payload);
    bytes
}

#[test]
fn frames_that_are_no_requests_end_the_connection() {
    let daemon = Daemon::start();
    let guest = daemon.guest();
    let blob = guest.blob("");
    let mut honest = daemon.client();
    let open = Request::from(Open { blob: blob.0 });
    let bad = [
        ("a kind that nobody knows", frame(0, 999, 1, &[])),
        ("what the daemon says", frame(4, 1, 1, &[1, 0, 0, 0])),
        ("a long payload", frame(513, 33, 1, &[0; 513])),
        ("a payload without end", frame(u32::MAX, 33, 1, &[])),
        ("a short payload", frame(7, 33, 1, &[0; 7])),
        ("a payload with a rest", frame(9, 33, 1, &[0; 9])),
        ("tag 0", open.encode(0)),
        ("a missing descriptor", Request::from(HandIn {}).encode(1)),
        (
            "something good, then not",
            [open.encode(1), frame(0, 999, 2, &[])].concat(),
        ),
        ("not our protocol", b"GET / HTTP/1.1\r\n\r\n".to_vec()),
    ];
    for (what, bytes) in bad {
        let mut socket = connect(&daemon);
        socket.write_all(&bytes).unwrap();
        assert!(ends(&socket), "{what}");
        assert_eq!(honest.list().unwrap().len(), 1, "{what}");
    }
    assert!(!guest.exports.is_open(id(blob)));
}

#[test]
fn descriptors_without_messages_end_the_connection() {
    let daemon = Daemon::start();
    let list = Request::from(List {}).encode(1);
    for count in [1, 2, 5] {
        let socket = connect(&daemon);
        let descriptors: Vec<_> = (0..count).map(|_| socket.as_fd()).collect();
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(5))];
        let mut control = rustix::net::SendAncillaryBuffer::new(&mut space);
        control.push(rustix::net::SendAncillaryMessage::ScmRights(&descriptors));
        rustix::net::sendmsg(
            &socket,
            &[std::io::IoSlice::new(&list)],
            &mut control,
            rustix::net::SendFlags::empty(),
        )
        .unwrap();
        assert!(ends(&socket), "{count}");
    }
    assert_eq!(daemon.client().list().unwrap().len(), 0);
}

#[test]
fn frames_may_come_in_pieces() {
    let daemon = Daemon::start();
    let guest = daemon.guest();
    let blob = guest.blob("");
    let mut socket = connect(&daemon);
    let close = Request::from(Close { blob: blob.0 });
    let bytes = [close.encode(5), close.encode(6)].concat();
    for byte in bytes {
        socket.write_all(&[byte]).unwrap();
        std::thread::yield_now();
    }
    let mut stream = Stream::new(socket);
    let mut tags = Vec::new();
    while tags.len() < 2 {
        stream.receive().unwrap();
        while let Some(received) = stream
            .next_message::<hostblob_protocol::export::Event>()
            .unwrap()
        {
            tags.push(received.tag);
        }
        std::thread::yield_now();
    }
    assert_eq!(tags, [5, 6]);
    // Half a frame, and gone.
    let mut socket = connect(&daemon);
    socket.write_all(&close.encode(7)[..20]).unwrap();
    drop(socket);
    assert_eq!(daemon.client().list().unwrap().len(), 1);
}

/// Who does not read is dropped when it has left too much unread; the guest never waits, and the honest go on.
#[test]
fn who_does_not_read_is_dropped() {
    let daemon = Daemon::start();
    let mut guest = daemon.guest();
    let blob = guest.blob("");
    let mut slow = daemon.client();
    guest.serve(|| slow.open(blob).unwrap());
    let started = Instant::now();
    let mut presents = 0_u64;
    while guest.exports.is_open(id(blob)) {
        guest.exports.present(id(blob), 0);
        presents += 1;
        assert!(started.elapsed() < LONG, "after {presents} presents");
    }
    assert!(presents > 10_000, "{presents} are no reason");
    assert!(!guest.exports.in_use(id(blob), 0));
    let ended = loop {
        match slow.next_event(LONG) {
            Ok(Some(_)) => {}
            other => break other,
        }
    };
    assert!(matches!(ended, Err(Error::HungUp)), "{ended:?}");
    let mut honest = daemon.client();
    guest.serve(|| honest.open(blob).unwrap());
}

/// Requests without end whose answers nobody reads: the daemon stops reading them, and can still end.
#[test]
fn who_only_asks_is_not_answered_for_ever() {
    let mut daemon = Daemon::start();
    let guest = daemon.guest();
    for _ in 0..100 {
        guest.blob("a blob among many");
    }
    let socket = connect(&daemon);
    socket.set_nonblocking(true).unwrap();
    let release = Release {
        blob: 1,
        offset: 0,
        present: 0,
    };
    let bytes = [
        Request::from(List {}).encode(1),
        Request::from(release).encode(2),
    ]
    .concat()
    .repeat(100);
    let mut taken = 0_usize;
    let mut refusals = 0;
    while refusals < 20 {
        match (&socket).write(&bytes) {
            Ok(length) => taken += length,
            Err(_) => {
                refusals += 1;
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        assert!(taken < 64 << 20, "the daemon reads and reads");
    }
    assert_eq!(daemon.client().list().unwrap().len(), 100);
    daemon.end();
}

/// Answers that the socket has no room for go on when there is some, under signals too, and are whole.
#[test]
fn answers_that_are_read_late_are_whole() {
    const LISTS: u64 = 60;
    const BLOBS: u64 = 100;
    alone(
        "export::tests::broken::answers_that_are_read_late_are_whole",
        || {
            let daemon = Daemon::start();
            let guest = daemon.guest();
            for _ in 0..BLOBS {
                guest.blob("a blob among many");
            }
            let mut socket = connect(&daemon);
            let lists = (1..=LISTS).flat_map(|tag| Request::from(List {}).encode(tag));
            socket.write_all(&lists.collect::<Vec<u8>>()).unwrap();
            let mut stream = Stream::new(socket);
            let mut expected = 1;
            let mut told = 0;
            let interrupts = interrupted(|| {
                while expected <= LISTS {
                    stream.receive().unwrap();
                    while let Some(received) = stream.next_message::<Message>().unwrap() {
                        assert_eq!(received.tag, expected);
                        if matches!(received.message, Message::Answer(_)) {
                            expected += 1;
                        } else {
                            told += 1;
                        }
                    }
                    std::thread::yield_now();
                }
            });
            println!("{told} blobs and buffers told, {interrupts} signals");
            assert!(told >= BLOBS * LISTS && interrupts > 10);
        },
    );
}

/// Most of these are requests of blobs that exist, named 3 and 4 after a guest and a viewer; some are anything.
fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    let small = || 0..4_u64;
    let payload = prop_oneof![
        8 => (2..6_u64, small(), small()).prop_map(|(a, b, c)| {
            [a, b * SECOND, c].iter().flat_map(|n| n.to_le_bytes()).collect()
        }),
        1 => vec(any::<u8>(), 0..40),
    ];
    (28..40_u32, payload, 0..20_u64).prop_map(|(kind, mut payload, tag): (_, Vec<u8>, _)| {
        match kind {
            32 | 36 => payload.clear(),
            33 | 35 => payload.truncate(8),
            37 => payload.truncate(16),
            _ => {}
        }
        let length = u32::try_from(payload.len()).unwrap();
        frame(length, kind, tag, &payload)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    /// Whatever comes: no panic, an end, and nothing that stays open.
    #[test]
    fn any_requests(frames in vec(any_frame(), 0..40), cut in 0..30_usize) {
        let exports = Exports::new();
        let guest = exports.guest(Arc::new(|| {}));
        let keeper = exports.join(Arc::new(|| {})).unwrap();
        let blobs = [1, 2].map(|_| guest.add([7; 16], SIZE, "").unwrap());
        for blob in blobs {
            for offset in [0, SECOND] {
                guest.publish(blob, layout(offset)).unwrap();
                guest.present(blob, offset);
            }
            keeper.open(1, blob);
            guest.next_request().unwrap().answer(Ok(Arc::new(memfd(b""))));
            keeper.close(blob).unwrap();
        }
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let mut bytes = frames.concat();
        bytes.truncate(bytes.len().saturating_sub(cut));
        ours.write_all(&bytes).unwrap();
        ours.shutdown(std::net::Shutdown::Write).unwrap();
        // In this thread: a panic is this test's.
        let _ = viewer::serve(theirs, &exports, &Shutdown::new().unwrap());
        for blob in blobs {
            prop_assert!(!guest.is_open(blob) && !guest.in_use(blob, 0));
        }
    }
}
