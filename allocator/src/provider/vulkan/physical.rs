//! What physical devices there are and what they say about themselves.
//!
//! Only reads; nothing here creates. What a device *says* is then put to the test by `probe`.

use std::ffi::CStr;
use std::fmt;
use std::sync::Arc;

use ash::{ext, khr, vk};

use super::error::{VulkanError, call};
use super::instance::Instance;

/// What a physical device says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceFacts {
    /// Its number, for `--device`.
    pub index: usize,
    /// `deviceName`.
    pub name: String,
    /// `discrete`, `integrated`, `virtual`, `cpu` or `other`.
    pub class: DeviceClass,
    /// `driverName` and `driverInfo`.
    pub driver: String,
    /// `apiVersion`, as `(major, minor, patch)`.
    pub api_version: (u32, u32, u32),
    /// PCI vendor.
    pub vendor_id: u32,
    /// PCI device.
    pub device_id: u32,
    /// `deviceUUID`.
    pub device_uuid: [u8; 16],
    /// `driverUUID`.
    pub driver_uuid: [u8; 16],
    /// `(size, VkMemoryHeapFlags)` each.
    pub heaps: Vec<(u64, u32)>,
    /// `(VkMemoryPropertyFlags, heap)` each.
    pub types: Vec<(u32, u32)>,
    /// `minImportedHostPointerAlignment`, where VK_EXT_external_memory_host is offered.
    pub host_pointer_alignment: Option<u64>,
    /// Whether VK_EXT_external_memory_dma_buf and VK_KHR_external_memory_fd are offered.
    pub dma_buf: bool,
    /// `maxMemoryAllocationSize`.
    pub max_allocation_size: u64,
    /// `maxBufferSize`, from Vulkan 1.3 on.
    pub max_buffer_size: Option<u64>,
    /// `maxMemoryAllocationCount`.
    pub max_allocation_count: u32,
    /// `VkQueueFlags` of each queue family.
    pub queue_families: Vec<u32>,
}

/// `VkPhysicalDeviceType`, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum DeviceClass {
    /// A card.
    Discrete,
    /// Part of the processor.
    Integrated,
    /// Of a virtual machine.
    Virtual,
    /// Software.
    Cpu,
    /// Anything else.
    Other,
}

impl From<vk::PhysicalDeviceType> for DeviceClass {
    fn from(value: vk::PhysicalDeviceType) -> Self {
        match value {
            vk::PhysicalDeviceType::DISCRETE_GPU => Self::Discrete,
            vk::PhysicalDeviceType::INTEGRATED_GPU => Self::Integrated,
            vk::PhysicalDeviceType::VIRTUAL_GPU => Self::Virtual,
            vk::PhysicalDeviceType::CPU => Self::Cpu,
            _ => Self::Other,
        }
    }
}

impl fmt::Display for DeviceClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Discrete => "discrete",
            Self::Integrated => "integrated",
            Self::Virtual => "virtual",
            Self::Cpu => "cpu",
            Self::Other => "other",
        })
    }
}

impl DeviceFacts {
    /// The queue family that work goes to.
    ///
    /// A card's transfer-only family is its copy engine, which leaves the shader cores alone. Elsewhere such a family
    /// gains nothing, and the first general one is the best tested.
    pub(super) fn queue_family(&self) -> Option<u32> {
        let has = |flags: u32, any: vk::QueueFlags| vk::QueueFlags::from_raw(flags).intersects(any);
        let general = vk::QueueFlags::GRAPHICS | vk::QueueFlags::COMPUTE;
        let position = |wanted: &dyn Fn(u32) -> bool| {
            let found = self
                .queue_families
                .iter()
                .position(|flags| wanted(*flags))?;
            u32::try_from(found).ok()
        };
        // Graphics and compute queues can transfer even where they do not say so.
        let any = position(&|flags| has(flags, general | vk::QueueFlags::TRANSFER));
        if self.class != DeviceClass::Discrete {
            return position(&|flags| has(flags, general)).or(any);
        }
        let engine = vk::QueueFlags::TRANSFER;
        let other = general
            | vk::QueueFlags::VIDEO_DECODE_KHR
            | vk::QueueFlags::VIDEO_ENCODE_KHR
            | vk::QueueFlags::OPTICAL_FLOW_NV;
        position(&|flags| has(flags, engine) && !has(flags, other)).or(any)
    }

    /// Why this device cannot serve at all, whatever can be attached to it.
    pub(super) fn unsuitable(&self) -> Option<String> {
        let (major, minor, _) = self.api_version;
        if (major, minor) < (1, 2) {
            return Some(format!("it speaks Vulkan {major}.{minor}, 1.2 is needed"));
        }
        if self.queue_family().is_none() {
            return Some("it has no queue that can copy".to_owned());
        }
        None
    }
}

/// A physical device of an instance.
#[derive(Clone)]
pub(super) struct Candidate {
    pub(super) instance: Arc<Instance>,
    pub(super) handle: vk::PhysicalDevice,
    pub(super) facts: DeviceFacts,
}

/// All physical devices, in the loader's order.
pub(super) fn candidates(instance: &Arc<Instance>) -> Result<Vec<Candidate>, VulkanError> {
    // SAFETY: the instance is alive; ash owns the array.
    let handles = unsafe { instance.raw.enumerate_physical_devices() }
        .map_err(call("vkEnumeratePhysicalDevices"))?;
    handles
        .into_iter()
        .enumerate()
        .map(|(index, handle)| {
            Ok(Candidate {
                instance: Arc::clone(instance),
                handle,
                facts: facts(instance, index, handle)?,
            })
        })
        .collect()
}

fn facts(
    instance: &Instance,
    index: usize,
    handle: vk::PhysicalDevice,
) -> Result<DeviceFacts, VulkanError> {
    let extensions = extensions(instance, handle)?;
    let offers = |name: &CStr| {
        extensions
            .iter()
            .any(|e| e.extension_name_as_c_str() == Ok(name))
    };
    let host_pointers = offers(ext::external_memory_host::NAME);
    // SAFETY: `handle` was enumerated from this live instance; a plain query.
    let core = unsafe { instance.raw.get_physical_device_properties(handle) };
    let version = core.api_version.min(instance.api_version);

    let mut ids = vk::PhysicalDeviceIDProperties::default();
    let mut driver = vk::PhysicalDeviceDriverProperties::default();
    let mut maintenance3 = vk::PhysicalDeviceMaintenance3Properties::default();
    let mut maintenance4 = vk::PhysicalDeviceMaintenance4Properties::default();
    let mut host = vk::PhysicalDeviceExternalMemoryHostPropertiesEXT::default();
    let mut properties = vk::PhysicalDeviceProperties2::default();
    if version >= vk::API_VERSION_1_1 {
        properties = properties.push_next(&mut ids).push_next(&mut maintenance3);
    }
    if version >= vk::API_VERSION_1_2 {
        properties = properties.push_next(&mut driver);
    }
    if version >= vk::API_VERSION_1_3 {
        properties = properties.push_next(&mut maintenance4);
    }
    if host_pointers {
        properties = properties.push_next(&mut host);
    }
    if version >= vk::API_VERSION_1_1 {
        let raw = &instance.raw;
        // SAFETY: as above; the chain holds only structures that this version or an offered extension knows.
        unsafe { raw.get_physical_device_properties2(handle, &mut properties) };
    }
    let (heaps, types) = memory(instance, handle);
    Ok(DeviceFacts {
        index,
        name: text(core.device_name_as_c_str()),
        class: core.device_type.into(),
        driver: format!(
            "{} {}",
            text(driver.driver_name_as_c_str()),
            text(driver.driver_info_as_c_str())
        )
        .trim()
        .to_owned(),
        api_version: (
            vk::api_version_major(core.api_version),
            vk::api_version_minor(core.api_version),
            vk::api_version_patch(core.api_version),
        ),
        vendor_id: core.vendor_id,
        device_id: core.device_id,
        device_uuid: ids.device_uuid,
        driver_uuid: ids.driver_uuid,
        heaps,
        types,
        host_pointer_alignment: host_pointers.then_some(host.min_imported_host_pointer_alignment),
        dma_buf: offers(ext::external_memory_dma_buf::NAME)
            && offers(khr::external_memory_fd::NAME),
        max_allocation_size: maintenance3.max_memory_allocation_size,
        max_buffer_size: (version >= vk::API_VERSION_1_3).then_some(maintenance4.max_buffer_size),
        max_allocation_count: core.limits.max_memory_allocation_count,
        queue_families: queue_families(instance, handle),
    })
}

/// Pairs as in [`DeviceFacts::heaps`] and [`DeviceFacts::types`].
type Memory = (Vec<(u64, u32)>, Vec<(u32, u32)>);

fn memory(instance: &Instance, handle: vk::PhysicalDevice) -> Memory {
    // SAFETY: `handle` was enumerated from this live instance; a plain query.
    let memory = unsafe { instance.raw.get_physical_device_memory_properties(handle) };
    let heaps = memory.memory_heaps_as_slice().iter();
    let types = memory.memory_types_as_slice().iter();
    (
        heaps.map(|heap| (heap.size, heap.flags.as_raw())).collect(),
        types
            .map(|kind| (kind.property_flags.as_raw(), kind.heap_index))
            .collect(),
    )
}

fn queue_families(instance: &Instance, handle: vk::PhysicalDevice) -> Vec<u32> {
    let raw = &instance.raw;
    // SAFETY: `handle` was enumerated from this live instance; a plain query.
    let families = unsafe { raw.get_physical_device_queue_family_properties(handle) };
    families.iter().map(|f| f.queue_flags.as_raw()).collect()
}

fn extensions(
    instance: &Instance,
    handle: vk::PhysicalDevice,
) -> Result<Vec<vk::ExtensionProperties>, VulkanError> {
    // SAFETY: `handle` was enumerated from this live instance; ash owns the array.
    unsafe { instance.raw.enumerate_device_extension_properties(handle) }
        .map_err(call("vkEnumerateDeviceExtensionProperties"))
}

fn text(name: Result<&CStr, std::ffi::FromBytesUntilNulError>) -> String {
    name.map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
}
