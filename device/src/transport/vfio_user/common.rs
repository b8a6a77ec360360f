//! The common configuration structure (virtio 1.3, 4.1.4.3): status, features, queues.
//!
//! These registers belong to the thread that gets the VMM's messages, which alone reads and writes them. What the queues run on is a copy
//! that [`CommonConfig::queues`] makes once, when the driver says DRIVER_OK: nothing that is written afterwards reaches them
//! (Firecracker's CVE-2026-5747 is a queue register that did).

use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddress;
use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{Immutable, IntoBytes};

use super::interrupts::Interrupts;
use super::layout;
use crate::transport::engine::Source;
use crate::virtqueue::{F_EVENT_IDX, F_VERSION_1, QUEUE_SIZE, QUEUES};

/// Device status bits (2.1).
pub(super) mod status {
    pub(in super::super) const ACKNOWLEDGE: u8 = 1;
    pub(in super::super) const DRIVER: u8 = 2;
    pub(in super::super) const DRIVER_OK: u8 = 4;
    pub(in super::super) const FEATURES_OK: u8 = 8;
    pub(in super::super) const NEEDS_RESET: u8 = 64;
    pub(in super::super) const FAILED: u8 = 128;
}

/// What a driver may set.
const DRIVER_BITS: u8 =
    status::ACKNOWLEDGE | status::DRIVER | status::DRIVER_OK | status::FEATURES_OK | status::FAILED;

/// `virtio_pci_common_cfg`, without the fields of features that are not offered.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Image {
    device_feature_select: U32,
    device_feature: U32,
    driver_feature_select: U32,
    driver_feature: U32,
    config_msix_vector: U16,
    num_queues: U16,
    device_status: u8,
    config_generation: u8,
    queue_select: U16,
    queue_size: U16,
    queue_msix_vector: U16,
    queue_enable: U16,
    queue_notify_off: U16,
    queue_desc: U64,
    queue_driver: U64,
    queue_device: U64,
}

const _: () = assert!(size_of::<Image>() == 56);

/// What a write asks of the rest of the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    /// Nothing.
    Done,
    /// The device is to be reset (2.4).
    Reset,
    /// The driver is ready: the queues start.
    Start,
    /// Nothing: the write was not one that a driver may make.
    Refused(&'static str),
}

#[derive(Debug, Clone)]
struct QueueRegisters {
    size: u16,
    enabled: bool,
    desc: u64,
    driver: u64,
    device: u64,
}

/// The registers.
#[derive(Debug, Clone)]
pub(super) struct CommonConfig {
    offered: u64,
    device_feature_select: u32,
    driver_feature_select: u32,
    accepted: u64,
    status: u8,
    queue_select: u16,
    queues: [QueueRegisters; QUEUES],
}

impl CommonConfig {
    /// As after reset, offering these features.
    pub(super) fn new(offered: u64) -> Self {
        let queue = QueueRegisters {
            size: QUEUE_SIZE,
            enabled: false,
            desc: 0,
            driver: 0,
            device: 0,
        };
        Self {
            offered,
            device_feature_select: 0,
            driver_feature_select: 0,
            accepted: 0,
            status: 0,
            queue_select: 0,
            queues: [queue.clone(), queue],
        }
    }

    /// Back to the state after creation.
    pub(super) fn reset(&mut self) {
        *self = Self::new(self.offered);
    }

    /// Reads at any offset and width.
    pub(super) fn read(
        &self,
        interrupts: &Interrupts,
        needs_reset: bool,
        offset: u64,
        data: &mut [u8],
    ) {
        let word = |features: u64, select: u32| match select {
            0 => U32::new(u32::try_from(features & 0xffff_ffff).unwrap_or(0)),
            1 => U32::new(u32::try_from(features >> 32).unwrap_or(0)),
            _ => U32::ZERO,
        };
        // A queue that does not exist has size 0 (4.1.5.1.3).
        let absent = QueueRegisters {
            size: 0,
            enabled: false,
            desc: 0,
            driver: 0,
            device: 0,
        };
        let queue = self.selected().unwrap_or(&absent);
        let image = Image {
            device_feature_select: U32::new(self.device_feature_select),
            device_feature: word(self.offered, self.device_feature_select),
            driver_feature_select: U32::new(self.driver_feature_select),
            driver_feature: word(self.accepted, self.driver_feature_select),
            config_msix_vector: U16::new(interrupts.vector(Source::Config)),
            num_queues: U16::new(u16::try_from(QUEUES).unwrap_or(u16::MAX)),
            device_status: self.status | if needs_reset { status::NEEDS_RESET } else { 0 },
            // The configuration of a device without scanouts does not change.
            config_generation: 0,
            queue_select: U16::new(self.queue_select),
            queue_size: U16::new(queue.size),
            queue_msix_vector: U16::new(interrupts.vector(Source::Queue(self.queue_select))),
            queue_enable: U16::new(queue.enabled.into()),
            queue_notify_off: U16::new(self.selected().map_or(0, |_| self.queue_select)),
            queue_desc: U64::new(queue.desc),
            queue_driver: U64::new(queue.driver),
            queue_device: U64::new(queue.device),
        };
        layout::read_at(image.as_bytes(), offset, data);
    }

    /// Writes a field. Only whole fields can be written, 64-bit ones in halves too (4.1.3.1).
    pub(super) fn write(&mut self, interrupts: &Interrupts, offset: u64, data: &[u8]) -> Effect {
        match *data {
            [value] => self.write_byte(offset, value),
            [a, b] => self.write_word(interrupts, offset, u16::from_le_bytes([a, b])),
            [a, b, c, d] => self.write_long(offset, u32::from_le_bytes([a, b, c, d])),
            [a, b, c, d, e, f, g, h] => {
                let (low, high) = (
                    u32::from_le_bytes([a, b, c, d]),
                    u32::from_le_bytes([e, f, g, h]),
                );
                match offset {
                    32 | 40 | 48 => match self.write_long(offset, low) {
                        Effect::Done => self.write_long(offset + 4, high),
                        refused => refused,
                    },
                    _ => Effect::Refused("no field of 8 bytes is there"),
                }
            }
            _ => Effect::Refused("no field has this width"),
        }
    }

    fn write_byte(&mut self, offset: u64, value: u8) -> Effect {
        match offset {
            20 => self.write_status(value),
            _ => Effect::Refused("no field of 1 byte is there"),
        }
    }

    fn write_word(&mut self, interrupts: &Interrupts, offset: u64, value: u16) -> Effect {
        match offset {
            16 => interrupts.set_vector(Source::Config, value),
            22 => self.queue_select = value,
            24 => return self.set_queue_size(value),
            26 => interrupts.set_vector(Source::Queue(self.queue_select), value),
            28 => return self.enable_queue(value),
            _ => return Effect::Refused("no field of 2 bytes is there"),
        }
        Effect::Done
    }

    fn write_long(&mut self, offset: u64, value: u32) -> Effect {
        match offset {
            0 => self.device_feature_select = value,
            8 => self.driver_feature_select = value,
            12 => return self.accept(value),
            32 | 36 | 40 | 44 | 48 | 52 => return self.set_queue_address(offset, value),
            _ => return Effect::Refused("no field of 4 bytes is there"),
        }
        Effect::Done
    }

    fn has(&self, bit: u8) -> bool {
        self.status & bit != 0
    }

    /// 3.1.1: bits are added one after the other, and 0 resets. Bits that are set stay.
    fn write_status(&mut self, value: u8) -> Effect {
        if value == 0 {
            return Effect::Reset;
        }
        let mut added = value & DRIVER_BITS & !self.status;
        let mut effect = Effect::Done;
        if added & status::FEATURES_OK != 0 && !self.features_acceptable() {
            // The driver reads the bit back (3.1.1, step 6).
            added &= !status::FEATURES_OK;
            effect = Effect::Refused("FEATURES_OK: features that are not offered, or no VERSION_1");
        }
        if added & status::DRIVER_OK != 0 {
            if (self.status | added) & status::FEATURES_OK == 0 {
                added &= !status::DRIVER_OK;
                effect = Effect::Refused("DRIVER_OK without FEATURES_OK");
            } else {
                effect = Effect::Start;
            }
        }
        self.status |= added;
        effect
    }

    fn features_acceptable(&self) -> bool {
        self.accepted & !self.offered == 0 && self.accepted & F_VERSION_1 != 0
    }

    fn accept(&mut self, value: u32) -> Effect {
        if self.has(status::FEATURES_OK) {
            return Effect::Refused("features after FEATURES_OK");
        }
        let value = u64::from(value);
        match self.driver_feature_select {
            0 => self.accepted = self.accepted & !0xffff_ffff | value,
            1 => self.accepted = self.accepted & 0xffff_ffff | value << 32,
            _ if value == 0 => {}
            _ => return Effect::Refused("feature bits past 63"),
        }
        Effect::Done
    }

    fn selected(&self) -> Option<&QueueRegisters> {
        self.queues.get(usize::from(self.queue_select))
    }

    /// The selected queue, if its fields can be written: not once it is enabled or the driver is ready (4.1.5.1.3).
    fn open_queue(&mut self) -> Result<&mut QueueRegisters, Effect> {
        if self.has(status::DRIVER_OK) {
            return Err(Effect::Refused("a queue field after DRIVER_OK"));
        }
        match self.queues.get_mut(usize::from(self.queue_select)) {
            None => Err(Effect::Refused("a field of a queue that does not exist")),
            Some(queue) if queue.enabled => Err(Effect::Refused("a field of an enabled queue")),
            Some(queue) => Ok(queue),
        }
    }

    fn set_queue_size(&mut self, size: u16) -> Effect {
        match self.open_queue() {
            Err(refused) => refused,
            Ok(_) if !size.is_power_of_two() || size > QUEUE_SIZE => {
                Effect::Refused("a queue size that is no power of two up to the queue's maximum")
            }
            Ok(queue) => {
                queue.size = size;
                Effect::Done
            }
        }
    }

    fn set_queue_address(&mut self, offset: u64, value: u32) -> Effect {
        let queue = match self.open_queue() {
            Ok(queue) => queue,
            Err(refused) => return refused,
        };
        let address = match offset {
            32 | 36 => &mut queue.desc,
            40 | 44 => &mut queue.driver,
            _ => &mut queue.device,
        };
        let value = u64::from(value);
        *address = if offset.is_multiple_of(8) {
            *address & !0xffff_ffff | value
        } else {
            *address & 0xffff_ffff | value << 32
        };
        Effect::Done
    }

    fn enable_queue(&mut self, value: u16) -> Effect {
        if value != 1 {
            return Effect::Refused("queue_enable other than 1");
        }
        match self.open_queue() {
            Err(refused) => refused,
            Ok(queue) if queue.build(false).is_none() => {
                Effect::Refused("queue_enable with misaligned addresses")
            }
            Ok(queue) => {
                queue.enabled = true;
                Effect::Done
            }
        }
    }

    /// The queues that the driver enabled, as it set them up.
    pub(super) fn queues(&self) -> [Option<Queue>; QUEUES] {
        let event_idx = self.accepted & F_EVENT_IDX != 0;
        self.queues.each_ref().map(|queue| {
            if queue.enabled {
                queue.build(event_idx)
            } else {
                None
            }
        })
    }
}

impl QueueRegisters {
    /// None where an address is not aligned (2.7: 16, 2 and 4 bytes).
    fn build(&self, event_idx: bool) -> Option<Queue> {
        let mut queue = Queue::new(QUEUE_SIZE).ok()?;
        queue.try_set_size(self.size).ok()?;
        queue
            .try_set_desc_table_address(GuestAddress(self.desc))
            .ok()?;
        queue
            .try_set_avail_ring_address(GuestAddress(self.driver))
            .ok()?;
        queue
            .try_set_used_ring_address(GuestAddress(self.device))
            .ok()?;
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        Some(queue)
    }
}

#[cfg(test)]
mod tests;
