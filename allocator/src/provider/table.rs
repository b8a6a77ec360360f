//! What a session has: its files and attachments, and every check that a request must pass.
//!
//! Generic over what stands for the bytes (a mapping, a Vulkan buffer), so that all providers refuse the same
//! requests with the same words. Checks come first and change nothing; the caller of a provider checks as well, but
//! what a guest asked for ends up here and a driver must never see a bad number.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::mapping::SharedFile;
use super::{AttachmentId, Description, FileId, MemoryType, Piece, Placement, ProviderError};

/// Where the bytes of an attachment are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// In a registered file, from `offset` on: two attachments may share them.
    File { file: FileId, offset: u64 },
    /// Its own, of this placement.
    Own(Placement),
}

/// A live attachment.
#[derive(Debug)]
pub(super) struct Attached<T> {
    pub(super) length: u64,
    pub(super) place: Place,
    pub(super) bytes: T,
}

/// The files and attachments of one session.
#[derive(Debug)]
pub(super) struct Table<T> {
    files: HashMap<FileId, Arc<SharedFile>>,
    attachments: HashMap<AttachmentId, Attached<T>>,
}

/// The operands of a copy, as in [`super::Request::Copy`].
#[derive(Debug, Clone, Copy)]
pub(super) struct CopyRange {
    pub(super) source: AttachmentId,
    pub(super) source_offset: u64,
    pub(super) destination: AttachmentId,
    pub(super) destination_offset: u64,
    pub(super) length: u64,
}

/// The operands of an attach, as in [`super::Request::Attach`].
#[derive(Debug, Clone, Copy)]
pub(super) struct AttachRange {
    pub(super) attachment: AttachmentId,
    pub(super) file: FileId,
    pub(super) offset: u64,
    pub(super) length: u64,
    pub(super) memory_type: u32,
}

fn invalid(text: String) -> ProviderError {
    ProviderError::Invalid(text)
}

impl<T> Table<T> {
    pub(super) fn new() -> Self {
        Self {
            files: HashMap::new(),
            attachments: HashMap::new(),
        }
    }

    /// Registers a file, mapping it.
    pub(super) fn add_file(
        &mut self,
        file: FileId,
        descriptor: OwnedFd,
        length: u64,
    ) -> Result<(), ProviderError> {
        self.insert_file(file, || SharedFile::new(descriptor, length))
    }

    /// Registers pieces of files as one, mapping them.
    pub(super) fn add_pieces(
        &mut self,
        file: FileId,
        pieces: Vec<Piece>,
    ) -> Result<(), ProviderError> {
        self.insert_file(file, || SharedFile::stitched(pieces))
    }

    fn insert_file(
        &mut self,
        file: FileId,
        make: impl FnOnce() -> Result<SharedFile, ProviderError>,
    ) -> Result<(), ProviderError> {
        if self.files.contains_key(&file) {
            return Err(invalid(format!("file {} exists", file.0)));
        }
        self.files.insert(file, Arc::new(make()?));
        Ok(())
    }

    /// Forgets a file.
    pub(super) fn remove_file(&mut self, file: FileId) -> Result<(), ProviderError> {
        let removed = self.files.remove(&file).map(drop);
        removed.ok_or_else(|| invalid(format!("file {} is unknown", file.0)))
    }

    /// Checks an attach; the file that it names.
    pub(super) fn check_attach(
        &self,
        description: &Description,
        range: &AttachRange,
    ) -> Result<Arc<SharedFile>, ProviderError> {
        self.check_new(description, range.attachment, range.length)?;
        memory_type(description, range.memory_type, |p| p == Placement::Window)?;
        let AttachRange { offset, length, .. } = *range;
        let grain = description.attach_alignment;
        if !offset.is_multiple_of(grain) || !length.is_multiple_of(grain) {
            return Err(invalid(format!(
                "attach of {length} bytes at {offset} is not aligned to {grain}"
            )));
        }
        let file = self
            .files
            .get(&range.file)
            .ok_or_else(|| invalid(format!("file {} is unknown", range.file.0)))?;
        inside(offset, length, file.length(), "file")?;
        Ok(Arc::clone(file))
    }

    /// Checks an allocation; where its bytes will be.
    pub(super) fn check_allocate(
        &self,
        description: &Description,
        attachment: AttachmentId,
        length: u64,
        index: u32,
    ) -> Result<Place, ProviderError> {
        self.check_new(description, attachment, length)?;
        let found = memory_type(description, index, |p| p != Placement::Window)?;
        let size = usize::try_from(found.heap)
            .ok()
            .and_then(|heap| description.heaps.get(heap))
            .map_or(0, |heap| heap.size);
        if length > size {
            return Err(ProviderError::OutOfDeviceMemory(format!(
                "{length} bytes asked of a heap of {size}"
            )));
        }
        Ok(Place::Own(found.placement))
    }

    /// Checks an export; the bytes that it names, and how many.
    pub(super) fn check_export(
        &self,
        attachment: AttachmentId,
    ) -> Result<(&T, u64), ProviderError> {
        let attached = self.find(attachment)?;
        if attached.place != Place::Own(Placement::Exported) {
            return Err(invalid(format!(
                "attachment {} is not of a type that is exported",
                attachment.0
            )));
        }
        Ok((&attached.bytes, attached.length))
    }

    fn check_new(
        &self,
        description: &Description,
        attachment: AttachmentId,
        length: u64,
    ) -> Result<(), ProviderError> {
        if self.attachments.contains_key(&attachment) {
            return Err(invalid(format!("attachment {} exists", attachment.0)));
        }
        if length == 0 {
            return Err(invalid("a length of 0".to_owned()));
        }
        if length > description.max_allocation_size {
            return Err(invalid(format!(
                "{length} bytes are more than the largest allocation of {}",
                description.max_allocation_size
            )));
        }
        Ok(())
    }

    /// Records what `check_attach` or `check_allocate` let pass.
    pub(super) fn insert(&mut self, attachment: AttachmentId, attached: Attached<T>) {
        self.attachments.insert(attachment, attached);
    }

    /// Forgets an attachment.
    pub(super) fn remove(
        &mut self,
        attachment: AttachmentId,
    ) -> Result<Attached<T>, ProviderError> {
        self.attachments
            .remove(&attachment)
            .ok_or_else(|| unknown(attachment))
    }

    /// Everything that is attached, for the end of the session.
    pub(super) fn into_bytes(self) -> impl Iterator<Item = T> {
        self.attachments
            .into_values()
            .map(|attached| attached.bytes)
    }

    /// Checks a fill; the bytes that it names.
    pub(super) fn check_fill(
        &self,
        attachment: AttachmentId,
        offset: u64,
        length: u64,
    ) -> Result<&T, ProviderError> {
        let attached = self.find(attachment)?;
        if length == 0 {
            return Err(invalid("a fill of 0 bytes".to_owned()));
        }
        if !offset.is_multiple_of(4) || !length.is_multiple_of(4) {
            return Err(invalid(format!(
                "fill of {length} bytes at {offset} is not aligned to 4"
            )));
        }
        inside(offset, length, attached.length, "attachment")?;
        Ok(&attached.bytes)
    }

    /// Checks a copy; source and destination.
    pub(super) fn check_copy(&self, range: &CopyRange) -> Result<(&T, &T), ProviderError> {
        let source = self.find(range.source)?;
        let destination = self.find(range.destination)?;
        let length = range.length;
        if length == 0 {
            return Err(invalid("a copy of 0 bytes".to_owned()));
        }
        inside(range.source_offset, length, source.length, "source")?;
        inside(
            range.destination_offset,
            length,
            destination.length,
            "destination",
        )?;
        // Sums cannot overflow: both offsets plus `length` are inside attachments that lie inside files.
        let distance = match (source.place, destination.place) {
            (Place::File { file: a, offset: x }, Place::File { file: b, offset: y }) if a == b => {
                Some((x + range.source_offset).abs_diff(y + range.destination_offset))
            }
            _ if range.source == range.destination => {
                Some(range.source_offset.abs_diff(range.destination_offset))
            }
            _ => None,
        };
        match distance {
            Some(distance) if distance < length => Err(invalid(format!(
                "copy of {length} bytes onto itself, {distance} bytes apart"
            ))),
            _ => Ok((&source.bytes, &destination.bytes)),
        }
    }

    fn find(&self, attachment: AttachmentId) -> Result<&Attached<T>, ProviderError> {
        self.attachments
            .get(&attachment)
            .ok_or_else(|| unknown(attachment))
    }
}

fn unknown(attachment: AttachmentId) -> ProviderError {
    invalid(format!("attachment {} is unknown", attachment.0))
}

/// A memory type whose placement must suit.
fn memory_type(
    description: &Description,
    index: u32,
    suits: impl Fn(Placement) -> bool,
) -> Result<&MemoryType, ProviderError> {
    usize::try_from(index)
        .ok()
        .and_then(|index| description.memory_types.get(index))
        .filter(|found| suits(found.placement))
        .ok_or_else(|| invalid(format!("memory type {index} has another placement")))
}

fn inside(offset: u64, length: u64, size: u64, of: &str) -> Result<(), ProviderError> {
    match offset.checked_add(length) {
        Some(end) if end <= size => Ok(()),
        _ => Err(invalid(format!(
            "{length} bytes at {offset} are outside the {of} of {size} bytes"
        ))),
    }
}
