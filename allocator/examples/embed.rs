//! A VMM that has hostblob in its own process: `cargo run -p hostblob-allocator --example embed`.
//!
//! What a VMM has to bring is little: a place for the window in the guest's physical addresses (here: a reserved range of our own), and the
//! commands of virtio-gpu, decoded. The guest is played too: it writes through the window and asks for GPU work.

use std::error::Error;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use hostblob_allocator::provider::{self, Choice, Options};
use hostblob_allocator::{BlobSpec, Config, Guest, Host};
use hostblob_protocol::EnvelopeBuilder;
use hostblob_protocol::request::{
    CacheMode, Create, CreateFlags, Fill, MemoryRange, MemorySelector,
};
use hostblob_protocol::virtio_gpu::{blob_flag, blob_mem};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags};

const WINDOW: u64 = 64 << 20;
const SIZE: u64 = 1 << 20;
/// `VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT`.
const HOST_VISIBLE: u32 = 2;

/// The BAR: addresses that the VMM keeps for the window. A real one tells its hypervisor to show them to the guest.
struct Bar(NonNull<u8>);

impl Bar {
    /// Reserves the addresses, then puts the window there, once and for all.
    fn new(window: BorrowedFd<'_>) -> Result<Self, Box<dyn Error>> {
        let length = usize::try_from(WINDOW)?;
        let (access, flags) = (ProtFlags::empty(), MapFlags::PRIVATE | MapFlags::NORESERVE);
        // SAFETY: a new mapping at an address of the kernel's choice replaces nothing.
        let reserved =
            unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), length, access, flags) }?;
        let (access, flags) = (
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::SHARED | MapFlags::FIXED,
        );
        // SAFETY: it replaces exactly what was just reserved, which nobody uses yet.
        let placed = unsafe { rustix::mm::mmap(reserved, length, access, flags, window, 0) }?;
        Ok(Self(NonNull::new(placed.cast()).ok_or("no address")?))
    }

    /// What the guest does with a store.
    fn store(&self, offset: u64, value: u8) -> Result<(), Box<dyn Error>> {
        let offset = usize::try_from(offset.min(WINDOW - 1))?;
        // SAFETY: inside the mapping, which lives as long as the process; nobody has references to it.
        unsafe { self.0.as_ptr().wrapping_add(offset).write_volatile(value) };
        Ok(())
    }

    /// What the guest does with a load.
    fn load(&self, offset: u64) -> Result<u8, Box<dyn Error>> {
        let offset = usize::try_from(offset.min(WINDOW - 1))?;
        // SAFETY: as in `store`.
        Ok(unsafe { self.0.as_ptr().wrapping_add(offset).read_volatile() })
    }
}

fn submit(guest: &mut Guest, envelope: EnvelopeBuilder) -> Result<(), Box<dyn Error>> {
    guest.submit(1, 0, &envelope.build())?;
    let fence = guest.fence(1, Some(0));
    // A VMM looks when the waker was called, and does something else meanwhile.
    while !guest.reached(&fence) {
        guest.process_completions();
        std::thread::yield_now();
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let opened = provider::open(Choice::Auto, &Options::default())?;
    println!("provider: {}", opened.reason);
    let config = Config {
        window_size: WINDOW,
        ..Config::default()
    };
    let host = Host::new(opened.provider, config)?;
    println!("with a window of hostblob's:");
    life(host.guest(Arc::new(|| {}))?)?;
    println!("with a window that the VMM brings:");
    let window = rustix::fs::memfd_create("vmm", MemfdFlags::ALLOW_SEALING)?;
    rustix::fs::ftruncate(&window, WINDOW)?;
    rustix::fs::fcntl_add_seals(&window, SealFlags::SHRINK)?;
    life(host.guest_in(window, Arc::new(|| {}))?)
}

/// One allocation from its creation to its end.
fn life(mut guest: Guest) -> Result<(), Box<dyn Error>> {
    let bar = Bar::new(guest.window().as_fd())?;

    // CTX_CREATE, SUBMIT_3D, RESOURCE_CREATE_BLOB, RESOURCE_MAP_BLOB: what Linux sends for one allocation.
    guest.create_context(1, "an application")?;
    let create = Create {
        client_id: 7,
        size: SIZE,
        memory: MemorySelector::Properties(HOST_VISIBLE),
        flags: CreateFlags::HOST_VISIBLE | CreateFlags::MAP_DIRECTLY,
        alignment: 0,
        expected_cache: CacheMode::Any,
    };
    submit(&mut guest, EnvelopeBuilder::new(0).request(create))?;
    let spec = BlobSpec {
        resource_id: 1,
        blob_mem: blob_mem::HOST3D,
        blob_flags: blob_flag::USE_MAPPABLE,
        blob_id: 7,
        size: SIZE,
    };
    guest.create_blob(1, &spec, None)?;
    let mapped = guest.map_blob(1, 16 << 20)?;
    println!(
        "mapped at {:#x} of the BAR, which nobody had to touch for it",
        mapped.offset
    );

    bar.store(mapped.offset, 1)?;
    let fill = Fill {
        range: MemoryRange {
            client_id: 7,
            offset: 4096,
            length: SIZE - 4096,
        },
        value: 0x2a2a_2a2a,
    };
    submit(&mut guest, EnvelopeBuilder::new(0).request(fill))?;
    let (first, filled) = (
        bar.load(mapped.offset)?,
        bar.load(mapped.offset + SIZE - 1)?,
    );
    println!("the guest wrote {first}, the host GPU {filled}: both are seen in the BAR");
    if (first, filled) != (1, 0x2a) {
        return Err("and are wrong".into());
    }
    guest.unref(1)?;
    match guest.map_blob(1, 0) {
        Ok(_) => return Err("a blob that is gone was mapped".into()),
        Err(error) => println!("mapped after its end: {error}"),
    }
    Ok(())
}
