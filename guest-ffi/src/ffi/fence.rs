//! Host GPU work.

use std::ffi::c_int;
use std::os::fd::IntoRawFd;

use super::handle::{self, call};
use super::status::hb_status;
use super::types::{hb_device, hb_fence, hb_memory, timeout};
use crate::device::Device;
use crate::error::Result;
use crate::fence::Fence;
use crate::memory::Memory;

/// Hands the fence out, or lets the work go on without one.
///
/// # Safety
/// `to` is NULL or points to a place for the handle.
unsafe fn put_fence(to: *mut *mut hb_fence, fence: Fence) -> Result<()> {
    if to.is_null() {
        return Ok(());
    }
    // SAFETY: as the caller promised.
    unsafe { handle::put(to, handle::hand_out(fence), "fence") }
}

/// # Safety
/// `to` is NULL or points to a place for the handle.
unsafe fn clear_fence(to: *mut *mut hb_fence) -> Result<()> {
    if to.is_null() {
        return Ok(());
    }
    // SAFETY: as the caller promised.
    unsafe { handle::put(to, std::ptr::null_mut(), "fence") }
}

/// Fills a range with a 32-bit value on the host GPU, and gives the caller a fence: see `hb_fence_destroy`.
///
/// Offset and length are multiples of 4; `HB_WHOLE_SIZE` reaches to the end. `fence` may be NULL where nobody waits. The memory
/// lives until the work is done. `vkCmdFillBuffer`.
///
/// # Safety
/// `device` and `memory` are live handles; `fence` is NULL or points to a place for the handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hb_fill(
    device: *mut hb_device,
    memory: *mut hb_memory,
    offset: u64,
    length: u64,
    value: u32,
    fence: *mut *mut hb_fence,
) -> hb_status {
    call(|| {
        // SAFETY: as the caller promised.
        unsafe { clear_fence(fence) }?;
        // SAFETY: as the caller promised.
        let device = unsafe { handle::get::<Device>(device) }?;
        // SAFETY: as the caller promised.
        let memory = unsafe { handle::get::<Memory>(memory) }?;
        let filling = device.fill(memory, offset, length, value)?;
        // SAFETY: as the caller promised.
        unsafe { put_fence(fence, filling) }
    })
}

/// Copies between memories of a device on the host GPU, and gives the caller a fence: see `hb_fence_destroy`.
///
/// Source and destination may be the same memory where the ranges do not overlap. `fence` may be NULL where nobody waits. Both
/// memories live until the work is done. `vkCmdCopyBuffer`.
///
/// # Safety
/// `device`, `source` and `destination` are live handles; `fence` is NULL or points to a place for the handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hb_copy(
    device: *mut hb_device,
    source: *mut hb_memory,
    source_offset: u64,
    destination: *mut hb_memory,
    destination_offset: u64,
    length: u64,
    fence: *mut *mut hb_fence,
) -> hb_status {
    call(|| {
        // SAFETY: as the caller promised.
        unsafe { clear_fence(fence) }?;
        // SAFETY: as the caller promised.
        let device = unsafe { handle::get::<Device>(device) }?;
        // SAFETY: as the caller promised.
        let source = unsafe { handle::get::<Memory>(source) }?;
        // SAFETY: as the caller promised.
        let destination = unsafe { handle::get::<Memory>(destination) }?;
        let copying = device.copy(
            source,
            source_offset,
            destination,
            destination_offset,
            length,
        )?;
        // SAFETY: as the caller promised.
        unsafe { put_fence(fence, copying) }
    })
}

/// Waits until the work is done, at most `timeout_ns` nanoseconds, or `HB_WAIT_FOREVER`; 0 only looks.
///
/// `HB_TIMEOUT` when the time was over first; another error when the work failed. May be called again, and by several threads.
///
/// # Safety
/// `fence` is a live handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hb_fence_wait(fence: *const hb_fence, timeout_ns: u64) -> hb_status {
    call(|| {
        // SAFETY: as the caller promised.
        unsafe { handle::get::<Fence>(fence) }?.wait(timeout(timeout_ns))
    })
}

/// A sync_file that signals when the work is done. The caller owns the descriptor and closes it. `HB_ERROR_UNSUPPORTED` over a
/// local socket.
///
/// # Safety
/// `fence` is a live handle; `fd` points to a place for the descriptor.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hb_fence_fd(fence: *const hb_fence, fd: *mut c_int) -> hb_status {
    call(|| {
        // SAFETY: as the caller promised.
        unsafe { handle::put(fd, -1, "fd") }?;
        // SAFETY: as the caller promised.
        let exported = unsafe { handle::get::<Fence>(fence) }?.export_sync_file()?;
        // SAFETY: as the caller promised.
        unsafe { handle::put(fd, exported.into_raw_fd(), "fd") }
    })
}

/// Ends the fence. NULL is fine. The work goes on.
///
/// # Safety
/// `fence` is NULL or from `hb_fill`, `hb_copy` or `hb_memory_released_fence`, and not used by any thread during or after this call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hb_fence_destroy(fence: *mut hb_fence) {
    // SAFETY: as the caller promised.
    call(|| unsafe { handle::give_back::<Fence>(fence) });
}
