//! One family of one queue, for transfers.
//!
//! Graphics or compute, which the specification asks of some family of an implementation, would have no shaders to run: see
//! `docs/adr/0016-a-vulkan-driver-for-transfers.md`.

use ash::vk;

use super::PhysicalDevice;
use crate::entry::arguments::List;

const FAMILIES: [vk::QueueFamilyProperties; 1] = [vk::QueueFamilyProperties {
    queue_flags: vk::QueueFlags::TRANSFER,
    queue_count: 1,
    timestamp_valid_bits: 0,
    min_image_transfer_granularity: vk::Extent3D {
        width: 1,
        height: 1,
        depth: 1,
    },
}];

pub(crate) fn get(_: &PhysicalDevice, count: &mut u32, out: List<'_, vk::QueueFamilyProperties>) {
    // SAFETY: the count belongs to the list.
    let _no_result = unsafe { out.copy(count, &FAMILIES) };
}

pub(crate) fn get2(
    _: &PhysicalDevice,
    count: &mut u32,
    out: List<'_, vk::QueueFamilyProperties2<'_>>,
) {
    let put = |place: *mut vk::QueueFamilyProperties2<'_>, family: &vk::QueueFamilyProperties| {
        // SAFETY: `fill` gives a place with one, and the member is numbers.
        unsafe { (*place).queue_family_properties = *family };
    };
    // SAFETY: the count belongs to the list, and what is written keeps `sType` and `pNext`.
    let _no_result = unsafe { out.fill(count, &FAMILIES, put) };
}
