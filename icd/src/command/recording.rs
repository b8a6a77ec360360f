//! Recording: each command becomes transfers.

use std::ffi::c_void;
use std::sync::Arc;

use ash::vk;
use hostblob_guest::{AllocateInfo, WHOLE_SIZE};

use super::{CommandBuffer, Recorded, State, Transfers};
use crate::buffer::{Buffer, Place};
use crate::entry::arguments::{Array, from, slice};

impl CommandBuffer {
    fn record(&self, make: impl FnOnce(&mut Transfers) -> Result<(), vk::Result>) {
        let mut state = self.state.lock();
        if let Err(error) = make(&mut state.recording) {
            state.failed.get_or_insert(error);
        }
    }

    fn copy_range(&self, from: (&Buffer, u64), to: (&Buffer, u64), length: u64) {
        self.record(|transfers| {
            let copy = Recorded::Copy {
                from: bound(from.0.at(from.1))?,
                to: bound(to.0.at(to.1))?,
                length,
            };
            transfers.list.push(copy);
            Ok(())
        });
    }
}

/// A buffer without memory cannot be recorded: a mistake of the program, told at vkEndCommandBuffer.
fn bound(place: Option<Place>) -> Result<Place, vk::Result> {
    place.ok_or_else(|| {
        log::info!("a command uses a buffer without memory");
        vk::Result::ERROR_OUT_OF_DEVICE_MEMORY
    })
}

pub(crate) fn begin(buffer: &CommandBuffer, _: &vk::CommandBufferBeginInfo<'_>) {
    *buffer.state.lock() = State::default();
}

pub(crate) fn end(buffer: &CommandBuffer) -> Result<(), vk::Result> {
    let mut state = buffer.state.lock();
    let recording = std::mem::take(&mut state.recording);
    match state.failed.take() {
        Some(error) => Err(error),
        None => {
            state.recorded = Some(Arc::new(recording));
            Ok(())
        }
    }
}

pub(crate) fn reset(buffer: &CommandBuffer, _: vk::CommandBufferResetFlags) {
    *buffer.state.lock() = State::default();
}

pub(crate) fn copy(
    buffer: &CommandBuffer,
    source: &Buffer,
    destination: &Buffer,
    count: u32,
    regions: Array<'_, vk::BufferCopy>,
) {
    // SAFETY: the count belongs to the array.
    for region in unsafe { regions.take(count) } {
        let (from, to) = (region.src_offset, region.dst_offset);
        buffer.copy_range((source, from), (destination, to), region.size);
    }
}

pub(crate) fn copy2(buffer: &CommandBuffer, info: &vk::CopyBufferInfo2<'_>) {
    // SAFETY: live buffers, by the valid usage of the structure.
    let source: &Buffer = unsafe { from(info.src_buffer) };
    // SAFETY: as above.
    let destination: &Buffer = unsafe { from(info.dst_buffer) };
    // SAFETY: the count belongs to the array.
    for region in unsafe { slice(info.p_regions, info.region_count) } {
        let (from, to) = (region.src_offset, region.dst_offset);
        buffer.copy_range((source, from), (destination, to), region.size);
    }
}

pub(crate) fn fill(
    buffer: &CommandBuffer,
    destination: &Buffer,
    offset: vk::DeviceSize,
    size: vk::DeviceSize,
    value: u32,
) {
    buffer.record(|transfers| {
        let left = destination.size().saturating_sub(offset);
        let length = match size {
            vk::WHOLE_SIZE => left - left % 4,
            size => size,
        };
        if length > 0 {
            let at = bound(destination.at(offset))?;
            transfers.list.push(Recorded::Fill { at, length, value });
        }
        Ok(())
    });
}

/// The bytes are those of now. They go into memory of their own, from where the host copies them in its turn.
pub(crate) fn update(
    buffer: &CommandBuffer,
    destination: &Buffer,
    offset: vk::DeviceSize,
    size: vk::DeviceSize,
    data: *const c_void,
) {
    let length = u32::try_from(size).unwrap_or(0);
    // SAFETY: so many bytes are there, by the valid usage of the command, which allows 65536 of them.
    let bytes = unsafe { slice(data.cast::<u8>(), length) };
    buffer.record(|transfers| {
        let to = bound(destination.at(offset))?;
        let staged = buffer
            .guest
            .allocate(&AllocateInfo::new(size))
            .and_then(|staged| {
                staged.write(0, bytes)?;
                staged.flush(0, WHOLE_SIZE)?;
                Ok(Arc::new(staged))
            });
        let staged = staged.map_err(|error| {
            log::info!("vkCmdUpdateBuffer: {error}");
            vk::Result::ERROR_OUT_OF_DEVICE_MEMORY
        })?;
        let from = Place {
            memory: Arc::downgrade(&staged),
            offset: 0,
        };
        transfers.staged.push(staged);
        let length = size;
        transfers.list.push(Recorded::Copy { from, to, length });
        Ok(())
    });
}

pub(crate) fn execute(
    buffer: &CommandBuffer,
    count: u32,
    secondaries: Array<'_, vk::CommandBuffer>,
) {
    // SAFETY: the count belongs to the array.
    for secondary in unsafe { secondaries.take(count) } {
        // SAFETY: a live command buffer, by the valid usage of the command.
        let secondary: &CommandBuffer = unsafe { from(*secondary) };
        let recorded = secondary.recorded();
        buffer.record(|transfers| {
            if let Some(recorded) = recorded {
                transfers.append(&recorded);
            }
            Ok(())
        });
    }
}
