//! Clients of the local socket that send anything, in pieces of any size, and stop anywhere: each gets whole frames that answer what it asked, and an
//! honest client is served as if nobody else were there.

#![no_main]

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};

use arbitrary::Arbitrary;
use hostblob_device::transport::local::fuzzing::serve;
use hostblob_fuzz::commands::{
    check_response, create_blob, create_context, map_blob, of_resource, wait_until,
};
use hostblob_fuzz::{PAGE, host};
use hostblob_protocol::local::{ANY_OFFSET, COMMAND, Frame, HELLO, Hello, MAX_PAYLOAD, RESPONSE};
use hostblob_protocol::virtio_gpu::{CtrlHdr, cmd, resp};
use libfuzzer_sys::fuzz_target;
use zerocopy::{FromBytes, IntoBytes};

const CLIENTS: usize = 3;

#[derive(Debug, Arbitrary)]
enum Message<'a> {
    /// A frame that keeps the rules, with anything in it.
    Frame(&'a [u8]),
    Context(u8),
    Blob {
        context: u8,
        resource: u8,
        pages: u8,
    },
    Map {
        resource: u8,
        /// Or wherever the daemon likes.
        page: Option<u8>,
    },
    Resource {
        kind: u8,
        context: u8,
        resource: u8,
    },
    /// A frame that may break them.
    Odd {
        length: u32,
        kind: u32,
        payload: &'a [u8],
    },
    Bytes(&'a [u8]),
}

#[derive(Debug, Arbitrary)]
struct Input<'a> {
    /// What each client sends.
    messages: Vec<(u8, Message<'a>)>,
    /// Sizes of the pieces that it is sent in.
    pieces: Vec<u8>,
    /// Bytes that are not sent.
    cut: u8,
}

fn frame(length: u32, kind: u32, tag: u64) -> Frame {
    Frame {
        length: length.into(),
        kind: kind.into(),
        tag: tag.into(),
        aux: 0.into(),
    }
}

fn framed(tag: u64, command: &[u8]) -> Vec<u8> {
    let length = u32::try_from(command.len()).expect("inputs are small");
    [frame(length, COMMAND, tag).as_bytes(), command].concat()
}

fn bytes(tag: u64, message: &Message<'_>) -> Vec<u8> {
    let command = match *message {
        Message::Frame(command) => command.to_vec(),
        Message::Context(context) => create_context(u32::from(context % 4)),
        Message::Blob {
            context,
            resource,
            pages,
        } => create_blob(
            u32::from(context % 4),
            u32::from(resource % 8),
            0,
            u64::from(pages % 16) * PAGE,
        ),
        Message::Map { resource, page } => {
            let offset = page.map_or(ANY_OFFSET, |page| u64::from(page) * PAGE);
            map_blob(u32::from(resource % 8), offset)
        }
        Message::Resource {
            kind,
            context,
            resource,
        } => {
            let kinds = [
                cmd::CTX_DESTROY,
                cmd::RESOURCE_UNREF,
                cmd::RESOURCE_UNMAP_BLOB,
                cmd::CTX_ATTACH_RESOURCE,
            ];
            let kind = kinds[usize::from(kind) % kinds.len()];
            of_resource(kind, u32::from(context % 4), u32::from(resource % 8))
        }
        Message::Odd {
            length,
            kind,
            payload,
        } => return [frame(length, kind, tag).as_bytes(), payload].concat(),
        Message::Bytes(bytes) => return bytes.to_vec(),
    };
    framed(tag, &command)
}

/// The commands of a stream, by tag, as far as it keeps the rules.
fn commands(stream: &[u8]) -> HashMap<u64, Vec<Vec<u8>>> {
    let mut found: HashMap<_, Vec<_>> = HashMap::new();
    let mut rest = stream;
    while let Ok((frame, after)) = Frame::read_from_prefix(rest) {
        if frame.kind.get() != COMMAND || frame.length.get() > MAX_PAYLOAD {
            break;
        }
        let Some((command, after)) = after.split_at_checked(frame.length.get() as usize) else {
            break;
        };
        found
            .entry(frame.tag.get())
            .or_default()
            .push(command.to_vec());
        rest = after;
    }
    found
}

struct Client {
    socket: UnixStream,
    server: JoinHandle<()>,
    reader: JoinHandle<Vec<u8>>,
}

impl Client {
    fn new() -> Self {
        let (socket, daemon) = UnixStream::pair().expect("sockets");
        let server = thread::spawn(move || serve(daemon, host()));
        let mut reader = socket.try_clone().expect("a descriptor");
        let reader = thread::spawn(move || {
            let mut bytes = Vec::new();
            // The descriptor of the window is dropped by the kernel.
            let _ = reader.read_to_end(&mut bytes);
            bytes
        });
        Self {
            socket,
            server,
            reader,
        }
    }

    /// Ends the connection, and checks all that came: tags, and types of responses.
    fn end(self, sent: &[u8]) -> Vec<(u64, u32)> {
        // Fails where the daemon has closed it.
        let _ = self.socket.shutdown(Shutdown::Write);
        self.server.join().expect("the daemon's thread");
        let bytes = self.reader.join().expect("a reader");
        let (frame, rest) = Frame::read_from_prefix(&bytes).expect("a greeting");
        let (_, mut rest) = Hello::read_from_prefix(rest).expect("a greeting");
        assert_eq!(frame.kind.get(), HELLO);
        let mut asked = commands(sent);
        let mut answers = Vec::new();
        while !rest.is_empty() {
            let (frame, after) = Frame::read_from_prefix(rest).expect("whole frames");
            assert_eq!(frame.kind.get(), RESPONSE);
            let length = frame.length.get() as usize;
            let (response, after) = after.split_at_checked(length).expect("whole frames");
            rest = after;
            let commands = asked
                .get_mut(&frame.tag.get())
                .expect("an answer to what was asked");
            // Of one tag, fences may have changed the order.
            if let [command] = commands.as_slice() {
                check_response(command, response);
            }
            commands.pop().expect("one answer to each");
            answers.push((
                frame.tag.get(),
                CtrlHdr::read_from_prefix(response).map_or(0, |(header, _)| header.cmd_type.get()),
            ));
        }
        answers
    }
}

/// A guest that keeps the rules, and what it must get whatever others do. They may hold all of the memory: it may be refused that.
fn honest() {
    let mut client = Client::new();
    let sent = [
        framed(1, &create_context(1)),
        framed(2, &create_blob(1, 1, 0, PAGE)),
        framed(3, &map_blob(1, ANY_OFFSET)),
    ]
    .concat();
    client.socket.write_all(&sent).expect("the daemon reads");
    match client.end(&sent).as_slice() {
        [
            (1, resp::OK_NODATA),
            (2, resp::OK_NODATA),
            (3, resp::OK_MAP_INFO),
        ]
        | [
            (1, resp::OK_NODATA),
            (2, resp::ERR_OUT_OF_MEMORY),
            (3, resp::ERR_INVALID_RESOURCE_ID),
        ] => {}
        other => panic!("{other:x?}"),
    }
}

fuzz_target!(|input: Input<'_>| {
    let mut streams = vec![Vec::new(); CLIENTS];
    for (tag, (client, message)) in (1..).zip(&input.messages) {
        streams[usize::from(*client) % CLIENTS].extend(bytes(tag, message));
    }
    for stream in &mut streams {
        stream.truncate(stream.len().saturating_sub(input.cut.into()));
    }
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| Client::new()).collect();
    let mut rests: Vec<&[u8]> = streams.iter().map(Vec::as_slice).collect();
    let mut pieces = input
        .pieces
        .iter()
        .map(|piece| usize::from(*piece) + 1)
        .chain(std::iter::repeat(1 << 16));
    while rests.iter().any(|rest| !rest.is_empty()) {
        for (client, rest) in clients.iter_mut().zip(&mut rests) {
            let piece = pieces.next().unwrap_or(1).min(rest.len());
            let (now, later) = rest.split_at(piece);
            // Fails where the daemon has had enough.
            *rest = if client.socket.write_all(now).is_ok() {
                later
            } else {
                &[]
            };
        }
    }
    honest();
    for (client, stream) in clients.into_iter().zip(&streams) {
        client.end(stream);
    }
    wait_until("the last refund", || host().used() == 0);
});
