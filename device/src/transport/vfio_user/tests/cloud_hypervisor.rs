//! What cloud-hypervisor's `--user-device` does, in its order (`pci/src/vfio_user.rs`, `pci/src/vfio.rs`, `vmm/src/device_manager.rs` of its source):
//! reset, capabilities, DMA, BAR sizes, the window's mapping; all interrupts in one message; memory that is plugged in later.

use super::*;

/// A BAR as the VMM finds it.
#[derive(Debug, PartialEq, Eq)]
struct Bar {
    index: u32,
    size: u64,
    is_64_bit: bool,
    prefetchable: bool,
}

impl Driver {
    fn config<const N: usize>(&mut self, offset: u64) -> [u8; N] {
        self.read(CONFIG, offset)
    }

    fn config_dword(&mut self, offset: u64) -> u32 {
        u32::from_le_bytes(self.config(offset))
    }

    fn write_config_dword(&mut self, offset: u64, value: u32) {
        self.client
            .region_write(CONFIG, offset, &value.to_le_bytes())
            .unwrap();
    }

    /// `parse_capabilities`: where MSI-X is.
    fn find_msix(&mut self) -> Option<u8> {
        let [status, _] = self.config(6);
        assert!(status & 0x10 != 0, "a capabilities list");
        let [mut next] = self.config(0x34);
        let mut found = None;
        for _ in 0..48 {
            if next & 0xfc == 0 {
                return found;
            }
            let at = u64::from(next & 0xfc);
            if self.config(at) == [0x11] {
                assert_eq!(self.client.get_irq_info(2).unwrap().count, 3);
                found = Some(next);
            }
            [next] = self.config(at + 1);
        }
        panic!("the capabilities list has no end");
    }

    /// `allocate_bars`: sizes by writing ones, the expansion ROM included.
    fn find_bars(&mut self) -> Vec<Bar> {
        let mut bars = Vec::new();
        let mut index = 0;
        while index < CONFIG {
            let offset = match index {
                6 => 0x30,
                bar => u64::from(0x10 + bar * 4),
            };
            let flags = self.config_dword(offset);
            let is_64_bit = index != 6 && flags & 4 != 0;
            self.write_config_dword(offset, u32::MAX);
            let mut size = u64::from(!(self.config_dword(offset) & !0xf));
            if is_64_bit {
                self.write_config_dword(offset + 4, u32::MAX);
                size |= u64::from(!self.config_dword(offset + 4)) << 32;
            }
            let none = if is_64_bit { u64::MAX } else { u32::MAX.into() };
            if size != none {
                bars.push(Bar {
                    index,
                    size: size + 1,
                    is_64_bit,
                    prefetchable: flags & 8 != 0,
                });
            }
            index += if is_64_bit { 2 } else { 1 };
        }
        bars
    }

    /// `enable_msix`: the descriptors of all vectors in one message.
    fn enable_all_interrupts(&mut self) {
        let flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER;
        let fds = self.vectors.each_ref().map(AsRawFd::as_raw_fd);
        self.client.set_irqs(2, flags, 0, 3, &fds).unwrap();
    }

    /// `disable_irq`.
    fn disable_interrupts(&mut self) {
        let flags = VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER;
        self.client.set_irqs(2, flags, 0, 0, &[]).unwrap();
    }

    /// From `VfioUserPciDevice::new` to a device that the guest can see.
    fn plug(&mut self) {
        // The client of 0.1.7 says the opposite of what the device said, so that a device that can be reset is not.
        if self.client.resettable() {
            self.client.reset().unwrap();
        }
        let msix = u64::from(self.find_msix().expect("MSI-X"));
        let [control, _] = self.config(msix + 2);
        assert_eq!(control & 0x7f, 2, "a table of 3");
        let (table, pending) = (self.config_dword(msix + 4), self.config_dword(msix + 8));
        assert_eq!((table, pending), (1, 0x801), "in BAR 1, at a page's start");
        assert_eq!(self.client.get_irq_info(0).unwrap().count, 0, "no INTx");
        self.map_memory();
        let bar = |index, size, is_64_bit| Bar {
            index,
            size,
            is_64_bit,
            prefetchable: is_64_bit,
        };
        let bars = [
            bar(0, 0x4000, false),
            bar(1, 0x1000, false),
            bar(2, WINDOW, true),
        ];
        assert_eq!(self.find_bars(), bars);
    }
}

/// `map_mmio_regions`, and the guest's first byte in it.
fn map_window(client: &Client) -> vm_memory::MmapRegion {
    let region = client.region(2).unwrap();
    let file = region.file_offset.as_ref().unwrap();
    let area = region.sparse_areas[0];
    let offset = FileOffset::new(file.file().try_clone().unwrap(), file.start() + area.offset);
    let size = usize::try_from(area.size).unwrap();
    vm_memory::MmapRegion::from_file(offset, size).unwrap()
}

#[test]
fn the_device_is_plugged_runs_and_is_unplugged() {
    let daemon = Daemon::start("cloud-hypervisor");
    for _ in 0..2 {
        let mut driver = daemon.connect();
        driver.plug();
        let window = map_window(&driver.client);
        assert_eq!(window.size() as u64, WINDOW);
        // The guest enables MSI-X and starts its driver.
        driver.client.region_write(CONFIG, 0x04, &[6, 0]).unwrap();
        driver
            .client
            .region_write(CONFIG, 0x42, &[2, 0x80])
            .unwrap();
        driver.enable_all_interrupts();
        driver.negotiate(super::super::fake::FEATURES | F_VERSION_1 | F_EVENT_IDX);
        driver.round_trip(0, b"running");
        driver.disable_interrupts();
        driver.enable_all_interrupts();
        driver.round_trip(2, b"interrupts were off");
        driver.disable_interrupts();
        driver.client.shutdown().unwrap();
    }
}

#[test]
fn memory_is_plugged_in_and_out_under_a_running_device() {
    let daemon = Daemon::start("cloud-hypervisor-memory");
    let mut driver = daemon.connect();
    driver.plug();
    driver.client.region_write(CONFIG, 0x04, &[6, 0]).unwrap();
    driver
        .client
        .region_write(CONFIG, 0x42, &[2, 0x80])
        .unwrap();
    driver.enable_all_interrupts();
    driver.negotiate(super::super::fake::FEATURES | F_VERSION_1 | F_EVENT_IDX);
    let fd = driver.memory.as_raw_fd();
    for round in 0..20_u8 {
        driver
            .client
            .dma_map(0, RAM * 16, RAM_SIZE as u64, fd)
            .unwrap();
        driver.round_trip(0, &[round; 3]);
        driver.client.dma_unmap(RAM * 16, RAM_SIZE as u64).unwrap();
        driver.round_trip(2, &[round; 4]);
    }
}
