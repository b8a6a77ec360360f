use crate::device::Device;
use crate::fake::{Fake, Script};
use crate::options::{AllocateInfo, OpenOptions, PoolOptions};

const MIB: u64 = 1 << 20;

/// A device with empty lists that all sizes up to 64 MiB come from, as those of the Vulkan driver.
fn start() -> (Fake, Device) {
    let fake = Fake::start(Script::default());
    let pool = PoolOptions {
        dedicated_above: 64 * MIB,
        ..PoolOptions::default()
    };
    let options = OpenOptions {
        pool,
        ..fake.options()
    };
    let device = Device::open(&options).unwrap();
    (fake, device)
}

#[test]
fn every_size_can_be_had_from_an_empty_list() {
    let odd = [17 * MIB - 1, 33 * MIB + 1, 36 * MIB - 64, 64 * MIB - 4095];
    for size in (1..=64).map(|mib| mib * MIB).chain(odd) {
        let (_fake, device) = start();
        for round in 0..3 {
            let memory = device.allocate(&AllocateInfo::new(size)).unwrap();
            assert!(memory.is_suballocated(), "{size}");
            memory.write(size - 1, &[1]).unwrap();
            let held = device.statistics();
            assert_eq!(
                (held.blocks, held.suballocations),
                (1, 1),
                "{size}: {round}"
            );
            let most = (size + size / 8).next_multiple_of(2 * MIB).max(16 * MIB);
            assert!(held.block_bytes <= most, "{size}: {}", held.block_bytes);
        }
    }
}
