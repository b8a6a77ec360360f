//! The kernel's structures and ioctl numbers (include/uapi/drm/drm.h and virtgpu_drm.h), as far as they are used.
//!
//! Names and meanings are the kernel's; sizes and offsets are asserted, since the size is part of each ioctl's number.

use rustix::ioctl::{Opcode, opcode};

const DRM: u8 = b'd';
const DRIVER: u8 = 0x40;

macro_rules! uapi {
    ($($(#[$meta:meta])* $name:ident: $size:literal { $($field:ident: $type:ty,)* })+) => { $(
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, Default)]
        #[repr(C)]
        pub(super) struct $name { $(pub(super) $field: $type,)* }
        const _: () = assert!(size_of::<$name>() == $size);
    )+ };
}

uapi! {
    /// `drm_version` of 64-bit programs: lengths are `size_t`.
    Version: 64 {
        major: i32, minor: i32, patchlevel: i32, pad: u32, name_len: u64, name: u64, date_len: u64, date: u64,
        desc_len: u64, desc: u64,
    }
    GemClose: 8 { handle: u32, pad: u32, }
    PrimeHandle: 12 { handle: u32, flags: u32, fd: i32, }
    Map: 16 { offset: u64, handle: u32, pad: u32, }
    /// As of Linux 6.6. Older kernels know the first 40 bytes; DRM ignores the rest there, and all of it is 0.
    ExecBuffer: 64 {
        flags: u32, size: u32, command: u64, bo_handles: u64, num_bo_handles: u32, fence_fd: i32, ring_idx: u32,
        syncobj_stride: u32, num_in_syncobjs: u32, num_out_syncobjs: u32, in_syncobjs: u64, out_syncobjs: u64,
    }
    /// `value` is the address of an `int` on 64-bit, written as `u64` for parameter 7.
    GetParam: 16 { param: u64, value: u64, }
    ResourceInfo: 16 { bo_handle: u32, res_handle: u32, size: u32, blob_mem: u32, }
    GetCaps: 24 { cap_set_id: u32, cap_set_ver: u32, addr: u64, size: u32, pad: u32, }
    CreateBlob: 48 {
        blob_mem: u32, blob_flags: u32, bo_handle: u32, res_handle: u32, size: u64, pad: u32, cmd_size: u32,
        cmd: u64, blob_id: u64,
    }
    ContextSetParam: 16 { param: u64, value: u64, }
    ContextInit: 16 { num_params: u32, pad: u32, ctx_set_params: u64, }
}

/// `drm_prime_handle` serves two ioctls: this one makes a descriptor.
#[derive(Debug, Default)]
#[repr(transparent)]
pub(super) struct PrimeToFd(pub(super) PrimeHandle);

/// The other one: takes a descriptor.
#[derive(Debug, Default)]
#[repr(transparent)]
pub(super) struct PrimeFromFd(pub(super) PrimeHandle);

/// An ioctl's structure, and its number.
///
/// # Safety
/// The kernel reads and writes exactly this type for this number. Addresses in it must be valid when it is sent.
pub(super) unsafe trait Command: Default {
    const OPCODE: Opcode;
    const NAME: &'static str;
}

macro_rules! commands {
    ($($type:ident $name:literal = $opcode:expr;)+) => { $(
        // SAFETY: number, direction and type are paired as in the kernel's headers; the size assert above pins the layout.
        unsafe impl Command for $type {
            const OPCODE: Opcode = $opcode;
            const NAME: &'static str = $name;
        }
    )+ };
}

commands! {
    Version "DRM_IOCTL_VERSION" = opcode::read_write::<Version>(DRM, 0x00);
    GemClose "DRM_IOCTL_GEM_CLOSE" = opcode::write::<GemClose>(DRM, 0x09);
    Map "DRM_IOCTL_VIRTGPU_MAP" = opcode::read_write::<Map>(DRM, DRIVER + 0x01);
    ExecBuffer "DRM_IOCTL_VIRTGPU_EXECBUFFER" = opcode::read_write::<ExecBuffer>(DRM, DRIVER + 0x02);
    GetParam "DRM_IOCTL_VIRTGPU_GETPARAM" = opcode::read_write::<GetParam>(DRM, DRIVER + 0x03);
    ResourceInfo "DRM_IOCTL_VIRTGPU_RESOURCE_INFO" = opcode::read_write::<ResourceInfo>(DRM, DRIVER + 0x05);
    GetCaps "DRM_IOCTL_VIRTGPU_GET_CAPS" = opcode::read_write::<GetCaps>(DRM, DRIVER + 0x09);
    CreateBlob "DRM_IOCTL_VIRTGPU_RESOURCE_CREATE_BLOB" = opcode::read_write::<CreateBlob>(DRM, DRIVER + 0x0a);
    PrimeToFd "DRM_IOCTL_PRIME_HANDLE_TO_FD" = opcode::read_write::<PrimeToFd>(DRM, 0x2d);
    PrimeFromFd "DRM_IOCTL_PRIME_FD_TO_HANDLE" = opcode::read_write::<PrimeFromFd>(DRM, 0x2e);
    ContextInit "DRM_IOCTL_VIRTGPU_CONTEXT_INIT" = opcode::read_write::<ContextInit>(DRM, DRIVER + 0x0b);
}

/// `O_CLOEXEC | O_RDWR` for PRIME_HANDLE_TO_FD.
pub(super) const PRIME_FLAGS: u32 = 0o2_000_000 | 0o2;

pub(super) const PARAM_3D_FEATURES: u64 = 1;
pub(super) const PARAM_RESOURCE_BLOB: u64 = 3;
pub(super) const PARAM_HOST_VISIBLE: u64 = 4;
pub(super) const PARAM_CONTEXT_INIT: u64 = 6;
pub(super) const PARAM_SUPPORTED_CAPSET_IDS: u64 = 7;

pub(super) const EXECBUF_FENCE_FD_OUT: u32 = 0x02;
pub(super) const EXECBUF_RING_IDX: u32 = 0x04;

pub(super) const CONTEXT_PARAM_CAPSET_ID: u64 = 1;
pub(super) const CONTEXT_PARAM_NUM_RINGS: u64 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ioctl_numbers_are_those_of_the_kernel() {
        assert_eq!(Version::OPCODE, 0xc040_6400);
        assert_eq!(GemClose::OPCODE, 0x4008_6409);
        assert_eq!(PrimeToFd::OPCODE, 0xc00c_642d);
        assert_eq!(PrimeFromFd::OPCODE, 0xc00c_642e);
        assert_eq!(Map::OPCODE, 0xc010_6441);
        assert_eq!(ExecBuffer::OPCODE, 0xc040_6442);
        assert_eq!(GetParam::OPCODE, 0xc010_6443);
        assert_eq!(ResourceInfo::OPCODE, 0xc010_6445);
        assert_eq!(GetCaps::OPCODE, 0xc018_6449);
        assert_eq!(CreateBlob::OPCODE, 0xc030_644a);
        assert_eq!(ContextInit::OPCODE, 0xc010_644b);
    }

    #[test]
    fn fields_are_where_the_kernel_has_them() {
        assert_eq!(std::mem::offset_of!(Version, name_len), 16);
        assert_eq!(std::mem::offset_of!(ExecBuffer, fence_fd), 28);
        assert_eq!(std::mem::offset_of!(ExecBuffer, in_syncobjs), 48);
        assert_eq!(std::mem::offset_of!(CreateBlob, size), 16);
        assert_eq!(std::mem::offset_of!(CreateBlob, cmd), 32);
        assert_eq!(std::mem::offset_of!(CreateBlob, blob_id), 40);
        assert_eq!(std::mem::offset_of!(GetCaps, addr), 8);
    }
}
