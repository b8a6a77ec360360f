//! Objects of other devices of the VM: what is wanted, what is lent, and what stays of it.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use hostblob_protocol::request::{Import, Share};
use uuid::Uuid;

use super::exports::exporting;
use super::*;
use crate::context::MAX_CONTEXT_IMPORTS;
use crate::exports::{Exports, NotImportable};

const OBJECT: Uuid = Uuid::from_bytes([7; 16]);

fn memory() -> (OwnedFd, File) {
    let memory = crate::provider::sealed_memfd("object", 4 * PAGE).unwrap();
    let file = memory.try_clone().unwrap().into();
    (memory, file)
}

/// How often this process has the file open.
fn open_count(file: &File) -> usize {
    use std::os::unix::fs::MetadataExt;
    let it = file.metadata().unwrap();
    let same = |entry: std::io::Result<std::fs::DirEntry>| {
        let path = entry.unwrap().path();
        std::fs::metadata(path)
            .is_ok_and(|found| (found.dev(), found.ino()) == (it.dev(), it.ino()))
    };
    std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .map(same)
        .filter(|same| *same)
        .count()
}

fn import(client_id: u64, uuid: Uuid) -> Import {
    let uuid = uuid.into_bytes();
    Import { client_id, uuid }
}

fn envelope(requests: &[Ask]) -> Vec<u8> {
    let builder = EnvelopeBuilder::new(1);
    let all = requests.iter().fold(builder, |all, &one| all.request(one));
    all.build()
}

#[test]
fn only_what_nobody_here_knows_is_wanted() {
    let exports = Exports::new();
    let viewer = exports.join(Arc::new(|| {})).unwrap();
    let mut fixture = exporting(exports);
    fixture.open(1, RING, RING_OFFSET);
    let flags = CreateFlags::HOST_VISIBLE | CreateFlags::SHAREABLE;
    assert_eq!(fixture.create(1, 5, 1, flags), Status::Ok);
    let [high, low] = fixture.ask(1, Share { client_id: 5 }).details;
    let shared = Uuid::from_u64_pair(high.swap_bytes(), low.swap_bytes());
    let token = Uuid::from_bytes(viewer.hand_in(memory().0).unwrap());
    let wants = |context, uuids: &[Uuid]| {
        let imports: Vec<Ask> = uuids.iter().map(|&uuid| import(9, uuid).into()).collect();
        fixture.guest.wanted_object(context, &envelope(&imports))
    };
    assert_eq!(wants(1, &[shared, token]), None);
    assert_eq!(wants(1, &[]), None);
    assert_eq!(wants(2, &[OBJECT]), None, "no such context");
    let other = Uuid::from_bytes([8; 16]);
    assert_eq!(wants(1, &[shared, token, OBJECT, other]), Some(OBJECT));
    let bytes = envelope(&[import(9, OBJECT).into()]);
    let cut = &bytes[..bytes.len() - 8];
    assert_eq!(fixture.guest.wanted_object(1, cut), None);
}

#[test]
fn a_lent_object_is_imported_by_its_command_and_no_other() {
    let mut fixture = Fixture::with_context();
    let (memory, file) = memory();
    let charged = fixture.used(1);
    fixture.guest.lend_object(OBJECT, memory).unwrap();
    let other = Uuid::from_bytes([8; 16]);
    assert_eq!(fixture.ask(1, import(5, other)).status, Status::UnknownUuid);
    let answer = fixture.ask(1, import(5, OBJECT));
    assert_eq!((answer.status, answer.details[1]), (Status::Ok, 4 * PAGE));
    fixture.guest.return_object();
    let again = fixture.ask(1, import(6, OBJECT));
    assert_eq!(again.status, Status::UnknownUuid);

    // An object, and no bytes, are charged to who imports; the GPU works in the owner's pages.
    assert_eq!(fixture.used(1), charged);
    let fill = Fill {
        range: range(5, PAGE, 4),
        value: 9,
    };
    assert_eq!(fixture.ask(1, fill).status, Status::Ok);
    let mut bytes = [0; 4];
    file.read_exact_at(&mut bytes, PAGE).unwrap();
    assert_eq!(bytes, [9, 0, 0, 0]);
    assert_eq!(fixture.ask(1, Free { client_id: 5 }).status, Status::Ok);
    assert_eq!(open_count(&file), 1, "nothing is left of it");
}

/// Each is a descriptor and a mapping in the process with the driver, which has so many for all.
#[test]
fn imports_are_limited_and_share_a_descriptor() {
    let exports = Exports::new();
    let viewer = exports.join(Arc::new(|| {})).unwrap();
    let mut fixture = exporting(exports);
    fixture.open(1, RING, RING_OFFSET);
    let (memory, file) = memory();
    let token = Uuid::from_bytes(viewer.hand_in(memory).unwrap());
    let mut client_id = 1;
    while fixture.ask(1, import(client_id, token)).status == Status::Ok {
        client_id += 1;
    }
    assert_eq!(client_id - 1, MAX_CONTEXT_IMPORTS);
    let refused = fixture.ask(1, import(client_id, token)).status;
    assert_eq!(refused, Status::TooManyObjects);
    assert_eq!(open_count(&file), 2, "ours, and one for all");
    assert_eq!(fixture.ask(1, Free { client_id: 1 }).status, Status::Ok);
    let again = fixture.ask(1, import(client_id, token)).status;
    assert_eq!(again, Status::Ok);
}

#[test]
fn what_is_not_imported_is_closed() {
    let mut fixture = Fixture::with_context();
    let limit = fixture.guest.capset.limits.max_context_blobs;
    fixture.guest.contexts.get_mut(&1).unwrap().objects = limit;
    let (memory, file) = memory();
    fixture.guest.lend_object(OBJECT, memory).unwrap();
    let refused = fixture.ask(1, import(5, OBJECT)).status;
    assert_eq!(refused, Status::TooManyObjects);
    assert_eq!(open_count(&file), 2);
    fixture.guest.return_object();
    assert_eq!(open_count(&file), 1);
}

#[test]
fn what_cannot_be_imported_says_why() {
    let mut fixture = Fixture::with_context();
    let socket = std::os::unix::net::UnixStream::pair().unwrap().0;
    let unsealed = rustix::fs::memfd_create("object", rustix::fs::MemfdFlags::ALLOW_SEALING);
    for (descriptor, expected) in [
        (OwnedFd::from(socket), NotImportable::Kind),
        (unsealed.unwrap(), NotImportable::CanShrink),
    ] {
        let lent = fixture.guest.lend_object(OBJECT, descriptor);
        assert_eq!(lent, Err(expected));
        let status = fixture.ask(1, import(5, OBJECT)).status;
        assert_eq!(status, Status::Unsupported);
    }
    fixture.guest.return_object();
    let status = fixture.ask(1, import(5, OBJECT)).status;
    assert_eq!(status, Status::UnknownUuid);
}
