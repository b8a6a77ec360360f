//! The PCI configuration space: 256 bytes, and which of their bits can be written.
//!
//! A modern-only virtio-gpu function (virtio 1.3, 4.1.2): MSI-X, then the vendor capabilities of 4.1.4, the shared memory one
//! last. There is no interrupt pin.
//!
//! QEMU keeps the BAR registers and the MSI-X capability's enable bits itself (`emulated_config_bits` in hw/vfio/pci.c); it reads the
//! types of the BARs from here once, takes their sizes from the region information, and still forwards each write. So both work here
//! as on a real function, for VMMs that ask.

use hostblob_protocol::virtio_gpu::SHM_ID_HOST_VISIBLE;
use zerocopy::byteorder::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::layout::{
    self, COMMON, CONFIG_SIZE, DEVICE, ISR, MSIX_BAR, MSIX_BAR_SIZE, MSIX_PENDING, MSIX_TABLE,
    NOTIFY, NOTIFY_MULTIPLIER, Structure, VECTORS, VIRTIO_BAR, VIRTIO_BAR_SIZE, WINDOW_BAR,
};

const SIZE: usize = CONFIG_SIZE as usize;

/// Offsets of the type 0 header (PCI 3.0, 6.1).
mod header {
    pub(super) const COMMAND: usize = 0x04;
    pub(super) const CACHE_LINE: usize = 0x0c;
    pub(super) const BAR0: usize = 0x10;
    pub(super) const INTERRUPT_LINE: usize = 0x3c;
}

/// Where the capabilities are, in the order of their list.
mod capability {
    pub(super) const MSIX: u8 = 0x40;
    pub(super) const COMMON: u8 = 0x50;
    pub(super) const ISR: u8 = 0x60;
    pub(super) const DEVICE: u8 = 0x70;
    pub(super) const NOTIFY: u8 = 0x80;
    pub(super) const ACCESS: u8 = 0x94;
    pub(super) const WINDOW: u8 = 0xa8;
}

/// Memory space, bus master, parity, SERR, interrupt disable.
const COMMAND_WRITABLE: u16 = 0x0002 | COMMAND_BUS_MASTER | 0x0040 | 0x0100 | 0x0400;
const COMMAND_BUS_MASTER: u16 = 0x0004;
/// Status: there is a capability list.
const STATUS_CAPABILITIES: u16 = 0x0010;
/// 64-bit, prefetchable.
const BAR_64_PREFETCH: u32 = 0xc;
/// MSI-X message control: enable and function mask.
const MSIX_ENABLE: u16 = 0x8000;
const MSIX_FUNCTION_MASK: u16 = 0x4000;

const CAP_ID_MSIX: u8 = 0x11;
const CAP_ID_VENDOR: u8 = 0x09;

/// `cfg_type` of 4.1.4.
mod cfg_type {
    pub(super) const COMMON: u8 = 1;
    pub(super) const NOTIFY: u8 = 2;
    pub(super) const ISR: u8 = 3;
    pub(super) const DEVICE: u8 = 4;
    pub(super) const ACCESS: u8 = 5;
    pub(super) const SHARED_MEMORY: u8 = 8;
}

/// The first 64 bytes.
#[derive(IntoBytes, FromBytes, Immutable, Default)]
#[repr(C)]
struct Header {
    vendor: U16,
    device: U16,
    command: U16,
    status: U16,
    revision: u8,
    class: [u8; 3],
    cache_line: u8,
    latency: u8,
    header_type: u8,
    self_test: u8,
    bars: [U32; 6],
    cardbus: U32,
    subsystem_vendor: U16,
    subsystem: U16,
    rom: U32,
    capabilities: u8,
    reserved: [u8; 7],
    interrupt_line: u8,
    interrupt_pin: u8,
    latencies: [u8; 2],
}

#[derive(IntoBytes, FromBytes, Immutable, Default)]
#[repr(C)]
struct MsixCapability {
    id: u8,
    next: u8,
    control: U16,
    table: U32,
    pending: U32,
}

/// `virtio_pci_cap`.
#[derive(IntoBytes, FromBytes, Immutable, Default)]
#[repr(C)]
struct VirtioCapability {
    vendor: u8,
    next: u8,
    length: u8,
    cfg_type: u8,
    bar: u8,
    id: u8,
    padding: [u8; 2],
    offset: U32,
    size: U32,
}

/// Offsets in `virtio_pci_cap`, of the fields that the configuration access capability lets a driver write.
mod access {
    pub(super) const BAR: usize = super::capability::ACCESS as usize + 4;
    pub(super) const OFFSET: usize = super::capability::ACCESS as usize + 8;
    pub(super) const LENGTH: usize = super::capability::ACCESS as usize + 12;
    pub(super) const DATA: usize = super::capability::ACCESS as usize + 16;
    pub(super) const END: usize = DATA + 4;
}

/// An access to a BAR through the configuration space (4.1.4.9).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BarAccess {
    pub(super) region: u32,
    pub(super) offset: u64,
    /// 1, 2 or 4.
    pub(super) length: usize,
}

/// The registers.
#[derive(Debug, Clone)]
pub(super) struct ConfigSpace {
    bytes: [u8; SIZE],
    writable: [u8; SIZE],
}

impl ConfigSpace {
    /// As after power-on. `window_size` is a power of two.
    pub(super) fn new(window_size: u64) -> Self {
        let mut space = Self {
            bytes: [0; SIZE],
            writable: [0; SIZE],
        };
        let none = U32::ZERO;
        let bars = [none, none, U32::new(BAR_64_PREFETCH), none, none, none];
        space.put(
            0,
            &Header {
                vendor: U16::new(0x1af4),
                device: U16::new(0x1050),
                status: U16::new(STATUS_CAPABILITIES),
                revision: 1,
                class: [0x00, 0x80, 0x03],
                bars,
                subsystem_vendor: U16::new(0x1af4),
                subsystem: U16::new(0x1100),
                capabilities: capability::MSIX,
                ..Default::default()
            },
        );
        space.allow(header::COMMAND, &COMMAND_WRITABLE.to_le_bytes());
        space.allow(header::CACHE_LINE, &[0xff]);
        space.allow(header::INTERRUPT_LINE, &[0xff]);
        space.allow(header::BAR0, &(!(VIRTIO_BAR_SIZE - 1)).to_le_bytes());
        space.allow(header::BAR0 + 4, &(!(MSIX_BAR_SIZE - 1)).to_le_bytes());
        space.allow(
            header::BAR0 + 8,
            &(!window_size.saturating_sub(1) & !0xf).to_le_bytes(),
        );
        space.add_msix();
        space.add_virtio(window_size);
        space
    }

    fn add_msix(&mut self) {
        self.put(
            capability::MSIX.into(),
            &MsixCapability {
                id: CAP_ID_MSIX,
                next: capability::COMMON,
                control: U16::new(VECTORS - 1),
                table: U32::new(MSIX_TABLE.offset | MSIX_BAR),
                pending: U32::new(MSIX_PENDING.offset | MSIX_BAR),
            },
        );
        let control = usize::from(capability::MSIX) + 2;
        self.allow(control, &(MSIX_ENABLE | MSIX_FUNCTION_MASK).to_le_bytes());
    }

    fn add_virtio(&mut self, window_size: u64) {
        use capability as at;
        self.put_virtio(at::COMMON, at::ISR, cfg_type::COMMON, COMMON, &[]);
        self.put_virtio(at::ISR, at::DEVICE, cfg_type::ISR, ISR, &[]);
        self.put_virtio(at::DEVICE, at::NOTIFY, cfg_type::DEVICE, DEVICE, &[]);
        let multiplier = NOTIFY_MULTIPLIER.to_le_bytes();
        self.put_virtio(
            at::NOTIFY,
            at::ACCESS,
            cfg_type::NOTIFY,
            NOTIFY,
            &multiplier,
        );
        let none = Structure {
            offset: 0,
            length: 0,
        };
        self.put_virtio(at::ACCESS, at::WINDOW, cfg_type::ACCESS, none, &[0; 4]);
        self.allow(access::BAR, &[0xff]);
        self.allow(access::OFFSET, &[0xff; access::END - access::OFFSET]);

        let [low, high] = [window_size & 0xffff_ffff, window_size >> 32]
            .map(|word| U32::new(u32::try_from(word).unwrap_or(u32::MAX)));
        let mut window = virtio_capability(0, cfg_type::SHARED_MEMORY, 24);
        window.bar = bar_number(WINDOW_BAR);
        window.id = SHM_ID_HOST_VISIBLE;
        window.size = low;
        self.put(at::WINDOW.into(), &window);
        // virtio_pci_cap64: offset_hi and length_hi follow.
        self.put(usize::from(at::WINDOW) + 16, &[U32::ZERO, high]);
    }

    fn put_virtio(&mut self, at: u8, next: u8, kind: u8, structure: Structure, extra: &[u8]) {
        let length = u8::try_from(size_of::<VirtioCapability>() + extra.len()).unwrap_or(u8::MAX);
        let mut capability = virtio_capability(next, kind, length);
        capability.bar = bar_number(VIRTIO_BAR);
        capability.offset = U32::new(structure.offset);
        capability.size = U32::new(structure.length);
        self.put(at.into(), &capability);
        self.put(usize::from(at) + size_of::<VirtioCapability>(), extra);
    }

    fn put<T: IntoBytes + Immutable + ?Sized>(&mut self, at: usize, value: &T) {
        for (to, from) in self.bytes.iter_mut().skip(at).zip(value.as_bytes()) {
            *to = *from;
        }
    }

    fn allow(&mut self, at: usize, mask: &[u8]) {
        for (to, from) in self.writable.iter_mut().skip(at).zip(mask) {
            *to = *from;
        }
    }

    /// Reads at any offset and width.
    pub(super) fn read(&self, offset: u64, data: &mut [u8]) {
        layout::read_at(&self.bytes, offset, data);
    }

    /// Writes at any offset and width what can be written.
    pub(super) fn write(&mut self, offset: u64, data: &[u8]) {
        let Ok(offset) = usize::try_from(offset) else {
            return;
        };
        let registers = self.bytes.iter_mut().zip(&self.writable).skip(offset);
        for ((register, mask), value) in registers.zip(data) {
            *register = (*register & !mask) | (value & mask);
        }
    }

    /// Whether the function may reach guest memory (PCI 3.0, 6.2.2). Linux takes this away before kexec.
    pub(super) fn bus_master(&self) -> bool {
        self.word(header::COMMAND) & COMMAND_BUS_MASTER != 0
    }

    /// Whether MSI-X is enabled.
    pub(super) fn msix_enabled(&self) -> bool {
        self.word(usize::from(capability::MSIX) + 2) & MSIX_ENABLE != 0
    }

    /// Whether an access to these bytes touches `pci_cfg_data`, which reads and writes a BAR (4.1.4.9).
    pub(super) fn touches_data(offset: u64, length: usize) -> bool {
        let end = offset.saturating_add(u64::try_from(length).unwrap_or(u64::MAX));
        offset < access::END as u64 && end > access::DATA as u64
    }

    /// The BAR access that the driver set up; none when it makes no sense (4.1.4.9.1: aligned, 1, 2 or 4 bytes).
    pub(super) fn bar_access(&self) -> Option<BarAccess> {
        let bar = *self.bytes.get(access::BAR)?;
        let (offset, length) = (self.long(access::OFFSET), self.long(access::LENGTH));
        let valid = bar <= 5 && matches!(length, 1 | 2 | 4) && offset.is_multiple_of(length);
        let length = usize::try_from(length).ok()?;
        valid.then_some(BarAccess {
            region: bar.into(),
            offset: offset.into(),
            length,
        })
    }

    /// `pci_cfg_data`.
    pub(super) fn bar_data(&self) -> [u8; 4] {
        self.long(access::DATA).to_le_bytes()
    }

    /// Sets `pci_cfg_data`.
    pub(super) fn set_bar_data(&mut self, data: [u8; 4]) {
        self.put(access::DATA, &data);
    }

    fn word(&self, at: usize) -> u16 {
        let bytes = self.bytes.get(at..).unwrap_or_default();
        U16::read_from_prefix(bytes).map_or(0, |(word, _)| word.get())
    }

    fn long(&self, at: usize) -> u32 {
        let bytes = self.bytes.get(at..).unwrap_or_default();
        U32::read_from_prefix(bytes).map_or(0, |(long, _)| long.get())
    }
}

fn virtio_capability(next: u8, cfg_type: u8, length: u8) -> VirtioCapability {
    VirtioCapability {
        vendor: CAP_ID_VENDOR,
        next,
        length,
        cfg_type,
        ..Default::default()
    }
}

fn bar_number(region: u32) -> u8 {
    // BAR regions are 0 to 5.
    u8::try_from(region).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests;
