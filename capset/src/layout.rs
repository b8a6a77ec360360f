//! The bytes of a capset. Fields are only ever added at the end.

use hostblob_protocol::request::CreateFlags;
use hostblob_protocol::virtio_gpu::map_cache;
use thiserror::Error;
use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::{BlobMem, Cache, Capset, Heap, Limits, MemoryType, Offer, Provider, WindowMode};

/// Heaps that the layout holds (`VK_MAX_MEMORY_HEAPS`).
pub const MAX_HEAPS: usize = 16;
/// Memory types that the layout holds (`VK_MAX_MEMORY_TYPES`).
pub const MAX_TYPES: usize = 32;
/// Bytes of a name with its closing zero.
pub const NAME_SIZE: usize = 64;
/// Bytes of an encoded capset of this version.
pub const ENCODED_SIZE: usize = size_of::<Wire>();

/// Bytes without which a capset says nothing useful: up to and with the memory types of version 1.
const MINIMUM_SIZE: usize = 1016;

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct WireHeap {
    size: U64,
    flags: U32,
    reserved: U32,
}

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct WireType {
    property_flags: U32,
    heap: U32,
    cache: U32,
    reserved: U32,
}

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Wire {
    size: U32,
    major: U16,
    minor: U16,
    requests: U64,
    create_flags: U32,
    window_mode: U32,
    window_size: U64,
    max_blob_size: U64,
    max_context_bytes: U64,
    max_device_bytes: U64,
    max_context_blobs: U32,
    page_size: U32,
    non_coherent_atom_size: U32,
    provider: U32,
    vendor_id: U32,
    device_id: U32,
    device_uuid: [u8; 16],
    driver_uuid: [u8; 16],
    device_name: [u8; NAME_SIZE],
    driver_name: [u8; NAME_SIZE],
    heap_count: U32,
    type_count: U32,
    heaps: [WireHeap; MAX_HEAPS],
    types: [WireType; MAX_TYPES],
    // Version 1.1.
    blob_mem: U32,
    reserved: U32,
}
const _: () = assert!(ENCODED_SIZE == 1024 && ENCODED_SIZE.is_multiple_of(8));

/// Why bytes are not a capset that this build understands.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// Fewer bytes than version 1 has.
    #[error("a capset has at least {MINIMUM_SIZE} bytes, {0} are there")]
    Truncated(usize),
    /// A field is outside its documented values.
    #[error("capset field {field} has the value {value}")]
    Field {
        /// Its name.
        field: &'static str,
        /// What it says.
        value: u64,
    },
}

/// Ends at the first zero character, or before the character that does not fit any more.
fn name_bytes(name: &str) -> [u8; NAME_SIZE] {
    let name = name.split('\0').next().unwrap_or_default();
    let cut = name
        .get(..name.floor_char_boundary(NAME_SIZE - 1))
        .unwrap_or_default();
    let mut bytes = [0; NAME_SIZE];
    for (to, from) in bytes.iter_mut().zip(cut.bytes()) {
        *to = from;
    }
    bytes
}

fn name_from(bytes: &[u8; NAME_SIZE]) -> String {
    let end = bytes
        .iter()
        .position(|&byte| byte == 0)
        .unwrap_or(NAME_SIZE);
    let mut name = String::from_utf8_lossy(bytes.get(..end).unwrap_or_default()).into_owned();
    // A replacement character is longer than the byte that it stands for.
    name.truncate(name.floor_char_boundary(NAME_SIZE - 1));
    name
}

fn count(length: usize, most: usize) -> U32 {
    U32::new(u32::try_from(length.min(most)).unwrap_or(u32::MAX))
}

pub(crate) fn encode(capset: &Capset) -> Vec<u8> {
    let mut wire = Wire::new_zeroed();
    wire.size = count(ENCODED_SIZE, ENCODED_SIZE);
    wire.major = U16::new(capset.offer.major);
    wire.minor = U16::new(capset.offer.minor);
    wire.requests = U64::new(capset.offer.requests);
    wire.create_flags = U32::new(capset.offer.create_flags.bits());
    wire.window_mode = U32::new(match capset.window_mode {
        WindowMode::Premapped => 0,
        WindowMode::OnDemand => 1,
    });
    wire.window_size = U64::new(capset.window_size);
    wire.max_blob_size = U64::new(capset.limits.max_blob_size);
    wire.max_context_bytes = U64::new(capset.limits.max_context_bytes);
    wire.max_device_bytes = U64::new(capset.limits.max_device_bytes);
    wire.max_context_blobs = U32::new(capset.limits.max_context_blobs);
    wire.page_size = U32::new(capset.page_size);
    wire.non_coherent_atom_size = U32::new(capset.non_coherent_atom_size);
    wire.provider = U32::new(match capset.provider {
        Provider::System => 0,
        Provider::Vulkan => 1,
        Provider::Gl => 2,
    });
    wire.vendor_id = U32::new(capset.vendor_id);
    wire.device_id = U32::new(capset.device_id);
    wire.device_uuid = capset.device_uuid;
    wire.driver_uuid = capset.driver_uuid;
    wire.device_name = name_bytes(&capset.device_name);
    wire.driver_name = name_bytes(&capset.driver_name);
    wire.heap_count = count(capset.heaps.len(), MAX_HEAPS);
    wire.type_count = count(capset.types.len(), MAX_TYPES);
    for (to, from) in wire.heaps.iter_mut().zip(&capset.heaps) {
        to.size = U64::new(from.size);
        to.flags = U32::new(from.flags);
    }
    for (to, from) in wire.types.iter_mut().zip(&capset.types) {
        to.property_flags = U32::new(from.property_flags);
        to.heap = U32::new(from.heap);
        to.cache = U32::new(match from.cache {
            Cache::Cached => map_cache::CACHED,
            Cache::Uncached => map_cache::UNCACHED,
            Cache::WriteCombined => map_cache::WC,
        });
    }
    wire.blob_mem = U32::new(capset.blob_mem.bits());
    wire.as_bytes().to_vec()
}

fn bad(field: &'static str, value: impl Into<u64>) -> DecodeError {
    DecodeError::Field {
        field,
        value: value.into(),
    }
}

/// The bytes that both the caller and the capset's own size vouch for, zero-extended to our layout.
fn read(bytes: &[u8]) -> Result<Wire, DecodeError> {
    let announced = U32::read_from_prefix(bytes)
        .map_err(|_| DecodeError::Truncated(bytes.len()))?
        .0
        .get() as usize;
    let valid = announced.min(bytes.len());
    if valid < MINIMUM_SIZE {
        return Err(DecodeError::Truncated(valid));
    }
    let mut wire = Wire::new_zeroed();
    for (to, from) in wire.as_mut_bytes().iter_mut().zip(bytes.iter().take(valid)) {
        *to = *from;
    }
    Ok(wire)
}

pub(crate) fn decode(bytes: &[u8]) -> Result<Capset, DecodeError> {
    let wire = read(bytes)?;
    let (heap_count, type_count) = (wire.heap_count.get(), wire.type_count.get());
    let heaps = wire
        .heaps
        .get(..heap_count as usize)
        .ok_or(bad("heap_count", heap_count))?;
    let types = wire
        .types
        .get(..type_count as usize)
        .ok_or(bad("type_count", type_count))?;
    let page_size = wire.page_size.get();
    if !page_size.is_power_of_two() || page_size < 4096 {
        return Err(bad("page_size", page_size));
    }
    let non_coherent_atom_size = wire.non_coherent_atom_size.get();
    if !non_coherent_atom_size.is_power_of_two() {
        return Err(bad("non_coherent_atom_size", non_coherent_atom_size));
    }
    Ok(Capset {
        offer: Offer {
            major: wire.major.get(),
            minor: wire.minor.get(),
            requests: wire.requests.get(),
            create_flags: CreateFlags::from_bits_truncate(wire.create_flags.get()),
        },
        window_mode: match wire.window_mode.get() {
            0 => WindowMode::Premapped,
            1 => WindowMode::OnDemand,
            other => return Err(bad("window_mode", other)),
        },
        window_size: wire.window_size.get(),
        limits: Limits {
            max_blob_size: wire.max_blob_size.get(),
            max_context_bytes: wire.max_context_bytes.get(),
            max_device_bytes: wire.max_device_bytes.get(),
            max_context_blobs: wire.max_context_blobs.get(),
        },
        page_size,
        non_coherent_atom_size,
        provider: match wire.provider.get() {
            0 => Provider::System,
            1 => Provider::Vulkan,
            2 => Provider::Gl,
            other => return Err(bad("provider", other)),
        },
        vendor_id: wire.vendor_id.get(),
        device_id: wire.device_id.get(),
        device_uuid: wire.device_uuid,
        driver_uuid: wire.driver_uuid,
        device_name: name_from(&wire.device_name),
        driver_name: name_from(&wire.driver_name),
        heaps: heaps
            .iter()
            .map(|heap| Heap {
                size: heap.size.get(),
                flags: heap.flags.get(),
            })
            .collect(),
        types: types
            .iter()
            .map(|t| decode_type(t, heap_count))
            .collect::<Result<_, _>>()?,
        blob_mem: BlobMem::from_bits_truncate(wire.blob_mem.get()) | BlobMem::HOST3D,
    })
}

fn decode_type(wire: &WireType, heap_count: u32) -> Result<MemoryType, DecodeError> {
    let heap = wire.heap.get();
    if heap >= heap_count {
        return Err(bad("types.heap", heap));
    }
    let cache = match wire.cache.get() {
        map_cache::CACHED => Cache::Cached,
        map_cache::UNCACHED => Cache::Uncached,
        map_cache::WC => Cache::WriteCombined,
        other => return Err(bad("types.cache", other)),
    };
    Ok(MemoryType {
        property_flags: wire.property_flags.get(),
        heap,
        cache,
    })
}
