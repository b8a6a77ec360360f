//! What can go to other processes: memory of buffers, as dma-bufs of the guest's kernel.

use ash::vk;

use super::PhysicalDevice;

/// The types of handle that memory can leave and enter by. Both are a dma-buf.
pub(crate) const HANDLE_TYPES: vk::ExternalMemoryHandleTypeFlags =
    vk::ExternalMemoryHandleTypeFlags::from_raw(
        vk::ExternalMemoryHandleTypeFlags::OPAQUE_FD.as_raw()
            | vk::ExternalMemoryHandleTypeFlags::DMA_BUF_EXT.as_raw(),
    );

pub(crate) fn buffer(
    physical: &PhysicalDevice,
    info: &vk::PhysicalDeviceExternalBufferInfo<'_>,
    out: &mut vk::ExternalBufferProperties<'_>,
) {
    let is_ours = physical.exports()
        && !info.handle_type.is_empty()
        && HANDLE_TYPES.contains(info.handle_type);
    out.external_memory_properties = if is_ours {
        vk::ExternalMemoryProperties {
            external_memory_features: vk::ExternalMemoryFeatureFlags::EXPORTABLE
                | vk::ExternalMemoryFeatureFlags::IMPORTABLE,
            export_from_imported_handle_types: HANDLE_TYPES,
            compatible_handle_types: HANDLE_TYPES,
        }
    } else {
        vk::ExternalMemoryProperties {
            compatible_handle_types: info.handle_type,
            ..Default::default()
        }
    };
}

pub(crate) fn fence(
    _: &PhysicalDevice,
    _: &vk::PhysicalDeviceExternalFenceInfo<'_>,
    out: &mut vk::ExternalFenceProperties<'_>,
) {
    out.export_from_imported_handle_types = vk::ExternalFenceHandleTypeFlags::empty();
    out.compatible_handle_types = vk::ExternalFenceHandleTypeFlags::empty();
    out.external_fence_features = vk::ExternalFenceFeatureFlags::empty();
}

pub(crate) fn semaphore(
    _: &PhysicalDevice,
    _: &vk::PhysicalDeviceExternalSemaphoreInfo<'_>,
    out: &mut vk::ExternalSemaphoreProperties<'_>,
) {
    out.export_from_imported_handle_types = vk::ExternalSemaphoreHandleTypeFlags::empty();
    out.compatible_handle_types = vk::ExternalSemaphoreHandleTypeFlags::empty();
    out.external_semaphore_features = vk::ExternalSemaphoreFeatureFlags::empty();
}
