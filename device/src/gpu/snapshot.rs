//! The device as a stream of bytes: the guest's, and where its own pages are.
//!
//! The pages of a blob are in the guest's memory, which the VMM saves. What is saved here are their guest-physical addresses, as the guest
//! gave them: they are looked up again when the restored device is told where the guest's memory is.

use std::io::{self, Read, Write};

use hostblob_allocator::snapshot::stream::{Fields, FormatError, Payload, Reader, Writer};
use hostblob_allocator::snapshot::{
    RestoreError as GuestRestoreError, SaveError as GuestSaveError,
};
use hostblob_capset::WindowMode;
use thiserror::Error;

use super::Gpu;
use super::renderers::Renderer;

/// What a device's stream begins with.
const MAGIC: [u8; 8] = *b"HBLBVGPU";

const DEVICE: u32 = 1;
const PAGES: u32 = 2;

/// Entries in one section.
const BATCH: usize = 65536;

/// Why a device cannot be saved now. It is as before.
#[derive(Debug, Error)]
pub enum SaveError {
    /// The sink fails.
    #[error("it cannot be written: {0}")]
    Io(#[from] io::Error),
    /// The guest behind it cannot be saved.
    #[error(transparent)]
    Guest(#[from] GuestSaveError),
    /// Commands whose responses wait for GPU work, or for host processes.
    #[error("{0} commands are under way")]
    Busy(usize),
    /// Rutabaga's contexts are connections to other processes, and 2D resources are seen by others.
    #[error("the guest has {0}, which no snapshot holds")]
    Elsewhere(&'static str),
    /// The transport's connection is ending, or goes on otherwise.
    #[error("the connection is ending")]
    Ending,
    /// There is no device.
    #[error("no VMM is connected")]
    NoDevice,
}

/// Why a device was not restored. It is as new.
#[derive(Debug, Error)]
pub enum RestoreError {
    /// The bytes are not a snapshot that can be read here.
    #[error("no snapshot that can be read: {0}")]
    Format(#[from] FormatError),
    /// The guest behind it cannot be restored.
    #[error(transparent)]
    Guest(#[from] GuestRestoreError),
    /// Contexts of the guest have the id.
    #[error("the capset's id was {saved} and is {here}: start with --capset-id {saved}")]
    CapsetId {
        /// In the snapshot.
        saved: u32,
        /// Of this device.
        here: u32,
    },
    /// Commands may come.
    #[error("the queues run")]
    Running,
    /// This device cannot.
    #[error("it has nothing to restore")]
    Unsupported,
    /// The blobs of a snapshot are where the window is mapped as a whole.
    #[error(
        "a window whose blobs are mapped one by one takes no snapshot: use --window-mode premapped"
    )]
    OnDemand,
}

fn inconsistent(reason: &'static str) -> RestoreError {
    GuestRestoreError::Inconsistent(reason).into()
}

impl Gpu {
    /// Writes the device to `sink`. No command may be under way; responses that are ready must have been taken.
    pub fn save(&mut self, sink: &mut dyn Write) -> Result<(), SaveError> {
        if !self.kept.is_empty() {
            return Err(SaveError::Busy(self.kept.len()));
        }
        if self
            .renderer
            .as_ref()
            .is_some_and(|theirs| !theirs.is_empty())
        {
            return Err(SaveError::Elsewhere("contexts of another renderer"));
        }
        if !self.images.is_empty() {
            return Err(SaveError::Elsewhere("2D resources"));
        }
        let mut writer = Writer::new(sink, MAGIC)?;
        let device = Payload::new().put(self.capset_id.to_le_bytes());
        writer.section(DEVICE, device.bytes())?;
        let mut resources: Vec<_> = self.backings.iter().collect();
        resources.sort_unstable_by_key(|(resource, _)| *resource);
        for (resource, entries) in resources {
            for entries in entries.chunks(BATCH) {
                let mut pages = Payload::new().put(resource.to_le_bytes());
                for entry in entries {
                    pages.push(entry.addr.get().to_le_bytes());
                    pages.push(entry.length.get().to_le_bytes());
                }
                writer.section(PAGES, pages.bytes())?;
            }
        }
        writer.finish()?;
        self.guest.save(sink)?;
        Ok(())
    }

    /// Makes the device what [`Gpu::save`] wrote. It must be new. Blobs in the guest's own pages have them again after the next
    /// [`Gpu::guest_pages_changed`].
    pub fn restore(&mut self, source: &mut dyn Read) -> Result<(), RestoreError> {
        if !self.is_new() {
            return Err(GuestRestoreError::InUse.into());
        }
        if self.window_mode() == WindowMode::OnDemand {
            return Err(RestoreError::OnDemand);
        }
        let restored = self.restore_from(source);
        if restored.is_err() {
            self.reset();
        }
        restored
    }

    fn restore_from(&mut self, source: &mut dyn Read) -> Result<(), RestoreError> {
        let mut reader = Reader::new(source, MAGIC)?;
        let mut known = false;
        while let Some((kind, payload)) = reader.next_section()? {
            match kind {
                DEVICE if !known => {
                    let mut fields = Fields::new("device", payload);
                    let saved = fields.u32()?;
                    fields.end()?;
                    let here = self.capset_id;
                    if saved != here {
                        return Err(RestoreError::CapsetId { saved, here });
                    }
                    known = true;
                }
                PAGES if known => {
                    let mut fields = Fields::new("pages", payload);
                    let resource = fields.u32()?;
                    while !fields.is_empty() {
                        let (addr, length) = (fields.u64()?, fields.u32()?);
                        let kept = self.backings.append(resource, addr, length);
                        let too_many =
                            |_| inconsistent("more pieces of guest memory than a guest can name");
                        kept.map_err(too_many)?;
                    }
                }
                _ => return Err(reader.unexpected(kind).into()),
            }
        }
        if !known {
            return Err(inconsistent("there is no device in it"));
        }
        self.guest.restore(source)?;
        let mut resources = self.backings.iter();
        if !resources.all(|(resource, _)| self.guest.has_resource(resource)) {
            return Err(inconsistent("pages of a resource that is not there"));
        }
        Ok(())
    }

    /// Whether nothing of a guest is there, as after a reset.
    pub fn is_new(&self) -> bool {
        let theirs = self.renderer.as_ref();
        self.guest.is_new()
            && self.kept.is_empty()
            && self.images.is_empty()
            && theirs.is_none_or(Renderer::is_empty)
    }
}
