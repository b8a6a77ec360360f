//! How requests reach the device: one interface, two ways.
//!
//! | module | way |
//! |---|---|
//! | [`drm`] | the guest kernel's virtio-gpu driver, through a render node |
//! | [`socket`] | the same virtio-gpu commands to a `hostblobd --local-socket` |
//!
//! A transport knows virtio-gpu and nothing of hostblob's requests: commands are bytes to it.

pub(crate) mod drm;
pub(crate) mod socket;

use std::fmt::Debug;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use hostblob_protocol::DEFAULT_CAPSET_ID;
use hostblob_protocol::virtio_gpu::MAX_RINGS;

use crate::error::{Error, Result};
use crate::options::{ENV_CAPSET_ID, ENV_RENDER_NODE, ENV_SOCKET, Endpoint, OpenOptions};
use crate::region::Mapping;
use crate::waits::MOST_WAITS;
use drm::Drm;
use socket::Socket;

/// How a device is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TransportKind {
    /// A DRM render node of the guest kernel.
    Drm,
    /// The Unix socket of a `hostblobd --local-socket`.
    Socket,
}

/// The context's timeline of requests that the host answers as soon as it reads them.
pub(crate) const RING_REQUESTS: u8 = 0;
/// The context's timeline of host GPU work.
pub(crate) const RING_GPU: u8 = 1;
/// The first of the timelines that carry one long wait each.
pub(crate) const RING_FIRST_WAIT: u8 = 2;
/// Timelines that a context is created with.
pub(crate) const RING_COUNT: u8 = RING_FIRST_WAIT + MOST_WAITS;
const _: () = assert!(RING_COUNT as u32 <= MAX_RINGS);
/// No timeout is longer: ten years, which every clock can count.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(10 * 366 * 24 * 3600);

/// A blob to create.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BlobSpec<'a> {
    /// `VIRTIO_GPU_BLOB_MEM_*`.
    pub(crate) blob_mem: u32,
    pub(crate) blob_id: u64,
    pub(crate) size: u64,
    pub(crate) mappable: bool,
    pub(crate) shareable: bool,
    /// Executed by the host just before the creation; empty for none.
    pub(crate) command: &'a [u8],
}

/// A blob that exists, until [`Transport::destroy_blob`]. Not `Clone`: it has one owner.
#[derive(Debug)]
pub(crate) struct RawBlob {
    /// GEM handle; 0 over the socket.
    pub(crate) handle: u32,
    pub(crate) resource_id: u32,
    pub(crate) size: u64,
    /// Where the daemon put it in the window; `None` where it is not mapped, and on DRM, where the kernel knows.
    pub(crate) window_offset: Option<u64>,
}

/// Host work that will be done.
#[derive(Debug)]
pub(crate) enum Completion {
    /// Readable when it is.
    SyncFile(OwnedFd),
    /// The response to the command of this tag.
    Tag(u64),
}

/// A way to the device. Callable from any thread.
pub(crate) trait Transport: Send + Sync + Debug {
    fn kind(&self) -> TransportKind;

    /// The capset's bytes.
    fn read_capset(&self) -> Result<Vec<u8>>;

    /// Creates a blob, and maps it into the window where it is mappable. An error may come here or, on DRM, first in
    /// [`Transport::map_blob`].
    fn create_blob(&self, spec: &BlobSpec<'_>) -> Result<RawBlob>;

    /// Maps a mappable blob into this process.
    fn map_blob(&self, blob: &RawBlob) -> Result<Mapping>;

    /// Gives the blob back. Mappings of it that are left keep it alive on DRM and must not be used over the socket.
    fn destroy_blob(&self, blob: &RawBlob);

    /// Whether a destroyed blob counts at the host for some time, so that a creation sent later can arrive earlier.
    fn destroys_later(&self) -> bool;

    /// Sends a command and waits for nothing.
    fn submit(&self, command: &[u8]) -> Result<()>;

    /// Sends a command whose completion is told on that ring.
    fn submit_fenced(&self, command: &[u8], ring: u8) -> Result<Completion>;

    /// Whether it was done before `deadline`; `None` waits as long as the device lives. May be called again after it returned true.
    fn wait(&self, completion: &Completion, deadline: Option<Instant>) -> Result<bool>;

    /// Nobody will wait for it any more.
    fn forget(&self, completion: &Completion);

    /// Takes in what the device has sent, so that it is never stopped by us. Fails when the device is lost.
    fn pump(&self) -> Result<()>;

    /// After this time without a response, the device counts as lost.
    fn timeout(&self) -> Duration;

    /// A dma-buf of the blob.
    fn export_dma_buf(&self, blob: &RawBlob) -> Result<OwnedFd>;

    /// The blob of a dma-buf.
    fn import_dma_buf(&self, fd: BorrowedFd<'_>) -> Result<RawBlob>;
}

/// Goes the way that the options, or the environment, name.
pub(crate) fn connect(options: &OpenOptions) -> Result<Box<dyn Transport>> {
    let from_environment = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let endpoint = match &options.endpoint {
        Endpoint::Environment => {
            if let Some(path) = from_environment(ENV_SOCKET) {
                Endpoint::Socket(path.into())
            } else if let Some(path) = from_environment(ENV_RENDER_NODE) {
                Endpoint::RenderNode(path.into())
            } else {
                Endpoint::AnyRenderNode
            }
        }
        other => other.clone(),
    };
    let capset_id = match (options.capset_id, from_environment(ENV_CAPSET_ID)) {
        (Some(id), _) => Some(id),
        (None, Some(text)) => {
            let id = text.to_str().and_then(|text| text.parse().ok());
            Some(id.ok_or_else(|| Error::invalid(format!("{ENV_CAPSET_ID}={text:?}")))?)
        }
        (None, None) => None,
    };
    let on_node = capset_id.unwrap_or(DEFAULT_CAPSET_ID);
    // Deadlines are sums with it, and one that no clock can count is a panic.
    let timeout = options.timeout.min(LONGEST_TIMEOUT);
    Ok(match endpoint {
        Endpoint::Socket(path) => Box::new(Socket::open(&path, capset_id, timeout)?),
        Endpoint::RenderNode(path) => Box::new(Drm::open(&path, on_node, timeout)?),
        Endpoint::Environment | Endpoint::AnyRenderNode => {
            Box::new(Drm::open_any(on_node, timeout)?)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;
    use crate::fake::{Fake, Script};
    use crate::options::AllocateInfo;

    #[test]
    fn a_timeout_may_be_longer_than_clocks_count() {
        let fake = Fake::start(Script::default());
        let options = OpenOptions {
            timeout: Duration::MAX,
            ..fake.options()
        };
        let device = Device::open(&options).unwrap();
        let memory = device.allocate(&AllocateInfo::new(4096)).unwrap();
        device.fill(&memory, 0, 4, 7).unwrap().wait(None).unwrap();
        let mut bytes = [0; 4];
        memory.read(0, &mut bytes).unwrap();
        assert_eq!(bytes, [7, 0, 0, 0]);
        assert_eq!(device.session().transport().timeout(), LONGEST_TIMEOUT);
    }
}
