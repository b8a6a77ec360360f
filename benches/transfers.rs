//! Fills and copies, until they are done: asked of the guest library, and of Vulkan itself.

use anyhow::Result;
use ash::vk;
use hostblob_guest::{AllocateInfo, Device, Memory};

use crate::vulkan::Vulkan;

/// Two buffers of the largest size, and what moves bytes.
pub trait Transfers {
    /// Writes the first `size` bytes of the second buffer.
    ///
    /// # Errors
    /// As the API below has them.
    fn fill(&mut self, size: u64, value: u32) -> Result<()>;
    /// Copies the first `size` bytes of the first buffer to the second.
    ///
    /// # Errors
    /// As the API below has them.
    fn copy(&mut self, size: u64) -> Result<()>;
}

/// By the guest library.
#[derive(Debug)]
pub struct ByLibrary {
    device: Device,
    from: Memory,
    to: Memory,
}

impl ByLibrary {
    /// Two memories of `size` bytes.
    ///
    /// # Errors
    /// Where there is no memory.
    pub fn new(device: Device, size: u64) -> Result<Self> {
        let info = AllocateInfo::new(size).dedicated();
        let (from, to) = (device.allocate(&info)?, device.allocate(&info)?);
        Ok(Self { device, from, to })
    }
}

impl Transfers for ByLibrary {
    fn fill(&mut self, size: u64, value: u32) -> Result<()> {
        Ok(self.device.fill(&self.to, 0, size, value)?.wait(None)?)
    }

    fn copy(&mut self, size: u64) -> Result<()> {
        let fence = self.device.copy(&self.from, 0, &self.to, 0, size)?;
        Ok(fence.wait(None)?)
    }
}

/// By Vulkan's own calls, recorded, submitted and waited for each time, as the library's are.
#[derive(Debug)]
pub struct ByVulkan<'a> {
    vulkan: &'a Vulkan,
    pool: vk::CommandPool,
    commands: vk::CommandBuffer,
    fence: vk::Fence,
    buffers: [(vk::Buffer, vk::DeviceMemory); 2],
}

impl<'a> ByVulkan<'a> {
    /// Two buffers of `size` bytes.
    ///
    /// # Errors
    /// Where there is no memory.
    pub fn new(vulkan: &'a Vulkan, size: u64) -> Result<Self> {
        let device = &vulkan.device;
        let info = vk::CommandPoolCreateInfo::default()
            .queue_family_index(vulkan.family)
            .flags(vk::CommandPoolCreateFlags::TRANSIENT);
        // SAFETY: the family is the device's.
        let pool = unsafe { device.create_command_pool(&info, None) }?;
        let info = vk::CommandBufferAllocateInfo::default()
            .command_pool(pool)
            .command_buffer_count(1);
        // SAFETY: the pool is alive.
        let commands = unsafe { device.allocate_command_buffers(&info) }?;
        let commands = commands.first().copied().unwrap_or_default();
        // SAFETY: nothing is needed but the device.
        let fence = unsafe { device.create_fence(&vk::FenceCreateInfo::default(), None) }?;
        let buffers = [buffer(vulkan, size)?, buffer(vulkan, size)?];
        Ok(Self {
            vulkan,
            pool,
            commands,
            fence,
            buffers,
        })
    }

    fn run(&mut self, record: impl FnOnce(&ash::Device, vk::CommandBuffer)) -> Result<()> {
        let device = &self.vulkan.device;
        let reset = vk::CommandPoolResetFlags::empty();
        // SAFETY: the last submission was waited for.
        unsafe { device.reset_command_pool(self.pool, reset) }?;
        let info = vk::CommandBufferBeginInfo::default()
            .flags(vk::CommandBufferUsageFlags::ONE_TIME_SUBMIT);
        // SAFETY: reset above.
        unsafe { device.begin_command_buffer(self.commands, &info) }?;
        record(device, self.commands);
        // SAFETY: begun above.
        unsafe { device.end_command_buffer(self.commands) }?;
        let commands = [self.commands];
        let submits = [vk::SubmitInfo::default().command_buffers(&commands)];
        // SAFETY: the fence is not signalled, the commands are recorded, the buffers that they name live as long as this.
        unsafe { device.queue_submit(self.vulkan.queue, &submits, self.fence) }?;
        // SAFETY: the fence was submitted.
        unsafe { device.wait_for_fences(&[self.fence], true, u64::MAX) }?;
        // SAFETY: signalled, so no longer in use.
        Ok(unsafe { device.reset_fences(&[self.fence]) }?)
    }
}

fn buffer(vulkan: &Vulkan, size: u64) -> Result<(vk::Buffer, vk::DeviceMemory)> {
    let device = &vulkan.device;
    let usage = vk::BufferUsageFlags::TRANSFER_SRC | vk::BufferUsageFlags::TRANSFER_DST;
    let info = vk::BufferCreateInfo::default().size(size).usage(usage);
    // SAFETY: `info` is whole.
    let buffer = unsafe { device.create_buffer(&info, None) }?;
    // SAFETY: the buffer is alive.
    let needs = unsafe { device.get_buffer_memory_requirements(buffer) };
    let info = vk::MemoryAllocateInfo::default()
        .allocation_size(needs.size)
        .memory_type_index(vulkan.memory_type);
    // SAFETY: the type exists.
    let memory = unsafe { device.allocate_memory(&info, None) }?;
    // SAFETY: as large as the buffer needs, and bound once.
    unsafe { device.bind_buffer_memory(buffer, memory, 0) }?;
    Ok((buffer, memory))
}

impl Transfers for ByVulkan<'_> {
    fn fill(&mut self, size: u64, value: u32) -> Result<()> {
        let [_, (to, _)] = self.buffers;
        self.run(|device, commands| {
            // SAFETY: recording; the range is in the buffer, and a multiple of 4.
            unsafe { device.cmd_fill_buffer(commands, to, 0, size, value) };
        })
    }

    fn copy(&mut self, size: u64) -> Result<()> {
        let [(from, _), (to, _)] = self.buffers;
        let regions = [vk::BufferCopy::default().size(size)];
        self.run(|device, commands| {
            // SAFETY: recording; the ranges are in the buffers, which are not the same.
            unsafe { device.cmd_copy_buffer(commands, from, to, &regions) };
        })
    }
}

impl Drop for ByVulkan<'_> {
    fn drop(&mut self) {
        let device = &self.vulkan.device;
        // SAFETY: every submission was waited for.
        unsafe { device.destroy_fence(self.fence, None) };
        // SAFETY: as above.
        unsafe { device.destroy_command_pool(self.pool, None) };
        for (buffer, memory) in self.buffers {
            // SAFETY: as above.
            unsafe { device.destroy_buffer(buffer, None) };
            // SAFETY: its buffer is gone.
            unsafe { device.free_memory(memory, None) };
        }
    }
}
