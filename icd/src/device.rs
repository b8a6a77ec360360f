//! `VkDevice`: a device of the guest library, its queue, and whether it is lost.

use std::sync::Arc;

use ash::vk;
use hostblob_guest::{Device as Guest, Error};

use crate::debug_utils::Messengers;
use crate::entry::arguments::{Out, slice};
use crate::extensions::{self, Extensions};
use crate::object::{self, Callbacks, Object, Owned, objects};
use crate::physical::heaps::TypeBits;
use crate::physical::{PhysicalDevice, features};
use crate::queue::Queue;
use crate::sync::monitor::Monitor;

/// A device.
pub(crate) struct Device {
    guest: Guest,
    extensions: Extensions,
    callbacks: Option<Callbacks>,
    monitor: Arc<Monitor>,
    messengers: Arc<Messengers>,
    types: TypeBits,
    queue: vk::Queue,
}

objects! {
    Device = vk::Device, DEVICE;
    Queue = vk::Queue, DEVICE;
}

impl Device {
    /// Those of the call, else those of the device.
    pub(crate) fn callbacks(&self, callbacks: Option<Callbacks>) -> Option<Callbacks> {
        callbacks.or(self.callbacks)
    }

    pub(crate) fn extensions(&self) -> Extensions {
        self.extensions
    }

    /// The guest library's side of it.
    pub(crate) fn guest(&self) -> &Guest {
        &self.guest
    }

    pub(crate) fn monitor(&self) -> &Monitor {
        &self.monitor
    }

    pub(crate) fn types(&self) -> TypeBits {
        self.types
    }

    /// An error of the guest library as one that the command may return: its own where it is in `allowed`, else the first of
    /// those. Notes it when the device is lost, and tells why.
    pub(crate) fn failed(&self, what: &str, error: &Error, allowed: &[vk::Result]) -> vk::Result {
        if let Error::DeviceLost(_) = error {
            self.monitor.lose();
        }
        let text = format!("{what}: {error}");
        log::info!("{text}");
        self.messengers.tell_error(&text);
        let result = vk::Result::from_raw(error.vk_result());
        match allowed.first() {
            Some(first) if !allowed.contains(&result) => *first,
            _ => result,
        }
    }
}

pub(crate) fn create(
    physical: &PhysicalDevice,
    info: &vk::DeviceCreateInfo<'_>,
    callbacks: Option<Callbacks>,
    out: Out<'_, vk::Device>,
) -> Result<(), vk::Result> {
    let extensions = extensions::of_device(physical.extensions(), info)?;
    features::check(info)?;
    // SAFETY: the count belongs to the array.
    let queues = unsafe { slice(info.p_queue_create_infos, info.queue_create_info_count) };
    if queues
        .iter()
        .any(|queue| queue.queue_family_index != 0 || queue.queue_count > 1)
    {
        return Err(vk::Result::ERROR_INITIALIZATION_FAILED);
    }
    let guest = physical.connect()?;
    let callbacks = physical.callbacks(callbacks);
    let monitor = Arc::<Monitor>::default();
    let queue = Queue::start(&guest, &monitor, physical.messengers())?;
    let queue = object::create(queue, callbacks)?;
    let device = Device {
        guest,
        extensions,
        callbacks,
        monitor,
        messengers: physical.messengers().clone(),
        types: physical.type_bits(),
        queue,
    };
    let device = object::create(device, callbacks).inspect_err(|_| {
        // SAFETY: nobody has been told of it.
        unsafe { Owned::<Queue>::new(queue) }.destroy(callbacks);
    })?;
    out.set(device);
    Ok(())
}

pub(crate) fn destroy(device: Owned<Device>, callbacks: Option<Callbacks>) {
    let Some(this) = device.get() else { return };
    let all = this.callbacks(callbacks);
    // Whoever still waits, against the rules, is told instead of left.
    this.monitor.lose();
    // SAFETY: it belongs to the device, which the program gives up.
    unsafe { Owned::<Queue>::new(this.queue) }.destroy(all);
    device.destroy(all);
}

/// vkDestroy of whatever has no children.
pub(crate) fn destroy_child<T: Object>(
    device: &Device,
    child: Owned<T>,
    callbacks: Option<Callbacks>,
) {
    child.destroy(device.callbacks(callbacks));
}

pub(crate) fn get_queue(device: &Device, _: u32, _: u32, out: Out<'_, vk::Queue>) {
    out.set(device.queue);
}

pub(crate) fn get_queue2(
    device: &Device,
    info: &vk::DeviceQueueInfo2<'_>,
    out: Out<'_, vk::Queue>,
) {
    // No queue was made with flags: protected ones need a feature.
    out.set(match info.flags.is_empty() {
        true => device.queue,
        false => vk::Queue::null(),
    });
}

pub(crate) fn wait_idle(device: &Device) -> Result<(), vk::Result> {
    // SAFETY: the queue lives as long as the device.
    let queue: &Queue = unsafe { object::get(device.queue) };
    queue.wait_idle()
}

/// The device's only group is itself, so there is no peer to ask about; what memory of its own allows is said.
pub(crate) fn peer_memory_features(
    _: &Device,
    _: u32,
    _: u32,
    _: u32,
    out: Out<'_, vk::PeerMemoryFeatureFlags>,
) {
    out.set(vk::PeerMemoryFeatureFlags::COPY_SRC | vk::PeerMemoryFeatureFlags::COPY_DST);
}

pub(crate) fn descriptor_set_layout_support(
    _: &Device,
    _: &vk::DescriptorSetLayoutCreateInfo<'_>,
    out: &mut vk::DescriptorSetLayoutSupport<'_>,
) {
    out.supported = vk::FALSE;
}
