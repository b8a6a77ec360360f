//! The virtio-gpu commands, as the virtio 1.3 specification lays them out (5.7.6.7 to 5.7.6.9, "Device
//! Operation"), for both ends: the device decodes them, the local-socket client makes them.
//!
//! A command is a [`CtrlHdr`] and the structure of its type, a response likewise. The structures here come after the
//! header and do not contain it. All integers are little-endian; sizes and offsets are bytes.

use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Device feature bit number (5.7.3): 3D mode; without it Linux refuses its 3D ioctls.
pub const F_VIRGL: u32 = 0;
/// Device feature bit number: EDID.
pub const F_EDID: u32 = 1;
/// Device feature bit number: RESOURCE_ASSIGN_UUID.
pub const F_RESOURCE_UUID: u32 = 2;
/// Device feature bit number: blob resources.
pub const F_RESOURCE_BLOB: u32 = 3;
/// Device feature bit number: contexts of a capset, and rings.
pub const F_CONTEXT_INIT: u32 = 4;
/// Device feature bit number: the configuration space has `blob_alignment`, of which blob sizes and offsets are multiples.
pub const F_BLOB_ALIGNMENT: u32 = 5;

/// Shared memory region id of the host-visible window.
pub const SHM_ID_HOST_VISIBLE: u8 = 1;

/// `virtio_gpu_ctrl_hdr.flags`: the response comes when the work is done.
pub const FLAG_FENCE: u32 = 1 << 0;
/// `virtio_gpu_ctrl_hdr.flags`: `ring_idx` counts, the fence is one of the context's timeline.
pub const FLAG_INFO_RING_IDX: u32 = 1 << 1;
/// Rings that a context may have.
pub const MAX_RINGS: u32 = 64;

macro_rules! numbers {
    ($($(#[$meta:meta])* $name:ident = $value:literal,)+) => { $($(#[$meta])* pub const $name: u32 = $value;)+ };
}

/// `virtio_gpu_ctrl_type` of commands.
#[allow(missing_docs, reason = "the names are those of the specification")]
pub mod cmd {
    numbers! {
        GET_DISPLAY_INFO = 0x0100,
        RESOURCE_CREATE_2D = 0x0101,
        RESOURCE_UNREF = 0x0102,
        SET_SCANOUT = 0x0103,
        RESOURCE_FLUSH = 0x0104,
        TRANSFER_TO_HOST_2D = 0x0105,
        RESOURCE_ATTACH_BACKING = 0x0106,
        RESOURCE_DETACH_BACKING = 0x0107,
        GET_CAPSET_INFO = 0x0108,
        GET_CAPSET = 0x0109,
        GET_EDID = 0x010a,
        RESOURCE_ASSIGN_UUID = 0x010b,
        RESOURCE_CREATE_BLOB = 0x010c,
        SET_SCANOUT_BLOB = 0x010d,
        CTX_CREATE = 0x0200,
        CTX_DESTROY = 0x0201,
        CTX_ATTACH_RESOURCE = 0x0202,
        CTX_DETACH_RESOURCE = 0x0203,
        RESOURCE_CREATE_3D = 0x0204,
        TRANSFER_TO_HOST_3D = 0x0205,
        TRANSFER_FROM_HOST_3D = 0x0206,
        SUBMIT_3D = 0x0207,
        RESOURCE_MAP_BLOB = 0x0208,
        RESOURCE_UNMAP_BLOB = 0x0209,
        UPDATE_CURSOR = 0x0300,
        MOVE_CURSOR = 0x0301,
    }
}

/// `virtio_gpu_ctrl_type` of responses.
#[allow(missing_docs, reason = "the names are those of the specification")]
pub mod resp {
    numbers! {
        OK_NODATA = 0x1100,
        OK_DISPLAY_INFO = 0x1101,
        OK_CAPSET_INFO = 0x1102,
        OK_CAPSET = 0x1103,
        OK_EDID = 0x1104,
        OK_RESOURCE_UUID = 0x1105,
        OK_MAP_INFO = 0x1106,
        ERR_UNSPEC = 0x1200,
        ERR_OUT_OF_MEMORY = 0x1201,
        ERR_INVALID_SCANOUT_ID = 0x1202,
        ERR_INVALID_RESOURCE_ID = 0x1203,
        ERR_INVALID_CONTEXT_ID = 0x1204,
        ERR_INVALID_PARAMETER = 0x1205,
    }
}

/// `virtio_gpu_resource_create_blob.blob_mem`.
#[allow(missing_docs, reason = "the names are those of the specification")]
pub mod blob_mem {
    numbers! {
        GUEST = 0x0001,
        HOST3D = 0x0002,
        HOST3D_GUEST = 0x0003,
    }
}

/// `virtio_gpu_resource_create_blob.blob_flags`.
#[allow(missing_docs, reason = "the names are those of the specification")]
pub mod blob_flag {
    numbers! {
        USE_MAPPABLE = 0x0001,
        USE_SHAREABLE = 0x0002,
        USE_CROSS_DEVICE = 0x0004,
    }
}

/// `virtio_gpu_resp_map_info.map_info`.
#[allow(missing_docs, reason = "the names are those of the specification")]
pub mod map_cache {
    numbers! {
        NONE = 0x00,
        CACHED = 0x01,
        UNCACHED = 0x02,
        WC = 0x03,
    }
}

/// `virtio_gpu_formats`: bytes of a pixel in the order in which they are in memory.
#[allow(missing_docs, reason = "the names are those of the specification")]
pub mod format {
    numbers! {
        B8G8R8A8_UNORM = 1,
        B8G8R8X8_UNORM = 2,
        A8R8G8B8_UNORM = 3,
        X8R8G8B8_UNORM = 4,
        R8G8B8A8_UNORM = 67,
        X8B8G8R8_UNORM = 68,
        A8B8G8R8_UNORM = 121,
        R8G8B8X8_UNORM = 134,
    }
}

macro_rules! wire {
    ($($(#[$meta:meta])* $name:ident: $size:literal { $($(#[$field_meta:meta])* $field:ident: $type:ty,)* })+) => { $(
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
        #[repr(C)]
        #[allow(missing_docs, reason = "the fields are those of the specification")]
        pub struct $name { $($(#[$field_meta])* pub $field: $type,)* }
        const _: () = assert!(size_of::<$name>() == $size);
    )+ };
}

wire! {
    /// `virtio_gpu_ctrl_hdr`: begins every command and every response.
    CtrlHdr: 24 { cmd_type: U32, flags: U32, fence_id: U64, ctx_id: U32, ring_idx: u8, padding: [u8; 3], }
    /// `virtio_gpu_resource_unref`, and the like: a resource and nothing more.
    ResourceOnly: 8 { resource_id: U32, padding: U32, }
    /// `virtio_gpu_get_capset_info`.
    GetCapsetInfo: 8 { capset_index: U32, padding: U32, }
    /// `virtio_gpu_resp_capset_info` after its header.
    CapsetInfo: 16 { capset_id: U32, capset_max_version: U32, capset_max_size: U32, padding: U32, }
    /// `virtio_gpu_get_capset`.
    GetCapset: 8 { capset_id: U32, capset_version: U32, }
    /// `virtio_gpu_ctx_create`; the low byte of `context_init` is the capset id.
    CtxCreate: 72 { nlen: U32, context_init: U32, debug_name: DebugName64, }
    /// `virtio_gpu_cmd_submit` before its data.
    CmdSubmit: 8 { size: U32, padding: U32, }
    /// `virtio_gpu_resource_create_blob` before its entries.
    ResourceCreateBlob: 32 {
        resource_id: U32, blob_mem: U32, blob_flags: U32, nr_entries: U32, blob_id: U64, size: U64,
    }
    /// `virtio_gpu_mem_entry`.
    MemEntry: 16 { addr: U64, length: U32, padding: U32, }
    /// `virtio_gpu_resource_attach_backing` before its entries.
    ResourceAttachBacking: 8 { resource_id: U32, nr_entries: U32, }
    /// `virtio_gpu_transfer_host_3d`. Of a blob, which has no format, `x` and `w` are bytes.
    TransferHost3d: 48 {
        x: U32, y: U32, z: U32, w: U32, h: U32, d: U32, offset: U64, resource_id: U32, level: U32, stride: U32,
        layer_stride: U32,
    }
    /// `virtio_gpu_resp_resource_uuid` after its header.
    ResourceUuid: 16 { uuid: [u8; 16], }
    /// `virtio_gpu_resource_map_blob`.
    ResourceMapBlob: 16 { resource_id: U32, padding: U32, offset: U64, }
    /// `virtio_gpu_resp_map_info` after its header.
    MapInfo: 8 { map_info: U32, padding: U32, }
    /// `virtio_gpu_rect`.
    Rect: 16 { x: U32, y: U32, width: U32, height: U32, }
    /// `virtio_gpu_resource_create_2d`.
    ResourceCreate2d: 16 { resource_id: U32, format: U32, width: U32, height: U32, }
    /// `virtio_gpu_resource_create_3d`.
    ResourceCreate3d: 48 {
        resource_id: U32, target: U32, format: U32, bind: U32, width: U32, height: U32, depth: U32, array_size: U32,
        last_level: U32, nr_samples: U32, flags: U32, padding: U32,
    }
    /// `virtio_gpu_transfer_to_host_2d`: `offset` is where the rectangle begins in the guest's pages.
    TransferToHost2d: 32 { r: Rect, offset: U64, resource_id: U32, padding: U32, }
    /// `virtio_gpu_set_scanout`; resource 0 shows nothing.
    SetScanout: 24 { r: Rect, scanout_id: U32, resource_id: U32, }
    /// `virtio_gpu_resource_flush`.
    ResourceFlush: 24 { r: Rect, resource_id: U32, padding: U32, }
    /// `virtio_gpu_display_one`.
    DisplayOne: 24 { r: Rect, enabled: U32, flags: U32, }
    /// `virtio_gpu_config`, with the field of [`F_BLOB_ALIGNMENT`] and one that keeps the size a multiple of 8.
    Config: 24 {
        events_read: U32, events_clear: U32, num_scanouts: U32, num_capsets: U32, blob_alignment: U32, padding: U32,
    }
}

/// The name bytes of [`CtxCreate`].
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct DebugName64(pub [u8; 64]);

impl Default for DebugName64 {
    fn default() -> Self {
        Self([0; 64])
    }
}

/// Scanouts in `virtio_gpu_resp_display_info`.
pub const MAX_SCANOUTS: usize = 16;
