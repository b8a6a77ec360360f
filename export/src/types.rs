//! Blobs and buffers, and what happens to them.

use std::os::fd::OwnedFd;

use hostblob_protocol::export::Layout;

/// A blob's name: the daemon never gives it to another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlobId(pub u64);

impl std::fmt::Display for BlobId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// What a guest imports: see [`crate::Client::hand_in`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub [u8; 16]);

impl std::fmt::Display for Token {
    /// As a UUID is written.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (position, byte) in self.0.iter().enumerate() {
            if matches!(position, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

/// A buffer in a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffer {
    /// Where it lies, and what its bytes mean.
    pub layout: Layout,
    /// Number of its last present, 0 if there was none. Presents of a blob are counted together: the largest is the newest.
    pub present: u64,
}

/// A blob that can be opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    /// Its name.
    pub id: BlobId,
    /// The UUID that contexts of the guest share it under.
    pub uuid: [u8; 16],
    /// Bytes.
    pub size: u64,
    /// The guest's name for it.
    pub name: String,
    /// By offset. A new blob has none.
    pub buffers: Vec<Buffer>,
}

/// A blob that is open.
#[derive(Debug)]
pub struct Exported {
    /// Which.
    pub id: BlobId,
    /// A dma-buf or a memfd of the blob's bytes and nothing else. It is the same buffer each time.
    pub descriptor: OwnedFd,
    /// Bytes.
    pub size: u64,
    /// Its buffers. Those that were presented are in use from now on, unless the blob was open already.
    pub buffers: Vec<Buffer>,
}

/// What happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A blob can be opened.
    Added(Blob),
    /// There is a buffer, or another one at this offset.
    Published(BlobId, Buffer),
    /// The description of the buffer at this offset is gone. If it is in use it still is.
    Withdrawn(BlobId, u64),
    /// A buffer of an open blob has new contents, and is in use from now on.
    Presented {
        /// In which blob.
        blob: BlobId,
        /// Where.
        offset: u64,
        /// Number of this present.
        present: u64,
    },
    /// The blob can no longer be opened. If it is open it stays so.
    Destroyed(BlobId),
}
