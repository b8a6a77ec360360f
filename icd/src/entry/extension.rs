//! Commands of extensions, by extension, and the names that core commands have there.

use std::ffi::{c_int, c_void};

use ash::vk;

use super::{Command, Level, commands, refused};
use crate::command::recording;
use crate::debug_utils;
use crate::extensions::Extensions;
use crate::memory;
use crate::queue::submit;
use crate::sync::semaphore;

commands! { MAP_MEMORY2
    PFN_vkMapMemory2KHR(device: vk::Device, info: *const vk::MemoryMapInfoKHR<'_>, data: *mut *mut c_void) -> vk::Result = memory::map2;
    PFN_vkUnmapMemory2KHR(device: vk::Device, info: *const vk::MemoryUnmapInfoKHR<'_>) -> vk::Result = memory::unmap2;
}

commands! { COPY_COMMANDS2
    PFN_vkCmdCopyBuffer2(buffer: vk::CommandBuffer, info: *const vk::CopyBufferInfo2<'_>) = recording::copy2;
}

// Images, which there are none of.
refused! { COPY_COMMANDS2_IMAGES
    PFN_vkCmdCopyImage2(vk::CommandBuffer, *const vk::CopyImageInfo2<'_>);
    PFN_vkCmdCopyBufferToImage2(vk::CommandBuffer, *const vk::CopyBufferToImageInfo2<'_>);
    PFN_vkCmdCopyImageToBuffer2(vk::CommandBuffer, *const vk::CopyImageToBufferInfo2<'_>);
    PFN_vkCmdBlitImage2(vk::CommandBuffer, *const vk::BlitImageInfo2<'_>);
    PFN_vkCmdResolveImage2(vk::CommandBuffer, *const vk::ResolveImageInfo2<'_>);
}

commands! { SYNCHRONIZATION2
    PFN_vkQueueSubmit2(queue: vk::Queue, count: u32, submits: *const vk::SubmitInfo2<'_>, fence: vk::Fence) -> vk::Result = submit::submit2;
}

// Barriers have nothing to add, and events and timestamps are not for queues of this kind.
refused! { SYNCHRONIZATION2_NOTHING
    PFN_vkCmdPipelineBarrier2(vk::CommandBuffer, *const vk::DependencyInfo<'_>);
    PFN_vkCmdSetEvent2(vk::CommandBuffer, vk::Event, *const vk::DependencyInfo<'_>);
    PFN_vkCmdResetEvent2(vk::CommandBuffer, vk::Event, vk::PipelineStageFlags2);
    PFN_vkCmdWaitEvents2(vk::CommandBuffer, u32, *const vk::Event, *const vk::DependencyInfo<'_>);
    PFN_vkCmdWriteTimestamp2(vk::CommandBuffer, vk::PipelineStageFlags2, vk::QueryPool, u32);
}

commands! { TIMELINE_SEMAPHORE
    PFN_vkGetSemaphoreCounterValue(device: vk::Device, semaphore: vk::Semaphore, value: *mut u64) -> vk::Result = semaphore::counter_value;
    PFN_vkWaitSemaphores(device: vk::Device, info: *const vk::SemaphoreWaitInfo<'_>, timeout: u64) -> vk::Result = semaphore::wait;
    PFN_vkSignalSemaphore(device: vk::Device, info: *const vk::SemaphoreSignalInfo<'_>) -> vk::Result = semaphore::signal;
}

commands! { EXTERNAL_MEMORY_FD
    PFN_vkGetMemoryFdKHR(device: vk::Device, info: *const vk::MemoryGetFdInfoKHR<'_>, fd: *mut c_int) -> vk::Result = memory::get_fd;
    PFN_vkGetMemoryFdPropertiesKHR(
        device: vk::Device, handle_type: vk::ExternalMemoryHandleTypeFlags, fd: c_int, properties: *mut vk::MemoryFdPropertiesKHR<'_>
    ) -> vk::Result = memory::fd_properties;
}

commands! { DEBUG_UTILS_INSTANCE
    PFN_vkCreateDebugUtilsMessengerEXT(
        instance: vk::Instance, info: *const vk::DebugUtilsMessengerCreateInfoEXT<'_>, callbacks: *const vk::AllocationCallbacks<'_>,
        messenger: *mut vk::DebugUtilsMessengerEXT
    ) -> vk::Result = debug_utils::create;
    PFN_vkDestroyDebugUtilsMessengerEXT(
        instance: vk::Instance, messenger: vk::DebugUtilsMessengerEXT, callbacks: *const vk::AllocationCallbacks<'_>
    ) = debug_utils::destroy;
    PFN_vkSubmitDebugUtilsMessageEXT(
        instance: vk::Instance, severity: vk::DebugUtilsMessageSeverityFlagsEXT, types: vk::DebugUtilsMessageTypeFlagsEXT,
        data: *const vk::DebugUtilsMessengerCallbackDataEXT<'_>
    ) = debug_utils::submit;
}

// Tags and labels are for tools that look at a program's commands.
commands! { DEBUG_UTILS
    PFN_vkSetDebugUtilsObjectNameEXT(
        device: vk::Device, info: *const vk::DebugUtilsObjectNameInfoEXT<'_>
    ) -> vk::Result = debug_utils::set_name;
    PFN_vkSetDebugUtilsObjectTagEXT(
        device: vk::Device, info: *const vk::DebugUtilsObjectTagInfoEXT<'_>
    ) -> vk::Result = debug_utils::set_tag;
    PFN_vkQueueBeginDebugUtilsLabelEXT(queue: vk::Queue, label: *const vk::DebugUtilsLabelEXT<'_>) = debug_utils::queue_label;
    PFN_vkQueueEndDebugUtilsLabelEXT(queue: vk::Queue) = debug_utils::end_queue_label;
    PFN_vkQueueInsertDebugUtilsLabelEXT(queue: vk::Queue, label: *const vk::DebugUtilsLabelEXT<'_>) = debug_utils::queue_label;
    PFN_vkCmdBeginDebugUtilsLabelEXT(buffer: vk::CommandBuffer, label: *const vk::DebugUtilsLabelEXT<'_>) = debug_utils::command_label;
    PFN_vkCmdEndDebugUtilsLabelEXT(buffer: vk::CommandBuffer) = debug_utils::end_command_label;
    PFN_vkCmdInsertDebugUtilsLabelEXT(buffer: vk::CommandBuffer, label: *const vk::DebugUtilsLabelEXT<'_>) = debug_utils::command_label;
}

/// The commands of an extension, and what their names end with beyond the name of their type.
pub(super) struct Table {
    pub(super) level: Level,
    pub(super) extension: Extensions,
    pub(super) commands: &'static [Command],
    pub(super) suffix: &'static str,
}

const fn device(
    extension: Extensions,
    commands: &'static [Command],
    suffix: &'static str,
) -> Table {
    Table {
        level: Level::Device,
        extension,
        commands,
        suffix,
    }
}

/// Every table.
pub(super) const TABLES: [Table; 9] = [
    device(Extensions::MAP_MEMORY2, MAP_MEMORY2, ""),
    device(Extensions::COPY_COMMANDS2, COPY_COMMANDS2, "KHR"),
    device(Extensions::COPY_COMMANDS2, COPY_COMMANDS2_IMAGES, "KHR"),
    device(Extensions::SYNCHRONIZATION2, SYNCHRONIZATION2, "KHR"),
    device(
        Extensions::SYNCHRONIZATION2,
        SYNCHRONIZATION2_NOTHING,
        "KHR",
    ),
    device(Extensions::TIMELINE_SEMAPHORE, TIMELINE_SEMAPHORE, "KHR"),
    device(Extensions::EXTERNAL_MEMORY_FD, EXTERNAL_MEMORY_FD, ""),
    // Of an extension of the instance: there whenever the device is.
    device(Extensions::empty(), DEBUG_UTILS, ""),
    Table {
        level: Level::Instance,
        extension: Extensions::DEBUG_UTILS,
        commands: DEBUG_UTILS_INSTANCE,
        suffix: "",
    },
];

/// Commands of extensions that became core: there too, with KHR after their name.
pub(super) const PROMOTED: [(Extensions, &[&str]); 5] = [
    (
        Extensions::GET_PHYSICAL_DEVICE_PROPERTIES2,
        &[
            "vkGetPhysicalDeviceFeatures2",
            "vkGetPhysicalDeviceFormatProperties2",
            "vkGetPhysicalDeviceImageFormatProperties2",
            "vkGetPhysicalDeviceMemoryProperties2",
            "vkGetPhysicalDeviceProperties2",
            "vkGetPhysicalDeviceQueueFamilyProperties2",
            "vkGetPhysicalDeviceSparseImageFormatProperties2",
        ],
    ),
    (
        Extensions::EXTERNAL_MEMORY_CAPABILITIES,
        &["vkGetPhysicalDeviceExternalBufferProperties"],
    ),
    (Extensions::MAINTENANCE1, &["vkTrimCommandPool"]),
    (
        Extensions::GET_MEMORY_REQUIREMENTS2,
        &[
            "vkGetBufferMemoryRequirements2",
            "vkGetImageMemoryRequirements2",
            "vkGetImageSparseMemoryRequirements2",
        ],
    ),
    (
        Extensions::BIND_MEMORY2,
        &["vkBindBufferMemory2", "vkBindImageMemory2"],
    ),
];
