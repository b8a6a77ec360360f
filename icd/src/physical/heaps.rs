//! Memory heaps and types, as the host says them, and what is left of them (`VK_EXT_memory_budget`).

use ash::vk;

use super::PhysicalDevice;
use crate::chain;
use crate::entry::arguments::Out;

/// Sets of memory types, a bit for each.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TypeBits {
    pub(crate) all: u32,
    /// Those that the guest can map: only they can go to other processes, as dma-bufs.
    pub(crate) visible: u32,
}

impl PhysicalDevice {
    pub(crate) fn type_bits(&self) -> TypeBits {
        let mut bits = TypeBits { all: 0, visible: 0 };
        let types = self.capset().types.iter().take(vk::MAX_MEMORY_TYPES);
        for (index, memory_type) in types.enumerate() {
            bits.all |= 1 << index;
            bits.visible |= u32::from(memory_type.is_host_visible()) << index;
        }
        bits
    }
}

fn memory_properties(physical: &PhysicalDevice) -> vk::PhysicalDeviceMemoryProperties {
    let capset = physical.capset();
    let mut properties = vk::PhysicalDeviceMemoryProperties::default();
    for (to, from) in properties.memory_types.iter_mut().zip(&capset.types) {
        to.property_flags = vk::MemoryPropertyFlags::from_raw(from.property_flags);
        to.heap_index = from.heap;
        properties.memory_type_count += 1;
    }
    for (to, from) in properties.memory_heaps.iter_mut().zip(&capset.heaps) {
        to.size = from.size;
        to.flags = vk::MemoryHeapFlags::from_raw(from.flags);
        properties.memory_heap_count += 1;
    }
    properties
}

pub(crate) fn get(physical: &PhysicalDevice, out: Out<'_, vk::PhysicalDeviceMemoryProperties>) {
    out.set(memory_properties(physical));
}

pub(crate) fn get2(physical: &PhysicalDevice, out: &mut vk::PhysicalDeviceMemoryProperties2<'_>) {
    out.memory_properties = memory_properties(physical);
    let more = |kind, structure| {
        if kind == vk::StructureType::PHYSICAL_DEVICE_MEMORY_BUDGET_PROPERTIES_EXT {
            // SAFETY: `sType` says that it is one.
            budget(physical, unsafe { chain::as_mut(structure) });
        }
    };
    // SAFETY: the chain of a structure that the program filled.
    unsafe { chain::each(out.p_next, more) };
}

/// Asks the host. Zeros, which the specification has for heaps that are not there, where the device is lost.
fn budget(physical: &PhysicalDevice, out: &mut vk::PhysicalDeviceMemoryBudgetPropertiesEXT<'_>) {
    let guest = physical.guest();
    out.heap_budget = Default::default();
    out.heap_usage = Default::default();
    let places = out.heap_budget.iter_mut().zip(&mut out.heap_usage);
    for (index, (heap, (budget, usage))) in (0..).zip(physical.capset().heaps.iter().zip(places)) {
        match guest.budget(index) {
            Ok(found) => (*budget, *usage) = (found.budget.min(heap.size), found.usage),
            Err(error) => log::info!("budget of heap {index}: {error}"),
        }
    }
}
