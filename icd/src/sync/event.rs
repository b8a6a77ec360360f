//! `VkEvent`, set and reset by the program. No queue of this device can: that takes graphics or compute.

use std::sync::atomic::{AtomicBool, Ordering};

use ash::vk;

use crate::device::Device;
use crate::entry::arguments::Out;
use crate::object::{self, Callbacks, objects};

/// An event.
#[derive(Debug, Default)]
pub(crate) struct Event {
    set: AtomicBool,
}

objects! { Event = vk::Event; }

pub(crate) fn create(
    device: &Device,
    _: &vk::EventCreateInfo<'_>,
    callbacks: Option<Callbacks>,
    out: Out<'_, vk::Event>,
) -> Result<(), vk::Result> {
    out.set(object::create(
        Event::default(),
        device.callbacks(callbacks),
    )?);
    Ok(())
}

pub(crate) fn status(device: &Device, event: &Event) -> Result<vk::Result, vk::Result> {
    device.monitor().check()?;
    Ok(match event.set.load(Ordering::Acquire) {
        true => vk::Result::EVENT_SET,
        false => vk::Result::EVENT_RESET,
    })
}

pub(crate) fn set(_: &Device, event: &Event) -> vk::Result {
    event.set.store(true, Ordering::Release);
    vk::Result::SUCCESS
}

pub(crate) fn reset(_: &Device, event: &Event) -> vk::Result {
    event.set.store(false, Ordering::Release);
    vk::Result::SUCCESS
}
