use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::time::Instant;

use hostblob_allocator::Mapping;
use hostblob_allocator::provider::Elsewhere;
use hostblob_allocator::window::Span;

use super::requests::REPLY_TIMEOUT;
use super::*;
use crate::transport::{MapperError, WindowMapper};

const WINDOW: u64 = 1 << 30;

fn span(offset: u64, length: u64) -> Span {
    Span::new(offset, length, WINDOW).unwrap()
}

/// The whole window.
fn whole() -> Mapping {
    Mapping {
        span: span(0, WINDOW),
        elsewhere: None,
    }
}

/// A mapper, the VMM's end of its channel, and what reaches the message thread.
fn mapper() -> (Mapper, UnixStream, Arc<Channel>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let channel = Arc::<Channel>::default();
    channel.set_socket(ours);
    channel.set_usable(true);
    channel.set_sharing(true);
    let window = rustix::fs::memfd_create("window", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let mapper = Mapper::new(Arc::clone(&channel), window);
    (mapper, theirs, channel)
}

fn reply(code: u32, flags: u32, size: u32, status: u64) -> Vec<u8> {
    let mut bytes = [code, flags, size].map(u32::to_ne_bytes).concat();
    bytes.extend(status.to_ne_bytes());
    bytes
}

/// Sends `bytes` beforehand, which is the same to the one who waits for them, and has the window mapped.
fn map_with(bytes: &[u8]) -> bool {
    let (mut mapper, mut vmm, _) = mapper();
    std::io::Write::write_all(&mut vmm, bytes).unwrap();
    mapper.map(&whole()).is_ok()
}

#[test]
fn the_request_is_as_the_specification_has_it() {
    let (mut mapper, mut vmm, _) = mapper();
    std::io::Write::write_all(&mut vmm, &reply(9, 5, 8, 0)).unwrap();
    mapper.map(&whole()).unwrap();
    let mut request = [0; 52];
    std::io::Read::read_exact(&mut vmm, &mut request).unwrap();
    let word = |at: usize| u32::from_ne_bytes(request[at..at + 4].try_into().unwrap());
    let long = |at: usize| u64::from_ne_bytes(request[at..at + 8].try_into().unwrap());
    assert_eq!([word(0), word(4), word(8)], [9, 0x9, 40]);
    // Region 1, file offset, offset in the region, length, read and write.
    assert_eq!([12, 20, 28, 36, 44].map(long), [1, 0, 0, 1 << 30, 1]);
    std::io::Write::write_all(&mut vmm, &reply(10, 5, 8, 0)).unwrap();
    mapper.unmap(whole().span).unwrap();
    std::io::Read::read_exact(&mut vmm, &mut request).unwrap();
    let code = u32::from_ne_bytes(request[..4].try_into().unwrap());
    assert_eq!(code, 10);
}

#[test]
fn a_blob_is_its_part_of_the_window_and_other_memory_the_beginning_of_its_file() {
    let (mut mapper, mut vmm, _) = mapper();
    let file = rustix::fs::memfd_create("foreign", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let span = span(0x5000, 0x2000);
    let foreign = Elsewhere::File(Arc::new(File::from(file)));
    for (elsewhere, offset) in [(None, 0x5000), (Some(foreign), 0)] {
        std::io::Write::write_all(&mut vmm, &reply(9, 5, 8, 0)).unwrap();
        mapper.map(&Mapping { span, elsewhere }).unwrap();
        let mut request = [0; 52];
        std::io::Read::read_exact(&mut vmm, &mut request).unwrap();
        let long = |at: usize| u64::from_ne_bytes(request[at..at + 8].try_into().unwrap());
        assert_eq!([20, 28, 36].map(long), [offset, 0x5000, 0x2000]);
    }
}

#[test]
fn only_an_answer_to_the_question_counts() {
    assert!(map_with(&reply(9, 5, 8, 0)));
    assert!(!map_with(&reply(9, 5, 8, 1)));
    assert!(!map_with(&reply(9, 5, 8, u64::MAX)));
    assert!(!map_with(&reply(10, 5, 8, 0)));
    assert!(!map_with(&reply(9, 1, 8, 0)));
    assert!(!map_with(&reply(9, 5, 16, 0)));
    assert!(!map_with(&reply(0, 5, 8, 0)));
    assert!(!map_with(&reply(u32::MAX, 5, 8, 0)));
    assert!(!map_with(&[0xff; 20]));
}

#[test]
fn a_late_answer_belongs_to_its_question() {
    let (mut mapper, mut vmm, _) = mapper();
    let half = reply(9, 5, 8, 0);
    std::io::Write::write_all(&mut vmm, &half[..7]).unwrap();
    let start = Instant::now();
    assert_eq!(mapper.map(&whole()), Err(MapperError::Unknown));
    assert!(start.elapsed() >= REPLY_TIMEOUT);
    // The rest of the first answer, then those to a refused second try, to the unmapping, to the third.
    std::io::Write::write_all(&mut vmm, &half[7..]).unwrap();
    for (code, status) in [(9, 17), (10, 0), (9, 0)] {
        std::io::Write::write_all(&mut vmm, &reply(code, 5, 8, status)).unwrap();
    }
    assert_eq!(mapper.map(&whole()), Err(MapperError::Refused));
    mapper.unmap(whole().span).unwrap();
    mapper.map(&whole()).unwrap();
    assert!(mapper.requests.owed.is_empty() && mapper.requests.partial.is_empty());
}

#[test]
fn a_closed_or_missing_channel_fails_at_once() {
    let start = Instant::now();
    let (mut mapper, vmm, channel) = mapper();
    drop(vmm);
    assert!(mapper.map(&whole()).is_err());
    channel.close();
    assert!(mapper.map(&whole()).is_err());
    let unmapped = mapper.unmap(whole().span);
    assert_eq!(unmapped, Err(MapperError::NotAsked));
    let (ours, _theirs) = UnixStream::pair().unwrap();
    channel.set_socket(ours);
    channel.set_usable(false);
    assert!(mapper.map(&whole()).is_err());
    assert!(start.elapsed() < REPLY_TIMEOUT);
}

#[test]
fn a_vmm_that_answers_first_is_waited_for() {
    let (mut mapper, mut vmm, channel) = mapper();
    let replies = [reply(9, 5, 8, 0), reply(10, 5, 8, 0)].concat();
    std::io::Write::write_all(&mut vmm, &replies).unwrap();
    for step in [
        |mapper: &mut Mapper| mapper.map(&whole()),
        |mapper: &mut Mapper| mapper.unmap(whole().span),
    ] {
        let channel = Arc::clone(&channel);
        let start = Instant::now();
        let later = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            channel.memory_changed();
        });
        step(&mut mapper).unwrap();
        assert!(start.elapsed() >= Duration::from_millis(19));
        later.join().unwrap();
    }
}

#[test]
fn a_vmm_that_changes_no_memory_is_waited_for_once() {
    let (mut mapper, mut vmm, _) = mapper();
    std::io::Write::write_all(&mut vmm, &reply(9, 5, 8, 0).repeat(2)).unwrap();
    let start = Instant::now();
    mapper.map(&whole()).unwrap();
    assert!(start.elapsed() >= CHANGE_TIMEOUT);
    let start = Instant::now();
    mapper.map(&whole()).unwrap();
    assert!(start.elapsed() < CHANGE_TIMEOUT);
}

const OBJECT: [u8; 16] = *b"a shared object!";

fn object() -> OwnedFd {
    rustix::fs::memfd_create("object", rustix::fs::MemfdFlags::CLOEXEC).unwrap()
}

/// As the VMM: bytes, and descriptors with the first of them.
fn give(vmm: &UnixStream, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(descriptors));
    let sent = rustix::net::sendmsg(
        vmm,
        &[IoSlice::new(bytes)],
        &mut control,
        SendFlags::empty(),
    );
    assert_eq!(sent, Ok(bytes.len()));
}

fn inode(fd: impl AsFd) -> u64 {
    rustix::fs::fstat(fd).unwrap().st_ino
}

/// How often this process has it open.
fn open_count(fd: &OwnedFd) -> usize {
    let it = rustix::fs::fstat(fd).unwrap();
    let of = |entry: io::Result<std::fs::DirEntry>| {
        std::fs::metadata(entry.unwrap().path())
            .is_ok_and(|found| (found.dev(), found.ino()) == (it.st_dev, it.st_ino))
    };
    let all = std::fs::read_dir("/proc/self/fd").unwrap();
    all.map(of).filter(|same| *same).count()
}

/// What the VMM has been sent and not read: requests.
fn asked(vmm: &mut UnixStream) -> Vec<u8> {
    let mut bytes = vec![0; 4096];
    vmm.set_nonblocking(true).unwrap();
    let length = std::io::Read::read(vmm, &mut bytes).unwrap_or(0);
    vmm.set_nonblocking(false).unwrap();
    bytes.truncate(length);
    bytes
}

#[test]
fn an_object_is_asked_for_as_the_specification_has_it() {
    let (mut mapper, mut vmm, _) = mapper();
    let object = object();
    assert!(mapper.can_look_up());
    give(&vmm, &reply(8, 5, 8, 0), &[object.as_fd()]);
    let found = mapper.look_up(OBJECT).unwrap();
    assert_eq!(inode(&found), inode(&object));
    let flags = rustix::io::fcntl_getfd(&found).unwrap();
    assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
    let header = [8_u32, 0x9, 16].map(u32::to_ne_bytes).concat();
    assert_eq!(asked(&mut vmm), [header.as_slice(), &OBJECT].concat());
}

#[test]
fn descriptors_that_nobody_wants_are_closed() {
    let (mut mapper, vmm, _) = mapper();
    let object = object();
    let twice = [object.as_fd(), object.as_fd()];
    // With an answer that has none, with a refusal, one too many.
    give(&vmm, &reply(9, 5, 8, 0), &twice);
    mapper.map(&whole()).unwrap();
    assert_eq!(open_count(&object), 1);
    give(&vmm, &reply(8, 5, 8, 1), &twice);
    assert!(mapper.look_up(OBJECT).is_none());
    assert_eq!(open_count(&object), 1);
    give(&vmm, &reply(8, 5, 8, 0), &twice);
    let found = mapper.look_up(OBJECT).unwrap();
    assert_eq!(open_count(&object), 2);
    drop(found);
    assert_eq!(open_count(&object), 1);
}

#[test]
fn an_answer_in_pieces_keeps_its_descriptor() {
    let (mut mapper, vmm, _) = mapper();
    let (one, other) = (object(), object());
    let bytes = reply(8, 5, 8, 0);
    give(&vmm, &bytes[..12], &[one.as_fd()]);
    give(&vmm, &bytes[12..], &[other.as_fd()]);
    let found = mapper.look_up(OBJECT).unwrap();
    assert_eq!(inode(&found), inode(&one));
    assert_eq!(open_count(&other), 1);
}

#[test]
fn a_silent_vmm_is_not_asked_again_until_it_answers() {
    let (mut mapper, mut vmm, _) = mapper();
    let start = Instant::now();
    assert!(mapper.look_up(OBJECT).is_none());
    assert!(start.elapsed() >= REPLY_TIMEOUT);
    assert_eq!(asked(&mut vmm).len(), 28);
    let start = Instant::now();
    assert!(mapper.look_up(OBJECT).is_none());
    // Half an answer is none.
    let object = object();
    let bytes = reply(8, 5, 8, 0);
    give(&vmm, &bytes[..5], &[object.as_fd()]);
    assert!(mapper.look_up(OBJECT).is_none());
    assert!(start.elapsed() < REPLY_TIMEOUT, "nothing is waited for");
    assert!(asked(&mut vmm).is_empty(), "nor asked");
    // The object of the late answer is nobody's.
    vmm.write_all(&bytes[5..]).unwrap();
    vmm.write_all(&reply(8, 5, 8, 1)).unwrap();
    assert!(mapper.look_up([0; 16]).is_none());
    assert_eq!(asked(&mut vmm).len(), 28);
    assert_eq!(open_count(&object), 1);
    give(&vmm, &bytes, &[object.as_fd()]);
    assert!(mapper.look_up(OBJECT).is_some());
}

#[test]
fn late_answers_to_both_kinds_of_request_are_told_apart() {
    let (mut mapper, vmm, _) = mapper();
    assert!(mapper.look_up(OBJECT).is_none());
    let object = object();
    let answers = [reply(8, 5, 8, 0), reply(9, 5, 8, 0)].concat();
    give(&vmm, &answers, &[object.as_fd()]);
    mapper.map(&whole()).unwrap();
    assert_eq!(open_count(&object), 1);
    // In another order nobody knows which is whose.
    assert!(mapper.look_up(OBJECT).is_none());
    give(&vmm, &reply(9, 5, 8, 0), &[object.as_fd()]);
    assert!(mapper.look_up(OBJECT).is_none());
    assert!(!mapper.can_look_up());
    assert_eq!(open_count(&object), 1);
}

#[test]
fn a_vmm_that_keeps_its_descriptors_is_not_asked_again() {
    let (mut mapper, mut vmm, channel) = mapper();
    vmm.write_all(&reply(8, 5, 8, 0)).unwrap();
    assert!(mapper.look_up(OBJECT).is_none());
    assert!(!mapper.can_look_up());
    vmm.write_all(&reply(9, 5, 8, 0)).unwrap();
    mapper.map(&whole()).unwrap();
    assert!(!mapper.can_look_up());
    // Another one may be otherwise.
    let (ours, _theirs) = UnixStream::pair().unwrap();
    channel.set_socket(ours);
    assert!(mapper.can_look_up());
    channel.set_sharing(false);
    assert!(!mapper.can_look_up());
}
