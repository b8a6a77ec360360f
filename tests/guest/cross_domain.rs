//! A connection to the host's Wayland compositor through a cross-domain context: what sommelier and the like do, for one client.
//!
//! The client speaks Wayland over a Unix socket, as ever. A thread passes its bytes on as SEND commands, and what comes back, as RECEIVE in a ring
//! that the kernel says is ready, into the socket. A dma-buf of one of the context's blobs is passed as the resource that it is.

use std::io::{IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::{Context as _, Result, ensure};
use rustix::event::{PollFd, PollFlags};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

use crate::raw::{
    BLOB_MEM_GUEST, BLOB_MEM_HOST3D, Mapped, Node, PARAM_CAPSET_ID, PARAM_NUM_RINGS,
    PARAM_POLL_RINGS_MASK, RawBlob, USE_MAPPABLE, USE_SHAREABLE,
};

/// The capset of cross-domain contexts.
pub const CAPSET_ID: u64 = 5;

const INIT: u8 = 1;
const GET_IMAGE_REQUIREMENTS: u8 = 2;
const POLL: u8 = 3;
const SEND: u8 = 4;
const RECEIVE: u8 = 5;

const CHANNEL_WAYLAND: u32 = 1;
const ID_BLOB: u32 = 1;
const MAX_IDENTIFIERS: usize = 28;
const QUERY_RING: u32 = 0;
const CHANNEL_RING: u32 = 1;
const RING_SIZE: u64 = 4096;
/// Header, `num_identifiers`, `opaque_data_size`, and three arrays.
const SEND_SIZE: usize = 8 + 8 + 3 * 4 * MAX_IDENTIFIERS;
/// Most bytes of one SEND.
const DATA: usize = RING_SIZE as usize - SEND_SIZE;

/// `RUTABAGA_GRALLOC_USE_LINEAR`, `..._SW_READ_OFTEN` and `..._SW_WRITE_OFTEN`.
const LINEAR_FOR_PROCESSORS: u32 = 1 << 4 | 1 << 9 | 1 << 11;

/// A ring, which is a page of the guest that the host writes.
#[derive(Debug)]
struct Ring {
    blob: RawBlob,
    bytes: Mapped,
}

impl Ring {
    fn new(node: &Node) -> Result<Self> {
        let blob = node.create_blob(BLOB_MEM_GUEST, USE_MAPPABLE, RING_SIZE, 0)?;
        let bytes = node.map(&blob)?;
        Ok(Self { blob, bytes })
    }

    fn word(&self, at: usize) -> u32 {
        let mut word = [0; 4];
        self.bytes.read(at, &mut word);
        u32::from_le_bytes(word)
    }
}

/// A context with a channel to the compositor.
#[derive(Debug)]
pub struct Channel {
    node: Node,
    query: Ring,
    channel: Ring,
}

/// Memory of the host that the compositor can be given.
#[derive(Debug)]
pub struct Image {
    /// The blob.
    pub blob: RawBlob,
    /// Its bytes, here.
    pub pixels: Mapped,
    /// Bytes of a row.
    pub stride: u32,
}

/// A command of these words after its header, and data.
pub fn command(kind: u8, words: &[u32], data: &[u8]) -> Vec<u8> {
    let size = u16::try_from(8 + 4 * words.len() + data.len()).expect("a short command");
    let mut bytes = vec![kind, 0];
    bytes.extend(size.to_le_bytes());
    bytes.extend([0; 4]);
    bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    bytes.extend(data);
    bytes
}

impl Channel {
    /// Connects to the compositor.
    pub fn open() -> Result<Self> {
        let node = Node::open_with(&[
            (PARAM_CAPSET_ID, CAPSET_ID),
            (PARAM_NUM_RINGS, 2),
            (PARAM_POLL_RINGS_MASK, 1 << CHANNEL_RING),
        ])?;
        let (query, channel) = (Ring::new(&node)?, Ring::new(&node)?);
        let rings = [query.blob.resource, channel.blob.resource, CHANNEL_WAYLAND];
        node.submit(&command(INIT, &rings, &[]), None)?;
        Ok(Self {
            node,
            query,
            channel,
        })
    }

    /// The context's node, for nonsense.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Memory for an image of 32 bits per pixel.
    pub fn image(&self, width: u32, height: u32, fourcc: [u8; 4]) -> Result<Image> {
        let words = [
            width,
            height,
            u32::from_le_bytes(fourcc),
            LINEAR_FOR_PROCESSORS,
        ];
        let query = command(GET_IMAGE_REQUIREMENTS, &words, &[]);
        self.node.submit(&query, Some(QUERY_RING))?;
        self.node.wait(&self.query.blob)?;
        // Strides, offsets, modifier, size, blob id. The kernel's WAIT is for the ring's blob, which the submission does not name.
        let mut size = 0;
        for _ in 0..1000 {
            size = u64::from(self.query.word(40)) | u64::from(self.query.word(44)) << 32;
            if size != 0 {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let (stride, id) = (self.query.word(0), self.query.word(48));
        ensure!(
            size >= u64::from(stride) * u64::from(height),
            "{size} bytes of image"
        );
        let flags = USE_MAPPABLE | USE_SHAREABLE;
        let blob = self
            .node
            .create_blob(BLOB_MEM_HOST3D, flags, size, id.into())?;
        let pixels = self.node.map(&blob).context("the image's memory")?;
        Ok(Image {
            blob,
            pixels,
            stride,
        })
    }

    /// A socket that is the compositor's, as far as a client can tell. The thread ends when either side does.
    pub fn socket(self: &Arc<Self>) -> Result<(UnixStream, JoinHandle<Result<()>>)> {
        let (client, ours) = UnixStream::pair()?;
        let channel = Arc::clone(self);
        let thread = std::thread::spawn(move || channel.proxy(ours));
        Ok((client, thread))
    }

    fn proxy(&self, mut client: UnixStream) -> Result<()> {
        self.poll()?;
        loop {
            let mut ready = [
                PollFd::new(&client, PollFlags::IN),
                PollFd::new(&self.node, PollFlags::IN),
            ];
            rustix::event::poll(&mut ready, None)?;
            let [from_client, from_host] = ready.map(|ready| !ready.revents().is_empty());
            if from_client && !self.pass_on(&client)? {
                return Ok(());
            }
            if from_host {
                self.take_event()?;
                let data = self.received()?;
                if data.is_empty() {
                    // The compositor has hung up.
                    return Ok(());
                }
                client.write_all(&data)?;
                self.poll()?;
            }
        }
    }

    /// Asks for the next event of the channel.
    fn poll(&self) -> Result<()> {
        self.node
            .submit(&command(POLL, &[0, 0], &[]), Some(CHANNEL_RING))
    }

    /// `struct drm_event`: the ring's fence was signalled.
    fn take_event(&self) -> Result<()> {
        let mut event = [0; 8];
        let length = rustix::io::read(&self.node, &mut event)?;
        ensure!(length == 8, "an event of {length} bytes");
        Ok(())
    }

    /// What the host wrote into the channel's ring.
    fn received(&self) -> Result<Vec<u8>> {
        let kind = self.channel.word(0) & 0xff;
        ensure!(kind == u32::from(RECEIVE), "command {kind} from the host");
        let descriptors = self.channel.word(8);
        ensure!(
            descriptors == 0,
            "{descriptors} descriptors, nobody wants one"
        );
        let length = self.channel.word(12) as usize;
        ensure!(length <= DATA, "{length} bytes from the host");
        let mut data = vec![0; length];
        self.channel.bytes.read(SEND_SIZE, &mut data);
        Ok(data)
    }

    /// Passes on what the client has sent. `false`: it has hung up.
    fn pass_on(&self, client: &UnixStream) -> Result<bool> {
        let mut data = [0; DATA];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_IDENTIFIERS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut data)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let received = rustix::net::recvmsg(client, &mut parts, &mut control, flags)?;
        let mut descriptors: Vec<OwnedFd> = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(more) = message {
                descriptors.extend(more);
            }
        }
        if received.bytes == 0 {
            return Ok(false);
        }
        let resources = descriptors.iter().map(AsFd::as_fd);
        let resources =
            resources.map(|descriptor: BorrowedFd<'_>| self.node.resource_of(descriptor));
        let resources = resources.collect::<Result<Vec<_>>>()?;
        self.send(&data[..received.bytes], &resources)?;
        Ok(true)
    }

    /// SEND: bytes for the compositor, with the memory of these resources.
    pub fn send(&self, data: &[u8], resources: &[u32]) -> Result<()> {
        let mut words = vec![u32::try_from(resources.len())?, u32::try_from(data.len())?];
        let mut identifiers = [0; 3 * MAX_IDENTIFIERS];
        for (at, resource) in resources.iter().enumerate() {
            identifiers[at] = *resource;
            identifiers[MAX_IDENTIFIERS + at] = ID_BLOB;
        }
        words.extend(identifiers);
        self.node.submit(&command(SEND, &words, data), None)
    }
}
