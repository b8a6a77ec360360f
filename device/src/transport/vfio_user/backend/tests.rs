use std::os::fd::AsFd;

use proptest::prelude::*;
use vfio_bindings::bindings::vfio::{VFIO_IRQ_SET_ACTION_MASK, VFIO_PCI_NUM_REGIONS};

use super::super::fake::{Control, FakeDevice, WINDOW};
use super::super::interrupts::Interrupts;
use super::*;
use crate::transport::Wake;

fn backend() -> (Backend<FakeDevice>, Control) {
    let wake = Wake::new().unwrap();
    let (device, control) = FakeDevice::new(wake.waker());
    let window = device.window_fd().try_clone_to_owned().unwrap();
    (
        Backend::new(
            Arc::new(Engine::new(device, wake, Interrupts::new())),
            window,
        ),
        control,
    )
}

fn get<const N: usize>(backend: &mut Backend<FakeDevice>, region: u32, offset: u64) -> [u8; N] {
    let mut data = [0xee; N];
    backend.region_read(region, offset, &mut data).unwrap();
    data
}

#[test]
fn device_configuration_is_the_devices() {
    let (mut backend, control) = backend();
    assert_eq!(get(&mut backend, VIRTIO_BAR, 0x200c), [1, 0, 0, 0]);
    assert_eq!(get(&mut backend, VIRTIO_BAR, 0x2017), [0; 4]);
    assert_eq!(get(&mut backend, VIRTIO_BAR, 0x2ffc), [0; 4]);
    backend
        .region_write(VIRTIO_BAR, 0x2004, &[1, 0, 0, 0])
        .unwrap();
    assert_eq!(control.state.lock().config_writes, [(4, vec![1, 0, 0, 0])]);
}

#[test]
fn the_configuration_is_read_while_a_command_is_executed() {
    let (mut backend, _control) = backend();
    let engine = Arc::clone(&backend.engine);
    let read = engine.with_device(|_| get(&mut backend, VIRTIO_BAR, 0x200c));
    assert_eq!(read, [1, 0, 0, 0]);
}

#[test]
fn the_isr_byte_is_read_and_cleared() {
    let (mut backend, _control) = backend();
    backend
        .engine
        .interrupts
        .raise(crate::transport::engine::Source::Queue(0));
    assert_eq!(get(&mut backend, VIRTIO_BAR, 0x1001), [0]);
    assert_eq!(get(&mut backend, VIRTIO_BAR, 0x1000), [1, 0, 0, 0]);
    assert_eq!(get(&mut backend, VIRTIO_BAR, 0x1000), [0]);
}

#[test]
fn the_window_can_be_read_and_written_without_mapping_it() {
    let (mut backend, _control) = backend();
    backend
        .region_write(WINDOW_BAR, WINDOW - 4, b"last")
        .unwrap();
    assert_eq!(&get(&mut backend, WINDOW_BAR, WINDOW - 5), b"\0last");
    let mut in_file = [0; 4];
    rustix::io::pread(&backend.window, &mut in_file, WINDOW - 4).unwrap();
    assert_eq!(&in_file, b"last");
}

#[test]
fn the_msix_table_is_memory_and_the_pending_bits_are_not() {
    let (mut backend, _control) = backend();
    backend.region_write(MSIX_BAR, 0, &[0xff; 4096]).unwrap();
    assert_eq!(
        get(&mut backend, MSIX_BAR, 44),
        [0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]
    );
    assert_eq!(get(&mut backend, MSIX_BAR, 0x800), [0; 8]);
    backend
        .set_irqs(
            2,
            VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER,
            1,
            2,
            vec![],
        )
        .unwrap();
    assert_eq!(get(&mut backend, MSIX_BAR, 0x800), [6]);
    assert_eq!(get(&mut backend, MSIX_BAR, 0x7fe), [0; 4]);
}

#[test]
fn accesses_past_a_region_read_zeros_and_write_nothing() {
    let (mut backend, _control) = backend();
    let sizes = [
        (0, 0x4000),
        (1, 0x1000),
        (2, WINDOW),
        (3, 0),
        (8, 0),
        (9, 0),
        (u32::MAX, 0),
    ];
    for (region, size) in sizes {
        for (offset, length) in [
            (size, 1),
            (size.saturating_sub(1), 2),
            (u64::MAX, 1),
            (u64::MAX - 1, 4),
        ] {
            backend
                .region_write(region, offset, &vec![0xff; length])
                .unwrap();
            let mut data = vec![0xee; length];
            backend.region_read(region, offset, &mut data).unwrap();
            assert_eq!(data, vec![0; length], "{region} {offset:#x}");
        }
    }
    // A guest may look for extended capabilities.
    for offset in [256, 4092, u64::MAX] {
        backend.region_write(CONFIG, offset, &[0xff; 4]).unwrap();
        assert_eq!(get(&mut backend, CONFIG, offset), [0; 4]);
    }
    assert_eq!(get(&mut backend, CONFIG, 254), [0; 4]);
    let too_long = MAX_ACCESS + 1;
    assert!(
        backend
            .region_read(CONFIG, 0, &mut vec![0; too_long])
            .is_err()
    );
    assert!(backend.region_write(CONFIG, 0, &vec![0; too_long]).is_err());
}

#[test]
fn a_bar_is_reached_through_the_configuration_space() {
    let (mut backend, _control) = backend();
    let at = 0x94;
    let aim = |backend: &mut Backend<FakeDevice>, bar: u8, offset: u32, length: u32| {
        backend.region_write(CONFIG, at + 4, &[bar]).unwrap();
        backend
            .region_write(CONFIG, at + 8, &offset.to_le_bytes())
            .unwrap();
        backend
            .region_write(CONFIG, at + 12, &length.to_le_bytes())
            .unwrap();
    };
    // device_status, then num_queues.
    aim(&mut backend, 0, 20, 1);
    backend.region_write(CONFIG, at + 16, &[3]).unwrap();
    assert_eq!(get(&mut backend, VIRTIO_BAR, 20), [3]);
    assert_eq!(get(&mut backend, CONFIG, at + 16), [3]);
    aim(&mut backend, 0, 18, 2);
    assert_eq!(get(&mut backend, CONFIG, at + 16), [2, 0, 0, 0]);
    aim(&mut backend, 2, 0x1000, 4);
    backend.region_write(CONFIG, at + 16, b"wind").unwrap();
    assert_eq!(&get(&mut backend, WINDOW_BAR, 0x1000), b"wind");
    // Outside: nothing happens.
    aim(&mut backend, 0, 0x4000, 4);
    backend.region_write(CONFIG, at + 16, &[9; 4]).unwrap();
    aim(&mut backend, 7, 0, 4);
    assert_eq!(get(&mut backend, CONFIG, at + 16), [9; 4]);
}

#[test]
fn reset_brings_everything_back_but_the_vmms_memory_and_triggers() {
    let (mut backend, control) = backend();
    let fresh: ([u8; 256], [u8; 56]) = (
        get(&mut backend, CONFIG, 0),
        get(&mut backend, VIRTIO_BAR, 0),
    );
    backend.region_write(CONFIG, 4, &[6, 0]).unwrap();
    backend.region_write(CONFIG, 0x10, &[0xff; 16]).unwrap();
    backend.region_write(VIRTIO_BAR, 20, &[3]).unwrap();
    backend.region_write(VIRTIO_BAR, 16, &[1, 0]).unwrap();
    ServerBackend::reset(&mut backend).unwrap();
    assert_eq!(
        (
            get(&mut backend, CONFIG, 0),
            get(&mut backend, VIRTIO_BAR, 0)
        ),
        fresh
    );
    assert_eq!(control.state.lock().resets, 1);
}

#[test]
fn interrupts_are_set_and_taken_away() {
    let (mut backend, _control) = backend();
    let event = || rustix::event::eventfd(0, rustix::event::EventfdFlags::NONBLOCK).unwrap();
    let trigger = VFIO_IRQ_SET_ACTION_TRIGGER;
    let fd = event();
    let file = || vec![File::from(fd.try_clone().unwrap())];
    backend
        .set_irqs(2, VFIO_IRQ_SET_DATA_EVENTFD | trigger, 2, 1, file())
        .unwrap();
    backend
        .set_irqs(2, VFIO_IRQ_SET_DATA_NONE | trigger, 2, 1, vec![])
        .unwrap();
    assert!(rustix::io::read(fd.as_fd(), &mut [0; 8]).is_ok());
    backend
        .set_irqs(2, VFIO_IRQ_SET_DATA_EVENTFD | trigger, 0, 3, vec![])
        .unwrap();
    backend
        .set_irqs(2, VFIO_IRQ_SET_DATA_NONE | trigger, 2, 1, vec![])
        .unwrap();
    assert!(rustix::io::read(fd.as_fd(), &mut [0; 8]).is_err());
    // All off, for each kind of interrupt.
    for index in 0..5 {
        backend
            .set_irqs(index, VFIO_IRQ_SET_DATA_NONE | trigger, 0, 0, vec![])
            .unwrap();
    }
    assert_eq!(get(&mut backend, MSIX_BAR, 0x800), [0; 8]);
    let refused = [
        (2, VFIO_IRQ_SET_DATA_EVENTFD | trigger, 3, 1, file()),
        (2, VFIO_IRQ_SET_DATA_EVENTFD | trigger, 0, 2, file()),
        (2, VFIO_IRQ_SET_DATA_EVENTFD | trigger, u32::MAX, 1, file()),
        (2, VFIO_IRQ_SET_DATA_NONE | trigger, 1, 3, vec![]),
        (
            2,
            VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_MASK,
            0,
            1,
            vec![],
        ),
        (2, trigger, 0, 1, vec![]),
        (0, VFIO_IRQ_SET_DATA_EVENTFD | trigger, 0, 1, file()),
        (5, VFIO_IRQ_SET_DATA_NONE | trigger, 0, 0, vec![]),
    ];
    for (index, flags, start, count, fds) in refused {
        assert!(
            backend.set_irqs(index, flags, start, count, fds).is_err(),
            "{index} {start} {count}"
        );
    }
}

#[test]
fn regions_are_described_as_they_are() {
    let regions = layout::regions(5, WINDOW);
    let sizes: Vec<u64> = regions
        .iter()
        .map(|region| region.region_info.size)
        .collect();
    assert_eq!(sizes, [0x4000, 0x1000, WINDOW, 0, 0, 0, 0, 256, 0]);
    let flags: Vec<u32> = regions
        .iter()
        .map(|region| region.region_info.flags)
        .collect();
    assert_eq!(flags, [3, 3, 7, 0, 0, 0, 0, 3, 0]);
    let window = &regions[2];
    assert_eq!((window.mmap_fd, window.sparse_areas.len()), (Some(5), 1));
    assert_eq!(
        (
            window.sparse_areas[0].area.offset,
            window.sparse_areas[0].area.size
        ),
        (0, WINDOW)
    );
    assert!(
        regions
            .iter()
            .filter(|region| region.mmap_fd.is_some())
            .count()
            == 1
    );
    let counts: Vec<u32> = layout::interrupts().iter().map(|irq| irq.count).collect();
    assert_eq!(counts, [0, 0, 3, 0, 0]);
}

#[derive(Debug, Clone)]
enum Message {
    Read(u32, u64, usize),
    Write(u32, u64, Vec<u8>),
    Map(u64, u64, u64, bool),
    Unmap(u64, u64, u32),
    Irqs(u32, u32, u32, u32, usize),
    Reset,
}

fn message() -> impl Strategy<Value = Message> {
    // Near the structures, near the ends, and anywhere.
    let offset = prop_oneof![
        0_u64..64,
        0x90_u64..0x101,
        (0_u64..4).prop_map(|n| n * 0x1000),
        0x2ff0_u64..0x4008,
        any::<u64>(),
    ];
    let width = prop_oneof![Just(1_usize), Just(2), Just(4), Just(8), 0_usize..40];
    let region = prop_oneof![4 => 0_u32..VFIO_PCI_NUM_REGIONS, 1 => any::<u32>()];
    let data = width
        .clone()
        .prop_flat_map(|width| proptest::collection::vec(any::<u8>(), width));
    let pages = |range| prop_oneof![8 => (0_u64..range).prop_map(|n| n * 4096), 1 => any::<u64>()];
    prop_oneof![
        4 => (region.clone(), offset.clone(), width).prop_map(|(r, o, w)| Message::Read(r, o, w)),
        8 => (region, offset, data).prop_map(|(r, o, d)| Message::Write(r, o, d)),
        1 => (pages(8), pages(8), pages(4), any::<bool>()).prop_map(|(a, s, o, f)| Message::Map(a, s, o, f)),
        1 => (pages(8), pages(8), 0_u32..8).prop_map(|(a, s, f)| Message::Unmap(a, s, f)),
        1 => (0_u32..6, 0_u32..64, 0_u32..5, 0_u32..5, 0_usize..4).prop_map(|(i, f, s, c, n)| Message::Irqs(i, f, s, c, n)),
        1 => Just(Message::Reset),
    ]
}

proptest! {
    /// Any messages in any order: no panic, and the device still describes itself.
    #[test]
    fn any_messages_are_survived(messages in proptest::collection::vec(message(), 1..60)) {
        let (mut backend, _control) = backend();
        let engine = Arc::clone(&backend.engine);
        let queues = std::thread::spawn(move || engine.run());
        let memory = rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&memory, 6 * 4096).unwrap();
        let file = || File::from(memory.try_clone().unwrap());
        for message in messages {
            let _ = match message {
                Message::Read(region, offset, width) => {
                    backend.region_read(region, offset, &mut vec![0xee; width])
                }
                Message::Write(region, offset, data) => backend.region_write(region, offset, &data),
                Message::Map(address, size, offset, with_file) => {
                    let file = with_file.then(file);
                    backend.dma_map(DmaMapFlags::READ_WRITE, offset, address, size, file)
                }
                Message::Unmap(address, size, flags) => {
                    backend.dma_unmap(DmaUnmapFlags::from_bits_retain(flags), address, size)
                }
                Message::Irqs(index, flags, start, count, fds) => {
                    backend.set_irqs(index, flags, start, count, (0..fds).map(|_| file()).collect())
                }
                Message::Reset => ServerBackend::reset(&mut backend),
            };
        }
        prop_assert_eq!(get(&mut backend, CONFIG, 0), [0xf4, 0x1a, 0x50, 0x10]);
        prop_assert_eq!(get(&mut backend, VIRTIO_BAR, 18), [2, 0]);
        backend.engine.stop();
        queues.join().unwrap();
    }
}
