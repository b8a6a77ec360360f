//! Device memory that the guest maps, where blobs are mapped one by one.

use hostblob_capset::WindowMode;

use super::*;
use crate::provider::fake::Seen;
use crate::provider::system::SystemProvider;
use crate::provider::{Elsewhere, ExportKind};

/// Of the fake: a device type, one in the window, and the exported one.
const EXPORTED: u32 = 2;
const CLIENT: u64 = 7;
const RESOURCE: u32 = 70;

/// A guest of a VMM that maps blobs one by one: in this process, or from files.
fn fixture(kind: ExportKind, here: bool) -> Fixture {
    let fake = FakeProvider::over(SystemProvider::exporting(None, kind));
    let mut fixture = Fixture::over(fake, |provider, config| {
        Host::new(provider, config).unwrap()
    });
    let host = Arc::clone(&fixture.guest.host);
    let waker: Waker = Arc::new(|| {});
    fixture.guest = match here {
        true => host.guest_here(waker).unwrap(),
        false => host.guest_with_mode(WindowMode::OnDemand, waker).unwrap(),
    };
    fixture.open(1, RING, RING_OFFSET);
    fixture
}

fn of_device(client_id: u64, pages: u64) -> Create {
    Create {
        memory: MemorySelector::Index(EXPORTED),
        ..create(client_id, pages * PAGE, DIRECT)
    }
}

/// A mapped memory of the exported type, of 2 pages at page 8.
fn mapped(fixture: &mut Fixture) -> Mapping {
    assert_eq!(fixture.ask(1, of_device(CLIENT, 2)).status, Status::Ok);
    fixture.blob(1, RESOURCE, CLIENT, 2 * PAGE).unwrap();
    fixture.guest.map_blob(RESOURCE, 8 * PAGE).unwrap();
    fixture.guest.mapping(RESOURCE).unwrap()
}

fn exports(fixture: &Fixture) -> usize {
    let is_export = |seen: &Seen| matches!(seen, Seen::Export { .. });
    fixture.fake.count_of(is_export)
}

fn word(mapping: &Mapping, offset: u64) -> u32 {
    use std::os::unix::fs::FileExt;
    let mut bytes = [0; 4];
    let elsewhere = mapping.elsewhere.as_ref().unwrap();
    let file = elsewhere.file().unwrap();
    file.read_exact_at(&mut bytes, offset).unwrap();
    u32::from_le_bytes(bytes)
}

#[test]
fn guests_are_told_what_their_vmm_can_map() {
    for (kind, here, types) in [
        (ExportKind::File, false, 3),
        (ExportKind::File, true, 3),
        (ExportKind::Address, false, 2),
        (ExportKind::Address, true, 3),
    ] {
        let mut fixture = fixture(kind, here);
        assert_eq!(fixture.guest.capset().types.len(), types, "{kind:?} {here}");
        assert_eq!(
            fixture.guest.host.capset().types.len(),
            2,
            "in a whole window"
        );
        let status = fixture.ask(1, of_device(CLIENT, 1)).status;
        let expected = if types == 3 {
            Status::Ok
        } else {
            Status::InvalidMemoryType
        };
        assert_eq!(status, expected, "{kind:?} {here}");
    }
}

#[test]
fn a_whole_window_has_none() {
    let fake = FakeProvider::over(SystemProvider::exporting(None, ExportKind::File));
    let mut fixture = Fixture::over(fake, |provider, config| {
        Host::new(provider, config).unwrap()
    });
    fixture.open(1, RING, RING_OFFSET);
    assert_eq!(
        fixture.ask(1, of_device(CLIENT, 1)).status,
        Status::InvalidMemoryType
    );
}

#[test]
fn device_memory_is_mapped_from_its_own_file() {
    let mut fixture = fixture(ExportKind::File, false);
    let mapping = mapped(&mut fixture);
    assert_eq!(
        (mapping.span.start(), mapping.span.len()),
        (8 * PAGE, 2 * PAGE)
    );
    assert_eq!(word(&mapping, PAGE), 0);
    let fill = Fill {
        range: range(CLIENT, PAGE, PAGE),
        value: 9,
    };
    assert_eq!(fixture.ask(1, fill).status, Status::Ok);
    assert_eq!((word(&mapping, 0), word(&mapping, PAGE)), (0, 9));
    assert!(fixture.all(8, 2, 0), "the window has nothing of it");

    // Nobody else gets the place, and copies go both ways.
    fixture.plain(1, 2, PAGE).unwrap();
    let taken = fixture.guest.map_blob(2, 9 * PAGE).unwrap_err();
    assert!(matches!(taken, Error::Occupied { .. }), "{taken}");
    fixture.allocate(1, 8, 80, 20, 1);
    let copy = Copy {
        source: range(CLIENT, PAGE, PAGE),
        destination_client_id: 8,
        destination_offset: 0,
    };
    assert_eq!(fixture.ask(1, copy).status, Status::Ok);
    assert!(fixture.all(20, 1, 0x9_0000_0009));

    // Unmapped and mapped elsewhere it is the same memory, which is exported once.
    fixture.guest.unmap_blob(RESOURCE).unwrap();
    assert_eq!(fixture.guest.mapping(RESOURCE), None);
    fixture.guest.map_blob(2, 9 * PAGE).unwrap();
    fixture.guest.map_blob(RESOURCE, 0).unwrap();
    let again = fixture.guest.mapping(RESOURCE).unwrap();
    assert_eq!(again.elsewhere, mapping.elsewhere);
    assert_eq!(exports(&fixture), 1);
    fixture.guest.unref(RESOURCE).unwrap();
    fixture.plain(1, 3, PAGE).unwrap();
    fixture.guest.map_blob(3, 0).unwrap();
    assert_eq!(word(&mapping, PAGE), 9, "who has it mapped keeps it");
}

#[test]
fn a_vmm_in_this_process_maps_an_address() {
    let mut fixture = fixture(ExportKind::Address, true);
    let mapping = mapped(&mut fixture);
    match mapping.elsewhere {
        Some(Elsewhere::Address(address)) => assert_eq!(address.length(), 2 * PAGE),
        other => panic!("{other:?}"),
    }
}

#[test]
fn memory_that_could_not_be_had_or_exported_is_not_mapped() {
    let mut fixture = fixture(ExportKind::File, false);
    let full = || ProviderError::OutOfDeviceMemory("full".to_owned());
    fixture.fake.refuse_next(full());
    assert_eq!(
        fixture.ask(1, of_device(CLIENT, 2)).status,
        Status::OutOfDeviceMemory
    );
    let refused = fixture.blob(1, RESOURCE, CLIENT, 2 * PAGE).unwrap_err();
    assert!(matches!(refused, Error::UnknownClientId(_)), "{refused}");
    // Its blob may be there before the driver says so.
    let used = fixture.used(1);
    fixture.fake.refuse_next(full());
    fixture.send(1, of_device(CLIENT, 2));
    fixture.blob(1, RESOURCE, CLIENT, 2 * PAGE).unwrap();
    let refused = fixture.guest.map_blob(RESOURCE, 0).unwrap_err();
    assert!(matches!(refused, Error::NotMappable(_)), "{refused}");
    fixture.guest.unref(RESOURCE).unwrap();
    assert_eq!(fixture.used(1), used);

    assert_eq!(fixture.ask(1, of_device(CLIENT + 1, 2)).status, Status::Ok);
    fixture.blob(1, RESOURCE, CLIENT + 1, 2 * PAGE).unwrap();
    fixture
        .fake
        .refuse_next(ProviderError::Driver("no".to_owned()));
    let refused = fixture.guest.map_blob(RESOURCE, 0).unwrap_err();
    assert!(matches!(refused, Error::NotMappable(_)), "{refused}");
    assert_eq!(fixture.guest.mapping(RESOURCE), None);
    // The next one is served, and the place is free.
    fixture.guest.map_blob(RESOURCE, 0).unwrap();
}

/// Each answer has a descriptor, and a guest can ask while the GPU is busy.
#[test]
fn an_export_is_asked_for_once_however_often_somebody_tries() {
    let mut fixture = fixture(ExportKind::File, false);
    fixture.fake.hold();
    fixture.send(1, of_device(CLIENT, 2));
    fixture.blob(1, RESOURCE, CLIENT, 2 * PAGE).unwrap();
    // What the first of them would wait for.
    fixture.guest.given_up = Some(fixture.guest.work.submitted());
    for _ in 0..10 {
        let refused = fixture.guest.map_blob(RESOURCE, 0).unwrap_err();
        assert!(matches!(refused, Error::GpuTimeout(_)), "{refused}");
    }
    assert_eq!(exports(&fixture), 1);
    fixture.fake.release_all();
    fixture.guest.process_completions();
    fixture.guest.map_blob(RESOURCE, 0).unwrap();
    assert_eq!(exports(&fixture), 1);
}

/// Memory has old bytes until it is zeroed: nobody may see it where that failed.
#[test]
fn memory_that_was_not_zeroed_is_not_exposed() {
    let mut fixture = fixture(ExportKind::File, false);
    fixture.fake.hold();
    let lost = ProviderError::Driver("not submitted".to_owned());
    fixture.fake.refuse_next(lost);
    fixture.send(1, of_device(CLIENT, 2));
    fixture.blob(1, RESOURCE, CLIENT, 2 * PAGE).unwrap();
    let key = fixture.guest.contexts[&1].names[&CLIENT];
    let attachment = fixture.guest.memories[&key].attachment.unwrap();
    let bytes = Elsewhere::File(Arc::new(std::fs::File::open("/dev/zero").unwrap()));
    fixture.fake.release_all();
    fixture
        .guest
        .wait_for(fixture.guest.work.submitted())
        .unwrap();
    // The provider's answer to an export that was under way.
    fixture.guest.exposed(key, attachment, bytes);
    assert!(fixture.guest.map_blob(RESOURCE, 0).is_err());
}

#[test]
fn it_is_charged_and_given_back() {
    let mut fixture = fixture(ExportKind::File, false);
    let before = fixture.guest.host.used();
    mapped(&mut fixture);
    assert_eq!(fixture.guest.host.used(), before + 2 * PAGE);
    fixture.guest.unref(RESOURCE).unwrap();
    fixture
        .guest
        .wait_for(fixture.guest.work.submitted())
        .unwrap();
    assert_eq!(fixture.guest.host.used(), before);
    mapped(&mut fixture);
    fixture.guest.reset();
    fixture
        .guest
        .wait_for(fixture.guest.work.submitted())
        .unwrap();
    assert_eq!(fixture.guest.host.used(), 0);
    assert!(fixture.guest.memories.is_empty());
}

#[test]
fn it_is_not_saved() {
    let mut fixture = fixture(ExportKind::File, false);
    mapped(&mut fixture);
    let refused = fixture.guest.save(&mut Vec::new()).unwrap_err();
    let text = refused.to_string();
    assert!(text.contains("as 0x7: free it first"), "{text}");
    fixture.guest.unref(RESOURCE).unwrap();
    fixture.guest.save(&mut Vec::new()).unwrap();
}
