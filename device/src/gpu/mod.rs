//! The virtio-gpu device proper: commands in, responses out. Knows no transport.
//!
//! | file | holds |
//! |---|---|
//! | `commands.rs` | decoding and the one match over commands |
//! | `routing.rs` | who serves what |
//! | `images.rs` | 2D resources and the screen |
//! | `renderers/` | contexts that are not ours |
//! | `backing.rs` | the guest's own pages |
//! | `fault.rs` | what is wrong, and which error code that is |
//! | `response.rs` | responses as bytes |
//! | `snapshot.rs` | the device as a stream of bytes |
//!
//! A fenced command is executed at once, and its response kept until the GPU work that it waits for is done.

mod backing;
mod commands;
mod fault;
mod images;
pub mod renderers;
mod response;
mod routing;
mod snapshot;

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use hostblob_allocator::{Guest, Host, Mapping};
use hostblob_capset::WindowMode;
use hostblob_protocol::virtio_gpu::{Config, CtrlHdr, ResourceCreateBlob, cmd};
use uuid::Uuid;
use zerocopy::byteorder::little_endian::U32;
use zerocopy::{FromBytes, IntoBytes};

pub use backing::{GuestPages, NoPages};
pub use hostblob_allocator::Waker;
pub use hostblob_capset::BlobMem;
pub use images::{Display, MAX_IMAGE_PIECES, MAX_IMAGES, MAX_SIDE};
pub use response::Response;
pub use snapshot::{RestoreError, SaveError};

use crate::ratelimit::ContextLimiter;
use backing::Backings;
use fault::Fault;
use images::Images;
use renderers::{Renderer, Renderers};
use routing::Until;

/// One guest's virtio-gpu device: contexts, resources, window.
#[derive(Debug)]
pub struct Gpu {
    guest: Guest,
    images: Images,
    /// What serves contexts that are not ours.
    renderer: Option<Renderer>,
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
    refusals: ContextLimiter,
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
    until: Until,
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
        let guest = host.guest_with_mode(window_mode, Arc::clone(&waker))?;
        Ok(Self::over(guest, capset_id, blob_mem, waker))
    }

    /// The device of a guest that nobody has used yet, with the waker that it was made with.
    pub fn over(guest: Guest, capset_id: u32, blob_mem: BlobMem, waker: Waker) -> Self {
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
            images: Images::new(guest.host(), waker),
            renderer: None,
            guest,
            kept: Vec::new(),
            refusals: ContextLimiter::new(),
        }
    }

    /// Serves contexts of other renderers too. `waker` is the one that the device was made with.
    #[must_use]
    pub fn with_renderers(mut self, renderers: &Arc<Renderers>, waker: Waker) -> Self {
        let host = Arc::clone(self.guest.host());
        let renderer = Renderer::new(renderers, &host, waker);
        let theirs = u32::try_from(renderer.capsets().len()).unwrap_or(u32::MAX);
        self.config.num_capsets = U32::new(theirs.saturating_add(1));
        self.renderer = Some(renderer);
        self
    }

    /// Has one screen, which 2D resources are shown on.
    #[must_use]
    pub fn with_display(mut self, display: Display) -> Self {
        self.images.set_display(display);
        self.config.num_scanouts = U32::new(1);
        self
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
        let mut until = Until::default();
        let result = self.check_fence(&header);
        let result = result.and_then(|()| self.run(&header, rest, pages, &mut until.ours));
        until.ours.join(self.our_fence(&header));
        let response = match result {
            Ok(response) => {
                until.theirs = self.their_fence(&header);
                response
            }
            Err(fault) => {
                until.theirs = self.their_last_fence(&header);
                self.refuse(&header, &fault)
            }
        };
        self.guest.return_object();
        if until.is_over(&self.guest, self.renderer.as_ref()) {
            return Some(response);
        }
        // The work may have finished meanwhile, and its wake-up be under way already.
        self.process();
        if until.is_over(&self.guest, self.renderer.as_ref()) {
            return Some(response);
        }
        self.kept.push(Kept {
            until,
            tag,
            response,
        });
        None
    }

    /// Takes the responses that became ready since the last call.
    pub fn completed(&mut self) -> Vec<(u64, Response)> {
        self.process();
        let (guest, theirs) = (&self.guest, self.renderer.as_ref());
        self.kept
            .extract_if(.., |kept| kept.until.is_over(guest, theirs))
            .map(|kept| (kept.tag, kept.response))
            .collect()
    }

    /// Back to the state after creation (virtio device reset): all contexts, resources and kept
    /// commands are gone; the window descriptor stays the same and reads as zeros.
    pub fn reset(&mut self) {
        self.refusals.forget_all();
        self.kept.clear();
        self.backings.clear();
        self.window_change = None;
        self.images.reset();
        if let Some(theirs) = &mut self.renderer {
            theirs.reset();
        }
        self.guest.reset();
    }

    /// The `virtio_gpu_config` space.
    pub fn config(&self) -> &[u8] {
        self.config.as_bytes()
    }

    /// A guest write to the configuration space: `events_clear` alone is writable, and clears bits of `events_read`.
    pub fn write_config(&mut self, _offset: u64, _data: &[u8]) {
        // The screen never changes: no bit is ever set, so there is none to clear.
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
        self.change_pages(pages);
    }

    /// Whether the guest can reach the window from now on. Where it cannot, no blob is mapped.
    pub fn set_window_mapped(&mut self, mapped: bool) {
        self.window_mapped = mapped;
    }

    /// Whether a process in the guest may be using the window: there is a context, or a blob is mapped.
    pub fn window_in_use(&self) -> bool {
        let theirs = self.renderer.as_ref();
        self.guest.has_contexts()
            || self.guest.has_mapped_blobs()
            || theirs.is_some_and(Renderer::uses_window)
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
            let line =
                format_args!("the object {uuid} of another device cannot be imported: {error}");
            self.refusals.warn(None, line);
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

    fn refuse(&mut self, header: &CtrlHdr, fault: &Fault) -> Response {
        let response = fault.response();
        let (command, context) = (header.cmd_type.get(), header.ctx_id.get());
        let known = self.check_context(context).is_ok().then_some(context);
        let line = format_args!(
            "command {command:#06x} of context {context} answered {response:#06x}: {fault}"
        );
        self.refusals.warn(known, line);
        Response::new(header, response, &())
    }
}

#[cfg(test)]
pub(crate) mod tests;
