//! Encoded values are the golden bytes, and golden bytes decode to the values.

use std::fmt::Debug;
use std::sync::atomic::{AtomicU64, Ordering};

use hostblob_protocol::answers::{Answer, HEADER_SIZE, MIN_SIZE, RECORD_SIZE, Ring};
use hostblob_protocol::local::{self, Frame, Hello};
use hostblob_protocol::request::{Create, DebugName, MemorySelector};
use hostblob_protocol::virtio_gpu::{
    CapsetInfo, CmdSubmit, Config, CtrlHdr, CtxCreate, DebugName64, DisplayOne, FLAG_FENCE,
    FLAG_INFO_RING_IDX, GetCapset, GetCapsetInfo, MapInfo, MemEntry, Rect, ResourceCreateBlob,
    ResourceMapBlob, ResourceOnly, blob_flag, blob_mem, cmd, map_cache, resp,
};
use hostblob_protocol::{Envelope, EnvelopeBuilder, Request, Status};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::golden::{Folder, Row, concat, row};
use crate::layout::{envelope, identity, name_structure, request_structure, structure};
use crate::values::samples;

#[test]
fn golden_files() {
    let mut folder = Folder::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden"));
    requests(&mut folder);
    envelopes(&mut folder);
    answers(&mut folder);
    local_socket(&mut folder);
    commands(&mut folder);
    responses(&mut folder);
    crate::export::golden_files(&mut folder);
    folder.finish();
}

/// What a builder of minor version `minor` writes: nothing but the minor version differs from ours.
fn of_minor(minor: u16, builder: EnvelopeBuilder) -> Vec<u8> {
    let mut bytes = builder.build();
    bytes[6..8].copy_from_slice(&minor.to_le_bytes());
    bytes
}

fn requests(folder: &mut Folder) {
    let with_properties = samples().into_iter().filter_map(|request| match request {
        Request::Create(create) => {
            let create = Create {
                memory: MemorySelector::Properties(0x6),
                ..create
            };
            Some(("create_properties".to_owned(), Request::Create(create)))
        }
        _ => None,
    });
    let named = samples()
        .into_iter()
        .map(|request| (identity(&request).1.to_lowercase(), request));
    for (name, request) in named.chain(with_properties) {
        let rows = envelope(
            (1, 0),
            0x0102_0304_0506_0708,
            &[request_structure(&request)],
        );
        let encoded = of_minor(
            0,
            EnvelopeBuilder::new(0x0102_0304_0506_0708).request(request),
        );
        let about = format!("{}, version 1, alone in an envelope", identity(&request).1);
        let golden = folder.check(&format!("request_{name}_v1"), &about, &rows, &encoded);
        let decoded = Envelope {
            sequence: 0x0102_0304_0506_0708,
            requests: vec![request],
            debug_name: None,
        };
        assert_eq!(Envelope::decode(&golden), Ok(decoded), "{name}");
    }
}

fn envelopes(folder: &mut Folder) {
    let samples = samples();
    let (create, bind) = (samples[1], samples[2]);
    let rows = envelope((1, 0), 0, &[]);
    let golden = folder.check(
        "envelope_empty",
        "An envelope without structures and without an answer",
        &rows,
        &of_minor(0, EnvelopeBuilder::new(0)),
    );
    let empty = Envelope {
        sequence: 0,
        requests: vec![],
        debug_name: None,
    };
    assert_eq!(Envelope::decode(&golden), Ok(empty));

    let rows = envelope(
        (1, 0),
        9,
        &[
            name_structure("größe 7"),
            request_structure(&create),
            request_structure(&bind),
        ],
    );
    let builder = EnvelopeBuilder::new(9)
        .debug_name("größe 7")
        .request(create)
        .request(bind);
    let encoded = of_minor(0, builder);
    let golden = folder.check(
        "envelope_debug_name",
        "A name and two requests",
        &rows,
        &encoded,
    );
    let decoded = Envelope {
        sequence: 9,
        requests: vec![create, bind],
        debug_name: Some(DebugName {
            name: "größe 7".to_owned(),
        }),
    };
    assert_eq!(Envelope::decode(&golden), Ok(decoded));

    // What a peer of a later minor version may send.
    let unknown = |version, payload: &[u8]| {
        structure(
            "unknown, optional",
            0x0777,
            version,
            vec![row("whatever", payload)],
        )
    };
    let newer_name = structure(
        "DEBUG_NAME, optional, of a version to come",
        1,
        2,
        vec![row("whatever", [0xff; 5])],
    );
    let structures = [
        unknown(1, b"abc"),
        request_structure(&create),
        unknown(9, &[]),
        newer_name,
        request_structure(&bind),
        unknown(1, &[0; 8]),
    ];
    let rows = envelope((1, 7), 10, &structures);
    let builder = EnvelopeBuilder::new(10)
        .structure(0x0777, 1, b"abc")
        .request(create)
        .structure(0x0777, 9, &[])
        .structure(1, 2, &[0xff; 5])
        .request(bind)
        .structure(0x0777, 1, &[0; 8]);
    let encoded = of_minor(7, builder);
    let golden = folder.check(
        "envelope_newer_minor",
        "An envelope of version 1.7 with optional structures that 1.0 skips",
        &rows,
        &encoded,
    );
    let decoded = Envelope {
        sequence: 10,
        requests: vec![create, bind],
        debug_name: None,
    };
    assert_eq!(Envelope::decode(&golden), Ok(decoded));
}

fn answers(folder: &mut Folder) {
    let memory: Vec<AtomicU64> = (0..MIN_SIZE / 8).map(|_| AtomicU64::new(0)).collect();
    let ring = Ring::new(&memory).unwrap();
    ring.initialise();
    let answer = Answer {
        sequence: 127,
        status: Status::CacheModeMismatch,
        index: 2,
        details: [0x0102_0304_0506_0708, 0x1112_1314_1516_1718],
    };
    ring.write(&answer);
    let bytes: Vec<u8> = memory
        .iter()
        .flat_map(|word| word.load(Ordering::Relaxed).to_ne_bytes())
        .collect();
    let rows = [
        row("magic HBAN", b"HBAN"),
        row("layout version", 1_u16.to_le_bytes()),
        row("record size 32", 32_u16.to_le_bytes()),
        row("slots 126", 126_u32.to_le_bytes()),
        row("reserved", [0; 52]),
        row("slot 0: empty", [0; 32]),
        row("slot 1 (127 % 126): sequence 127", 127_u64.to_le_bytes()),
        row("status 8", 8_u32.to_le_bytes()),
        row("request index 2", 2_u32.to_le_bytes()),
        row("first detail", 0x0102_0304_0506_0708_u64.to_le_bytes()),
        row("second detail", 0x1112_1314_1516_1718_u64.to_le_bytes()),
    ];
    let used = HEADER_SIZE + 2 * RECORD_SIZE;
    let golden = folder.check(
        "answers_v1",
        "The beginning of an answers ring of 4096 bytes",
        &rows,
        &bytes[..used],
    );
    assert!(bytes[used..].iter().all(|&byte| byte == 0));

    let read_back: Vec<AtomicU64> = (0..MIN_SIZE / 8).map(|_| AtomicU64::new(0)).collect();
    for (word, bytes) in read_back.iter().zip(golden.chunks_exact(8)) {
        word.store(
            u64::from_ne_bytes(bytes.try_into().unwrap()),
            Ordering::Relaxed,
        );
    }
    let ring = Ring::new(&read_back).unwrap();
    assert!(ring.is_initialised());
    assert_eq!(ring.read(127), Some(answer));
    assert_eq!(ring.read(126), None);
}

/// Structures one after the other, as bytes.
fn bytes_of(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

/// `bytes` begin with `value`; the rest.
fn starts_with<'a, T>(value: &T, bytes: &'a [u8]) -> &'a [u8]
where
    T: FromBytes + Immutable + KnownLayout + IntoBytes + PartialEq + Debug,
{
    let (read, rest) = T::read_from_prefix(bytes).unwrap();
    assert_eq!(&read, value);
    rest
}

fn frame_rows(length: u32, kind: u32, kind_name: &str, tag: u64, aux: u64) -> Vec<Row> {
    vec![
        row(format!("payload length {length}"), length.to_le_bytes()),
        row(format!("kind {kind_name}"), kind.to_le_bytes()),
        row("tag", tag.to_le_bytes()),
        row("aux", aux.to_le_bytes()),
    ]
}

fn local_socket(folder: &mut Folder) {
    let frame = Frame {
        length: 24.into(),
        kind: local::HELLO.into(),
        tag: 0.into(),
        aux: 0.into(),
    };
    let hello = Hello {
        version: local::VERSION.into(),
        capset_id: 48.into(),
        window_size: (1_u64 << 33).into(),
        features: 0x1d.into(),
    };
    let mut rows = frame_rows(24, 1, "HELLO", 0, 0);
    rows.extend([
        row("framing version", 1_u32.to_le_bytes()),
        row("capset id 48", 48_u32.to_le_bytes()),
        row("window size 8 GiB", 0x2_0000_0000_u64.to_le_bytes()),
        row(
            "VIRGL, RESOURCE_UUID, RESOURCE_BLOB, CONTEXT_INIT",
            0x1d_u64.to_le_bytes(),
        ),
    ]);
    let encoded = bytes_of(&[frame.as_bytes(), hello.as_bytes()]);
    let golden = folder.check("local_hello_v1", "The daemon's greeting", &rows, &encoded);
    assert_eq!(starts_with(&hello, starts_with(&frame, &golden)), b"");

    let header = ctrl(cmd::RESOURCE_MAP_BLOB, 0, 0, 0, 0);
    let map = ResourceMapBlob {
        resource_id: 5.into(),
        padding: 0.into(),
        offset: local::ANY_OFFSET.into(),
    };
    let command = Frame {
        length: 40.into(),
        kind: local::COMMAND.into(),
        tag: 77.into(),
        aux: 0.into(),
    };
    let mut rows = frame_rows(40, 2, "COMMAND", 77, 0);
    rows.extend(ctrl_rows("RESOURCE_MAP_BLOB", 0x208, 0, 0, 0, 0));
    rows.extend([
        row("resource id 5", 5_u32.to_le_bytes()),
        row("padding", [0; 4]),
        row("offset: any", u64::MAX.to_le_bytes()),
    ]);
    let encoded = bytes_of(&[command.as_bytes(), header.as_bytes(), map.as_bytes()]);
    let golden = folder.check(
        "local_command",
        "A command that leaves the window offset to the daemon",
        &rows,
        &encoded,
    );
    assert_eq!(
        starts_with(&map, starts_with(&header, starts_with(&command, &golden))),
        b""
    );

    let header = ctrl(resp::OK_MAP_INFO, 0, 0, 0, 0);
    let info = MapInfo {
        map_info: map_cache::CACHED.into(),
        padding: 0.into(),
    };
    let response = Frame {
        length: 32.into(),
        kind: local::RESPONSE.into(),
        tag: 77.into(),
        aux: 0x20_0000.into(),
    };
    let mut rows = frame_rows(32, 3, "RESPONSE", 77, 0x20_0000);
    rows.extend(ctrl_rows("OK_MAP_INFO", 0x1106, 0, 0, 0, 0));
    rows.extend([row("cached", 1_u32.to_le_bytes()), row("padding", [0; 4])]);
    let encoded = bytes_of(&[response.as_bytes(), header.as_bytes(), info.as_bytes()]);
    let golden = folder.check(
        "local_response",
        "Its response: the offset is in aux",
        &rows,
        &encoded,
    );
    assert_eq!(
        starts_with(&info, starts_with(&header, starts_with(&response, &golden))),
        b""
    );
}

fn ctrl(cmd_type: u32, flags: u32, fence_id: u64, ctx_id: u32, ring_idx: u8) -> CtrlHdr {
    CtrlHdr {
        cmd_type: cmd_type.into(),
        flags: flags.into(),
        fence_id: fence_id.into(),
        ctx_id: ctx_id.into(),
        ring_idx,
        padding: [0; 3],
    }
}

fn ctrl_rows(name: &str, number: u32, flags: u32, fence: u64, context: u32, ring: u8) -> Vec<Row> {
    vec![
        row(name, number.to_le_bytes()),
        row("flags", flags.to_le_bytes()),
        row("fence id", fence.to_le_bytes()),
        row("context id", context.to_le_bytes()),
        row("ring", [ring]),
        row("padding", [0; 3]),
    ]
}

/// A command or response of fixed size: header, then `body`.
fn message<T>(folder: &mut Folder, name: &str, header: &CtrlHdr, body: &T, rows: &[Row])
where
    T: FromBytes + Immutable + KnownLayout + IntoBytes + PartialEq + Debug,
{
    let encoded = bytes_of(&[header.as_bytes(), body.as_bytes()]);
    let golden = folder.check(
        &format!("virtio_gpu_{name}"),
        &format!("virtio-gpu {name}"),
        rows,
        &encoded,
    );
    assert_eq!(
        starts_with(body, starts_with(header, &golden)),
        b"",
        "{name}"
    );
}

fn with(mut rows: Vec<Row>, more: &[Row]) -> Vec<Row> {
    rows.extend_from_slice(more);
    rows
}

fn commands(folder: &mut Folder) {
    let plain = |name: &str, number, context| ctrl_rows(name, number, 0, 0, context, 0);
    let resource = ResourceOnly {
        resource_id: 5.into(),
        padding: 0.into(),
    };
    let resource_rows = [
        row("resource id 5", 5_u32.to_le_bytes()),
        row("padding", [0; 4]),
    ];
    for (name, number, numeric) in [
        ("resource_unref", cmd::RESOURCE_UNREF, 0x102),
        ("resource_unmap_blob", cmd::RESOURCE_UNMAP_BLOB, 0x209),
        ("ctx_attach_resource", cmd::CTX_ATTACH_RESOURCE, 0x202),
        ("ctx_detach_resource", cmd::CTX_DETACH_RESOURCE, 0x203),
    ] {
        let rows = with(plain(&name.to_uppercase(), numeric, 3), &resource_rows);
        message(folder, name, &ctrl(number, 0, 0, 3, 0), &resource, &rows);
    }

    let rows = with(
        plain("GET_CAPSET_INFO", 0x108, 0),
        &[row("index", [0; 4]), row("padding", [0; 4])],
    );
    let body = GetCapsetInfo {
        capset_index: 0.into(),
        padding: 0.into(),
    };
    message(
        folder,
        "get_capset_info",
        &ctrl(cmd::GET_CAPSET_INFO, 0, 0, 0, 0),
        &body,
        &rows,
    );

    let rows = with(
        plain("GET_CAPSET", 0x109, 0),
        &[
            row("capset id 48", 48_u32.to_le_bytes()),
            row("capset version", 1_u32.to_le_bytes()),
        ],
    );
    let body = GetCapset {
        capset_id: 48.into(),
        capset_version: 1.into(),
    };
    message(
        folder,
        "get_capset",
        &ctrl(cmd::GET_CAPSET, 0, 0, 0, 0),
        &body,
        &rows,
    );

    let mut name = [0; 64];
    name[..6].copy_from_slice(b"vkcube");
    let rows = with(
        plain("CTX_CREATE", 0x200, 3),
        &[
            row("length of the name", 6_u32.to_le_bytes()),
            row("context init: capset id 48", 48_u32.to_le_bytes()),
            row("vkcube", name),
        ],
    );
    let body = CtxCreate {
        nlen: 6.into(),
        context_init: 48.into(),
        debug_name: DebugName64(name),
    };
    message(
        folder,
        "ctx_create",
        &ctrl(cmd::CTX_CREATE, 0, 0, 3, 0),
        &body,
        &rows,
    );

    let rows = with(
        plain("RESOURCE_CREATE_BLOB", 0x10c, 3),
        &[
            row("resource id 5", 5_u32.to_le_bytes()),
            row("blob_mem HOST3D", 2_u32.to_le_bytes()),
            row("blob_flags USE_MAPPABLE", 1_u32.to_le_bytes()),
            row("entries", [0; 4]),
            row("blob_id", 0x1122_3344_5566_7788_u64.to_le_bytes()),
            row("size 1 MiB", 0x10_0000_u64.to_le_bytes()),
        ],
    );
    let body = ResourceCreateBlob {
        resource_id: 5.into(),
        blob_mem: blob_mem::HOST3D.into(),
        blob_flags: blob_flag::USE_MAPPABLE.into(),
        nr_entries: 0.into(),
        blob_id: 0x1122_3344_5566_7788.into(),
        size: 0x10_0000.into(),
    };
    message(
        folder,
        "resource_create_blob",
        &ctrl(cmd::RESOURCE_CREATE_BLOB, 0, 0, 3, 0),
        &body,
        &rows,
    );

    let rows = with(
        plain("RESOURCE_MAP_BLOB", 0x208, 0),
        &[
            row("resource id 5", 5_u32.to_le_bytes()),
            row("padding", [0; 4]),
            row("offset 2 MiB", 0x20_0000_u64.to_le_bytes()),
        ],
    );
    let body = ResourceMapBlob {
        resource_id: 5.into(),
        padding: 0.into(),
        offset: 0x20_0000.into(),
    };
    message(
        folder,
        "resource_map_blob",
        &ctrl(cmd::RESOURCE_MAP_BLOB, 0, 0, 0, 0),
        &body,
        &rows,
    );

    submit(folder);
}

fn submit(folder: &mut Folder) {
    let request = samples()[5];
    let data = of_minor(0, EnvelopeBuilder::new(6).request(request));
    let data_rows = envelope((1, 0), 6, &[request_structure(&request)]);
    assert_eq!(data, concat(&data_rows));
    let header = ctrl(
        cmd::SUBMIT_3D,
        FLAG_FENCE | FLAG_INFO_RING_IDX,
        0x0102,
        3,
        1,
    );
    let body = CmdSubmit {
        size: (data.len() as u32).into(),
        padding: 0.into(),
    };
    let rows = with(
        with(
            ctrl_rows("SUBMIT_3D", 0x207, 3, 0x0102, 3, 1),
            &[
                row("bytes of the envelope", 40_u32.to_le_bytes()),
                row("padding", [0; 4]),
            ],
        ),
        &data_rows,
    );
    let encoded = bytes_of(&[header.as_bytes(), body.as_bytes(), &data]);
    let golden = folder.check(
        "virtio_gpu_submit_3d",
        "virtio-gpu SUBMIT_3D, fenced on ring 1, with an envelope",
        &rows,
        &encoded,
    );
    let rest = starts_with(&body, starts_with(&header, &golden));
    assert_eq!(Envelope::decode(rest).unwrap().requests, [request]);
}

fn responses(folder: &mut Folder) {
    let rows = with(
        ctrl_rows("OK_CAPSET_INFO", 0x1102, 0, 0, 0, 0),
        &[
            row("capset id 48", 48_u32.to_le_bytes()),
            row("largest version", 1_u32.to_le_bytes()),
            row("largest size", 1016_u32.to_le_bytes()),
            row("padding", [0; 4]),
        ],
    );
    let body = CapsetInfo {
        capset_id: 48.into(),
        capset_max_version: 1.into(),
        capset_max_size: 1016.into(),
        padding: 0.into(),
    };
    message(
        folder,
        "ok_capset_info",
        &ctrl(resp::OK_CAPSET_INFO, 0, 0, 0, 0),
        &body,
        &rows,
    );

    let rows = with(
        ctrl_rows("OK_MAP_INFO", 0x1106, 1, 0x0102, 0, 0),
        &[
            row("write-combined", 3_u32.to_le_bytes()),
            row("padding", [0; 4]),
        ],
    );
    let body = MapInfo {
        map_info: map_cache::WC.into(),
        padding: 0.into(),
    };
    message(
        folder,
        "ok_map_info",
        &ctrl(resp::OK_MAP_INFO, FLAG_FENCE, 0x0102, 0, 0),
        &body,
        &rows,
    );
}

/// The structures that travel inside no file above have their fields where the specification has them.
#[test]
fn fields_of_the_remaining_structures() {
    let entry = MemEntry {
        addr: 1.into(),
        length: 2.into(),
        padding: 0.into(),
    };
    assert_eq!(
        entry.as_bytes(),
        [1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]
    );
    let r = Rect {
        x: 1.into(),
        y: 2.into(),
        width: 3.into(),
        height: 4.into(),
    };
    let one = DisplayOne {
        r,
        enabled: 5.into(),
        flags: 6.into(),
    };
    let expected: Vec<u8> = [1_u32, 2, 3, 4, 5, 6]
        .iter()
        .flat_map(|n| n.to_le_bytes())
        .collect();
    assert_eq!(one.as_bytes(), expected);
    let config = Config {
        events_read: 1.into(),
        events_clear: 2.into(),
        num_scanouts: 3.into(),
        num_capsets: 4.into(),
        blob_alignment: 5.into(),
        padding: 6.into(),
    };
    assert_eq!(config.as_bytes(), expected);
}
