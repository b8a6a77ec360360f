//! Who the device is.

use std::ffi::c_void;

use ash::vk;

use super::{PhysicalDevice, limits};
use crate::chain;
use crate::entry::arguments::Out;
use crate::extensions::put_name;
use crate::instance::API_VERSION;

/// Red Hat's, where hosts of virtio devices say nothing else.
const VIRTIO_VENDOR: u32 = 0x1AF4;
/// A virtio-gpu, by its PCI id.
const VIRTIO_GPU: u32 = 0x1050;

/// This driver, for whoever wants to know whether two processes can share memory, and for pipeline caches.
const DRIVER_UUID: [u8; 16] = *b"hostblob dma-buf";

/// The least that `maxMemoryAllocationSize` may be; a host with less answers that it is out of memory.
const LEAST_ALLOCATION: u64 = 1 << 30;

fn version(part: &str) -> u32 {
    part.parse().unwrap_or(0)
}

fn properties(physical: &PhysicalDevice) -> vk::PhysicalDeviceProperties {
    let capset = physical.capset();
    let (vendor_id, device_id) = match capset.vendor_id {
        0 => (VIRTIO_VENDOR, VIRTIO_GPU),
        vendor => (vendor, capset.device_id),
    };
    let mut properties = vk::PhysicalDeviceProperties {
        api_version: API_VERSION,
        driver_version: vk::make_api_version(
            0,
            version(env!("CARGO_PKG_VERSION_MAJOR")),
            version(env!("CARGO_PKG_VERSION_MINOR")),
            version(env!("CARGO_PKG_VERSION_PATCH")),
        ),
        vendor_id,
        device_id,
        device_type: vk::PhysicalDeviceType::VIRTUAL_GPU,
        pipeline_cache_uuid: DRIVER_UUID,
        limits: limits::limits(physical),
        ..Default::default()
    };
    let name = format!("hostblob ({})", capset.device_name);
    put_name(&mut properties.device_name, name.as_bytes());
    properties
}

pub(crate) fn get(physical: &PhysicalDevice, out: Out<'_, vk::PhysicalDeviceProperties>) {
    out.set(properties(physical));
}

pub(crate) fn get2(physical: &PhysicalDevice, out: &mut vk::PhysicalDeviceProperties2<'_>) {
    out.properties = properties(physical);
    // SAFETY: the chain of a structure that the program filled.
    unsafe {
        chain::each(out.p_next, |kind, structure| {
            more(physical, kind, structure)
        })
    };
}

/// A structure of the chain; what is not known stays as it is.
fn more(physical: &PhysicalDevice, kind: vk::StructureType, structure: *mut c_void) {
    use vk::StructureType as Type;
    match kind {
        Type::PHYSICAL_DEVICE_ID_PROPERTIES => {
            // SAFETY: `sType` says that it is one.
            let out: &mut vk::PhysicalDeviceIDProperties<'_> = unsafe { chain::as_mut(structure) };
            out.device_uuid = physical.capset().device_uuid;
            out.driver_uuid = DRIVER_UUID;
            out.device_luid_valid = vk::FALSE;
            out.device_node_mask = 1;
        }
        Type::PHYSICAL_DEVICE_MAINTENANCE_3_PROPERTIES => {
            let out: &mut vk::PhysicalDeviceMaintenance3Properties<'_> =
                // SAFETY: as above.
                unsafe { chain::as_mut(structure) };
            out.max_per_set_descriptors = 1024;
            let largest = physical.capset().limits.max_blob_size;
            out.max_memory_allocation_size = largest.max(LEAST_ALLOCATION);
        }
        Type::PHYSICAL_DEVICE_MULTIVIEW_PROPERTIES => {
            let out: &mut vk::PhysicalDeviceMultiviewProperties<'_> =
                // SAFETY: as above.
                unsafe { chain::as_mut(structure) };
            out.max_multiview_view_count = 6;
            out.max_multiview_instance_index = (1 << 27) - 1;
        }
        Type::PHYSICAL_DEVICE_POINT_CLIPPING_PROPERTIES => {
            let out: &mut vk::PhysicalDevicePointClippingProperties<'_> =
                // SAFETY: as above.
                unsafe { chain::as_mut(structure) };
            out.point_clipping_behavior = vk::PointClippingBehavior::ALL_CLIP_PLANES;
        }
        Type::PHYSICAL_DEVICE_PROTECTED_MEMORY_PROPERTIES => {
            let out: &mut vk::PhysicalDeviceProtectedMemoryProperties<'_> =
                // SAFETY: as above.
                unsafe { chain::as_mut(structure) };
            out.protected_no_fault = vk::FALSE;
        }
        Type::PHYSICAL_DEVICE_SUBGROUP_PROPERTIES => {
            let out: &mut vk::PhysicalDeviceSubgroupProperties<'_> =
                // SAFETY: as above.
                unsafe { chain::as_mut(structure) };
            out.subgroup_size = 1;
            out.supported_stages = vk::ShaderStageFlags::empty();
            out.supported_operations = vk::SubgroupFeatureFlags::empty();
            out.quad_operations_in_all_stages = vk::FALSE;
        }
        Type::PHYSICAL_DEVICE_TIMELINE_SEMAPHORE_PROPERTIES => {
            let out: &mut vk::PhysicalDeviceTimelineSemaphoreProperties<'_> =
                // SAFETY: as above.
                unsafe { chain::as_mut(structure) };
            out.max_timeline_semaphore_value_difference = u64::MAX;
        }
        _ => {}
    }
}
