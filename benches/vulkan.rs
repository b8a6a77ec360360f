//! The Vulkan device that the peers use: the same that hostblob finds, lavapipe where there is no other.

use anyhow::{Context, Result};
use ash::vk;

/// An instance and a device with one queue. Destroyed on drop, which is after all that was made of it.
pub struct Vulkan {
    /// Keeps the library loaded.
    _entry: ash::Entry,
    /// Of version 1.3.
    pub instance: ash::Instance,
    /// The first one.
    pub physical: vk::PhysicalDevice,
    /// Made of `physical`.
    pub device: ash::Device,
    /// Family of `queue`.
    pub family: u32,
    /// Takes transfers.
    pub queue: vk::Queue,
    /// A host-visible and coherent type.
    pub memory_type: u32,
}

impl std::fmt::Debug for Vulkan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vulkan").finish_non_exhaustive()
    }
}

impl Vulkan {
    /// Opens the first device.
    ///
    /// # Errors
    /// Where there is no Vulkan.
    pub fn open() -> Result<Self> {
        // SAFETY: the loader of the system; nothing else is loaded by this name.
        let entry = unsafe { ash::Entry::load() }.context("no Vulkan loader")?;
        let application = vk::ApplicationInfo::default().api_version(vk::API_VERSION_1_3);
        let info = vk::InstanceCreateInfo::default().application_info(&application);
        // SAFETY: all that `info` points to is alive.
        let instance = unsafe { entry.create_instance(&info, None) }?;
        // SAFETY: the instance is alive.
        let physical = unsafe { instance.enumerate_physical_devices() }?;
        let physical = *physical.first().context("no Vulkan device")?;
        // SAFETY: the device is of this instance.
        let families = unsafe { instance.get_physical_device_queue_family_properties(physical) };
        let wanted = vk::QueueFlags::GRAPHICS | vk::QueueFlags::COMPUTE | vk::QueueFlags::TRANSFER;
        let family = families
            .iter()
            .position(|family| family.queue_flags.intersects(wanted))
            .context("no queue that takes transfers")?;
        let family = u32::try_from(family)?;
        let queues = [vk::DeviceQueueCreateInfo::default()
            .queue_family_index(family)
            .queue_priorities(&[1.0])];
        let info = vk::DeviceCreateInfo::default().queue_create_infos(&queues);
        // SAFETY: the family exists; all that `info` points to is alive.
        let device = unsafe { instance.create_device(physical, &info, None) }?;
        // SAFETY: the queue was asked for above.
        let queue = unsafe { device.get_device_queue(family, 0) };
        // SAFETY: the device is of this instance.
        let memory = unsafe { instance.get_physical_device_memory_properties(physical) };
        let flags = vk::MemoryPropertyFlags::HOST_VISIBLE | vk::MemoryPropertyFlags::HOST_COHERENT;
        let memory_type = memory
            .memory_types_as_slice()
            .iter()
            .position(|kind| kind.property_flags.contains(flags))
            .context("no memory type that the host sees")?;
        Ok(Self {
            _entry: entry,
            instance,
            physical,
            device,
            family,
            queue,
            memory_type: u32::try_from(memory_type)?,
        })
    }
}

impl Drop for Vulkan {
    fn drop(&mut self) {
        // SAFETY: users of the device borrow it, so all are gone.
        unsafe { self.device.destroy_device(None) };
        // SAFETY: its only device is gone.
        unsafe { self.instance.destroy_instance(None) };
    }
}
