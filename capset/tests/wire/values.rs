//! Capsets for the tests: one with telling bytes, and any at all.

use hostblob_capset::{
    BlobMem, Cache, Capset, Heap, Limits, MAX_HEAPS, MAX_TYPES, MemoryType, Offer, Provider,
    WindowMode,
};
use hostblob_protocol::request::CreateFlags;
use proptest::collection::vec;
use proptest::prelude::*;

/// Each field has its own bytes.
pub(crate) fn sample() -> Capset {
    Capset {
        offer: Offer {
            major: 1,
            minor: 2,
            requests: 0x17fe,
            create_flags: CreateFlags::HOST_VISIBLE | CreateFlags::MAP_DIRECTLY,
        },
        window_mode: WindowMode::OnDemand,
        window_size: 0x2_0000_0000,
        limits: Limits {
            max_blob_size: 0x4000_0000,
            max_context_bytes: 0x5000_0000,
            max_device_bytes: 0x1_6000_0000,
            max_context_blobs: 0x7000,
        },
        page_size: 0x1000,
        non_coherent_atom_size: 0x40,
        provider: Provider::Vulkan,
        vendor_id: 0x1_0005,
        device_id: 0x1234,
        device_uuid: *b"device uuid 0123",
        driver_uuid: *b"driver uuid 4567",
        device_name: "llvmpipe (größe)".to_owned(),
        driver_name: "lavapipe".to_owned(),
        heaps: vec![
            Heap {
                size: 0x0001_0203_0405,
                flags: 1,
            },
            Heap {
                size: 0x1112_1314_1516,
                flags: 0,
            },
        ],
        types: vec![
            MemoryType {
                property_flags: 0x1,
                heap: 0,
                cache: Cache::WriteCombined,
            },
            MemoryType {
                property_flags: 0x6,
                heap: 1,
                cache: Cache::Uncached,
            },
            MemoryType {
                property_flags: 0xe,
                heap: 1,
                cache: Cache::Cached,
            },
        ],
        blob_mem: BlobMem::GUEST | BlobMem::HOST3D,
    }
}

fn cache() -> impl Strategy<Value = Cache> {
    prop_oneof![
        Just(Cache::Cached),
        Just(Cache::Uncached),
        Just(Cache::WriteCombined)
    ]
}

fn heaps_and_types() -> impl Strategy<Value = (Vec<Heap>, Vec<MemoryType>)> {
    let heap = any::<(u64, u32)>().prop_map(|(size, flags)| Heap { size, flags });
    vec(heap, 0..=MAX_HEAPS).prop_flat_map(|heaps| {
        let count = heaps.len() as u32;
        let most = if count == 0 { 0 } else { MAX_TYPES };
        let memory_type =
            (any::<u32>(), 0..count.max(1), cache()).prop_map(|(property_flags, heap, cache)| {
                MemoryType {
                    property_flags,
                    heap,
                    cache,
                }
            });
        (Just(heaps), vec(memory_type, 0..=most))
    })
}

fn power_of_two(bits: std::ops::Range<u32>) -> impl Strategy<Value = u32> {
    bits.prop_map(|bit| 1 << bit)
}

/// Any capset within the limits of the layout, but for the names, which may be too long.
pub(crate) fn capset() -> impl Strategy<Value = Capset> {
    let offer = any::<(u16, u16, u64, u32)>().prop_map(|(major, minor, requests, flags)| Offer {
        major,
        minor,
        requests,
        create_flags: CreateFlags::from_bits_truncate(flags),
    });
    let limits = any::<(u64, u64, u64, u32)>().prop_map(
        |(max_blob_size, max_context_bytes, max_device_bytes, max_context_blobs)| Limits {
            max_blob_size,
            max_context_bytes,
            max_device_bytes,
            max_context_blobs,
        },
    );
    let window_mode = prop_oneof![Just(WindowMode::Premapped), Just(WindowMode::OnDemand)];
    let provider = prop_oneof![
        Just(Provider::System),
        Just(Provider::Vulkan),
        Just(Provider::Gl)
    ];
    let sizes = (power_of_two(12..32), power_of_two(0..32), any::<u64>());
    let identity = any::<(u32, u32, [u8; 16], [u8; 16])>();
    let names = ("\\PC{0,70}", "\\PC{0,70}");
    let mixed = (
        offer,
        limits,
        window_mode,
        provider,
        sizes,
        identity,
        names,
        heaps_and_types(),
        any::<u32>().prop_map(|bits| BlobMem::from_bits_truncate(bits) | BlobMem::HOST3D),
    );
    mixed.prop_map(
        |(
            offer,
            limits,
            window_mode,
            provider,
            sizes,
            identity,
            names,
            (heaps, types),
            blob_mem,
        )| Capset {
            offer,
            window_mode,
            window_size: sizes.2,
            limits,
            page_size: sizes.0,
            non_coherent_atom_size: sizes.1,
            provider,
            vendor_id: identity.0,
            device_id: identity.1,
            device_uuid: identity.2,
            driver_uuid: identity.3,
            device_name: names.0,
            driver_name: names.1,
            heaps,
            types,
            blob_mem,
        },
    )
}
