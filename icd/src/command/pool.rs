//! `VkCommandPool`.

use ash::vk;
use parking_lot::Mutex;

use super::{CommandBuffer, State};
use crate::device::Device;
use crate::entry::arguments::{Array, List, Out, from};
use crate::object::{self, Callbacks, Owned, objects};

/// A pool: the command buffers that live in it.
pub(crate) struct CommandPool {
    callbacks: Option<Callbacks>,
    buffers: Mutex<Vec<vk::CommandBuffer>>,
}

objects! { CommandPool = vk::CommandPool; }

pub(crate) fn create(
    device: &Device,
    _: &vk::CommandPoolCreateInfo<'_>,
    callbacks: Option<Callbacks>,
    out: Out<'_, vk::CommandPool>,
) -> Result<(), vk::Result> {
    let callbacks = device.callbacks(callbacks);
    let pool = CommandPool {
        callbacks,
        buffers: Mutex::default(),
    };
    out.set(object::create(pool, callbacks)?);
    Ok(())
}

impl CommandPool {
    fn end(&self, buffer: vk::CommandBuffer) {
        // SAFETY: it lives in this pool, and whoever calls takes it out.
        unsafe { Owned::<CommandBuffer>::new(buffer) }.destroy(self.callbacks);
    }
}

pub(crate) fn destroy(device: &Device, pool: Owned<CommandPool>, callbacks: Option<Callbacks>) {
    if let Some(this) = pool.get() {
        for buffer in this.buffers.lock().drain(..) {
            this.end(buffer);
        }
    }
    pool.destroy(device.callbacks(callbacks));
}

pub(crate) fn reset(_: &Device, pool: &CommandPool, _: vk::CommandPoolResetFlags) {
    for buffer in pool.buffers.lock().iter() {
        // SAFETY: it lives in this pool.
        let buffer: &CommandBuffer = unsafe { from(*buffer) };
        *buffer.state.lock() = State::default();
    }
}

/// Nothing is kept that a reset does not give back.
pub(crate) fn trim(_: &Device, _: &CommandPool, _: vk::CommandPoolTrimFlags) {}

pub(crate) fn allocate(
    device: &Device,
    info: &vk::CommandBufferAllocateInfo<'_>,
    out: List<'_, vk::CommandBuffer>,
) -> Result<(), vk::Result> {
    // SAFETY: a live pool, by the valid usage of the structure.
    let pool: &CommandPool = unsafe { from(info.command_pool) };
    let mut made = Vec::new();
    let mut result = Ok(());
    for _ in 0..info.command_buffer_count {
        let buffer = CommandBuffer {
            guest: device.guest().clone(),
            state: Mutex::default(),
        };
        match object::create(buffer, pool.callbacks) {
            Ok(buffer) => made.push(buffer),
            Err(error) => {
                result = Err(error);
                break;
            }
        }
    }
    if result.is_err() {
        made.drain(..).for_each(|buffer| pool.end(buffer));
        // On an error all are null, says the command.
        made.resize(
            info.command_buffer_count as usize,
            vk::CommandBuffer::null(),
        );
    } else {
        pool.buffers.lock().extend_from_slice(&made);
    }
    let mut count = info.command_buffer_count;
    // SAFETY: the count belongs to the list.
    let _all_fit = unsafe { out.copy(&mut count, &made) };
    result
}

pub(crate) fn free(
    _: &Device,
    pool: &CommandPool,
    count: u32,
    buffers: Array<'_, vk::CommandBuffer>,
) {
    // SAFETY: the count belongs to the array.
    let gone = unsafe { buffers.take(count) };
    let mut buffers = pool.buffers.lock();
    buffers.retain(|buffer| !gone.contains(buffer));
    for buffer in gone {
        pool.end(*buffer);
    }
}
