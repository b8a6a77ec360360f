//! `VkInstance`: it finds the device when the program first asks for devices.

use std::sync::Arc;

use ash::vk;
use hostblob_guest::{OpenOptions, PoolOptions};
use parking_lot::Mutex;

use crate::debug_utils::Messengers;
use crate::entry::arguments::{List, Out};
use crate::extensions;
use crate::object::{self, Callbacks, Owned, objects};
use crate::physical::PhysicalDevice;

/// The version of Vulkan that the driver serves.
pub(crate) const API_VERSION: u32 = vk::make_api_version(0, 1, 1, 281);

/// An instance.
pub(crate) struct Instance {
    callbacks: Option<Callbacks>,
    messengers: Arc<Messengers>,
    search: Mutex<Search>,
}

/// What there is to list.
#[derive(Default)]
struct Search {
    /// Made once one is found; the handle stays the same.
    found: Option<vk::PhysicalDevice>,
    /// Why there is none, as it was told last.
    reason: String,
}

objects! {
    Instance = vk::Instance, INSTANCE;
    PhysicalDevice = vk::PhysicalDevice, INSTANCE;
}

impl Instance {
    /// Those of the call, else those of the instance.
    pub(crate) fn callbacks(&self, callbacks: Option<Callbacks>) -> Option<Callbacks> {
        callbacks.or(self.callbacks)
    }

    pub(crate) fn messengers(&self) -> &Messengers {
        &self.messengers
    }

    /// The one device, or none with a line of reason in the log.
    fn find(&self) -> Result<Option<vk::PhysicalDevice>, vk::Result> {
        let mut search = self.search.lock();
        if search.found.is_none() {
            match PhysicalDevice::open(&options(), self.callbacks, &self.messengers) {
                Ok(found) => search.found = Some(object::create(found, self.callbacks)?),
                // Programs ask twice: for the count, and for the list.
                Err(reason) if reason == search.reason => {}
                Err(reason) => {
                    let text = format!("no device is listed: {reason}");
                    log::info!("{text}");
                    self.messengers.tell_info(&text);
                    search.reason = reason;
                }
            }
        }
        Ok(search.found)
    }
}

/// Allocators on top of Vulkan take blocks of up to 64 MiB, and give them back to take them again: those come from our blocks too, of which an empty one
/// stays mapped and warm.
fn options() -> OpenOptions {
    let pool = PoolOptions {
        dedicated_above: 64 << 20,
        ..PoolOptions::default()
    };
    OpenOptions {
        pool,
        ..OpenOptions::default()
    }
}

pub(crate) fn create(
    info: &vk::InstanceCreateInfo<'_>,
    callbacks: Option<Callbacks>,
    out: Out<'_, vk::Instance>,
) -> Result<(), vk::Result> {
    hostblob_guest::log_to_stderr();
    extensions::of_instance(info)?;
    let instance = Instance {
        callbacks,
        messengers: Arc::default(),
        search: Mutex::default(),
    };
    out.set(object::create(instance, callbacks)?);
    Ok(())
}

pub(crate) fn destroy(instance: Owned<Instance>, callbacks: Option<Callbacks>) {
    let Some(this) = instance.get() else { return };
    let all = this.callbacks(callbacks);
    if let Some(physical) = this.search.lock().found.take() {
        // SAFETY: it belongs to the instance, which the program gives up.
        unsafe { Owned::<PhysicalDevice>::new(physical) }.destroy(all);
    }
    instance.destroy(all);
}

pub(crate) fn enumerate_version(out: Out<'_, u32>) {
    out.set(API_VERSION);
}

pub(crate) fn enumerate_physical_devices(
    instance: &Instance,
    count: &mut u32,
    out: List<'_, vk::PhysicalDevice>,
) -> Result<vk::Result, vk::Result> {
    let found = instance.find()?;
    // SAFETY: the count belongs to the list.
    Ok(unsafe { out.copy(count, found.as_slice()) })
}

pub(crate) fn enumerate_groups(
    instance: &Instance,
    count: &mut u32,
    out: List<'_, vk::PhysicalDeviceGroupProperties<'_>>,
) -> Result<vk::Result, vk::Result> {
    let found = instance.find()?;
    let put = |place: *mut vk::PhysicalDeviceGroupProperties<'_>, device: &vk::PhysicalDevice| {
        // SAFETY: `fill` gives a place with one, initialised as far as `sType` and `pNext`, and the rest is numbers.
        let group = unsafe { &mut *place };
        group.physical_device_count = 1;
        group.physical_devices = [vk::PhysicalDevice::null(); vk::MAX_DEVICE_GROUP_SIZE];
        if let Some(first) = group.physical_devices.first_mut() {
            *first = *device;
        }
        group.subset_allocation = vk::FALSE;
    };
    // SAFETY: the count belongs to the list, and what is written keeps `sType` and `pNext`.
    Ok(unsafe { out.fill(count, found.as_slice(), put) })
}
