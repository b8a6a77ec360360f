//! A blob resource and its mapping: the owner that destroys both.

use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use hostblob_protocol::Status;
use parking_lot::RwLock;

use crate::error::{Error, Result};
use crate::region::Mapping;
use crate::session::Session;
use crate::transport::RawBlob;

/// A virtio-gpu blob resource of this context. Destroyed on drop, its mapping with it.
///
/// Callable from any thread. Addresses from [`Blob::map`] end with [`Blob::unmap`] or drop; what the host does with the bytes
/// meanwhile is not synchronised by anything here.
#[derive(Debug)]
pub struct Blob {
    // Before `raw` goes: a mapping must not outlive its place in the window.
    mapping: RwLock<Option<Mapping>>,
    raw: RawBlob,
    mappable: bool,
    /// A dma-buf of it may be about, which keeps it when it is destroyed here.
    exported: AtomicBool,
    session: Arc<Session>,
}

impl Blob {
    pub(crate) fn new(session: Arc<Session>, raw: RawBlob, mapping: Option<Mapping>) -> Self {
        let mappable = mapping.is_some();
        Self {
            mapping: RwLock::new(mapping),
            raw,
            mappable,
            exported: AtomicBool::new(false),
            session,
        }
    }

    /// A blob that came from elsewhere and may or may not be mappable.
    pub(crate) fn foreign(session: Arc<Session>, raw: RawBlob) -> Self {
        Self {
            mapping: RwLock::new(None),
            raw,
            mappable: true,
            exported: AtomicBool::new(false),
            session,
        }
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.raw.size
    }

    /// The virtio-gpu resource id.
    pub fn resource_id(&self) -> u32 {
        self.raw.resource_id
    }

    /// Where its bytes are. The same address until [`Blob::unmap`].
    pub fn map(&self) -> Result<NonNull<u8>> {
        self.mapping().map(|mapping| mapping.address())
    }

    pub(crate) fn mapping(&self) -> Result<Mapping> {
        if let Some(mapping) = &*self.mapping.read() {
            return Ok(mapping.clone());
        }
        let mut slot = self.mapping.write();
        if let Some(mapping) = &*slot {
            return Ok(mapping.clone());
        }
        if !self.mappable {
            return Err(Error::status_of(Status::NotMappable, "map"));
        }
        let mapping = self.session.transport().map_blob(&self.raw)?;
        *slot = Some(mapping.clone());
        Ok(mapping)
    }

    /// Gives the address range back. The blob keeps its bytes.
    pub fn unmap(&self) {
        let mapping = self.mapping.write().take();
        drop(mapping);
    }

    /// Copies `into.len()` bytes from `offset` on out of the blob.
    pub fn read(&self, offset: u64, into: &mut [u8]) -> Result<()> {
        self.mapping()?.read(offset, into)
    }

    /// Copies bytes into the blob.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.mapping()?.write(offset, bytes)
    }

    /// A dma-buf of the blob, which must have been created shareable. [`Status::Unsupported`] over the socket.
    pub fn export_dma_buf(&self) -> Result<OwnedFd> {
        let dma_buf = self.session.transport().export_dma_buf(&self.raw)?;
        self.exported.store(true, Ordering::Relaxed);
        Ok(dma_buf)
    }

    /// Whether a dma-buf of it was ever made.
    pub(crate) fn was_exported(&self) -> bool {
        self.exported.load(Ordering::Relaxed)
    }
}

impl Drop for Blob {
    fn drop(&mut self) {
        self.unmap();
        self.session.destroy_blob(&self.raw);
    }
}
