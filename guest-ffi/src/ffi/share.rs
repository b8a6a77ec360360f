//! Memory that is not this context's alone.

use super::handle::{self, call};
use super::status::hb_status;
use super::types::{HB_UUID_SIZE, hb_device, hb_memory};
use crate::device::Device;
use crate::memory::Memory;

/// The UUID under which other processes of this guest can import the memory: see `hb_memory_import_uuid`. Random, so that only who is
/// told can; the same each time.
///
/// `HB_ERROR_NOT_SHAREABLE` where the memory was allocated without `HB_ALLOCATE_SHAREABLE`, `HB_ERROR_UNSUPPORTED` where the host does
/// not serve it.
///
/// # Safety
/// `memory` is a live handle; `uuid` points to `HB_UUID_SIZE` writable bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hb_memory_share(memory: *mut hb_memory, uuid: *mut u8) -> hb_status {
    call(|| {
        // SAFETY: as the caller promised.
        let shared = unsafe { handle::get::<Memory>(memory) }?.share()?;
        // SAFETY: as the caller promised.
        unsafe { handle::put(uuid.cast::<[u8; HB_UUID_SIZE]>(), shared, "uuid") }
    })
}

/// Names memory that another process of this guest shares (`hb_memory_share`), or that a host process handed in, and gives the caller
/// its handle: see `hb_memory_free`.
///
/// Host GPU work can use it at once. Mapping it makes a blob for it; `HB_ERROR_ALREADY_BOUND` says that another process has one: pass a
/// dma-buf on instead. `HB_ERROR_UNKNOWN_UUID` where nothing is shared under it, `HB_ERROR_UNSUPPORTED` where the host does not serve it.
///
/// # Safety
/// `device` is from `hb_device_open`; `uuid` points to `HB_UUID_SIZE` bytes; `memory` points to a place for the handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hb_memory_import_uuid(
    device: *mut hb_device,
    uuid: *const u8,
    memory: *mut *mut hb_memory,
) -> hb_status {
    call(|| {
        // SAFETY: as the caller promised.
        unsafe { handle::put(memory, std::ptr::null_mut(), "memory") }?;
        // SAFETY: as the caller promised.
        let device = unsafe { handle::get::<Device>(device) }?;
        // SAFETY: as the caller promised.
        let uuid = unsafe { handle::bytes::<HB_UUID_SIZE>(uuid, "uuid") }?;
        let imported = handle::hand_out(device.import(uuid)?);
        // SAFETY: as the caller promised.
        unsafe { handle::put(memory, imported, "memory") }
    })
}

/// Allocates memory in the guest's own pages, and gives the caller its handle: see `hb_memory_free`. `bytes` is not 0.
///
/// It is zeros at first, shareable, and outside the window; host GPU work can use it. `HB_ERROR_UNSUPPORTED` where the host takes no
/// guest pages, and over a local socket.
///
/// # Safety
/// `device` is from `hb_device_open`; `memory` points to a place for the handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hb_allocate_guest(
    device: *mut hb_device,
    bytes: u64,
    memory: *mut *mut hb_memory,
) -> hb_status {
    call(|| {
        // SAFETY: as the caller promised.
        unsafe { handle::put(memory, std::ptr::null_mut(), "memory") }?;
        // SAFETY: as the caller promised.
        let device = unsafe { handle::get::<Device>(device) }?;
        let allocated = handle::hand_out(device.allocate_guest(bytes)?);
        // SAFETY: as the caller promised.
        unsafe { handle::put(memory, allocated, "memory") }
    })
}
