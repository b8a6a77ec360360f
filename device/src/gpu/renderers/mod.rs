//! Renderers beside ours, which the embedded rutabaga serves: cross-domain (Wayland), and what it was built with.
//!
//! | file | holds |
//! |---|---|
//! | `mod.rs` | what a daemon offers, and one guest's part in it: contexts, resources, limits |
//! | `guest.rs` | the commands |
//! | `thread.rs` | the thread that rutabaga runs in |
//! | `stream.rs` | what a cross-domain context may be sent |
//! | `fences.rs` | when work is over |
//! | `pages.rs` | pages of the guest, as addresses |
//!
//! Which command comes here says `routing.rs`.

mod fences;
mod guest;
mod pages;
mod stream;
mod thread;

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hostblob_allocator::provider::Piece;
use hostblob_allocator::quota::{Charge, Quota};
use hostblob_allocator::{Host, Mapping, Waker};
use parking_lot::Mutex;
use rustix::event::{EventfdFlags, eventfd};
use rustix::process::Resource as Limit;
use rutabaga_gfx::RUTABAGA_CAPSET_CROSS_DOMAIN;
use thiserror::Error;

use super::fault::Fault;
use crate::ratelimit::ContextLimiter;
use fences::Fences;
use pages::Pages;
use stream::Stream;
pub use stream::{MAX_IDENTIFIERS, MAX_IMAGE_QUERIES, MAX_IMAGE_SIDE, MAX_STREAM};
pub use thread::CALL_TIMEOUT;
use thread::Thread;

/// Contexts of one guest here: each has a thread, a connection to the compositor, and six descriptors.
pub const MAX_CONTEXTS: usize = 64;
/// Resources of one guest here: each has a descriptor or pages.
pub const MAX_RESOURCES: usize = 4096;
/// Pieces of guest memory that all of a guest's resources here may lie in. Each costs a mapping (VMA) of the process.
pub const MAX_PIECES: usize = 8192;
/// Renderers that may be lost in the life of a daemon. Each leaves a thread and its memory behind.
pub const MAX_LOST: usize = 4;

/// Capsets besides cross-domain that this build has, by their names in rutabaga.
pub const BUILT_IN: &[&str] = if cfg!(feature = "virgl") {
    &["virgl2", "venus", "drm"]
} else {
    &[]
};

/// What is offered to guests beside our own context.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Offer {
    /// Socket of the compositor that cross-domain contexts connect to.
    pub wayland: Option<PathBuf>,
    /// Of [`BUILT_IN`].
    pub capsets: Vec<String>,
}

impl Offer {
    /// Whether anything is.
    pub fn is_empty(&self) -> bool {
        self.wayland.is_none() && self.capsets.is_empty()
    }

    /// Bits by capset id.
    fn mask(&self) -> u64 {
        let names = self.capsets.iter().map(String::as_str);
        let cross_domain = self.wayland.as_ref().map(|_| "cross-domain");
        rutabaga_gfx::calculate_capset_mask(names.chain(cross_domain))
    }
}

/// Why other renderers cannot be offered.
#[derive(Debug, Error)]
pub enum RendererError {
    /// Nobody is there.
    #[error(
        "--wayland-socket {path}: no compositor answers there: {error}; start it first, or give the path of its socket \
         ($XDG_RUNTIME_DIR/$WAYLAND_DISPLAY)"
    )]
    Wayland {
        /// Where.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// It is not in this build.
    #[error(
        "--capsets {0}: this hostblobd is built with {list}; others need their cargo feature (docs/renderers.md)",
        list = if BUILT_IN.is_empty() { "none".to_owned() } else { BUILT_IN.join(", ") }
    )]
    NotBuilt(String),
    /// It is, and its driver does not work here.
    #[error("--capsets {0}: its renderer does not start on this host; the log says more")]
    NotOffered(String),
    /// It refuses, or its driver does.
    #[error("rutabaga does not start: {0}")]
    NotStarted(String),
    /// The system refuses.
    #[error("no thread for rutabaga: {0}")]
    Thread(io::Error),
    /// They were lost, one after the other.
    #[error("{MAX_LOST} renderers were lost, no other is started")]
    Lost,
}

/// A capset, as GET_CAPSET_INFO tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capset {
    /// Its number.
    pub id: u32,
    /// Largest version.
    pub max_version: u32,
    /// Bytes.
    pub max_size: u32,
}

impl Capset {
    /// Its name, where rutabaga has one for it.
    pub fn name(&self) -> String {
        let names = 1_u64.checked_shl(self.id);
        let mut names = names.map(rutabaga_gfx::calculate_capset_names);
        let name = names.as_mut().and_then(Vec::pop);
        name.unwrap_or_else(|| format!("capset {}", self.id))
    }
}

/// The daemon's side: what is offered, and a renderer that waits for its next guest.
///
/// A renderer is used again, since a GPU driver's library is started once in a process.
#[derive(Debug)]
pub struct Renderers {
    offer: Offer,
    idle: Mutex<Option<Thread>>,
    lost: AtomicUsize,
    capsets: Vec<Capset>,
}

impl Renderers {
    /// Starts the first renderer. Its absence is told now, not when a guest has booted.
    pub fn start(offer: Offer) -> Result<Arc<Self>, RendererError> {
        if let Some(path) = &offer.wayland {
            UnixStream::connect(path).map_err(|error| RendererError::Wayland {
                path: path.clone(),
                error,
            })?;
        }
        let built_in = |name: &&String| BUILT_IN.contains(&name.as_str());
        if let Some(name) = offer.capsets.iter().find(|name| !built_in(name)) {
            return Err(RendererError::NotBuilt(name.clone()));
        }
        if offer.is_empty() {
            // Rutabaga would take it for everything.
            return Err(RendererError::NotStarted(
                "nothing is to be offered".to_owned(),
            ));
        }
        let thread = Thread::start(&offer)?;
        let capsets = thread.capsets.clone();
        let offered = |name: &&String| capsets.iter().any(|capset| capset.name() == **name);
        if let Some(name) = offer.capsets.iter().find(|name| !offered(name)) {
            return Err(RendererError::NotOffered(name.clone()));
        }
        Ok(Arc::new(Self {
            offer,
            idle: Mutex::new(Some(thread)),
            lost: AtomicUsize::new(0),
            capsets,
        }))
    }

    /// What guests are told of, besides our own.
    pub fn capsets(&self) -> &[Capset] {
        &self.capsets
    }

    fn take(&self) -> Result<Thread, RendererError> {
        if let Some(thread) = self.idle.lock().take() {
            return Ok(thread);
        }
        if self.lost.load(Ordering::Relaxed) >= MAX_LOST {
            return Err(RendererError::Lost);
        }
        Thread::start(&self.offer)
    }
}

/// A context here.
#[derive(Debug)]
struct Context {
    quota: Arc<Quota>,
    /// What it has sent, where it is cross-domain.
    stream: Option<Stream>,
}

/// A resource here.
#[derive(Debug)]
struct Resource {
    /// Made by our allocator, and known here as well: pages of the guest are nobody's.
    lent: bool,
    /// The guest's pages that it has, and in how many pieces they are.
    pages: Option<(Arc<Pages>, usize)>,
    /// Contexts that it is attached to.
    attached: BTreeSet<u32>,
    blob: Option<Blob>,
    _charge: Option<Charge>,
}

/// Memory of the host, which a guest may map.
#[derive(Debug)]
struct Blob {
    size: u64,
    mappable: bool,
    mapped: Option<Mapping>,
}

/// One guest's contexts and resources that are not ours.
pub(super) struct Renderer {
    renderers: Arc<Renderers>,
    host: Arc<Host>,
    waker: Waker,
    /// None since it was lost, until the guest resets the device.
    thread: Option<Thread>,
    contexts: HashMap<u32, Context>,
    resources: HashMap<u32, Resource>,
    fences: Fences,
}

impl std::fmt::Debug for Renderer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Renderer")
            .field("contexts", &self.contexts)
            .field("resources", &self.resources)
            .finish_non_exhaustive()
    }
}

impl Renderer {
    pub(super) fn new(renderers: &Arc<Renderers>, host: &Arc<Host>, waker: Waker) -> Self {
        let mut renderer = Self {
            renderers: Arc::clone(renderers),
            host: Arc::clone(host),
            waker,
            thread: None,
            contexts: HashMap::new(),
            resources: HashMap::new(),
            fences: Fences::default(),
        };
        renderer.begin();
        renderer
    }

    /// Takes a renderer, unless there is one.
    fn begin(&mut self) {
        if self.thread.is_some() {
            return;
        }
        match self.renderers.take() {
            Ok(thread) => {
                thread.set_waker(Some(Arc::clone(&self.waker)));
                self.thread = Some(thread);
            }
            Err(error) => log::error!("this guest has our own context alone: {error}"),
        }
    }

    /// What the guest is told of, besides our own.
    pub(super) fn capsets(&self) -> &[Capset] {
        self.renderers.capsets()
    }

    /// Whether contexts of this capset are made here.
    pub(super) fn serves(&self, capset: u32) -> bool {
        self.capsets().iter().any(|offered| offered.id == capset)
    }

    /// Whether RESOURCE_CREATE_3D is: whether there is more than cross-domain.
    pub(super) fn has_3d(&self) -> bool {
        let mut capsets = self.capsets().iter();
        capsets.any(|capset| capset.id != RUTABAGA_CAPSET_CROSS_DOMAIN)
    }

    pub(super) fn has_context(&self, id: u32) -> bool {
        self.contexts.contains_key(&id)
    }

    /// Whether the resource was made here.
    pub(super) fn owns(&self, resource: u32) -> bool {
        self.resources
            .get(&resource)
            .is_some_and(|resource| !resource.lent)
    }

    /// Whether a resource is known here: made here, or lent.
    pub(super) fn has_resource(&self, resource: u32) -> bool {
        self.resources.contains_key(&resource)
    }

    /// Whether the guest has anything here.
    pub(super) fn is_empty(&self) -> bool {
        self.contexts.is_empty() && self.resources.is_empty()
    }

    /// Whether a process in the guest may be using the window through it.
    pub(super) fn uses_window(&self) -> bool {
        !self.contexts.is_empty() || self.resources.values().any(Resource::is_mapped)
    }

    /// What is where the blob is mapped.
    pub(super) fn mapping(&self, resource: u32) -> Option<Mapping> {
        let blob = self.resources.get(&resource)?.blob.as_ref()?;
        blob.mapped.clone()
    }

    /// All that the guest has goes.
    pub(super) fn reset(&mut self) {
        let contexts: Vec<u32> = self.contexts.keys().copied().collect();
        for context in contexts {
            // A renderer that refuses this is as good as lost.
            if self.destroy_context(context).is_err() {
                self.lose("a context does not end");
            }
        }
        let resources: Vec<u32> = self.resources.keys().copied().collect();
        for resource in resources {
            if self.unref(resource).is_err() {
                self.lose("a resource does not end");
            }
        }
        self.contexts.clear();
        self.resources.clear();
        self.fences.clear();
        self.begin();
    }

    /// Nobody answers any more. What the guest has here stays until it gives it up; its pages are its own again.
    fn lose(&mut self, reason: &str) {
        let Some(thread) = self.thread.take() else {
            return;
        };
        let lost = self.renderers.lost.fetch_add(1, Ordering::Relaxed) + 1;
        log::error!(
            "the guest's contexts of other renderers no longer work until it resets the device: {reason} (lost so far: {lost}, at most {MAX_LOST})"
        );
        drop(thread);
        self.fences.clear();
        for resource in self.resources.values() {
            resource.give_pages_back();
        }
        (self.waker)();
    }

    fn pieces(&self) -> usize {
        let resources = self.resources.values();
        resources
            .filter_map(|resource| Some(resource.pages.as_ref()?.1))
            .sum()
    }

    /// Addresses for pages of the guest.
    fn map_pages(&self, pieces: &[Piece]) -> Result<(Arc<Pages>, usize), Fault> {
        let pieces = join(pieces);
        if self.pieces().saturating_add(pieces.len()) > MAX_PIECES {
            return Err(Fault::Limit(
                "pieces of guest memory are in use here",
                MAX_PIECES,
            ));
        }
        let pages = Pages::new(&pieces).map_err(|error| Fault::Pages(error.to_string()))?;
        Ok((Arc::new(pages), pieces.len()))
    }

    /// The VMM has changed the guest's memory: the resource's pages are these now, or nowhere.
    pub(super) fn pages_changed(
        &mut self,
        resource: u32,
        pieces: Option<&[Piece]>,
        log: &mut ContextLimiter,
    ) {
        let Some(found) = self.resources.get_mut(&resource) else {
            return;
        };
        let Some((pages, count)) = &mut found.pages else {
            return;
        };
        let pieces = pieces.map(join);
        *count = pieces.as_ref().map_or(0, Vec::len);
        if let Err(error) = pages.replace(pieces.as_deref()) {
            let line = format_args!("resource {resource} has lost its pages: {error}");
            log.warn(None, line);
        }
    }
}

impl Drop for Renderer {
    fn drop(&mut self) {
        self.reset();
        if let Some(thread) = self.thread.take() {
            thread.set_waker(None);
            *self.renderers.idle.lock() = Some(thread);
        }
    }
}

impl Resource {
    fn is_mapped(&self) -> bool {
        self.blob.as_ref().is_some_and(|blob| blob.mapped.is_some())
    }

    fn give_pages_back(&self) {
        if let Some((pages, _)) = &self.pages
            && let Err(error) = pages.replace(None)
        {
            log::error!("pages of the guest stay mapped: {error}");
        }
    }
}

/// Joins pieces that continue each other.
fn join(pieces: &[Piece]) -> Vec<Piece> {
    let mut joined: Vec<Piece> = Vec::new();
    for piece in pieces {
        match joined.last_mut() {
            Some(last)
                if Arc::ptr_eq(&last.file, &piece.file)
                    && last.offset.checked_add(last.length) == Some(piece.offset) =>
            {
                last.length = last.length.saturating_add(piece.length);
            }
            _ => joined.push(piece.clone()),
        }
    }
    joined
}

/// Whether `count` more descriptors may be opened for a guest: half of the process's are everybody else's.
///
/// The lowest free number is at most the count of those that are open, and close to it.
fn descriptors_left(count: u32) -> Result<(), Fault> {
    if count == 0 {
        return Ok(());
    }
    let limit = rustix::process::getrlimit(Limit::Nofile)
        .current
        .unwrap_or(u64::MAX)
        / 2;
    let lowest = eventfd(0, EventfdFlags::CLOEXEC).map(|lowest| {
        let number = std::os::fd::AsRawFd::as_raw_fd(&lowest);
        u64::try_from(number).unwrap_or(u64::MAX)
    });
    match lowest {
        Ok(lowest) if lowest.saturating_add(count.into()) <= limit => Ok(()),
        _ => {
            let limit = usize::try_from(limit).unwrap_or(usize::MAX);
            Err(Fault::Limit("descriptors are in use", limit))
        }
    }
}
