//! What a caller says: how to open, what to allocate, how to map. Plain values, checked where they are used.

use std::path::PathBuf;
use std::time::Duration;

use hostblob_capset::MEMORY_PROPERTY_HOST_VISIBLE;
use hostblob_protocol::Request;
use hostblob_protocol::answers;
use hostblob_protocol::request::{Access, CacheMode, MemorySelector};

/// Environment variable: path of a `hostblobd --local-socket`.
pub const ENV_SOCKET: &str = "HOSTBLOB_SOCKET";
/// Environment variable: path of a DRM render node.
pub const ENV_RENDER_NODE: &str = "HOSTBLOB_RENDER_NODE";
/// Environment variable: the virtio-gpu capset id, for a daemon that was started with `--capset-id`.
pub const ENV_CAPSET_ID: &str = "HOSTBLOB_CAPSET_ID";
/// Environment variable: log level of the C library and of [`log_to_stderr`](crate::log_to_stderr) (`error`, `warn`, `info`, `debug`, `trace`).
pub const ENV_LOG: &str = "HOSTBLOB_LOG";

/// Where the device is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Endpoint {
    /// [`ENV_SOCKET`] if set, else [`ENV_RENDER_NODE`] if set, else [`Endpoint::AnyRenderNode`].
    #[default]
    Environment,
    /// The Unix socket of a `hostblobd --local-socket`.
    Socket(PathBuf),
    /// This render node.
    RenderNode(PathBuf),
    /// The first node of `/dev/dri` that offers hostblob.
    AnyRenderNode,
}

/// How to open a [`Device`](crate::Device).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenOptions {
    /// Where.
    pub endpoint: Endpoint,
    /// The virtio-gpu capset id; `None` is [`ENV_CAPSET_ID`] if set, else the daemon's own over the socket and
    /// [`hostblob_protocol::DEFAULT_CAPSET_ID`] on a render node.
    pub capset_id: Option<u32>,
    /// After this time without a response, the device counts as lost. More than ten years is ten years.
    pub timeout: Duration,
    /// Bytes of the control page, between [`answers::MIN_SIZE`] and [`answers::MAX_SIZE`]: 32 bytes for each request in flight.
    pub control_size: u64,
    /// How small requests are served.
    pub pool: PoolOptions,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            endpoint: Endpoint::default(),
            capset_id: None,
            timeout: Duration::from_secs(30),
            control_size: answers::MAX_SIZE as u64,
            pool: PoolOptions::default(),
        }
    }
}

impl OpenOptions {
    /// Opens the socket of a `hostblobd --local-socket`.
    pub fn socket(path: impl Into<PathBuf>) -> Self {
        Self {
            endpoint: Endpoint::Socket(path.into()),
            ..Self::default()
        }
    }

    /// Opens a render node.
    pub fn render_node(path: impl Into<PathBuf>) -> Self {
        Self {
            endpoint: Endpoint::RenderNode(path.into()),
            ..Self::default()
        }
    }
}

/// Requests of up to this many bytes come from blocks, unless told otherwise.
pub const DEDICATED_ABOVE: u64 = 2 << 20;
/// Blocks are multiples of it, so that huge pages fit.
pub const BLOCK_GRANULE: u64 = 2 << 20;

/// How small requests are served: out of blocks, in the guest process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolOptions {
    /// Bytes of the first block of a memory type, and the least of later ones. Rounded up to a multiple of [`BLOCK_GRANULE`].
    pub first_block: u64,
    /// Later blocks have a sixteenth of the bytes that are there, up to this size.
    pub largest_block: u64,
    /// Larger requests get a blob of their own. 0: all do.
    pub dedicated_above: u64,
    /// Block lists per memory type, so that threads do not wait for each other; 0 is one per processor, at most 8.
    pub shards: usize,
}

impl Default for PoolOptions {
    fn default() -> Self {
        Self {
            first_block: 16 << 20,
            largest_block: 64 << 20,
            dedicated_above: DEDICATED_ABOVE,
            shards: 0,
        }
    }
}

/// What to allocate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AllocateInfo<'a> {
    /// Bytes, not 0.
    pub size: u64,
    /// From which memory type.
    pub memory: MemorySelector,
    /// Alignment in bytes of the first byte: 0 (64 is guaranteed) or a power of two up to the capset's page size.
    pub alignment: u64,
    /// The cache mode that the caller counts on; another one is [`Status::CacheModeMismatch`](crate::Status).
    pub expected_cache: CacheMode,
    /// It will be exported as a dma-buf. Gets a blob of its own.
    pub shareable: bool,
    /// Gets a blob of its own whatever the size (`VK_KHR_dedicated_allocation`).
    pub dedicated: bool,
    /// Create and map in one step. Without it, memory is created now and bound to a blob when it is first mapped,
    /// and survives [`Memory::unmap`](crate::Memory::unmap) outside the window.
    pub map_directly: bool,
    /// For the daemon's log; only memory with a blob of its own keeps it.
    pub name: Option<&'a str>,
}

impl<'a> AllocateInfo<'a> {
    /// Host-visible memory of any cache mode.
    pub fn new(size: u64) -> Self {
        Self {
            size,
            memory: MemorySelector::Properties(MEMORY_PROPERTY_HOST_VISIBLE),
            alignment: 0,
            expected_cache: CacheMode::Any,
            shareable: false,
            dedicated: false,
            map_directly: true,
            name: None,
        }
    }

    /// From the type of this index in the capset.
    #[must_use]
    pub fn memory_type(mut self, index: u32) -> Self {
        self.memory = MemorySelector::Index(index);
        self
    }

    /// From the first type that has these `VkMemoryPropertyFlags`.
    #[must_use]
    pub fn properties(mut self, flags: u32) -> Self {
        self.memory = MemorySelector::Properties(flags);
        self
    }

    /// Sets [`AllocateInfo::alignment`].
    #[must_use]
    pub fn alignment(mut self, alignment: u64) -> Self {
        self.alignment = alignment;
        self
    }

    /// Sets [`AllocateInfo::expected_cache`].
    #[must_use]
    pub fn expected_cache(mut self, cache: CacheMode) -> Self {
        self.expected_cache = cache;
        self
    }

    /// Sets [`AllocateInfo::shareable`].
    #[must_use]
    pub fn shareable(mut self) -> Self {
        self.shareable = true;
        self
    }

    /// Sets [`AllocateInfo::dedicated`].
    #[must_use]
    pub fn dedicated(mut self) -> Self {
        self.dedicated = true;
        self
    }

    /// Clears [`AllocateInfo::map_directly`].
    #[must_use]
    pub fn deferred(mut self) -> Self {
        self.map_directly = false;
        self
    }

    /// Sets [`AllocateInfo::name`].
    #[must_use]
    pub fn name(mut self, name: &'a str) -> Self {
        self.name = Some(name);
        self
    }
}

/// What the caller counts on when it maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapInfo {
    /// Another cache mode is [`Status::CacheModeMismatch`](crate::Status).
    pub expected_cache: CacheMode,
    /// What the mapping is for; not empty.
    pub access: Access,
}

impl Default for MapInfo {
    fn default() -> Self {
        Self {
            expected_cache: CacheMode::Any,
            access: Access::READ | Access::WRITE,
        }
    }
}

/// A blob to create as it is, for tests and tools.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlobInfo<'a> {
    /// 0 is plain host memory; else a client id.
    pub blob_id: u64,
    /// Bytes: whole pages, those of the guest and those of the capset.
    pub size: u64,
    /// `VIRTIO_GPU_BLOB_FLAG_USE_MAPPABLE`, and mapped into the window at once, as Linux does.
    pub mappable: bool,
    /// `VIRTIO_GPU_BLOB_FLAG_USE_SHAREABLE`.
    pub shareable: bool,
    /// Requests that the host executes just before the creation; may be empty.
    pub requests: &'a [Request],
}

/// What a heap has for this context (`VK_EXT_memory_budget`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Bytes that the context may use, its usage included.
    pub budget: u64,
    /// Bytes that it uses.
    pub usage: u64,
}

/// What a device has done and holds, counted in the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Statistics {
    /// Blocks that live.
    pub blocks: u64,
    /// Their bytes.
    pub block_bytes: u64,
    /// Memories that live in blocks.
    pub suballocations: u64,
    /// Their bytes, alignment included.
    pub suballocated_bytes: u64,
    /// Times that the host was asked for something since the device was opened.
    pub commands: u64,
}
