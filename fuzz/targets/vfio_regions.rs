//! Messages of a hostile VMM and a hostile guest, in any order: accesses to every region at every offset and width, queues anywhere, guest memory
//! that comes and goes under them, interrupts, resets.

#![no_main]

use arbitrary::Arbitrary;
use hostblob_device::transport::vfio_user::fuzzing::{MEMORY, Machine};
use hostblob_fuzz::gpu;
use libfuzzer_sys::fuzz_target;

#[derive(Debug, Arbitrary)]
enum Message<'a> {
    Read {
        region: u8,
        offset: u64,
        length: u16,
    },
    Write {
        region: u8,
        offset: u64,
        data: &'a [u8],
    },
    /// To a field of the common configuration: what a driver does all the time.
    Common {
        field: Field,
        value: u16,
    },
    Address {
        field: AddressField,
        page: u8,
        odd: bool,
    },
    Notify {
        queue: u8,
    },
    Map {
        flags: u8,
        offset: u64,
        address: u64,
        size: u64,
        with_file: bool,
    },
    /// All of the memory, where guests have it.
    MapAll,
    Unmap {
        flags: u8,
        address: u64,
        size: u64,
    },
    UnmapAll,
    SetIrqs {
        index: u8,
        flags: u8,
        start: u32,
        count: u32,
        files: u8,
    },
    Reset,
    Poke {
        offset: u32,
        data: &'a [u8],
    },
    /// A descriptor of a table at that page.
    Descriptor {
        page: u8,
        index: u8,
        to: u16,
        length: u16,
        flags: u8,
        next: u8,
    },
    /// The available ring at that page: its index, and one entry.
    Available {
        page: u8,
        index: u16,
        entry: u8,
        head: u16,
    },
    Turn,
}

#[derive(Debug, Clone, Copy, Arbitrary)]
enum Field {
    FeatureSelect,
    Feature,
    Vector,
    Status,
    QueueSelect,
    QueueSize,
    QueueVector,
    QueueEnable,
}

#[derive(Debug, Clone, Copy, Arbitrary)]
enum AddressField {
    Descriptors,
    Driver,
    Device,
}

const CONFIG: u32 = 7;
const PAGE: u64 = 4096;

fn apply(machine: &mut Machine<hostblob_device::gpu::Gpu>, message: &Message<'_>) {
    match *message {
        Message::Read {
            region,
            offset,
            length,
        } => {
            machine.read(region.into(), offset, &mut vec![0xee; length.into()]);
        }
        Message::Write {
            region,
            offset,
            data,
        } => machine.write(region.into(), offset, data),
        Message::Common { field, value } => {
            let (offset, width) = match field {
                Field::FeatureSelect => (8, 4),
                Field::Feature => (12, 4),
                Field::Vector => (16, 2),
                Field::Status => (20, 1),
                Field::QueueSelect => (22, 2),
                Field::QueueSize => (24, 2),
                Field::QueueVector => (26, 2),
                Field::QueueEnable => (28, 2),
            };
            let bytes = u32::from(value).to_le_bytes();
            machine.write(0, offset, &bytes[..width]);
        }
        Message::Address { field, page, odd } => {
            let offset = match field {
                AddressField::Descriptors => 32,
                AddressField::Driver => 40,
                AddressField::Device => 48,
            };
            let address = u64::from(page) * PAGE + u64::from(odd);
            machine.write(0, offset, &address.to_le_bytes());
        }
        Message::Notify { queue } => machine.write(0, 0x3000 + 4 * u64::from(queue), &[queue, 0]),
        Message::Map {
            flags,
            offset,
            address,
            size,
            with_file,
        } => {
            machine.map(flags.into(), offset, address, size, with_file);
        }
        Message::MapAll => {
            machine.map(3, 0, 0, MEMORY, true);
            // Bus master and MSI-X.
            machine.write(CONFIG, 4, &[6, 0]);
            machine.write(CONFIG, 0x42, &[2, 0x80]);
        }
        Message::Unmap {
            flags,
            address,
            size,
        } => machine.unmap(flags.into(), address, size),
        Message::UnmapAll => machine.unmap(0, 0, MEMORY),
        Message::SetIrqs {
            index,
            flags,
            start,
            count,
            files,
        } => {
            machine.set_irqs(index.into(), flags.into(), start, count, files % 8);
        }
        Message::Reset => machine.reset(),
        Message::Poke { offset, data } => machine.poke(offset.into(), data),
        Message::Descriptor {
            page,
            index,
            to,
            length,
            flags,
            next,
        } => {
            let mut entry = (u64::from(to) * 16).to_le_bytes().to_vec();
            entry.extend(u32::from(length).to_le_bytes());
            entry.extend([flags, 0, next, 0]);
            machine.poke(u64::from(page) * PAGE + u64::from(index) * 16, &entry);
        }
        Message::Available {
            page,
            index,
            entry,
            head,
        } => {
            let ring = u64::from(page) * PAGE;
            machine.poke(ring + 2, &index.to_le_bytes());
            machine.poke(ring + 4 + 2 * u64::from(entry), &head.to_le_bytes());
        }
        Message::Turn => machine.turn(),
    }
}

fuzz_target!(|messages: Vec<Message<'_>>| {
    let mut machine = Machine::new(gpu);
    for message in &messages {
        apply(&mut machine, message);
    }
    machine.turn();
});
