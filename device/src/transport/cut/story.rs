//! What a well-behaved guest does, over any transport: memory that it and the GPU use, work under way, a reset, and memory again.

use std::fs::File;
use std::os::unix::fs::FileExt;

use hostblob_allocator::provider::fake::FakeProvider;
use hostblob_protocol::EnvelopeBuilder;
use hostblob_protocol::request::{
    CacheMode, Create, CreateFlags, Fill, MemoryRange, MemorySelector, Request,
};
use hostblob_protocol::virtio_gpu::{CtrlHdr, FLAG_FENCE, cmd, resp};
use zerocopy::{Immutable, IntoBytes};

use crate::gpu::tests::{PAGE, blob, bytes, context_body, header, map, only, submit};

/// Bytes of each memory.
const SIZE: usize = 8192;
/// Where the second memory is.
const SECOND: u64 = 16 * PAGE;
const SECRET: u8 = 0x5e;

/// A guest and its VMM.
pub(in crate::transport) trait Frontend {
    /// The response to a command.
    fn ask(&mut self, command: &[u8]) -> Vec<u8>;
    /// A command whose response nobody waits for.
    fn leave(&mut self, command: &[u8]);
    /// The window, once something was mapped.
    fn window(&self) -> File;
    /// The driver resets the device and starts again. False where that takes a new connection.
    fn reset(&mut self) -> bool;
}

fn expect<T>(frontend: &mut impl Frontend, kind: u32, body: &T, response: u32)
where
    T: IntoBytes + Immutable + ?Sized,
{
    let context = match kind {
        cmd::CTX_CREATE | cmd::SUBMIT_3D | cmd::RESOURCE_CREATE_BLOB => 1,
        _ => 0,
    };
    let answer = frontend.ask(&bytes(header(kind, context), body));
    assert_eq!(answer[..4], response.to_le_bytes(), "command {kind:#x}");
}

fn request(request: impl Into<Request>) -> Vec<u8> {
    submit(&EnvelopeBuilder::new(0).request(request).build())
}

fn fill() -> Vec<u8> {
    let range = MemoryRange {
        client_id: 7,
        offset: 0,
        length: SIZE as u64,
    };
    let fenced = CtrlHdr {
        flags: FLAG_FENCE.into(),
        ..header(cmd::SUBMIT_3D, 1)
    };
    bytes(fenced, request(Fill { range, value: 1 }).as_slice())
}

fn at(frontend: &impl Frontend, offset: u64) -> Vec<u8> {
    let mut found = vec![0xff; SIZE];
    frontend.window().read_exact_at(&mut found, offset).unwrap();
    found
}

/// A plain memory that is new: zeros, then a secret.
fn plain(frontend: &mut impl Frontend) {
    let body = blob(2, 0, 2);
    expect(frontend, cmd::RESOURCE_CREATE_BLOB, &body, resp::OK_NODATA);
    let place = map(2, SECOND);
    expect(frontend, cmd::RESOURCE_MAP_BLOB, &place, resp::OK_MAP_INFO);
    assert_eq!(at(frontend, SECOND), [0; SIZE]);
    let window = frontend.window();
    window.write_all_at(&[SECRET; SIZE], SECOND).unwrap();
}

/// A context with a memory of the host's that is new, and of which the GPU has not heard.
pub(in crate::transport) fn begin(frontend: &mut impl Frontend) {
    expect(frontend, cmd::CTX_CREATE, &context_body(), resp::OK_NODATA);
    let create = Create {
        client_id: 7,
        size: SIZE as u64,
        memory: MemorySelector::Properties(2),
        flags: CreateFlags::HOST_VISIBLE | CreateFlags::MAP_DIRECTLY,
        alignment: 0,
        expected_cache: CacheMode::Any,
    };
    let create = request(create);
    expect(frontend, cmd::SUBMIT_3D, create.as_slice(), resp::OK_NODATA);
    let body = blob(1, 7, 2);
    expect(frontend, cmd::RESOURCE_CREATE_BLOB, &body, resp::OK_NODATA);
    expect(
        frontend,
        cmd::RESOURCE_MAP_BLOB,
        &map(1, 0),
        resp::OK_MAP_INFO,
    );
    assert_eq!(at(frontend, 0), [0; SIZE]);
    let window = frontend.window();
    window.write_all_at(&[SECRET; SIZE], 0).unwrap();
    plain(frontend);
}

/// All of it. The GPU is busy at the end, until it is let go.
pub(in crate::transport) fn whole(frontend: &mut impl Frontend, fake: &FakeProvider) {
    begin(frontend);
    let filled = frontend.ask(&fill());
    assert_eq!(filled[..4], resp::OK_NODATA.to_le_bytes());
    assert_eq!(at(frontend, 0)[..8], [1, 0, 0, 0, 1, 0, 0, 0]);
    fake.hold();
    frontend.leave(&fill());
    expect(
        frontend,
        cmd::RESOURCE_UNMAP_BLOB,
        &only(2),
        resp::OK_NODATA,
    );
    expect(frontend, cmd::RESOURCE_UNREF, &only(2), resp::OK_NODATA);
    plain(frontend);
    if frontend.reset() {
        expect(frontend, cmd::CTX_CREATE, &context_body(), resp::OK_NODATA);
        plain(frontend);
    }
}
