//! The encoding once more, by hand and without serde: what the document says, as code. The encoder must agree with it.

use hostblob_protocol::request::{
    CacheMode, DEBUG_NAME, MemoryRange, MemorySelector, REQUIRED, Request,
};

use crate::golden::{Row, row};

/// A field of a payload.
pub(crate) struct Field {
    pub(crate) name: &'static str,
    pub(crate) kind: &'static str,
    pub(crate) meaning: &'static str,
    pub(crate) bytes: Vec<u8>,
}

fn u16_field(name: &'static str, meaning: &'static str, value: u16) -> Field {
    Field {
        name,
        kind: "u16",
        meaning,
        bytes: value.to_le_bytes().to_vec(),
    }
}

fn u32_field(name: &'static str, meaning: &'static str, value: u32) -> Field {
    Field {
        name,
        kind: "u32",
        meaning,
        bytes: value.to_le_bytes().to_vec(),
    }
}

fn u64_field(name: &'static str, meaning: &'static str, value: u64) -> Field {
    Field {
        name,
        kind: "u64",
        meaning,
        bytes: value.to_le_bytes().to_vec(),
    }
}

fn client_id(value: u64) -> Field {
    u64_field("client_id", "memory of this context", value)
}

fn buffer_offset(value: u64) -> Field {
    u64_field("offset", "first byte of the buffer in the memory", value)
}

fn cache(value: CacheMode) -> Field {
    let number = match value {
        CacheMode::Any => 0,
        CacheMode::Cached => 1,
        CacheMode::Uncached => 2,
        CacheMode::WriteCombined => 3,
    };
    let meaning = "0 any, 1 cached, 2 uncached, 3 write-combined; another mode than the memory type's is refused";
    u32_field("expected_cache", meaning, number)
}

fn range(value: &MemoryRange) -> Vec<Field> {
    vec![
        client_id(value.client_id),
        u64_field(
            "offset",
            "first byte, from the beginning of the memory",
            value.offset,
        ),
        u64_field("length", "bytes, not 0", value.length),
    ]
}

/// The fields of a request's payload in order, without gaps.
pub(crate) fn fields(request: &Request) -> Vec<Field> {
    match request {
        Request::OpenAnswers(r) => vec![
            u32_field(
                "resource_id",
                "the mapped blob of `blob_id` 0 that holds the ring",
                r.resource_id,
            ),
            u16_field("major", "the guest's protocol version, first part", r.major),
            u16_field(
                "minor",
                "the guest's protocol version, second part",
                r.minor,
            ),
            u64_field(
                "requests",
                "requests that the guest will send: bit `n` for request `n`",
                r.requests,
            ),
            u32_field(
                "create_flags",
                "flags that the guest will use in CREATE",
                r.create_flags.bits(),
            ),
        ],
        Request::Create(r) => {
            let (selector, value) = match r.memory {
                MemorySelector::Index(index) => (0, index),
                MemorySelector::Properties(properties) => (1, properties),
            };
            vec![
                u64_field(
                    "client_id",
                    "the name within the context: not 0, not in use",
                    r.client_id,
                ),
                u64_field(
                    "size",
                    "bytes: a multiple of `page_size`, not 0, at most `max_blob_size`",
                    r.size,
                ),
                u32_field(
                    "selector",
                    "what the next word is: 0 index, 1 properties",
                    selector,
                ),
                u32_field(
                    "memory",
                    "index of a memory type in the capset, or `VkMemoryPropertyFlags` that the type must have",
                    value,
                ),
                u32_field(
                    "flags",
                    "1 HOST_VISIBLE, 2 SHAREABLE, 4 MAP_DIRECTLY",
                    r.flags.bits(),
                ),
                u64_field(
                    "alignment",
                    "of the memory's start in bytes: 0 (any) or a power of two up to `page_size`",
                    r.alignment,
                ),
                cache(r.expected_cache),
            ]
        }
        Request::BindClientId(r) => vec![client_id(r.client_id)],
        Request::Map(r) => vec![
            client_id(r.client_id),
            cache(r.expected_cache),
            u32_field("access", "1 read, 2 write, 3 both; not 0", r.access.bits()),
        ],
        Request::Unmap(r) => vec![client_id(r.client_id)],
        Request::Free(r) => vec![client_id(r.client_id)],
        Request::Flush(r) => range(&r.range),
        Request::Invalidate(r) => range(&r.range),
        Request::Fill(r) => {
            let mut fields = range(&r.range);
            fields.push(u32_field(
                "value",
                "four bytes, repeated; offset and length are multiples of 4",
                r.value,
            ));
            fields
        }
        Request::Copy(r) => {
            let mut fields = range(&r.source);
            fields.push(u64_field(
                "destination_client_id",
                "memory of this context; it may be the source, the ranges may not overlap",
                r.destination_client_id,
            ));
            fields.push(u64_field(
                "destination_offset",
                "first byte there",
                r.destination_offset,
            ));
            fields
        }
        Request::Import(r) => vec![
            u64_field(
                "client_id",
                "the name within this context: not 0, not in use",
                r.client_id,
            ),
            Field {
                name: "uuid",
                kind: "u8[16]",
                meaning: "what SHARE or RESOURCE_ASSIGN_UUID gave, a token of the export socket, or the UUID of another device's object",
                bytes: r.uuid.to_vec(),
            },
        ],
        Request::QueryBudget(r) => vec![u32_field("heap", "index of a heap in the capset", r.heap)],
        Request::ImportResource(r) => vec![
            u64_field(
                "client_id",
                "the name within this context: not 0, not in use",
                r.client_id,
            ),
            u32_field(
                "resource_id",
                "a blob that is attached to this context",
                r.resource_id,
            ),
        ],
        Request::Share(r) => vec![client_id(r.client_id)],
        Request::Publish(r) => vec![
            client_id(r.client_id),
            buffer_offset(r.offset),
            u32_field("width", "pixels in a row, not 0", r.width),
            u32_field("height", "rows, not 0", r.height),
            u32_field("stride", "bytes from one row to the next, not 0", r.stride),
            u32_field(
                "fourcc",
                "`DRM_FORMAT_*`, or 0 where the bytes are no image",
                r.fourcc,
            ),
            u64_field("modifier", "`DRM_FORMAT_MOD_*`", r.modifier),
        ],
        Request::Withdraw(r) => vec![client_id(r.client_id), buffer_offset(r.offset)],
        Request::Present(r) => vec![client_id(r.client_id), buffer_offset(r.offset)],
        Request::WaitReleased(r) => vec![
            client_id(r.client_id),
            u64_field(
                "offset",
                "first byte of the buffer in the memory; 2^64-1: all buffers and the memory itself",
                r.offset,
            ),
            u64_field("timeout", "nanoseconds; 0 does not wait", r.timeout),
        ],
    }
}

/// Number, name in the document, and reference structure type of a request.
pub(crate) fn identity(request: &Request) -> (u16, &'static str) {
    match request {
        Request::OpenAnswers(_) => (1, "OPEN_ANSWERS"),
        Request::Create(_) => (2, "CREATE"),
        Request::BindClientId(_) => (3, "BIND_CLIENT_ID"),
        Request::Map(_) => (4, "MAP"),
        Request::Unmap(_) => (5, "UNMAP"),
        Request::Free(_) => (6, "FREE"),
        Request::Flush(_) => (7, "FLUSH"),
        Request::Invalidate(_) => (8, "INVALIDATE"),
        Request::Fill(_) => (9, "FILL"),
        Request::Copy(_) => (10, "COPY"),
        Request::Import(_) => (11, "IMPORT"),
        Request::QueryBudget(_) => (12, "QUERY_BUDGET"),
        Request::ImportResource(_) => (13, "IMPORT_RESOURCE"),
        Request::Share(_) => (14, "SHARE"),
        Request::Publish(_) => (15, "PUBLISH"),
        Request::Withdraw(_) => (16, "WITHDRAW"),
        Request::Present(_) => (17, "PRESENT"),
        Request::WaitReleased(_) => (18, "WAIT_RELEASED"),
    }
}

/// A structure: header, payload, padding.
pub(crate) fn structure(
    name: &str,
    structure_type: u16,
    version: u16,
    payload: Vec<Row>,
) -> Vec<Row> {
    let length = payload.iter().map(|row| row.bytes.len()).sum::<usize>();
    let mut rows = vec![
        row(
            format!("structure type: {name}"),
            structure_type.to_le_bytes(),
        ),
        row("structure version", version.to_le_bytes()),
        row(
            format!("payload length {length}"),
            (length as u32).to_le_bytes(),
        ),
    ];
    rows.extend(payload);
    let padding = length.next_multiple_of(8) - length;
    if padding != 0 {
        rows.push(row("padding", vec![0; padding]));
    }
    rows
}

pub(crate) fn request_structure(request: &Request) -> Vec<Row> {
    let (number, name) = identity(request);
    let payload = fields(request)
        .into_iter()
        .map(|field| row(format!("{} {}", field.kind, field.name), field.bytes));
    structure(name, REQUIRED | number, 1, payload.collect())
}

pub(crate) fn name_structure(name: &str) -> Vec<Row> {
    let payload = vec![
        row("u64 length of the name", (name.len() as u64).to_le_bytes()),
        row(format!("{name:?}"), name),
    ];
    structure("DEBUG_NAME, optional", DEBUG_NAME, 1, payload)
}

/// An envelope around structures.
pub(crate) fn envelope(
    (major, minor): (u16, u16),
    sequence: u64,
    structures: &[Vec<Row>],
) -> Vec<Row> {
    let body: usize = structures.iter().flatten().map(|row| row.bytes.len()).sum();
    let length = 24 + body as u32;
    let mut rows = vec![
        row("magic HBLB", b"HBLB"),
        row("major version", major.to_le_bytes()),
        row("minor version", minor.to_le_bytes()),
        row(format!("envelope length {length}"), length.to_le_bytes()),
        row("reserved", [0; 4]),
        row(format!("sequence {sequence:#x}"), sequence.to_le_bytes()),
    ];
    rows.extend(structures.iter().flatten().cloned());
    rows
}
