//! Whatever the bytes, a value or an error; whatever the value, its bytes and the value again.

use hostblob_protocol::envelope::{
    ENVELOPE_HEADER_SIZE, MAX_LENGTH, MAX_STRUCTURES, STRUCTURE_HEADER_SIZE,
};
use hostblob_protocol::request::{DEBUG_NAME, Free, Import, MAX_DEBUG_NAME, REQUIRED};
use hostblob_protocol::{
    DecodeError, Envelope, EnvelopeBuilder, Request, Status, VERSION_MAJOR, VERSION_MINOR,
};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use crate::golden::concat;
use crate::layout::{envelope, name_structure, request_structure};
use crate::values::{request, samples};

fn build(sequence: u64, name: Option<&str>, requests: &[Request]) -> Vec<u8> {
    let mut builder = EnvelopeBuilder::new(sequence);
    if let Some(name) = name {
        builder = builder.debug_name(name);
    }
    requests
        .iter()
        .fold(builder, |builder, &request| builder.request(request))
        .build()
}

/// The UUIDs that the requests name.
fn imports(envelope: &Envelope) -> Vec<[u8; 16]> {
    let mut uuids = Vec::new();
    for request in &envelope.requests {
        if let Request::Import(import) = request {
            uuids.push(import.uuid);
        }
    }
    uuids
}

/// Decodes, and checks what must hold of any outcome.
fn decode(bytes: &[u8]) -> Result<Envelope, DecodeError> {
    let decoded = Envelope::decode(bytes);
    let imports = decoded.as_ref().map_or(Vec::new(), imports);
    assert_eq!(Envelope::imports(bytes), imports);
    match &decoded {
        Ok(envelope) => {
            assert_eq!(Envelope::peek_sequence(bytes), Some(envelope.sequence));
            assert!(envelope.requests.len() <= MAX_STRUCTURES);
            if let Some(name) = &envelope.debug_name {
                assert!(name.name.len() <= MAX_DEBUG_NAME);
            }
            // The value survives a round trip, though optional structures that are unknown here do not.
            let name = envelope.debug_name.as_ref().map(|name| name.name.as_str());
            let again = build(envelope.sequence, name, &envelope.requests);
            assert!(again.len() <= bytes.len());
            assert_eq!(Envelope::decode(&again).as_ref(), Ok(envelope));
        }
        Err(error) => {
            assert_ne!(error.status(), Status::Ok);
            assert!(
                error.to_string().len() < 300,
                "an error quotes its input: {error}"
            );
        }
    }
    decoded
}

/// The length word of an envelope made true, so that a mutation gets past the header.
fn with_true_length(mut bytes: Vec<u8>) -> Vec<u8> {
    let length = (bytes.len() as u32).to_le_bytes();
    if let Some(word) = bytes.get_mut(8..12) {
        word.copy_from_slice(&length);
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes(bytes in vec(any::<u8>(), 0..MAX_LENGTH + 100)) {
        let _ = decode(&bytes);
        let mut framed = EnvelopeBuilder::new(1).build();
        framed.extend_from_slice(&bytes);
        let _ = decode(&with_true_length(framed));
    }

    /// Random chains of plausible headers reach deeper than random bytes do.
    #[test]
    fn any_payloads(structures in vec(
        (select(vec![DEBUG_NAME, 2, REQUIRED | 99].into_iter().chain(Request::TYPES.iter().copied()).collect::<Vec<u16>>()), 0..3_u16, vec(any::<u8>(), 0..80)),
        0..10,
    )) {
        let builder = structures.iter().fold(EnvelopeBuilder::new(1), |builder, (kind, version, payload)| {
            builder.structure(*kind, *version, payload)
        });
        let _ = decode(&builder.build());
    }

    #[test]
    fn mutations(
        requests in vec(request(), 0..5),
        name in proptest::option::of(".{0,20}"),
        flips in vec((any::<Index>(), 1..=255_u8), 1..4),
        extension in vec(any::<u8>(), 0..40),
    ) {
        let mut bytes = build(7, name.as_deref(), &requests);
        for (index, mask) in &flips {
            let at = index.index(bytes.len());
            bytes[at] ^= mask;
        }
        let _ = decode(&bytes);
        bytes.extend_from_slice(&extension);
        let _ = decode(&bytes);
        let _ = decode(&with_true_length(bytes));
    }

    #[test]
    fn truncations_at_every_length(requests in vec(request(), 0..4), name in proptest::option::of(".{0,20}")) {
        let bytes = build(7, name.as_deref(), &requests);
        for length in 0..bytes.len() {
            prop_assert!(decode(&bytes[..length]).is_err(), "{length} of {}", bytes.len());
            let _ = decode(&with_true_length(bytes[..length].to_vec()));
        }
    }

    /// Each request is encoded as the document says, and decodes to what it was.
    #[test]
    fn values_and_bytes(sequence in any::<u64>(), requests in vec(request(), 0..=63), name in "\\PC{0,16}") {
        let bytes = build(sequence, Some(&name), &requests);
        let structures: Vec<_> = std::iter::once(name_structure(&name))
            .chain(requests.iter().map(request_structure))
            .collect();
        prop_assert_eq!(&bytes, &concat(&envelope((VERSION_MAJOR, VERSION_MINOR), sequence, &structures)));
        prop_assert_eq!(bytes.len() % 8, 0);
        let decoded = Envelope::decode(&bytes);
        if bytes.len() > MAX_LENGTH {
            prop_assert_eq!(decoded, Err(DecodeError::TooLong(bytes.len())));
        } else {
            let decoded = decoded.unwrap();
            prop_assert_eq!(decoded.sequence, sequence);
            prop_assert_eq!(decoded.requests, requests);
            prop_assert_eq!(decoded.debug_name.unwrap().name, name);
        }
    }

    #[test]
    fn names_are_cut_at_a_character(name in "\\PC{0,80}") {
        let decoded = decode(&build(1, Some(&name), &[])).unwrap().debug_name.unwrap().name;
        prop_assert!(name.starts_with(&decoded));
        let next = name[decoded.len()..].chars().next();
        prop_assert!(next.is_none_or(|next| decoded.len() + next.len_utf8() > MAX_DEBUG_NAME));
    }

    /// What a payload holds beyond its fields, or lacks of them, is an error, not a guess.
    #[test]
    fn payloads_of_another_length(request in request(), change in prop_oneof![-20..0_i32, 1..20_i32]) {
        let rows = request_structure(&request);
        let mut payload = concat(&rows[3..rows.len() - usize::from(rows.last().unwrap().note == "padding")]);
        let length = i32::try_from(payload.len()).unwrap().saturating_add(change).max(0);
        payload.resize(usize::try_from(length).unwrap(), 0);
        let bytes = EnvelopeBuilder::new(1).structure(request.structure_type(), 1, &payload).build();
        let error = decode(&bytes).unwrap_err();
        prop_assert!(matches!(error, DecodeError::Payload { .. }), "{error:?}");
        prop_assert_eq!(error.status(), Status::Malformed);
    }
}

#[test]
fn every_single_flipped_bit() {
    let bytes = build(7, Some("name"), &samples());
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let _ = decode(&flipped);
    }
}

/// Lengths that are announced but not there: each is an error before anything is allocated for it.
#[test]
fn announced_lengths_are_not_believed() {
    for announced in [
        65_u64,
        4096,
        4097,
        1 << 20,
        u64::from(u32::MAX),
        1 << 63,
        u64::MAX,
    ] {
        let mut payload = announced.to_le_bytes().to_vec();
        payload.extend_from_slice(b"short");
        let bytes = EnvelopeBuilder::new(1)
            .structure(DEBUG_NAME, 1, &payload)
            .build();
        let error = decode(&bytes).unwrap_err();
        assert!(
            matches!(
                error,
                DecodeError::Payload {
                    structure_type: DEBUG_NAME,
                    ..
                }
            ),
            "{announced}: {error:?}"
        );
    }
    for announced in [9_u32, 4096, u32::MAX - 7, u32::MAX - 6, u32::MAX] {
        let mut bytes = EnvelopeBuilder::new(1)
            .structure(0x0777, 1, &[1; 8])
            .build();
        bytes[ENVELOPE_HEADER_SIZE + 4..ENVELOPE_HEADER_SIZE + 8]
            .copy_from_slice(&announced.to_le_bytes());
        let error = decode(&bytes).unwrap_err();
        assert!(
            matches!(
                error,
                DecodeError::Truncated {
                    what: "a structure",
                    available: 8,
                    ..
                }
            ),
            "{announced}: {error:?}"
        );
    }
    for announced in [0_u32, 23, 25, u32::MAX] {
        let mut bytes = EnvelopeBuilder::new(1).build();
        bytes[8..12].copy_from_slice(&announced.to_le_bytes());
        let expected = DecodeError::LengthMismatch {
            announced: announced as usize,
            available: 24,
        };
        assert_eq!(decode(&bytes), Err(expected));
    }
}

/// What is looked for before an envelope is executed is what it will import, in its order, and nothing of one that will not be.
#[test]
fn imports_are_seen_without_executing() {
    let import = |n: u8| {
        let (client_id, uuid) = (u64::from(n), [n; 16]);
        Request::from(Import { client_id, uuid })
    };
    let free = Request::from(Free { client_id: 11 });
    let bytes = build(
        0,
        Some("name"),
        &[free, import(2), free, import(1), import(2)],
    );
    assert_eq!(Envelope::imports(&bytes), [[2; 16], [1; 16], [2; 16]]);
    assert!(Envelope::imports(&build(1, None, &[free; 64])).is_empty());
    assert!(Envelope::imports(&build(1, None, &[import(1); 65])).is_empty());
    assert!(Envelope::imports(&bytes[..bytes.len() - 8]).is_empty());
}

#[test]
fn a_name_that_is_there_but_too_long() {
    let payload =
        |length: usize| [&(length as u64).to_le_bytes()[..], &vec![b'x'; length]].concat();
    let bytes = |length| {
        EnvelopeBuilder::new(1)
            .structure(DEBUG_NAME, 1, &payload(length))
            .build()
    };
    assert_eq!(
        decode(&bytes(MAX_DEBUG_NAME))
            .unwrap()
            .debug_name
            .unwrap()
            .name,
        "x".repeat(64)
    );
    let error = decode(&bytes(MAX_DEBUG_NAME + 1)).unwrap_err();
    assert!(
        matches!(&error, DecodeError::Payload { reason, .. } if reason.contains("65 bytes")),
        "{error:?}"
    );
    let no_utf8 = [&2_u64.to_le_bytes()[..], b"\xff\xfe"].concat();
    let bytes = EnvelopeBuilder::new(1)
        .structure(DEBUG_NAME, 1, &no_utf8)
        .build();
    assert_eq!(decode(&bytes).unwrap_err().status(), Status::Malformed);
}

#[test]
fn limits_are_exact() {
    let optional = |count| {
        (0..count)
            .fold(EnvelopeBuilder::new(1), |builder, _| {
                builder.structure(2, 1, &[])
            })
            .build()
    };
    assert!(decode(&optional(MAX_STRUCTURES)).is_ok());
    assert_eq!(
        decode(&optional(MAX_STRUCTURES + 1)),
        Err(DecodeError::TooManyStructures)
    );

    let room = MAX_LENGTH - ENVELOPE_HEADER_SIZE - STRUCTURE_HEADER_SIZE;
    let longest = EnvelopeBuilder::new(1)
        .structure(2, 1, &vec![0xff; room])
        .build();
    assert_eq!(longest.len(), MAX_LENGTH);
    assert!(decode(&longest).is_ok());
    let longer = EnvelopeBuilder::new(1)
        .structure(2, 1, &vec![0xff; room + 1])
        .build();
    assert_eq!(decode(&longer), Err(DecodeError::TooLong(MAX_LENGTH + 8)));
}

#[test]
fn reserved_bytes_and_padding_are_zero() {
    let bytes = EnvelopeBuilder::new(1).structure(2, 1, b"abc").build();
    let padding = bytes.len() - 5..bytes.len();
    for at in (12..16).chain(padding) {
        let mut bytes = bytes.clone();
        bytes[at] = 1;
        assert_eq!(
            decode(&bytes),
            Err(DecodeError::ReservedNotZero),
            "byte {at}"
        );
    }
}

#[test]
fn the_sequence_is_found_where_nothing_else_is() {
    let bytes = EnvelopeBuilder::new(0x1234)
        .structure(REQUIRED | 99, 1, &[])
        .build();
    assert!(Envelope::decode(&bytes).is_err());
    assert_eq!(Envelope::peek_sequence(&bytes), Some(0x1234));
    assert_eq!(Envelope::peek_sequence(&bytes[..24]), Some(0x1234));
    assert_eq!(Envelope::peek_sequence(&bytes[..23]), None);
    let mut other_magic = bytes;
    other_magic[0] = b'X';
    assert_eq!(Envelope::peek_sequence(&other_magic), None);
}
