//! Which extensions there are, and which layers: none.

use std::ffi::{CStr, c_char};

use ash::vk;
use bitflags::bitflags;

use crate::entry::arguments::{List, slice};
use crate::physical::PhysicalDevice;

bitflags! {
    /// A set of extensions. Those that this driver knows and whose every command it has.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(crate) struct Extensions: u32 {
        const DEBUG_UTILS = 1 << 0;
        const GET_PHYSICAL_DEVICE_PROPERTIES2 = 1 << 1;
        const EXTERNAL_MEMORY_CAPABILITIES = 1 << 2;
        const MAINTENANCE1 = 1 << 3;
        const GET_MEMORY_REQUIREMENTS2 = 1 << 4;
        const BIND_MEMORY2 = 1 << 5;
        const DEDICATED_ALLOCATION = 1 << 6;
        const EXTERNAL_MEMORY = 1 << 7;
        const EXTERNAL_MEMORY_FD = 1 << 8;
        const EXTERNAL_MEMORY_DMA_BUF = 1 << 9;
        const MEMORY_BUDGET = 1 << 10;
        const MAP_MEMORY2 = 1 << 11;
        const COPY_COMMANDS2 = 1 << 12;
        const SYNCHRONIZATION2 = 1 << 13;
        const TIMELINE_SEMAPHORE = 1 << 14;
    }
}

impl Extensions {
    /// Those that need dma-bufs.
    pub(crate) const DMA_BUF: Self = Self::EXTERNAL_MEMORY_FD.union(Self::EXTERNAL_MEMORY_DMA_BUF);

    fn named(known: &[Known], name: &CStr) -> Option<Self> {
        let found = known.iter().find(|known| known.name == name)?;
        Some(found.extension)
    }

    /// Those of this list; an error where one is not in `known`, or not `available`.
    fn parse<'a>(
        known: &[Known],
        available: Self,
        names: impl Iterator<Item = &'a CStr>,
    ) -> Result<Self, vk::Result> {
        let mut set = Self::empty();
        for name in names {
            let extension = Self::named(known, name).filter(|one| available.contains(*one));
            set |= extension.ok_or(vk::Result::ERROR_EXTENSION_NOT_PRESENT)?;
        }
        Ok(set)
    }
}

struct Known {
    extension: Extensions,
    name: &'static CStr,
    version: u32,
}

macro_rules! known {
    ($($extension:ident $($path:ident)::*;)*) => {
        &[$(Known {
            extension: Extensions::$extension,
            name: ash::$($path)::*::NAME,
            version: ash::$($path)::*::SPEC_VERSION,
        }),*]
    };
}

const INSTANCE: &[Known] = known! {
    DEBUG_UTILS ext::debug_utils;
    GET_PHYSICAL_DEVICE_PROPERTIES2 khr::get_physical_device_properties2;
    EXTERNAL_MEMORY_CAPABILITIES khr::external_memory_capabilities;
};

const DEVICE: &[Known] = known! {
    MAINTENANCE1 khr::maintenance1;
    GET_MEMORY_REQUIREMENTS2 khr::get_memory_requirements2;
    BIND_MEMORY2 khr::bind_memory2;
    DEDICATED_ALLOCATION khr::dedicated_allocation;
    EXTERNAL_MEMORY khr::external_memory;
    EXTERNAL_MEMORY_FD khr::external_memory_fd;
    EXTERNAL_MEMORY_DMA_BUF ext::external_memory_dma_buf;
    MEMORY_BUDGET ext::memory_budget;
    MAP_MEMORY2 khr::map_memory2;
    COPY_COMMANDS2 khr::copy_commands2;
    SYNCHRONIZATION2 khr::synchronization2;
    TIMELINE_SEMAPHORE khr::timeline_semaphore;
};

/// The strings of an array that a structure points to.
///
/// # Safety
///
/// The pointer is null, or `count` strings are behind it that live for `'a`.
unsafe fn names<'a>(pointer: *const *const c_char, count: u32) -> impl Iterator<Item = &'a CStr> {
    // SAFETY: passed on.
    let names = unsafe { slice(pointer, count) };
    // SAFETY: as above.
    names.iter().map(|name| unsafe { CStr::from_ptr(*name) })
}

/// What vkCreateInstance asks for.
pub(crate) fn of_instance(info: &vk::InstanceCreateInfo<'_>) -> Result<Extensions, vk::Result> {
    // SAFETY: the count belongs to the array.
    let names = unsafe {
        names(
            info.pp_enabled_extension_names,
            info.enabled_extension_count,
        )
    };
    Extensions::parse(INSTANCE, Extensions::all(), names)
}

/// What vkCreateDevice asks for.
pub(crate) fn of_device(
    available: Extensions,
    info: &vk::DeviceCreateInfo<'_>,
) -> Result<Extensions, vk::Result> {
    // SAFETY: the count belongs to the array.
    let names = unsafe {
        names(
            info.pp_enabled_extension_names,
            info.enabled_extension_count,
        )
    };
    Extensions::parse(DEVICE, available, names)
}

fn list(
    known: &[Known],
    available: Extensions,
    layer: Option<&c_char>,
    count: &mut u32,
    out: List<'_, vk::ExtensionProperties>,
) -> vk::Result {
    if layer.is_some() {
        return vk::Result::ERROR_LAYER_NOT_PRESENT;
    }
    let properties = |known: &Known| {
        let mut properties = vk::ExtensionProperties {
            spec_version: known.version,
            ..Default::default()
        };
        put_name(&mut properties.extension_name, known.name.to_bytes());
        properties
    };
    let known = known
        .iter()
        .filter(|known| available.contains(known.extension));
    let known: Vec<_> = known.map(properties).collect();
    // SAFETY: the count belongs to the list.
    unsafe { out.copy(count, &known) }
}

/// A name as a C string in an array, cut where it does not fit.
pub(crate) fn put_name(to: &mut [c_char], name: &[u8]) {
    let room = to.len().saturating_sub(1);
    for (to, from) in to.iter_mut().take(room).zip(name) {
        *to = from.cast_signed();
    }
}

pub(crate) fn enumerate_instance(
    layer: Option<&c_char>,
    count: &mut u32,
    out: List<'_, vk::ExtensionProperties>,
) -> vk::Result {
    list(INSTANCE, Extensions::all(), layer, count, out)
}

pub(crate) fn enumerate_device(
    physical: &PhysicalDevice,
    layer: Option<&c_char>,
    count: &mut u32,
    out: List<'_, vk::ExtensionProperties>,
) -> vk::Result {
    list(DEVICE, physical.extensions(), layer, count, out)
}

pub(crate) fn enumerate_instance_layers(count: &mut u32, _: List<'_, vk::LayerProperties>) {
    *count = 0;
}

pub(crate) fn enumerate_device_layers(
    _: &PhysicalDevice,
    count: &mut u32,
    _: List<'_, vk::LayerProperties>,
) {
    *count = 0;
}
