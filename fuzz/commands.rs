//! Commands of virtio-gpu as bytes, and how a device answers them.

use std::time::{Duration, Instant};

use hostblob_allocator::Host;
use hostblob_device::gpu::{Gpu, NoPages, Response};
use hostblob_protocol::DEFAULT_CAPSET_ID;
use hostblob_protocol::virtio_gpu::{
    CmdSubmit, CtrlHdr, CtxCreate, FLAG_FENCE, FLAG_INFO_RING_IDX, ResourceCreateBlob,
    ResourceMapBlob, ResourceOnly, blob_flag, blob_mem, cmd, resp,
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// How long a device may take for work that is nothing. The machine may be busy.
const PATIENCE: Duration = Duration::from_secs(20);

/// Header and structure.
pub fn command<T: IntoBytes + Immutable + ?Sized>(kind: u32, context: u32, body: &T) -> Vec<u8> {
    let header = CtrlHdr {
        cmd_type: kind.into(),
        ctx_id: context.into(),
        ..CtrlHdr::default()
    };
    [header.as_bytes(), body.as_bytes()].concat()
}

/// CTX_CREATE of our capset.
pub fn create_context(context: u32) -> Vec<u8> {
    let body = CtxCreate {
        context_init: DEFAULT_CAPSET_ID.into(),
        ..CtxCreate::default()
    };
    command(cmd::CTX_CREATE, context, &body)
}

/// RESOURCE_CREATE_BLOB of memory of the host that can be mapped.
pub fn create_blob(context: u32, resource: u32, blob_id: u64, size: u64) -> Vec<u8> {
    let body = ResourceCreateBlob {
        resource_id: resource.into(),
        blob_mem: blob_mem::HOST3D.into(),
        blob_flags: blob_flag::USE_MAPPABLE.into(),
        nr_entries: 0.into(),
        blob_id: blob_id.into(),
        size: size.into(),
    };
    command(cmd::RESOURCE_CREATE_BLOB, context, &body)
}

/// RESOURCE_MAP_BLOB.
pub fn map_blob(resource: u32, offset: u64) -> Vec<u8> {
    let body = ResourceMapBlob {
        resource_id: resource.into(),
        offset: offset.into(),
        ..ResourceMapBlob::default()
    };
    command(cmd::RESOURCE_MAP_BLOB, 0, &body)
}

/// A command that names a resource and nothing more.
pub fn of_resource(kind: u32, context: u32, resource: u32) -> Vec<u8> {
    let body = ResourceOnly {
        resource_id: resource.into(),
        ..ResourceOnly::default()
    };
    command(kind, context, &body)
}

/// SUBMIT_3D of an envelope.
pub fn submit(context: u32, envelope: &[u8]) -> Vec<u8> {
    let body = CmdSubmit {
        size: u32::try_from(envelope.len())
            .expect("inputs are small")
            .into(),
        ..CmdSubmit::default()
    };
    let bytes = [body.as_bytes(), envelope].concat();
    command(cmd::SUBMIT_3D, context, bytes.as_slice())
}

/// The type of the response to a command without a fence.
pub fn run(gpu: &mut Gpu, command: &[u8]) -> u32 {
    let response = gpu.execute(0, command, &NoPages);
    let response = response.unwrap_or_else(|| completed(gpu, 0));
    check_response(command, response.as_bytes());
    response.kind()
}

/// The kept response to the command of this tag.
pub fn completed(gpu: &mut Gpu, tag: u64) -> Response {
    let mut found = None;
    wait_until("a response", || {
        let mut responses = gpu.completed();
        responses.retain(|(of, _)| *of == tag);
        found = responses.pop().map(|(_, response)| response);
        found.is_some()
    });
    found.expect("waited for")
}

/// Waits for what must happen.
///
/// # Panics
/// Where it does not.
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "{what} did not come");
        std::thread::sleep(Duration::from_micros(50));
    }
}

/// After a reset a device holds nothing, and serves a new guest.
///
/// # Panics
/// Where it does not.
pub fn check_reset(gpu: &mut Gpu, host: &Host) {
    gpu.reset();
    assert!(gpu.is_new(), "something is left after a reset");
    wait_until("the last refund", || {
        let _ = gpu.completed();
        host.used() == 0
    });
    assert_eq!(run(gpu, &create_context(1)), resp::OK_NODATA);
    assert_eq!(run(gpu, &create_blob(1, 1, 0, 4096)), resp::OK_NODATA);
    assert_eq!(run(gpu, &map_blob(1, 0)), resp::OK_MAP_INFO);
    assert_eq!(
        run(gpu, &of_resource(cmd::RESOURCE_UNREF, 0, 1)),
        resp::OK_NODATA
    );
    assert_eq!(
        run(gpu, &command(cmd::CTX_DESTROY, 1, &())),
        resp::OK_NODATA
    );
    gpu.reset();
}

/// A response is a header of virtio 1.3, 5.7.6.7, that repeats the command's fence, and the structure of its type.
///
/// # Panics
/// Where it is not.
pub fn check_response(command: &[u8], response: &[u8]) {
    let asked = CtrlHdr::read_from_prefix(command).map_or(CtrlHdr::default(), |(header, _)| header);
    let (header, body) = CtrlHdr::read_from_prefix(response).expect("a header");
    let kind = header.cmd_type.get();
    let (of, length) = match kind {
        resp::OK_NODATA => (None, 0),
        resp::OK_DISPLAY_INFO => (Some(cmd::GET_DISPLAY_INFO), 16 * 24),
        resp::OK_CAPSET_INFO => (Some(cmd::GET_CAPSET_INFO), 16),
        resp::OK_CAPSET => (Some(cmd::GET_CAPSET), hostblob_capset::ENCODED_SIZE),
        resp::OK_RESOURCE_UUID => (Some(cmd::RESOURCE_ASSIGN_UUID), 16),
        resp::OK_MAP_INFO => (Some(cmd::RESOURCE_MAP_BLOB), 8),
        resp::ERR_UNSPEC..=resp::ERR_INVALID_PARAMETER => (None, 0),
        other => panic!("a response of type {other:#x}"),
    };
    assert_eq!(body.len(), length, "bytes after {kind:#x}");
    if let Some(of) = of {
        assert_eq!(asked.cmd_type.get(), of, "{kind:#x} answers something else");
    }
    let flags = asked.flags.get() & (FLAG_FENCE | FLAG_INFO_RING_IDX);
    if flags & FLAG_FENCE == 0 {
        assert_eq!((header.flags.get(), header.fence_id.get()), (0, 0));
        return;
    }
    assert_eq!(header.flags.get(), flags);
    assert_eq!(header.fence_id, asked.fence_id);
    assert_eq!(header.ctx_id, asked.ctx_id);
    if flags & FLAG_INFO_RING_IDX != 0 {
        assert_eq!(header.ring_idx, asked.ring_idx);
    }
}
