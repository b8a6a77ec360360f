//! `VkFence`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ash::vk;

use super::monitor;
use crate::device::Device;
use crate::entry::arguments::{Array, Out, from};
use crate::object::{self, Callbacks, objects};

/// A fence; its state is shared with the work that signals it.
#[derive(Debug)]
pub(crate) struct Fence {
    signaled: Arc<AtomicBool>,
}

objects! { Fence = vk::Fence; }

impl Fence {
    /// What a queue sets, within [`Monitor::change`](monitor::Monitor::change).
    pub(crate) fn signal(&self) -> Arc<AtomicBool> {
        self.signaled.clone()
    }

    fn is_signaled(&self) -> bool {
        self.signaled.load(Ordering::Acquire)
    }
}

pub(crate) fn create(
    device: &Device,
    info: &vk::FenceCreateInfo<'_>,
    callbacks: Option<Callbacks>,
    out: Out<'_, vk::Fence>,
) -> Result<(), vk::Result> {
    let signaled = info.flags.contains(vk::FenceCreateFlags::SIGNALED);
    let fence = Fence {
        signaled: Arc::new(AtomicBool::new(signaled)),
    };
    out.set(object::create(fence, device.callbacks(callbacks))?);
    Ok(())
}

/// The objects of an array of handles.
fn fences<'a>(count: u32, fences: Array<'a, vk::Fence>) -> Vec<&'a Fence> {
    // SAFETY: the count belongs to the array.
    let fences = unsafe { fences.take(count) };
    fences
        .iter()
        // SAFETY: live fences, by the valid usage of the commands that list them.
        .map(|fence| unsafe { from(*fence) })
        .collect()
}

pub(crate) fn reset(_: &Device, count: u32, array: Array<'_, vk::Fence>) {
    for fence in fences(count, array) {
        fence.signaled.store(false, Ordering::Release);
    }
}

pub(crate) fn status(device: &Device, fence: &Fence) -> Result<vk::Result, vk::Result> {
    if fence.is_signaled() {
        return Ok(vk::Result::SUCCESS);
    }
    device.monitor().check()?;
    Ok(vk::Result::NOT_READY)
}

pub(crate) fn wait(
    device: &Device,
    count: u32,
    array: Array<'_, vk::Fence>,
    all: vk::Bool32,
    timeout: u64,
) -> Result<vk::Result, vk::Result> {
    let fences = fences(count, array);
    let done = device
        .monitor()
        .wait(monitor::deadline(timeout), || match all {
            vk::FALSE => fences.iter().any(|fence| fence.is_signaled()),
            _ => fences.iter().all(|fence| fence.is_signaled()),
        })?;
    Ok(match done {
        true => vk::Result::SUCCESS,
        false => vk::Result::TIMEOUT,
    })
}
