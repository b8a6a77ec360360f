use std::os::fd::OwnedFd;

use proptest::prelude::*;
use rustix::fs::MemfdFlags;
use vm_memory::{Bytes, GuestMemoryBackend};

use super::*;

const PAGE: u64 = 4096;

fn memfd(pages: u64) -> File {
    let fd: OwnedFd = rustix::fs::memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
    let file = File::from(fd);
    file.set_len(pages * PAGE).unwrap();
    file
}

fn map(table: &mut DmaTable, address: u64, pages: u64) -> Result<(), DmaError> {
    table.map(address, pages * PAGE, Some((memfd(pages), 0)), true)
}

/// (address, size) of what the queues would see.
fn mapped(table: &DmaTable) -> Vec<(u64, u64)> {
    use vm_memory::GuestMemoryRegion;
    table
        .memory()
        .iter()
        .map(|region| (region.start_addr().0, region.len()))
        .collect()
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn guest_memory_is_the_files_bytes_from_the_offset() {
    let mut table = DmaTable::default();
    let file = memfd(4);
    rustix::io::pwrite(&file, b"here", PAGE + 8).unwrap();
    table
        .map(
            0x10_0000,
            2 * PAGE,
            Some((file.try_clone().unwrap(), PAGE)),
            true,
        )
        .unwrap();
    let memory = table.memory();
    assert_eq!(
        &memory.read_obj::<[u8; 4]>(GuestAddress(0x10_0008)).unwrap(),
        b"here"
    );
    memory
        .write_obj(*b"there", GuestAddress(0x10_1000))
        .unwrap();
    let mut bytes = [0; 5];
    rustix::io::pread(&file, &mut bytes, 2 * PAGE).unwrap();
    assert_eq!(&bytes, b"there");
    assert!(memory.read_obj::<u8>(GuestAddress(0x10_2000)).is_err());
}

#[test]
fn pieces_that_touch_are_one_memory() {
    let mut table = DmaTable::default();
    map(&mut table, 0x2000, 1).unwrap();
    map(&mut table, 0x1000, 1).unwrap();
    let memory = table.memory();
    assert!(memory.check_range(GuestAddress(0x1000), 0x2000));
    memory.write_slice(b"across", GuestAddress(0x1ffd)).unwrap();
    assert_eq!(
        &memory.read_obj::<[u8; 6]>(GuestAddress(0x1ffd)).unwrap(),
        b"across"
    );
    assert!(!memory.check_range(GuestAddress(0x1000), 0x2001));
}

#[test]
fn ranges_that_make_no_sense_are_refused() {
    let mut table = DmaTable::default();
    for (address, size) in [
        (0, 0),
        (0x1000, 0),
        (u64::MAX, 1),
        (u64::MAX - 0xfff, 0x1000),
        (0x1000, u64::MAX),
    ] {
        let result = table.map(address, size, Some((memfd(1), 0)), true);
        assert!(
            matches!(result, Err(DmaError::Range { .. })),
            "{address:#x} {size:#x}"
        );
        assert!(matches!(
            table.unmap(address, size),
            Err(DmaError::Range { .. })
        ));
    }
    assert_eq!(mapped(&table), []);
}

#[test]
fn overlaps_are_refused_and_change_nothing() {
    let mut table = DmaTable::default();
    map(&mut table, 0x4000, 4).unwrap();
    for (address, pages) in [
        (0x4000, 4),
        (0x4000, 1),
        (0x7000, 1),
        (0x3000, 2),
        (0x7000, 9),
        (0x1000, 64),
        (0x5000, 1),
    ] {
        assert!(matches!(
            map(&mut table, address, pages),
            Err(DmaError::Overlap { .. })
        ));
    }
    // What is only noted takes its place too.
    table.map(0x1000, PAGE, None, true).unwrap();
    assert!(matches!(
        map(&mut table, 0x1000, 1),
        Err(DmaError::Overlap { .. })
    ));
    assert_eq!(mapped(&table), [(0x4000, 0x4000)]);
    map(&mut table, 0x8000, 1).unwrap();
    map(&mut table, 0x2000, 2).unwrap();
    assert_eq!(
        mapped(&table),
        [(0x2000, 0x2000), (0x4000, 0x4000), (0x8000, 0x1000)]
    );
}

#[test]
fn what_the_file_does_not_have_is_refused() {
    let mut table = DmaTable::default();
    for (offset, size) in [
        (0, 3 * PAGE),
        (PAGE, 2 * PAGE),
        (2 * PAGE, PAGE),
        (u64::MAX - PAGE, PAGE),
        (u64::MAX, 2),
    ] {
        let result = table.map(0x1000, size, Some((memfd(2), offset)), true);
        assert!(
            matches!(result, Err(DmaError::PastTheEnd { .. })),
            "{offset:#x} {size:#x}"
        );
    }
    let result = table.map(0x1000, PAGE, Some((memfd(4), 0x800)), true);
    assert!(
        matches!(result, Err(DmaError::Map(_))),
        "an offset within a page"
    );
    assert_eq!(mapped(&table), []);
}

#[test]
fn descriptors_of_another_kind_are_refused() {
    let mut table = DmaTable::default();
    let (reader, _writer) = rustix::pipe::pipe().unwrap();
    let event = rustix::event::eventfd(0, rustix::event::EventfdFlags::empty()).unwrap();
    let folder = File::open("/").unwrap();
    let null = File::options()
        .read(true)
        .write(true)
        .open("/dev/zero")
        .unwrap();
    for file in [File::from(reader), File::from(event), folder, null] {
        assert!(table.map(0x1000, PAGE, Some((file, 0)), true).is_err());
    }
    assert_eq!(mapped(&table), []);
}

#[test]
fn read_only_ranges_and_those_without_a_file_are_noted_and_not_mapped() {
    let mut table = DmaTable::default();
    table.map(0x1000, PAGE, Some((memfd(1), 0)), false).unwrap();
    table.map(0x2000, PAGE, None, true).unwrap();
    assert_eq!(mapped(&table), []);
    table.unmap(0x1000, PAGE).unwrap();
    table.unmap(0x2000, PAGE).unwrap();
    assert!(matches!(
        table.unmap(0x2000, PAGE),
        Err(DmaError::NotMapped { .. })
    ));
}

#[test]
fn ranges_go_whole() {
    let mut table = DmaTable::default();
    map(&mut table, 0x4000, 2).unwrap();
    map(&mut table, 0x6000, 2).unwrap();
    map(&mut table, 0x1_0000, 1).unwrap();
    for (address, pages) in [
        (0x4000, 1),
        (0x5000, 1),
        (0x5000, 3),
        (0x3000, 2),
        (0x4000, 3),
        (0x5000, 4),
    ] {
        let result = table.unmap(address, pages * PAGE);
        assert!(
            matches!(result, Err(DmaError::Partial { .. })),
            "{address:#x} {pages}"
        );
    }
    assert!(matches!(
        table.unmap(0x9000, PAGE),
        Err(DmaError::NotMapped { .. })
    ));
    assert_eq!(mapped(&table).len(), 3);
    table.unmap(0x3000, 6 * PAGE).unwrap();
    assert_eq!(mapped(&table), [(0x1_0000, 0x1000)]);
    table.clear();
    assert_eq!(mapped(&table), []);
}

#[test]
fn memory_in_use_outlives_its_range() {
    let mut table = DmaTable::default();
    map(&mut table, 0x4000, 1).unwrap();
    let memory = table.memory();
    table.unmap(0x4000, PAGE).unwrap();
    memory.write_obj(7_u8, GuestAddress(0x4000)).unwrap();
    assert!(table.memory().read_obj::<u8>(GuestAddress(0x4000)).is_err());
}

#[test]
fn there_is_a_limit_and_no_descriptor_stays() {
    let mut table = DmaTable::default();
    let before = descriptors();
    for n in 0..MAX_RANGES as u64 {
        table.map(n * PAGE, PAGE, None, true).unwrap();
    }
    let past = MAX_RANGES as u64 * PAGE;
    assert!(matches!(map(&mut table, past, 1), Err(DmaError::TooMany)));
    table.unmap(0, past).unwrap();
    for _ in 0..50 {
        map(&mut table, 0x1000, 1).unwrap();
        assert!(map(&mut table, 0x1000, 1).is_err());
        assert!(table.map(0x9000, PAGE, Some((memfd(1), 0)), false).is_ok());
        table.clear();
    }
    // Other tests run beside this one.
    assert!(descriptors() < before + 40);
}

proptest! {
    /// Against a bitmap of pages.
    #[test]
    fn the_table_agrees_with_a_naive_one(
        steps in proptest::collection::vec((any::<bool>(), 0_u64..16, 1_u64..6), 1..40),
    ) {
        let mut table = DmaTable::default();
        // Which range each page belongs to.
        let mut pages: [Option<(u64, u64)>; 24] = [None; 24];
        for (add, first, count) in steps {
            let (from, to) = (usize::try_from(first).unwrap(), usize::try_from(first + count).unwrap());
            let covered = pages[from..to].to_vec();
            if add {
                let expected = covered.iter().all(Option::is_none);
                prop_assert_eq!(map(&mut table, first * PAGE, count).is_ok(), expected);
                if expected {
                    pages[from..to].fill(Some((first, count)));
                }
            } else {
                let whole = covered.iter().flatten().all(|(start, size)| *start >= first && start + size <= first + count);
                let expected = whole && covered.iter().any(Option::is_some);
                prop_assert_eq!(table.unmap(first * PAGE, count * PAGE).is_ok(), expected);
                if expected {
                    pages[from..to].fill(None);
                }
            }
            let memory = table.memory();
            for (n, page) in (0_u64..).zip(&pages) {
                prop_assert_eq!(memory.read_obj::<u8>(GuestAddress(n * PAGE)).is_ok(), page.is_some());
            }
        }
    }
}
