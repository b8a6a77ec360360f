use proptest::prelude::*;

use super::*;

const WINDOW: u64 = 8 << 30;

fn space() -> ConfigSpace {
    ConfigSpace::new(WINDOW)
}

impl ConfigSpace {
    fn get<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.read(offset, &mut bytes);
        bytes
    }

    fn u8(&self, offset: u64) -> u8 {
        u8::from_le_bytes(self.get(offset))
    }

    fn u16(&self, offset: u64) -> u16 {
        u16::from_le_bytes(self.get(offset))
    }

    fn u32(&self, offset: u64) -> u32 {
        u32::from_le_bytes(self.get(offset))
    }

    /// (id, offset) of each capability, along the list.
    fn capabilities(&self) -> Vec<(u8, u64)> {
        let mut found = Vec::new();
        let mut at = u64::from(self.u8(0x34));
        while at != 0 {
            found.push((self.u8(at), at));
            assert!(found.len() < 48, "a loop");
            at = self.u8(at + 1).into();
        }
        found
    }

    /// As Linux's `virtio_pci_find_capability`: the first vendor capability of the type in a BAR below 6.
    fn virtio(&self, kind: u8) -> u64 {
        let vendor =
            |(id, at): &(u8, u64)| *id == 9 && self.u8(at + 3) == kind && self.u8(at + 4) < 6;
        self.capabilities().into_iter().find(vendor).unwrap().1
    }
}

#[test]
fn the_header_is_a_modern_virtio_gpu() {
    let space = space();
    assert_eq!((space.u16(0x00), space.u16(0x02)), (0x1af4, 0x1050));
    assert_eq!(space.u16(0x06), 0x0010);
    assert_eq!(space.u8(0x08), 1);
    assert_eq!(space.get(0x09), [0x00, 0x80, 0x03]);
    assert_eq!(space.u8(0x0e), 0);
    assert_eq!((space.u16(0x2c), space.u16(0x2e)), (0x1af4, 0x1100));
    assert_eq!(space.u8(0x3d), 0, "no interrupt pin");
}

#[test]
fn the_capabilities_are_in_the_order_that_was_tried() {
    let space = space();
    let list = space.capabilities();
    assert_eq!(
        list.iter().map(|(id, _)| *id).collect::<Vec<_>>(),
        [0x11, 9, 9, 9, 9, 9, 9]
    );
    let kinds: Vec<u8> = list
        .iter()
        .skip(1)
        .map(|(_, at)| space.u8(at + 3))
        .collect();
    assert_eq!(kinds, [1, 3, 4, 2, 5, 8]);
    // None reaches into the next, and QEMU takes each to reach to the next.
    for pair in list.windows(2) {
        let length = if pair[0].0 == 9 {
            space.u8(pair[0].1 + 2).into()
        } else {
            12
        };
        assert!(pair[0].1.is_multiple_of(4) && pair[0].1 + length <= pair[1].1);
    }
}

#[test]
fn the_virtio_structures_are_where_linux_looks() {
    let space = space();
    // (type, capability length, offset, size)
    let structures = [
        (1, 16, 0, 56),
        (3, 16, 0x1000, 4),
        (4, 16, 0x2000, 0x1000),
        (2, 20, 0x3000, 0x1000),
    ];
    for (kind, length, offset, size) in structures {
        let at = space.virtio(kind);
        assert_eq!((space.u8(at + 2), space.u8(at + 4)), (length, 0));
        assert_eq!((space.u32(at + 8), space.u32(at + 12)), (offset, size));
        assert!(offset + size <= VIRTIO_BAR_SIZE);
    }
    assert_eq!(space.u32(space.virtio(2) + 16), 4, "notify_off_multiplier");
}

#[test]
fn the_window_is_a_64_bit_shared_memory_region_with_id_1() {
    for window in [2 << 20, 1 << 30, WINDOW, 1 << 40] {
        let space = ConfigSpace::new(window);
        let at = space.virtio(8);
        assert_eq!(
            (space.u8(at + 2), space.u8(at + 4), space.u8(at + 5)),
            (24, 2, 1)
        );
        let offset = u64::from(space.u32(at + 8)) | u64::from(space.u32(at + 16)) << 32;
        let size = u64::from(space.u32(at + 12)) | u64::from(space.u32(at + 20)) << 32;
        assert_eq!((offset, size), (0, window));
        assert_eq!(space.capabilities().last().unwrap().1, at);
    }
}

#[test]
fn msix_has_three_vectors_and_its_tables_fit_their_bar() {
    let space = space();
    let at = space.capabilities()[0].1;
    assert_eq!(space.u16(at + 2) & 0x7ff, 2);
    assert_eq!((space.u32(at + 4), space.u32(at + 8)), (1, 0x801));
}

#[test]
fn bars_tell_their_sizes() {
    let mut space = space();
    for bar in 0..6 {
        space.write(0x10 + 4 * bar, &[0xff; 4]);
    }
    let bars: Vec<u32> = (0..6).map(|bar| space.u32(0x10 + 4 * bar)).collect();
    let window = u64::from(bars[2] & !0xf) | u64::from(bars[3]) << 32;
    assert_eq!((!bars[0]).wrapping_add(1), VIRTIO_BAR_SIZE);
    assert_eq!((!bars[1]).wrapping_add(1), MSIX_BAR_SIZE);
    assert_eq!((!window).wrapping_add(1), WINDOW);
    assert_eq!((bars[0] & 0xf, bars[1] & 0xf, bars[2] & 0xf), (0, 0, 0xc));
    assert_eq!(bars[4..], [0, 0]);
    space.write(0x30, &[0xff; 4]);
    assert_eq!(space.u32(0x30), 0, "no ROM");

    space.write(0x10, &0xfebd_1234_u32.to_le_bytes());
    assert_eq!(space.u32(0x10), 0xfebd_0000);
    space.write(0x18, &0x00_0000_0008_0000_0000_u64.to_le_bytes());
    assert_eq!((space.u32(0x18), space.u32(0x1c)), (0xc, 8));
}

#[test]
fn the_command_and_msix_registers_take_their_bits() {
    let mut space = space();
    assert!(!space.bus_master() && !space.msix_enabled());
    space.write(0x04, &[0xff, 0xff]);
    assert_eq!(space.u16(0x04), 0x0546);
    assert!(space.bus_master());
    space.write(0x42, &[0xff, 0xff]);
    assert_eq!(space.u16(0x42), 0xc002);
    assert!(space.msix_enabled());
    space.write(0x43, &[0]);
    assert!(!space.msix_enabled());
}

#[test]
fn a_bar_access_makes_sense_or_is_none() {
    let mut space = space();
    let at = space.virtio(5);
    let set = |space: &mut ConfigSpace, bar: u8, offset: u32, length: u32| {
        space.write(at + 4, &[bar]);
        space.write(at + 8, &offset.to_le_bytes());
        space.write(at + 12, &length.to_le_bytes());
        space.bar_access()
    };
    let expected = BarAccess {
        region: 2,
        offset: 0xffff_fffc,
        length: 4,
    };
    assert_eq!(set(&mut space, 2, 0xffff_fffc, 4), Some(expected));
    assert_eq!(set(&mut space, 0, 21, 1).unwrap().offset, 21);
    for (bar, offset, length) in [
        (6, 0, 4),
        (255, 0, 4),
        (0, 1, 2),
        (0, 2, 4),
        (0, 0, 0),
        (0, 0, 3),
        (0, 0, 8),
        (0, 0, u32::MAX),
    ] {
        assert_eq!(set(&mut space, bar, offset, length), None);
    }
    assert!(ConfigSpace::touches_data(at + 16, 1) && ConfigSpace::touches_data(0, 256));
    assert!(!ConfigSpace::touches_data(at + 12, 4) && !ConfigSpace::touches_data(at + 20, 4));
}

proptest! {
    /// What cannot be written keeps its value, whatever is written anywhere.
    #[test]
    fn writes_change_only_what_can_be_written(
        writes in proptest::collection::vec((0_u64..300, proptest::collection::vec(any::<u8>(), 0..10)), 0..20),
        far: u64,
    ) {
        let fresh = space();
        let mut space = space();
        for (offset, data) in &writes {
            space.write(*offset, data);
        }
        space.write(far.max(256), &[0xff; 8]);
        for ((now, before), mask) in space.bytes.iter().zip(fresh.bytes).zip(fresh.writable) {
            prop_assert_eq!(now & !mask, before & !mask);
        }
        space.bar_access();
        let mut data = [0xaa; 8];
        space.read(far.max(256), &mut data);
        prop_assert_eq!(data, [0xaa; 8]);
    }
}
