//! The capset: what a hostblob device tells its guest before the guest asks for anything.
//!
//! [`Capset`] is the value, [`Capset::encode`] makes its bytes: a fixed layout that begins with its own size and grows
//! only at the end, so that an old guest reads what it knows of a new capset and a new guest sees zeros where an old host
//! said nothing. `docs/protocol.md` has the offsets. What the host cannot do is not in it. [`negotiate`] finds out what two peers can speak, and both use it.

#![forbid(unsafe_code)]

mod layout;
mod negotiate;

pub use layout::{DecodeError, ENCODED_SIZE, MAX_HEAPS, MAX_TYPES, NAME_SIZE};
pub use negotiate::{Agreed, Mismatch, Offer, negotiate};

use hostblob_protocol::request::CreateFlags;
use hostblob_protocol::virtio_gpu::blob_mem;

/// Version of the capset that GET_CAPSET asks for; other versions get the same bytes, as they only grow.
pub const VERSION: u32 = 1;

/// How the window is mapped by the VMM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WindowMode {
    /// The whole window is one mapping; only placed blobs can be mapped.
    Premapped,
    /// Each blob is its own mapping.
    OnDemand,
}

/// Which API reaches the memory on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Provider {
    /// None: the CPU fills and copies.
    System,
    /// Vulkan.
    Vulkan,
    /// OpenGL.
    Gl,
}

/// CPU cache mode of a guest mapping (`VIRTIO_GPU_MAP_CACHE_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cache {
    /// Write-back cached.
    Cached,
    /// Uncached.
    Uncached,
    /// Write-combining.
    WriteCombined,
}

/// Bytes and counts past which the device refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Limits {
    /// Largest blob or memory in bytes.
    pub max_blob_size: u64,
    /// Bytes that one context may hold.
    pub max_context_bytes: u64,
    /// Bytes that all contexts together may hold.
    pub max_device_bytes: u64,
    /// Memories and blobs that one context may hold.
    pub max_context_blobs: u32,
}

/// `VkMemoryHeap`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Heap {
    /// Bytes.
    pub size: u64,
    /// `VkMemoryHeapFlags`.
    pub flags: u32,
}

/// `VkMemoryType`, and how the guest maps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MemoryType {
    /// `VkMemoryPropertyFlags`. Without `HOST_VISIBLE` the guest cannot map it.
    pub property_flags: u32,
    /// Index into [`Capset::heaps`].
    pub heap: u32,
    /// The cache mode of guest mappings.
    pub cache: Cache,
}

/// `VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT`.
pub const MEMORY_PROPERTY_HOST_VISIBLE: u32 = 0x2;

impl MemoryType {
    /// Whether the guest can map memory of this type.
    pub fn is_host_visible(&self) -> bool {
        self.property_flags & MEMORY_PROPERTY_HOST_VISIBLE != 0
    }
}

bitflags::bitflags! {
    /// Where the bytes of blobs may live: bit `n` stands for `VIRTIO_GPU_BLOB_MEM_*` of number `n`.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    pub struct BlobMem: u32 {
        /// In pages of the guest.
        const GUEST = 1 << blob_mem::GUEST;
        /// In memory of the host. Every device serves it.
        const HOST3D = 1 << blob_mem::HOST3D;
        /// In memory of the host, with pages of the guest that transfers copy to and from.
        const HOST3D_GUEST = 1 << blob_mem::HOST3D_GUEST;
    }
}

/// All that the device says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capset {
    /// Protocol version, requests and flags that the host serves.
    pub offer: Offer,
    /// How the window is mapped.
    pub window_mode: WindowMode,
    /// Bytes of the window.
    pub window_size: u64,
    /// Past which the device refuses.
    pub limits: Limits,
    /// Bytes. Sizes of memories and blobs, and the window offsets of blobs, are multiples of it: the larger of host page size and
    /// GPU attach alignment, a power of two, at least 4096.
    pub page_size: u32,
    /// Bytes. Offsets and lengths of flush and invalidate are multiples of it (`nonCoherentAtomSize`): a power of two.
    pub non_coherent_atom_size: u32,
    /// Which API reaches the memory.
    pub provider: Provider,
    /// PCI vendor, or 0.
    pub vendor_id: u32,
    /// PCI device, or 0.
    pub device_id: u32,
    /// `VkPhysicalDeviceIDProperties::deviceUUID`.
    pub device_uuid: [u8; 16],
    /// `VkPhysicalDeviceIDProperties::driverUUID`.
    pub driver_uuid: [u8; 16],
    /// For people. At most [`NAME_SIZE`] - 1 bytes travel, up to the first zero character; the rest is cut at a character
    /// boundary.
    pub device_name: String,
    /// For people; cut as `device_name` is.
    pub driver_name: String,
    /// At most [`MAX_HEAPS`]; those past it do not travel.
    pub heaps: Vec<Heap>,
    /// At most [`MAX_TYPES`], those past it do not travel; ordered as the Vulkan specification orders memory types.
    pub types: Vec<MemoryType>,
    /// Which blobs can be created. Hosts of version 1.0 say nothing, and serve [`BlobMem::HOST3D`].
    pub blob_mem: BlobMem,
}

impl Capset {
    /// Index of the first memory type that has all of `properties` (`VkMemoryPropertyFlags`).
    pub fn find_type(&self, properties: u32) -> Option<u32> {
        let index = self
            .types
            .iter()
            .position(|t| t.property_flags & properties == properties)?;
        u32::try_from(index).ok()
    }

    /// Whether the host serves all of these [`CreateFlags`].
    pub fn serves(&self, flags: CreateFlags) -> bool {
        self.offer.create_flags.contains(flags)
    }

    /// The bytes for GET_CAPSET: always [`ENCODED_SIZE`]. Names, heaps and types that do not fit are cut.
    pub fn encode(&self) -> Vec<u8> {
        layout::encode(self)
    }

    /// Reads the bytes of a host of any version: what is longer than known is ignored; what is shorter, though never than
    /// version 1, is zeros. Unknown bits of `requests` are kept and unknown create flags dropped: [`negotiate`] intersects
    /// both anyhow.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Truncated`] where fewer bytes are there, or announced, than version 1 has; [`DecodeError::Field`] where a count
    /// exceeds the layout, a type names a heap that is not there, an enumerator (window mode, provider, cache mode) is unknown, or a
    /// size that must be a power of two is none.
    pub fn decode(bytes: &[u8]) -> Result<Capset, DecodeError> {
        layout::decode(bytes)
    }
}
