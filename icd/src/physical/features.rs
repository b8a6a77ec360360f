//! Features: nearly all are of shaders and images, so there are few.

use std::ffi::c_void;

use ash::vk;

use super::PhysicalDevice;
use crate::chain;
use crate::entry::arguments::{Out, slice};

/// Members of `VkPhysicalDeviceFeatures`.
const CORE: u32 = 55;

/// No shader can read past a buffer, and no transfer: the host checks.
fn core() -> vk::PhysicalDeviceFeatures {
    vk::PhysicalDeviceFeatures {
        robust_buffer_access: vk::TRUE,
        ..Default::default()
    }
}

/// Structures of features that we know: how many members they have, all of type VkBool32, and what we say to all of them.
const KNOWN: [(vk::StructureType, u32, vk::Bool32); 8] = [
    (
        vk::StructureType::PHYSICAL_DEVICE_16BIT_STORAGE_FEATURES,
        4,
        vk::FALSE,
    ),
    (
        vk::StructureType::PHYSICAL_DEVICE_MULTIVIEW_FEATURES,
        3,
        vk::FALSE,
    ),
    (
        vk::StructureType::PHYSICAL_DEVICE_VARIABLE_POINTERS_FEATURES,
        2,
        vk::FALSE,
    ),
    (
        vk::StructureType::PHYSICAL_DEVICE_PROTECTED_MEMORY_FEATURES,
        1,
        vk::FALSE,
    ),
    (
        vk::StructureType::PHYSICAL_DEVICE_SAMPLER_YCBCR_CONVERSION_FEATURES,
        1,
        vk::FALSE,
    ),
    (
        vk::StructureType::PHYSICAL_DEVICE_SHADER_DRAW_PARAMETERS_FEATURES,
        1,
        vk::FALSE,
    ),
    (
        vk::StructureType::PHYSICAL_DEVICE_TIMELINE_SEMAPHORE_FEATURES,
        1,
        vk::TRUE,
    ),
    (
        vk::StructureType::PHYSICAL_DEVICE_SYNCHRONIZATION_2_FEATURES,
        1,
        vk::TRUE,
    ),
];

/// Where the members of a structure of features are. All of them begin alike: this one has a single member.
fn members(structure: *mut c_void) -> *mut vk::Bool32 {
    structure
        .wrapping_byte_add(std::mem::offset_of!(
            vk::PhysicalDeviceTimelineSemaphoreFeatures<'_>,
            timeline_semaphore
        ))
        .cast()
}

pub(crate) fn get(_: &PhysicalDevice, out: Out<'_, vk::PhysicalDeviceFeatures>) {
    out.set(core());
}

pub(crate) fn get2(_: &PhysicalDevice, out: &mut vk::PhysicalDeviceFeatures2<'_>) {
    out.features = core();
    let answer = |kind, structure| {
        if let Some(&(_, count, value)) = KNOWN.iter().find(|(known, ..)| *known == kind) {
            for index in 0..count as usize {
                // SAFETY: `sType` says that the structure has so many members from there on.
                unsafe { members(structure).wrapping_add(index).write(value) };
            }
        }
    };
    // SAFETY: the chain of a structure that the program filled.
    unsafe { chain::each(out.p_next, answer) };
}

/// `VK_ERROR_FEATURE_NOT_PRESENT` where vkCreateDevice asks for one of those that are not there.
pub(crate) fn check(info: &vk::DeviceCreateInfo<'_>) -> Result<(), vk::Result> {
    let mut refused = false;
    let mut check_core = |features: *const vk::PhysicalDeviceFeatures| {
        let offered = core();
        // SAFETY: the structure is so many VkBool32 and nothing else.
        let offered = unsafe { slice(std::ptr::from_ref(&offered).cast::<vk::Bool32>(), CORE) };
        // SAFETY: as above, or null.
        let wanted = unsafe { slice(features.cast::<vk::Bool32>(), CORE) };
        let mut pairs = wanted.iter().zip(offered);
        refused |= pairs.any(|(wanted, offered)| *wanted != vk::FALSE && *offered == vk::FALSE);
    };
    check_core(info.p_enabled_features);
    let check_one = |kind, structure: *mut c_void| {
        if kind == vk::StructureType::PHYSICAL_DEVICE_FEATURES_2 {
            // SAFETY: `sType` says that it is one.
            let features = unsafe { chain::as_mut::<vk::PhysicalDeviceFeatures2<'_>>(structure) };
            check_core(&features.features);
        }
    };
    // SAFETY: the chain of a structure that the program filled; it is only read.
    unsafe { chain::each(info.p_next.cast_mut(), check_one) };
    let check_known = |kind, structure| {
        for &(known, count, value) in &KNOWN {
            if known == kind && value == vk::FALSE {
                // SAFETY: `sType` says that the structure has so many members from there on.
                let wanted = unsafe { slice(members(structure).cast_const(), count) };
                refused |= wanted.iter().any(|wanted| *wanted != vk::FALSE);
            }
        }
    };
    // SAFETY: as above.
    unsafe { chain::each(info.p_next.cast_mut(), check_known) };
    match refused {
        true => Err(vk::Result::ERROR_FEATURE_NOT_PRESENT),
        false => Ok(()),
    }
}

const _: () = assert!(size_of::<vk::PhysicalDeviceFeatures>() == CORE as usize * 4);

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(info: vk::DeviceCreateInfo<'_>) -> bool {
        check(&info) == Err(vk::Result::ERROR_FEATURE_NOT_PRESENT)
    }

    #[test]
    fn what_is_offered_can_be_enabled_and_nothing_else() {
        let info = vk::DeviceCreateInfo::default;
        assert!(!refused(info()));
        let offered = core();
        assert!(!refused(info().enabled_features(&offered)));
        let more = offered.inherited_queries(true);
        assert!(refused(info().enabled_features(&more)), "the last member");
        let mut chained = vk::PhysicalDeviceFeatures2::default().features(more);
        assert!(refused(info().push_next(&mut chained)));
    }

    #[test]
    fn structures_of_features_are_looked_through() {
        let info = vk::DeviceCreateInfo::default;
        let mut timeline =
            vk::PhysicalDeviceTimelineSemaphoreFeatures::default().timeline_semaphore(true);
        let mut later =
            vk::PhysicalDeviceSynchronization2Features::default().synchronization2(true);
        let offered = info().push_next(&mut timeline).push_next(&mut later);
        assert!(!refused(offered));
        let mut views = vk::PhysicalDeviceMultiviewFeatures::default();
        assert!(!refused(info().push_next(&mut views)), "all false");
        let mut views = views.multiview_tessellation_shader(true);
        let both = info().push_next(&mut later).push_next(&mut views);
        assert!(refused(both), "the last member");
    }
}
