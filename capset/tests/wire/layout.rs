//! The layout once more, by hand: what the document says, as code. The encoder must agree with it.

use std::fmt::Write as _;

use hostblob_capset::{
    BlobMem, Cache, Capset, ENCODED_SIZE, Heap, MAX_HEAPS, MAX_TYPES, NAME_SIZE, Provider,
    WindowMode,
};

use crate::generated::compare;
use crate::golden::{Folder, Row, concat, row};
use crate::values::sample;

struct Field {
    name: &'static str,
    kind: &'static str,
    meaning: &'static str,
    bytes: Vec<u8>,
}

struct Fields(Vec<Field>);

impl Fields {
    fn add(
        &mut self,
        kind: &'static str,
        name: &'static str,
        bytes: impl AsRef<[u8]>,
        meaning: &'static str,
    ) {
        self.0.push(Field {
            name,
            kind,
            meaning,
            bytes: bytes.as_ref().to_vec(),
        });
    }

    fn u32(&mut self, name: &'static str, value: u32, meaning: &'static str) {
        self.add("u32", name, value.to_le_bytes(), meaning);
    }

    fn u64(&mut self, name: &'static str, value: u64, meaning: &'static str) {
        self.add("u64", name, value.to_le_bytes(), meaning);
    }
}

/// `name` and zeros; for names that fit.
fn name_bytes(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    assert!(bytes.len() < NAME_SIZE);
    bytes.resize(NAME_SIZE, 0);
    bytes
}

fn heap_bytes(heap: Option<&Heap>) -> Vec<u8> {
    let Some(heap) = heap else { return vec![0; 16] };
    [
        &heap.size.to_le_bytes()[..],
        &heap.flags.to_le_bytes(),
        &[0; 4],
    ]
    .concat()
}

fn type_bytes(capset: &Capset, index: usize) -> Vec<u8> {
    let Some(found) = capset.types.get(index) else {
        return vec![0; 16];
    };
    let cache = match found.cache {
        Cache::Cached => 1,
        Cache::Uncached => 2,
        Cache::WriteCombined => 3,
    };
    [found.property_flags, found.heap, cache, 0]
        .iter()
        .flat_map(|word: &u32| word.to_le_bytes())
        .collect()
}

/// All but heaps and types, which follow.
fn fields(capset: &Capset) -> Vec<Field> {
    let mut f = Fields(Vec::new());
    f.u32("size", 1024, "bytes of this capset, this field included");
    f.add(
        "u16",
        "major",
        capset.offer.major.to_le_bytes(),
        "protocol version, first part",
    );
    f.add(
        "u16",
        "minor",
        capset.offer.minor.to_le_bytes(),
        "protocol version, second part",
    );
    f.u64(
        "requests",
        capset.offer.requests,
        "requests that the host serves: bit `n` for request `n`",
    );
    f.u32(
        "create_flags",
        capset.offer.create_flags.bits(),
        "flags of CREATE that the host serves",
    );
    let mode = match capset.window_mode {
        WindowMode::Premapped => 0,
        WindowMode::OnDemand => 1,
    };
    f.u32("window_mode", mode, "0 premapped, 1 on demand");
    f.u64("window_size", capset.window_size, "bytes of the window");
    f.u64(
        "max_blob_size",
        capset.limits.max_blob_size,
        "largest blob or memory in bytes",
    );
    f.u64(
        "max_context_bytes",
        capset.limits.max_context_bytes,
        "bytes that one context may hold",
    );
    f.u64(
        "max_device_bytes",
        capset.limits.max_device_bytes,
        "bytes that all contexts together may hold",
    );
    f.u32(
        "max_context_blobs",
        capset.limits.max_context_blobs,
        "memories and blobs that one context may hold",
    );
    f.u32(
        "page_size",
        capset.page_size,
        "sizes of blobs are multiples of it; a power of two, at least 4096",
    );
    f.u32(
        "non_coherent_atom_size",
        capset.non_coherent_atom_size,
        "ranges of FLUSH and INVALIDATE are multiples of it; a power of two",
    );
    let provider = match capset.provider {
        Provider::System => 0,
        Provider::Vulkan => 1,
        Provider::Gl => 2,
    };
    f.u32(
        "provider",
        provider,
        "0 none (the CPU fills and copies), 1 Vulkan, 2 OpenGL",
    );
    f.u32(
        "vendor_id",
        capset.vendor_id,
        "`VkPhysicalDeviceProperties::vendorID`, or 0",
    );
    f.u32(
        "device_id",
        capset.device_id,
        "`VkPhysicalDeviceProperties::deviceID`, or 0",
    );
    f.add(
        "u8[16]",
        "device_uuid",
        capset.device_uuid,
        "`VkPhysicalDeviceIDProperties::deviceUUID`",
    );
    f.add(
        "u8[16]",
        "driver_uuid",
        capset.driver_uuid,
        "`VkPhysicalDeviceIDProperties::driverUUID`",
    );
    f.add(
        "u8[64]",
        "device_name",
        name_bytes(&capset.device_name),
        "UTF-8, ends with a zero byte",
    );
    f.add(
        "u8[64]",
        "driver_name",
        name_bytes(&capset.driver_name),
        "UTF-8, ends with a zero byte",
    );
    f.u32(
        "heap_count",
        capset.heaps.len() as u32,
        "entries of `heaps` that count, at most 16",
    );
    f.u32(
        "type_count",
        capset.types.len() as u32,
        "entries of `types` that count, at most 32",
    );
    f.0
}

fn rows(capset: &Capset) -> Vec<Row> {
    let mut rows: Vec<Row> = fields(capset)
        .into_iter()
        .map(|field| row(format!("{} {}", field.kind, field.name), field.bytes))
        .collect();
    rows.extend((0..MAX_HEAPS).map(|i| {
        row(
            format!("heap {i}: size u64, flags, 0"),
            heap_bytes(capset.heaps.get(i)),
        )
    }));
    rows.extend((0..MAX_TYPES).map(|i| {
        row(
            format!("type {i}: properties, heap, cache, 0"),
            type_bytes(capset, i),
        )
    }));
    rows.push(row("u32 blob_mem", capset.blob_mem.bits().to_le_bytes()));
    rows.push(row("reserved", [0; 4]));
    rows
}

/// The bytes of a capset whose names fit, without the encoder.
pub(crate) fn reference(capset: &Capset) -> Vec<u8> {
    concat(&rows(capset))
}

#[test]
fn golden_files() {
    let mut folder = Folder::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden"));
    let capset = sample();
    let golden = folder.check(
        "capset_v1_1",
        "A capset of version 1.1",
        &rows(&capset),
        &capset.encode(),
    );
    assert_eq!(golden.len(), ENCODED_SIZE);
    assert_eq!(Capset::decode(&golden), Ok(capset));
    folder.finish();
}

/// A host of version 1.0 sent these bytes. They mean the same as ever, and zeros, or what 1.0 did, past their end.
#[test]
fn version_1_0_is_read() {
    let old = crate::golden::parse(include_str!("../compatibility/capset_v1_0.hex"));
    assert_eq!(old.len(), 1016);
    let expected = Capset {
        blob_mem: BlobMem::HOST3D,
        ..sample()
    };
    assert_eq!(Capset::decode(&old), Ok(expected));
}

#[test]
fn the_layout_is_documented() {
    let mut table =
        "| offset | bytes | type | field | meaning |\n|---|---|---|---|---|\n".to_owned();
    let mut offset = 0;
    for field in fields(&sample()) {
        let (
            length,
            Field {
                kind,
                name,
                meaning,
                ..
            },
        ) = (field.bytes.len(), field);
        writeln!(
            table,
            "| {offset} | {length} | {kind} | {name} | {meaning} |"
        )
        .unwrap();
        offset += length;
    }
    for (name, kind, length, meaning) in [
        (
            "heaps",
            "heap[16]",
            16 * MAX_HEAPS,
            "size u64, `VkMemoryHeapFlags` u32, 0 u32",
        ),
        (
            "types",
            "type[32]",
            16 * MAX_TYPES,
            "`VkMemoryPropertyFlags` u32, heap u32, cache mode u32 (1 cached, 2 uncached, 3 write-combined), 0 u32",
        ),
        (
            "blob_mem",
            "u32",
            4,
            "blobs that can be created: bit `n` for `VIRTIO_GPU_BLOB_MEM_*` of number `n` (since 1.1)",
        ),
        ("reserved", "u32", 4, "0"),
    ] {
        writeln!(
            table,
            "| {offset} | {length} | {kind} | {name} | {meaning} |"
        )
        .unwrap();
        offset += length;
    }
    assert_eq!(offset, ENCODED_SIZE);
    compare("capset", &table);
}
