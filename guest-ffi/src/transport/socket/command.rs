//! virtio-gpu commands in frames, ready to send: several of them in one write, as the guest kernel queues them.

use hostblob_protocol::local::{COMMAND, Frame};
use hostblob_protocol::virtio_gpu::{
    CmdSubmit, CtrlHdr, CtxCreate, DebugName64, FLAG_FENCE, FLAG_INFO_RING_IDX, GetCapset,
    ResourceCreateBlob, ResourceMapBlob, ResourceOnly, blob_flag, cmd,
};
use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::inbox::Response;
use crate::transport::BlobSpec;

/// What the daemon sees of us in its log.
const CONTEXT_NAME: &[u8] = b"hostblob-guest";

/// Frames in the order in which the daemon executes them.
#[derive(Debug, Default)]
pub(super) struct Batch {
    bytes: Vec<u8>,
    frames: usize,
}

fn header(cmd_type: u32, ctx_id: u32) -> CtrlHdr {
    CtrlHdr {
        cmd_type: U32::new(cmd_type),
        ctx_id: U32::new(ctx_id),
        ..CtrlHdr::default()
    }
}

impl Batch {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn frames(&self) -> usize {
        self.frames
    }

    fn frame(
        &mut self,
        tag: u64,
        header: CtrlHdr,
        body: &(impl IntoBytes + Immutable),
        data: &[u8],
    ) {
        self.frames += 1;
        let body = body.as_bytes();
        let length = size_of::<CtrlHdr>() + body.len() + data.len();
        let frame = Frame {
            length: U32::new(u32::try_from(length).unwrap_or(u32::MAX)),
            kind: U32::new(COMMAND),
            tag: U64::new(tag),
            aux: U64::new(0),
        };
        for part in [frame.as_bytes(), header.as_bytes(), body, data] {
            self.bytes.extend_from_slice(part);
        }
    }

    pub(super) fn context_create(&mut self, tag: u64, context: u32, capset_id: u32) {
        let mut name = DebugName64::default();
        for (to, from) in name.0.iter_mut().zip(CONTEXT_NAME) {
            *to = *from;
        }
        let body = CtxCreate {
            nlen: U32::new(u32::try_from(CONTEXT_NAME.len()).unwrap_or(0)),
            context_init: U32::new(capset_id),
            debug_name: name,
        };
        self.frame(tag, header(cmd::CTX_CREATE, context), &body, &[]);
    }

    pub(super) fn get_capset(&mut self, tag: u64, capset_id: u32) {
        let body = GetCapset {
            capset_id: U32::new(capset_id),
            capset_version: U32::new(hostblob_capset::VERSION),
        };
        self.frame(tag, header(cmd::GET_CAPSET, 0), &body, &[]);
    }

    /// With a ring, the response comes when the work is done.
    pub(super) fn submit(&mut self, tag: u64, context: u32, command: &[u8], ring: Option<u8>) {
        let mut header = header(cmd::SUBMIT_3D, context);
        if let Some(ring) = ring {
            header.flags = U32::new(FLAG_FENCE | FLAG_INFO_RING_IDX);
            header.fence_id = U64::new(tag);
            header.ring_idx = ring;
        }
        let size = U32::new(u32::try_from(command.len()).unwrap_or(u32::MAX));
        let body = CmdSubmit {
            size,
            ..CmdSubmit::default()
        };
        self.frame(tag, header, &body, command);
    }

    pub(super) fn create_blob(
        &mut self,
        tag: u64,
        context: u32,
        resource_id: u32,
        spec: &BlobSpec<'_>,
    ) {
        let mappable = if spec.mappable {
            blob_flag::USE_MAPPABLE
        } else {
            0
        };
        let shareable = if spec.shareable {
            blob_flag::USE_SHAREABLE
        } else {
            0
        };
        let body = ResourceCreateBlob {
            resource_id: U32::new(resource_id),
            blob_mem: U32::new(spec.blob_mem),
            blob_flags: U32::new(mappable | shareable),
            nr_entries: U32::new(0),
            blob_id: U64::new(spec.blob_id),
            size: U64::new(spec.size),
        };
        self.frame(tag, header(cmd::RESOURCE_CREATE_BLOB, context), &body, &[]);
    }

    pub(super) fn map_blob(&mut self, tag: u64, resource_id: u32, offset: u64) {
        let body = ResourceMapBlob {
            resource_id: U32::new(resource_id),
            padding: U32::new(0),
            offset: U64::new(offset),
        };
        self.frame(tag, header(cmd::RESOURCE_MAP_BLOB, 0), &body, &[]);
    }

    pub(super) fn unmap_blob(&mut self, tag: u64, resource_id: u32) {
        let body = ResourceOnly {
            resource_id: U32::new(resource_id),
            ..Default::default()
        };
        self.frame(tag, header(cmd::RESOURCE_UNMAP_BLOB, 0), &body, &[]);
    }

    pub(super) fn unref(&mut self, tag: u64, resource_id: u32) {
        let body = ResourceOnly {
            resource_id: U32::new(resource_id),
            ..Default::default()
        };
        self.frame(tag, header(cmd::RESOURCE_UNREF, 0), &body, &[]);
    }
}

impl Response {
    /// `virtio_gpu_ctrl_type`; 0 where there is no header.
    pub(super) fn kind(&self) -> u32 {
        CtrlHdr::read_from_prefix(&self.payload).map_or(0, |(header, _)| header.cmd_type.get())
    }

    /// What follows the header.
    pub(super) fn body(&self) -> &[u8] {
        self.payload.get(size_of::<CtrlHdr>()..).unwrap_or_default()
    }
}
