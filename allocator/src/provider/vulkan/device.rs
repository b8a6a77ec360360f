//! The VkDevice, its queue and its timeline.
//!
//! One per daemon: a VkDevice costs about 8.6 MB, 20 mappings and a thread. Everything made of it holds an `Arc` of it,
//! so it goes last, whatever the order in which the rest is dropped.

use std::ffi::{CStr, CString};
use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use ash::{ext, khr, vk};
use parking_lot::Mutex;

use super::attach::USAGE;
use super::error::{VulkanError, call};
use super::instance::Instance;
use super::physical::{Candidate, DeviceFacts};
use crate::provider::ProviderError;
#[cfg(test)]
use crate::provider::faults::Faults;

/// How long a device that calls itself lost may take to show that it has stopped.
const LAST_WAIT: Duration = Duration::from_secs(1);

/// A VkDevice with one queue and one timeline semaphore, on which each submission signals the next number.
pub(super) struct Device {
    pub(super) raw: ash::Device,
    pub(super) handle: vk::PhysicalDevice,
    pub(super) facts: DeviceFacts,
    pub(super) family: u32,
    pub(super) host_pointers: Option<ext::external_memory_host::Device>,
    pub(super) memory_fd: Option<khr::external_memory_fd::Device>,
    names: Option<ext::debug_utils::Device>,
    /// Vulkan wants one thread at a time on a queue. Held for a submission, never for a wait.
    queue: Mutex<vk::Queue>,
    timeline: vk::Semaphore,
    /// Set once, by whoever first meets VK_ERROR_DEVICE_LOST.
    lost: OnceLock<String>,
    /// VkDeviceMemory objects that this code made itself (imports); `local` counts its own.
    imports: AtomicU32,
    #[cfg(test)]
    pub(super) faults: Faults<vk::Result>,
    pub(super) instance: Arc<Instance>,
}

impl Device {
    /// Makes the device of a candidate, with the extensions that it offers and this code uses.
    pub(super) fn new(candidate: &Candidate) -> Result<Arc<Self>, VulkanError> {
        let facts = candidate.facts.clone();
        let unsuitable = |reason| VulkanError::Unsuitable {
            device: facts.name.clone(),
            reason,
        };
        if let Some(reason) = facts.unsuitable() {
            return Err(unsuitable(reason));
        }
        let family = facts
            .queue_family()
            .ok_or_else(|| unsuitable("no queue".to_owned()))?;
        let instance = Arc::clone(&candidate.instance);
        let raw = create(&instance, candidate.handle, &facts, family)?;
        // From here on `drop` of `device` undoes what is done; a null semaphore is ignored there.
        // SAFETY: the family was enabled with one queue in `create`.
        let queue = unsafe { raw.get_device_queue(family, 0) };
        let host_pointers = facts
            .host_pointer_alignment
            .map(|_| ext::external_memory_host::Device::new(&instance.raw, &raw));
        let memory_fd = facts
            .dma_buf
            .then(|| khr::external_memory_fd::Device::new(&instance.raw, &raw));
        let names = instance
            .validation
            .then(|| ext::debug_utils::Device::new(&instance.raw, &raw));
        let mut device = Self {
            raw,
            handle: candidate.handle,
            facts,
            family,
            host_pointers,
            memory_fd,
            names,
            queue: Mutex::new(queue),
            timeline: vk::Semaphore::null(),
            lost: OnceLock::new(),
            imports: AtomicU32::new(0),
            #[cfg(test)]
            faults: Faults::new(vk::Result::ERROR_DEVICE_LOST),
            instance,
        };
        device.timeline = device.make_timeline()?;
        device.name(device.timeline, format_args!("hostblob timeline"));
        Ok(Arc::new(device))
    }

    fn make_timeline(&self) -> Result<vk::Semaphore, VulkanError> {
        let mut kind = vk::SemaphoreTypeCreateInfo::default()
            .semaphore_type(vk::SemaphoreType::TIMELINE)
            .initial_value(0);
        let info = vk::SemaphoreCreateInfo::default().push_next(&mut kind);
        // SAFETY: VUID-VkSemaphoreTypeCreateInfo-timelineSemaphore-03252: `create` enabled the feature.
        unsafe { self.raw.create_semaphore(&info, None) }.map_err(call("vkCreateSemaphore"))
    }

    /// Names an object for validation messages; free when validation is off.
    pub(super) fn name<T: vk::Handle>(&self, object: T, name: fmt::Arguments<'_>) {
        let Some(names) = &self.names else { return };
        let Ok(name) = CString::new(name.to_string()) else {
            return;
        };
        let info = vk::DebugUtilsObjectNameInfoEXT::default()
            .object_handle(object)
            .object_name(&name);
        // SAFETY: the extension is enabled while validation is on; `object` is a live object of this device, made by the
        // caller and not yet shared with another thread (VUID-vkSetDebugUtilsObjectNameEXT-pNameInfo-02588).
        if let Err(result) = unsafe { names.set_debug_utils_object_name(&info) } {
            log::debug!("no name for an object: {result:?}");
        }
    }

    /// Asked before each driver call that can fail while serving; always `Ok` outside of tests.
    pub(super) fn fault(&self) -> Result<(), vk::Result> {
        #[cfg(test)]
        self.faults.next()?;
        Ok(())
    }

    /// Submits a command buffer that signals `value`.
    pub(super) fn submit(&self, commands: vk::CommandBuffer, value: u64) -> Result<(), vk::Result> {
        let commands = [commands];
        let semaphores = [self.timeline];
        let values = [value];
        let mut timeline =
            vk::TimelineSemaphoreSubmitInfo::default().signal_semaphore_values(&values);
        let submit = [vk::SubmitInfo::default()
            .command_buffers(&commands)
            .signal_semaphores(&semaphores)
            .push_next(&mut timeline)];
        self.fault()?;
        let queue = self.queue.lock();
        // SAFETY: the lock gives the queue to this thread; `commands` is recorded and not pending, and `value` is larger
        // than each before it (VUID-VkSubmitInfo-pSignalSemaphores-03242): the caller, `Commands`, keeps both.
        unsafe { self.raw.queue_submit(*queue, &submit, vk::Fence::null()) }
    }

    /// Waits until the timeline has reached `value`; `false` when `timeout` passed first.
    pub(super) fn wait(&self, value: u64, timeout: Duration) -> Result<bool, vk::Result> {
        self.fault()?;
        self.wait_unfaulted(value, timeout)
    }

    /// Once the device is lost: whether nothing is under way any more up to `value`. The driver says so, by having
    /// finished or by the loss itself, which ends all work.
    pub(super) fn is_settled(&self, value: u64) -> bool {
        match self.wait_unfaulted(value, LAST_WAIT) {
            Ok(done) => done,
            Err(result) => result == vk::Result::ERROR_DEVICE_LOST,
        }
    }

    fn wait_unfaulted(&self, value: u64, timeout: Duration) -> Result<bool, vk::Result> {
        let semaphores = [self.timeline];
        let values = [value];
        let info = vk::SemaphoreWaitInfo::default()
            .semaphores(&semaphores)
            .values(&values);
        let timeout = u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX);
        // SAFETY: the semaphore is a timeline (VUID-VkSemaphoreWaitInfo-pSemaphores-03256) and lives as long as `self`.
        match unsafe { self.raw.wait_semaphores(&info, timeout) } {
            Ok(()) => Ok(true),
            Err(vk::Result::TIMEOUT) => Ok(false),
            Err(result) => Err(result),
        }
    }

    /// What buffers of ours can do with memory of a handle type.
    pub(super) fn external_features(
        &self,
        handle_type: vk::ExternalMemoryHandleTypeFlags,
    ) -> vk::ExternalMemoryFeatureFlags {
        let info = vk::PhysicalDeviceExternalBufferInfo::default()
            .usage(USAGE)
            .handle_type(handle_type);
        let mut properties = vk::ExternalBufferProperties::default();
        // SAFETY: a plain query of a physical device of a live instance; the callers ask of handle types whose extension is offered.
        unsafe {
            self.instance
                .raw
                .get_physical_device_external_buffer_properties(
                    self.handle,
                    &info,
                    &mut properties,
                );
        }
        properties
            .external_memory_properties
            .external_memory_features
    }

    /// Notes that the device is lost; the first reason stays.
    pub(super) fn set_lost(&self, reason: &str) {
        if self.lost.set(reason.to_owned()).is_ok() {
            log::error!("{} is lost: {reason}", self.facts.name);
        }
    }

    /// Whether the device is lost, as the answer to a request.
    pub(super) fn lost(&self) -> Option<ProviderError> {
        self.lost.get().cloned().map(ProviderError::DeviceLost)
    }

    /// What a driver's refusal means to the caller; notes a lost device.
    pub(super) fn refusal(&self, call: &str, result: vk::Result) -> ProviderError {
        let error = super::error::refusal(call, result);
        if let ProviderError::DeviceLost(text) = &error {
            self.set_lost(text);
        }
        error
    }

    /// Counts one more memory object of ours, if the driver allows one more beside those that `local` makes.
    pub(super) fn count_import(&self) -> Result<(), ProviderError> {
        let limit = self.facts.max_allocation_count;
        let most = limit.saturating_sub(local_share(limit));
        self.imports
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| {
                (n < most).then_some(n + 1)
            })
            .map(drop)
            .map_err(|n| {
                ProviderError::OutOfHostMemory(format!(
                    "{n} ranges are attached and the driver allows {limit} memory objects"
                ))
            })
    }

    /// The counterpart of [`Device::count_import`].
    pub(super) fn uncount_import(&self) {
        self.imports.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How many of `limit` memory objects are set aside for device-local memory
/// (VUID-vkAllocateMemory-maxMemoryAllocationCount-04101 counts both).
pub(super) fn local_share(limit: u32) -> u32 {
    limit / 8
}

impl Drop for Device {
    fn drop(&mut self) {
        // SAFETY: nobody else has the device any more, so its queue is ours as well.
        if let Err(result) = unsafe { self.raw.device_wait_idle() } {
            log::warn!("vkDeviceWaitIdle: {result:?}");
        }
        // SAFETY: nothing is pending on the semaphore; null when `new` failed half-way, which Vulkan ignores.
        unsafe { self.raw.destroy_semaphore(self.timeline, None) };
        // SAFETY: all children are gone: each held an `Arc` of `self`.
        unsafe { self.raw.destroy_device(None) };
    }
}

fn create(
    instance: &Instance,
    handle: vk::PhysicalDevice,
    facts: &DeviceFacts,
    family: u32,
) -> Result<ash::Device, VulkanError> {
    let mut extensions: Vec<&CStr> = Vec::new();
    if facts.host_pointer_alignment.is_some() {
        extensions.push(ext::external_memory_host::NAME);
    }
    if facts.dma_buf {
        extensions.push(khr::external_memory_fd::NAME);
        extensions.push(ext::external_memory_dma_buf::NAME);
    }
    let extensions: Vec<_> = extensions.iter().map(|name| name.as_ptr()).collect();
    let priorities = [1.0];
    let queues = [vk::DeviceQueueCreateInfo::default()
        .queue_family_index(family)
        .queue_priorities(&priorities)];
    let mut timeline =
        vk::PhysicalDeviceTimelineSemaphoreFeatures::default().timeline_semaphore(true);
    let info = vk::DeviceCreateInfo::default()
        .queue_create_infos(&queues)
        .enabled_extension_names(&extensions)
        .push_next(&mut timeline);
    // SAFETY: `handle` is a physical device of this instance; the extensions are offered by it, the family exists, and the
    // timeline feature is mandatory from the 1.2 that `DeviceFacts::unsuitable` asks for.
    unsafe { instance.raw.create_device(handle, &info, None) }.map_err(call("vkCreateDevice"))
}
