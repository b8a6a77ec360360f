//! The virtio-gpu device proper: commands in, responses out. Knows no transport.
//!
//! | file | holds |
//! |---|---|
//! | `commands.rs` | decoding and the one match over commands |
//! | `backing.rs` | the guest's own pages |
//! | `fault.rs` | what is wrong, and which error code that is |
//! | `response.rs` | responses as bytes |
//! | `snapshot.rs` | the device as a stream of bytes |
//!
//! A fenced command is executed at once, and its response kept until the GPU work that it waits for is done.

mod backing;
mod commands;
mod fault;
mod response;
mod snapshot;

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use hostblob_allocator::{Fence, Guest, Host, Mapping};
use hostblob_capset::WindowMode;
use hostblob_protocol::virtio_gpu::{
    Config, CtrlHdr, FLAG_FENCE, FLAG_INFO_RING_IDX, ResourceCreateBlob, cmd,
};
use uuid::Uuid;
use zerocopy::byteorder::little_endian::U32;
use zerocopy::{FromBytes, IntoBytes};

pub use backing::{GuestPages, NoPages};
pub use hostblob_allocator::Waker;
pub use hostblob_capset::BlobMem;
pub use response::Response;
pub use snapshot::{RestoreError, SaveError};

use crate::ratelimit::RateLimiter;
use backing::Backings;
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
    /// What the last command changes of what the guest reaches, where blobs are mapped one by one.
    window_change: Option<WindowChange>,
    /// Where the guest's pages are.
    backings: Backings,
    /// Responses that wait for GPU work, in the order of their commands.
    kept: Vec<Kept>,
    refusals: RateLimiter,
}

/// What a command changes of what the guest reaches, where blobs are mapped one by one.
#[derive(Debug, Clone, PartialEq)]
pub enum WindowChange {
    /// This has to be mapped before the response goes out.
    Map(Mapping),
    /// No blob is mapped there any more.
    Unmap(Mapping),
}

#[derive(Debug)]
struct Kept {
    /// What it waits for.
    fence: Fence,
    tag: u64,
    response: Response,
}

impl Gpu {
    /// A device for a new guest of `host` that can have these kinds of blobs. `waker` is called when [`Gpu::completed`] may have
    /// something.
    pub fn new(
        host: &Arc<Host>,
        capset_id: u32,
        blob_mem: BlobMem,
        waker: Waker,
    ) -> std::io::Result<Self> {
        Self::in_mode(host, capset_id, blob_mem, WindowMode::Premapped, waker)
    }

    /// A device whose transport maps the window as a whole, or blobs one by one ([`Gpu::window_change`]).
    pub fn in_mode(
        host: &Arc<Host>,
        capset_id: u32,
        blob_mem: BlobMem,
        window_mode: WindowMode,
        waker: Waker,
    ) -> std::io::Result<Self> {
        let guest = host.guest_with_mode(window_mode, waker)?;
        Ok(Self::over(guest, capset_id, blob_mem))
    }

    /// The device of a guest that nobody has used yet.
    pub fn over(guest: Guest, capset_id: u32, blob_mem: BlobMem) -> Self {
        let mut capset = guest.capset().clone();
        capset.blob_mem = blob_mem;
        let config = Config {
            num_capsets: U32::new(1),
            blob_alignment: U32::new(capset.page_size),
            ..Config::default()
        };
        Self {
            capset: capset.encode(),
            capset_id,
            config,
            window_mapped: true,
            window_change: None,
            backings: Backings::default(),
            guest,
            kept: Vec::new(),
            refusals: RateLimiter::new(),
        }
    }

    /// Executes one control-queue command.
    ///
    /// `tag` is the caller's name for the request (a descriptor head, a socket tag). Returns the response, or
    /// `None` when the command is fenced and its work has not finished: it then comes out of
    /// [`Gpu::completed`] under the same tag, after the waker was called.
    ///
    /// `pages` is the guest's memory. It is looked at only where [`Gpu::needs_guest_pages`] says so.
    pub fn execute(
        &mut self,
        tag: u64,
        command: &[u8],
        pages: &dyn GuestPages,
    ) -> Option<Response> {
        let (header, rest) = match CtrlHdr::read_from_prefix(command) {
            Ok((header, rest)) => (header, rest),
            Err(_) => {
                let fault = Fault::Truncated {
                    needed: size_of::<CtrlHdr>(),
                    available: command.len(),
                };
                self.guest.return_object();
                return Some(self.refuse(&CtrlHdr::default(), &fault));
            }
        };
        let mut fence = Fence::default();
        let response = match self.run(&header, rest, pages, &mut fence) {
            Ok(response) => response,
            Err(fault) => self.refuse(&header, &fault),
        };
        self.guest.return_object();
        fence.join(self.asked_fence(&header));
        if self.guest.reached(&fence) {
            return Some(response);
        }
        // The work may have finished meanwhile, and its wake-up be under way already.
        self.guest.process_completions();
        if self.guest.reached(&fence) {
            return Some(response);
        }
        self.kept.push(Kept {
            fence,
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
            .extract_if(.., |kept| guest.reached(&kept.fence))
            .map(|kept| (kept.tag, kept.response))
            .collect()
    }

    /// Back to the state after creation (virtio device reset): all contexts, resources and kept
    /// commands are gone; the window descriptor stays the same and reads as zeros.
    pub fn reset(&mut self) {
        self.kept.clear();
        self.backings.clear();
        self.window_change = None;
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

    /// Whether a command names pages of the guest.
    pub fn needs_guest_pages(command: &[u8]) -> bool {
        let Ok((header, rest)) = CtrlHdr::read_from_prefix(command) else {
            return false;
        };
        match header.cmd_type.get() {
            cmd::RESOURCE_ATTACH_BACKING => true,
            cmd::RESOURCE_CREATE_BLOB => ResourceCreateBlob::read_from_prefix(rest)
                .is_ok_and(|(asked, _)| asked.nr_entries.get() != 0),
            _ => false,
        }
    }

    /// The VMM has changed the guest's memory: it is `pages` now.
    pub fn guest_pages_changed(&mut self, pages: &dyn GuestPages) {
        self.backings.changed(&mut self.guest, pages);
    }

    /// Whether the guest can reach the window from now on. Where it cannot, no blob is mapped.
    pub fn set_window_mapped(&mut self, mapped: bool) {
        self.window_mapped = mapped;
    }

    /// Whether a process in the guest may be using the window: there is a context, or a blob is mapped.
    pub fn window_in_use(&self) -> bool {
        self.guest.has_contexts() || self.guest.has_mapped_blobs()
    }

    /// The object of another device of the VM that a command imports, if there is one that this guest does not know: of several, the
    /// first.
    pub fn wanted_object(&self, command: &[u8]) -> Option<[u8; 16]> {
        let (context, envelope) = commands::submitted(command)?;
        let wanted = self.guest.wanted_object(context, envelope);
        wanted.map(Uuid::into_bytes)
    }

    /// A descriptor of what is wanted, for the next command: what that does not import is closed.
    pub fn lend_object(&mut self, uuid: [u8; 16], descriptor: OwnedFd) {
        let uuid = Uuid::from_bytes(uuid);
        if let Err(error) = self.guest.lend_object(uuid, descriptor) {
            self.refusals.warn(format_args!(
                "the object {uuid} of another device cannot be imported: {error}"
            ));
        }
    }

    /// UUIDs of blobs that other devices of the VM may ask for since the last call, and that they may not any more (`false`).
    pub fn shared_object_changes(&mut self) -> Vec<([u8; 16], bool)> {
        let changes = self.guest.shared_object_changes();
        let bytes = |(uuid, is_there): (Uuid, bool)| (uuid.into_bytes(), is_there);
        changes.into_iter().map(bytes).collect()
    }

    /// A descriptor of a blob, for another device of the VM.
    pub fn shared_object(
        &mut self,
        uuid: [u8; 16],
    ) -> Result<Arc<OwnedFd>, hostblob_allocator::Error> {
        self.guest.shared_object(Uuid::from_bytes(uuid))
    }

    /// Whether the transport maps the window as a whole, or blobs one by one.
    pub fn window_mode(&self) -> WindowMode {
        self.guest.capset().window_mode
    }

    /// What the command that was just executed changes of what the guest reaches: asked after each command where blobs are mapped one by
    /// one, and done before its response goes out.
    pub fn window_change(&mut self) -> Option<WindowChange> {
        self.window_change.take()
    }

    /// What this command maps could not be mapped: the blob is not mapped then. The response instead of the one that
    /// [`Gpu::execute`] gave, or `None` where that keeps it.
    pub fn not_mapped(&mut self, tag: u64, command: &[u8], reason: &str) -> Option<Response> {
        let (header, rest) = CtrlHdr::read_from_prefix(command).ok()?;
        self.take_back_map(rest);
        let response = self.refuse(&header, &Fault::NotMapped(reason.to_owned()));
        match self.kept.iter_mut().find(|kept| kept.tag == tag) {
            Some(kept) => {
                kept.response = response;
                None
            }
            None => Some(response),
        }
    }

    /// The guest behind the device: for measurements and tests.
    pub fn guest(&self) -> &Guest {
        &self.guest
    }

    /// What the command itself asks to wait for.
    fn asked_fence(&self, header: &CtrlHdr) -> Fence {
        let flags = header.flags.get();
        if flags & FLAG_FENCE == 0 {
            return Fence::default();
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
