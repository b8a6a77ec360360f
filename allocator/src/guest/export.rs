//! What host processes see of a guest's memories, through the export socket.
//!
//! A memory that is shown has a descriptor of its pages and of no others, made when somebody first asks. From then on another process
//! may hold the pages: they stay where they are while somebody has the memory open, and are given back to the kernel, never to another
//! memory, when the guest frees it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hostblob_capset::WindowMode;
use hostblob_protocol::request::{
    ALL_BUFFERS, CreateFlags, Present, Publish, WaitReleased, Withdraw,
};
use uuid::Uuid;

use super::Guest;
use super::fence::{HoldId, Until};
use crate::Error;
use crate::blob::{Home, Memory, MemoryKey, Name};
use crate::context::{ContextRef, Details, NOTHING};
use crate::exports::{DescriptorRequest, ExportError, ExportId, Layout, check_layout};
use crate::provider::{Elsewhere, Piece, Placement};
use crate::quota::Charge;

/// Memories in the guest's own pages that host processes see at a time. When one ends while somebody has it open, its command waits for that:
/// more of them could keep the guest's queue from everybody.
pub(crate) const MAX_SHOWN_PAGES: usize = 64;
/// Longest time that WAIT_RELEASED waits.
const MAX_WAIT: Duration = Duration::from_secs(24 * 60 * 60);

impl Guest {
    /// Shows a memory to host processes, if there are to be any.
    pub(super) fn show(&mut self, key: MemoryKey, uuid: Uuid) -> Result<(), Error> {
        let (Some(exports), Some(memory)) = (&self.exports, self.memories.get(&key)) else {
            return Ok(());
        };
        if memory.shared().export.is_none() {
            if memory.is_guest_backed() {
                let others = self.shown.values().filter_map(|key| self.memories.get(key));
                let others = others.filter(|memory| memory.is_guest_backed()).count();
                if others + self.holds.of_nobody() >= MAX_SHOWN_PAGES {
                    return Err(Error::TooManyObjects(MAX_SHOWN_PAGES as u64));
                }
            }
            let label = memory.label.as_deref().unwrap_or_default();
            let id = exports.add(uuid.into_bytes(), memory.size, label)?;
            if let Some(memory) = self.memories.get_mut(&key) {
                memory.shared_mut().export = Some(id);
            }
            self.shown.insert(id, key);
        }
        Ok(())
    }

    /// Host processes see the memory no longer. What they have open they keep, until what is returned is over.
    pub(super) fn hide(&mut self, key: MemoryKey) -> Option<Until> {
        // Each memory ends with this, and few were shared: nothing is made for it.
        let shared = self.memories.get_mut(&key)?.shared.as_mut()?;
        let id = shared.export.take()?;
        self.shown.remove(&id);
        self.exports.as_ref()?.remove(id);
        Some(Until::Closed(id))
    }

    /// A name for logs and host processes.
    pub(crate) fn label(&mut self, context: u32, client_id: u64, name: &str) {
        if let Ok(key) = self.named(context, client_id)
            && let Some(memory) = self.memories.get_mut(&key)
        {
            memory.label = Some(name.into());
        }
    }

    /// The memory, shown to host processes.
    fn shown_memory(&mut self, context: u32, client_id: u64) -> Result<ExportId, Error> {
        let key = self.named(context, client_id)?;
        if self.exports.is_none() {
            return Err(Error::Unsupported("an export socket"));
        }
        self.share_memory(key)?;
        let memory = self.memory(key, client_id)?;
        memory.shared().export.ok_or(Error::NotShareable)
    }

    /// The memory as host processes see it already. Nothing changes: what was never published has no buffer at `offset`.
    fn published_memory(
        &self,
        context: u32,
        client_id: u64,
        offset: u64,
    ) -> Result<ExportId, Error> {
        let memory = self.memory(self.named(context, client_id)?, client_id)?;
        if self.exports.is_none() {
            return Err(Error::Unsupported("an export socket"));
        }
        if !memory.flags.contains(CreateFlags::SHAREABLE) {
            return Err(Error::NotShareable);
        }
        memory.shared().export.ok_or_else(|| no_buffer(offset))
    }

    pub(crate) fn publish(&mut self, context: u32, request: &Publish) -> Result<Details, Error> {
        let layout = Layout {
            offset: request.offset,
            width: request.width,
            height: request.height,
            stride: request.stride,
            fourcc: request.fourcc,
            modifier: request.modifier,
        };
        let client_id = request.client_id;
        let memory = self.memory(self.named(context, client_id)?, client_id)?;
        if self.exports.is_some() {
            check_layout(layout, memory.size)?;
        }
        let id = self.shown_memory(context, client_id)?;
        if let Some(exports) = &self.exports {
            exports.publish(id, layout)?;
        }
        Ok(NOTHING)
    }

    pub(crate) fn withdraw(&mut self, context: u32, request: &Withdraw) -> Result<Details, Error> {
        let id = self.published_memory(context, request.client_id, request.offset)?;
        match &self.exports {
            Some(exports) if exports.withdraw(id, request.offset) => Ok(NOTHING),
            _ => Err(no_buffer(request.offset)),
        }
    }

    pub(crate) fn present(&mut self, context: u32, request: &Present) -> Result<Details, Error> {
        let id = self.published_memory(context, request.client_id, request.offset)?;
        match &self.exports {
            Some(exports) if exports.present(id, request.offset) => Ok(NOTHING),
            _ => Err(no_buffer(request.offset)),
        }
    }

    /// Begins to wait; `None` where there is nothing to wait for.
    pub(crate) fn wait_released(
        &mut self,
        context: u32,
        ring: u8,
        request: &WaitReleased,
    ) -> Result<Option<HoldId>, Error> {
        let key = self.named(context, request.client_id)?;
        let id = self.memory(key, request.client_id)?.shared().export;
        let (Some(id), Some(exports)) = (id, &self.exports) else {
            return Ok(None);
        };
        let until = match request.offset {
            ALL_BUFFERS => Until::Closed(id),
            offset => Until::Released(id, offset),
        };
        if until.is_over(exports) {
            return Ok(None);
        }
        if request.timeout == 0 {
            return Err(Error::Timeout);
        }
        let deadline = Instant::now() + Duration::from_nanos(request.timeout).min(MAX_WAIT);
        self.hold_on_ring(context, ring, until, deadline).map(Some)
    }

    /// Memory that a host process handed in, or that another device has, as memory of the context.
    pub(super) fn import_foreign(
        &mut self,
        context: u32,
        client_id: u64,
        uuid: Uuid,
    ) -> Result<Details, Error> {
        let handed_in = self
            .exports
            .as_ref()
            .and_then(|exports| exports.take_import(uuid.into_bytes()));
        let foreign = match handed_in {
            Some(foreign) => foreign,
            None => self.borrowed_object(uuid)?,
        };
        self.check_size(foreign.size)?;
        let memory_type = self.plain_type()?;
        // No byte of the host is charged, but a name is an object.
        let charge = self.charge(context, 0)?;
        let me = self.new_name(context, client_id)?;
        let import = Charge::new(&self.context(context)?.imports, 1)
            .map_err(|full| Error::TooManyObjects(full.limit))?;
        let piece = Piece {
            file: foreign.file,
            offset: 0,
            length: foreign.size,
        };
        let pages = self.new_pages(vec![piece], 0, Some(import))?;
        let key = self.insert_memory(Memory {
            names: vec![Name {
                context: me,
                client_id,
                imported: false,
            }],
            // It is not in the window: a VMM that has mapped that as a whole cannot show it.
            // Whoever handed it in agreed that guests use it: it may go on to other contexts.
            flags: CreateFlags::SHAREABLE
                | match self.capset.window_mode {
                    WindowMode::Premapped => CreateFlags::empty(),
                    WindowMode::OnDemand => CreateFlags::HOST_VISIBLE,
                },
            _charge: Some(charge),
            ..Memory::new(
                me,
                foreign.size,
                memory_type,
                Home::Foreign { pages, place: None },
            )
        });
        if let Some(context) = self.contexts.get_mut(&context) {
            context.names.insert(client_id, key);
        }
        Ok([u64::from(memory_type), foreign.size])
    }

    /// Answers host processes that ask for descriptors.
    pub(super) fn serve_exports(&mut self) {
        while let Some(request) = self
            .exports
            .as_ref()
            .and_then(|exports| exports.next_request())
        {
            self.answer_request(request);
        }
    }

    fn answer_request(&mut self, request: DescriptorRequest) {
        let id = request.id();
        let answer = match self.shown.get(&id) {
            Some(&key) => self.descriptor(key).map_err(|error| {
                log::warn!("blob {id} cannot be exported: {error}");
                ExportError::Refused(error.status())
            }),
            None => Err(ExportError::UnknownBlob(id)),
        };
        request.answer(answer);
    }

    /// A dma-buf of a memory's pages.
    fn descriptor(&mut self, key: MemoryKey) -> Result<Arc<OwnedFd>, Error> {
        let nothing = Error::Unsupported("exporting this memory");
        let host = Arc::clone(&self.host);
        let exporter = host.exporter.as_ref().ok_or(nothing.clone())?;
        self.settle(key)?;
        let memory = self.memories.get(&key).ok_or(nothing.clone())?;
        if self.placement(memory.memory_type) == Placement::Exported {
            self.expose(key)?;
        }
        let memory = self.memories.get_mut(&key).ok_or(nothing.clone())?;
        let one = |file: BorrowedFd<'_>, offset, length| {
            let file = file.try_clone_to_owned().map_err(system)?;
            Ok::<_, Error>(vec![Piece {
                file: Arc::new(file.into()),
                offset,
                length,
            }])
        };
        let pieces = match &mut memory.home {
            Home::Window(lease) => {
                lease.give_outside();
                one(self.window.as_fd(), lease.span().start(), memory.size)?
            }
            Home::Parked(spot) => {
                spot.give_outside();
                one(spot.file().as_fd(), spot.span().start(), memory.size)?
            }
            Home::Pages(pages) => pages.pieces.clone(),
            // It is a dma-buf already, of nothing else.
            Home::Exported {
                bytes: Elsewhere::File(file),
                ..
            } => return Ok(Arc::new(file.try_clone().map_err(system)?.into())),
            Home::Unbacked => return Err(Error::NoBacking),
            Home::Exported { .. } | Home::Nowhere | Home::Device { .. } | Home::Foreign { .. } => {
                return Err(nothing);
            }
        };
        Ok(Arc::new(exporter.create(&pieces).map_err(system)?))
    }

    /// What RESOURCE_ASSIGN_UUID has named since the last call, and what of that is gone (`false`): nothing where the host can make no
    /// descriptors for other devices.
    pub fn shared_object_changes(&mut self) -> Vec<(Uuid, bool)> {
        let mut changes = std::mem::take(&mut self.object_changes);
        changes.retain(|_| self.host.exporter.is_some());
        changes
    }

    /// A descriptor for another device of the VM. It stays where it is from now on: nobody says when that device has let go of it.
    pub fn shared_object(&mut self, uuid: Uuid) -> Result<Arc<OwnedFd>, Error> {
        let unknown = Error::UnknownUuid(uuid);
        let key = *self.uuids.get(&uuid).ok_or(unknown.clone())?;
        let lent = self
            .memories
            .get(&key)
            .and_then(|memory| memory.shared().lent.clone());
        if let Some(descriptor) = lent {
            return Ok(descriptor);
        }
        let descriptor = self.descriptor(key)?;
        let memory = self.memories.get_mut(&key).ok_or(unknown)?;
        memory.shared_mut().lent = Some(Arc::clone(&descriptor));
        Ok(descriptor)
    }

    /// Whether a memory's bytes may go elsewhere: not while somebody outside looks at them here.
    pub(super) fn may_move(&self, key: MemoryKey) -> bool {
        let memory = self.memories.get(&key);
        if memory.is_some_and(|memory| memory.shared().lent.is_some()) {
            return false;
        }
        let id = memory.and_then(|memory| memory.shared().export);
        match (id, &self.exports) {
            (Some(id), Some(exports)) => exports.forget_descriptor(id),
            _ => true,
        }
    }

    /// The context that a new name is for. It is not in use.
    pub(super) fn new_name(&self, context: u32, client_id: u64) -> Result<ContextRef, Error> {
        let asker = self.context(context)?;
        if client_id == 0 {
            return Err(Error::Argument {
                field: "client_id",
                value: 0,
                expected: "not 0",
            });
        }
        if asker.names.contains_key(&client_id) {
            return Err(Error::ClientIdInUse(client_id));
        }
        Ok(asker.me)
    }
}

fn no_buffer(offset: u64) -> Error {
    Error::Argument {
        field: "offset",
        value: offset,
        expected: "that of a published buffer",
    }
}

fn system(error: std::io::Error) -> Error {
    Error::Export(ExportError::System(
        "a descriptor cannot be made",
        rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::IO),
    ))
}
