//! A process that answers as no honest one does, and one that refuses what the last one had.

use crossbeam_channel::Receiver;

use super::*;
use crate::provider::sealed_memfd;

const LENGTH: u64 = 8192;
const FILE: FileId = FileId(1);
const ATTACHMENT: AttachmentId = AttachmentId(1);
const DEVICE: AttachmentId = AttachmentId(2);

fn book() -> (Book, Receiver<Completion>) {
    let (sink, answers) = crossbeam_channel::unbounded();
    let sink = Box::new(move |completion| sink.send(completion).unwrap());
    (Book::new(Arc::new(Outlet::new(sink))), answers)
}

fn memfd(length: u64) -> OwnedFd {
    sealed_memfd("book", length).unwrap()
}

/// It could be made shorter by whoever has it, and a VMM that maps it would fault.
fn unsealed(length: u64) -> OwnedFd {
    let file = rustix::fs::memfd_create("book", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&file, length).unwrap();
    file
}

/// Asks, and has the process say yes to all that it is asked for that.
fn ok(book: &mut Book, sequence: u64, request: Request, process: u64) {
    for message in book.request(sequence, request, Some(process)) {
        book.answered(message.number, Ok(()), Beside::default())
            .unwrap();
    }
}

/// A book whose process has allocated [`DEVICE`], of [`LENGTH`] bytes.
fn with_device_memory() -> (Book, Receiver<Completion>) {
    let (mut book, answers) = book();
    let allocate = Request::Allocate {
        attachment: DEVICE,
        length: LENGTH,
        memory_type: 0,
    };
    ok(&mut book, 1, allocate, 1);
    (book, answers)
}

/// Asks where [`DEVICE`] is; the process says yes, with what is beside it.
fn export(book: &mut Book, sequence: u64, beside: Beside) -> Result<Kind, Nonsense> {
    let export = Request::Export { attachment: DEVICE };
    let [message] = &book.request(sequence, export, Some(1))[..] else {
        panic!("one message");
    };
    book.answered(message.number, Ok(()), beside)
}

fn fill(attachment: AttachmentId) -> Request {
    Request::Fill {
        attachment,
        offset: 0,
        length: 4096,
        value: 0,
    }
}

#[test]
fn an_export_is_a_file_that_keeps_its_size() {
    let pipe = || rustix::pipe::pipe().unwrap().0;
    let honest = [memfd(LENGTH), memfd(LENGTH + 4096)].map(|file| (vec![file], Ok(())));
    let lies = [
        (Vec::new(), "an export without a descriptor"),
        (vec![memfd(LENGTH - 4096)], "an export that is too short"),
        (
            vec![unsealed(LENGTH)],
            "an export that is no dma-buf and could shrink",
        ),
        (
            vec![pipe()],
            "an export that is no dma-buf and could shrink",
        ),
    ];
    let lies = lies.map(|(descriptors, why)| (descriptors, Err(Nonsense(why))));
    for (descriptors, expected) in honest.into_iter().chain(lies) {
        let (mut book, answers) = with_device_memory();
        let beside = Beside {
            files: descriptors,
            is_cut: false,
        };
        let heard = export(&mut book, 2, beside);
        assert_eq!(heard.map(drop), expected);
        answers.recv().unwrap().result.unwrap();
        match expected {
            Ok(()) => assert!(answers.recv().unwrap().result.unwrap().is_some()),
            // The keeper ends the process, and then nobody has the memory.
            Err(_) => {
                assert!(answers.is_empty());
                book.process_ended();
                let result = answers.recv().unwrap().result;
                assert!(
                    matches!(result, Err(ProviderError::DeviceLost(_))),
                    "{result:?}"
                );
            }
        }
    }
}

/// The limit is that of this process: the other one goes on.
#[test]
fn an_export_whose_descriptor_had_no_room_here_fails_alone() {
    let (mut book, answers) = with_device_memory();
    for (sequence, is_cut) in [(2, true), (3, false)] {
        let files = if is_cut {
            Vec::new()
        } else {
            vec![memfd(LENGTH)]
        };
        let heard = export(&mut book, sequence, Beside { files, is_cut });
        assert_eq!(heard, Ok(Kind::Message));
    }
    assert_eq!(answers.recv().unwrap().result, Ok(None));
    let refused = answers.recv().unwrap().result;
    assert!(
        matches!(refused, Err(ProviderError::OutOfHostMemory(_))),
        "{refused:?}"
    );
    assert!(answers.recv().unwrap().result.unwrap().is_some(), "later");
}

/// What it refuses now it may take later: each use tries once more, and fails alone.
#[test]
fn what_the_next_process_refuses_is_told_to_it_again() {
    let (mut book, answers) = book();
    let add = Request::AddFile {
        file: FILE,
        descriptor: memfd(LENGTH),
        length: LENGTH,
    };
    ok(&mut book, 1, add, 1);
    let attach = Request::Attach {
        attachment: ATTACHMENT,
        file: FILE,
        offset: 0,
        length: LENGTH,
        memory_type: 0,
    };
    ok(&mut book, 2, attach, 1);
    book.process_ended();
    let refusal = || Err(ProviderError::OutOfHostMemory("for now".to_owned()));
    let messages = book.request(3, fill(ATTACHMENT), Some(2));
    assert_eq!(messages.len(), 3, "the file, the attachment, the work");
    for message in &messages {
        book.answered(message.number, refusal(), Beside::default())
            .unwrap();
    }
    let again = book.request(4, fill(ATTACHMENT), Some(2));
    assert_eq!(again.len(), 3, "{again:?}");
    for message in &again {
        book.answered(message.number, Ok(()), Beside::default())
            .unwrap();
    }
    assert_eq!(book.request(5, fill(ATTACHMENT), Some(2)).len(), 1);
    let results: Vec<_> = answers
        .try_iter()
        .map(|answer| (answer.sequence, answer.result.is_ok()))
        .collect();
    assert_eq!(results, [(1, true), (2, true), (3, false), (4, true)]);
}

/// What a process refuses the first time was never there.
#[test]
fn what_is_refused_is_forgotten() {
    let (mut book, answers) = book();
    let add = || Request::AddFile {
        file: FILE,
        descriptor: memfd(LENGTH),
        length: LENGTH,
    };
    let [message] = &book.request(1, add(), Some(1))[..] else {
        panic!("one message");
    };
    let refusal = Err(ProviderError::OutOfHostMemory("no".to_owned()));
    book.answered(message.number, refusal, Beside::default())
        .unwrap();
    ok(&mut book, 2, add(), 1);
    // A number that is taken is refused here, whatever the process would say.
    assert!(book.request(3, add(), Some(1)).is_empty());
    let remove = || Request::RemoveFile { file: FILE };
    ok(&mut book, 4, remove(), 1);
    assert!(book.request(5, remove(), Some(1)).is_empty());
    let results: Vec<_> = answers
        .try_iter()
        .map(|answer| answer.result.is_ok())
        .collect();
    assert_eq!(results, [false, true, false, true, false]);
}
