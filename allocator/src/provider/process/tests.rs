//! The child is this test program, run again.

use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::Mutex;

use super::wire::FromChild;
use super::*;
use crate::provider::contract::{self, Guest};
use crate::provider::{AttachmentId, Choice, FileId, Options, Piece, Placement, Request};

const CHILD: &str = "HOSTBLOB_TEST_PROVIDER";
const MIB: u64 = 1 << 20;

/// Not a test: what the children run.
#[test]
fn child() {
    let Some(choice) = std::env::var_os(CHILD) else {
        return;
    };
    let choice: Choice = choice.to_str().unwrap().parse().unwrap();
    let served = serve_stdin(choice, &Options::default());
    std::process::exit(i32::from(served.is_err()));
}

fn command(choice: Choice) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["provider::process::tests::child", "--exact", "--nocapture"])
        .env(CHILD, choice.to_string())
        .stdout(Stdio::null());
    command
}

/// The process that serves now, to be killed.
type Pid = Arc<AtomicU32>;

fn provider(choice: Choice) -> (ProcessProvider, Pid) {
    provider_with(choice, JOB_TIME)
}

fn provider_with(choice: Choice, job_time: Duration) -> (ProcessProvider, Pid) {
    let _ = env_logger::builder().is_test(true).try_init();
    let pid = Pid::default();
    let seen = Arc::clone(&pid);
    let spawn = move |socket: OwnedFd| {
        let child = command(choice).stdin(Stdio::from(socket)).spawn()?;
        seen.store(child.id(), Ordering::SeqCst);
        child.try_into()
    };
    (
        ProcessProvider::new(Box::new(spawn), job_time).unwrap(),
        pid,
    )
}

fn number(pid: &Pid) -> rustix::process::Pid {
    let pid = i32::try_from(pid.load(Ordering::SeqCst)).unwrap();
    rustix::process::Pid::from_raw(pid).unwrap()
}

fn kill(pid: &Pid) {
    signal(pid, rustix::process::Signal::KILL);
}

fn signal(pid: &Pid, signal: rustix::process::Signal) {
    rustix::process::kill_process(number(pid), signal).unwrap();
}

/// All of its threads stand when this returns: one that runs may answer yet.
fn stop(pid: &Pid) {
    signal(pid, rustix::process::Signal::STOP);
    let threads = format!("/proc/{}/task", pid.load(Ordering::SeqCst));
    let stands = |thread: io::Result<std::fs::DirEntry>| {
        let stat = std::fs::read_to_string(thread.unwrap().path().join("stat")).unwrap();
        // After the name, which is in parentheses.
        stat.rsplit(") ").next().unwrap().starts_with('T')
    };
    while !std::fs::read_dir(&threads).unwrap().all(stands) {
        thread::yield_now();
    }
}

fn is_alive(pid: &Pid) -> bool {
    rustix::process::test_kill_process(number(pid)).is_ok()
}

#[test]
fn every_provider_keeps_the_contract_in_a_process_of_its_own() {
    for choice in [Choice::System, Choice::Vulkan, Choice::Gl] {
        let (provider, _) = provider(choice);
        assert!(!provider.reason().is_empty());
        contract::suite(&provider);
    }
}

#[test]
fn it_says_why_it_does_not_serve() {
    let without = |socket: OwnedFd| {
        command(Choice::Gl)
            .env("__EGL_VENDOR_LIBRARY_DIRS", "/nonexistent")
            .stdin(Stdio::from(socket))
            .spawn()?
            .try_into()
    };
    match ProcessProvider::new(Box::new(without), JOB_TIME) {
        Err(ProcessError::Refused(why)) => assert!(why.contains("libgl1-mesa-dri"), "{why}"),
        other => panic!("{other:?}"),
    }
    let not_there = |_: OwnedFd| Command::new("/nonexistent").spawn()?.try_into();
    let error = ProcessProvider::new(Box::new(not_there), JOB_TIME).unwrap_err();
    assert!(matches!(error, ProcessError::System(_)), "{error}");
    let ends = |socket: OwnedFd| {
        let mut command = Command::new("true");
        command.stdin(Stdio::from(socket)).spawn()?.try_into()
    };
    let error = ProcessProvider::new(Box::new(ends), JOB_TIME).unwrap_err();
    assert!(matches!(error, ProcessError::Ended), "{error}");
    for error in [error, ProcessError::Timeout] {
        let text = error.to_string();
        for remedy in ["hostblobd info --sandbox off", "--provider system"] {
            assert!(text.contains(remedy), "{text}");
        }
        assert!(!text.contains("  "), "{text}");
    }
}

fn fill(attachment: AttachmentId, value: u32) -> Request {
    Request::Fill {
        attachment,
        offset: 0,
        length: 4096,
        value,
    }
}

fn is_lost(result: &Result<(), ProviderError>) -> bool {
    matches!(result, Err(ProviderError::DeviceLost(_)))
}

/// Asks until a process answers: between two there may be a pause.
fn ok_soon(guest: &mut Guest, request: impl Fn() -> Request) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match guest.call(request()) {
            Ok(()) => return,
            error => {
                assert!(is_lost(&error), "{error:?}");
                assert!(Instant::now() < deadline, "{error:?}");
                thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

fn piece() -> Piece {
    let file = crate::provider::sealed_memfd("piece", 4096).unwrap();
    Piece {
        file: Arc::new(file.into()),
        offset: 0,
        length: 4096,
    }
}

#[test]
fn what_was_attached_is_attached_again_and_the_bytes_stay() {
    for choice in [Choice::System, Choice::Vulkan, Choice::Gl] {
        let (provider, pid) = provider(choice);
        let mut guest = Guest::new(&provider, MIB);
        let (a, b) = (guest.attach(0, 8192), guest.attach(16384, 8192));
        guest.ok(fill(a, 1));
        let (device, allocate) = guest.allocate_request(8192);
        guest.ok(allocate);
        // Pieces of a file, and an attachment whose file is removed.
        guest.ok(Request::AddPieces {
            file: FileId(7),
            pieces: vec![piece()],
        });
        let c = guest.attach_to(FileId(7), 0, 4096);
        guest.ok(Request::RemoveFile { file: FileId(7) });

        kill(&pid);
        ok_soon(&mut guest, || fill(b, 2));
        ok_soon(&mut guest, || fill(c, 3));
        assert_eq!(guest.read(0, 4), [1, 0, 0, 0], "{choice}");
        assert_eq!(guest.read(16384, 4), [2, 0, 0, 0], "{choice}");
        // Device memory is gone, and says so until it is released.
        let lost = guest.call(fill(device, 4));
        assert!(is_lost(&lost), "{lost:?}");
        guest.ok(Request::Release { attachment: device });
        let (device, allocate) = guest.allocate_request(8192);
        guest.ok(allocate);
        guest.ok(fill(device, 5));
        for attachment in [a, b, c, device] {
            guest.ok(Request::Release { attachment });
        }
        let unknown = guest.call(fill(a, 6));
        assert!(
            matches!(unknown, Err(ProviderError::Invalid(_))),
            "{unknown:?}"
        );
    }
}

#[test]
fn each_request_is_answered_in_order_however_often_the_process_dies() {
    let (provider, pid) = provider(Choice::System);
    let mut guest = Guest::new(&provider, 64 * MIB);
    let a = guest.attach(0, 64 * MIB);
    let mut done = 0;
    for round in 0..20_u32 {
        let first = guest.submit(fill(a, round));
        for _ in 0..20 {
            guest.submit(Request::Fill {
                attachment: a,
                offset: 0,
                length: 64 * MIB,
                value: round,
            });
        }
        kill(&pid);
        for sequence in first..first + 21 {
            let completion = guest.next();
            assert_eq!(completion.sequence, sequence);
            let result = completion.result.map(drop);
            assert!(result.is_ok() || is_lost(&result), "{result:?}");
            done += u32::from(result.is_ok());
        }
        ok_soon(&mut guest, || fill(a, round));
    }
    assert!(done < 20 * 21, "nothing was under way when it died");
}

#[test]
fn sessions_end_while_there_is_no_process() {
    let (provider, pid) = provider(Choice::System);
    let mut one = Guest::new(&provider, MIB);
    let mut two = Guest::new(&provider, MIB);
    let (a, b) = (one.attach(0, 4096), two.attach(0, 4096));
    kill(&pid);
    drop(one);
    ok_soon(&mut two, || fill(b, 1));
    let mut three = Guest::new(&provider, MIB);
    let c = three.attach(0, 4096);
    three.ok(fill(c, 2));
    assert_eq!(a, c, "of its own");
    drop(provider);
    // The last session ends the process.
    two.ok(fill(b, 3));
    drop((two, three));
    assert!(!is_alive(&pid));
}

/// Short, and longer than an honest process takes on a busy host.
const SHORT: Duration = Duration::from_secs(2);

/// Alive, and silent: work is lost after its time.
#[test]
fn a_process_that_hangs_is_replaced() {
    let (provider, pid) = provider_with(Choice::System, SHORT);
    let mut guest = Guest::new(&provider, MIB);
    let mut other = Guest::new(&provider, MIB);
    let (a, b) = (guest.attach(0, 4096), other.attach(0, 4096));
    ok_soon(&mut guest, || fill(a, 1));
    let hung = pid.load(Ordering::SeqCst);
    stop(&pid);
    for _ in 0..20 {
        guest.submit(fill(a, 3));
    }
    for _ in 0..20 {
        let result = guest.next().result.map(drop);
        assert!(is_lost(&result), "{result:?}");
    }
    ok_soon(&mut guest, || fill(a, 4));
    ok_soon(&mut other, || fill(b, 5));
    assert_ne!(pid.load(Ordering::SeqCst), hung);
    assert_eq!(guest.read(0, 4), [4, 0, 0, 0]);
}

/// Also one that does not read: messages that do not fit into its socket do not stop the keeper for ever.
#[test]
fn a_process_that_does_not_read_is_replaced() {
    let (provider, pid) = provider_with(Choice::System, SHORT);
    let mut guest = Guest::new(&provider, MIB);
    let a = guest.attach(0, 4096);
    stop(&pid);
    const MANY: usize = 5000;
    for _ in 0..MANY {
        guest.submit(fill(a, 1));
    }
    for _ in 0..MANY {
        let result = guest.next().result.map(drop);
        assert!(result.is_ok() || is_lost(&result), "{result:?}");
    }
    ok_soon(&mut guest, || fill(a, 2));
}

/// A driver that crashed and then does not come up: guests are answered all the same, and so is the end.
#[test]
fn while_a_process_starts_nobody_waits_for_it() {
    let pid = Pid::default();
    let (seen, turn) = (Arc::clone(&pid), AtomicU32::new(0));
    let spawn = move |socket: OwnedFd| {
        let mut command = match turn.fetch_add(1, Ordering::SeqCst) {
            0 => command(Choice::System),
            _ => Command::new("sleep"),
        };
        let child = command.arg("1000").stdin(Stdio::from(socket)).spawn()?;
        seen.store(child.id(), Ordering::SeqCst);
        child.try_into()
    };
    let provider = ProcessProvider::new(Box::new(spawn), JOB_TIME).unwrap();
    let mut guest = Guest::new(&provider, MIB);
    let a = guest.attach(0, 4096);
    let first = pid.load(Ordering::SeqCst);
    kill(&pid);
    let deadline = Instant::now() + START_TIMEOUT / 2;
    while pid.load(Ordering::SeqCst) == first {
        assert!(Instant::now() < deadline, "no other process is started");
        let lost = guest.call(fill(a, 1));
        assert!(lost.is_ok() || is_lost(&lost), "{lost:?}");
    }
    let begin = Instant::now();
    for _ in 0..100 {
        let lost = guest.call(fill(a, 1));
        assert!(is_lost(&lost), "{lost:?}");
    }
    let b = guest.attach(8192, 4096);
    guest.ok(Request::Release { attachment: b });
    drop((guest, provider));
    assert!(begin.elapsed() < START_TIMEOUT / 2, "{:?}", begin.elapsed());
    assert!(!is_alive(&pid), "nothing of it is left");
}

/// A child that says what a test wants once it is asked something.
fn lying(first: impl Fn(&UnixStream) + Send + Sync + 'static) -> ProcessProvider {
    lying_for(1, move |socket, _| first(socket)).0
}

/// So many children that say what a test wants to the first request, and honest ones after them: threads, each with a process that does nothing for
/// it. And how many were started.
fn lying_for(
    lies: u32,
    first: impl Fn(&UnixStream, ToChild) + Send + Sync + 'static,
) -> (ProcessProvider, Arc<AtomicU32>) {
    let _ = env_logger::builder().is_test(true).try_init();
    let honest = Mutex::new(Vec::new());
    let turn = Arc::<AtomicU32>::default();
    let turns = Arc::clone(&turn);
    let first = Arc::new(first);
    let spawn = move |socket: OwnedFd| {
        if turn.fetch_add(1, Ordering::SeqCst) >= lies {
            let child = command(Choice::System).stdin(Stdio::from(socket)).spawn()?;
            return child.try_into();
        }
        let first = Arc::clone(&first);
        honest.lock().push(thread::spawn(move || {
            let socket = UnixStream::from(socket);
            let opened = crate::provider::open(Choice::System, &Options::default()).unwrap();
            let ready = FromChild::Ready {
                description: opened.provider.description().clone(),
                reason: "to lie".to_owned(),
            };
            wire::send(&socket, &ready, &[]).unwrap();
            while let Ok(Some((frame, _))) = wire::receive::<ToChild>(&socket) {
                if matches!(frame, ToChild::Request { .. }) {
                    first(&socket, frame);
                    return;
                }
            }
        }));
        Command::new("sleep").arg("1000").spawn()?.try_into()
    };
    let provider = ProcessProvider::new(Box::new(spawn), JOB_TIME).unwrap();
    (provider, turns)
}

fn done(sequence: u64, result: Result<(), ProviderError>) -> FromChild {
    FromChild::Done {
        session: 0,
        sequence,
        result,
    }
}

/// A driver whose GPU is lost: alive, it answers all work so, for ever.
fn lose(socket: &UnixStream, first: ToChild) {
    let mut next = Some(first);
    while let Some(frame) = next {
        if let ToChild::Request {
            session,
            sequence,
            request,
        } = frame
        {
            let result = match request {
                Request::AddFile { .. } | Request::Attach { .. } => Ok(()),
                _ => Err(ProviderError::DeviceLost("it was reset".to_owned())),
            };
            let done = FromChild::Done {
                session,
                sequence,
                result,
            };
            // Whoever is ended does not get through with it.
            let _ = wire::send(socket, &done, &[]);
        }
        let heard = wire::receive(socket).ok().flatten();
        next = heard.map(|(frame, _)| frame);
    }
}

#[test]
fn a_process_whose_gpu_is_lost_is_replaced_and_each_request_is_answered_once() {
    let (provider, turns) = lying_for(1, lose);
    let mut guest = Guest::new(&provider, MIB);
    let mut other = Guest::new(&provider, MIB);
    let (a, b) = (guest.attach(0, 4096), other.attach(0, 4096));
    let first = guest.submit(fill(a, 1));
    for value in 2..20 {
        guest.submit(fill(a, value));
    }
    for sequence in first..first + 19 {
        let completion = guest.next();
        assert_eq!(completion.sequence, sequence);
        let result = completion.result.map(drop);
        assert!(result.is_ok() || is_lost(&result), "{result:?}");
    }
    ok_soon(&mut guest, || fill(a, 21));
    ok_soon(&mut other, || fill(b, 22));
    assert_eq!(
        turns.load(Ordering::SeqCst),
        2,
        "the lost one, and an honest one"
    );
    assert_eq!(guest.read(0, 4), [21, 0, 0, 0]);
    assert_eq!(other.read(0, 4), [22, 0, 0, 0]);
}

/// 0.2 s, 0.4 s, 0.8 s, 1.6 s after each loss, and not as fast as a guest asks.
#[test]
fn a_gpu_that_stays_lost_is_not_started_as_fast_as_guests_ask() {
    let (provider, turns) = lying_for(4, lose);
    let begin = Instant::now();
    let mut guest = Guest::new(&provider, MIB);
    let a = guest.attach(0, 4096);
    ok_soon(&mut guest, || fill(a, 1));
    assert_eq!(turns.load(Ordering::SeqCst), 5);
    let pauses = LEAST_PAUSE * (2 + 4 + 8 + 16);
    assert!(begin.elapsed() >= pauses, "{:?}", begin.elapsed());
}

/// Answers of a session that never was: they are not taken from the socket once that is known.
#[test]
fn a_process_that_floods_is_replaced_and_nothing_of_it_is_kept() {
    let said = Arc::<AtomicU32>::default();
    let counted = Arc::clone(&said);
    let provider = lying(move |socket| {
        let text = "a".repeat(60_000);
        let flood = FromChild::Done {
            session: 99,
            sequence: 1,
            result: Err(ProviderError::Driver(text)),
        };
        while wire::send(socket, &flood, &[]).is_ok() {
            counted.fetch_add(1, Ordering::SeqCst);
        }
    });
    let mut guest = Guest::new(&provider, MIB);
    let a = guest.attach(0, 4096);
    ok_soon(&mut guest, || fill(a, 1));
    assert_eq!(guest.read(0, 4), [1, 0, 0, 0]);
    let said = said.load(Ordering::SeqCst);
    assert!(
        said < 100,
        "{said} times 60 KB, of which a socket has a few"
    );
}

#[test]
fn a_process_that_talks_nonsense_is_replaced() {
    let memfd = || {
        let file = rustix::fs::memfd_create("it", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&file, MIB).unwrap();
        file
    };
    type Lie = Box<dyn Fn(&UnixStream) + Send + Sync>;
    let say = |frame: fn() -> FromChild| -> Lie {
        Box::new(move |socket| wire::send(socket, &frame(), &[]).unwrap())
    };
    let lies: [Lie; 6] = [
        say(|| done(99, Ok(()))),
        say(|| FromChild::Failed("late".to_owned())),
        Box::new(|socket| {
            let mut socket = socket;
            socket.write_all(&[0xff; 4]).unwrap();
        }),
        Box::new(|socket| {
            let mut socket = socket;
            socket.write_all(b"\x05\0\0\0{\"ab").unwrap();
        }),
        Box::new(|socket| {
            let mut socket = socket;
            socket.write_all(b"\x10\0\0\0nothing").unwrap();
        }),
        Box::new(move |socket| {
            // Descriptors that nobody asked for are closed.
            let file = memfd();
            wire::send(socket, &done(1, Ok(())), &[file.as_fd(); 100]).unwrap();
            wire::send(socket, &done(1, Ok(())), &[]).unwrap();
        }),
    ];
    for lie in lies {
        let provider = lying(lie);
        let mut guest = Guest::new(&provider, MIB);
        let a = guest.attach(0, 4096);
        ok_soon(&mut guest, || fill(a, 1));
        assert_eq!(guest.read(0, 4), [1, 0, 0, 0]);
    }
}

/// As if it had no room for them: the requests fail, in their turn, and nothing else does.
#[test]
fn descriptors_that_did_not_come_fail_their_request_alone() {
    let (socket, theirs) = UnixStream::pair().unwrap();
    let child = thread::spawn(move || serve(theirs, Choice::System, &Options::default()));
    let Some((FromChild::Ready { description, .. }, _)) = wire::receive(&socket).unwrap() else {
        panic!("it serves");
    };
    let types = &description.memory_types;
    let window = types
        .iter()
        .position(|kind| kind.placement == Placement::Window);
    let memory_type = u32::try_from(window.unwrap()).unwrap();
    wire::send(&socket, &ToChild::Open { session: 0 }, &[]).unwrap();
    let memfd = crate::provider::sealed_memfd("window", 64 * MIB).unwrap();
    let part = |file| wire::Part {
        file,
        offset: 0,
        length: 4096,
    };
    let add = |file| Request::AddFile {
        file: FileId(file),
        descriptor: (),
        length: 64 * MIB,
    };
    let attachment = AttachmentId(1);
    let asked: [(wire::Asked, usize); 7] = [
        (add(0), 1),
        (
            Request::Attach {
                attachment,
                file: FileId(0),
                offset: 0,
                length: 64 * MIB,
                memory_type,
            },
            0,
        ),
        (
            Request::Fill {
                attachment,
                offset: 0,
                length: 64 * MIB,
                value: 7,
            },
            0,
        ),
        // Answered after the work that is under way.
        (add(1), 0),
        (
            Request::AddPieces {
                file: FileId(2),
                pieces: vec![part(0), part(1)],
            },
            1,
        ),
        (add(1), 1),
        (Request::RemoveFile { file: FileId(1) }, 0),
    ];
    for (sequence, (request, files)) in (0..).zip(asked) {
        let session = 0;
        let frame = ToChild::Request {
            session,
            sequence,
            request,
        };
        wire::send(&socket, &frame, &[memfd.as_fd()][..files]).unwrap();
    }
    for expected in 0..7 {
        let (frame, _) = wire::receive(&socket).unwrap().expect("it goes on");
        let FromChild::Done {
            sequence, result, ..
        } = frame
        else {
            panic!("{frame:?}");
        };
        assert_eq!(sequence, expected);
        match expected {
            3 | 4 => assert!(
                matches!(result, Err(ProviderError::OutOfHostMemory(_))),
                "{result:?}"
            ),
            _ => assert_eq!(result, Ok(()), "request {expected}"),
        }
    }
    drop(socket);
    child.join().unwrap().unwrap();
}

/// A first process that talks nonsense when it is to fill, and is as one that nothing kills: it lives until the pipe is closed. Then honest ones.
fn undying() -> (ProcessProvider, OwnedFd) {
    let _ = env_logger::builder().is_test(true).try_init();
    let (process, life) = rustix::pipe::pipe().unwrap();
    let process = Mutex::new(Some(process));
    let spawn = move |socket: OwnedFd| {
        let Some(process) = process.lock().take() else {
            let child = command(Choice::System).stdin(Stdio::from(socket)).spawn()?;
            return child.try_into();
        };
        let (ours, theirs) = UnixStream::pair()?;
        let honest = move || serve(theirs, Choice::System, &Options::default());
        thread::spawn(honest);
        thread::spawn(move || relay_until_fill(&UnixStream::from(socket), &ours));
        Ok(Process::from(process))
    };
    let provider = ProcessProvider::new(Box::new(spawn), JOB_TIME).unwrap();
    (provider, life)
}

/// Passes on what both say, a request and its answer at a time; nonsense in place of the first FILL.
fn relay_until_fill(keeper: &UnixStream, honest: &UnixStream) {
    let (ready, _) = wire::receive::<FromChild>(honest).unwrap().unwrap();
    wire::send(keeper, &ready, &[]).unwrap();
    while let Ok(Some((frame, beside))) = wire::receive::<ToChild>(keeper) {
        let is_request = matches!(frame, ToChild::Request { .. });
        if let ToChild::Request {
            request: Request::Fill { .. },
            ..
        } = frame
        {
            // Nobody may be there to hear it any more.
            let _ = wire::send(keeper, &FromChild::Failed("late".to_owned()), &[]);
            return;
        }
        let files: Vec<_> = beside.files.iter().map(AsFd::as_fd).collect();
        wire::send(honest, &frame, &files).unwrap();
        if is_request {
            let (done, _) = wire::receive::<FromChild>(honest).unwrap().unwrap();
            wire::send(keeper, &done, &[]).unwrap();
        }
    }
}

/// Until then its driver may write to what was to be filled.
#[test]
fn nothing_is_answered_before_a_process_is_dead() {
    let (provider, life) = undying();
    let mut guest = Guest::new(&provider, MIB);
    let a = guest.attach(0, 4096);
    guest.submit(fill(a, 1));
    guest.submit(Request::Release { attachment: a });
    thread::sleep(Duration::from_millis(2500));
    assert_eq!(guest.answered(), 0);
    drop(life);
    let lost = guest.next().result.map(drop);
    assert!(is_lost(&lost), "{lost:?}");
    assert_eq!(guest.next().result, Ok(None));
    let b = guest.attach(0, 4096);
    ok_soon(&mut guest, || fill(b, 2));
    assert_eq!(guest.read(0, 4), [2, 0, 0, 0]);
}

#[test]
fn the_end_does_not_wait_for_a_process_that_cannot_be_killed() {
    let (provider, _life) = undying();
    let mut guest = Guest::new(&provider, MIB);
    let a = guest.attach(0, 4096);
    guest.submit(fill(a, 1));
    // It is waited for by now.
    thread::sleep(Duration::from_millis(500));
    let (ended, end) = std::sync::mpsc::channel();
    thread::spawn(move || {
        drop((guest, provider));
        ended.send(()).unwrap();
    });
    assert_eq!(end.recv_timeout(Duration::from_secs(30)), Ok(()));
}

#[test]
fn pieces_of_too_many_files_are_refused() {
    let pieces = (0..=wire::MAX_DESCRIPTORS).map(|_| piece());
    let (provider, _) = provider(Choice::System);
    let mut guest = Guest::new(&provider, MIB);
    let pieces: Vec<Piece> = pieces.collect();
    let add = |pieces: &[Piece]| Request::AddPieces {
        file: FileId(9),
        pieces: pieces.to_vec(),
    };
    let refused = guest.call(add(&pieces));
    assert!(
        matches!(refused, Err(ProviderError::Invalid(_))),
        "{refused:?}"
    );
    guest.ok(add(&pieces[1..]));
}
