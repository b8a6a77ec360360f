//! Buffers in shareable memory that host processes look at.
//!
//! All need memory that was allocated with `HB_ALLOCATE_SHAREABLE` (`HB_ERROR_NOT_SHAREABLE`) and a host that serves them
//! (`HB_ERROR_UNSUPPORTED`).

use super::handle::{self, Input, call};
use super::status::hb_status;
use super::types::{hb_fence, hb_memory, timeout};
use crate::buffer::BufferInfo;
use crate::memory::Memory;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Offset in `hb_memory_wait_released` and `hb_memory_released_fence`: all buffers, and the memory itself, which no host process has
/// open then.
pub const HB_ALL_BUFFERS: u64 = 0xffff_ffff_ffff_ffff;
const _: () = assert!(HB_ALL_BUFFERS == hostblob_protocol::request::ALL_BUFFERS);

/// Waits of a device that last at the same time, at most.
pub const HB_MOST_WAITS: u32 = 16;
const _: () = assert!(HB_MOST_WAITS == crate::waits::MOST_WAITS as u32);

/// A buffer in memory: the arguments of SET_SCANOUT_BLOB.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct hb_buffer_info {
    /// `sizeof(hb_buffer_info)`; as an output, how much of it was written.
    pub size: usize,
    /// First byte in the memory. It names the buffer.
    pub offset: u64,
    /// Pixels in a row; not 0.
    pub width: u32,
    /// Rows; not 0. `stride * height` bytes from `offset` on lie inside the memory.
    pub height: u32,
    /// Bytes from one row to the next; not 0.
    pub stride: u32,
    /// `DRM_FORMAT_*`; 0 where the bytes are no image.
    pub fourcc: u32,
    /// `DRM_FORMAT_MOD_*`; 0 is `DRM_FORMAT_MOD_LINEAR`.
    pub modifier: u64,
}

// SAFETY: `repr(C)`, begins with its size, and holds numbers alone, without padding (asserted below).
unsafe impl Input for hb_buffer_info {
    const LEAST: usize = 40;
    const NAME: &'static str = "hb_buffer_info";
}
const _: () = assert!(size_of::<hb_buffer_info>() == 40);

impl hb_buffer_info {
    pub(super) fn of(info: &BufferInfo) -> Self {
        Self {
            size: 0,
            offset: info.offset,
            width: info.width,
            height: info.height,
            stride: info.stride,
            fourcc: info.fourcc,
            modifier: info.modifier,
        }
    }
}

/// Describes a buffer in the memory to host processes. Another one at the same offset takes the place of the first.
///
/// `HB_ERROR_INVALID_ARGUMENT` where width, height or stride is 0, `HB_ERROR_OUT_OF_RANGE` where it does not lie inside the memory,
/// `HB_ERROR_NOT_SHAREABLE` where that was allocated without `HB_ALLOCATE_SHAREABLE`, `HB_ERROR_UNSUPPORTED` where the host takes no
/// buffers.
///
/// # Safety
/// `memory` is a live handle; `info` points to `info->size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hb_memory_publish(
    memory: *mut hb_memory,
    info: *const hb_buffer_info,
) -> hb_status {
    call(|| {
        // SAFETY: as the caller promised.
        let memory = unsafe { handle::get::<Memory>(memory) }?;
        // SAFETY: as the caller promised.
        let info = unsafe { handle::input(info) }?;
        memory.publish(&BufferInfo {
            offset: info.offset,
            width: info.width,
            height: info.height,
            stride: info.stride,
            fourcc: info.fourcc,
            modifier: info.modifier,
        })
    })
}

/// Takes the description of the buffer at `offset` back: host processes no longer see it.
///
/// # Safety
/// `memory` is a live handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hb_memory_withdraw(memory: *mut hb_memory, offset: u64) -> hb_status {
    // SAFETY: as the caller promised.
    call(|| unsafe { handle::get::<Memory>(memory) }?.withdraw(offset))
}

/// The published buffer at `offset` has new contents: host processes that have the memory open use it from now on, until each says
/// that it has released it. Host GPU work that writes to it is done before.
///
/// # Safety
/// `memory` is a live handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hb_memory_present(memory: *mut hb_memory, offset: u64) -> hb_status {
    // SAFETY: as the caller promised.
    call(|| unsafe { handle::get::<Memory>(memory) }?.present(offset))
}

/// Waits until no host process uses the buffer at `offset`, or `HB_ALL_BUFFERS`, any more: at most `timeout_ns` nanoseconds, or
/// `HB_WAIT_FOREVER`; 0 only asks. `HB_TIMEOUT` when the time was over first.
///
/// Other threads use the device meanwhile. At most `HB_MOST_WAITS` of a device last at the same time (`HB_ERROR_TOO_MANY_OBJECTS`).
///
/// # Safety
/// `memory` is a live handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hb_memory_wait_released(
    memory: *mut hb_memory,
    offset: u64,
    timeout_ns: u64,
) -> hb_status {
    // SAFETY: as the caller promised.
    call(|| unsafe { handle::get::<Memory>(memory) }?.wait_released(offset, timeout(timeout_ns)))
}

/// The fence of such a wait, given to the caller: see `hb_fence_destroy`. It is signalled when no host process uses the buffer, or when
/// the time is over; `hb_fence_wait` returns `HB_TIMEOUT` then, too. More than a day is a day.
///
/// It counts as a wait until then, destroyed or not. The memory lives as long.
///
/// # Safety
/// `memory` is a live handle; `fence` points to a place for the handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hb_memory_released_fence(
    memory: *mut hb_memory,
    offset: u64,
    timeout_ns: u64,
    fence: *mut *mut hb_fence,
) -> hb_status {
    call(|| {
        // SAFETY: as the caller promised.
        unsafe { handle::put(fence, std::ptr::null_mut(), "fence") }?;
        // SAFETY: as the caller promised.
        let memory = unsafe { handle::get::<Memory>(memory) }?;
        let waiting = handle::hand_out(memory.released_fence(offset, timeout(timeout_ns))?);
        // SAFETY: as the caller promised.
        unsafe { handle::put(fence, waiting, "fence") }
    })
}
