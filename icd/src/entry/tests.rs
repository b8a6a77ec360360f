//! The tables against `ash`: it knows which commands there are.

use std::ffi::{CStr, c_void};

use ash::{ext, khr, vk};

use super::arguments::guard;
use super::{Level, find, physical_device_proc_addr};

/// What a loader of `ash` asks for by name, and what it gets.
fn expect_all(load: impl FnOnce(&mut dyn FnMut(&CStr) -> *const c_void)) -> usize {
    let mut count = 0;
    load(&mut |name| {
        // Of other extensions, where both are there.
        if matches!(name.to_bytes(), [.., b'A', b'M', b'D'] | [.., b'N', b'V']) {
            return std::ptr::null();
        }
        let entry = find(name).unwrap_or_else(|| panic!("{name:?} is missing"));
        count += 1;
        entry.function as *const c_void
    });
    count
}

macro_rules! expect {
    ($($table:path)*) => {
        [$(expect_all(|find| {
            let _loaded = <$table>::load(find);
        })),*].iter().sum::<usize>()
    };
}

#[test]
fn every_core_command_is_there() {
    let count = expect! {
        ash::EntryFnV1_0 ash::EntryFnV1_1
        ash::InstanceFnV1_0 ash::InstanceFnV1_1
        ash::DeviceFnV1_0 ash::DeviceFnV1_1
    };
    assert_eq!(count, 164, "of Vulkan 1.1, but vkGetInstanceProcAddr");
}

#[test]
fn every_command_of_an_extension_that_is_offered_is_there() {
    expect! {
        ext::debug_utils::InstanceFn ext::debug_utils::DeviceFn
        khr::get_physical_device_properties2::InstanceFn
        khr::external_memory_capabilities::InstanceFn
        khr::maintenance1::DeviceFn
        khr::get_memory_requirements2::DeviceFn
        khr::bind_memory2::DeviceFn
        khr::external_memory_fd::DeviceFn
        khr::map_memory2::DeviceFn
        khr::copy_commands2::DeviceFn
        khr::synchronization2::DeviceFn
        khr::timeline_semaphore::DeviceFn
    };
}

#[test]
fn commands_are_on_the_level_of_what_they_act_on() {
    let level = |name| find(name).map(|entry| entry.level);
    assert_eq!(level(c"vkCreateInstance"), Some(Level::Global));
    assert_eq!(level(c"vkEnumeratePhysicalDevices"), Some(Level::Instance));
    assert_eq!(level(c"vkCreateDevice"), Some(Level::PhysicalDevice));
    assert_eq!(level(c"vkGetDeviceProcAddr"), Some(Level::Device));
    assert_eq!(level(c"vkCmdDraw"), Some(Level::Device));
    assert_eq!(level(c"vkCmdCopyBuffer2"), None, "core in 1.3 only");
    assert!(physical_device_proc_addr(c"vkGetPhysicalDeviceFeatures2KHR").is_some());
    assert!(physical_device_proc_addr(c"vkCreateBuffer").is_none());
}

#[test]
fn a_panic_ends_at_the_boundary() {
    let result: vk::Result = guard("PFN_vkCreateBuffer", || -> Result<(), vk::Result> {
        panic!("a mistake of ours")
    });
    assert_eq!(result, vk::Result::ERROR_UNKNOWN);
    guard::<(), ()>("PFN_vkCmdDraw", || panic!("another"));
}
