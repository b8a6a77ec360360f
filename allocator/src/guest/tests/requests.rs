//! Requests that change no byte: what they refuse, and that a refusal is an answer as any other.

use hostblob_protocol::request::{Flush, Invalidate, Unmap};

use super::*;

const CLIENT: u64 = 1;
const UNKNOWN: u64 = 2;
const SIZE: u64 = 2 * PAGE;

/// `vkFlushMappedMemoryRanges`: multiples of `nonCoherentAtomSize`. What `VK_WHOLE_SIZE` stands for, the guest's library has worked out.
#[test]
fn ranges_to_flush_are_those_of_the_vulkan_specification() {
    const ATOM: u64 = 64;
    let mut fixture = Fixture::with_context();
    fixture.guest.capset.non_coherent_atom_size = 64;
    fixture.allocate(1, CLIENT, 1, 0, SIZE / PAGE);
    const MAX: u64 = u64::MAX;
    for (client, offset, length, expected) in [
        (CLIENT, 0, SIZE, Status::Ok),
        (CLIENT, SIZE - ATOM, ATOM, Status::Ok),
        (CLIENT, ATOM, ATOM, Status::Ok),
        (CLIENT, 1, ATOM, Status::InvalidArgument),
        (CLIENT, 0, ATOM - 1, Status::InvalidArgument),
        (CLIENT, SIZE - 1, 1, Status::InvalidArgument),
        (CLIENT, 0, 0, Status::OutOfRange),
        (CLIENT, SIZE - ATOM, 2 * ATOM, Status::OutOfRange),
        (CLIENT, ATOM, MAX, Status::OutOfRange),
        (CLIENT, MAX - ATOM + 1, 2 * ATOM, Status::OutOfRange),
        (UNKNOWN, 0, ATOM, Status::UnknownClientId),
    ] {
        let range = range(client, offset, length);
        let flushed = fixture.ask(1, Flush { range }).status;
        let invalidated = fixture.ask(1, Invalidate { range }).status;
        assert_eq!(
            (flushed, invalidated),
            (expected, expected),
            "{client}: {length} bytes from {offset}"
        );
    }
}

/// The blob's own commands map and unmap: these ask whether they may.
#[test]
fn map_and_unmap_name_a_memory_that_can_be_mapped() {
    let mut fixture = Fixture::with_context();
    let private = CreateFlags::empty();
    assert_eq!(fixture.create(1, CLIENT, 1, private), Status::Ok);
    let map = |client_id, access| Map {
        client_id,
        expected_cache: CacheMode::Any,
        access,
    };
    let refused = fixture.ask(1, map(CLIENT, Access::all())).status;
    assert_eq!(refused, Status::NotMappable);
    let bound = fixture.ask(1, BindClientId { client_id: CLIENT }).status;
    assert_eq!(bound, Status::NotMappable);
    fixture.allocate(1, 3, 1, 0, 1);
    let refused = fixture.ask(1, map(3, Access::empty())).status;
    assert_eq!(refused, Status::InvalidArgument);
    for (client_id, expected) in [(3, Status::Ok), (UNKNOWN, Status::UnknownClientId)] {
        assert_eq!(fixture.ask(1, Unmap { client_id }).status, expected);
    }
    fixture.write(0, 1, 7);
    assert!(fixture.all(0, 1, 7), "it is mapped as before");
}

/// A flag that the guest's library does not know of is none of its wishes.
#[test]
fn flags_that_were_not_agreed_on_are_refused() {
    let mut fixture = Fixture::new();
    fixture.guest.create_context(1, "old").unwrap();
    fixture.plain(1, RING, PAGE).unwrap();
    fixture.guest.map_blob(RING, RING_OFFSET).unwrap();
    let offer = Offer::EVERYTHING;
    let agreed = fixture.ask(
        1,
        OpenAnswers {
            resource_id: RING,
            major: offer.major,
            minor: offer.minor,
            requests: offer.requests,
            create_flags: CreateFlags::HOST_VISIBLE,
        },
    );
    assert_eq!(agreed.status, Status::Ok);
    let one = |flags| create(CLIENT, PAGE, flags);
    assert_eq!(fixture.ask(1, one(DIRECT)).status, Status::Unsupported);
    let used = fixture.used(1);
    assert_eq!(
        fixture.ask(1, one(CreateFlags::HOST_VISIBLE)).status,
        Status::Ok
    );
    assert_eq!(fixture.used(1), used + 1, "what was refused is not charged");
}
