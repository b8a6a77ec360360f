//! Each command with each field at its extremes: one table, for the device itself and for what carries commands to it.
//!
//! A refused command has the error of the specification (virtio 1.3, 5.7.6.7) and changes nothing. The table says of each field which values are
//! served; all others get the error beside it.

use std::ops::RangeInclusive;

use hostblob_protocol::virtio_gpu::{
    DebugName64, Rect, ResourceCreate2d, ResourceFlush, SetScanout, TransferToHost2d, format,
};

use super::*;

const UNSPEC: u32 = resp::ERR_UNSPEC;
const MEMORY: u32 = resp::ERR_OUT_OF_MEMORY;
const SCANOUT: u32 = resp::ERR_INVALID_SCANOUT_ID;
const RESOURCE: u32 = resp::ERR_INVALID_RESOURCE_ID;
const CONTEXT: u32 = resp::ERR_INVALID_CONTEXT_ID;
const PARAMETER: u32 = resp::ERR_INVALID_PARAMETER;

const WINDOW: u64 = 2 << 20;
/// Bytes that nobody but blob 1 may show.
const CANARY: u64 = 0x5ec2_e75e_c2e7_5ec2;

/// A blob that is mapped at 0, one that is not, an image, and a blob that may be shared. Each has an owner.
const MAPPED: u32 = 1;
const UNMAPPED: u32 = 2;
const IMAGE: u32 = 3;
const SHAREABLE: u32 = 4;
const NEW: u32 = 9;

/// What a value of a field leads to.
type Outcome = fn(u64) -> Option<u32>;

/// A field of a command: how it is refused, if it is.
struct Field {
    name: &'static str,
    at: usize,
    width: usize,
    outcome: Outcome,
}

/// A command that is served, or of which nothing is.
struct Row {
    bytes: Vec<u8>,
    /// The type of its response.
    response: u32,
    fields: Vec<Field>,
}

/// A command, and the type of its response.
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) command: Vec<u8>,
    pub(crate) response: u32,
}

impl Case {
    pub(crate) fn is_refused(&self) -> bool {
        self.response >= UNSPEC
    }
}

const HEADER: usize = size_of::<CtrlHdr>();

fn any(_: u64) -> Option<u32> {
    None
}

fn word(name: &'static str, at: usize, outcome: Outcome) -> Field {
    Field {
        name,
        at: HEADER + at,
        width: 4,
        outcome,
    }
}

fn long(name: &'static str, at: usize, outcome: Outcome) -> Field {
    Field {
        width: 8,
        ..word(name, at, outcome)
    }
}

fn unless(served: bool, error: u32) -> Option<u32> {
    (!served).then_some(error)
}

fn resource(value: u64) -> Option<u32> {
    unless((1..=4).contains(&value), RESOURCE)
}

/// Of a blob.
fn blob_id(value: u64) -> Option<u32> {
    unless(matches!(value, 1 | 2 | 4), RESOURCE)
}

/// Of nothing.
fn free_id(value: u64) -> Option<u32> {
    unless(!(0..=4).contains(&value), RESOURCE)
}

fn context(value: u64) -> Option<u32> {
    unless(matches!(value, 1 | 2), CONTEXT)
}

fn inside(range: RangeInclusive<u64>, value: u64) -> Option<u32> {
    unless(range.contains(&value), PARAMETER)
}

/// Of a rectangle in an image of 4 by 4, whose other fields are 0, 0, 4, 4.
fn rect(at: usize) -> [Field; 4] {
    [
        word("x", at, |value| inside(0..=0, value)),
        word("y", at + 4, |value| inside(0..=0, value)),
        word("width", at + 8, |value| inside(1..=4, value)),
        word("height", at + 12, |value| inside(1..=4, value)),
    ]
}

fn row<T: IntoBytes + Immutable + ?Sized>(
    kind: u32,
    in_context: u32,
    body: &T,
    response: u32,
    fields: impl IntoIterator<Item = Field>,
) -> Row {
    Row {
        bytes: bytes(header(kind, in_context), body),
        response,
        fields: fields.into_iter().collect(),
    }
}

fn of_context(mut row: Row, outcome: Outcome) -> Row {
    row.fields.push(Field {
        name: "ctx_id",
        at: 16,
        width: 4,
        outcome,
    });
    row
}

fn whole() -> Rect {
    Rect {
        width: 4.into(),
        height: 4.into(),
        ..Rect::default()
    }
}

fn table() -> Vec<Row> {
    let done = resp::OK_NODATA;
    let mut name = DebugName64::default();
    name.0[..3].copy_from_slice(b"abc");
    let named = CtxCreate {
        nlen: 3.into(),
        debug_name: name,
        ..context_body()
    };
    let envelope = submit(&EnvelopeBuilder::new(0).build());
    let image = ResourceCreate2d {
        resource_id: NEW.into(),
        format: format::B8G8R8X8_UNORM.into(),
        width: 4.into(),
        height: 4.into(),
    };
    let to_host = TransferToHost2d {
        r: whole(),
        resource_id: IMAGE.into(),
        ..TransferToHost2d::default()
    };
    let flush = ResourceFlush {
        r: whole(),
        resource_id: IMAGE.into(),
        ..ResourceFlush::default()
    };
    let scanout = SetScanout {
        r: whole(),
        resource_id: IMAGE.into(),
        ..SetScanout::default()
    };
    let capset = GetCapset {
        capset_id: CAPSET_ID.into(),
        capset_version: 1.into(),
    };
    // Of a blob that has no pages of the guest, each transfer is refused; so is its resource, before.
    let no_transfer = |value| blob_id(value).or(Some(PARAMETER));
    let never = |_| Some(SCANOUT);
    let transfers = [cmd::TRANSFER_TO_HOST_3D, cmd::TRANSFER_FROM_HOST_3D].map(|kind| {
        let mut body = [0_u8; 48];
        body[32] = 2;
        row(
            kind,
            1,
            &body,
            PARAMETER,
            [word("resource_id", 32, no_transfer)],
        )
    });
    let rows = [
        row(cmd::GET_DISPLAY_INFO, 0, &(), resp::OK_DISPLAY_INFO, []),
        row(
            cmd::GET_CAPSET_INFO,
            0,
            &GetCapsetInfo::default(),
            resp::OK_CAPSET_INFO,
            [
                word("capset_index", 0, |value| inside(0..=0, value)),
                word("padding", 4, any),
            ],
        ),
        row(
            cmd::GET_CAPSET,
            0,
            &capset,
            resp::OK_CAPSET,
            [
                word("capset_id", 0, |value| {
                    inside(CAPSET_ID.into()..=CAPSET_ID.into(), value)
                }),
                word("capset_version", 4, any),
            ],
        ),
        of_context(
            row(
                cmd::CTX_CREATE,
                NEW,
                &named,
                done,
                [
                    word("nlen", 0, |value| inside(0..=64, value)),
                    word("context_init", 4, |value| {
                        let capset = value & 0xff;
                        unless(capset == 0 || capset == u64::from(CAPSET_ID), PARAMETER)
                    }),
                ],
            ),
            |value| unless(!(0..=2).contains(&value), CONTEXT),
        ),
        of_context(row(cmd::CTX_DESTROY, 2, &(), done, []), context),
        of_context(
            row(
                cmd::CTX_ATTACH_RESOURCE,
                1,
                &only(UNMAPPED),
                done,
                [word("resource_id", 0, resource)],
            ),
            context,
        ),
        of_context(
            row(
                cmd::CTX_DETACH_RESOURCE,
                1,
                &only(UNMAPPED),
                done,
                [word("resource_id", 0, resource), word("padding", 4, any)],
            ),
            context,
        ),
        of_context(
            row(
                cmd::SUBMIT_3D,
                1,
                envelope.as_slice(),
                done,
                [
                    // No other length is that of the envelope.
                    word("size", 0, |_| Some(PARAMETER)),
                    word("padding", 4, any),
                ],
            ),
            context,
        ),
        of_context(
            row(
                cmd::RESOURCE_CREATE_BLOB,
                1,
                &blob(NEW, 0, 1),
                done,
                [
                    word("resource_id", 0, free_id),
                    word("blob_mem", 4, |value| inside(1..=3, value)),
                    word("blob_flags", 8, |value| inside(0..=7, value)),
                    word("nr_entries", 12, |value| inside(0..=0, value)),
                    long("blob_id", 16, |value| inside(0..=0, value)),
                    long("size", 24, |value| match value {
                        0x10_0000 => Some(MEMORY),
                        _ => unless(
                            value > 0 && value < 0x10_0000 && value.is_multiple_of(PAGE),
                            PARAMETER,
                        ),
                    }),
                ],
            ),
            context,
        ),
        row(
            cmd::RESOURCE_MAP_BLOB,
            0,
            &map(UNMAPPED, 8 * PAGE),
            resp::OK_MAP_INFO,
            [
                word("resource_id", 0, |value| match value {
                    1 => Some(PARAMETER),
                    _ => blob_id(value),
                }),
                word("padding", 4, any),
                long("offset", 8, |value| {
                    unless(
                        value.is_multiple_of(PAGE) && (PAGE..=WINDOW - 2 * PAGE).contains(&value),
                        PARAMETER,
                    )
                }),
            ],
        ),
        row(
            cmd::RESOURCE_UNMAP_BLOB,
            0,
            &only(MAPPED),
            done,
            [word("resource_id", 0, |value| match value {
                2 | 4 => Some(PARAMETER),
                _ => blob_id(value),
            })],
        ),
        row(
            cmd::RESOURCE_UNREF,
            0,
            &only(UNMAPPED),
            done,
            [word("resource_id", 0, resource)],
        ),
        row(
            cmd::RESOURCE_ASSIGN_UUID,
            0,
            &only(SHAREABLE),
            resp::OK_RESOURCE_UUID,
            [word("resource_id", 0, |value| match value {
                1 | 2 => Some(PARAMETER),
                _ => blob_id(value),
            })],
        ),
        row(
            cmd::RESOURCE_DETACH_BACKING,
            0,
            &only(IMAGE),
            PARAMETER,
            [word("resource_id", 0, |value| {
                resource(value).or(Some(PARAMETER))
            })],
        ),
        row(
            cmd::RESOURCE_CREATE_2D,
            0,
            &image,
            done,
            [
                word("resource_id", 0, free_id),
                word("format", 4, |value| {
                    let known = [1, 2, 3, 4, 67, 68, 121, 134];
                    unless(known.contains(&value), PARAMETER)
                }),
                word("width", 8, |value| inside(1..=16384, value)),
                word("height", 12, |value| inside(1..=16384, value)),
            ],
        ),
        // It has no pages to take pixels from.
        row(
            cmd::TRANSFER_TO_HOST_2D,
            0,
            &to_host,
            PARAMETER,
            [word("resource_id", 24, |value| {
                resource(value).or(Some(PARAMETER))
            })],
        ),
        row(
            cmd::RESOURCE_FLUSH,
            0,
            &flush,
            done,
            rect(0).into_iter().chain([
                word("resource_id", 16, |value| match value {
                    3 => None,
                    _ => resource(value).or(Some(PARAMETER)),
                }),
                word("padding", 20, any),
            ]),
        ),
        row(
            cmd::SET_SCANOUT,
            0,
            &scanout,
            SCANOUT,
            [
                word("scanout_id", 16, never),
                word("resource_id", 20, never),
            ],
        ),
        row(
            cmd::SET_SCANOUT_BLOB,
            0,
            &[0_u8; 72],
            SCANOUT,
            [word("scanout_id", 16, never)],
        ),
        row(
            cmd::UPDATE_CURSOR,
            0,
            &[0_u8; 32],
            SCANOUT,
            [word("scanout_id", 0, never)],
        ),
        row(cmd::MOVE_CURSOR, 0, &[0_u8; 32], SCANOUT, []),
        row(cmd::GET_EDID, 0, &[0_u8; 8], UNSPEC, []),
        row(cmd::RESOURCE_CREATE_3D, 1, &[0_u8; 48], UNSPEC, []),
    ];
    rows.into_iter().chain(transfers).collect()
}

/// 0, 1, the ends, powers of two where lengths and offsets go wrong, and what is next to the value that is served.
fn values(served: u64, width: usize) -> Vec<u64> {
    let max = if width == 8 {
        u64::MAX
    } else {
        u32::MAX.into()
    };
    let near = (0..5).chain([
        served.wrapping_sub(1),
        served.wrapping_add(1),
        63,
        64,
        65,
        PAGE - 1,
        PAGE,
        PAGE + 1,
        WINDOW - 2 * PAGE,
        WINDOW - PAGE,
        WINDOW,
    ]);
    let far = [
        1 << 20,
        1 << 31,
        (1 << 31) - 1,
        1 << 32,
        1 << 40,
        1 << 63,
        max - 4095,
        max - 63,
        max - 1,
        max,
    ];
    let mut values: Vec<u64> = near.chain(far).filter(|value| *value <= max).collect();
    values.retain(|value| *value != served);
    values.sort_unstable();
    values.dedup();
    values
}

fn read_field(command: &[u8], field: &Field) -> u64 {
    let mut value = [0; 8];
    value[..field.width].copy_from_slice(&command[field.at..field.at + field.width]);
    u64::from_le_bytes(value)
}

fn with_field(command: &[u8], at: usize, value: &[u8]) -> Vec<u8> {
    let mut command = command.to_vec();
    command[at..at + value.len()].copy_from_slice(value);
    command
}

/// What the header's fields lead to that have nothing to do with the command.
fn of_header(name: &str, command: &[u8], response: u32, cases: &mut Vec<Case>) {
    let mut case = |what: &str, at, value: &[u8], response| {
        cases.push(Case {
            name: format!("{name}, {what}"),
            command: with_field(command, at, value),
            response,
        });
    };
    // Unknown flags, a fence and a ring that nobody asks for, padding.
    case("unknown flags", 4, &0xffff_fffc_u32.to_le_bytes(), response);
    case("a fence that is not asked for", 8, &[0xff; 8], response);
    case("a ring and padding", 20, &[0xff; 4], response);
    for kind in [0, 0x0ff, 0x10e, 0x1ff, 0x20a, 0x302, response, u32::MAX] {
        case("unknown type", 0, &kind.to_le_bytes(), UNSPEC);
    }
    let kind = read_field(command, &word("", 0, any).with_offset(0));
    let on_rings = [
        cmd::SUBMIT_3D,
        cmd::TRANSFER_TO_HOST_3D,
        cmd::TRANSFER_FROM_HOST_3D,
    ];
    if on_rings.map(u64::from).contains(&kind) {
        let mut command = with_field(command, 4, &FLAG_INFO_RING_IDX.to_le_bytes());
        for (ring, response) in [
            (0, response),
            (63, response),
            (64, PARAMETER),
            (255, PARAMETER),
        ] {
            command[20] = ring;
            cases.push(Case {
                name: format!("{name}, ring {ring}"),
                command: command.clone(),
                response,
            });
        }
    }
}

impl Field {
    fn with_offset(self, at: usize) -> Self {
        Self { at, ..self }
    }
}

/// All of the table: each field at its values, each command cut at each length and too long.
pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for row in table() {
        let kind = read_field(&row.bytes, &word("", 0, any).with_offset(0));
        let name = format!("command {kind:#06x}");
        cases.push(Case {
            name: format!("{name} as it should be"),
            command: row.bytes.clone(),
            response: row.response,
        });
        of_header(&name, &row.bytes, row.response, &mut cases);
        for field in &row.fields {
            for value in values(read_field(&row.bytes, field), field.width) {
                let bytes = value.to_le_bytes();
                cases.push(Case {
                    name: format!("{name}, {} {value:#x}", field.name),
                    command: with_field(&row.bytes, field.at, &bytes[..field.width]),
                    response: (field.outcome)(value).unwrap_or(row.response),
                });
            }
        }
        for length in 0..row.bytes.len() {
            let response = match u32::try_from(kind).unwrap() {
                // Nothing of it is served, so nobody looks at its length.
                cmd::GET_EDID if length >= HEADER => UNSPEC,
                _ if row.response == SCANOUT && length >= HEADER + scanout_end(&row) => SCANOUT,
                _ => PARAMETER,
            };
            cases.push(Case {
                name: format!("{name} cut at {length}"),
                command: row.bytes[..length].to_vec(),
                response,
            });
        }
        cases.push(Case {
            name: format!("{name}, 64 KiB too long"),
            command: [row.bytes.as_slice(), &[0xff; 65536]].concat(),
            response: row.response,
        });
    }
    cases
}

/// How much of a command about a scanout is read until its number is known to be wrong.
fn scanout_end(row: &Row) -> usize {
    match read_field(&row.bytes, &word("", 0, any).with_offset(0)) {
        kind if kind == u64::from(cmd::SET_SCANOUT) => size_of::<SetScanout>(),
        kind if kind == u64::from(cmd::SET_SCANOUT_BLOB) => 20,
        _ => 4,
    }
}

/// What makes the world of the table.
pub(crate) fn setup() -> Vec<Case> {
    let image = ResourceCreate2d {
        resource_id: IMAGE.into(),
        format: format::B8G8R8X8_UNORM.into(),
        width: 4.into(),
        height: 4.into(),
    };
    let shareable = ResourceCreateBlob {
        blob_flags: (blob_flag::USE_MAPPABLE | blob_flag::USE_SHAREABLE).into(),
        ..blob(SHAREABLE, 0, 1)
    };
    let mapped = resp::OK_MAP_INFO;
    [
        row(cmd::CTX_CREATE, 1, &context_body(), resp::OK_NODATA, []),
        row(cmd::CTX_CREATE, 2, &context_body(), resp::OK_NODATA, []),
        row(
            cmd::RESOURCE_CREATE_BLOB,
            1,
            &blob(MAPPED, 0, 1),
            resp::OK_NODATA,
            [],
        ),
        row(cmd::RESOURCE_MAP_BLOB, 0, &map(MAPPED, 0), mapped, []),
        row(
            cmd::RESOURCE_CREATE_BLOB,
            1,
            &blob(UNMAPPED, 0, 2),
            resp::OK_NODATA,
            [],
        ),
        row(cmd::RESOURCE_CREATE_2D, 0, &image, resp::OK_NODATA, []),
        row(
            cmd::RESOURCE_CREATE_BLOB,
            2,
            &shareable,
            resp::OK_NODATA,
            [],
        ),
    ]
    .map(|row| Case {
        name: "setup".to_owned(),
        command: row.bytes,
        response: row.response,
    })
    .into()
}

/// Bytes of a response, with its header: all of them, and no more.
pub(crate) fn length_of(response: u32, capset: usize) -> usize {
    let body = match response {
        resp::OK_DISPLAY_INFO => 16 * 24,
        resp::OK_CAPSET_INFO | resp::OK_RESOURCE_UUID => 16,
        resp::OK_CAPSET => capset,
        resp::OK_MAP_INFO => 8,
        _ => 0,
    };
    HEADER + body
}

/// A device in the state of [`setup`], with the canary in blob 1.
fn world() -> Gpu {
    let (mut gpu, _) = gpu();
    for case in setup() {
        step(&mut gpu, &case);
    }
    let window = std::fs::File::from(gpu.window_fd().try_clone_to_owned().unwrap());
    let page = CANARY.to_le_bytes().repeat(512);
    std::os::unix::fs::FileExt::write_all_at(&window, &page, 0).unwrap();
    gpu
}

/// Everything that a command could change.
fn state(gpu: &mut Gpu) -> (Vec<u8>, String) {
    let mut saved = Vec::new();
    gpu.guest.save(&mut saved).unwrap();
    let rest = format!("{:?} {:?} {:?}", gpu.images, gpu.backings, gpu.kept);
    (saved, rest)
}

/// Executes a command, and checks its response.
fn step(gpu: &mut Gpu, case: &Case) {
    let response = gpu.execute(7, &case.command, &NoPages);
    let response = response.unwrap_or_else(|| panic!("{}: it is kept", case.name));
    assert_eq!(response.kind(), case.response, "{}", case.name);
    let bytes = response.as_bytes();
    assert_eq!(
        bytes.len(),
        length_of(case.response, gpu.capset.len()),
        "{}",
        case.name
    );
    // Nothing of the command comes back that the specification does not send back: without a fence, nothing at all.
    assert_eq!(bytes[4..HEADER], [0; HEADER - 4], "{}", case.name);
}

/// What holds after each command, whatever it was.
fn check(gpu: &mut Gpu, name: &str) {
    // The device answers.
    let alive = run(gpu, cmd::GET_DISPLAY_INFO, 0, &());
    assert_eq!(alive.kind(), resp::OK_DISPLAY_INFO, "{name}");
    // Nobody has more than there is, and the table adds up.
    gpu.guest.window().settle();
    let occupancy = gpu.guest.window().occupancy();
    assert!(gpu.guest.host().used() <= 1 << 20, "{name}");
    assert!(
        occupancy.held <= gpu.guest.host().used(),
        "{name}: {occupancy:?}"
    );
    // The canary is where its blob is, or nowhere; the rest of the window is zeros.
    let window = std::fs::File::from(gpu.window_fd().try_clone_to_owned().unwrap());
    let mut bytes = vec![0; usize::try_from(WINDOW).unwrap()];
    std::os::unix::fs::FileExt::read_exact_at(&window, &mut bytes, 0).unwrap();
    let (first, rest) = bytes.split_at(4096);
    let is_there = first == CANARY.to_le_bytes().repeat(512);
    let has_blob = gpu.guest.has_resource(MAPPED);
    assert!(is_there || !has_blob && first == [0; 4096], "{name}");
    assert!(
        rest == vec![0; rest.len()],
        "{name}: the window has bytes that nobody wrote"
    );
}

#[test]
fn each_command_at_its_extremes() {
    let mut gpu = world();
    let mut before = state(&mut gpu);
    assert_eq!(before, state(&mut gpu), "the state is told the same twice");
    let (mut refused, mut served) = (0, 0);
    for case in cases() {
        step(&mut gpu, &case);
        if case.is_refused() {
            refused += 1;
            assert!(
                before == state(&mut gpu),
                "{}: it changed something",
                case.name
            );
            continue;
        }
        served += 1;
        check(&mut gpu, &case.name);
        // What it needs may be gone: a new world.
        gpu.reset();
        assert!(
            gpu.is_new() && gpu.guest.host().used() == 0,
            "{}",
            case.name
        );
        gpu = world();
        before = state(&mut gpu);
    }
    check(&mut gpu, "the end");
    println!("{refused} refused, {served} served");
    assert!(refused > 1500 && served > 200, "{refused} {served}");
}
