//! A Vulkan device as any program opens one, and the way of bytes to buffers and back: through the host GPU alone.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ash::vk;
use hostblob_tests::pattern;

/// An instance and a device with its first queue. All that was made of it must be gone when it is dropped.
pub(crate) struct Gpu {
    /// Keeps the loader.
    _entry: ash::Entry,
    pub(crate) instance: ash::Instance,
    pub(crate) physical: vk::PhysicalDevice,
    pub(crate) device: ash::Device,
    queue: vk::Queue,
    commands: vk::CommandPool,
}

/// What buffers are for here, on a device that can do nothing else with them.
pub(crate) const TRANSFERS: vk::BufferUsageFlags = vk::BufferUsageFlags::from_raw(
    vk::BufferUsageFlags::TRANSFER_SRC.as_raw() | vk::BufferUsageFlags::TRANSFER_DST.as_raw(),
);

/// Half a minute, in nanoseconds.
const PATIENCE: u64 = 30_000_000_000;

impl Gpu {
    /// Opens the first device, with VK_EXT_memory_budget.
    pub(crate) fn open() -> Result<Self> {
        // SAFETY: the loader of the system; nothing else has this name.
        let entry = unsafe { ash::Entry::load() }.context("no Vulkan loader")?;
        let application = vk::ApplicationInfo::default().api_version(vk::API_VERSION_1_1);
        let info = vk::InstanceCreateInfo::default().application_info(&application);
        // SAFETY: all that `info` points to is alive.
        let instance = unsafe { entry.create_instance(&info, None) }?;
        // SAFETY: the instance is alive.
        let physical = unsafe { instance.enumerate_physical_devices() }?;
        let physical = *physical.first().context("no Vulkan device")?;
        let queues = [vk::DeviceQueueCreateInfo::default().queue_priorities(&[1.0])];
        let extensions = [ash::ext::memory_budget::NAME.as_ptr()];
        let info = vk::DeviceCreateInfo::default()
            .queue_create_infos(&queues)
            .enabled_extension_names(&extensions);
        // SAFETY: the first family is there; all that `info` points to is alive.
        let device = unsafe { instance.create_device(physical, &info, None) }?;
        // SAFETY: the queue was asked for.
        let queue = unsafe { device.get_device_queue(0, 0) };
        let info = vk::CommandPoolCreateInfo::default();
        // SAFETY: of the family of the queue.
        let commands = unsafe { device.create_command_pool(&info, None) }?;
        Ok(Self {
            _entry: entry,
            instance,
            physical,
            device,
            queue,
            commands,
        })
    }

    fn memory(&self) -> vk::PhysicalDeviceMemoryProperties {
        let instance = &self.instance;
        // SAFETY: the device is of this instance.
        unsafe { instance.get_physical_device_memory_properties(self.physical) }
    }

    /// How many heaps there are.
    pub(crate) fn memory_heaps(&self) -> usize {
        self.memory().memory_heap_count as usize
    }

    /// Memory types, by index.
    pub(crate) fn memory_types(&self) -> Vec<vk::MemoryPropertyFlags> {
        let all = self.memory();
        let types = all.memory_types_as_slice().iter();
        types.map(|kind| kind.property_flags).collect()
    }

    /// Bytes that this process has of all heaps, as the driver says.
    pub(crate) fn usage(&self) -> u64 {
        let mut budget = vk::PhysicalDeviceMemoryBudgetPropertiesEXT::default();
        let mut all = vk::PhysicalDeviceMemoryProperties2::default().push_next(&mut budget);
        // SAFETY: the device has the extension that the chain is of.
        unsafe {
            self.instance
                .get_physical_device_memory_properties2(self.physical, &mut all)
        };
        budget.heap_usage.iter().sum()
    }

    /// It has no more than this, in the end: a guest's kernel gives memory back when it comes to it.
    pub(crate) fn settles_at(&self, usage: u64) -> Result<()> {
        let deadline = Instant::now() + Duration::from_nanos(PATIENCE);
        while self.usage() > usage {
            let left = self.usage().saturating_sub(usage);
            ensure!(Instant::now() < deadline, "{left} bytes are left");
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// A buffer without memory.
    pub(crate) fn buffer(&self, size: u64) -> Result<vk::Buffer> {
        let info = vk::BufferCreateInfo::default().size(size).usage(TRANSFERS);
        // SAFETY: the device is alive.
        Ok(unsafe { self.device.create_buffer(&info, None) }?)
    }

    /// A bit for each memory type that buffers of this size may have.
    pub(crate) fn buffer_types(&self, size: u64) -> Result<u32> {
        let buffer = self.buffer(size)?;
        // SAFETY: the buffer is alive.
        let needs = unsafe { self.device.get_buffer_memory_requirements(buffer) };
        // SAFETY: it was never bound.
        unsafe { self.device.destroy_buffer(buffer, None) };
        Ok(needs.memory_type_bits)
    }

    /// Copies `size` bytes, and returns when it is done and the processor can see it.
    pub(crate) fn copy(&self, from: vk::Buffer, to: vk::Buffer, size: u64) -> Result<()> {
        self.run(|commands| {
            let region = [vk::BufferCopy::default().size(size)];
            // SAFETY: both buffers have memory and this size, and nothing else uses them.
            unsafe { self.device.cmd_copy_buffer(commands, from, to, &region) };
        })
    }

    fn run(&self, record: impl FnOnce(vk::CommandBuffer)) -> Result<()> {
        let device = &self.device;
        let info = vk::CommandBufferAllocateInfo::default()
            .command_pool(self.commands)
            .command_buffer_count(1);
        // SAFETY: the pool is used by this thread alone.
        let buffers = unsafe { device.allocate_command_buffers(&info) }?;
        let commands = *buffers.first().context("a command buffer")?;
        let info = vk::CommandBufferBeginInfo::default()
            .flags(vk::CommandBufferUsageFlags::ONE_TIME_SUBMIT);
        // SAFETY: it is new.
        unsafe { device.begin_command_buffer(commands, &info) }?;
        record(commands);
        let barrier = [vk::MemoryBarrier::default()
            .src_access_mask(vk::AccessFlags::TRANSFER_WRITE)
            .dst_access_mask(vk::AccessFlags::HOST_READ)];
        // SAFETY: it is being recorded.
        unsafe {
            device.cmd_pipeline_barrier(
                commands,
                vk::PipelineStageFlags::TRANSFER,
                vk::PipelineStageFlags::HOST,
                vk::DependencyFlags::empty(),
                &barrier,
                &[],
                &[],
            );
        };
        // SAFETY: likewise.
        unsafe { device.end_command_buffer(commands) }?;
        // SAFETY: the device is alive.
        let fence = unsafe { device.create_fence(&vk::FenceCreateInfo::default(), None) }?;
        let submit = [vk::SubmitInfo::default().command_buffers(&buffers)];
        // SAFETY: the queue is used by this thread alone.
        unsafe { device.queue_submit(self.queue, &submit, fence) }?;
        // SAFETY: the fence was submitted.
        unsafe { device.wait_for_fences(&[fence], true, PATIENCE) }.context("the fence")?;
        // SAFETY: the queue is done with it.
        unsafe { device.destroy_fence(fence, None) };
        // SAFETY: likewise.
        unsafe { device.free_command_buffers(self.commands, &buffers) };
        Ok(())
    }

    /// Takes so many bytes of memory, and gives them back.
    pub(crate) fn warm_up(&self, size: u64) -> Result<()> {
        Staging::new(self, size).map(drop)
    }

    /// Writes a pattern into a buffer of this size.
    pub(crate) fn put(&self, to: vk::Buffer, seed: u64, size: u64) -> Result<()> {
        let staging = Staging::new(self, size)?;
        staging
            .bytes()
            .copy_from_slice(&pattern::bytes(seed, 0, size));
        self.copy(staging.buffer, to, size)
    }

    /// The pattern is there.
    pub(crate) fn expect(&self, from: vk::Buffer, seed: u64, size: u64) -> Result<()> {
        let staging = Staging::new(self, size)?;
        self.copy(from, staging.buffer, size)?;
        same(staging.bytes(), seed)
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        // SAFETY: its command buffers are done.
        unsafe { self.device.destroy_command_pool(self.commands, None) };
        // SAFETY: all that was made of it is gone.
        unsafe { self.device.destroy_device(None) };
        // SAFETY: its only device is gone.
        unsafe { self.instance.destroy_instance(None) };
    }
}

/// The bytes are this pattern.
pub(crate) fn same(bytes: &[u8], seed: u64) -> Result<()> {
    let expected = pattern::bytes(seed, 0, bytes.len() as u64);
    let wrong = bytes
        .iter()
        .zip(&expected)
        .position(|(one, other)| one != other);
    ensure!(wrong.is_none(), "byte {wrong:?} is not of pattern {seed}");
    Ok(())
}

/// A buffer with memory of its own that the processor sees.
struct Staging<'a> {
    gpu: &'a Gpu,
    buffer: vk::Buffer,
    memory: vk::DeviceMemory,
    address: *mut u8,
    size: u64,
}

impl<'a> Staging<'a> {
    fn new(gpu: &'a Gpu, size: u64) -> Result<Self> {
        let device = &gpu.device;
        let buffer = gpu.buffer(size)?;
        // SAFETY: the buffer is alive.
        let needs = unsafe { device.get_buffer_memory_requirements(buffer) };
        let seen = vk::MemoryPropertyFlags::HOST_VISIBLE | vk::MemoryPropertyFlags::HOST_COHERENT;
        let kind = gpu
            .memory_types()
            .into_iter()
            .zip(0..)
            .find(|(flags, index)| {
                flags.contains(seen) && needs.memory_type_bits & 1 << index != 0
            });
        let (_, kind) = kind.context("no memory that is visible and coherent")?;
        let info = vk::MemoryAllocateInfo::default()
            .allocation_size(needs.size)
            .memory_type_index(kind);
        // SAFETY: the memory type is one of the device's.
        let memory = unsafe { device.allocate_memory(&info, None) }?;
        // SAFETY: both are new, and the memory has the size that the buffer needs.
        unsafe { device.bind_buffer_memory(buffer, memory, 0) }?;
        let flags = vk::MemoryMapFlags::empty();
        // SAFETY: the memory is visible and not mapped.
        let address = unsafe { device.map_memory(memory, 0, vk::WHOLE_SIZE, flags) }?;
        Ok(Self {
            gpu,
            buffer,
            memory,
            address: address.cast(),
            size,
        })
    }

    #[allow(clippy::mut_from_ref, reason = "it is made anew for each use")]
    fn bytes(&self) -> &mut [u8] {
        // SAFETY: `size` bytes are mapped there until the drop; nothing writes them meanwhile but who has them from here, and copies that are
        // waited for.
        unsafe { std::slice::from_raw_parts_mut(self.address, self.size as usize) }
    }
}

impl Drop for Staging<'_> {
    fn drop(&mut self) {
        // SAFETY: copies have been waited for.
        unsafe { self.gpu.device.destroy_buffer(self.buffer, None) };
        // SAFETY: its buffer is gone; to free it unmaps it.
        unsafe { self.gpu.device.free_memory(self.memory, None) };
    }
}
