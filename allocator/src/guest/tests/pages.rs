//! The guest's own pages: how many pieces of them there may be, and until when they count.

use std::os::fd::AsFd;

use hostblob_protocol::request::ImportResource;

use super::exports::exporting;
use super::*;
use crate::exports::Exports;
use crate::guest::MAX_GUEST_PIECES;
use crate::provider::Piece;
use crate::provider::fake::Seen;

const CLIENT: u64 = 7;
const RESOURCE: u32 = 70;
/// Of the blob: as many pieces.
const PAGES: u64 = 32;

/// Every second page of a file: nothing can be joined.
fn scattered() -> Vec<Piece> {
    let file = crate::provider::sealed_memfd("guest", 2 * PAGES * PAGE).unwrap();
    let file = Arc::new(std::fs::File::from(file));
    let piece = |number| Piece {
        file: Arc::clone(&file),
        offset: 2 * number * PAGE,
        length: PAGE,
    };
    (0..PAGES).map(piece).collect()
}

/// A blob of such pages, which context 1 calls [`CLIENT`].
fn with_pages(mut fixture: Fixture) -> Fixture {
    let spec = BlobSpec {
        resource_id: RESOURCE,
        blob_mem: blob_mem::GUEST,
        blob_flags: blob_flag::USE_SHAREABLE,
        blob_id: 0,
        size: PAGES * PAGE,
    };
    let guest = &mut fixture.guest;
    guest.create_blob(0, &spec, Some(scattered())).unwrap();
    guest.attach_resource(1, RESOURCE).unwrap();
    let import = ImportResource {
        client_id: CLIENT,
        resource_id: RESOURCE,
    };
    assert_eq!(fixture.ask(1, import).status, Status::Ok);
    fixture
}

fn fill() -> Fill {
    Fill {
        range: range(CLIENT, 0, PAGE),
        value: 1,
    }
}

/// Each piece is a mapping of the process with the driver, and there are so many of those.
#[test]
fn pieces_count_until_the_gpu_has_let_go_of_them() {
    let mut fixture = with_pages(Fixture::with_context());
    fixture.fake.hold();
    let most = MAX_GUEST_PIECES as u64 / PAGES;
    for attached in 1..=most {
        fixture.send(1, fill());
        fixture.guest.detach_backing(RESOURCE).unwrap();
        let next = fixture.guest.attach_backing(RESOURCE, scattered());
        match next {
            Ok(()) => assert!(attached < most),
            Err(error) => assert!(
                attached == most && matches!(error, Error::Fragmented { .. }),
                "{attached}: {error}"
            ),
        }
    }
    fixture.fake.release_all();
    fixture.guest.process_completions();
    fixture.guest.attach_backing(RESOURCE, scattered()).unwrap();
}

/// A VMM that moves the guest's memory takes nothing from it.
#[test]
fn pages_are_moved_where_there_is_no_room_for_more() {
    let mut fixture = with_pages(Fixture::with_context());
    fixture
        .guest
        .pieces
        .store(MAX_GUEST_PIECES, Ordering::Relaxed);
    fixture
        .guest
        .replace_backing(RESOURCE, Some(scattered()))
        .unwrap();
    assert!(fixture.guest.guest_pieces(RESOURCE).is_some());
}

#[test]
fn a_failure_that_comes_late_is_not_that_of_the_next_pages() {
    let mut fixture = with_pages(Fixture::with_context());
    fixture.fake.hold();
    fixture
        .fake
        .refuse_next(ProviderError::OutOfHostMemory("no mapping".to_owned()));
    fixture.send(1, fill());
    fixture.guest.detach_backing(RESOURCE).unwrap();
    fixture.guest.attach_backing(RESOURCE, scattered()).unwrap();
    fixture.send(1, fill());
    fixture.fake.release_all();
    fixture.guest.process_completions();
    assert_eq!(fixture.ask(1, fill()).status, Status::Ok);
    fixture.guest.detach_backing(RESOURCE).unwrap();
    fixture.guest.process_completions();
    let of = |wanted: fn(&Seen) -> bool| fixture.fake.count_of(wanted);
    assert_eq!(of(|seen| matches!(seen, Seen::AddPieces { .. })), 2);
    assert_eq!(of(|seen| matches!(seen, Seen::RemoveFile { .. })), 2);
}

#[test]
fn another_device_that_asks_gets_the_pages_of_now() {
    let mut fixture = exporting(Exports::new());
    fixture.open(1, RING, RING_OFFSET);
    let mut fixture = with_pages(fixture);
    let uuid = fixture.guest.assign_uuid(RESOURCE).unwrap();
    let inode = |fixture: &mut Fixture| {
        let object = fixture.guest.shared_object(uuid).unwrap();
        rustix::fs::fstat(object.as_fd()).unwrap().st_ino
    };
    let before = inode(&mut fixture);
    assert_eq!(inode(&mut fixture), before);
    fixture.guest.detach_backing(RESOURCE).unwrap();
    fixture.guest.attach_backing(RESOURCE, scattered()).unwrap();
    assert_ne!(inode(&mut fixture), before);
}
