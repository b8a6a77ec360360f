//! Allocating, mapping, sharing, freeing.

use std::ffi::{c_int, c_void};
use std::os::fd::{BorrowedFd, IntoRawFd};

use hostblob_protocol::request::MemorySelector;

use super::handle::{self, call};
use super::status::hb_status;
use super::types::{
    HB_ALLOCATE_DEDICATED, HB_ALLOCATE_DEFERRED, HB_ALLOCATE_SHAREABLE, HB_MEMORY_TYPE_ANY, access,
    cache_mode, hb_allocate_info, hb_device, hb_map_info, hb_memory, hb_memory_info,
};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::memory::Memory;
use crate::options::{AllocateInfo, MapInfo};

fn allocate_info<'a>(info: &hb_allocate_info, name: Option<&'a str>) -> Result<AllocateInfo<'a>> {
    const KNOWN: u32 = HB_ALLOCATE_SHAREABLE | HB_ALLOCATE_DEDICATED | HB_ALLOCATE_DEFERRED;
    if info.flags & !KNOWN != 0 {
        return Err(Error::invalid(format!("flags {:#x}", info.flags)));
    }
    Ok(AllocateInfo {
        memory: match info.memory_type {
            HB_MEMORY_TYPE_ANY => MemorySelector::Properties(info.required_properties),
            index => MemorySelector::Index(index),
        },
        alignment: info.alignment,
        expected_cache: cache_mode(info.expected_cache)?,
        shareable: info.flags & HB_ALLOCATE_SHAREABLE != 0,
        dedicated: info.flags & HB_ALLOCATE_DEDICATED != 0,
        map_directly: info.flags & HB_ALLOCATE_DEFERRED == 0,
        name,
        ..AllocateInfo::new(info.bytes)
    })
}

/// Allocates memory and gives the caller its handle: see `hb_memory_free`.
///
/// Small host-visible requests come out of blocks and cost no command. `vkAllocateMemory`.
///
/// # Safety
/// `device` is from `hb_device_open`; `info` points to `info->size` bytes with a valid name; `memory` points to a
/// place for the handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hb_allocate(
    device: *mut hb_device,
    info: *const hb_allocate_info,
    memory: *mut *mut hb_memory,
) -> hb_status {
    call(|| {
        // SAFETY: as the caller promised.
        unsafe { handle::put(memory, std::ptr::null_mut(), "memory") }?;
        // SAFETY: as the caller promised.
        let device = unsafe { handle::get::<Device>(device) }?;
        // SAFETY: as the caller promised.
        let info = unsafe { handle::input(info) }?;
        // SAFETY: as the caller promised: the string lives as long as the call.
        let name = unsafe { handle::string(info.name, "name") }?;
        let allocated = handle::hand_out(device.allocate(&allocate_info(&info, name)?)?);
        // SAFETY: as the caller promised.
        unsafe { handle::put(memory, allocated, "memory") }
    })
}

/// Frees memory and ends its handle and its addresses. NULL is fine. Host GPU work that uses it is done before.
///
/// # Safety
/// `memory` is NULL or a live handle, and not used by any thread during or after this call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hb_memory_free(memory: *mut hb_memory) {
    // SAFETY: as the caller promised.
    call(|| unsafe { handle::give_back::<Memory>(memory) });
}

/// Where memory lies. Set `info->size` first.
///
/// # Safety
/// `memory` is a live handle; `info` points to `info->size` writable bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hb_memory_get_info(
    memory: *const hb_memory,
    info: *mut hb_memory_info,
) -> hb_status {
    call(|| {
        // SAFETY: as the caller promised.
        let memory = unsafe { handle::get::<Memory>(memory) }?;
        let all = hb_memory_info {
            size: 0,
            bytes: memory.size(),
            client_id: memory.client_id(),
            offset: memory.offset(),
            memory_type: memory.memory_type().unwrap_or(HB_MEMORY_TYPE_ANY),
            suballocated: u32::from(memory.is_suballocated()),
        };
        // SAFETY: as the caller promised.
        unsafe { handle::output(info, &all, "hb_memory_info") }
    })
}

/// Gives the address of the memory's first byte: the same until `hb_memory_unmap` or `hb_memory_free`. Cheap to call
/// again; there is no count. `info` may be NULL. `vkMapMemory`.
///
/// # Safety
/// `memory` is a live handle; `info` is NULL or points to `info->size` bytes; `address` points to a place for the address.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hb_memory_map(
    memory: *mut hb_memory,
    info: *const hb_map_info,
    address: *mut *mut c_void,
) -> hb_status {
    call(|| {
        // SAFETY: as the caller promised.
        unsafe { handle::put(address, std::ptr::null_mut(), "address") }?;
        // SAFETY: as the caller promised.
        let memory = unsafe { handle::get::<Memory>(memory) }?;
        let mapped = if info.is_null() {
            memory.map()?
        } else {
            // SAFETY: as the caller promised.
            let info = unsafe { handle::input(info) }?;
            memory.map_with(&MapInfo {
                expected_cache: cache_mode(info.expected_cache)?,
                access: access(info.access)?,
            })?
        };
        // SAFETY: as the caller promised.
        unsafe { handle::put(address, mapped.as_ptr().cast(), "address") }
    })
}

/// Gives the address range back; the contents stay. Deferred memory leaves the window, unless it was exported. Does nothing to suballocated memory.
///
/// # Safety
/// `memory` is a live handle; no thread uses its addresses during or after this call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hb_memory_unmap(memory: *mut hb_memory) -> hb_status {
    call(|| {
        // SAFETY: as the caller promised.
        unsafe { handle::get::<Memory>(memory) }?.unmap();
        Ok(())
    })
}

/// Makes CPU writes visible to the host GPU. Nothing to do on coherent types. `vkFlushMappedMemoryRanges`; offset and
/// length need no alignment.
///
/// # Safety
/// `memory` is a live handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hb_memory_flush(
    memory: *mut hb_memory,
    offset: u64,
    length: u64,
) -> hb_status {
    // SAFETY: as the caller promised.
    call(|| unsafe { handle::get::<Memory>(memory) }?.flush(offset, length))
}

/// Makes host GPU writes visible to the CPU. Nothing to do on coherent types. `vkInvalidateMappedMemoryRanges`; offset
/// and length need no alignment.
///
/// # Safety
/// `memory` is a live handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hb_memory_invalidate(
    memory: *mut hb_memory,
    offset: u64,
    length: u64,
) -> hb_status {
    // SAFETY: as the caller promised.
    call(|| unsafe { handle::get::<Memory>(memory) }?.invalidate(offset, length))
}

/// A dma-buf of the memory, which was allocated with `HB_ALLOCATE_SHAREABLE`. The caller owns the descriptor and
/// closes it. `HB_ERROR_UNSUPPORTED` over a local socket.
///
/// # Safety
/// `memory` is a live handle; `fd` points to a place for the descriptor.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hb_memory_export(memory: *mut hb_memory, fd: *mut c_int) -> hb_status {
    call(|| {
        // SAFETY: as the caller promised.
        unsafe { handle::put(fd, -1, "fd") }?;
        // SAFETY: as the caller promised.
        let exported = unsafe { handle::get::<Memory>(memory) }?.export_dma_buf()?;
        // SAFETY: as the caller promised.
        unsafe { handle::put(fd, exported.into_raw_fd(), "fd") }
    })
}

/// Takes in memory that another process exported from the same device, and gives the caller its handle: see
/// `hb_memory_free`. `fd` stays the caller's. `HB_ERROR_UNSUPPORTED` over a local socket.
///
/// It can be mapped. Host GPU work can use it where the host knows a name for it: `client_id` of `hb_memory_get_info` is not 0 then.
///
/// # Safety
/// `device` is from `hb_device_open`; `fd` is an open descriptor; `memory` points to a place for the handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hb_memory_import(
    device: *mut hb_device,
    fd: c_int,
    memory: *mut *mut hb_memory,
) -> hb_status {
    call(|| {
        // SAFETY: as the caller promised.
        unsafe { handle::put(memory, std::ptr::null_mut(), "memory") }?;
        // SAFETY: as the caller promised.
        let device = unsafe { handle::get::<Device>(device) }?;
        if fd < 0 {
            return Err(Error::invalid(format!("fd {fd}")));
        }
        // SAFETY: not -1, and open during the call as the caller promised.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        let imported = handle::hand_out(device.import_dma_buf(fd)?);
        // SAFETY: as the caller promised.
        unsafe { handle::put(memory, imported, "memory") }
    })
}
