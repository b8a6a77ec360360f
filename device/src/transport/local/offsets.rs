//! Plays the guest kernel where there is none: picks the window offset of a blob, as drm_mm does for Linux.
//!
//! It watches the commands that go by: the size of each blob that is created, and the offset of each that is mapped.

use std::collections::HashMap;
use std::ops::Range;

use hostblob_protocol::local::ANY_OFFSET;
use hostblob_protocol::virtio_gpu::{
    CtrlHdr, ResourceCreateBlob, ResourceMapBlob, ResourceOnly, cmd, resp,
};
use range_alloc::RangeAllocator;
use zerocopy::byteorder::little_endian::U64;
use zerocopy::{FromBytes, IntoBytes};

/// Bytes of the window.
type Place = Range<u64>;

pub(super) struct Offsets {
    window: RangeAllocator<u64>,
    resources: HashMap<u32, Resource>,
}

struct Resource {
    size: u64,
    place: Option<Place>,
}

/// What a command means for the offsets, once it has succeeded.
pub(super) enum Step {
    Nothing,
    Create(u32, u64),
    Map(u32, Place),
    Unmap(u32),
    Unref(u32),
}

/// The window has no room for a blob.
pub(super) struct Full;

impl Offsets {
    /// For a window of `window_size` bytes.
    pub(super) fn new(window_size: u64) -> Self {
        Self {
            window: RangeAllocator::new(0..window_size),
            resources: HashMap::new(),
        }
    }

    /// Looks at a command, and writes the picked offset into one that asks for any.
    pub(super) fn prepare(&mut self, command: &mut [u8]) -> Result<Step, Full> {
        let Ok((header, body)) = CtrlHdr::mut_from_prefix(command) else {
            return Ok(Step::Nothing);
        };
        let resource = |body: &[u8]| {
            ResourceOnly::read_from_prefix(body)
                .ok()
                .map(|(only, _)| only.resource_id.get())
        };
        match header.cmd_type.get() {
            cmd::RESOURCE_CREATE_BLOB => Ok(ResourceCreateBlob::read_from_prefix(body)
                .map_or(Step::Nothing, |(asked, _)| {
                    Step::Create(asked.resource_id.get(), asked.size.get())
                })),
            cmd::RESOURCE_MAP_BLOB => match ResourceMapBlob::mut_from_prefix(body) {
                Ok((asked, _)) if asked.offset.get() == ANY_OFFSET => self.pick(asked),
                _ => Ok(Step::Nothing),
            },
            cmd::RESOURCE_UNMAP_BLOB => Ok(resource(body).map_or(Step::Nothing, Step::Unmap)),
            cmd::RESOURCE_UNREF => Ok(resource(body).map_or(Step::Nothing, Step::Unref)),
            _ => Ok(Step::Nothing),
        }
    }

    fn pick(&mut self, asked: &mut ResourceMapBlob) -> Result<Step, Full> {
        let id = asked.resource_id.get();
        let Some(resource) = self
            .resources
            .get(&id)
            .filter(|resource| resource.place.is_none())
        else {
            // Unknown or mapped already: any offset leads to the device's own answer.
            asked.offset = U64::ZERO;
            return Ok(Step::Nothing);
        };
        if !(1..=self.window.initial_range().end).contains(&resource.size) {
            return Err(Full);
        }
        let place = self.window.allocate_range(resource.size);
        let place = place.map_err(|_| Full)?;
        asked.offset = U64::new(place.start);
        Ok(Step::Map(id, place))
    }

    /// The device has answered. Returns the offset of a blob that was mapped at one of ours.
    pub(super) fn finish(&mut self, step: Step, response: u32) -> Option<u64> {
        let done = matches!(response, resp::OK_NODATA | resp::OK_MAP_INFO);
        match step {
            Step::Nothing => None,
            Step::Create(id, size) if done => {
                self.resources.insert(id, Resource { size, place: None });
                None
            }
            Step::Map(id, place) if done => {
                let offset = place.start;
                if let Some(resource) = self.resources.get_mut(&id) {
                    resource.place = Some(place);
                }
                Some(offset)
            }
            Step::Map(_, place) => self.free(Some(place)),
            Step::Unmap(id) if done => {
                let place = self
                    .resources
                    .get_mut(&id)
                    .and_then(|resource| resource.place.take());
                self.free(place)
            }
            Step::Unref(id) if done => {
                let place = self
                    .resources
                    .remove(&id)
                    .and_then(|resource| resource.place);
                self.free(place)
            }
            Step::Create(..) | Step::Unmap(_) | Step::Unref(_) => None,
        }
    }

    fn free(&mut self, place: Option<Place>) -> Option<u64> {
        if let Some(place) = place {
            self.window.free_range(place);
        }
        None
    }
}

/// The bytes of a refusal that the device would have given: the guest kernel finds the window full before it asks.
pub(super) fn window_full(command: &[u8]) -> Vec<u8> {
    let mut header = CtrlHdr::read_from_prefix(command).map_or(CtrlHdr::default(), |(h, _)| h);
    header.cmd_type = resp::ERR_OUT_OF_MEMORY.into();
    header.as_bytes().to_vec()
}

#[cfg(test)]
mod tests;
