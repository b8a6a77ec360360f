//! Messages of the export socket: golden bytes, and arbitrary ones.

use hostblob_protocol::export::{
    Answer, Blob, Buffer, Close, Destroyed, Event, FRAME_SIZE, Frame, FrameError, HandIn, Hello,
    Layout, List, MAX_PAYLOAD, NO_TAG, Open, Opened, Outcome, Presented, Release, Request,
    TakeBack, Token, VERSION, Withdrawn,
};
use proptest::collection::vec;
use proptest::prelude::*;
use zerocopy::FromBytes;

use crate::golden::{Folder, Row, row};

const TAG: u64 = 0x0102_0304_0506_0708;
const BLOB: u64 = 0x1112_1314_1516_1718;
const OFFSET: u64 = 0x2122_2324_2526_2728;
const PRESENT: u64 = 0x3132_3334_3536_3738;
const UUID: [u8; 16] = *b"0123456789abcdef";

fn u64_row(note: &str, value: u64) -> Row {
    row(note, value.to_le_bytes())
}

fn u32_row(note: &str, value: u32) -> Row {
    row(note, value.to_le_bytes())
}

fn frame(kind: u32, name: &str, tag: u64, payload: Vec<Row>) -> Vec<Row> {
    let length: usize = payload.iter().map(|row| row.bytes.len()).sum();
    let mut rows = vec![
        u32_row(&format!("payload length {length}"), length as u32),
        u32_row(&format!("kind {name}"), kind),
        u64_row("tag", tag),
    ];
    rows.extend(payload);
    rows
}

/// Kind, name and payload, by hand.
fn events() -> Vec<(Event, u32, &'static str, Vec<Row>)> {
    let layout = Layout {
        offset: OFFSET,
        width: 1920,
        height: 1080,
        stride: 7680,
        fourcc: u32::from_le_bytes(*b"XR24"),
        modifier: 0x0100_0000_0000_0002,
    };
    let blob = || u64_row("u64 blob", BLOB);
    let offset = || u64_row("u64 offset", OFFSET);
    let present = || u64_row("u64 present", PRESENT);
    let size = || u64_row("u64 size 1 MiB", 1 << 20);
    vec![
        (
            Hello { version: VERSION }.into(),
            1,
            "HELLO",
            vec![u32_row("u32 version", 1)],
        ),
        (
            Blob {
                blob: BLOB,
                uuid: UUID,
                size: 1 << 20,
                name: "größe 7".into(),
            }
            .into(),
            2,
            "BLOB",
            vec![
                blob(),
                row("u8[16] uuid", UUID),
                size(),
                u64_row("u64 length of the name", 9),
                row("the name", "größe 7"),
            ],
        ),
        (
            Buffer {
                blob: BLOB,
                layout,
                present: PRESENT,
            }
            .into(),
            3,
            "BUFFER",
            vec![
                blob(),
                offset(),
                u32_row("u32 width", 1920),
                u32_row("u32 height", 1080),
                u32_row("u32 stride", 7680),
                row("u32 fourcc XR24", b"XR24"),
                u64_row("u64 modifier", layout.modifier),
                present(),
            ],
        ),
        (
            Withdrawn {
                blob: BLOB,
                offset: OFFSET,
            }
            .into(),
            4,
            "WITHDRAWN",
            vec![blob(), offset()],
        ),
        (
            Presented {
                blob: BLOB,
                offset: OFFSET,
                present: PRESENT,
            }
            .into(),
            5,
            "PRESENTED",
            vec![blob(), offset(), present()],
        ),
        (
            Destroyed { blob: BLOB }.into(),
            6,
            "DESTROYED",
            vec![blob()],
        ),
        (
            Answer {
                outcome: Outcome::Refused.number(),
                status: 3,
            }
            .into(),
            7,
            "ANSWER",
            vec![
                u32_row("u32 outcome Refused", 4),
                u32_row("u32 status Unsupported", 3),
            ],
        ),
        (
            Opened {
                blob: BLOB,
                size: 1 << 20,
            }
            .into(),
            8,
            "OPENED, with a descriptor",
            vec![blob(), size()],
        ),
        (
            Token { token: UUID }.into(),
            9,
            "TOKEN",
            vec![row("u8[16] token", UUID)],
        ),
    ]
}

fn requests() -> Vec<(Request, u32, &'static str, Vec<Row>)> {
    let blob = || u64_row("u64 blob", BLOB);
    vec![
        (List {}.into(), 32, "LIST", vec![]),
        (Open { blob: BLOB }.into(), 33, "OPEN", vec![blob()]),
        (
            Release {
                blob: BLOB,
                offset: OFFSET,
                present: PRESENT,
            }
            .into(),
            34,
            "RELEASE",
            vec![
                blob(),
                u64_row("u64 offset", OFFSET),
                u64_row("u64 present", PRESENT),
            ],
        ),
        (Close { blob: BLOB }.into(), 35, "CLOSE", vec![blob()]),
        (HandIn {}.into(), 36, "HAND_IN, with a descriptor", vec![]),
        (
            TakeBack { token: UUID }.into(),
            37,
            "TAKE_BACK",
            vec![row("u8[16] token", UUID)],
        ),
    ]
}

fn file_name(name: &str) -> String {
    let name = name.split(',').next().unwrap().to_lowercase();
    format!("export_{name}_v1")
}

/// Frame and payload of bytes that hold one whole message.
fn split(bytes: &[u8]) -> (Frame, &[u8]) {
    let (frame, payload) = Frame::read_from_prefix(bytes).unwrap();
    assert_eq!(frame.payload_length(), Ok(payload.len()));
    (frame, payload)
}

pub(crate) fn golden_files(folder: &mut Folder) {
    let about = |name: &str| format!("{name}, version 1, on the export socket");
    for (event, kind, name, payload) in events() {
        let rows = frame(kind, name, NO_TAG, payload);
        let golden = folder.check(&file_name(name), &about(name), &rows, &event.encode(NO_TAG));
        let (frame, payload) = split(&golden);
        assert_eq!(Event::decode(frame.kind.get(), payload), Ok(event));
    }
    for (request, kind, name, payload) in requests() {
        let rows = frame(kind, name, TAG, payload);
        let golden = folder.check(&file_name(name), &about(name), &rows, &request.encode(TAG));
        let (frame, payload) = split(&golden);
        assert_eq!(frame.tag.get(), TAG);
        assert_eq!(Request::decode(frame.kind.get(), payload), Ok(request));
    }
}

#[test]
fn every_kind_has_a_sample_and_a_number_of_its_own() {
    let kinds: Vec<u32> = events().iter().map(|event| event.0.kind()).collect();
    assert_eq!(kinds, Event::KINDS);
    let kinds: Vec<u32> = requests().iter().map(|request| request.0.kind()).collect();
    assert_eq!(kinds, Request::KINDS);
    for kind in Event::KINDS {
        assert_eq!(
            Request::decode(*kind, &[]),
            Err(FrameError::UnknownKind(*kind))
        );
    }
}

#[test]
fn payloads_of_another_length_are_refused() {
    for (event, kind, name, _) in events() {
        let bytes = event.encode(NO_TAG);
        let payload = &bytes[FRAME_SIZE..];
        for length in 0..payload.len() {
            assert!(Event::decode(kind, &payload[..length]).is_err(), "{name}");
        }
        assert!(Event::decode(kind, &[payload, &[0]].concat()).is_err());
    }
}

#[test]
fn a_long_name_is_refused() {
    let named = |length: usize| {
        Event::from(Blob {
            blob: 1,
            uuid: UUID,
            size: 4096,
            name: "x".repeat(length),
        })
    };
    let bytes = named(64).encode(0);
    assert_eq!(Event::decode(2, &bytes[FRAME_SIZE..]), Ok(named(64)));
    let bytes = named(65).encode(0);
    assert!(Event::decode(2, &bytes[FRAME_SIZE..]).is_err());
}

#[test]
fn a_long_frame_is_refused() {
    let frame = |length: u32| Frame {
        length: length.into(),
        ..Frame::default()
    };
    assert_eq!(frame(MAX_PAYLOAD).payload_length(), Ok(512));
    assert_eq!(
        frame(MAX_PAYLOAD + 1).payload_length(),
        Err(FrameError::TooLong(513))
    );
}

#[test]
fn outcomes_are_dense() {
    for (number, outcome) in Outcome::ALL.iter().enumerate() {
        assert_eq!(outcome.number() as usize, number);
        assert_eq!(Outcome::from_number(number as u32), *outcome);
    }
    assert_eq!(Outcome::from_number(999), Outcome::Internal);
}

proptest! {
    #[test]
    fn any_bytes(kind in 0..40_u32, payload in vec(any::<u8>(), 0..200)) {
        // What decodes is what these bytes say, and nothing else.
        if let Ok(event) = Event::decode(kind, &payload) {
            prop_assert_eq!(&event.encode(0)[FRAME_SIZE..], &payload);
        }
        if let Ok(request) = Request::decode(kind, &payload) {
            prop_assert_eq!(&request.encode(0)[FRAME_SIZE..], &payload);
        }
    }
}
