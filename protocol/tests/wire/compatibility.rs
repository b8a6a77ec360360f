//! Peers of other versions.

use hostblob_protocol::request::{CreateFlags, DEBUG_NAME, REQUIRED};
use hostblob_protocol::{
    DecodeError, Envelope, EnvelopeBuilder, Request, Status, VERSION_MAJOR, VERSION_MINOR,
};

use crate::golden::concat;
use crate::layout::request_structure;
use crate::values::samples;

/// A structure type that no version has yet.
const UNKNOWN: u16 = 0x0777;

fn payload(request: &Request) -> Vec<u8> {
    let rows = request_structure(request);
    let used = rows.len() - usize::from(rows.last().unwrap().note == "padding");
    concat(&rows[3..used])
}

#[test]
fn an_unknown_optional_structure_is_skipped_wherever_it_stands() {
    let requests = samples();
    for length in 0..=17 {
        for position in 0..=requests.len() {
            let mut builder = EnvelopeBuilder::new(1);
            for (index, &request) in requests.iter().enumerate() {
                if index == position {
                    builder = builder.structure(UNKNOWN, 3, &vec![0xa5; length]);
                }
                builder = builder.request(request);
            }
            if position == requests.len() {
                builder = builder.structure(UNKNOWN, 3, &vec![0xa5; length]);
            }
            let envelope = Envelope::decode(&builder.build()).unwrap();
            assert_eq!(envelope.requests, requests, "{length} bytes at {position}");
            assert_eq!(envelope.debug_name, None);
        }
    }
}

#[test]
fn a_known_optional_structure_of_another_version_is_skipped() {
    for version in [0, 2, u16::MAX] {
        let request = samples()[1];
        let bytes = EnvelopeBuilder::new(1)
            .structure(DEBUG_NAME, version, &[0xff; 3])
            .request(request)
            .debug_name("kept")
            .structure(DEBUG_NAME, version, &[0xff; 3])
            .build();
        let envelope = Envelope::decode(&bytes).unwrap();
        assert_eq!(envelope.requests, [request]);
        assert_eq!(envelope.debug_name.unwrap().name, "kept");
    }
}

#[test]
fn an_unknown_required_structure_is_refused_wherever_it_stands() {
    let request = samples()[1];
    let first = EnvelopeBuilder::new(1)
        .structure(REQUIRED | UNKNOWN, 1, &[])
        .request(request);
    let last = EnvelopeBuilder::new(1)
        .request(request)
        .structure(REQUIRED | UNKNOWN, 1, &[]);
    for builder in [first, last] {
        let error = Envelope::decode(&builder.build()).unwrap_err();
        assert_eq!(error, DecodeError::UnknownRequired(REQUIRED | UNKNOWN));
        assert_eq!(error.status(), Status::Unsupported);
    }
    // The name's number with the top bit is another structure, not the name.
    let request_zero = EnvelopeBuilder::new(1).structure(REQUIRED, 1, &[]).build();
    assert_eq!(
        Envelope::decode(&request_zero),
        Err(DecodeError::UnknownRequired(REQUIRED))
    );
}

#[test]
fn the_same_number_without_the_top_bit_is_another_structure() {
    let optional_create = EnvelopeBuilder::new(1)
        .structure(2, 1, &payload(&samples()[1]))
        .build();
    assert_eq!(Envelope::decode(&optional_create).unwrap().requests, []);
}

#[test]
fn a_request_of_another_version_is_refused() {
    for request in samples() {
        for version in [0, 2, u16::MAX] {
            let kind = request.structure_type();
            let bytes = EnvelopeBuilder::new(1)
                .structure(kind, version, &payload(&request))
                .build();
            let error = Envelope::decode(&bytes).unwrap_err();
            assert_eq!(error, DecodeError::UnknownVersion(kind, version));
            assert_eq!(error.status(), Status::UnsupportedVersion);
        }
    }
}

#[test]
fn a_newer_minor_version_is_read_and_another_major_refused() {
    let request = samples()[1];
    let with_version = |major: u16, minor: u16| {
        let mut bytes = EnvelopeBuilder::new(5).request(request).build();
        bytes[4..6].copy_from_slice(&major.to_le_bytes());
        bytes[6..8].copy_from_slice(&minor.to_le_bytes());
        bytes
    };
    assert_eq!(
        with_version(VERSION_MAJOR, VERSION_MINOR),
        EnvelopeBuilder::new(5).request(request).build()
    );
    for minor in [VERSION_MINOR + 1, u16::MAX] {
        assert_eq!(
            Envelope::decode(&with_version(VERSION_MAJOR, minor))
                .unwrap()
                .requests,
            [request]
        );
    }
    for major in [0, VERSION_MAJOR + 1, u16::MAX] {
        let bytes = with_version(major, 4);
        let error = Envelope::decode(&bytes).unwrap_err();
        assert_eq!(error, DecodeError::MajorVersion(major, 4));
        assert_eq!(error.status(), Status::UnsupportedVersion);
        assert_eq!(
            Envelope::peek_sequence(&bytes),
            Some(5),
            "the asker is told"
        );
    }
}

/// A flag or enumerator that version 1 of a structure does not have comes with a new version, never in this one.
#[test]
fn unknown_flags_and_enumerators_are_refused() {
    let refused = |request: &Request, at: usize, value: u32| {
        let mut payload = payload(request);
        payload[at..at + 4].copy_from_slice(&value.to_le_bytes());
        let bytes = EnvelopeBuilder::new(1)
            .structure(request.structure_type(), 1, &payload)
            .build();
        let error = Envelope::decode(&bytes).unwrap_err();
        assert!(
            matches!(error, DecodeError::Payload { .. }),
            "{request:?}: {error:?}"
        );
        assert_eq!(error.status(), Status::Malformed);
    };
    let requests = samples();
    let (open, create, map) = (&requests[0], &requests[1], &requests[3]);
    let unknown_flag = CreateFlags::all().bits() + 1;
    for (request, at, least) in [
        (open, 16, unknown_flag),
        (create, 24, unknown_flag),
        (map, 12, 4),
        (create, 16, 2),
        (create, 36, 4),
        (map, 8, 4),
    ] {
        refused(request, at, least);
        refused(request, at, u32::MAX);
    }
}

#[test]
fn the_order_of_requests_is_kept() {
    let mut requests = samples();
    requests.reverse();
    requests.extend(samples());
    let bytes = requests
        .iter()
        .fold(EnvelopeBuilder::new(1), |builder, &r| builder.request(r))
        .build();
    assert_eq!(Envelope::decode(&bytes).unwrap().requests, requests);
}

#[test]
fn sets_of_requests_have_a_bit_for_each_number() {
    let mut all = 0;
    for request in samples() {
        assert_eq!(request.bit(), 1 << (request.structure_type() & !REQUIRED));
        all |= request.bit();
    }
    assert_eq!(all, Request::ALL);
}
