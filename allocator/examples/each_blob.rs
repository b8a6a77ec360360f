//! A VMM that maps each blob by itself, in its own process: `cargo run -p hostblob-allocator --example each_blob [PROVIDER]`.
//!
//! It can show its guest more than one that maps the window as a whole: memory of the device that the processor sees, as a dma-buf or an
//! address. Here a slot is what a hypervisor calls a memory slot; the guest that uses it is played too, once with each type of memory that is
//! host-visible.

use std::error::Error;
use std::ffi::c_void;
use std::os::fd::AsFd;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use hostblob_allocator::provider::{self, Choice, Elsewhere, HostAddress, Options};
use hostblob_allocator::{BlobSpec, Config, Guest, Host, Mapping};
use hostblob_protocol::EnvelopeBuilder;
use hostblob_protocol::request::{
    CacheMode, Create, CreateFlags, Fill, MemoryRange, MemorySelector,
};
use hostblob_protocol::virtio_gpu::{blob_flag, blob_mem};
use rustix::mm::{MapFlags, ProtFlags};

const SIZE: u64 = 1 << 20;
/// `VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT`.
const HOST_VISIBLE: u32 = 2;

/// A range of the guest's physical addresses with memory behind it. A real VMM tells its hypervisor the address.
enum Slot {
    Mapped(NonNull<c_void>, usize),
    /// Held as long as the guest may use it.
    Address(Arc<HostAddress>),
}

impl Slot {
    fn new(guest: &Guest, mapping: &Mapping) -> Result<Self, Box<dyn Error>> {
        let (file, offset) = match &mapping.elsewhere {
            Some(Elsewhere::Address(address)) => return Ok(Self::Address(Arc::clone(address))),
            Some(Elsewhere::File(file)) => (file.as_fd(), 0),
            None => (guest.window().as_fd(), mapping.span.start()),
        };
        let length = usize::try_from(mapping.span.len())?;
        let (access, shared) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        // SAFETY: a new mapping at an address of the kernel's choice replaces nothing.
        let base =
            unsafe { rustix::mm::mmap(ptr::null_mut(), length, access, shared, file, offset) }?;
        Ok(Self::Mapped(
            NonNull::new(base).ok_or("no address")?,
            length,
        ))
    }

    fn at(&self, offset: u64) -> Result<*mut u8, Box<dyn Error>> {
        let (base, length) = match self {
            Self::Mapped(base, length) => (*base, *length as u64),
            Self::Address(address) => (address.base(), address.length()),
        };
        let offset = usize::try_from(offset.min(length - 1))?;
        Ok(base.as_ptr().cast::<u8>().wrapping_add(offset))
    }

    /// What the guest does with a store.
    fn store(&self, offset: u64, value: u8) -> Result<(), Box<dyn Error>> {
        // SAFETY: inside the slot, which lives as long as `self`; nobody has references to it.
        unsafe { self.at(offset)?.write_volatile(value) };
        Ok(())
    }

    /// What the guest does with a load.
    fn load(&self, offset: u64) -> Result<u8, Box<dyn Error>> {
        // SAFETY: as in `store`.
        Ok(unsafe { self.at(offset)?.read_volatile() })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Self::Mapped(base, length) = self {
            // SAFETY: exactly what `new` mapped. The guest does not use the slot any more.
            let _ = unsafe { rustix::mm::munmap(base.as_ptr(), *length) };
        }
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
    let choice: Choice = std::env::args()
        .nth(1)
        .unwrap_or_default()
        .parse()
        .unwrap_or_default();
    let opened = provider::open(choice, &Options::default())?;
    println!("provider: {}", opened.reason);
    let host = Host::new(opened.provider, Config::default())?;
    let mut guest = host.guest_here(Arc::new(|| {}))?;
    guest.create_context(1, "an application")?;
    let types = guest.capset().types.clone();
    for (index, found) in (0..).zip(&types) {
        if found.property_flags & HOST_VISIBLE != 0 {
            use_type(&mut guest, index, found.property_flags)?;
        }
    }
    Ok(())
}

/// One allocation of a type, from its creation to its end.
fn use_type(guest: &mut Guest, index: u32, flags: u32) -> Result<(), Box<dyn Error>> {
    let create = Create {
        client_id: 7,
        size: SIZE,
        memory: MemorySelector::Index(index),
        flags: CreateFlags::HOST_VISIBLE | CreateFlags::MAP_DIRECTLY,
        alignment: 0,
        expected_cache: CacheMode::Any,
    };
    submit(guest, EnvelopeBuilder::new(0).request(create))?;
    let spec = BlobSpec {
        resource_id: 1,
        blob_mem: blob_mem::HOST3D,
        blob_flags: blob_flag::USE_MAPPABLE,
        blob_id: 7,
        size: SIZE,
    };
    guest.create_blob(1, &spec, None)?;
    guest.map_blob(1, 16 << 20)?;
    let mapping = guest.mapping(1).ok_or("it is not mapped")?;
    let slot = Slot::new(guest, &mapping)?;
    let zero = slot.load(SIZE / 2)?;
    slot.store(0, 1)?;
    let fill = Fill {
        range: MemoryRange {
            client_id: 7,
            offset: 4096,
            length: SIZE - 4096,
        },
        value: 0x2a2a_2a2a,
    };
    submit(guest, EnvelopeBuilder::new(0).request(fill))?;
    let seen = (zero, slot.load(0)?, slot.load(SIZE - 1)?);
    let place = match &mapping.elsewhere {
        None => "the window",
        Some(Elsewhere::File(_)) => "a dma-buf of device memory",
        Some(Elsewhere::Address(_)) => "an address of device memory",
    };
    println!(
        "type {index} (flags {flags:#x}), mapped from {place}: new memory has {}, the guest wrote {}, the host GPU {}",
        seen.0, seen.1, seen.2
    );
    if seen != (0, 1, 0x2a) {
        return Err("and that is wrong".into());
    }
    // The guest unmaps; only then is the blob's end told.
    drop(slot);
    guest.unmap_blob(1)?;
    guest.unref(1)?;
    Ok(())
}
