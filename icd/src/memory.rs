//! `VkDeviceMemory`: memory of the guest library.
//!
//! Small allocations are cut from blocks there and ask the host for nothing. What is exported, imported or dedicated has a blob of its
//! own. Host-visible memory is mapped when it is allocated, so vkMapMemory adds an offset; where the window has no room, it is
//! allocated outside, and vkMapMemory tries.

use std::ffi::{c_int, c_void};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::sync::{Arc, Weak};

use ash::vk;
use hostblob_guest::{AllocateInfo, Error, Memory, Status, WHOLE_SIZE};

use crate::chain;
use crate::device::Device;
use crate::entry::arguments::{Array, Out, from};
use crate::object::{self, Callbacks, Owned, objects};

/// Memory.
#[derive(Debug)]
pub(crate) struct DeviceMemory {
    memory: Arc<Memory>,
    /// It is in the window only while it is mapped.
    deferred: bool,
}

objects! { DeviceMemory = vk::DeviceMemory; }

impl DeviceMemory {
    /// For buffers that are bound to it.
    pub(crate) fn weak(&self) -> Weak<Memory> {
        Arc::downgrade(&self.memory)
    }

    /// For people who look at the host.
    pub(crate) fn set_name(&self, name: &str) {
        self.memory.set_name(name);
    }
}

/// What vkAllocateMemory may answer besides an invalid handle; the first stands for everything else.
const ALLOCATION_ERRORS: [vk::Result; 3] = [
    vk::Result::ERROR_OUT_OF_DEVICE_MEMORY,
    vk::Result::ERROR_OUT_OF_HOST_MEMORY,
    vk::Result::ERROR_TOO_MANY_OBJECTS,
];

pub(crate) fn allocate(
    device: &Device,
    info: &vk::MemoryAllocateInfo<'_>,
    callbacks: Option<Callbacks>,
    out: Out<'_, vk::DeviceMemory>,
) -> Result<(), vk::Result> {
    // The command cannot say that the device is lost, but blocks that are there are no use any more.
    let lost = device.monitor().check();
    lost.map_err(|_| vk::Result::ERROR_OUT_OF_DEVICE_MEMORY)?;
    // SAFETY: the chain of a structure that the program filled.
    let import = unsafe { chain::find::<vk::ImportMemoryFdInfoKHR<'_>>(info.p_next) };
    let import = import.filter(|import| !import.handle_type.is_empty());
    let callbacks = device.callbacks(callbacks);
    let (memory, fd) = match import {
        Some(import) if import.fd < 0 => return Err(vk::Result::ERROR_INVALID_EXTERNAL_HANDLE),
        Some(import) => {
            // SAFETY: an open descriptor, by the valid usage of the structure.
            let fd = unsafe { BorrowedFd::borrow_raw(import.fd) };
            (take_in(device, info, fd)?, Some(import.fd))
        }
        None => (make(device, info)?, None),
    };
    let handle = object::create(memory, callbacks)?;
    if let Some(fd) = fd {
        // SAFETY: a successful import takes the descriptor, and nobody uses it any more.
        drop(unsafe { OwnedFd::from_raw_fd(fd) });
    }
    out.set(handle);
    Ok(())
}

fn make(device: &Device, info: &vk::MemoryAllocateInfo<'_>) -> Result<DeviceMemory, vk::Result> {
    // SAFETY: the chain of a structure that the program filled.
    let export = unsafe { chain::find::<vk::ExportMemoryAllocateInfo<'_>>(info.p_next) };
    // SAFETY: as above.
    let dedicated = unsafe { chain::find::<vk::MemoryDedicatedAllocateInfo<'_>>(info.p_next) };
    let is_dedicated = dedicated.is_some_and(|dedicated| dedicated.buffer != vk::Buffer::null());
    let shareable = export.is_some_and(|export| !export.handle_types.is_empty());
    let type_bit = 1_u32.checked_shl(info.memory_type_index).unwrap_or(0);
    if shareable && device.types().visible & type_bit == 0 {
        return Err(vk::Result::ERROR_OUT_OF_DEVICE_MEMORY);
    }
    let request = AllocateInfo {
        shareable,
        dedicated: is_dedicated,
        ..AllocateInfo::new(info.allocation_size).memory_type(info.memory_type_index)
    };
    let guest = device.guest();
    let mut deferred = false;
    let allocated = guest.allocate(&request).or_else(|error| {
        let no_room = matches!(
            error.status(),
            Some(Status::WindowExhausted | Status::NotMappable)
        );
        if !no_room {
            return Err(error);
        }
        deferred = true;
        guest.allocate(&request.deferred())
    });
    match allocated {
        Ok(memory) => Ok(DeviceMemory {
            memory: Arc::new(memory),
            deferred,
        }),
        Err(error) => Err(device.failed("vkAllocateMemory", &error, &ALLOCATION_ERRORS)),
    }
}

/// Memory of another process, or of this one.
fn take_in(
    device: &Device,
    info: &vk::MemoryAllocateInfo<'_>,
    fd: BorrowedFd<'_>,
) -> Result<DeviceMemory, vk::Result> {
    const WHAT: &str = "vkAllocateMemory with VkImportMemoryFdInfoKHR";
    const INVALID: vk::Result = vk::Result::ERROR_INVALID_EXTERNAL_HANDLE;
    let imported = device.guest().import_dma_buf(fd);
    let memory = imported.map_err(|error| {
        let allowed = [INVALID, vk::Result::ERROR_OUT_OF_HOST_MEMORY];
        device.failed(WHAT, &error, &allowed)
    })?;
    let fits = memory.memory_type() == Some(info.memory_type_index)
        && info.allocation_size <= memory.size();
    if !fits {
        log::info!(
            "{WHAT}: the dma-buf has {} bytes of memory type {:?}, asked for are {} of type {}",
            memory.size(),
            memory.memory_type(),
            info.allocation_size,
            info.memory_type_index
        );
        return Err(INVALID);
    }
    Ok(DeviceMemory {
        memory: Arc::new(memory),
        deferred: false,
    })
}

pub(crate) fn free(device: &Device, memory: Owned<DeviceMemory>, callbacks: Option<Callbacks>) {
    memory.destroy(device.callbacks(callbacks));
}

fn address(
    device: &Device,
    memory: &DeviceMemory,
    offset: u64,
    out: Out<'_, *mut c_void>,
) -> Result<(), vk::Result> {
    let allowed = [
        vk::Result::ERROR_MEMORY_MAP_FAILED,
        vk::Result::ERROR_OUT_OF_HOST_MEMORY,
        vk::Result::ERROR_OUT_OF_DEVICE_MEMORY,
    ];
    let mapped = memory.memory.map();
    let first = mapped.map_err(|error| device.failed("vkMapMemory", &error, &allowed))?;
    let offset = usize::try_from(offset).map_err(|_| vk::Result::ERROR_MEMORY_MAP_FAILED)?;
    out.set(first.as_ptr().wrapping_add(offset).cast());
    Ok(())
}

pub(crate) fn map(
    device: &Device,
    memory: &DeviceMemory,
    offset: vk::DeviceSize,
    _: vk::DeviceSize,
    _: vk::MemoryMapFlags,
    out: Out<'_, *mut c_void>,
) -> Result<(), vk::Result> {
    address(device, memory, offset, out)
}

pub(crate) fn map2(
    device: &Device,
    info: &vk::MemoryMapInfoKHR<'_>,
    out: Out<'_, *mut c_void>,
) -> Result<(), vk::Result> {
    // SAFETY: live memory, by the valid usage of the structure.
    let memory: &DeviceMemory = unsafe { from(info.memory) };
    address(device, memory, info.offset, out)
}

pub(crate) fn unmap(_: &Device, memory: &DeviceMemory) {
    // What was mapped when it was allocated stays so: mapping it again would cost more than the addresses are worth.
    if memory.deferred {
        memory.memory.unmap();
    }
}

pub(crate) fn unmap2(device: &Device, info: &vk::MemoryUnmapInfoKHR<'_>) {
    // SAFETY: live memory, by the valid usage of the structure.
    let memory: &DeviceMemory = unsafe { from(info.memory) };
    unmap(device, memory);
}

/// vkFlushMappedMemoryRanges and its counterpart. Nothing is sent for coherent types.
fn each_range(
    device: &Device,
    what: &str,
    ranges: &[vk::MappedMemoryRange<'_>],
    act: impl Fn(&Memory, u64, u64) -> Result<(), Error>,
) -> Result<(), vk::Result> {
    for range in ranges {
        // SAFETY: live memory, by the valid usage of the structure.
        let memory: &DeviceMemory = unsafe { from(range.memory) };
        // The end may be past ours by less than an atom.
        let left = memory.memory.size().saturating_sub(range.offset);
        let length = match range.size {
            vk::WHOLE_SIZE => WHOLE_SIZE,
            size => size.min(left),
        };
        let allowed = [
            vk::Result::ERROR_OUT_OF_HOST_MEMORY,
            vk::Result::ERROR_OUT_OF_DEVICE_MEMORY,
        ];
        act(&memory.memory, range.offset, length)
            .map_err(|error| device.failed(what, &error, &allowed))?;
    }
    Ok(())
}

pub(crate) fn flush(
    device: &Device,
    count: u32,
    ranges: Array<'_, vk::MappedMemoryRange<'_>>,
) -> Result<(), vk::Result> {
    // SAFETY: the count belongs to the array.
    let ranges = unsafe { ranges.take(count) };
    each_range(device, "vkFlushMappedMemoryRanges", ranges, Memory::flush)
}

pub(crate) fn invalidate(
    device: &Device,
    count: u32,
    ranges: Array<'_, vk::MappedMemoryRange<'_>>,
) -> Result<(), vk::Result> {
    // SAFETY: the count belongs to the array.
    let ranges = unsafe { ranges.take(count) };
    let what = "vkInvalidateMappedMemoryRanges";
    each_range(device, what, ranges, Memory::invalidate)
}

/// For lazily allocated memory, of which there is none; all of it is committed.
pub(crate) fn commitment(_: &Device, memory: &DeviceMemory, out: Out<'_, vk::DeviceSize>) {
    out.set(memory.memory.size());
}

pub(crate) fn get_fd(
    device: &Device,
    info: &vk::MemoryGetFdInfoKHR<'_>,
    out: Out<'_, c_int>,
) -> Result<(), vk::Result> {
    // SAFETY: live memory, by the valid usage of the structure.
    let memory: &DeviceMemory = unsafe { from(info.memory) };
    let exported = memory.memory.export_dma_buf();
    let allowed = [
        vk::Result::ERROR_OUT_OF_HOST_MEMORY,
        vk::Result::ERROR_TOO_MANY_OBJECTS,
    ];
    let fd = exported.map_err(|error| device.failed("vkGetMemoryFdKHR", &error, &allowed))?;
    out.set(fd.into_raw_fd());
    Ok(())
}

pub(crate) fn fd_properties(
    device: &Device,
    handle_type: vk::ExternalMemoryHandleTypeFlags,
    fd: c_int,
    out: &mut vk::MemoryFdPropertiesKHR<'_>,
) -> Result<(), vk::Result> {
    const WHAT: &str = "vkGetMemoryFdPropertiesKHR";
    const INVALID: vk::Result = vk::Result::ERROR_INVALID_EXTERNAL_HANDLE;
    if handle_type != vk::ExternalMemoryHandleTypeFlags::DMA_BUF_EXT || fd < 0 {
        return Err(INVALID);
    }
    // SAFETY: an open descriptor, by the valid usage of the command.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    let imported = device.guest().import_dma_buf(fd.as_fd());
    let memory = imported.map_err(|error| device.failed(WHAT, &error, &[INVALID]))?;
    let index = memory.memory_type().ok_or(INVALID)?;
    out.memory_type_bits = 1_u32.checked_shl(index).unwrap_or(0);
    Ok(())
}
