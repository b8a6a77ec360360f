use super::status::{ACKNOWLEDGE, DRIVER, FAILED, FEATURES_OK, NEEDS_RESET};
use super::*;
use crate::virtqueue::offered_features;

/// Two bits of a device of the tests.
const DEVICE_FEATURES: u64 = 1 << 0 | 1 << 3;

struct Registers {
    common: CommonConfig,
    interrupts: Interrupts,
}

impl Registers {
    fn new() -> Self {
        Self {
            common: CommonConfig::new(offered_features(DEVICE_FEATURES)),
            interrupts: Interrupts::new(),
        }
    }

    fn get<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut data = [0; N];
        self.common.read(&self.interrupts, false, offset, &mut data);
        data
    }

    fn u16(&self, offset: u64) -> u16 {
        u16::from_le_bytes(self.get(offset))
    }

    fn u32(&self, offset: u64) -> u32 {
        u32::from_le_bytes(self.get(offset))
    }

    fn u64(&self, offset: u64) -> u64 {
        u64::from_le_bytes(self.get(offset))
    }

    fn status(&self) -> u8 {
        u8::from_le_bytes(self.get(20))
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Effect {
        self.common.write(&self.interrupts, offset, data)
    }

    fn accept(&mut self, features: u64) {
        for (select, word) in [(0_u32, features), (1, features >> 32)] {
            self.write(8, &select.to_le_bytes());
            self.write(
                12,
                &u32::try_from(word & 0xffff_ffff).unwrap().to_le_bytes(),
            );
        }
    }

    fn offered(&mut self) -> u64 {
        let words = [0_u32, 1, 2, 3].map(|select| {
            self.write(0, &select.to_le_bytes());
            self.u32(4)
        });
        assert_eq!(words[2..], [0, 0]);
        u64::from(words[0]) | u64::from(words[1]) << 32
    }

    fn refused(&mut self, offset: u64, data: &[u8]) {
        let before: [u8; 56] = self.get(0);
        assert!(
            matches!(self.write(offset, data), Effect::Refused(_)),
            "{offset}: {data:?}"
        );
        assert_eq!(self.get::<56>(0), before, "{offset}: {data:?}");
    }

    /// To FEATURES_OK with everything that is offered.
    fn negotiate(&mut self) {
        self.write(20, &[ACKNOWLEDGE]);
        self.write(20, &[ACKNOWLEDGE | DRIVER]);
        let offered = self.offered();
        self.accept(offered);
        self.write(20, &[ACKNOWLEDGE | DRIVER | FEATURES_OK]);
        assert_eq!(self.status(), ACKNOWLEDGE | DRIVER | FEATURES_OK);
    }

    /// Queue `index` as Linux sets it up.
    fn set_up(&mut self, index: u16) -> Effect {
        let base = 0x10_0000 * u64::from(index + 1);
        self.write(22, &index.to_le_bytes());
        self.write(24, &64_u16.to_le_bytes());
        for (offset, address) in [(32, base), (40, base + 0x1000), (48, base + 0x2000)] {
            let bytes = address.to_le_bytes();
            self.write(offset, &bytes[..4]);
            self.write(offset + 4, &bytes[4..]);
        }
        self.write(28, &1_u16.to_le_bytes())
    }
}

#[test]
fn the_offered_features_are_those_with_code_behind_them() {
    let offered = Registers::new().offered();
    assert_eq!(offered, DEVICE_FEATURES | 1 << 28 | 1 << 29 | 1 << 32);
    assert_eq!(
        offered & (1 << 33 | 1 << 34 | 1 << 40),
        0,
        "ACCESS_PLATFORM, PACKED, RESET"
    );
}

#[test]
fn a_driver_gets_to_driver_ok() {
    let mut registers = Registers::new();
    registers.negotiate();
    assert_eq!(registers.set_up(0), Effect::Done);
    assert_eq!(registers.set_up(1), Effect::Done);
    assert_eq!(registers.write(20, &[15]), Effect::Start);
    assert_eq!(registers.status(), 15);
    let [control, cursor] = registers.common.queues().map(Option::unwrap);
    assert_eq!((control.size(), control.desc_table()), (64, 0x10_0000));
    assert_eq!(
        (cursor.avail_ring(), cursor.used_ring()),
        (0x20_1000, 0x20_2000)
    );
    assert!(control.ready() && control.event_idx_enabled());
}

#[test]
fn features_ok_is_refused_with_features_that_are_not_offered() {
    for features in [
        0,
        DEVICE_FEATURES,
        F_VERSION_1 | 1 << 33,
        F_VERSION_1 | 1 << 5,
        u64::MAX,
    ] {
        let mut registers = Registers::new();
        registers.write(20, &[3]);
        registers.accept(features);
        assert!(matches!(registers.write(20, &[11]), Effect::Refused(_)));
        assert_eq!(registers.status(), 3);
        // Corrected, it is taken.
        registers.accept(F_VERSION_1);
        assert_eq!(registers.write(20, &[11]), Effect::Done);
        assert_eq!(registers.status(), 11);
    }
}

#[test]
fn features_are_frozen_after_features_ok() {
    let mut registers = Registers::new();
    registers.negotiate();
    registers.write(8, &0_u32.to_le_bytes());
    registers.refused(12, &[0; 4]);
}

#[test]
fn driver_ok_needs_features_ok() {
    let mut registers = Registers::new();
    assert!(matches!(registers.write(20, &[7]), Effect::Refused(_)));
    assert_eq!(registers.status(), 3);
    let mut registers = Registers::new();
    registers.accept(F_VERSION_1);
    assert_eq!(registers.write(20, &[15]), Effect::Start, "all at once");
}

#[test]
fn status_bits_stay_and_start_comes_once() {
    let mut registers = Registers::new();
    registers.negotiate();
    assert_eq!(registers.write(20, &[15]), Effect::Start);
    assert_eq!(registers.write(20, &[15]), Effect::Done);
    assert_eq!(registers.write(20, &[1]), Effect::Done);
    assert_eq!(registers.write(20, &[FAILED]), Effect::Done);
    assert_eq!(registers.status(), 15 | FAILED);
    registers.write(20, &[0xff]);
    assert_eq!(
        registers.status(),
        15 | FAILED,
        "NEEDS_RESET is the device's"
    );
    let mut data = [0];
    registers
        .common
        .read(&registers.interrupts, true, 20, &mut data);
    assert_eq!(data[0], 15 | FAILED | NEEDS_RESET);
}

#[test]
fn zero_resets() {
    let mut registers = Registers::new();
    let fresh: [u8; 56] = registers.get(0);
    registers.negotiate();
    registers.set_up(1);
    registers.write(20, &[15]);
    assert_eq!(registers.write(20, &[0]), Effect::Reset);
    registers.common.reset();
    registers.interrupts.reset();
    assert_eq!(registers.get::<56>(0), fresh);
    assert!(registers.common.queues().iter().all(Option::is_none));
}

#[test]
fn an_enabled_queue_is_frozen_and_the_other_is_not() {
    let mut registers = Registers::new();
    registers.negotiate();
    registers.set_up(0);
    for (offset, data) in [(24, &[32, 0][..]), (28, &[1, 0]), (28, &[0, 0])] {
        registers.refused(offset, data);
    }
    for offset in [32, 36, 40, 44, 48, 52] {
        registers.refused(offset, &[0x10; 4]);
    }
    registers.refused(32, &[0x10; 8]);
    assert_eq!(registers.set_up(1), Effect::Done);
}

#[test]
fn nothing_can_be_set_up_after_driver_ok() {
    let mut registers = Registers::new();
    registers.negotiate();
    registers.set_up(0);
    registers.write(20, &[15]);
    registers.write(22, &[1, 0]);
    registers.refused(24, &[32, 0]);
    registers.refused(32, &[0; 4]);
    registers.refused(28, &[1, 0]);
    assert!(registers.common.queues()[1].is_none());
}

#[test]
fn queue_sizes_are_powers_of_two_up_to_the_maximum() {
    let mut registers = Registers::new();
    assert_eq!(registers.u16(24), QUEUE_SIZE);
    for size in [0_u16, 3, 100, 255, 257, 512, 0x8000, 0xffff] {
        registers.refused(24, &size.to_le_bytes());
    }
    for size in [1_u16, 2, 128, 256] {
        assert_eq!(registers.write(24, &size.to_le_bytes()), Effect::Done);
        assert_eq!(registers.u16(24), size);
    }
}

#[test]
fn misaligned_queues_are_not_enabled() {
    for (offset, address) in [(32, 8_u32), (40, 1), (48, 2)] {
        let mut registers = Registers::new();
        registers.write(offset, &address.to_le_bytes());
        registers.refused(28, &[1, 0]);
        assert_eq!(registers.u16(28), 0);
    }
}

#[test]
fn a_queue_that_does_not_exist_reads_as_absent_and_takes_nothing() {
    for index in [2_u16, 3, 255, 0xffff] {
        let mut registers = Registers::new();
        registers.write(22, &index.to_le_bytes());
        assert_eq!(registers.u16(22), index);
        assert_eq!(
            (registers.u16(24), registers.u16(26), registers.u16(28)),
            (0, 0xffff, 0)
        );
        registers.refused(24, &[16, 0]);
        registers.refused(28, &[1, 0]);
        registers.refused(40, &[0; 8]);
        assert_eq!(registers.write(26, &[1, 0]), Effect::Done);
        assert_eq!(registers.u16(26), 0xffff);
    }
}

#[test]
fn addresses_go_in_halves_or_whole() {
    let mut registers = Registers::new();
    registers.write(36, &0x1234_5678_u32.to_le_bytes());
    registers.write(32, &0x9abc_def0_u32.to_le_bytes());
    registers.write(48, &0x0fed_cba9_8765_4320_u64.to_le_bytes());
    assert_eq!(registers.u64(32), 0x1234_5678_9abc_def0);
    assert_eq!(registers.u64(48), 0x0fed_cba9_8765_4320);
}

#[test]
fn vectors_that_do_not_exist_read_back_as_none() {
    let mut registers = Registers::new();
    for (vector, expected) in [(0_u16, 0_u16), (2, 2), (3, 0xffff), (0xffff, 0xffff)] {
        for offset in [16, 26] {
            registers.write(offset, &vector.to_le_bytes());
            assert_eq!(registers.u16(offset), expected);
        }
    }
}

#[test]
fn each_queue_notifies_at_its_own_offset() {
    let mut registers = Registers::new();
    assert_eq!(registers.u16(18), 2);
    for index in [0_u16, 1] {
        registers.write(22, &index.to_le_bytes());
        assert_eq!(registers.u16(30), index);
    }
}

#[test]
fn writes_that_are_not_a_field_change_nothing() {
    let mut registers = Registers::new();
    registers.negotiate();
    for offset in 0..64 {
        for width in [0, 3, 5, 6, 7, 9, 16, 56] {
            registers.refused(offset, &vec![0xff; width]);
        }
    }
    // Read-only fields, and parts of fields.
    for (offset, width) in [
        (4, 4),
        (18, 2),
        (21, 1),
        (30, 2),
        (20, 2),
        (20, 4),
        (33, 1),
        (22, 1),
        (34, 4),
    ] {
        registers.refused(offset, &vec![0xff; width]);
    }
}
