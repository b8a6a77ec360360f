//! `VkSemaphore`: binary ones, and timelines.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ash::vk;

use super::monitor;
use crate::chain;
use crate::device::Device;
use crate::entry::arguments::{Out, from, slice};
use crate::object::{self, Callbacks, objects};

/// A semaphore; its payload is shared with the work that waits for it and signals it.
#[derive(Debug)]
pub(crate) struct Semaphore {
    payload: Arc<Payload>,
}

objects! { Semaphore = vk::Semaphore; }

/// A value that only grows, or, for a binary one, 1 while it is signalled. Changed within
/// [`Monitor::change`](monitor::Monitor::change) or with its lock held.
#[derive(Debug)]
pub(crate) struct Payload {
    is_timeline: bool,
    value: AtomicU64,
}

impl Payload {
    /// Whether a wait for `value` is over. That of a binary one takes the signal.
    pub(crate) fn try_wait(&self, value: u64) -> bool {
        match self.is_timeline {
            true => self.value.load(Ordering::Acquire) >= value,
            false => self.value.swap(0, Ordering::AcqRel) == 1,
        }
    }

    /// A binary one knows no other value than 1.
    pub(crate) fn signal(&self, value: u64) {
        let value = if self.is_timeline { value } else { 1 };
        self.value.store(value, Ordering::Release);
    }
}

impl Semaphore {
    pub(crate) fn payload(&self) -> Arc<Payload> {
        self.payload.clone()
    }
}

pub(crate) fn create(
    device: &Device,
    info: &vk::SemaphoreCreateInfo<'_>,
    callbacks: Option<Callbacks>,
    out: Out<'_, vk::Semaphore>,
) -> Result<(), vk::Result> {
    // SAFETY: the chain of a structure that the program filled.
    let kind = unsafe { chain::find::<vk::SemaphoreTypeCreateInfo<'_>>(info.p_next) };
    let timeline = kind.filter(|kind| kind.semaphore_type == vk::SemaphoreType::TIMELINE);
    let payload = Payload {
        is_timeline: timeline.is_some(),
        value: AtomicU64::new(timeline.map_or(0, |kind| kind.initial_value)),
    };
    let semaphore = Semaphore {
        payload: Arc::new(payload),
    };
    out.set(object::create(semaphore, device.callbacks(callbacks))?);
    Ok(())
}

pub(crate) fn counter_value(
    device: &Device,
    semaphore: &Semaphore,
    out: Out<'_, u64>,
) -> Result<(), vk::Result> {
    out.set(semaphore.payload.value.load(Ordering::Acquire));
    device.monitor().check()
}

pub(crate) fn signal(device: &Device, info: &vk::SemaphoreSignalInfo<'_>) {
    // SAFETY: a live semaphore, by the valid usage of the structure.
    let semaphore: &Semaphore = unsafe { from(info.semaphore) };
    device
        .monitor()
        .change(|| semaphore.payload.signal(info.value));
}

pub(crate) fn wait(
    device: &Device,
    info: &vk::SemaphoreWaitInfo<'_>,
    timeout: u64,
) -> Result<vk::Result, vk::Result> {
    // SAFETY: the count belongs to the array.
    let semaphores = unsafe { slice(info.p_semaphores, info.semaphore_count) };
    // SAFETY: and to this one.
    let values = unsafe { slice(info.p_values, info.semaphore_count) };
    let waits: Vec<(&Semaphore, u64)> = semaphores
        .iter()
        .zip(values)
        // SAFETY: live timeline semaphores, by the valid usage of the structure.
        .map(|(semaphore, &value)| (unsafe { from(*semaphore) }, value))
        .collect();
    let any = info.flags.contains(vk::SemaphoreWaitFlags::ANY);
    let done = device.monitor().wait(monitor::deadline(timeout), || {
        let mut reached = waits
            .iter()
            .map(|(semaphore, value)| semaphore.payload.try_wait(*value));
        if any {
            reached.any(|reached| reached)
        } else {
            reached.all(|reached| reached)
        }
    })?;
    Ok(match done {
        true => vk::Result::SUCCESS,
        false => vk::Result::TIMEOUT,
    })
}
