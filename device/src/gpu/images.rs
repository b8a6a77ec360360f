//! 2D resources: RESOURCE_CREATE_2D, their pages, transfers and flushes, and the one scanout that shows them.
//!
//! The pixels are a memfd, which host processes open through the export socket: a flush is a present of it. Copies go by `pread` and `pwrite`
//! between the VMM's files and the memfd, so no page of the guest is mapped here, and none can vanish from under a copy.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use hostblob_allocator::exports::{ExportError, ExportId, GuestExports, Layout};
use hostblob_allocator::provider::Piece;
use hostblob_allocator::quota::{Charge, Quota};
use hostblob_allocator::{Error, Host, MAX_CONTEXTS, Waker};
use hostblob_protocol::Status;
use hostblob_protocol::virtio_gpu::{
    DisplayOne, MAX_SCANOUTS, MemEntry, Rect, ResourceCreate2d, ResourceFlush, SetScanout,
    TransferToHost2d, format,
};
use rustix::fs::{MemfdFlags, SealFlags};
use uuid::Uuid;
use zerocopy::FromZeros;
use zerocopy::byteorder::little_endian::U32;

use super::backing::{self, GuestPages};
use super::fault::Fault;
use crate::ratelimit::ContextLimiter;

/// 2D resources of one guest: each has a descriptor.
pub const MAX_IMAGES: usize = 256;
/// Largest side, in pixels.
pub const MAX_SIDE: u32 = 16384;
/// Pieces of guest memory that all images of a guest may lie in.
pub const MAX_IMAGE_PIECES: usize = 65536;

/// All formats of 2D resources have as many.
const BYTES_PER_PIXEL: u64 = 4;
/// Bytes of one copy.
const CHUNK: usize = 256 << 10;

/// Size of the guest's screen, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Display {
    /// At most [`MAX_SIDE`].
    pub width: u32,
    /// At most [`MAX_SIDE`].
    pub height: u32,
}

/// A guest's 2D resources.
#[derive(Debug)]
pub(super) struct Images {
    host: Arc<Host>,
    images: HashMap<u32, Image>,
    /// They belong to no context, and count together as one.
    quota: Arc<Quota>,
    /// Where host processes see them.
    exports: Option<GuestExports>,
    display: Option<Display>,
    /// What the scanout shows.
    scanout: Option<u32>,
    /// Contexts of no capset, which can have 2D resources attached and nothing else: Linux makes one for each file that has some.
    contexts: HashSet<u32>,
}

#[derive(Debug)]
struct Image {
    width: u32,
    height: u32,
    fourcc: [u8; 4],
    pixels: Arc<File>,
    pages: Option<Pages>,
    export: Option<ExportId>,
    _charge: Charge,
}

/// The guest's pages of an image. Without pieces where the VMM has taken them away.
#[derive(Debug)]
struct Pages {
    entries: Vec<MemEntry>,
    /// Each with the offset at which it begins.
    pieces: Vec<(u64, Piece)>,
}

impl Images {
    pub(super) fn new(host: &Arc<Host>, waker: Waker) -> Self {
        Self {
            images: HashMap::new(),
            quota: host.context_quota(),
            exports: host.exports().map(|exports| exports.guest(waker)),
            host: Arc::clone(host),
            display: None,
            scanout: None,
            contexts: HashSet::new(),
        }
    }

    /// CTX_CREATE of no capset. The id is free.
    pub(super) fn create_context(&mut self, id: u32) -> Result<(), Fault> {
        if id == 0 {
            return Err(Error::ContextIdTaken(id).into());
        }
        if self.contexts.len() >= MAX_CONTEXTS {
            return Err(Error::TooManyContexts(MAX_CONTEXTS).into());
        }
        self.contexts.insert(id);
        Ok(())
    }

    pub(super) fn has_context(&self, id: u32) -> bool {
        self.contexts.contains(&id)
    }

    /// CTX_DESTROY; `false` where there is no such context here.
    pub(super) fn destroy_context(&mut self, id: u32) -> bool {
        self.contexts.remove(&id)
    }

    /// From now on there is a screen.
    pub(super) fn set_display(&mut self, display: Display) {
        self.display = Some(display);
    }

    pub(super) fn has(&self, resource: u32) -> bool {
        self.images.contains_key(&resource)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.images.is_empty() && self.contexts.is_empty()
    }

    pub(super) fn reset(&mut self) {
        self.contexts.clear();
        let all: Vec<u32> = self.images.keys().copied().collect();
        for resource in all {
            self.unref(resource);
        }
    }

    /// RESOURCE_CREATE_2D. The id is free.
    pub(super) fn create(&mut self, asked: &ResourceCreate2d) -> Result<(), Fault> {
        let (width, height) = (asked.width.get(), asked.height.get());
        for (field, side) in [("width", width), ("height", height)] {
            if !(1..=MAX_SIDE).contains(&side) {
                return Err(Fault::Field {
                    field,
                    value: side.into(),
                    expected: "1 to 16384",
                });
            }
        }
        let fourcc = fourcc(asked.format.get()).ok_or(Fault::Field {
            field: "format",
            value: asked.format.get().into(),
            expected: "a format of virtio_gpu_formats",
        })?;
        if self.images.len() >= MAX_IMAGES {
            return Err(Fault::Limit("2D resources are there", MAX_IMAGES));
        }
        // At most 2^30.
        let bytes = u64::from(width) * u64::from(height) * BYTES_PER_PIXEL;
        let charge = self.host.charge(&self.quota, bytes).map_err(Error::from)?;
        let pixels = memfd(bytes).map_err(|error| Error::Parking(error.to_string()))?;
        let image = Image {
            width,
            height,
            fourcc,
            pixels: Arc::new(pixels),
            pages: None,
            export: None,
            _charge: charge,
        };
        self.images.insert(asked.resource_id.get(), image);
        Ok(())
    }

    /// RESOURCE_UNREF. Whoever has the pixels open keeps them.
    pub(super) fn unref(&mut self, resource: u32) {
        let image = self.images.remove(&resource);
        if let (Some(id), Some(exports)) = (image.and_then(|image| image.export), &self.exports) {
            exports.remove(id);
        }
        if self.scanout == Some(resource) {
            self.scanout = None;
        }
    }

    /// RESOURCE_ATTACH_BACKING.
    pub(super) fn attach_backing(
        &mut self,
        resource: u32,
        entries: Vec<MemEntry>,
        pages: &dyn GuestPages,
    ) -> Result<(), Fault> {
        let pieces = backing::pieces(&entries, pages)?;
        let used = self.images.values().map(Image::pieces).sum::<usize>();
        let image = self.image_mut(resource)?;
        if image.pages.is_some() {
            return Err(Error::HasBacking(resource).into());
        }
        if used.saturating_add(pieces.len().max(entries.len())) > MAX_IMAGE_PIECES {
            return Err(Fault::Limit(
                "pieces of memory are in use for 2D resources",
                MAX_IMAGE_PIECES,
            ));
        }
        let pieces = in_order(pieces);
        image.pages = Some(Pages { entries, pieces });
        Ok(())
    }

    /// RESOURCE_DETACH_BACKING.
    pub(super) fn detach_backing(&mut self, resource: u32) -> Result<(), Fault> {
        let pages = self.image_mut(resource)?.pages.take();
        pages.map(drop).ok_or(Error::NoBacking.into())
    }

    /// The VMM has changed the guest's memory.
    pub(super) fn pages_changed(&mut self, pages: &dyn GuestPages, log: &mut ContextLimiter) {
        for (resource, image) in &mut self.images {
            if let Some(kept) = &mut image.pages {
                let found = backing::pieces(&kept.entries, pages).inspect_err(|fault| {
                    let line = format_args!("2D resource {resource} has lost its pages: {fault}");
                    log.warn(None, line);
                });
                kept.pieces = in_order(found.unwrap_or_default());
            }
        }
    }

    /// TRANSFER_TO_HOST_2D: copies a rectangle, whose first pixel is at `offset` of the guest's pages. A row there is as long as the image's.
    pub(super) fn transfer(&mut self, asked: &TransferToHost2d) -> Result<(), Fault> {
        let resource = asked.resource_id.get();
        let image = self.image_mut(resource)?;
        let rect = image.inside(&asked.r)?;
        let pages = image.pages.as_ref().ok_or(Error::NoBacking)?;
        let stride = u64::from(image.width) * BYTES_PER_PIXEL;
        let row = u64::from(rect.width) * BYTES_PER_PIXEL;
        // Whole rows continue each other on both sides.
        let (rows, length) = if row == stride {
            (1, row * u64::from(rect.height))
        } else {
            (u64::from(rect.height), row)
        };
        let last = stride
            .checked_mul(rows - 1)
            .and_then(|last| last.checked_add(length));
        let end = last.and_then(|last| asked.offset.get().checked_add(last));
        if end.is_none_or(|end| end > pages.length()) {
            return Err(Fault::Field {
                field: "offset",
                value: asked.offset.get(),
                expected: "a rectangle inside the resource's pages",
            });
        }
        let to = u64::from(rect.y) * stride + u64::from(rect.x) * BYTES_PER_PIXEL;
        for number in 0..rows {
            let at = number * stride;
            pages
                .copy_to(&image.pixels, to + at, asked.offset.get() + at, length)
                .map_err(|error| Fault::Pages(error.to_string()))?;
        }
        Ok(())
    }

    /// RESOURCE_FLUSH: host processes are told that the image has new contents.
    pub(super) fn flush(&mut self, asked: &ResourceFlush) -> Result<(), Fault> {
        let resource = asked.resource_id.get();
        self.image_mut(resource)?.inside(&asked.r)?;
        let (Some(exports), Some(image)) = (&self.exports, self.images.get_mut(&resource)) else {
            return Ok(());
        };
        let id = match image.export {
            Some(id) => id,
            None => {
                let id = image.show(resource, exports).map_err(Error::Export)?;
                image.export = Some(id);
                id
            }
        };
        exports.present(id, 0);
        Ok(())
    }

    /// Gives host processes the descriptors that they ask for.
    pub(super) fn serve_exports(&mut self) {
        let Some(exports) = &self.exports else {
            return;
        };
        while let Some(request) = exports.next_request() {
            let id = Some(request.id());
            let image = self.images.values().find(|image| image.export == id);
            let pixels = image.map(|image| image.pixels.try_clone());
            request.answer(match pixels {
                Some(Ok(pixels)) => Ok(Arc::new(pixels.into())),
                Some(Err(_)) => Err(ExportError::Refused(Status::Internal)),
                None => Err(ExportError::Refused(Status::UnknownUuid)),
            });
        }
    }

    /// GET_DISPLAY_INFO.
    pub(super) fn display_info(&self) -> [DisplayOne; MAX_SCANOUTS] {
        let mut modes = <[DisplayOne; MAX_SCANOUTS]>::new_zeroed();
        if let (Some(display), [first, ..]) = (self.display, &mut modes) {
            first.r.width = U32::new(display.width);
            first.r.height = U32::new(display.height);
            first.enabled = U32::new(1);
        }
        modes
    }

    /// SET_SCANOUT: what the screen shows; resource 0 is nothing.
    pub(super) fn set_scanout(&mut self, asked: &SetScanout) -> Result<(), Fault> {
        self.check_scanout(asked.scanout_id.get())?;
        let resource = asked.resource_id.get();
        self.scanout = match resource {
            0 => None,
            _ => {
                self.image_mut(resource)?.inside(&asked.r)?;
                Some(resource)
            }
        };
        Ok(())
    }

    /// There is one scanout, or none.
    pub(super) fn check_scanout(&self, scanout: u32) -> Result<(), Fault> {
        match self.display {
            Some(_) if scanout == 0 => Ok(()),
            _ => Err(Fault::NoScanout(scanout)),
        }
    }

    fn image_mut(&mut self, resource: u32) -> Result<&mut Image, Fault> {
        let image = self.images.get_mut(&resource);
        image.ok_or_else(|| Error::UnknownResource(resource).into())
    }
}

/// A rectangle that lies inside an image.
struct Inside {
    x: u32,
    y: u32,
    width: u32,
    height: u32,
}

impl Image {
    fn inside(&self, rect: &Rect) -> Result<Inside, Fault> {
        let [x, y, width, height] = [rect.x, rect.y, rect.width, rect.height].map(U32::get);
        let fits = |from: u32, size: u32, whole| {
            size > 0 && from.checked_add(size).is_some_and(|end| end <= whole)
        };
        for (field, from, size, whole) in [
            ("r.width", x, width, self.width),
            ("r.height", y, height, self.height),
        ] {
            if !fits(from, size, whole) {
                return Err(Fault::Field {
                    field,
                    value: size.into(),
                    expected: "a rectangle inside the resource, not empty",
                });
            }
        }
        Ok(Inside {
            x,
            y,
            width,
            height,
        })
    }

    fn pieces(&self) -> usize {
        let pages = self.pages.as_ref();
        pages.map_or(0, |pages| pages.pieces.len().max(pages.entries.len()))
    }

    /// Has host processes see it.
    fn show(&self, resource: u32, exports: &GuestExports) -> Result<ExportId, ExportError> {
        let stride = self.width.saturating_mul(4);
        let size = u64::from(stride) * u64::from(self.height);
        let name = format!("2D resource {resource}");
        let id = exports.add(Uuid::new_v4().into_bytes(), size, &name)?;
        let layout = Layout {
            width: self.width,
            height: self.height,
            stride,
            fourcc: u32::from_le_bytes(self.fourcc),
            ..Layout::default()
        };
        exports
            .publish(id, layout)
            .inspect_err(|_| exports.remove(id))?;
        Ok(id)
    }
}

impl Pages {
    fn length(&self) -> u64 {
        let last = self.pieces.last();
        last.map_or(0, |(start, piece)| start.saturating_add(piece.length))
    }

    /// Copies `length` bytes at `offset`, which lie inside, to `to` of a file.
    fn copy_to(&self, file: &File, to: u64, offset: u64, length: u64) -> std::io::Result<()> {
        let mut buffer = vec![0; usize::try_from(length).map_or(CHUNK, |length| length.min(CHUNK))];
        let first = self.pieces.partition_point(|(start, _)| *start <= offset);
        let (mut at, end) = (offset, offset.saturating_add(length));
        let mut pieces = self.pieces.iter().skip(first.saturating_sub(1));
        while at < end
            && let Some((start, piece)) = pieces.next()
        {
            let stop = start.saturating_add(piece.length).min(end);
            while at < stop {
                let chunk = usize::try_from(stop - at).map_or(CHUNK, |left| left.min(CHUNK));
                let bytes = buffer.get_mut(..chunk).unwrap_or_default();
                piece
                    .file
                    .read_exact_at(bytes, piece.offset + (at - start))?;
                file.write_all_at(bytes, to + (at - offset))?;
                at += chunk as u64;
            }
        }
        Ok(())
    }
}

fn in_order(pieces: Vec<Piece>) -> Vec<(u64, Piece)> {
    let mut at = 0_u64;
    let mut place = |piece: Piece| {
        let start = at;
        at = at.saturating_add(piece.length);
        (start, piece)
    };
    pieces.into_iter().map(&mut place).collect()
}

/// The format's name in DRM, where the first letter is the highest byte.
fn fourcc(virtio: u32) -> Option<[u8; 4]> {
    Some(*match virtio {
        format::B8G8R8A8_UNORM => b"AR24",
        format::B8G8R8X8_UNORM => b"XR24",
        format::A8R8G8B8_UNORM => b"BA24",
        format::X8R8G8B8_UNORM => b"BX24",
        format::R8G8B8A8_UNORM => b"AB24",
        format::X8B8G8R8_UNORM => b"RX24",
        format::A8B8G8R8_UNORM => b"RA24",
        format::R8G8B8X8_UNORM => b"XB24",
        _ => return None,
    })
}

/// Zeros, of a size that nobody can change.
fn memfd(bytes: u64) -> rustix::io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = rustix::fs::memfd_create("hostblob-2d", flags)?;
    rustix::fs::ftruncate(&file, bytes)?;
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&file, seals)?;
    Ok(file.into())
}
