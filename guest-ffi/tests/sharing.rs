//! Memory that contexts of a guest share.

#![allow(clippy::unwrap_used, reason = "a test states what it expects")]

mod fake;

use std::os::fd::AsFd;

use fake::{Fake, Script};
use hostblob_guest::protocol::request::request_bit;
use hostblob_guest::{AllocateInfo, Error, Request, Status};

#[test]
fn what_one_handle_shares_another_imports_and_uses() {
    let script = Script::default();
    let fake = Fake::start(script.clone());
    let device = fake.open();
    let info = AllocateInfo::new(8192).shareable();
    let shared = device.allocate(&info).unwrap();
    let uuid = shared.share().unwrap();
    assert_eq!(uuid, fake::uuid_of(shared.client_id()));

    let imported = device.import(uuid).unwrap();
    assert_eq!((imported.size(), imported.memory_type()), (8192, Some(1)));
    assert_ne!(imported.client_id(), shared.client_id());
    device
        .fill(&imported, 0, 8, 0x0403_0201)
        .unwrap()
        .wait(None)
        .unwrap();
    let mut bytes = [0; 8];
    shared.read(0, &mut bytes).unwrap();
    assert_eq!(bytes, [1, 2, 3, 4, 1, 2, 3, 4]);
    // Mapping gives it a blob of its own; the bytes are the same.
    imported.write(4096, b"through the import").unwrap();
    let mut bytes = [0; 18];
    shared.read(4096, &mut bytes).unwrap();
    assert_eq!(&bytes, b"through the import");
    assert_eq!(imported.share().unwrap().len(), 16, "and on");

    let name = imported.client_id();
    drop(imported);
    device.budget(0).unwrap();
    let asked = script.asked();
    let of_name = |wanted: fn(&Request) -> Option<u64>| {
        let names = asked.iter().filter_map(|(_, request)| wanted(request));
        names.filter(|&id| id == name).count()
    };
    let bound = |request: &Request| match request {
        Request::BindClientId(bind) => Some(bind.client_id),
        _ => None,
    };
    let freed = |request: &Request| match request {
        Request::Free(free) => Some(free.client_id),
        _ => None,
    };
    assert_eq!((of_name(bound), of_name(freed)), (1, 1));
}

#[test]
fn what_cannot_be_shared_or_imported_says_why() {
    let fake = Fake::start(Script::default());
    let device = fake.open();
    let status = |error: Error| error.status().unwrap();
    let piece = device.allocate(&AllocateInfo::new(4096)).unwrap();
    assert!(piece.is_suballocated());
    assert_eq!(status(piece.share().unwrap_err()), Status::NotShareable);
    let own = device
        .allocate(&AllocateInfo::new(4096).dedicated())
        .unwrap();
    assert_eq!(status(own.share().unwrap_err()), Status::NotShareable);
    assert_eq!(
        status(device.import([9; 16]).unwrap_err()),
        Status::UnknownUuid
    );
    let guest = device.allocate_guest(4096).unwrap_err();
    assert!(guest.to_string().contains("socket"), "{guest}");
    assert_eq!(status(guest), Status::Unsupported);
    assert_eq!(
        status(device.allocate_guest(0).unwrap_err()),
        Status::InvalidArgument
    );
    let file = std::fs::File::open("/dev/null").unwrap();
    let import = device.import_dma_buf(file.as_fd()).unwrap_err();
    assert_eq!(status(import), Status::Unsupported);

    // A host of version 1.0 is not asked.
    let mut script = Script::default();
    script.offer.requests &= !(request_bit::SHARE | request_bit::IMPORT);
    let log = script.log.clone();
    let fake = Fake::start(script);
    let device = fake.open();
    let own = device
        .allocate(&AllocateInfo::new(4096).shareable())
        .unwrap();
    let before = log.lock().unwrap().len();
    assert_eq!(status(own.share().unwrap_err()), Status::Unsupported);
    assert_eq!(
        status(device.import([1; 16]).unwrap_err()),
        Status::Unsupported
    );
    assert_eq!(log.lock().unwrap().len(), before);
}
