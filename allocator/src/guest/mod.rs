//! One guest: its contexts, resources, memories and window, driven by one thread.
//!
//! | file | holds |
//! |---|---|
//! | `mod.rs` | contexts, fences, reset, what happens when GPU work is done |
//! | `blobs.rs` | the blob commands of virtio-gpu |
//! | `backing.rs`, `transfer.rs` | blobs in the guest's own pages, and transfers |
//! | `sharing.rs` | names beyond one context |
//! | `export.rs` | what host processes see |
//! | `objects.rs` | what other devices of the VM have |
//! | `fence.rs`, `alarm.rs` | when something is over |
//! | `snapshot.rs` | the guest as a stream of bytes |
//! | `residence.rs` | where bytes live: placing, parking, attaching the GPU, letting go |
//! | `../context/execute.rs` | the requests of our own protocol |

mod alarm;
mod backing;
mod blobs;
mod export;
mod fence;
mod objects;
mod residence;
mod sharing;
pub mod snapshot;
mod transfer;

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

pub use backing::{MAX_GUEST_PIECES, MAX_PIECES};
pub(crate) use blobs::NO_TYPE;
pub use blobs::{BlobSpec, MAX_RESOURCES, Mapped, Mapping};
pub use fence::Fence;
pub use transfer::{MAX_TRANSFER_ROWS, Transfer};

use hostblob_capset::Capset;
use uuid::Uuid;

use alarm::Alarm;
use fence::Holds;
use objects::LentObject;

use crate::Error;
use crate::blob::{Binding, Blob, Home, Memory, MemoryKey};
use crate::context::answers::DeferredAnswers;
use crate::context::{
    Context, ContextRef, MAX_CONTEXT_JOBS, MAX_CONTEXTS, MAX_GUEST_IMPORTS, MAX_GUEST_JOBS,
};
use crate::exports::{ExportId, GuestExports};
use crate::host::{Host, Reach};
use crate::provider::{AttachmentId, Elsewhere, FileId, Request};
use crate::quota::{Charge, Quota};
use crate::ratelimit::RateLimiter;
use crate::window::{Parking, Window};
use crate::work::{Done, GPU_TIMEOUT, Pending, Work};

/// Called, from any thread, when work has finished that [`Guest::process_completions`] should look at. Must not block.
pub type Waker = Arc<dyn Fn() + Send + Sync>;

/// The window in the provider's session.
const WINDOW_FILE: FileId = FileId(0);

/// One VM, or one connection to the local socket.
pub struct Guest {
    pub(crate) host: Arc<Host>,
    /// What it is told.
    pub(crate) capset: Capset,
    pub(crate) contexts: HashMap<u32, Context>,
    // In boxes: a hash table has room for as much again.
    pub(crate) blobs: HashMap<u32, Box<Blob>>,
    pub(crate) memories: HashMap<MemoryKey, Box<Memory>>,
    /// What is shared, and under which name.
    uuids: HashMap<Uuid, MemoryKey>,
    /// The export socket's side, where there is one.
    exports: Option<GuestExports>,
    shown: HashMap<ExportId, MemoryKey>,
    /// Shared objects that came and went.
    object_changes: Vec<(Uuid, bool)>,
    /// Of another device, for the command that is about to be executed.
    lent_object: Option<LentObject>,
    holds: Holds,
    alarm: Alarm,
    /// Pieces of guest pages that blobs have, all together.
    pieces: Arc<AtomicUsize>,
    /// Work of the GPU that is under way.
    pub(crate) all_jobs: Arc<Quota>,
    pub(crate) all_imports: Arc<Quota>,
    /// Of it, what belongs to no context of ours.
    jobs_of_nobody: Arc<Quota>,
    /// A point that the GPU did not reach in time.
    given_up: Option<u64>,
    log: RateLimiter,
    pub(crate) deferred: DeferredAnswers,
    /// Before the files it is attached to: fields drop in order, and its drop ends the GPU's use of them.
    pub(crate) work: Work,
    parking: Vec<Parking>,
    window: Window,
    next_key: MemoryKey,
    next_serial: u64,
    /// The last file that the provider was told of.
    next_file: u64,
}

impl std::fmt::Debug for Guest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guest")
            .field("contexts", &self.contexts.len())
            .field("blobs", &self.blobs.len())
            .field("memories", &self.memories.len())
            .finish_non_exhaustive()
    }
}

impl Guest {
    pub(crate) fn new(
        host: Arc<Host>,
        window: Window,
        reach: Reach,
        waker: Waker,
    ) -> std::io::Result<Self> {
        let capset = host.capset_of(reach);
        let exports = host.exports.as_ref();
        let exports = exports.map(|exports| exports.guest(Waker::clone(&waker)));
        let alarm = Alarm::new(Waker::clone(&waker));
        let all_jobs = Quota::device("GPU jobs", MAX_GUEST_JOBS);
        let mut work = Work::new(host.provider.as_ref(), waker);
        let add = Request::AddFile {
            file: WINDOW_FILE,
            descriptor: window.as_fd().try_clone_to_owned()?,
            length: window.size(),
        };
        work.submit(add, Pending::Work);
        Ok(Self {
            host,
            capset,
            contexts: HashMap::new(),
            blobs: HashMap::new(),
            memories: HashMap::new(),
            uuids: HashMap::new(),
            exports,
            shown: HashMap::new(),
            object_changes: Vec::new(),
            lent_object: None,
            holds: Holds::default(),
            alarm,
            pieces: Arc::default(),
            jobs_of_nobody: Quota::context(&all_jobs, MAX_CONTEXT_JOBS),
            all_jobs,
            all_imports: Quota::device("imported memories", MAX_GUEST_IMPORTS),
            given_up: None,
            log: RateLimiter::new(),
            deferred: DeferredAnswers::default(),
            work,
            parking: Vec::new(),
            window,
            next_key: 0,
            next_serial: 0,
            next_file: WINDOW_FILE.0,
        })
    }

    /// The daemon's side of things.
    pub fn host(&self) -> &Arc<Host> {
        &self.host
    }

    /// What the guest is told of the host and the window. What kinds of blobs there are is up to the device.
    pub fn capset(&self) -> &Capset {
        &self.capset
    }

    /// The window's memfd.
    pub fn window_fd(&self) -> BorrowedFd<'_> {
        self.window.as_fd()
    }

    /// The window.
    pub fn window(&self) -> &Window {
        &self.window
    }

    /// CTX_CREATE of our capset. `name` is for the log.
    pub fn create_context(&mut self, id: u32, name: &str) -> Result<(), Error> {
        if id == 0 || self.contexts.contains_key(&id) {
            return Err(Error::ContextIdTaken(id));
        }
        if self.contexts.len() >= MAX_CONTEXTS {
            return Err(Error::TooManyContexts(MAX_CONTEXTS));
        }
        let serial = self.next_serial + 1;
        let context = Context::new(self, ContextRef { id, serial }, name.to_owned())?;
        self.next_serial = serial;
        log::debug!("context {id} ({name}) created");
        self.contexts.insert(id, context);
        Ok(())
    }

    /// CTX_DESTROY: the context's memories go, but for those that somebody may still see: a blob that is mapped, or that
    /// another context is attached to, keeps its bytes and its charge to the device until RESOURCE_UNREF.
    pub fn destroy_context(&mut self, id: u32) -> Result<(), Error> {
        let context = self.contexts.remove(&id).ok_or(Error::UnknownContext(id))?;
        context.end_shares();
        self.drop_holds_of(context.me);
        for blob in self.blobs.values_mut() {
            blob.attached.retain(|&attached| attached != id);
        }
        let (blobs, contexts) = (&mut self.blobs, &self.contexts);
        let mut dead = Vec::new();
        for (&key, memory) in &mut self.memories {
            let owned = memory.context == context.me;
            let names = memory.names.len();
            memory.names.retain(|name| name.context != context.me);
            if !owned && memory.names.len() == names || !memory.names.is_empty() {
                continue;
            }
            let blob = match memory.binding {
                Binding::Bound(resource) => blobs.get_mut(&resource),
                _ => None,
            };
            let attached_elsewhere =
                |blob: &Blob| blob.attached.iter().any(|id| contexts.contains_key(id));
            match blob {
                // The blob of another context, or of the guest as a whole.
                Some(_) if !owned => {}
                Some(blob) if blob.mapped || attached_elsewhere(blob) => {}
                Some(blob) => {
                    blob.memory = None;
                    dead.push(key);
                }
                None => dead.push(key),
            }
        }
        for key in dead {
            self.retire(key);
        }
        log::debug!("context {id} ({}) destroyed", context.name);
        Ok(())
    }

    pub(crate) fn context(&self, id: u32) -> Result<&Context, Error> {
        self.contexts.get(&id).ok_or(Error::UnknownContext(id))
    }

    /// The context, if it is still that one.
    pub(crate) fn owner_mut(&mut self, context: ContextRef) -> Option<&mut Context> {
        self.contexts
            .get_mut(&context.id)
            .filter(|found| found.me == context)
    }

    /// Whether a context of this id exists.
    pub fn has_context(&self, id: u32) -> bool {
        self.contexts.contains_key(&id)
    }

    /// Whether there is any context.
    pub fn has_contexts(&self) -> bool {
        !self.contexts.is_empty()
    }

    /// Whether any blob is mapped.
    pub fn has_mapped_blobs(&self) -> bool {
        self.blobs.values().any(|blob| blob.mapped)
    }

    /// Whether a resource of this id exists.
    pub fn has_resource(&self, id: u32) -> bool {
        self.blobs.contains_key(&id)
    }

    /// Looks at finished work: writes answers, lets go of what the GPU no longer uses, and answers host processes.
    pub fn process_completions(&mut self) {
        while let Some(done) = self.work.next_done() {
            self.finish(done);
        }
        self.serve_exports();
        self.look_at_holds();
    }

    /// Processes completions until `point` is reached, for at most [`GPU_TIMEOUT`].
    ///
    /// A point that was waited for in vain is not waited for again, nor is what comes after it: the commands of all contexts are behind the one
    /// that waits, and a context that keeps the GPU busy could have each of its own wait.
    fn wait_for(&mut self, point: u64) -> Result<(), Error> {
        let ahead = |given_up: u64| given_up <= point && !self.work.reached(given_up);
        let patience = match self.given_up {
            Some(given_up) if ahead(given_up) => Duration::ZERO,
            _ => GPU_TIMEOUT,
        };
        let deadline = Instant::now() + patience;
        while !self.work.reached(point) {
            match self.work.wait_done(deadline) {
                Some(done) => self.finish(done),
                None => {
                    if !patience.is_zero() {
                        self.given_up = Some(point);
                    }
                    return Err(Error::GpuTimeout(GPU_TIMEOUT));
                }
            }
        }
        Ok(())
    }

    fn finish(
        &mut self,
        Done {
            sequence,
            what,
            result,
        }: Done,
    ) {
        if let Err(error) = &result {
            self.log
                .warn(format_args!("GPU request {sequence} failed: {error}"));
            self.deferred.fail(sequence, error);
            self.holds
                .fail(sequence, Error::Provider(error.clone()).status());
        }
        match what {
            Pending::Attach(key, attachment) if result.is_err() => {
                self.undo_attach(key, attachment)
            }
            Pending::AddPages(key, file) if result.is_err() => self.undo_add_pages(key, file),
            Pending::Export(key, attachment) => {
                if let Ok(Some(bytes)) = result {
                    self.exposed(key, attachment, bytes);
                }
            }
            Pending::Job(_) | Pending::Work => {}
            Pending::Attach(..) | Pending::AddPages(..) | Pending::Release => {}
            Pending::Forget(pages) => drop(pages),
            Pending::Retire(memory) => drop(memory),
        }
        while let Some(due) = self.deferred.next_due(|point| self.work.reached(point)) {
            self.write_answer(due.context, &due.answer);
        }
    }

    /// The provider says where the CPU finds an attachment: memory that was zeroed, for the failure of that came before.
    fn exposed(&mut self, key: MemoryKey, attachment: AttachmentId, bytes: Elsewhere) {
        if let Some(memory) = self.memories.get_mut(&key)
            && memory.attachment == Some(attachment)
            && matches!(memory.home, Home::Device { .. })
        {
            memory.home = Home::Exported { bytes, place: None };
        }
    }

    /// Nothing is attached. Memory of the device was not even allocated: the answer to its CREATE says so, and what was refused is not there.
    fn undo_attach(&mut self, key: MemoryKey, attachment: AttachmentId) {
        let memory = self.memories.get_mut(&key);
        let Some(memory) = memory.filter(|memory| memory.attachment == Some(attachment)) else {
            return;
        };
        memory.attachment = None;
        if matches!(memory.home, Home::Device { .. }) {
            self.forget_creation(key);
        }
    }

    /// The memory may have other pages by now.
    fn undo_add_pages(&mut self, key: MemoryKey, file: FileId) {
        if let Some(memory) = self.memories.get_mut(&key)
            && let Home::Pages(pages) | Home::Foreign { pages, .. } = &mut memory.home
            && pages.file == file
        {
            pages.known = false;
        }
    }

    /// Device reset: no contexts, no resources, and a window that reads as zeros wherever it is placed next.
    pub fn reset(&mut self) {
        for (_, context) in self.contexts.drain() {
            context.end_shares();
        }
        self.blobs.clear();
        self.drop_holds();
        let keys: Vec<MemoryKey> = self.memories.keys().copied().collect();
        for key in keys {
            self.retire(key);
        }
        self.process_completions();
    }

    /// Room for more jobs of a context, while they are under way.
    pub(crate) fn jobs(&self, context: u32, number: u64) -> Result<Charge, Error> {
        let context = self.contexts.get(&context);
        let jobs = context.map_or(&self.jobs_of_nobody, |context| &context.jobs);
        Charge::new(jobs, number).map_err(Error::TooMuchWork)
    }

    pub(crate) fn insert_memory(&mut self, memory: Memory) -> MemoryKey {
        self.next_key += 1;
        if let Some(context) = self.owner_mut(memory.context) {
            context.objects += 1;
        }
        self.memories.insert(self.next_key, Box::new(memory));
        self.next_key
    }

    pub(crate) fn set_attachment(&mut self, key: MemoryKey, attachment: Option<AttachmentId>) {
        if let Some(memory) = self.memories.get_mut(&key) {
            memory.attachment = attachment;
        }
    }
}

#[cfg(test)]
mod tests;
