//! Formats: no image and no texel buffer has any, whatever it is asked for.

use ash::vk;

use super::PhysicalDevice;
use crate::entry::arguments::{List, Out};

pub(crate) fn get(_: &PhysicalDevice, _: vk::Format, out: Out<'_, vk::FormatProperties>) {
    out.set(vk::FormatProperties::default());
}

pub(crate) fn get2(_: &PhysicalDevice, _: vk::Format, out: &mut vk::FormatProperties2<'_>) {
    out.format_properties = vk::FormatProperties::default();
}

pub(crate) fn image(
    _: &PhysicalDevice,
    _: vk::Format,
    _: vk::ImageType,
    _: vk::ImageTiling,
    _: vk::ImageUsageFlags,
    _: vk::ImageCreateFlags,
    out: Out<'_, vk::ImageFormatProperties>,
) -> vk::Result {
    // As the specification has it for a combination that is not supported.
    out.set(vk::ImageFormatProperties::default());
    vk::Result::ERROR_FORMAT_NOT_SUPPORTED
}

pub(crate) fn image2(
    _: &PhysicalDevice,
    _: &vk::PhysicalDeviceImageFormatInfo2<'_>,
    out: &mut vk::ImageFormatProperties2<'_>,
) -> vk::Result {
    out.image_format_properties = vk::ImageFormatProperties::default();
    vk::Result::ERROR_FORMAT_NOT_SUPPORTED
}

#[expect(clippy::too_many_arguments, reason = "as many as the command has")]
pub(crate) fn sparse(
    _: &PhysicalDevice,
    _: vk::Format,
    _: vk::ImageType,
    _: vk::SampleCountFlags,
    _: vk::ImageUsageFlags,
    _: vk::ImageTiling,
    count: &mut u32,
    _: List<'_, vk::SparseImageFormatProperties>,
) {
    *count = 0;
}

pub(crate) fn sparse2(
    _: &PhysicalDevice,
    _: &vk::PhysicalDeviceSparseImageFormatInfo2<'_>,
    count: &mut u32,
    _: List<'_, vk::SparseImageFormatProperties2<'_>>,
) {
    *count = 0;
}
