//! Viewers of the export socket that send anything, with descriptors that may not belong there, and stop anywhere: each hears whole messages, nothing that
//! it had open stays so, and an honest viewer sees what it saw before.

#![no_main]

use std::io::{IoSlice, Read};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use arbitrary::Arbitrary;
use hostblob_allocator::exports::{ExportId, Exports, GuestExports, Layout};
use hostblob_device::export::fuzzing::serve;
use hostblob_protocol::export::{
    Close, Event, Frame, HandIn, Hello, List, NO_TAG, Open, Release, Request, TakeBack, VERSION,
};
use libfuzzer_sys::fuzz_target;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use zerocopy::{FromBytes, IntoBytes};

const SIZE: u64 = 8192;
const SECOND: u64 = 4096;

#[derive(Debug, Arbitrary)]
struct Message<'a> {
    body: Body<'a>,
    tag: u8,
    /// Descriptors beside it, where only HandIn may have one: rarely more or less.
    files: u8,
    descriptor: Descriptor,
}

#[derive(Debug, Arbitrary)]
enum Body<'a> {
    List,
    Open {
        blob: u8,
    },
    Release {
        blob: u8,
        second: bool,
        present: u8,
    },
    Close {
        blob: u8,
    },
    HandIn,
    TakeBack([u8; 16]),
    Odd {
        length: u32,
        kind: u32,
        payload: &'a [u8],
    },
    Bytes(&'a [u8]),
    /// The guest shows a buffer once more.
    Presented {
        second: bool,
    },
    /// The guest gives its second blob up.
    Removed,
}

#[derive(Debug, Clone, Copy, Arbitrary)]
enum Descriptor {
    Sealed,
    Growing,
    Socket,
}

fn memory(sealed: bool) -> OwnedFd {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = memfd_create("blob", flags).expect("memfd");
    ftruncate(&file, SIZE).expect("memory");
    if sealed {
        fcntl_add_seals(&file, SealFlags::SHRINK).expect("a seal");
    }
    file
}

fn open(descriptor: Descriptor) -> OwnedFd {
    match descriptor {
        Descriptor::Sealed => memory(true),
        Descriptor::Growing => memory(false),
        Descriptor::Socket => UnixStream::pair().expect("sockets").0.into(),
    }
}

/// Not 0, which no request may have: rarely that.
fn tag(message: &Message<'_>) -> u64 {
    match message.tag {
        0xff => NO_TAG,
        tag => u64::from(tag) + 1,
    }
}

fn bytes(message: &Message<'_>, blobs: &[ExportId; 2]) -> Vec<u8> {
    let id = |blob: u8| match blob % 5 {
        4 => blob.into(),
        number => blobs[usize::from(number % 2)].0,
    };
    let tag = tag(message);
    match message.body {
        Body::List => Request::from(List {}).encode(tag),
        Body::Open { blob } => Request::from(Open { blob: id(blob) }).encode(tag),
        Body::Release {
            blob,
            second,
            present,
        } => Request::from(Release {
            blob: id(blob),
            offset: if second { SECOND } else { 0 },
            present: present.into(),
        })
        .encode(tag),
        Body::Close { blob } => Request::from(Close { blob: id(blob) }).encode(tag),
        Body::HandIn => Request::from(HandIn {}).encode(tag),
        Body::TakeBack(token) => Request::from(TakeBack { token }).encode(tag),
        Body::Odd {
            length,
            kind,
            payload,
        } => {
            let frame = Frame {
                length: length.into(),
                kind: kind.into(),
                tag: tag.into(),
            };
            [frame.as_bytes(), payload].concat()
        }
        Body::Bytes(bytes) => bytes.to_vec(),
        Body::Presented { .. } | Body::Removed => Vec::new(),
    }
}

fn send(socket: &UnixStream, message: &Message<'_>, blobs: &[ExportId; 2]) {
    let bytes = bytes(message, blobs);
    let expected = u8::from(matches!(message.body, Body::HandIn));
    let count = match message.files {
        odd @ 0xf0.. => odd % 5,
        _ => expected,
    };
    let files: Vec<_> = (0..count).map(|_| open(message.descriptor)).collect();
    let borrowed: Vec<_> = files.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !borrowed.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&borrowed));
    }
    // Fails when the daemon has ended the connection, or reads no more.
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    let _ = rustix::net::sendmsg(socket, &[IoSlice::new(&bytes)], &mut control, flags);
}

fn layout(offset: u64) -> Layout {
    Layout {
        offset,
        width: 16,
        height: 16,
        stride: 64,
        fourcc: u32::from_le_bytes(*b"XR24"),
        modifier: 0,
    }
}

fn answer_all(guest: &GuestExports) {
    while let Some(request) = guest.next_request() {
        request.answer(Ok(Arc::new(memory(true))));
    }
}

/// All that the daemon said: whole messages, the greeting first, then answers to tags that were used.
fn check_replies(mut bytes: &[u8]) -> Vec<(u64, Event)> {
    let mut events = Vec::new();
    while !bytes.is_empty() {
        let (frame, rest) = Frame::read_from_prefix(bytes).expect("whole frames");
        let length = frame.payload_length().expect("short frames");
        let (payload, rest) = rest.split_at_checked(length).expect("whole frames");
        let event = Event::decode(frame.kind.get(), payload).expect("an event");
        events.push((frame.tag.get(), event));
        bytes = rest;
    }
    let greeting = Event::from(Hello { version: VERSION });
    assert_eq!(events.first(), Some(&(NO_TAG, greeting)));
    events
}

/// A viewer says this, and hears that.
fn view(
    exports: &Arc<Exports>,
    guest: &GuestExports,
    blobs: &[ExportId; 2],
    messages: &[Message<'_>],
) -> Vec<(u64, Event)> {
    let (mut socket, daemon) = UnixStream::pair().expect("sockets");
    let mut replies = Vec::new();
    thread::scope(|scope| {
        let server = scope.spawn(|| serve(daemon, exports));
        for message in messages {
            match message.body {
                Body::Presented { second } => {
                    guest.present(blobs[0], if second { SECOND } else { 0 });
                }
                Body::Removed => guest.remove(blobs[1]),
                _ => send(&socket, message, blobs),
            }
            answer_all(guest);
        }
        // The end of the connection would overtake descriptors that are still to come. Not waited for: nothing may come.
        let soon = Instant::now() + Duration::from_millis(2);
        while Instant::now() < soon {
            answer_all(guest);
            thread::yield_now();
        }
        let _ = socket.shutdown(Shutdown::Write);
        while !server.is_finished() {
            answer_all(guest);
            thread::yield_now();
        }
        // A connection that ends with bytes unread is reset: what came before is lost.
        let _ = socket.read_to_end(&mut replies);
        server.join().expect("the daemon's thread");
    });
    check_replies(&replies)
}

fuzz_target!(|messages: Vec<Message<'_>>| {
    let exports = Exports::new();
    let guest = exports.guest(Arc::new(|| {}));
    let blobs = [1, 2].map(|number| guest.add([number; 16], SIZE, "a blob").expect("room"));
    for blob in blobs {
        for offset in [0, SECOND] {
            guest.publish(blob, layout(offset)).expect("room");
        }
        guest.present(blob, 0);
    }
    let events = view(&exports, &guest, &blobs, &messages);
    let tags: Vec<_> = messages.iter().map(tag).collect();
    let is_raw = |message: &Message<'_>| matches!(message.body, Body::Odd { .. } | Body::Bytes(_));
    if !messages.iter().any(is_raw) {
        for (tag, _) in &events {
            assert!(*tag == NO_TAG || tags.contains(tag), "an answer to nobody");
        }
    }
    for blob in blobs {
        assert!(!guest.is_open(blob), "open, and its viewer is gone");
        assert!(!guest.in_use(blob, 0) && !guest.in_use(blob, SECOND));
    }
    let is_removed = messages
        .iter()
        .any(|message| matches!(message.body, Body::Removed));
    let list = Message {
        body: Body::List,
        tag: 0,
        files: 0,
        descriptor: Descriptor::Sealed,
    };
    let heard = view(&exports, &guest, &blobs, &[list]);
    let listed = heard
        .iter()
        .filter(|(tag, event)| *tag == 1 && matches!(event, Event::Blob(_)));
    assert_eq!(listed.count(), if is_removed { 1 } else { 2 });
});
