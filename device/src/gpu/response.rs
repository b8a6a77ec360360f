//! Responses, as bytes.

use hostblob_protocol::virtio_gpu::{CtrlHdr, FLAG_FENCE, FLAG_INFO_RING_IDX};
use zerocopy::byteorder::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Bytes that fit without an allocation: every response on the map path.
const INLINE: usize = 40;

/// The bytes of one response, ready to be copied into the device-writable part of a chain.
#[derive(Clone)]
pub struct Response(Bytes);

#[derive(Clone)]
enum Bytes {
    Inline([u8; INLINE], usize),
    Heap(Vec<u8>),
}

impl Response {
    /// Any bytes, which begin with a `virtio_gpu_ctrl_hdr`.
    pub fn from_bytes(bytes: Vec<u8>) -> Self {
        Self(Bytes::Heap(bytes))
    }

    /// A response of type `response` to `command`, whose fence, context and ring it repeats (virtio 1.3, 5.7.6.7), and
    /// what follows the header.
    pub(super) fn new<T: IntoBytes + Immutable + ?Sized>(
        command: &CtrlHdr,
        response: u32,
        body: &T,
    ) -> Self {
        let header = echo(command, response);
        let (header, body) = (header.as_bytes(), body.as_bytes());
        let length = header.len() + body.len();
        if length > INLINE {
            return Self::from_bytes([header, body].concat());
        }
        let mut bytes = [0; INLINE];
        for (to, from) in bytes.iter_mut().zip(header.iter().chain(body)) {
            *to = *from;
        }
        Self(Bytes::Inline(bytes, length))
    }

    /// The wire bytes, beginning with `virtio_gpu_ctrl_hdr`.
    pub fn as_bytes(&self) -> &[u8] {
        match &self.0 {
            Bytes::Inline(bytes, length) => bytes.get(..*length).unwrap_or(bytes),
            Bytes::Heap(bytes) => bytes,
        }
    }

    /// The response's type (`VIRTIO_GPU_RESP_*`); 0 where there is no header.
    pub fn kind(&self) -> u32 {
        U32::read_from_prefix(self.as_bytes()).map_or(0, |(kind, _)| kind.get())
    }
}

impl std::fmt::Debug for Response {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Response({:#06x}, {} bytes)",
            self.kind(),
            self.as_bytes().len()
        )
    }
}

impl PartialEq for Response {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for Response {}

fn echo(command: &CtrlHdr, response: u32) -> CtrlHdr {
    let flags = command.flags.get();
    let mut header = CtrlHdr {
        cmd_type: U32::new(response),
        ..CtrlHdr::default()
    };
    if flags & FLAG_FENCE != 0 {
        header.flags = U32::new(flags & (FLAG_FENCE | FLAG_INFO_RING_IDX));
        header.fence_id = command.fence_id;
        header.ctx_id = command.ctx_id;
        header.ring_idx = if flags & FLAG_INFO_RING_IDX != 0 {
            command.ring_idx
        } else {
            0
        };
    }
    header
}
