//! Core commands that do something: their C signatures, and the function that each one calls.

use std::ffi::{c_char, c_void};

use ash::vk;

use super::{Command, commands};
use crate::buffer::{self, Buffer};
use crate::command::{pool, recording};
use crate::device;
use crate::extensions;
use crate::instance;
use crate::memory;
use crate::physical::{external, features, formats, heaps, properties, queue_families};
use crate::queue::{self, submit};
use crate::sync::{
    event::{self, Event},
    fence::{self, Fence},
    semaphore::{self, Semaphore},
};

commands! { GLOBAL
    PFN_vkCreateInstance(
        info: *const vk::InstanceCreateInfo<'_>, callbacks: *const vk::AllocationCallbacks<'_>, instance: *mut vk::Instance
    ) -> vk::Result = instance::create;
    PFN_vkEnumerateInstanceExtensionProperties(
        layer_name: *const c_char, count: *mut u32, properties: *mut vk::ExtensionProperties
    ) -> vk::Result = extensions::enumerate_instance;
    PFN_vkEnumerateInstanceLayerProperties(
        count: *mut u32, properties: *mut vk::LayerProperties
    ) -> vk::Result = extensions::enumerate_instance_layers;
    PFN_vkEnumerateInstanceVersion(api_version: *mut u32) -> vk::Result = instance::enumerate_version;
    PFN_vkGetInstanceProcAddr(instance: vk::Instance, name: *const c_char) -> vk::PFN_vkVoidFunction = super::instance_proc_addr;
}

commands! { INSTANCE
    PFN_vkDestroyInstance(instance: vk::Instance, callbacks: *const vk::AllocationCallbacks<'_>) = instance::destroy;
    PFN_vkEnumeratePhysicalDevices(
        instance: vk::Instance, count: *mut u32, physical_devices: *mut vk::PhysicalDevice
    ) -> vk::Result = instance::enumerate_physical_devices;
    PFN_vkEnumeratePhysicalDeviceGroups(
        instance: vk::Instance, count: *mut u32, groups: *mut vk::PhysicalDeviceGroupProperties<'_>
    ) -> vk::Result = instance::enumerate_groups;
}

commands! { PHYSICAL_DEVICE
    PFN_vkGetPhysicalDeviceFeatures(physical: vk::PhysicalDevice, features: *mut vk::PhysicalDeviceFeatures) = features::get;
    PFN_vkGetPhysicalDeviceFormatProperties(
        physical: vk::PhysicalDevice, format: vk::Format, properties: *mut vk::FormatProperties
    ) = formats::get;
    PFN_vkGetPhysicalDeviceImageFormatProperties(
        physical: vk::PhysicalDevice, format: vk::Format, ty: vk::ImageType, tiling: vk::ImageTiling, usage: vk::ImageUsageFlags,
        flags: vk::ImageCreateFlags, properties: *mut vk::ImageFormatProperties
    ) -> vk::Result = formats::image;
    PFN_vkGetPhysicalDeviceProperties(physical: vk::PhysicalDevice, properties: *mut vk::PhysicalDeviceProperties) = properties::get;
    PFN_vkGetPhysicalDeviceQueueFamilyProperties(
        physical: vk::PhysicalDevice, count: *mut u32, families: *mut vk::QueueFamilyProperties
    ) = queue_families::get;
    PFN_vkGetPhysicalDeviceMemoryProperties(physical: vk::PhysicalDevice, properties: *mut vk::PhysicalDeviceMemoryProperties) = heaps::get;
    PFN_vkCreateDevice(
        physical: vk::PhysicalDevice, info: *const vk::DeviceCreateInfo<'_>, callbacks: *const vk::AllocationCallbacks<'_>,
        device: *mut vk::Device
    ) -> vk::Result = device::create;
    PFN_vkEnumerateDeviceExtensionProperties(
        physical: vk::PhysicalDevice, layer_name: *const c_char, count: *mut u32, properties: *mut vk::ExtensionProperties
    ) -> vk::Result = extensions::enumerate_device;
    PFN_vkEnumerateDeviceLayerProperties(
        physical: vk::PhysicalDevice, count: *mut u32, properties: *mut vk::LayerProperties
    ) -> vk::Result = extensions::enumerate_device_layers;
    PFN_vkGetPhysicalDeviceSparseImageFormatProperties(
        physical: vk::PhysicalDevice, format: vk::Format, ty: vk::ImageType, samples: vk::SampleCountFlags, usage: vk::ImageUsageFlags,
        tiling: vk::ImageTiling, count: *mut u32, properties: *mut vk::SparseImageFormatProperties
    ) = formats::sparse;
    PFN_vkGetPhysicalDeviceFeatures2(physical: vk::PhysicalDevice, features: *mut vk::PhysicalDeviceFeatures2<'_>) = features::get2;
    PFN_vkGetPhysicalDeviceProperties2(physical: vk::PhysicalDevice, properties: *mut vk::PhysicalDeviceProperties2<'_>) = properties::get2;
    PFN_vkGetPhysicalDeviceFormatProperties2(
        physical: vk::PhysicalDevice, format: vk::Format, properties: *mut vk::FormatProperties2<'_>
    ) = formats::get2;
    PFN_vkGetPhysicalDeviceImageFormatProperties2(
        physical: vk::PhysicalDevice, info: *const vk::PhysicalDeviceImageFormatInfo2<'_>, properties: *mut vk::ImageFormatProperties2<'_>
    ) -> vk::Result = formats::image2;
    PFN_vkGetPhysicalDeviceQueueFamilyProperties2(
        physical: vk::PhysicalDevice, count: *mut u32, families: *mut vk::QueueFamilyProperties2<'_>
    ) = queue_families::get2;
    PFN_vkGetPhysicalDeviceMemoryProperties2(
        physical: vk::PhysicalDevice, properties: *mut vk::PhysicalDeviceMemoryProperties2<'_>
    ) = heaps::get2;
    PFN_vkGetPhysicalDeviceSparseImageFormatProperties2(
        physical: vk::PhysicalDevice, info: *const vk::PhysicalDeviceSparseImageFormatInfo2<'_>, count: *mut u32,
        properties: *mut vk::SparseImageFormatProperties2<'_>
    ) = formats::sparse2;
    PFN_vkGetPhysicalDeviceExternalBufferProperties(
        physical: vk::PhysicalDevice, info: *const vk::PhysicalDeviceExternalBufferInfo<'_>,
        properties: *mut vk::ExternalBufferProperties<'_>
    ) = external::buffer;
    PFN_vkGetPhysicalDeviceExternalFenceProperties(
        physical: vk::PhysicalDevice, info: *const vk::PhysicalDeviceExternalFenceInfo<'_>,
        properties: *mut vk::ExternalFenceProperties<'_>
    ) = external::fence;
    PFN_vkGetPhysicalDeviceExternalSemaphoreProperties(
        physical: vk::PhysicalDevice, info: *const vk::PhysicalDeviceExternalSemaphoreInfo<'_>,
        properties: *mut vk::ExternalSemaphoreProperties<'_>
    ) = external::semaphore;
}

commands! { DEVICE
    PFN_vkGetDeviceProcAddr(device: vk::Device, name: *const c_char) -> vk::PFN_vkVoidFunction = super::device_proc_addr;
    PFN_vkDestroyDevice(device: vk::Device, callbacks: *const vk::AllocationCallbacks<'_>) = device::destroy;
    PFN_vkGetDeviceQueue(device: vk::Device, family: u32, index: u32, queue: *mut vk::Queue) = device::get_queue;
    PFN_vkQueueSubmit(queue: vk::Queue, count: u32, submits: *const vk::SubmitInfo<'_>, fence: vk::Fence) -> vk::Result = submit::submit;
    PFN_vkQueueWaitIdle(queue: vk::Queue) -> vk::Result = queue::wait_idle;
    PFN_vkDeviceWaitIdle(device: vk::Device) -> vk::Result = device::wait_idle;
    PFN_vkAllocateMemory(
        device: vk::Device, info: *const vk::MemoryAllocateInfo<'_>, callbacks: *const vk::AllocationCallbacks<'_>,
        memory: *mut vk::DeviceMemory
    ) -> vk::Result = memory::allocate;
    PFN_vkFreeMemory(device: vk::Device, memory: vk::DeviceMemory, callbacks: *const vk::AllocationCallbacks<'_>) = memory::free;
    PFN_vkMapMemory(
        device: vk::Device, memory: vk::DeviceMemory, offset: vk::DeviceSize, size: vk::DeviceSize, flags: vk::MemoryMapFlags,
        data: *mut *mut c_void
    ) -> vk::Result = memory::map;
    PFN_vkUnmapMemory(device: vk::Device, memory: vk::DeviceMemory) = memory::unmap;
    PFN_vkFlushMappedMemoryRanges(device: vk::Device, count: u32, ranges: *const vk::MappedMemoryRange<'_>) -> vk::Result = memory::flush;
    PFN_vkInvalidateMappedMemoryRanges(
        device: vk::Device, count: u32, ranges: *const vk::MappedMemoryRange<'_>
    ) -> vk::Result = memory::invalidate;
    PFN_vkGetDeviceMemoryCommitment(device: vk::Device, memory: vk::DeviceMemory, committed: *mut vk::DeviceSize) = memory::commitment;
    PFN_vkBindBufferMemory(
        device: vk::Device, buffer: vk::Buffer, memory: vk::DeviceMemory, memory_offset: vk::DeviceSize
    ) -> vk::Result = buffer::bind;
    PFN_vkGetBufferMemoryRequirements(
        device: vk::Device, buffer: vk::Buffer, requirements: *mut vk::MemoryRequirements
    ) = buffer::requirements;
    PFN_vkCreateFence(
        device: vk::Device, info: *const vk::FenceCreateInfo<'_>, callbacks: *const vk::AllocationCallbacks<'_>, fence: *mut vk::Fence
    ) -> vk::Result = fence::create;
    PFN_vkDestroyFence(
        device: vk::Device, fence: vk::Fence, callbacks: *const vk::AllocationCallbacks<'_>
    ) = device::destroy_child::<Fence>;
    PFN_vkResetFences(device: vk::Device, count: u32, fences: *const vk::Fence) -> vk::Result = fence::reset;
    PFN_vkGetFenceStatus(device: vk::Device, fence: vk::Fence) -> vk::Result = fence::status;
    PFN_vkWaitForFences(
        device: vk::Device, count: u32, fences: *const vk::Fence, wait_all: vk::Bool32, timeout: u64
    ) -> vk::Result = fence::wait;
    PFN_vkCreateSemaphore(
        device: vk::Device, info: *const vk::SemaphoreCreateInfo<'_>, callbacks: *const vk::AllocationCallbacks<'_>,
        semaphore: *mut vk::Semaphore
    ) -> vk::Result = semaphore::create;
    PFN_vkDestroySemaphore(
        device: vk::Device, semaphore: vk::Semaphore, callbacks: *const vk::AllocationCallbacks<'_>
    ) = device::destroy_child::<Semaphore>;
    PFN_vkCreateEvent(
        device: vk::Device, info: *const vk::EventCreateInfo<'_>, callbacks: *const vk::AllocationCallbacks<'_>, event: *mut vk::Event
    ) -> vk::Result = event::create;
    PFN_vkDestroyEvent(
        device: vk::Device, event: vk::Event, callbacks: *const vk::AllocationCallbacks<'_>
    ) = device::destroy_child::<Event>;
    PFN_vkGetEventStatus(device: vk::Device, event: vk::Event) -> vk::Result = event::status;
    PFN_vkSetEvent(device: vk::Device, event: vk::Event) -> vk::Result = event::set;
    PFN_vkResetEvent(device: vk::Device, event: vk::Event) -> vk::Result = event::reset;
    PFN_vkCreateBuffer(
        device: vk::Device, info: *const vk::BufferCreateInfo<'_>, callbacks: *const vk::AllocationCallbacks<'_>, buffer: *mut vk::Buffer
    ) -> vk::Result = buffer::create;
    PFN_vkDestroyBuffer(
        device: vk::Device, buffer: vk::Buffer, callbacks: *const vk::AllocationCallbacks<'_>
    ) = device::destroy_child::<Buffer>;
    PFN_vkCreateCommandPool(
        device: vk::Device, info: *const vk::CommandPoolCreateInfo<'_>, callbacks: *const vk::AllocationCallbacks<'_>,
        pool: *mut vk::CommandPool
    ) -> vk::Result = pool::create;
    PFN_vkDestroyCommandPool(device: vk::Device, pool: vk::CommandPool, callbacks: *const vk::AllocationCallbacks<'_>) = pool::destroy;
    PFN_vkResetCommandPool(device: vk::Device, pool: vk::CommandPool, flags: vk::CommandPoolResetFlags) -> vk::Result = pool::reset;
    PFN_vkAllocateCommandBuffers(
        device: vk::Device, info: *const vk::CommandBufferAllocateInfo<'_>, buffers: *mut vk::CommandBuffer
    ) -> vk::Result = pool::allocate;
    PFN_vkFreeCommandBuffers(device: vk::Device, pool: vk::CommandPool, count: u32, buffers: *const vk::CommandBuffer) = pool::free;
    PFN_vkBeginCommandBuffer(buffer: vk::CommandBuffer, begin_info: *const vk::CommandBufferBeginInfo<'_>) -> vk::Result = recording::begin;
    PFN_vkEndCommandBuffer(buffer: vk::CommandBuffer) -> vk::Result = recording::end;
    PFN_vkResetCommandBuffer(buffer: vk::CommandBuffer, flags: vk::CommandBufferResetFlags) -> vk::Result = recording::reset;
    PFN_vkCmdCopyBuffer(
        buffer: vk::CommandBuffer, src_buffer: vk::Buffer, dst_buffer: vk::Buffer, region_count: u32, regions: *const vk::BufferCopy
    ) = recording::copy;
    PFN_vkCmdUpdateBuffer(
        buffer: vk::CommandBuffer, dst_buffer: vk::Buffer, dst_offset: vk::DeviceSize, data_size: vk::DeviceSize, data: *const c_void
    ) = recording::update;
    PFN_vkCmdFillBuffer(
        buffer: vk::CommandBuffer, dst_buffer: vk::Buffer, dst_offset: vk::DeviceSize, size: vk::DeviceSize, data: u32
    ) = recording::fill;
    PFN_vkCmdExecuteCommands(buffer: vk::CommandBuffer, count: u32, buffers: *const vk::CommandBuffer) = recording::execute;
    PFN_vkBindBufferMemory2(device: vk::Device, count: u32, infos: *const vk::BindBufferMemoryInfo<'_>) -> vk::Result = buffer::bind2;
    PFN_vkGetDeviceGroupPeerMemoryFeatures(
        device: vk::Device, heap_index: u32, local_device_index: u32, remote_device_index: u32,
        peer_memory_features: *mut vk::PeerMemoryFeatureFlags
    ) = device::peer_memory_features;
    PFN_vkGetBufferMemoryRequirements2(
        device: vk::Device, info: *const vk::BufferMemoryRequirementsInfo2<'_>, requirements: *mut vk::MemoryRequirements2<'_>
    ) = buffer::requirements2;
    PFN_vkTrimCommandPool(device: vk::Device, pool: vk::CommandPool, flags: vk::CommandPoolTrimFlags) = pool::trim;
    PFN_vkGetDeviceQueue2(device: vk::Device, queue_info: *const vk::DeviceQueueInfo2<'_>, queue: *mut vk::Queue) = device::get_queue2;
    PFN_vkGetDescriptorSetLayoutSupport(
        device: vk::Device, info: *const vk::DescriptorSetLayoutCreateInfo<'_>, support: *mut vk::DescriptorSetLayoutSupport<'_>
    ) = device::descriptor_set_layout_support;
}
