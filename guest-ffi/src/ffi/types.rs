//! Structures of the C API. They only ever grow, at the end; none has padding that is not a field.

use std::ffi::c_char;
use std::time::Duration;

use hostblob_capset::{Cache, Capset, MAX_HEAPS, MAX_TYPES, NAME_SIZE, Provider, WindowMode};
use hostblob_protocol::request::{Access, CacheMode};
use hostblob_protocol::virtio_gpu::map_cache;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use super::handle::{Input, Kind};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::fence::Fence;
use crate::memory::Memory;
use crate::transport::TransportKind;

/// `memory_type` of `hb_allocate_info`: the first type that has `required_properties`.
pub const HB_MEMORY_TYPE_ANY: u32 = 0xffff_ffff;
/// Length of a range: up to the end of the memory (`VK_WHOLE_SIZE`).
pub const HB_WHOLE_SIZE: u64 = 0xffff_ffff_ffff_ffff;
/// A timeout: as long as the device lives.
pub const HB_WAIT_FOREVER: u64 = 0xffff_ffff_ffff_ffff;

/// `hb_allocate_info.flags`: it will be exported as a dma-buf. Gets a blob of its own.
pub const HB_ALLOCATE_SHAREABLE: u32 = 1;
/// `hb_allocate_info.flags`: gets a blob of its own whatever the size.
pub const HB_ALLOCATE_DEDICATED: u32 = 2;
/// `hb_allocate_info.flags`: created now and bound to a blob when first mapped; keeps its contents, outside the window, when unmapped.
pub const HB_ALLOCATE_DEFERRED: u32 = 4;

/// Expected cache mode: whatever the memory type has.
pub const HB_CACHE_ANY: u32 = 0;
/// Expected cache mode: write-back cached.
pub const HB_CACHE_CACHED: u32 = 1;
/// Expected cache mode: uncached.
pub const HB_CACHE_UNCACHED: u32 = 2;
/// Expected cache mode: write-combining.
pub const HB_CACHE_WRITE_COMBINED: u32 = 3;

/// `hb_map_info.access`: loads.
pub const HB_ACCESS_READ: u32 = 1;
/// `hb_map_info.access`: stores.
pub const HB_ACCESS_WRITE: u32 = 2;

/// Bytes of a UUID.
pub const HB_UUID_SIZE: usize = 16;
/// Bytes of a name with its closing zero.
pub const HB_NAME_SIZE: usize = 64;
/// Most memory heaps (`VK_MAX_MEMORY_HEAPS`).
pub const HB_MAX_HEAPS: usize = 16;
/// Most memory types (`VK_MAX_MEMORY_TYPES`).
pub const HB_MAX_TYPES: usize = 32;
const _: () =
    assert!(HB_NAME_SIZE == NAME_SIZE && HB_MAX_HEAPS == MAX_HEAPS && HB_MAX_TYPES == MAX_TYPES);
const _: () =
    assert!(HB_CACHE_CACHED == map_cache::CACHED && HB_CACHE_WRITE_COMBINED == map_cache::WC);

/// A device: one context at the host. From `hb_device_open`, until `hb_device_close`.
pub struct hb_device {
    _private: [u8; 0],
}

/// Memory of the host. From `hb_allocate`, `hb_allocate_guest`, `hb_memory_import` or `hb_memory_import_uuid`, until `hb_memory_free`.
pub struct hb_memory {
    _private: [u8; 0],
}

/// Work on the host GPU, or a wait. From `hb_fill`, `hb_copy` or `hb_memory_released_fence`, until `hb_fence_destroy`.
pub struct hb_fence {
    _private: [u8; 0],
}

/// How to open a device. Zero everywhere but `size` is the default.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct hb_open_info {
    /// `sizeof(hb_open_info)`.
    pub size: usize,
    /// Unix socket of a `hostblobd --local-socket`; NULL for none.
    pub socket_path: *const c_char,
    /// DRM render node; NULL for none. With neither: `HOSTBLOB_SOCKET`, else `HOSTBLOB_RENDER_NODE`, else any node.
    pub render_node: *const c_char,
    /// virtio-gpu capset id; 0 for the default.
    pub capset_id: u32,
    /// After this time without a response, the device counts as lost; 0 for 30 s.
    pub timeout_ms: u32,
    /// Bytes of the first block that serves small requests; 0 for 16 MiB.
    pub first_block: u64,
    /// Blocks grow up to this size; 0 for 64 MiB.
    pub largest_block: u64,
    /// Larger requests get a blob of their own; 0 for 2 MiB, 1 for all.
    pub dedicated_above: u64,
}

/// A memory heap (`VkMemoryHeap`).
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct hb_memory_heap {
    /// Bytes.
    pub bytes: u64,
    /// `VkMemoryHeapFlags`.
    pub flags: u32,
    /// 0.
    pub reserved: u32,
}

/// A memory type (`VkMemoryType`).
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct hb_memory_type {
    /// `VkMemoryPropertyFlags`.
    pub property_flags: u32,
    /// Index into the heaps.
    pub heap: u32,
    /// `HB_CACHE_*` of its mappings.
    pub cache: u32,
    /// 0.
    pub reserved: u32,
}

/// What the host said of itself.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct hb_capabilities {
    /// In: `sizeof(hb_capabilities)`. Out: how much of it was written.
    pub size: usize,
    /// Requests that both sides speak: bit n for the request of number n.
    pub requests: u64,
    /// Bytes of the window.
    pub window_size: u64,
    /// Largest memory in bytes.
    pub max_memory_bytes: u64,
    /// Bytes that this context may hold.
    pub max_context_bytes: u64,
    /// Bytes that all contexts together may hold.
    pub max_device_bytes: u64,
    /// Protocol version: major, then minor.
    pub version: [u32; 2],
    /// 0: a DRM render node, 1: a local socket.
    pub transport: u32,
    /// 0: the window is one mapping, 1: each blob is its own.
    pub window_mode: u32,
    /// Memories and blobs that this context may hold.
    pub max_context_blobs: u32,
    /// Sizes of blobs are multiples of it; alignments go up to it.
    pub page_size: u32,
    /// `nonCoherentAtomSize`.
    pub non_coherent_atom_size: u32,
    /// What reaches the memory at the host: 0 no GPU, 1 Vulkan, 2 OpenGL.
    pub provider: u32,
    /// PCI vendor, or 0.
    pub vendor_id: u32,
    /// PCI device, or 0.
    pub device_id: u32,
    /// `deviceUUID`.
    pub device_uuid: [u8; 16],
    /// `driverUUID`.
    pub driver_uuid: [u8; 16],
    /// Zero-terminated UTF-8.
    pub device_name: [c_char; HB_NAME_SIZE],
    /// Zero-terminated UTF-8.
    pub driver_name: [c_char; HB_NAME_SIZE],
    /// Entries of `heaps`.
    pub heap_count: u32,
    /// Entries of `types`.
    pub type_count: u32,
    /// The heaps.
    pub heaps: [hb_memory_heap; HB_MAX_HEAPS],
    /// The types, in the order that Vulkan wants.
    pub types: [hb_memory_type; HB_MAX_TYPES],
}

/// What to allocate. Zero everywhere but `size`, `bytes` and a memory type is fine.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct hb_allocate_info {
    /// `sizeof(hb_allocate_info)`.
    pub size: usize,
    /// Bytes of memory, not 0.
    pub bytes: u64,
    /// Of the first byte: 0 (64 is guaranteed) or a power of two up to the page size.
    pub alignment: u64,
    /// Index into the types, or `HB_MEMORY_TYPE_ANY`.
    pub memory_type: u32,
    /// With `HB_MEMORY_TYPE_ANY`: `VkMemoryPropertyFlags` that the type has.
    pub required_properties: u32,
    /// `HB_ALLOCATE_*`.
    pub flags: u32,
    /// `HB_CACHE_*`; another one is `HB_ERROR_CACHE_MODE_MISMATCH`.
    pub expected_cache: u32,
    /// For the host's log, copied; NULL for none.
    pub name: *const c_char,
}

/// What the caller counts on when it maps.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct hb_map_info {
    /// `sizeof(hb_map_info)`.
    pub size: usize,
    /// `HB_CACHE_*`; another one is `HB_ERROR_CACHE_MODE_MISMATCH`.
    pub expected_cache: u32,
    /// `HB_ACCESS_*`, not 0.
    pub access: u32,
}

/// Where memory lies.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct hb_memory_info {
    /// In: `sizeof(hb_memory_info)`. Out: how much of it was written.
    pub size: usize,
    /// Bytes, as asked for.
    pub bytes: u64,
    /// The name that the host knows it by; 0 for a dma-buf that it knows no name for.
    pub client_id: u64,
    /// Its first byte within that.
    pub offset: u64,
    /// Index into the types; `HB_MEMORY_TYPE_ANY` for a dma-buf that the host knows no name for.
    pub memory_type: u32,
    /// 1: shares a blob with other memory of this process.
    pub suballocated: u32,
}

/// What a heap has for this context (`VK_EXT_memory_budget`), and what the library did to serve it.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct hb_budget_info {
    /// In: `sizeof(hb_budget_info)`. Out: how much of it was written.
    pub size: usize,
    /// Bytes that the context may use, its usage included.
    pub budget: u64,
    /// Bytes that it uses.
    pub usage: u64,
}

/// Counted in this process since the device was opened.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct hb_statistics {
    /// In: `sizeof(hb_statistics)`. Out: how much of it was written.
    pub size: usize,
    /// Blocks that live.
    pub blocks: u64,
    /// Their bytes.
    pub block_bytes: u64,
    /// Memories that live in blocks.
    pub suballocations: u64,
    /// Their bytes, alignment included.
    pub suballocated_bytes: u64,
    /// Times that the host was asked for something.
    pub commands: u64,
}

// SAFETY: `repr(C)`, begins with its size, and holds numbers and raw pointers alone, without padding (asserted below).
unsafe impl Input for hb_open_info {
    const LEAST: usize = 56;
    const NAME: &'static str = "hb_open_info";
}
const _: () = assert!(size_of::<hb_open_info>() == 56);

// SAFETY: as above.
unsafe impl Input for hb_allocate_info {
    const LEAST: usize = 48;
    const NAME: &'static str = "hb_allocate_info";
}
const _: () = assert!(size_of::<hb_allocate_info>() == 48);

// SAFETY: as above.
unsafe impl Input for hb_map_info {
    const LEAST: usize = 16;
    const NAME: &'static str = "hb_map_info";
}
const _: () = assert!(size_of::<hb_map_info>() == 16);

impl Kind for Device {
    const TAG: u64 = u64::from_le_bytes(*b"hbdevice");
    const NAME: &'static str = "device";
    type Opaque = hb_device;
}

impl Kind for Memory {
    const TAG: u64 = u64::from_le_bytes(*b"hbmemory");
    const NAME: &'static str = "memory";
    type Opaque = hb_memory;
}

impl Kind for Fence {
    const TAG: u64 = u64::from_le_bytes(*b"hb_fence");
    const NAME: &'static str = "fence";
    type Opaque = hb_fence;
}

/// Nanoseconds of C as a time; `None` is for ever.
pub(super) fn timeout(ns: u64) -> Option<Duration> {
    (ns != HB_WAIT_FOREVER).then(|| Duration::from_nanos(ns))
}

pub(super) fn cache_mode(number: u32) -> Result<CacheMode> {
    match number {
        HB_CACHE_ANY => Ok(CacheMode::Any),
        HB_CACHE_CACHED => Ok(CacheMode::Cached),
        HB_CACHE_UNCACHED => Ok(CacheMode::Uncached),
        HB_CACHE_WRITE_COMBINED => Ok(CacheMode::WriteCombined),
        _ => Err(Error::invalid(format!("cache mode {number}"))),
    }
}

pub(super) fn access(bits: u32) -> Result<Access> {
    const { assert!(Access::READ.bits() == HB_ACCESS_READ) };
    const { assert!(Access::WRITE.bits() == HB_ACCESS_WRITE) };
    Access::from_bits(bits).ok_or_else(|| Error::invalid(format!("access {bits:#x}")))
}

fn fill<T: Copy>(into: &mut [T], from: impl IntoIterator<Item = T>) -> u32 {
    let mut count = 0;
    for (to, from) in into.iter_mut().zip(from) {
        *to = from;
        count += 1;
    }
    count
}

fn name(into: &mut [c_char; HB_NAME_SIZE], from: &str) {
    let text = from.bytes().take(HB_NAME_SIZE - 1).map(u8::cast_signed);
    fill(
        into,
        text.map(|byte| c_char::from_ne_bytes(byte.to_ne_bytes())),
    );
}

impl hb_capabilities {
    pub(super) fn of(device: &Device) -> Self {
        let capset: &Capset = device.capabilities();
        let mut all = Self {
            requests: device.agreed().requests,
            window_size: capset.window_size,
            max_memory_bytes: capset.limits.max_blob_size,
            max_context_bytes: capset.limits.max_context_bytes,
            max_device_bytes: capset.limits.max_device_bytes,
            version: [
                u32::from(capset.offer.major),
                u32::from(device.agreed().minor),
            ],
            transport: match device.transport() {
                TransportKind::Drm => 0,
                TransportKind::Socket => 1,
            },
            window_mode: match capset.window_mode {
                WindowMode::Premapped => 0,
                WindowMode::OnDemand => 1,
            },
            max_context_blobs: capset.limits.max_context_blobs,
            page_size: capset.page_size,
            non_coherent_atom_size: capset.non_coherent_atom_size,
            provider: match capset.provider {
                Provider::System => 0,
                Provider::Vulkan => 1,
                Provider::Gl => 2,
            },
            vendor_id: capset.vendor_id,
            device_id: capset.device_id,
            device_uuid: capset.device_uuid,
            driver_uuid: capset.driver_uuid,
            ..Self::new_zeroed()
        };
        name(&mut all.device_name, &capset.device_name);
        name(&mut all.driver_name, &capset.driver_name);
        let heaps = capset.heaps.iter();
        all.heap_count = fill(
            &mut all.heaps,
            heaps.map(|heap| hb_memory_heap {
                bytes: heap.size,
                flags: heap.flags,
                reserved: 0,
            }),
        );
        let types = capset.types.iter().map(|t| hb_memory_type {
            property_flags: t.property_flags,
            heap: t.heap,
            cache: match t.cache {
                Cache::Cached => HB_CACHE_CACHED,
                Cache::Uncached => HB_CACHE_UNCACHED,
                Cache::WriteCombined => HB_CACHE_WRITE_COMBINED,
            },
            reserved: 0,
        });
        all.type_count = fill(&mut all.types, types);
        all
    }
}
