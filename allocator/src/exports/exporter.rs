//! What makes a descriptor of pages, for other processes.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::provider::Piece;
use crate::provider::udmabuf::Udmabuf;

/// Makes descriptors.
pub trait Exporter: Send + Sync {
    /// A descriptor of these pieces, one after the other, and of nothing else. The pages live as long as it does, also when their file no
    /// longer has them.
    fn create(&self, pieces: &[Piece]) -> io::Result<OwnedFd>;
}

impl Exporter for Udmabuf {
    fn create(&self, pieces: &[Piece]) -> io::Result<OwnedFd> {
        Ok(Udmabuf::create(self, pieces)?)
    }
}

/// The kernel's udmabuf, or a line that says why there is none: a dma-buf of exactly these pages.
pub fn udmabuf() -> Result<Arc<dyn Exporter>, String> {
    Ok(Arc::new(Udmabuf::open()?))
}
