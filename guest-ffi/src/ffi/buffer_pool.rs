//! Buffers cut out of one shareable memory.

use std::ffi::{c_int, c_void};
use std::os::fd::IntoRawFd;

use super::buffer::hb_buffer_info;
use super::handle::{self, Input, Kind, call};
use super::status::hb_status;
use super::types::{hb_device, timeout};
use crate::buffer_pool::{BufferPool, PoolBuffer};
use crate::device::Device;

/// One shareable memory, and the buffers in it. From `hb_buffer_pool_create`, until `hb_buffer_pool_destroy`.
pub struct hb_buffer_pool {
    _private: [u8; 0],
}

/// A published buffer of a pool. From `hb_buffer_create`, until `hb_buffer_destroy`.
pub struct hb_buffer {
    _private: [u8; 0],
}

/// What buffer to create.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct hb_buffer_create_info {
    /// `sizeof(hb_buffer_create_info)`.
    pub size: usize,
    /// Pixels in a row; not 0.
    pub width: u32,
    /// Rows; not 0.
    pub height: u32,
    /// Bytes; not 0. Rows start at multiples of 64 bytes.
    pub bytes_per_pixel: u32,
    /// `DRM_FORMAT_*`; 0 where the bytes are no image.
    pub fourcc: u32,
}

// SAFETY: `repr(C)`, begins with its size, and holds numbers alone, without padding (asserted below).
unsafe impl Input for hb_buffer_create_info {
    const LEAST: usize = 24;
    const NAME: &'static str = "hb_buffer_create_info";
}
const _: () = assert!(size_of::<hb_buffer_create_info>() == 24);

impl Kind for BufferPool {
    const TAG: u64 = u64::from_le_bytes(*b"hb_bpool");
    const NAME: &'static str = "buffer pool";
    type Opaque = hb_buffer_pool;
}

impl Kind for PoolBuffer {
    const TAG: u64 = u64::from_le_bytes(*b"hbbuffer");
    const NAME: &'static str = "buffer";
    type Opaque = hb_buffer;
}

/// Allocates memory for buffers of `bytes` together, each rounded up to pages, and gives the caller the handle: see
/// `hb_buffer_pool_destroy`. The memory is an eighth larger.
///
/// `HB_ERROR_UNSUPPORTED` where the host takes no buffers; other errors are those of `hb_allocate`.
///
/// # Safety
/// `device` is from `hb_device_open`; `pool` points to a place for the handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hb_buffer_pool_create(
    device: *mut hb_device,
    bytes: u64,
    pool: *mut *mut hb_buffer_pool,
) -> hb_status {
    call(|| {
        // SAFETY: as the caller promised.
        unsafe { handle::put(pool, std::ptr::null_mut(), "pool") }?;
        // SAFETY: as the caller promised.
        let device = unsafe { handle::get::<Device>(device) }?;
        let created = handle::hand_out(BufferPool::new(device, bytes)?);
        // SAFETY: as the caller promised.
        unsafe { handle::put(pool, created, "pool") }
    })
}

/// Ends the pool's handle. NULL is fine. Its buffers live on, and the memory with them.
///
/// # Safety
/// `pool` is NULL or from `hb_buffer_pool_create`, and not used by any thread during or after this call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hb_buffer_pool_destroy(pool: *mut hb_buffer_pool) {
    // SAFETY: as the caller promised.
    call(|| unsafe { handle::give_back::<BufferPool>(pool) });
}

/// Cuts a buffer out of the pool, publishes it, and gives the caller its handle: see `hb_buffer_destroy`. It starts at a page; its bytes
/// are zeros or those of an earlier buffer of the pool; its modifier is `DRM_FORMAT_MOD_LINEAR`.
///
/// `HB_ERROR_OUT_OF_HOST_MEMORY` where the pool has no room, `HB_ERROR_INVALID_ARGUMENT` where a number is 0 or a row too long.
///
/// # Safety
/// `pool` is a live handle; `info` points to `info->size` bytes; `buffer` points to a place for the handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hb_buffer_create(
    pool: *mut hb_buffer_pool,
    info: *const hb_buffer_create_info,
    buffer: *mut *mut hb_buffer,
) -> hb_status {
    call(|| {
        // SAFETY: as the caller promised.
        unsafe { handle::put(buffer, std::ptr::null_mut(), "buffer") }?;
        // SAFETY: as the caller promised.
        let pool = unsafe { handle::get::<BufferPool>(pool) }?;
        // SAFETY: as the caller promised.
        let info = unsafe { handle::input(info) }?;
        let created = pool.allocate(info.width, info.height, info.bytes_per_pixel, info.fourcc)?;
        // SAFETY: as the caller promised.
        unsafe { handle::put(buffer, handle::hand_out(created), "buffer") }
    })
}

/// Withdraws the buffer, gives its bytes to the next one, and ends its handle and its address. NULL is fine. Whoever must not see the
/// next one waits for the release first.
///
/// # Safety
/// `buffer` is NULL or from `hb_buffer_create`, and not used by any thread during or after this call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hb_buffer_destroy(buffer: *mut hb_buffer) {
    // SAFETY: as the caller promised.
    call(|| unsafe { handle::give_back::<PoolBuffer>(buffer) });
}

/// Where the buffer lies in the pool's memory, and what it is. Set `info->size` first.
///
/// # Safety
/// `buffer` is a live handle; `info` points to `info->size` writable bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hb_buffer_get_info(
    buffer: *const hb_buffer,
    info: *mut hb_buffer_info,
) -> hb_status {
    call(|| {
        // SAFETY: as the caller promised.
        let all = hb_buffer_info::of(unsafe { handle::get::<PoolBuffer>(buffer) }?.info());
        // SAFETY: as the caller promised.
        unsafe { handle::output(info, &all, "hb_buffer_info") }
    })
}

/// Gives the address of the buffer's `stride * height` bytes: the same until `hb_buffer_destroy`.
///
/// # Safety
/// `buffer` is a live handle; `address` points to a place for the address.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hb_buffer_map(
    buffer: *const hb_buffer,
    address: *mut *mut c_void,
) -> hb_status {
    call(|| {
        // SAFETY: as the caller promised.
        unsafe { handle::put(address, std::ptr::null_mut(), "address") }?;
        // SAFETY: as the caller promised.
        let mapped = unsafe { handle::get::<PoolBuffer>(buffer) }?.map()?;
        // SAFETY: as the caller promised.
        unsafe { handle::put(address, mapped.as_ptr().cast(), "address") }
    })
}

/// The buffer has new contents: `hb_memory_present`.
///
/// # Safety
/// `buffer` is a live handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hb_buffer_present(buffer: *mut hb_buffer) -> hb_status {
    // SAFETY: as the caller promised.
    call(|| unsafe { handle::get::<PoolBuffer>(buffer) }?.present())
}

/// Waits until no host process uses the buffer any more: `hb_memory_wait_released`.
///
/// # Safety
/// `buffer` is a live handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hb_buffer_wait_released(
    buffer: *mut hb_buffer,
    timeout_ns: u64,
) -> hb_status {
    // SAFETY: as the caller promised.
    call(|| unsafe { handle::get::<PoolBuffer>(buffer) }?.wait_released(timeout(timeout_ns)))
}

/// A dma-buf of the whole memory of the pool; `hb_buffer_get_info` has the buffer's offset and stride in it. The caller owns the
/// descriptor and closes it. `HB_ERROR_UNSUPPORTED` over a local socket.
///
/// # Safety
/// `buffer` is a live handle; `fd` points to a place for the descriptor.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hb_buffer_export(buffer: *mut hb_buffer, fd: *mut c_int) -> hb_status {
    call(|| {
        // SAFETY: as the caller promised.
        unsafe { handle::put(fd, -1, "fd") }?;
        // SAFETY: as the caller promised.
        let exported = unsafe { handle::get::<PoolBuffer>(buffer) }?.export_dma_buf()?;
        // SAFETY: as the caller promised.
        unsafe { handle::put(fd, exported.fd.into_raw_fd(), "fd") }
    })
}
