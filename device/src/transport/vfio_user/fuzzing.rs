//! What the fuzz target `vfio_regions` drives: the device as the VMM's messages and the guest's memory see it, in one thread.

#![expect(clippy::expect_used, reason = "a fuzzer that cannot start ends")]

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use vfio_user::{DmaMapFlags, DmaUnmapFlags, ServerBackend};

use super::Engine;
use super::backend::Backend;
use super::interrupts::Interrupts;
use crate::gpu::Waker;
use crate::transport::{Device, LateWindow, Wake};

/// Bytes of the guest's memory file.
pub const MEMORY: u64 = 1 << 20;

/// A device and the memory of its guest. Every call may be refused; none may do harm.
#[derive(Debug)]
pub struct Machine<D> {
    backend: Backend<D>,
    engine: Arc<Engine<D>>,
    memory: File,
}

impl<D: Device> Machine<D> {
    /// After power-on, without guest memory.
    ///
    /// # Panics
    /// Where the process is out of descriptors.
    pub fn new(new_device: impl FnOnce(Waker) -> D) -> Self {
        let wake = Wake::new().expect("eventfd");
        let device = new_device(wake.waker());
        let window = device.window_fd().try_clone_to_owned().expect("descriptor");
        let engine = Arc::new(Engine::new(device, wake, Interrupts::new()));
        let flags = rustix::fs::MemfdFlags::CLOEXEC;
        let memory = rustix::fs::memfd_create("guest", flags).expect("memfd");
        rustix::fs::ftruncate(&memory, MEMORY).expect("memory");
        Self {
            backend: Backend::new(Arc::clone(&engine), window),
            engine,
            memory: memory.into(),
        }
    }

    /// REGION_READ.
    pub fn read(&mut self, region: u32, offset: u64, data: &mut [u8]) {
        let _ = self.backend.region_read(region, offset, data);
    }

    /// REGION_WRITE.
    pub fn write(&mut self, region: u32, offset: u64, data: &[u8]) {
        let _ = self.backend.region_write(region, offset, data);
    }

    /// DMA_MAP of a part of the guest's memory file.
    pub fn map(&mut self, flags: u32, offset: u64, address: u64, size: u64, with_file: bool) {
        let file = with_file.then(|| self.memory.try_clone().expect("descriptor"));
        let flags = DmaMapFlags::from_bits_truncate(flags);
        let _ = self.backend.dma_map(flags, offset, address, size, file);
    }

    /// DMA_UNMAP.
    pub fn unmap(&mut self, flags: u32, address: u64, size: u64) {
        let flags = DmaUnmapFlags::from_bits_truncate(flags);
        let _ = self.backend.dma_unmap(flags, address, size);
    }

    /// DEVICE_SET_IRQS with that many eventfds.
    pub fn set_irqs(&mut self, index: u32, flags: u32, start: u32, count: u32, files: u8) {
        let event = || -> OwnedFd {
            rustix::event::eventfd(0, rustix::event::EventfdFlags::NONBLOCK).expect("eventfd")
        };
        let files = (0..files).map(|_| File::from(event())).collect();
        let _ = self.backend.set_irqs(index, flags, start, count, files);
    }

    /// DEVICE_RESET.
    pub fn reset(&mut self) {
        let _ = self.backend.reset();
    }

    /// The guest writes its memory.
    pub fn poke(&self, offset: u64, data: &[u8]) {
        if offset.saturating_add(data.len() as u64) <= MEMORY {
            self.memory.write_all_at(data, offset).expect("memory");
        }
    }

    /// The queue thread takes its turn.
    pub fn turn(&self) {
        let mut command = Vec::new();
        let window = &mut LateWindow::premapped();
        // A guest can make work for ever; the thread looks at its end between turns.
        for _ in 0..4 {
            if !self.engine.turn(&mut command, window) {
                break;
            }
        }
    }
}
