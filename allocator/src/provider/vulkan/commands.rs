//! Command buffers: recorded, submitted, several in flight.
//!
//! A ring of slots, each a command pool with one command buffer, which is reset as a whole when its slot comes round
//! again. Commands gather in one open buffer until `submit`, so a burst of requests costs one submission.
//!
//! Order: each command is separated from all before it, on this queue, by a barrier from transfer writes and reads to
//! transfer ones, so a request sees what earlier requests did. A submission ends with a barrier to the host, so whoever
//! waits for its number sees the bytes. What the CPU wrote before a submission, the submission sees (Vulkan's
//! "host write ordering guarantees"). Nothing finer is tried: two attachments may be the same bytes of a file.

use std::sync::Arc;
use std::time::Duration;

use ash::vk;

use super::device::Device;
use super::error::{VulkanError, call};
use crate::provider::ProviderError;

/// Submissions in flight. More gain nothing on one queue, and each may hold a whole burst.
const SLOTS: u64 = 16;

/// How long one wait for the GPU takes before it is repeated, with a line in the log.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// How often a wait may fail before the device counts as lost.
const MOST_FAILURES: u32 = 100;

/// The pause after a failed wait.
const AFTER_FAILURE: Duration = Duration::from_millis(1);

/// The only one that records and submits.
pub(super) struct Commands {
    device: Arc<Device>,
    slots: Vec<Slot>,
    /// The number of the last submission; the timeline reaches it when that is done.
    submitted: u64,
    open: Option<vk::CommandBuffer>,
}

struct Slot {
    pool: vk::CommandPool,
    buffer: vk::CommandBuffer,
}

impl Commands {
    pub(super) fn new(device: &Arc<Device>) -> Result<Self, VulkanError> {
        let mut commands = Self {
            device: Arc::clone(device),
            slots: Vec::new(),
            submitted: 0,
            open: None,
        };
        for _ in 0..SLOTS {
            commands.add_slot()?;
        }
        Ok(commands)
    }

    fn add_slot(&mut self) -> Result<(), VulkanError> {
        let raw = &self.device.raw;
        let info = vk::CommandPoolCreateInfo::default()
            .flags(vk::CommandPoolCreateFlags::TRANSIENT)
            .queue_family_index(self.device.family);
        // SAFETY: the family was enabled on this device.
        let pool =
            unsafe { raw.create_command_pool(&info, None) }.map_err(call("vkCreateCommandPool"))?;
        // In the list before anything else can fail: `drop` destroys it.
        self.slots.push(Slot {
            pool,
            buffer: vk::CommandBuffer::null(),
        });
        let info = vk::CommandBufferAllocateInfo::default()
            .command_pool(pool)
            .level(vk::CommandBufferLevel::PRIMARY)
            .command_buffer_count(1);
        // SAFETY: the pool was just made and only this thread has it.
        let buffers = unsafe { raw.allocate_command_buffers(&info) }
            .map_err(call("vkAllocateCommandBuffers"))?;
        if let (Some(slot), [buffer]) = (self.slots.last_mut(), buffers.as_slice()) {
            slot.buffer = *buffer;
        }
        Ok(())
    }

    /// The number of the last submission.
    pub(super) fn submitted(&self) -> u64 {
        self.submitted
    }

    /// Whether commands are gathered that are not yet submitted.
    pub(super) fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Records a fill. The range was checked against the buffer, and is aligned to 4 (VUID-vkCmdFillBuffer-dstOffset-00025
    /// and -size-00028).
    pub(super) fn fill(
        &mut self,
        buffer: vk::Buffer,
        offset: u64,
        length: u64,
        value: u32,
    ) -> Result<(), ProviderError> {
        let commands = self.begin()?;
        // The bytes of the word in memory order are `value`'s little-endian ones; GPUs write words in the host's order.
        let value = value.to_le();
        // SAFETY: `commands` is recording; buffer and range as said above. The buffer lives until the submission is done:
        // the worker hands released attachments to the waiter.
        unsafe {
            self.device
                .raw
                .cmd_fill_buffer(commands, buffer, offset, length, value);
        }
        Ok(())
    }

    /// Records a copy. Ranges were checked against the buffers and do not overlap in memory
    /// (VUID-vkCmdCopyBuffer-pRegions-00117).
    pub(super) fn copy(
        &mut self,
        source: vk::Buffer,
        destination: vk::Buffer,
        region: vk::BufferCopy,
    ) -> Result<(), ProviderError> {
        let commands = self.begin()?;
        // SAFETY: as in `fill`.
        unsafe {
            self.device
                .raw
                .cmd_copy_buffer(commands, source, destination, &[region]);
        }
        Ok(())
    }

    /// The open command buffer, after a barrier against everything before.
    fn begin(&mut self) -> Result<vk::CommandBuffer, ProviderError> {
        let commands = match self.open {
            Some(commands) => commands,
            None => self.open_next()?,
        };
        let transfer = vk::AccessFlags::TRANSFER_READ | vk::AccessFlags::TRANSFER_WRITE;
        let barrier = vk::MemoryBarrier::default()
            .src_access_mask(vk::AccessFlags::TRANSFER_WRITE)
            .dst_access_mask(transfer);
        let stage = vk::PipelineStageFlags::TRANSFER;
        self.barrier(commands, stage, stage, barrier);
        Ok(commands)
    }

    fn open_next(&mut self) -> Result<vk::CommandBuffer, ProviderError> {
        let number = self.submitted + 1;
        // The slot was last used SLOTS submissions ago.
        self.wait(number.saturating_sub(SLOTS))?;
        let slot = usize::try_from(number % SLOTS)
            .ok()
            .and_then(|index| self.slots.get(index))
            .ok_or_else(|| ProviderError::Driver("no command buffer".to_owned()))?;
        let commands = slot.buffer;
        let raw = &self.device.raw;
        let no_flags = vk::CommandPoolResetFlags::empty();
        self.device
            .fault()
            // SAFETY: the submission that used this pool is done (VUID-vkResetCommandPool-commandPool-00040): just waited
            // for.
            .and_then(|()| unsafe { raw.reset_command_pool(slot.pool, no_flags) })
            .map_err(|result| self.device.refusal("vkResetCommandPool", result))?;
        let info = vk::CommandBufferBeginInfo::default()
            .flags(vk::CommandBufferUsageFlags::ONE_TIME_SUBMIT);
        self.device
            .fault()
            // SAFETY: the buffer is in the initial state after the reset.
            .and_then(|()| unsafe { raw.begin_command_buffer(commands, &info) })
            .map_err(|result| self.device.refusal("vkBeginCommandBuffer", result))?;
        self.open = Some(commands);
        Ok(commands)
    }

    /// Submits what is gathered; the number to wait for. On failure what was gathered is not done.
    pub(super) fn submit(&mut self) -> Result<u64, ProviderError> {
        let Some(commands) = self.open.take() else {
            return Ok(self.submitted);
        };
        let barrier = vk::MemoryBarrier::default()
            .src_access_mask(vk::AccessFlags::TRANSFER_WRITE)
            .dst_access_mask(vk::AccessFlags::HOST_READ | vk::AccessFlags::HOST_WRITE);
        let (from, to) = (
            vk::PipelineStageFlags::TRANSFER,
            vk::PipelineStageFlags::HOST,
        );
        self.barrier(commands, from, to, barrier);
        self.device
            .fault()
            // SAFETY: recording, and only this thread has it.
            .and_then(|()| unsafe { self.device.raw.end_command_buffer(commands) })
            .map_err(|result| self.device.refusal("vkEndCommandBuffer", result))?;
        let number = self.submitted + 1;
        self.device
            .submit(commands, number)
            .map_err(|result| self.device.refusal("vkQueueSubmit", result))?;
        self.submitted = number;
        Ok(number)
    }

    fn barrier(
        &self,
        commands: vk::CommandBuffer,
        from: vk::PipelineStageFlags,
        to: vk::PipelineStageFlags,
        barrier: vk::MemoryBarrier<'_>,
    ) {
        // SAFETY: `commands` is recording; the stages exist on every queue, the accesses belong to them
        // (VUID-vkCmdPipelineBarrier-srcAccessMask-02815, -dstAccessMask-02816).
        unsafe {
            self.device.raw.cmd_pipeline_barrier(
                commands,
                from,
                to,
                vk::DependencyFlags::empty(),
                &[barrier],
                &[],
                &[],
            );
        }
    }

    /// Waits for a submission, however long it takes; an error when the device is lost.
    pub(super) fn wait(&self, number: u64) -> Result<(), ProviderError> {
        wait(&self.device, number)
    }
}

/// Waits until the timeline of `device` has reached `number`, however long it takes; an error when the device is lost.
///
/// A wait that fails otherwise (out of memory) says nothing about the work, so it is tried again; a driver that keeps
/// failing is as good as lost.
pub(super) fn wait(device: &Device, number: u64) -> Result<(), ProviderError> {
    if number == 0 {
        return Ok(());
    }
    let mut failures = 0;
    loop {
        if let Some(lost) = device.lost() {
            return Err(lost);
        }
        match device.wait(number, PATIENCE) {
            Ok(true) => return Ok(()),
            Ok(false) => log::warn!("the GPU has not finished submission {number}, still waiting"),
            Err(result) => {
                let error = device.refusal("vkWaitSemaphores", result);
                failures += 1;
                if failures == MOST_FAILURES {
                    device.set_lost(&error.to_string());
                }
                std::thread::sleep(AFTER_FAILURE);
            }
        }
    }
}

impl Drop for Commands {
    fn drop(&mut self) {
        if let Err(error) = self.wait(self.submitted) {
            log::warn!("at the end: {error}");
            if !self.device.is_settled(self.submitted) {
                // What may still be under way must not lose its objects. The pools, and with them the device, stay.
                std::mem::forget(Arc::clone(&self.device));
                return;
            }
        }
        for slot in self.slots.drain(..) {
            // SAFETY: nothing recorded from the pool is pending: just waited for, or the device is lost, which ends all
            // work. Frees the command buffer as well.
            unsafe { self.device.raw.destroy_command_pool(slot.pool, None) };
        }
    }
}
