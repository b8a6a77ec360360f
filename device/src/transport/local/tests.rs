//! Clients that do their worst: the table of all commands over the socket, and streams that break off.

mod cut;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use hostblob_allocator::provider::fake::{FakeProvider, Seen};
use hostblob_protocol::EnvelopeBuilder;
use hostblob_protocol::local::{COMMAND, Frame, HELLO, Hello, MAX_PAYLOAD, RESPONSE};
use hostblob_protocol::request::{
    CacheMode, Create, CreateFlags, Fill, MemoryRange, MemorySelector, Request,
};
use hostblob_protocol::virtio_gpu::{CmdSubmit, CtrlHdr, FLAG_FENCE, GetCapset, cmd, resp};
use zerocopy::{FromBytes, IntoBytes};

use super::client::MAX_KEPT;
use super::*;
use crate::gpu::tests::extremes::{Case, cases, setup};
use crate::gpu::tests::{CAPSET_ID, host};
use crate::transport::listen;

struct Daemon {
    path: PathBuf,
    host: Arc<Host>,
    fake: Arc<FakeProvider>,
    shutdown: Shutdown,
    thread: Option<JoinHandle<()>>,
}

impl Daemon {
    fn start(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("hostblob-{name}-{}", std::process::id()));
        let listener = listen(&path).unwrap();
        let (host, fake) = host();
        let shutdown = Shutdown::new().unwrap();
        let thread = spawn(listener, Arc::clone(&host), CAPSET_ID, shutdown.clone()).unwrap();
        Self {
            path,
            host,
            fake,
            shutdown,
            thread: Some(thread),
        }
    }

    fn connect(&self) -> Client {
        let mut client = Client(UnixStream::connect(&self.path).unwrap());
        let mut hello = [0; size_of::<Frame>() + size_of::<Hello>()];
        client.0.read_exact(&mut hello).unwrap();
        let (frame, _) = Frame::read_from_prefix(&hello).unwrap();
        assert_eq!(frame.kind.get(), HELLO);
        client
    }

    /// What clients held is given back when they are gone.
    fn is_empty_soon(&self) {
        let start = std::time::Instant::now();
        while self.host.used() > 0 {
            assert!(start.elapsed().as_secs() < 30, "{}", self.host.used());
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.shutdown.request();
        self.thread.take().unwrap().join().unwrap();
        std::fs::remove_file(&self.path).unwrap();
    }
}

struct Client(UnixStream);

fn framed(command: &[u8]) -> Vec<u8> {
    let frame = Frame {
        length: u32::try_from(command.len()).unwrap().into(),
        kind: COMMAND.into(),
        tag: 77.into(),
        aux: 0.into(),
    };
    [frame.as_bytes(), command].concat()
}

impl Client {
    fn response(&mut self, command: &[u8]) -> Vec<u8> {
        self.0.write_all(&framed(command)).unwrap();
        self.next_response()
    }

    fn next_response(&mut self) -> Vec<u8> {
        let mut frame = [0; size_of::<Frame>()];
        self.0.read_exact(&mut frame).unwrap();
        let frame = Frame::read_from_bytes(&frame).unwrap();
        assert_eq!((frame.kind.get(), frame.tag.get()), (RESPONSE, 77));
        let mut response = vec![0; frame.length.get().try_into().unwrap()];
        self.0.read_exact(&mut response).unwrap();
        response
    }

    fn step(&mut self, case: &Case) {
        let response = self.response(&case.command);
        let kind = u32::from_le_bytes(response[..4].try_into().unwrap());
        assert_eq!(kind, case.response, "{}", case.name);
        assert_eq!(response[4..24], [0; 20], "{}: padding", case.name);
    }

    fn set_up(mut self) -> Self {
        for case in setup() {
            self.step(&case);
        }
        self
    }

    /// A memory with the number 7, of a page.
    fn create_memory(&mut self) {
        let create = Create {
            client_id: 7,
            size: 4096,
            memory: MemorySelector::Properties(2),
            flags: CreateFlags::HOST_VISIBLE,
            alignment: 0,
            expected_cache: CacheMode::Any,
        };
        let response = self.response(&submit(0, create));
        assert_eq!(response[..4], resp::OK_NODATA.to_le_bytes());
    }

    /// The other end closes the connection.
    fn expect_closed(mut self) {
        let mut rest = Vec::new();
        match self.0.read_to_end(&mut rest) {
            Ok(_) => assert!(rest.is_empty(), "{rest:?}"),
            // It had not read all that was sent.
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset),
        }
    }
}

#[test]
fn each_command_at_its_extremes_over_the_socket() {
    let daemon = Daemon::start("local-extremes");
    let mut client = daemon.connect().set_up();
    // What means "any place" here is no place elsewhere.
    let is_any = |case: &Case| case.name.ends_with("offset 0xffffffffffffffff");
    for case in cases().iter().filter(|case| !is_any(case)) {
        client.step(case);
        if !case.is_refused() {
            drop(client);
            daemon.is_empty_soon();
            client = daemon.connect().set_up();
        }
    }
}

/// A stream that ends after any byte, or that is no stream of frames, costs its own connection.
#[test]
fn streams_that_break_off_cost_their_own_connection() {
    let daemon = Daemon::start("local-broken");
    let commands: Vec<Vec<u8>> = setup().iter().map(|case| framed(&case.command)).collect();
    let stream = commands.concat();
    for length in 0..stream.len() {
        let mut client = daemon.connect();
        client.0.write_all(&stream[..length]).unwrap();
    }
    daemon.is_empty_soon();
    let whole = Frame::read_from_prefix(&stream).unwrap().0;
    for wrong in [
        Frame {
            kind: 0.into(),
            ..whole
        },
        Frame {
            kind: RESPONSE.into(),
            ..whole
        },
        Frame {
            kind: u32::MAX.into(),
            ..whole
        },
        Frame {
            length: (MAX_PAYLOAD + 1).into(),
            ..whole
        },
        Frame {
            length: u32::MAX.into(),
            ..whole
        },
    ] {
        let mut client = daemon.connect();
        let broken = [wrong.as_bytes(), &stream].concat();
        // It may be closed before all of that is written.
        let _ = client.0.write_all(&broken);
        client.expect_closed();
    }
    // The longest that there may be is a command, and so is nothing.
    let mut client = daemon.connect();
    for length in [0, MAX_PAYLOAD] {
        let nothing = vec![0; length.try_into().unwrap()];
        let response = client.response(&nothing);
        let code = match length {
            0 => resp::ERR_INVALID_PARAMETER,
            _ => resp::ERR_UNSPEC,
        };
        assert_eq!(response[..4], code.to_le_bytes());
    }
    client.set_up();
}

fn submit(flags: u32, request: impl Into<Request>) -> Vec<u8> {
    let data = EnvelopeBuilder::new(0).request(request).build();
    let header = CtrlHdr {
        cmd_type: cmd::SUBMIT_3D.into(),
        flags: flags.into(),
        ctx_id: 1.into(),
        ..CtrlHdr::default()
    };
    let size = CmdSubmit {
        size: u32::try_from(data.len()).unwrap().into(),
        ..CmdSubmit::default()
    };
    [header.as_bytes(), size.as_bytes(), &data].concat()
}

/// Commands that wait for the GPU are kept, so many of them; those behind wait in the socket.
#[test]
fn a_client_that_waits_for_nothing_is_held_back() {
    const MORE: usize = 200;
    let daemon = Daemon::start("local-pending");
    let mut client = daemon.connect().set_up();
    client.create_memory();
    daemon.fake.hold();
    let range = MemoryRange {
        client_id: 7,
        offset: 0,
        length: 4096,
    };
    let fill = framed(&submit(FLAG_FENCE, Fill { range, value: 1 }));
    for _ in 0..MAX_KEPT + MORE {
        client.0.write_all(&fill).unwrap();
    }
    let fills = || {
        let is_fill = |seen: &Seen| matches!(seen, Seen::Fill { .. });
        daemon.fake.count_of(is_fill)
    };
    let start = std::time::Instant::now();
    while fills() < MAX_KEPT {
        assert!(start.elapsed().as_secs() < 30, "{}", fills());
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    // Another one is served as ever, by the same device.
    daemon.connect().set_up();
    assert_eq!(fills(), MAX_KEPT);
    daemon.fake.release_all();
    for number in 0..MAX_KEPT + MORE {
        let done = resp::OK_NODATA.to_le_bytes();
        assert_eq!(client.next_response()[..4], done, "{number}");
    }
    assert_eq!(fills(), MAX_KEPT + MORE);
}

/// A client that asks for more than it reads: a little, and often enough for each write to come to an end. The thread that asks, and how that ended.
fn slow_reader(daemon: &Daemon) -> JoinHandle<io::ErrorKind> {
    let client = daemon.connect().set_up();
    let mut reads = client.0.try_clone().unwrap();
    std::thread::spawn(move || {
        let mut some = [0; 4096];
        while reads.read(&mut some).is_ok_and(|length| length > 0) {
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    // The answer is many times as long as the question.
    let question = CtrlHdr {
        cmd_type: cmd::GET_CAPSET.into(),
        ..CtrlHdr::default()
    };
    let capset = GetCapset {
        capset_id: CAPSET_ID.into(),
        capset_version: 1.into(),
    };
    let command = framed(&[question.as_bytes(), capset.as_bytes()].concat()).repeat(1000);
    let mut asks = client.0;
    std::thread::spawn(move || {
        loop {
            if let Err(error) = asks.write_all(&command) {
                return error.kind();
            }
        }
    })
}

#[test]
fn a_client_that_reads_slowly_does_not_hold_up_the_end() {
    let daemon = Daemon::start("local-slow-end");
    let asks = slow_reader(&daemon);
    // Until all buffers are full.
    std::thread::sleep(Duration::from_millis(500));
    assert!(!asks.is_finished());
    let start = Instant::now();
    drop(daemon);
    let took = start.elapsed();
    assert!(took < Duration::from_millis(400), "{took:?}");
    asks.join().unwrap();
}

#[test]
fn a_client_that_reads_too_slowly_is_closed() {
    let daemon = Daemon::start("local-slow");
    let start = Instant::now();
    let asks = slow_reader(&daemon);
    while !asks.is_finished() {
        assert!(start.elapsed() < Duration::from_secs(4), "it goes on");
        std::thread::sleep(Duration::from_millis(10));
    }
    let end = asks.join().unwrap();
    let ends = [io::ErrorKind::BrokenPipe, io::ErrorKind::ConnectionReset];
    assert!(ends.contains(&end), "{end}");
    daemon.is_empty_soon();
}

/// It has its time; others are served meanwhile.
#[test]
fn a_client_that_reads_no_responses_is_closed() {
    let daemon = Daemon::start("local-unread");
    let mut client = daemon.connect().set_up();
    client.create_memory();
    let too_long = Some(std::time::Duration::from_secs(30));
    client.0.set_write_timeout(too_long).unwrap();
    let question = CtrlHdr {
        cmd_type: cmd::GET_CAPSET_INFO.into(),
        ..CtrlHdr::default()
    };
    let command = framed(&[question.as_bytes(), &[0; 8]].concat());
    let writing = std::thread::spawn(move || {
        loop {
            if let Err(error) = client.0.write_all(&command) {
                return error.kind();
            }
        }
    });
    while !writing.is_finished() {
        daemon.connect().set_up();
    }
    let end = writing.join().unwrap();
    assert!(
        matches!(
            end,
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
        ),
        "{end}"
    );
    daemon.is_empty_soon();
}
