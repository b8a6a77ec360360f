//! What the process with the GPU driver says, where the driver has taken it over: the daemon answers each request once and in order, replaces that process, and the
//! next one reaches the guest's memory as before.

#![no_main]

use std::io::{IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use arbitrary::Arbitrary;
use crossbeam_channel::Receiver;
use hostblob_allocator::provider::process::{JOB_TIME, ProcessError, ProcessProvider, serve};
use hostblob_allocator::provider::{
    AttachmentId, Choice, Completion, FileId, Options, Placement, Provider, ProviderError, Request,
    Session,
};
use libfuzzer_sys::fuzz_target;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::io::pread;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

const SIZE: u64 = 8192;
const FILE: FileId = FileId(0);
/// Requests that the guest has sent when the process begins to talk.
const ASKED: u64 = 4;
/// The machine may be busy.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Debug, Clone, Arbitrary)]
struct Message {
    body: Body,
    files: Vec<Descriptor>,
}

#[derive(Debug, Clone, Arbitrary)]
enum Body {
    /// An answer to what was asked, or nearly.
    Done {
        session: u8,
        sequence: u8,
        error: Option<u8>,
    },
    /// The answer that is due.
    Next {
        error: Option<u8>,
    },
    /// Any text in a frame.
    Text(String),
    Frame(Vec<u8>),
    Odd {
        length: u32,
        bytes: Vec<u8>,
    },
    /// Its first words again.
    Ready,
}

#[derive(Debug, Clone, Copy, Arbitrary)]
enum Descriptor {
    Sealed,
    Growing,
    Short,
    Socket,
}

fn memory(size: u64, sealed: bool) -> OwnedFd {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = memfd_create("memory", flags).expect("memfd");
    ftruncate(&file, size).expect("memory");
    if sealed {
        fcntl_add_seals(&file, SealFlags::SHRINK).expect("a seal");
    }
    file
}

fn open(descriptor: Descriptor) -> OwnedFd {
    match descriptor {
        Descriptor::Sealed => memory(SIZE, true),
        Descriptor::Growing => memory(SIZE, false),
        Descriptor::Short => memory(1, true),
        Descriptor::Socket => UnixStream::pair().expect("sockets").0.into(),
    }
}

/// The first words of an honest process.
fn ready() -> &'static [u8] {
    static READY: OnceLock<Vec<u8>> = OnceLock::new();
    READY.get_or_init(|| {
        let (mut ours, theirs) = UnixStream::pair().expect("sockets");
        let server = thread::spawn(move || serve(theirs, Choice::System, &Options::default()));
        let mut frame = vec![0; 4];
        ours.read_exact(&mut frame).expect("a frame");
        let length = u32::from_le_bytes([frame[0], frame[1], frame[2], frame[3]]);
        frame.resize(4 + length as usize, 0);
        ours.read_exact(&mut frame[4..]).expect("a frame");
        drop(ours);
        server.join().expect("a thread").expect("plain memory");
        frame
    })
}

fn framed(body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).expect("inputs are small");
    [&length.to_le_bytes()[..], body].concat()
}

fn done(session: u64, sequence: u64, error: Option<u8>) -> Vec<u8> {
    let result = match error.map(|error| error % 4) {
        None => serde_json::json!({ "Ok": null }),
        Some(0) => serde_json::json!({ "Err": { "OutOfHostMemory": "" } }),
        Some(1) => serde_json::json!({ "Err": { "DeviceLost": "it says" } }),
        Some(2) => serde_json::json!({ "Err": { "Invalid": "it says" } }),
        Some(_) => serde_json::json!({ "Err": { "OutOfDeviceMemory": "" } }),
    };
    let done = serde_json::json!({
        "Done": { "session": session, "sequence": sequence, "result": result }
    });
    framed(done.to_string().as_bytes())
}

fn bytes(message: &Message, due: &mut u64) -> Vec<u8> {
    match &message.body {
        Body::Done {
            session,
            sequence,
            error,
        } => done((session % 3).into(), (sequence % 8).into(), *error),
        Body::Next { error } => {
            *due += 1;
            done(0, *due, *error)
        }
        Body::Text(text) => framed(text.as_bytes()),
        Body::Frame(bytes) => framed(bytes),
        Body::Odd { length, bytes } => [&length.to_le_bytes()[..], bytes].concat(),
        Body::Ready => ready().to_vec(),
    }
}

fn send(socket: &UnixStream, bytes: &[u8], files: &[Descriptor]) {
    let files: Vec<_> = files.iter().take(4).copied().map(open).collect();
    let borrowed: Vec<_> = files.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !borrowed.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&borrowed));
    }
    // Fails when the daemon has ended the connection.
    let _ = rustix::net::sendmsg(
        socket,
        &[IoSlice::new(bytes)],
        &mut control,
        SendFlags::NOSIGNAL,
    );
}

/// The process that was taken over, in a thread: it hears what it is asked, says this, and is gone.
fn lie(socket: &UnixStream, first: Option<&[u8]>, messages: &[Message]) {
    send(socket, first.unwrap_or(ready()), &[]);
    if first.is_none() {
        let mut heard = 0;
        let mut buffer = [0; 4096];
        // Each frame names its session; the first one opens it.
        while heard < ASKED + 1 {
            match (&mut &*socket).read(&mut buffer) {
                Ok(0) | Err(_) => return,
                Ok(length) => {
                    let text = String::from_utf8_lossy(&buffer[..length]);
                    heard += text.matches("session").count() as u64;
                }
            }
        }
    }
    let mut due = 0;
    for message in messages {
        send(socket, &bytes(message, &mut due), &message.files);
    }
}

/// Its first process lies, all others are honest.
fn provider(
    first: Option<Vec<u8>>,
    messages: Vec<Message>,
) -> Result<ProcessProvider, ProcessError> {
    let turn = AtomicU32::new(0);
    let lies = Arc::new((first, messages));
    let spawn = move |socket: OwnedFd| {
        let socket = UnixStream::from(socket);
        if turn.fetch_add(1, Ordering::Relaxed) == 0 {
            let lies = Arc::clone(&lies);
            thread::spawn(move || lie(&socket, lies.0.as_deref(), &lies.1));
        } else {
            thread::spawn(move || serve(socket, Choice::System, &Options::default()));
        }
        // What is waited for, and killed.
        Command::new("true").spawn()?.try_into()
    };
    ProcessProvider::new(Box::new(spawn), JOB_TIME)
}

struct Guest {
    session: Box<dyn Session>,
    completions: Receiver<Completion>,
    asked: u64,
    answered: u64,
}

impl Guest {
    fn ask(&mut self, request: Request) {
        self.asked += 1;
        self.session.submit(self.asked, request);
    }

    /// The next answer, which is that to the oldest request.
    fn answer(&mut self) -> Result<(), ProviderError> {
        let completion = self.completions.recv_timeout(PATIENCE).expect("an answer");
        self.answered += 1;
        assert_eq!(
            completion.sequence, self.answered,
            "answers in order, each once"
        );
        completion.result.map(drop)
    }
}

fn attach(attachment: u64, file: FileId, memory_type: u32) -> Request {
    Request::Attach {
        attachment: AttachmentId(attachment),
        file,
        offset: 0,
        length: SIZE,
        memory_type,
    }
}

fn fill(attachment: u64, value: u32) -> Request {
    Request::Fill {
        attachment: AttachmentId(attachment),
        offset: 0,
        length: SIZE,
        value,
    }
}

fn run(messages: Vec<Message>) {
    let provider = provider(None, messages).expect("it says that it serves");
    let types = &provider.description().memory_types;
    let in_window = (0..)
        .zip(types)
        .find(|(_, found)| found.placement == Placement::Window);
    let in_window = in_window.expect("memory in the window").0;
    let (sender, completions) = crossbeam_channel::unbounded();
    let sink = Box::new(move |completion| drop(sender.send(completion)));
    let mut guest = Guest {
        session: provider.connect(sink),
        completions,
        asked: 0,
        answered: 0,
    };
    let window = memory(SIZE, true);
    let add = |file| Request::AddFile {
        file,
        descriptor: window.try_clone().expect("a descriptor"),
        length: SIZE,
    };
    guest.ask(add(FILE));
    guest.ask(attach(1, FILE, in_window));
    guest.ask(fill(1, 7));
    guest.ask(Request::Export {
        attachment: AttachmentId(1),
    });
    while guest.answered < ASKED {
        let _ = guest.answer();
    }
    // It may have refused the first two, and go on lying. What comes after it is honest.
    let deadline = Instant::now() + PATIENCE;
    for round in 2.. {
        guest.ask(add(FileId(round)));
        guest.ask(attach(round, FileId(round), in_window));
        guest.ask(fill(round, 0x5a5a_5a5a));
        let results = [guest.answer(), guest.answer(), guest.answer()];
        let mut bytes = [0; SIZE as usize];
        assert_eq!(pread(&window, &mut bytes, 0), Ok(bytes.len()));
        if results.iter().all(Result::is_ok) && bytes == [0x5a; SIZE as usize] {
            break;
        }
        assert!(Instant::now() < deadline, "no process serves: {results:?}");
        thread::sleep(Duration::from_micros(100));
    }
    drop(guest.session);
}

#[derive(Debug, Arbitrary)]
enum Input {
    /// Instead of its first words.
    First(Vec<u8>),
    /// After them.
    Messages(Vec<Message>),
}

fuzz_target!(|input: Input| match input {
    // It serves, by chance, or does not: there is no other process then.
    Input::First(bytes) => drop(provider(Some(framed(&bytes)), Vec::new())),
    Input::Messages(messages) => run(messages),
});
