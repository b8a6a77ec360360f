//! Resources: their life, their bytes, where they are mapped.

use std::os::fd::IntoRawFd;

use libc::iovec;

use super::{check_range, pages, take_descriptor};
use crate::boundary::{self, call_on};
use crate::error::Error;
use crate::types::{
    rutabaga, rutabaga_create_3d, rutabaga_create_blob, rutabaga_handle, rutabaga_import_data,
    rutabaga_iovecs, rutabaga_mapping, rutabaga_transfer,
};

/// RESOURCE_CREATE_2D and RESOURCE_CREATE_3D. All 2D resources together have at most HOSTBLOB_MEMORY_LIMIT bytes (-ENOMEM).
///
/// # Safety
/// `create_3d` is NULL, which is refused, or points to a structure.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rutabaga_resource_create_3d(
    ptr: *mut rutabaga,
    resource_id: u32,
    create_3d: *const rutabaga_create_3d,
) -> i32 {
    call_on(ptr, "rutabaga_resource_create_3d", |device| {
        // SAFETY: as promised by the caller.
        let create = unsafe { boundary::input(create_3d, "create_3d") }?;
        device.with(|core| core.create_3d(resource_id, &create))
    })
}

/// RESOURCE_ATTACH_BACKING.
///
/// # Safety
/// `iovecs` is NULL, which is refused, or points to a structure whose array is as long as it says. The ranges are memory until they are
/// detached.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rutabaga_resource_attach_backing(
    ptr: *mut rutabaga,
    resource_id: u32,
    iovecs: *const rutabaga_iovecs,
) -> i32 {
    call_on(ptr, "rutabaga_resource_attach_backing", |device| {
        // SAFETY: as promised by the caller.
        let pages = unsafe { pages(iovecs) }?.ok_or(Error::Pointer("iovecs"))?;
        device.with(|core| core.attach_backing(resource_id, &pages))
    })
}

/// RESOURCE_DETACH_BACKING. The GPU does not use the pages any more when this returns.
#[unsafe(no_mangle)]
pub extern "C" fn rutabaga_resource_detach_backing(ptr: *mut rutabaga, resource_id: u32) -> i32 {
    call_on(ptr, "rutabaga_resource_detach_backing", |device| {
        device.with(|core| core.detach_backing(resource_id))
    })
}

/// TRANSFER_FROM_HOST_3D, or, with `iovec`, what a 2D resource shows.
///
/// # Safety
/// `transfer` is NULL, which is refused, or points to a structure; `iovec` is NULL, or points to one whose bytes can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rutabaga_resource_transfer_read(
    ptr: *mut rutabaga,
    ctx_id: u32,
    resource_id: u32,
    transfer: *const rutabaga_transfer,
    iovec: *const iovec,
) -> i32 {
    call_on(ptr, "rutabaga_resource_transfer_read", |device| {
        // SAFETY: as promised by the caller.
        let transfer = unsafe { boundary::input(transfer, "transfer") }?;
        let mut to: Option<&mut [u8]> = None;
        if !iovec.is_null() {
            // SAFETY: as promised by the caller.
            let range = unsafe { boundary::input(iovec, "iovec") }?;
            check_range(&range)?;
            // SAFETY: so many bytes can be written, and nobody else uses them now, as the caller promised.
            let bytes =
                unsafe { std::slice::from_raw_parts_mut(range.iov_base.cast(), range.iov_len) };
            to = Some(bytes);
        }
        device.with(|core| core.transfer_read(ctx_id, resource_id, &transfer, to))
    })
}

/// TRANSFER_TO_HOST_2D and TRANSFER_TO_HOST_3D.
///
/// # Safety
/// `transfer` is NULL, which is refused, or points to a structure.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rutabaga_resource_transfer_write(
    ptr: *mut rutabaga,
    ctx_id: u32,
    resource_id: u32,
    transfer: *const rutabaga_transfer,
) -> i32 {
    call_on(ptr, "rutabaga_resource_transfer_write", |device| {
        // SAFETY: as promised by the caller.
        let transfer = unsafe { boundary::input(transfer, "transfer") }?;
        device.with(|core| core.transfer_write(ctx_id, resource_id, &transfer))
    })
}

/// RESOURCE_CREATE_BLOB. For contexts of hostblob, guest memory is memory of a file that this process has open for reading and writing and
/// has mapped shared, as QEMU's memory-backend-memfd,share=on is (-EINVAL otherwise).
///
/// # Safety
/// `create` is NULL, which is refused, or points to a structure; `iovecs` is NULL, or as for rutabaga_resource_attach_backing();
/// `handle` is NULL, or names a descriptor that is given away, also when the call fails.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rutabaga_resource_create_blob(
    ptr: *mut rutabaga,
    ctx_id: u32,
    resource_id: u32,
    create: *const rutabaga_create_blob,
    iovecs: *const rutabaga_iovecs,
    handle: *const rutabaga_handle,
) -> i32 {
    call_on(ptr, "rutabaga_resource_create_blob", |device| {
        let handle = match handle.is_null() {
            true => None,
            // SAFETY: as promised by the caller.
            false => Some(unsafe { boundary::input(handle, "handle") }?),
        };
        // SAFETY: as promised by the caller.
        let handle = handle.map(|handle| unsafe { take_descriptor(handle) });
        let handle = handle.transpose()?;
        // SAFETY: as promised by the caller.
        let create = unsafe { boundary::input(create, "create") }?;
        // SAFETY: as promised by the caller.
        let pages = unsafe { pages(iovecs) }?;
        device.with(|core| core.create_blob(ctx_id, resource_id, &create, pages.as_deref(), handle))
    })
}

/// RESOURCE_UNREF. The GPU does not use guest pages of the resource any more when this returns.
#[unsafe(no_mangle)]
pub extern "C" fn rutabaga_resource_unref(ptr: *mut rutabaga, resource_id: u32) -> i32 {
    call_on(ptr, "rutabaga_resource_unref", |device| {
        device.with(|core| core.unref(resource_id))
    })
}

/// A descriptor of a blob, which the caller owns: of a blob of hostblob a dma-buf, where the host has /dev/udmabuf (-EOPNOTSUPP otherwise).
///
/// # Safety
/// `handle` is NULL, which is refused, or can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rutabaga_resource_export_blob(
    ptr: *mut rutabaga,
    resource_id: u32,
    handle: *mut rutabaga_handle,
) -> i32 {
    call_on(ptr, "rutabaga_resource_export_blob", |device| {
        boundary::writable(handle, "handle")?;
        let (descriptor, handle_type) = device.with(|core| core.export(resource_id))?;
        let made = rutabaga_handle {
            os_handle: descriptor.into_raw_fd().into(),
            handle_type,
        };
        // SAFETY: as promised by the caller.
        unsafe { boundary::put(handle, made, "handle") }
    })
}

/// RESOURCE_MAP_BLOB: where the blob's bytes are in this process, until the blob is unmapped or gone.
///
/// # Safety
/// `mapping` is NULL, which is refused, or can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rutabaga_resource_map(
    ptr: *mut rutabaga,
    resource_id: u32,
    mapping: *mut rutabaga_mapping,
) -> i32 {
    call_on(ptr, "rutabaga_resource_map", |device| {
        boundary::writable(mapping, "mapping")?;
        let mapped = device.with(|core| core.map(resource_id))?;
        // SAFETY: as promised by the caller.
        unsafe { boundary::put(mapping, mapped, "mapping") }
    })
}

/// RESOURCE_UNMAP_BLOB.
#[unsafe(no_mangle)]
pub extern "C" fn rutabaga_resource_unmap(ptr: *mut rutabaga, resource_id: u32) -> i32 {
    call_on(ptr, "rutabaga_resource_unmap", |device| {
        device.with(|core| core.unmap(resource_id))
    })
}

/// How a blob is to be mapped: RUTABAGA_MAP_CACHE_* and RUTABAGA_MAP_ACCESS_*.
///
/// # Safety
/// `map_info` is NULL, which is refused, or can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rutabaga_resource_map_info(
    ptr: *mut rutabaga,
    resource_id: u32,
    map_info: *mut u32,
) -> i32 {
    call_on(ptr, "rutabaga_resource_map_info", |device| {
        let info = device.with(|core| core.map_info(resource_id))?;
        // SAFETY: as promised by the caller.
        unsafe { boundary::put(map_info, info, "map_info") }
    })
}

/// A resource of rutabaga_gfx made of a descriptor.
///
/// # Safety
/// `import_handle` is NULL, which is refused, or names a descriptor that is given away, also when the call fails; `import_data` is NULL,
/// which is refused, or points to a structure.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rutabaga_resource_import(
    ptr: *mut rutabaga,
    resource_id: u32,
    import_handle: *const rutabaga_handle,
    import_data: *const rutabaga_import_data,
) -> i32 {
    call_on(ptr, "rutabaga_resource_import", |device| {
        // SAFETY: as promised by the caller.
        let handle = unsafe { boundary::input(import_handle, "import_handle") }?;
        // SAFETY: as promised by the caller.
        let handle = unsafe { take_descriptor(handle) }?;
        // SAFETY: as promised by the caller.
        let data = unsafe { boundary::input(import_data, "import_data") }?;
        device.with(|core| core.import(resource_id, handle, &data))
    })
}
