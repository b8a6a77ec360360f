//! Structures and numbers that cross the boundary: those of `rutabaga_gfx_ffi.h` 0.1.6, in its layout.

use std::ffi::{c_char, c_void};

use libc::iovec;

/// The header's version, first part.
pub const RUTABAGA_VERSION_MAJOR: u32 = 0;
/// The header's version, second part.
pub const RUTABAGA_VERSION_MINOR: u32 = 1;
/// The header's version, third part.
pub const RUTABAGA_VERSION_PATCH: u32 = 6;

/// Served where rutabaga_gfx was built with virglrenderer.
pub const RUTABAGA_CAPSET_VIRGL: u32 = 1;
/// As RUTABAGA_CAPSET_VIRGL.
pub const RUTABAGA_CAPSET_VIRGL2: u32 = 2;
/// Served where rutabaga_gfx was built with gfxstream.
pub const RUTABAGA_CAPSET_GFXSTREAM_VULKAN: u32 = 3;
/// As RUTABAGA_CAPSET_VIRGL.
pub const RUTABAGA_CAPSET_VENUS: u32 = 4;
/// Wayland and the like.
pub const RUTABAGA_CAPSET_CROSS_DOMAIN: u32 = 5;
/// As RUTABAGA_CAPSET_VIRGL.
pub const RUTABAGA_CAPSET_DRM: u32 = 6;
/// Magma.
pub const RUTABAGA_CAPSET_GFXSTREAM_MAGMA: u32 = 7;
/// As RUTABAGA_CAPSET_GFXSTREAM_VULKAN.
pub const RUTABAGA_CAPSET_GFXSTREAM_GLES: u32 = 8;
/// As RUTABAGA_CAPSET_GFXSTREAM_VULKAN.
pub const RUTABAGA_CAPSET_GFXSTREAM_COMPOSER: u32 = 9;

/// rutabaga_create_blob.blob_mem: pages of the guest.
pub const RUTABAGA_BLOB_MEM_GUEST: u32 = 1;
/// rutabaga_create_blob.blob_mem: memory of the host.
pub const RUTABAGA_BLOB_MEM_HOST3D: u32 = 2;
/// rutabaga_create_blob.blob_mem: both.
pub const RUTABAGA_BLOB_MEM_HOST3D_GUEST: u32 = 3;

/// rutabaga_create_blob.blob_flags: it can be mapped.
pub const RUTABAGA_BLOB_FLAG_USE_MAPPABLE: u32 = 1;
/// rutabaga_create_blob.blob_flags: it can be exported.
pub const RUTABAGA_BLOB_FLAG_USE_SHAREABLE: u32 = 2;
/// rutabaga_create_blob.blob_flags: it can be exported to other devices.
pub const RUTABAGA_BLOB_FLAG_USE_CROSS_DEVICE: u32 = 4;

/// The bits of map_info that virtio-gpu knows.
pub const RUTABAGA_MAP_CACHE_MASK: u32 = 0x0f;
/// map_info: cached.
pub const RUTABAGA_MAP_CACHE_CACHED: u32 = 0x01;
/// map_info: uncached.
pub const RUTABAGA_MAP_CACHE_UNCACHED: u32 = 0x02;
/// map_info: write-combined.
pub const RUTABAGA_MAP_CACHE_WC: u32 = 0x03;
/// The bits of map_info that a VMM protects its mapping with.
pub const RUTABAGA_MAP_ACCESS_MASK: u32 = 0xf0;
/// map_info: the guest reads.
pub const RUTABAGA_MAP_ACCESS_READ: u32 = 0x10;
/// map_info: the guest writes.
pub const RUTABAGA_MAP_ACCESS_WRITE: u32 = 0x20;
/// map_info: the guest reads and writes.
pub const RUTABAGA_MAP_ACCESS_RW: u32 = 0x30;

/// rutabaga_handle.handle_type: an opaque descriptor of a GPU driver.
pub const RUTABAGA_HANDLE_TYPE_MEM_OPAQUE_FD: u32 = 0x1;
/// rutabaga_handle.handle_type: a dma-buf.
pub const RUTABAGA_HANDLE_TYPE_MEM_DMABUF: u32 = 0x2;
/// rutabaga_handle.handle_type: not on Linux.
pub const RUTABAGA_HANDLE_TYPE_MEM_OPAQUE_WIN32: u32 = 0x3;
/// rutabaga_handle.handle_type: a memfd.
pub const RUTABAGA_HANDLE_TYPE_MEM_SHM: u32 = 0x4;
/// rutabaga_handle.handle_type: not on Linux.
pub const RUTABAGA_HANDLE_TYPE_MEM_ZIRCON: u32 = 0x5;
/// rutabaga_handle.handle_type: an opaque descriptor of a semaphore.
pub const RUTABAGA_HANDLE_TYPE_SIGNAL_OPAQUE_FD: u32 = 0x10;
/// rutabaga_handle.handle_type: a sync file.
pub const RUTABAGA_HANDLE_TYPE_SIGNAL_SYNC_FD: u32 = 0x20;
/// rutabaga_handle.handle_type: not on Linux.
pub const RUTABAGA_HANDLE_TYPE_SIGNAL_OPAQUE_WIN32: u32 = 0x30;
/// rutabaga_handle.handle_type: not on Linux.
pub const RUTABAGA_HANDLE_TYPE_SIGNAL_ZIRCON: u32 = 0x40;
/// rutabaga_handle.handle_type: an eventfd.
pub const RUTABAGA_HANDLE_TYPE_SIGNAL_EVENT_FD: u32 = 0x50;
/// rutabaga_handle.handle_type: not on Linux.
pub const RUTABAGA_HANDLE_TYPE_PLATFORM_SCREEN_BUFFER_QNX: u32 = 0x01000000;
/// rutabaga_handle.handle_type: EGL's.
pub const RUTABAGA_HANDLE_TYPE_PLATFORM_EGL_NATIVE_PIXMAP: u32 = 0x02000000;
/// rutabaga_handle.handle_type: not on Linux.
pub const RUTABAGA_HANDLE_TYPE_PLATFORM_AHB: u32 = 0x03000000;

/// rutabaga_channel.channel_type: a Wayland compositor's socket.
pub const RUTABAGA_CHANNEL_TYPE_WAYLAND: u32 = 1;
/// rutabaga_channel.channel_type: PipeWire's socket.
pub const RUTABAGA_CHANNEL_TYPE_PIPEWIRE: u32 = 0x10;
/// rutabaga_channel.channel_type: an X server's socket.
pub const RUTABAGA_CHANNEL_TYPE_X11: u32 = 0x11;
/// rutabaga_channel.channel_type: the session bus.
pub const RUTABAGA_CHANNEL_TYPE_DBUS_SESSION: u32 = 0x12;
/// rutabaga_channel.channel_type: the system bus.
pub const RUTABAGA_CHANNEL_TYPE_DBUS_SYSTEM: u32 = 0x13;

/// rutabaga_builder.wsi: the only one.
pub const RUTABAGA_WSI_SURFACELESS: u32 = 1;

/// rutabaga_fence.flags: it is a fence.
pub const RUTABAGA_FLAG_FENCE: u32 = 1;
/// rutabaga_fence.flags: ctx_id and ring_idx count.
pub const RUTABAGA_FLAG_INFO_RING_IDX: u32 = 2;
/// rutabaga_fence.flags: it can be exported.
pub const RUTABAGA_FLAG_FENCE_SHAREABLE: u32 = 4;

/// rutabaga_debug.debug_type.
pub const RUTABAGA_DEBUG_ERROR: u32 = 1;
/// rutabaga_debug.debug_type.
pub const RUTABAGA_DEBUG_WARN: u32 = 2;
/// rutabaga_debug.debug_type.
pub const RUTABAGA_DEBUG_INFO: u32 = 3;

/// rutabaga_import_data.flags: info_3d counts.
pub const RUTABAGA_IMPORT_FLAG_3D_INFO: u32 = 1;
/// rutabaga_import_data.flags: not served.
pub const RUTABAGA_IMPORT_FLAG_VULKAN_INFO: u32 = 2;
/// rutabaga_import_data.flags: the resource exists.
pub const RUTABAGA_IMPORT_FLAG_RESOURCE_EXISTS: u32 = 0x4000_0000;
/// rutabaga_import_data.flags: its bytes stay.
pub const RUTABAGA_IMPORT_FLAG_PRESERVE_CONTENT: u32 = 0x8000_0000;

/// A device: from rutabaga_init() to rutabaga_finish().
pub struct rutabaga {
    _opaque: [u8; 0],
}

/// RESOURCE_CREATE_BLOB.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct rutabaga_create_blob {
    /// RUTABAGA_BLOB_MEM_*.
    pub blob_mem: u32,
    /// RUTABAGA_BLOB_FLAG_*.
    pub blob_flags: u32,
    /// What the context calls the memory.
    pub blob_id: u64,
    /// Bytes.
    pub size: u64,
}

/// RESOURCE_CREATE_2D and RESOURCE_CREATE_3D.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
#[allow(
    missing_docs,
    reason = "the fields are those of virtio_gpu_resource_create_3d"
)]
pub struct rutabaga_create_3d {
    pub target: u32,
    pub format: u32,
    pub bind: u32,
    pub width: u32,
    pub height: u32,
    pub depth: u32,
    pub array_size: u32,
    pub last_level: u32,
    pub nr_samples: u32,
    pub flags: u32,
}

/// The planes of an imported image.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
#[allow(missing_docs, reason = "the fields are those of DRM")]
pub struct rutabaga_3d_info {
    pub width: u32,
    pub height: u32,
    pub drm_fourcc: u32,
    pub strides: [u32; 4],
    pub offsets: [u32; 4],
    pub modifier: u64,
}

/// What an imported descriptor is.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct rutabaga_import_data {
    /// RUTABAGA_IMPORT_FLAG_*.
    pub flags: u32,
    /// With RUTABAGA_IMPORT_FLAG_3D_INFO.
    pub info_3d: rutabaga_3d_info,
}

/// TRANSFER_TO_HOST_2D, TRANSFER_TO_HOST_3D and TRANSFER_FROM_HOST_3D.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
#[allow(
    missing_docs,
    reason = "the fields are those of virtio_gpu_transfer_host_3d"
)]
pub struct rutabaga_transfer {
    pub x: u32,
    pub y: u32,
    pub z: u32,
    pub w: u32,
    pub h: u32,
    pub d: u32,
    pub level: u32,
    pub stride: u32,
    pub layer_stride: u32,
    pub offset: u64,
}

/// Guest memory, where the VMM has it mapped.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct rutabaga_iovecs {
    /// As many as num_iovecs says.
    pub iovecs: *mut iovec,
    /// At most 262144.
    pub num_iovecs: usize,
}

/// A descriptor.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct rutabaga_handle {
    /// The descriptor.
    pub os_handle: i64,
    /// RUTABAGA_HANDLE_TYPE_*.
    pub handle_type: u32,
}

/// Where a blob is mapped.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct rutabaga_mapping {
    /// First byte.
    pub ptr: *mut c_void,
    /// Bytes.
    pub size: u64,
}

/// SUBMIT_3D.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct rutabaga_command {
    /// Whose.
    pub ctx_id: u32,
    /// Bytes.
    pub cmd_size: u32,
    /// They.
    pub cmd: *mut u8,
    /// Fences to wait for first. Contexts of hostblob have no use for them.
    pub num_in_fences: u32,
    /// They.
    pub fence_ids: *mut u64,
}

/// What a cross-domain context may connect to.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct rutabaga_channel {
    /// Path of a socket, zero-terminated.
    pub channel_name: *const c_char,
    /// RUTABAGA_CHANNEL_TYPE_*.
    pub channel_type: u32,
}

/// Several of them.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct rutabaga_channels {
    /// As many as num_channels says.
    pub channels: *mut rutabaga_channel,
    /// At most 64.
    pub num_channels: usize,
}

/// A fence of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct rutabaga_fence {
    /// RUTABAGA_FLAG_*.
    pub flags: u32,
    /// The guest's number for it.
    pub fence_id: u64,
    /// Whose, with RUTABAGA_FLAG_INFO_RING_IDX.
    pub ctx_id: u32,
    /// On which timeline of the context, with RUTABAGA_FLAG_INFO_RING_IDX: less than 64.
    pub ring_idx: u32,
}

/// A message.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct rutabaga_debug {
    /// RUTABAGA_DEBUG_*.
    pub debug_type: u32,
    /// Zero-terminated; gone when the callback returns.
    pub message: *const c_char,
}

/// Told when a fence is reached, from a thread of the library, one at a time. It may call the library, but not finish the device.
pub type rutabaga_fence_callback =
    Option<unsafe extern "C-unwind" fn(user_data: u64, fence: *const rutabaga_fence)>;

/// Told what went wrong, from any thread. It may not call the library.
pub type rutabaga_debug_callback =
    Option<unsafe extern "C-unwind" fn(user_data: u64, debug: *const rutabaga_debug)>;

/// What a device is made of.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct rutabaga_builder {
    /// Passed to the callbacks.
    pub user_data: u64,
    /// Capsets of rutabaga_gfx, bit n for capset n. That of hostblob is there in any case.
    pub capset_mask: u64,
    /// RUTABAGA_WSI_SURFACELESS.
    pub wsi: u64,
    /// Not NULL.
    pub fence_cb: rutabaga_fence_callback,
    /// May be NULL. All devices of a process have their messages go to the first that has one.
    pub debug_cb: rutabaga_debug_callback,
    /// May be NULL.
    pub channels: *mut rutabaga_channels,
    /// For gfxstream, and read with its capsets alone: headers up to 0.1.3 have no such field. Zero-terminated; may be NULL.
    pub renderer_features: *const c_char,
}
