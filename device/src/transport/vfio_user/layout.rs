//! Where everything is: the regions of the device, and the structures in its BARs.
//!
//! Regions and interrupts are numbered as VFIO numbers them for PCI (`linux/vfio.h`): regions 0 to 5 are the BARs, 7 is the
//! configuration space.

use vfio_bindings::bindings::vfio::{
    VFIO_IRQ_INFO_EVENTFD, VFIO_PCI_BAR0_REGION_INDEX, VFIO_PCI_BAR1_REGION_INDEX,
    VFIO_PCI_BAR2_REGION_INDEX, VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_MSIX_IRQ_INDEX,
    VFIO_PCI_NUM_IRQS, VFIO_PCI_NUM_REGIONS, VFIO_REGION_INFO_FLAG_MMAP,
    VFIO_REGION_INFO_FLAG_READ, VFIO_REGION_INFO_FLAG_WRITE, vfio_region_info,
    vfio_region_sparse_mmap_area,
};
use vfio_user::{IrqInfo, ServerRegion, SparseArea};

/// Region of BAR 0: the virtio structures.
pub(super) const VIRTIO_BAR: u32 = VFIO_PCI_BAR0_REGION_INDEX;
/// Region of BAR 1: MSI-X.
pub(super) const MSIX_BAR: u32 = VFIO_PCI_BAR1_REGION_INDEX;
/// Region of BAR 2 and 3: the window.
pub(super) const WINDOW_BAR: u32 = VFIO_PCI_BAR2_REGION_INDEX;
/// Region of the configuration space.
pub(super) const CONFIG: u32 = VFIO_PCI_CONFIG_REGION_INDEX;

/// Bytes of BAR 0.
pub(super) const VIRTIO_BAR_SIZE: u32 = 0x4000;
/// Common configuration (virtio 1.3, 4.1.4.3).
pub(super) const COMMON: Structure = Structure {
    offset: 0,
    length: 56,
};
/// ISR status (4.1.4.5).
pub(super) const ISR: Structure = Structure {
    offset: 0x1000,
    length: 4,
};
/// Device configuration (4.1.4.6). Longer than what is in it: bytes past that read as zeros.
pub(super) const DEVICE: Structure = Structure {
    offset: 0x2000,
    length: 0x1000,
};
/// Notifications (4.1.4.4): queue n at n times the multiplier.
pub(super) const NOTIFY: Structure = Structure {
    offset: 0x3000,
    length: 0x1000,
};
/// `notify_off_multiplier`.
pub(super) const NOTIFY_MULTIPLIER: u32 = 4;

/// Bytes of BAR 1.
pub(super) const MSIX_BAR_SIZE: u32 = 0x1000;
/// Interrupt vectors: configuration changes and each queue.
pub(super) const VECTORS: u16 = 3;
/// The MSI-X table in BAR 1. A VMM emulates it and keeps it from the guest; here it is plain memory.
pub(super) const MSIX_TABLE: Structure = Structure {
    offset: 0,
    length: 48,
};
/// The pending bits in BAR 1.
pub(super) const MSIX_PENDING: Structure = Structure {
    offset: 0x800,
    length: 8,
};

/// Bytes of the configuration space: a conventional PCI function.
pub(super) const CONFIG_SIZE: u32 = 256;

/// A range of a BAR.
#[derive(Debug, Clone, Copy)]
pub(super) struct Structure {
    pub(super) offset: u32,
    pub(super) length: u32,
}

impl Structure {
    /// The offset within this structure, for an offset in the BAR that begins in it.
    pub(super) fn within(self, offset: u64) -> Option<u64> {
        let within = offset.checked_sub(self.offset.into())?;
        (within < u64::from(self.length)).then_some(within)
    }
}

/// Copies what `data` covers of `bytes`, from `offset` on. What lies past the end stays as it is.
pub(super) fn read_at(bytes: &[u8], offset: u64, data: &mut [u8]) {
    let from = usize::try_from(offset)
        .ok()
        .and_then(|offset| bytes.get(offset..));
    for (to, from) in data.iter_mut().zip(from.unwrap_or_default()) {
        *to = *from;
    }
}

/// Size of the region, 0 for one that is not there.
pub(super) fn region_size(region: u32, window_size: u64) -> u64 {
    match region {
        VIRTIO_BAR => VIRTIO_BAR_SIZE.into(),
        MSIX_BAR => MSIX_BAR_SIZE.into(),
        WINDOW_BAR => window_size,
        CONFIG => CONFIG_SIZE.into(),
        _ => 0,
    }
}

/// The regions as the VMM is told.
///
/// The window carries the sparse-mmap capability with its whole range: QEMU maps nothing without it, and traps each access.
pub(super) fn regions(window: std::os::fd::RawFd, window_size: u64) -> Vec<ServerRegion> {
    let argsz = u32::try_from(size_of::<vfio_region_info>()).unwrap_or(u32::MAX);
    let whole_window = vfio_region_sparse_mmap_area {
        offset: 0,
        size: window_size,
    };
    (0..VFIO_PCI_NUM_REGIONS)
        .map(|index| {
            let size = region_size(index, window_size);
            let mappable = index == WINDOW_BAR;
            let access = VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE;
            let flags = match (size, mappable) {
                (0, _) => 0,
                (_, false) => access,
                (_, true) => access | VFIO_REGION_INFO_FLAG_MMAP,
            };
            let region_info = vfio_region_info {
                argsz,
                flags,
                index,
                size,
                ..Default::default()
            };
            ServerRegion {
                region_info,
                sparse_areas: if mappable {
                    vec![SparseArea { area: whole_window }]
                } else {
                    Vec::new()
                },
                mmap_fd: mappable.then_some(window),
            }
        })
        .collect()
}

/// The interrupts as the VMM is told: MSI-X alone.
pub(super) fn interrupts() -> Vec<IrqInfo> {
    (0..VFIO_PCI_NUM_IRQS)
        .map(|index| match index {
            VFIO_PCI_MSIX_IRQ_INDEX => IrqInfo {
                index,
                flags: VFIO_IRQ_INFO_EVENTFD,
                count: VECTORS.into(),
            },
            _ => IrqInfo {
                index,
                flags: 0,
                count: 0,
            },
        })
        .collect()
}
