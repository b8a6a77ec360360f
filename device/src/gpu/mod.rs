//! The virtio-gpu device proper: commands in, responses out. Knows no transport.
//!
//! | file | holds |
//! |---|---|
//! | `commands.rs` | decoding and the one match over commands |
//! | `fault.rs` | what is wrong, and which error code that is |
//! | `response.rs` | responses as bytes |
//!
//! A fenced command is executed at once, and its response kept until the GPU work that it waits for is done.

mod commands;
mod fault;
mod response;

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use hostblob_allocator::{Guest, Host};
use hostblob_protocol::virtio_gpu::{Config, CtrlHdr, FLAG_FENCE, FLAG_INFO_RING_IDX, cmd};
use zerocopy::byteorder::little_endian::U32;
use zerocopy::{FromBytes, IntoBytes};

pub use hostblob_allocator::Waker;
pub use response::Response;

use crate::ratelimit::RateLimiter;
use fault::Fault;

/// One guest's virtio-gpu device: contexts, resources, window.
#[derive(Debug)]
pub struct Gpu {
    guest: Guest,
    capset: Vec<u8>,
    capset_id: u32,
    config: Config,
    /// Whether the guest can reach the window. Only a transport that maps it late says otherwise.
    window_mapped: bool,
    /// Responses that wait for GPU work, in the order of their commands.
    kept: Vec<Kept>,
    refusals: RateLimiter,
}

#[derive(Debug)]
struct Kept {
    /// The point in the guest's GPU work that the fence waits for.
    point: u64,
    tag: u64,
    response: Response,
}

impl Gpu {
    /// A device for a new guest of `host`. `waker` is called when [`Gpu::completed`] may have something.
    pub fn new(host: &Arc<Host>, capset_id: u32, waker: Waker) -> std::io::Result<Self> {
        let capset = host.capset();
        let config = Config {
            num_capsets: U32::new(1),
            blob_alignment: U32::new(capset.page_size),
            ..Config::default()
        };
        Ok(Self {
            capset: capset.encode(),
            capset_id,
            config,
            window_mapped: true,
            guest: host.guest(waker)?,
            kept: Vec::new(),
            refusals: RateLimiter::new(),
        })
    }

    /// Executes one control-queue command.
    ///
    /// `tag` is the caller's name for the request (a descriptor head, a socket tag). Returns the response, or
    /// `None` when the command is fenced and its work has not finished: it then comes out of
    /// [`Gpu::completed`] under the same tag, after the waker was called.
    pub fn execute(&mut self, tag: u64, command: &[u8]) -> Option<Response> {
        let (header, rest) = match CtrlHdr::read_from_prefix(command) {
            Ok((header, rest)) => (header, rest),
            Err(_) => {
                let fault = Fault::Truncated {
                    needed: size_of::<CtrlHdr>(),
                    available: command.len(),
                };
                return Some(self.refuse(&CtrlHdr::default(), &fault));
            }
        };
        let response = match self.run(&header, rest) {
            Ok(response) => response,
            Err(fault) => self.refuse(&header, &fault),
        };
        let point = self.fence_point(&header);
        if self.guest.reached(point) {
            return Some(response);
        }
        // The work may have finished meanwhile, and its wake-up be under way already.
        self.guest.process_completions();
        if self.guest.reached(point) {
            return Some(response);
        }
        self.kept.push(Kept {
            point,
            tag,
            response,
        });
        None
    }

    /// Takes the responses that became ready since the last call.
    pub fn completed(&mut self) -> Vec<(u64, Response)> {
        self.guest.process_completions();
        let guest = &self.guest;
        self.kept
            .extract_if(.., |kept| guest.reached(kept.point))
            .map(|kept| (kept.tag, kept.response))
            .collect()
    }

    /// Back to the state after creation (virtio device reset): all contexts, resources and kept
    /// commands are gone; the window descriptor stays the same and reads as zeros.
    pub fn reset(&mut self) {
        self.kept.clear();
        self.guest.reset();
    }

    /// The `virtio_gpu_config` space.
    pub fn config(&self) -> &[u8] {
        self.config.as_bytes()
    }

    /// A guest write to the configuration space: `events_clear` alone is writable, and clears bits of `events_read`.
    pub fn write_config(&mut self, _offset: u64, _data: &[u8]) {
        // Without scanouts there are no display events: no bit is ever set, so there is none to clear.
    }

    /// The device feature bits (`VIRTIO_GPU_F_*`) that the handlers behind this core serve.
    pub fn features(&self) -> u64 {
        commands::FEATURES
    }

    /// The memfd behind the host-visible shared memory region.
    pub fn window_fd(&self) -> BorrowedFd<'_> {
        self.guest.window_fd()
    }

    /// Size of the window in bytes: a power of two, at least 2 MiB.
    pub fn window_size(&self) -> u64 {
        self.guest.window().size()
    }

    /// Whether a command maps a blob: the guest has to reach the window before it is answered.
    pub fn needs_window(command: &[u8]) -> bool {
        CtrlHdr::read_from_prefix(command)
            .is_ok_and(|(header, _)| header.cmd_type.get() == cmd::RESOURCE_MAP_BLOB)
    }

    /// Whether the guest can reach the window from now on. Where it cannot, no blob is mapped.
    pub fn set_window_mapped(&mut self, mapped: bool) {
        self.window_mapped = mapped;
    }

    /// Whether a process in the guest may be using the window: there is a context, or a blob is mapped.
    pub fn window_in_use(&self) -> bool {
        self.guest.has_contexts() || self.guest.has_mapped_blobs()
    }

    /// The guest behind the device: for measurements and tests.
    pub fn guest(&self) -> &Guest {
        &self.guest
    }

    fn fence_point(&self, header: &CtrlHdr) -> u64 {
        let flags = header.flags.get();
        if flags & FLAG_FENCE == 0 {
            return 0;
        }
        let ring = (flags & FLAG_INFO_RING_IDX != 0).then_some(header.ring_idx);
        self.guest.fence(header.ctx_id.get(), ring)
    }

    fn refuse(&mut self, header: &CtrlHdr, fault: &Fault) -> Response {
        let response = fault.response();
        let (command, context) = (header.cmd_type.get(), header.ctx_id.get());
        self.refusals.warn(format_args!(
            "command {command:#06x} of context {context} answered {response:#06x}: {fault}"
        ));
        Response::new(header, response, &())
    }
}

#[cfg(test)]
mod tests;
