//! Contexts: their life, their commands, their fences.

use std::ffi::c_char;

use crate::boundary::{self, call_on};
use crate::types::{rutabaga, rutabaga_command, rutabaga_fence};

/// Bytes of `virtio_gpu_ctx_create.debug_name`. A guest says how many there are, and VMMs pass that on unread.
const MOST_NAME: u32 = 64;

/// Fences that one command may wait for.
const MOST_FENCES: usize = 4096;

/// CTX_CREATE. The low byte of `context_init` is a capset id. At most 64 bytes of the name are read.
///
/// # Safety
/// `context_name` is NULL, or points to `context_name_len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rutabaga_context_create(
    ptr: *mut rutabaga,
    ctx_id: u32,
    context_init: u32,
    context_name: *const c_char,
    context_name_len: u32,
) -> i32 {
    call_on(ptr, "rutabaga_context_create", |device| {
        let length = match context_name.is_null() {
            true => 0,
            false => context_name_len.min(MOST_NAME) as usize,
        };
        // SAFETY: as promised by the caller.
        let name = unsafe { boundary::slice(context_name.cast::<u8>(), length, length, "name") }?;
        let name = name.split(|&byte| byte == 0).next().unwrap_or_default();
        device.with(|core| core.create_context(ctx_id, context_init, name))
    })
}

/// CTX_DESTROY.
#[unsafe(no_mangle)]
pub extern "C" fn rutabaga_context_destroy(ptr: *mut rutabaga, ctx_id: u32) -> i32 {
    call_on(ptr, "rutabaga_context_destroy", |device| {
        device.with(|core| core.destroy_context(ctx_id))
    })
}

/// CTX_ATTACH_RESOURCE. Resources of hostblob are for its contexts, and those of rutabaga_gfx for the others (-EINVAL). A blob of guest
/// pages that no context made is for all.
#[unsafe(no_mangle)]
pub extern "C" fn rutabaga_context_attach_resource(
    ptr: *mut rutabaga,
    ctx_id: u32,
    resource_id: u32,
) -> i32 {
    call_on(ptr, "rutabaga_context_attach_resource", |device| {
        device.with(|core| core.attach(ctx_id, resource_id))
    })
}

/// CTX_DETACH_RESOURCE.
#[unsafe(no_mangle)]
pub extern "C" fn rutabaga_context_detach_resource(
    ptr: *mut rutabaga,
    ctx_id: u32,
    resource_id: u32,
) -> i32 {
    call_on(ptr, "rutabaga_context_detach_resource", |device| {
        device.with(|core| core.detach(ctx_id, resource_id))
    })
}

/// SUBMIT_3D.
///
/// # Safety
/// `cmd` is NULL, which is refused, or points to a structure whose arrays are as long as it says; the bytes can be written too.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rutabaga_submit_command(
    ptr: *mut rutabaga,
    cmd: *mut rutabaga_command,
) -> i32 {
    call_on(ptr, "rutabaga_submit_command", |device| {
        // SAFETY: as promised by the caller.
        let command = unsafe { boundary::input(cmd.cast_const(), "cmd") }?;
        let size = command.cmd_size as usize;
        // SAFETY: as promised by the caller.
        let bytes = unsafe { boundary::slice(command.cmd.cast_const(), size, size, "cmd->cmd") }?;
        let (ids, count) = (
            command.fence_ids.cast_const(),
            command.num_in_fences as usize,
        );
        // SAFETY: as promised by the caller.
        let fences = unsafe { boundary::slice(ids, count, MOST_FENCES, "cmd->fence_ids") }?;
        // A copy: renderers write to commands, and VMMs do not expect it.
        let mut bytes = bytes.to_vec();
        device.with(|core| core.submit(command.ctx_id, &mut bytes, fences))
    })
}

/// A fence for what was submitted so far: the callback is called when it is reached, once.
///
/// # Safety
/// `fence` is NULL, which is refused, or points to a structure.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rutabaga_create_fence(
    ptr: *mut rutabaga,
    fence: *const rutabaga_fence,
) -> i32 {
    call_on(ptr, "rutabaga_create_fence", |device| {
        // SAFETY: as promised by the caller.
        let fence = unsafe { boundary::input(fence, "fence") }?;
        device.with(|core| core.create_fence(fence))
    })
}
