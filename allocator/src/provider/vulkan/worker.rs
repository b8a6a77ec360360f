//! The thread that owns the GPU: it alone imports, allocates, records and submits, for all sessions.
//!
//! Imports pin pages and a ring of command buffers can be full, so none of this runs on a caller's thread. Requests that
//! arrive together are recorded into one command buffer. Answers leave in the order of the requests of their
//! session: at once when nothing of the session is under way, else through the waiter.

use std::sync::Arc;

use ash::vk;
use crossbeam_channel::Receiver;

use super::attach::{Attacher, GpuBytes, Target};
use super::commands::Commands;
use super::device::Device;
use super::export;
use super::local::LocalPool;
use super::waiter::Answers;
use crate::provider::desk::{At, Desk, Gpu, ToWorker};
use crate::provider::lane::Batch;
use crate::provider::mapping::SharedFile;
use crate::provider::table::AttachRange;
use crate::provider::{Elsewhere, Placement, ProviderError};

/// The device, as the desk asks of it. Fields are dropped in their order: what is made of the device before it.
pub(super) struct VulkanGpu {
    pub(super) commands: Commands,
    pub(super) attacher: Attacher,
    pub(super) pool: Arc<LocalPool>,
    /// For each guest memory type, the host's own index, and where its bytes live.
    pub(super) host_types: Vec<(u32, Placement)>,
    pub(super) device: Arc<Device>,
}

/// All that the thread owns.
pub(super) struct Worker {
    pub(super) desk: Desk<VulkanGpu>,
}

impl Worker {
    /// Serves until every session and the provider are gone, then waits for all work.
    pub(super) fn run(&mut self, inbox: &Receiver<ToWorker>, answers: &Answers) {
        while let Ok(first) = inbox.recv() {
            self.desk.handle_burst(first, inbox);
            self.flush(answers, inbox.is_empty());
        }
    }

    /// Submits what was recorded and passes the answers on.
    fn flush(&mut self, answers: &Answers, idle: bool) {
        let commands = &mut self.desk.gpu.commands;
        if commands.is_open()
            && let Err(error) = commands.submit()
        {
            self.desk.undo(&error);
        }
        let entries = self.desk.take_pending();
        if entries.is_empty() {
            return;
        }
        let batch = Batch {
            number: self.desk.gpu.commands.submitted(),
            entries,
        };
        answers.settle(&self.desk.gpu.device, batch, idle);
    }
}

impl VulkanGpu {
    fn host_type(&self, memory_type: u32) -> Result<(u32, Placement), ProviderError> {
        usize::try_from(memory_type)
            .ok()
            .and_then(|index| self.host_types.get(index))
            .copied()
            .ok_or_else(|| ProviderError::Invalid(format!("memory type {memory_type}")))
    }
}

impl Gpu for VulkanGpu {
    type Bytes = GpuBytes;

    fn lost(&self) -> Option<ProviderError> {
        self.device.lost()
    }

    fn attach(
        &mut self,
        file: &Arc<SharedFile>,
        range: &AttachRange,
    ) -> Result<GpuBytes, ProviderError> {
        self.attacher.attach(&Target {
            file,
            offset: range.offset,
            length: range.length,
            memory_type: self.host_type(range.memory_type)?.0,
        })
    }

    fn allocate(&mut self, length: u64, memory_type: u32) -> Result<GpuBytes, ProviderError> {
        let bytes = match self.host_type(memory_type)? {
            (index, Placement::Exported) => export::allocate(&self.pool, length, index)?,
            (index, _) => self.pool.allocate(length, index)?,
        };
        self.commands.fill(bytes.buffer.raw, 0, vk::WHOLE_SIZE, 0)?;
        Ok(bytes)
    }

    fn export(&mut self, bytes: &GpuBytes, length: u64) -> Result<Elsewhere, ProviderError> {
        export::export(bytes, length)
    }

    fn fill(
        &mut self,
        bytes: &GpuBytes,
        offset: u64,
        length: u64,
        value: u32,
    ) -> Result<(), ProviderError> {
        self.commands.fill(bytes.buffer.raw, offset, length, value)
    }

    fn copy(
        &mut self,
        source: At<'_, GpuBytes>,
        destination: At<'_, GpuBytes>,
        length: u64,
    ) -> Result<(), ProviderError> {
        let region = vk::BufferCopy {
            src_offset: source.offset,
            dst_offset: destination.offset,
            size: length,
        };
        let (from, to) = (source.bytes.buffer.raw, destination.bytes.buffer.raw);
        self.commands.copy(from, to, region)
    }
}
