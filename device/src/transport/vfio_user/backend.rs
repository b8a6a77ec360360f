//! The device as the VMM's messages see it: regions, interrupts, guest memory, reset.
//!
//! Belongs to the message thread, with all its registers. Accesses to regions are safe at any offset and width: what is not there
//! reads as zeros and is not written, past the end of a region too. An error would be worse: a guest of cloud-hypervisor can read
//! past the configuration space, and the crate's client waits for ever for the data that an error reply does not have.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use vfio_bindings::bindings::vfio::{
    VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_DATA_EVENTFD, VFIO_IRQ_SET_DATA_NONE,
    VFIO_PCI_MSIX_IRQ_INDEX, VFIO_PCI_NUM_IRQS,
};
use vfio_user::{DmaMapFlags, DmaUnmapFlags, ServerBackend};

use super::Engine;
use super::common::{CommonConfig, Effect};
use super::config_space::ConfigSpace;
use super::dma::{DmaError, DmaTable};
use super::layout::{
    self, COMMON, CONFIG, DEVICE, ISR, MSIX_BAR, MSIX_PENDING, MSIX_TABLE, NOTIFY,
    NOTIFY_MULTIPLIER, VIRTIO_BAR, WINDOW_BAR,
};
use crate::ratelimit::RateLimiter;
use crate::transport::Device;
use crate::virtqueue::{QUEUES, offered_features};

/// Longest access to a region: what the crate's server announces (`max_data_xfer_size`). It would allocate up to 4 GiB for a message.
const MAX_ACCESS: usize = 1 << 20;

/// The registers, and the way to the rest.
#[derive(Debug)]
pub(super) struct Backend<D> {
    engine: Arc<Engine<D>>,
    config: ConfigSpace,
    common: CommonConfig,
    dma: DmaTable,
    msix_table: [u8; MSIX_TABLE.length as usize],
    /// The device's configuration, which never changes: a processor of the guest that reads it does not wait for a command.
    device_config: Vec<u8>,
    window: OwnedFd,
    window_size: u64,
    log: RateLimiter,
}

impl<D: Device> Backend<D> {
    /// The device after power-on. `window` is the window's file.
    pub(super) fn new(engine: Arc<Engine<D>>, window: OwnedFd) -> Self {
        let (features, window_size, device_config) = engine.with_device(|device| {
            let config = device.config().to_vec();
            (device.features(), device.window_size(), config)
        });
        Self {
            engine,
            config: ConfigSpace::new(window_size),
            common: CommonConfig::new(offered_features(features)),
            dma: DmaTable::default(),
            msix_table: [0; MSIX_TABLE.length as usize],
            device_config,
            window,
            window_size,
            log: RateLimiter::new(),
        }
    }

    /// Whether an access lies in its region.
    fn contains(&self, region: u32, offset: u64, length: usize) -> bool {
        let end = u64::try_from(length)
            .ok()
            .and_then(|length| offset.checked_add(length));
        end.is_some_and(|end| end <= layout::region_size(region, self.window_size))
    }

    fn read_virtio(&self, offset: u64, data: &mut [u8]) {
        if let Some(within) = COMMON.within(offset) {
            let needs_reset = self.engine.needs_reset();
            self.common
                .read(&self.engine.interrupts, needs_reset, within, data);
        } else if let Some(0) = ISR.within(offset) {
            if let Some(first) = data.first_mut() {
                *first = self.engine.interrupts.take_isr();
            }
        } else if let Some(within) = DEVICE.within(offset) {
            layout::read_at(&self.device_config, within, data);
        }
    }

    fn write_virtio(&mut self, offset: u64, data: &[u8]) {
        if let Some(within) = COMMON.within(offset) {
            let effect = self.common.write(&self.engine.interrupts, within, data);
            self.apply(within, effect);
        } else if let Some(within) = NOTIFY.within(offset) {
            // The offset says which queue (4.1.5.2); the thread looks at all of them.
            if within / u64::from(NOTIFY_MULTIPLIER) < QUEUES as u64 {
                self.engine.wake();
            }
        } else if let Some(within) = DEVICE.within(offset) {
            self.engine
                .with_device(|device| device.write_config(within, data));
        }
    }

    fn apply(&mut self, offset: u64, effect: Effect) {
        match effect {
            Effect::Done => {}
            Effect::Start => self.engine.start(self.common.queues()),
            Effect::Reset => {
                self.engine.reset();
                self.common.reset();
            }
            Effect::Refused(why) => self.log.warn(format_args!(
                "write to the common configuration at {offset} ignored: {why}"
            )),
        }
    }

    fn read_msix(&self, offset: u64, data: &mut [u8]) {
        if let Some(within) = MSIX_TABLE.within(offset) {
            layout::read_at(&self.msix_table, within, data);
        } else if let Some(within) = MSIX_PENDING.within(offset) {
            layout::read_at(&self.engine.interrupts.pending(), within, data);
        }
    }

    fn write_msix(&mut self, offset: u64, data: &[u8]) {
        if let Some(within) = MSIX_TABLE
            .within(offset)
            .and_then(|n| usize::try_from(n).ok())
        {
            for (to, from) in self.msix_table.iter_mut().skip(within).zip(data) {
                *to = *from;
            }
        }
    }

    /// For VMMs that do not map the window.
    fn read_window(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        let mut done = 0;
        while let Some(rest) = data.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let at = offset.saturating_add(u64::try_from(done).unwrap_or(u64::MAX));
            match rustix::io::pread(&self.window, rest, at)? {
                0 => break,
                count => done += count,
            }
        }
        Ok(())
    }

    fn write_window(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut done = 0;
        while let Some(rest) = data.get(done..).filter(|rest| !rest.is_empty()) {
            let at = offset.saturating_add(u64::try_from(done).unwrap_or(u64::MAX));
            match rustix::io::pwrite(&self.window, rest, at)? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                count => done += count,
            }
        }
        Ok(())
    }

    fn read_bar(&self, region: u32, offset: u64, data: &mut [u8]) -> io::Result<()> {
        match region {
            _ if !self.contains(region, offset, data.len()) => {}
            VIRTIO_BAR => self.read_virtio(offset, data),
            MSIX_BAR => self.read_msix(offset, data),
            WINDOW_BAR => self.read_window(offset, data)?,
            _ => {}
        }
        Ok(())
    }

    fn write_bar(&mut self, region: u32, offset: u64, data: &[u8]) -> io::Result<()> {
        match region {
            _ if !self.contains(region, offset, data.len()) => {}
            VIRTIO_BAR => self.write_virtio(offset, data),
            MSIX_BAR => self.write_msix(offset, data),
            WINDOW_BAR => self.write_window(offset, data)?,
            _ => {}
        }
        Ok(())
    }

    /// A read of `pci_cfg_data` reads the BAR first (virtio 1.3, 4.1.4.9).
    fn read_config(&mut self, offset: u64, data: &mut [u8]) {
        if ConfigSpace::touches_data(offset, data.len())
            && let Some(access) = self.config.bar_access()
        {
            let mut window = [0; 4];
            let bytes = window.get_mut(..access.length).unwrap_or_default();
            if self.read_bar(access.region, access.offset, bytes).is_ok() {
                self.config.set_bar_data(window);
            }
        }
        self.config.read(offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let before = (self.config.bus_master(), self.config.msix_enabled());
        self.config.write(offset, data);
        let after = (self.config.bus_master(), self.config.msix_enabled());
        if before.0 != after.0 {
            self.engine.set_bus_master(after.0);
        }
        if before.1 != after.1 {
            self.engine.interrupts.set_msix(after.1);
        }
        if ConfigSpace::touches_data(offset, data.len())
            && let Some(access) = self.config.bar_access()
        {
            let window = self.config.bar_data();
            let bytes = window.get(..access.length).unwrap_or_default();
            // Outside the BAR nothing happens, as on a bus.
            let _ = self.write_bar(access.region, access.offset, bytes);
        }
    }

    fn log_dma(&mut self, result: Result<(), DmaError>) -> io::Result<()> {
        result.map_err(|error| {
            self.log.warn(format_args!("guest memory: {error}"));
            io::Error::new(io::ErrorKind::InvalidInput, error)
        })
    }
}

/// Of a read, before the data is touched: until then it is address space. What a VMM writes is here already, however much it has sent: the crate
/// vfio_user takes any length.
fn check_length(length: usize) -> io::Result<()> {
    if length > MAX_ACCESS {
        Err(io::ErrorKind::InvalidInput.into())
    } else {
        Ok(())
    }
}

impl<D: Device> ServerBackend for Backend<D> {
    fn region_read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> io::Result<()> {
        check_length(data.len())?;
        data.fill(0);
        if region == CONFIG {
            self.read_config(offset, data);
            return Ok(());
        }
        self.read_bar(region, offset, data)
    }

    fn region_write(&mut self, region: u32, offset: u64, data: &[u8]) -> io::Result<()> {
        check_length(data.len())?;
        if region == CONFIG {
            self.write_config(offset, data);
            return Ok(());
        }
        self.write_bar(region, offset, data)
    }

    fn dma_map(
        &mut self,
        flags: DmaMapFlags,
        offset: u64,
        address: u64,
        size: u64,
        fd: Option<File>,
    ) -> io::Result<()> {
        let writable = flags.contains(DmaMapFlags::READ_WRITE);
        let usable = fd.is_some() && writable;
        log::debug!(
            "guest memory: {size:#x} bytes at {address:#x}, file offset {offset:#x}{}",
            if usable {
                ""
            } else {
                " (no descriptor or read-only: not mapped)"
            }
        );
        let result = self
            .dma
            .map(address, size, fd.map(|file| (file, offset)), writable);
        self.log_dma(result)?;
        if usable {
            self.engine.set_memory(self.dma.memory());
        }
        Ok(())
    }

    fn dma_unmap(&mut self, flags: DmaUnmapFlags, address: u64, size: u64) -> io::Result<()> {
        log::debug!("guest memory: {size:#x} bytes at {address:#x} go ({flags:?})");
        if flags.contains(DmaUnmapFlags::GET_DIRTY_PAGE_INFO) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        if flags.contains(DmaUnmapFlags::UNMAP_ALL) {
            self.dma.clear();
        } else {
            let result = self.dma.unmap(address, size);
            self.log_dma(result)?;
        }
        self.engine.set_memory(self.dma.memory());
        Ok(())
    }

    fn reset(&mut self) -> io::Result<()> {
        log::info!("reset by the VMM");
        self.engine.set_bus_master(false);
        self.engine.reset();
        self.engine.interrupts.set_msix(false);
        self.common.reset();
        self.config = ConfigSpace::new(self.window_size);
        self.msix_table.fill(0);
        Ok(())
    }

    fn set_irqs(
        &mut self,
        index: u32,
        flags: u32,
        start: u32,
        count: u32,
        fds: Vec<File>,
    ) -> io::Result<()> {
        let interrupts = &self.engine.interrupts;
        if flags & VFIO_IRQ_SET_ACTION_TRIGGER == 0 {
            // Masking was not announced.
            return Err(io::ErrorKind::Unsupported.into());
        }
        if index != VFIO_PCI_MSIX_IRQ_INDEX {
            // There are no other interrupts: nothing can be said about none of them.
            let none = index < VFIO_PCI_NUM_IRQS && count == 0 && fds.is_empty();
            return if none {
                Ok(())
            } else {
                Err(io::ErrorKind::InvalidInput.into())
            };
        }
        let named = usize::try_from(count).is_ok_and(|count| count == fds.len());
        match flags & (VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_DATA_NONE) {
            VFIO_IRQ_SET_DATA_NONE if count == 0 => {
                interrupts.disconnect_all();
                Ok(())
            }
            VFIO_IRQ_SET_DATA_NONE => interrupts.fire(start, count),
            VFIO_IRQ_SET_DATA_EVENTFD if named => interrupts.connect(start, fds),
            VFIO_IRQ_SET_DATA_EVENTFD if fds.is_empty() => interrupts.disconnect(start, count),
            _ => Err(io::ErrorKind::InvalidInput.into()),
        }
    }
}

#[cfg(test)]
mod tests;
