//! A Vulkan driver in the guest, for memory, buffers and transfers: a small one over the guest library.
//!
//! The Vulkan loader finds it by its manifest, and it finds the host as the guest library does: over `HOSTBLOB_SOCKET`, or on a render
//! node. `docs/icd.md` tells authors of larger drivers which calls of the library are made where.
//!
//! | module | answers the question |
//! |---|---|
//! | `entry` | which commands are there, and how do they come in from C? |
//! | `instance`, `physical`, `device` | what is found, what can it, and what does a program open? |
//! | `memory`, `buffer` | where are the bytes? |
//! | `command`, `queue`, `sync` | what is to be done with them, in which order, and who is told? |
//! | `extensions`, `chain`, `object`, `debug_utils` | Vulkan's ways: names, `pNext`, handles and allocation callbacks, messages |
//!
//! A handle is the address of an object. Programs vouch for the handles and pointers that they pass, as Vulkan has it; functions past
//! `entry` are safe but where structures point on.

mod buffer;
mod chain;
mod command;
mod debug_utils;
mod device;
mod entry;
mod extensions;
mod instance;
mod memory;
mod object;
mod physical;
mod queue;
mod sync;

use std::ffi::{CStr, c_char};

use ash::vk;

use entry::arguments::{from, guard};
use instance::Instance;

/// The newest version of the interface between loader and driver that we know: all functions can be asked for by name.
const NEWEST_INTERFACE: u32 = 7;
/// The oldest: the loader checks `apiVersion`.
const OLDEST_INTERFACE: u32 = 5;

/// Agrees with the loader on the version of their interface (LoaderDriverInterface, "Loader and Driver Interface Negotiation").
/// `VK_ERROR_INCOMPATIBLE_DRIVER` where the loader is older than version 5.
///
/// # Safety
///
/// `version` points to the version that the loader speaks, and may be written to.
#[unsafe(no_mangle)]
pub unsafe extern "system" fn vk_icdNegotiateLoaderICDInterfaceVersion(
    version: *mut u32,
) -> vk::Result {
    guard("vk_icdNegotiateLoaderICDInterfaceVersion", || {
        // SAFETY: passed on.
        let version: &mut u32 = unsafe { from(version) };
        if *version < OLDEST_INTERFACE {
            return vk::Result::ERROR_INCOMPATIBLE_DRIVER;
        }
        *version = NEWEST_INTERFACE.min(*version);
        vk::Result::SUCCESS
    })
}

/// `vkGetInstanceProcAddr`, as the loader calls it. Knows the functions of this interface too, which are of no instance.
///
/// # Safety
///
/// As `vkGetInstanceProcAddr`.
#[unsafe(no_mangle)]
pub unsafe extern "system" fn vk_icdGetInstanceProcAddr(
    instance: vk::Instance,
    name: *const c_char,
) -> vk::PFN_vkVoidFunction {
    guard("vk_icdGetInstanceProcAddr", || {
        // SAFETY: passed on.
        let name: &CStr = unsafe { from(name) };
        // SAFETY: as above.
        let instance: Option<&Instance> = unsafe { from(instance) };
        entry::interface_proc_addr(name).or_else(|| entry::instance_proc_addr(instance, name))
    })
}

/// The commands of physical devices, and no others.
///
/// # Safety
///
/// As `vkGetInstanceProcAddr`.
#[unsafe(no_mangle)]
pub unsafe extern "system" fn vk_icdGetPhysicalDeviceProcAddr(
    _: vk::Instance,
    name: *const c_char,
) -> vk::PFN_vkVoidFunction {
    guard("vk_icdGetPhysicalDeviceProcAddr", || {
        // SAFETY: passed on.
        let name: &CStr = unsafe { from(name) };
        entry::physical_device_proc_addr(name)
    })
}
