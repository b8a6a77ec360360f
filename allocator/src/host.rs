//! What all guests of a daemon share: the provider, the limits, and what the guests are told of them.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use hostblob_capset::{BlobMem, Cache, Capset, Heap, Limits, MemoryType, Offer, WindowMode};
use hostblob_protocol::request::{Request, request_bit};

use crate::exports::{Exporter, Exports};
use crate::guest::{Guest, Waker};
use crate::provider::{Description, ExportKind, Placement, Provider, ProviderKind};
use crate::quota::{Charge, Exceeded, Quota};
use crate::window::{PAGE, Warmth, Window};

/// Memories and blobs that one context may hold: bounds the tables that a guest can grow.
pub const MAX_CONTEXT_OBJECTS: u32 = 65536;

/// Waits for host processes that one guest may have under way. Each keeps its command, and a fenced one keeps its descriptors: more would take
/// the guest's queue from processes that wait for nobody.
pub(crate) const MAX_HOLDS: usize = 64;
/// Those of one context.
pub(crate) const MAX_CONTEXT_HOLDS: usize = 16;

const HOST_VISIBLE: u32 = 0x2;
const HOST_CACHED: u32 = 0x8;

/// What an operator sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// Bytes of each guest's window: a power of two, at least 2 MiB.
    pub window_size: u64,
    /// Bytes that all guests together may hold.
    pub memory_limit: u64,
    /// Bytes that one context may hold.
    pub context_limit: u64,
    /// Bytes of `memory_limit` that each context has for sure, from its creation to its end: at most `context_limit`.
    pub context_share: u64,
    /// Clean pages that each window keeps for reuse.
    pub warm: Warmth,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            window_size: 8 << 30,
            memory_limit: 4 << 30,
            context_limit: 1 << 30,
            context_share: 1 << 20,
            warm: Warmth::up_to(128 << 20),
        }
    }
}

/// Why a configuration cannot be served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A PCI BAR is a power of two.
    #[error(
        "the window has {0} bytes: a power of two of at least 2 MiB is needed, as a PCI BAR has"
    )]
    WindowSize(u64),
    /// No context could be made.
    #[error("a share of {0} bytes for each context is more than the limit of {1} for all")]
    Share(u64, u64),
    /// A page at least.
    #[error("a limit of {0} bytes is less than a page of {1}")]
    LimitTooSmall(u64, u64),
}

/// Requests that need an export socket.
const EXPORTING: u64 = request_bit::PUBLISH
    | request_bit::WITHDRAW
    | request_bit::PRESENT
    | request_bit::WAIT_RELEASED;

/// Smallest window: one huge page.
const MIN_WINDOW: u64 = 2 << 20;

/// What connects guests with other processes of the host. Without any of it they share among themselves.
#[derive(Clone, Default)]
pub struct Outside {
    /// The export socket's side. With it, guests import what host processes hand in.
    pub exports: Option<Arc<Exports>>,
    /// What makes descriptors of guests' memory: for host processes, where there is an export socket, and for other devices of the VM.
    pub exporter: Option<Arc<dyn Exporter>>,
}

/// A provider with limits, ready for guests.
pub struct Host {
    pub(crate) provider: Arc<dyn Provider>,
    pub(crate) config: Config,
    capset: Capset,
    pub(crate) quota: Arc<Quota>,
    /// What guests show to host processes.
    pub(crate) exports: Option<Arc<Exports>>,
    /// What makes descriptors of their memory.
    pub(crate) exporter: Option<Arc<dyn Exporter>>,
}

impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Host")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl Host {
    /// Puts a provider and limits together.
    pub fn new(provider: Arc<dyn Provider>, config: Config) -> Result<Arc<Self>, ConfigError> {
        Self::with_outside(provider, config, Outside::default())
    }

    /// A host whose guests reach beyond it.
    pub fn with_outside(
        provider: Arc<dyn Provider>,
        config: Config,
        outside: Outside,
    ) -> Result<Arc<Self>, ConfigError> {
        if !config.window_size.is_power_of_two() || config.window_size < MIN_WINDOW {
            return Err(ConfigError::WindowSize(config.window_size));
        }
        let Outside { exports, exporter } = outside;
        let exporting = exports.is_some() && exporter.is_some();
        let capset = capset(provider.description(), &config, exporting);
        for limit in [config.memory_limit, config.context_limit] {
            if limit < u64::from(capset.page_size) {
                return Err(ConfigError::LimitTooSmall(
                    limit,
                    u64::from(capset.page_size),
                ));
            }
        }
        if config.context_share > config.memory_limit {
            let (share, limit) = (config.context_share, config.memory_limit);
            return Err(ConfigError::Share(share, limit));
        }
        let quota = Quota::device("bytes", config.memory_limit);
        Ok(Arc::new(Self {
            provider,
            config,
            capset,
            quota,
            exports,
            exporter,
        }))
    }

    /// What guests are told whose VMM maps the window as a whole. Others are told more: [`Guest::capset`].
    pub fn capset(&self) -> &Capset {
        &self.capset
    }

    /// What guests are told that are reached so.
    pub(crate) fn capset_of(&self, reach: Reach) -> Capset {
        let description = self.provider.description();
        let mut capset = self.capset.clone();
        if reach == Reach::Whole {
            return capset;
        }
        capset.window_mode = WindowMode::OnDemand;
        if reach == Reach::Here || description.exports == ExportKind::File {
            tell_memory(&mut capset, description, &self.config, |_| true);
        }
        capset
    }

    /// What one context may hold, for contexts that are not a [`Guest`]'s. They have no share.
    pub fn context_quota(&self) -> Arc<Quota> {
        Quota::context(&self.quota, self.capset.limits.max_context_bytes)
    }

    /// Charges bytes to such a context and to the device.
    pub fn charge(&self, context: &Arc<Quota>, bytes: u64) -> Result<Charge, Exceeded> {
        Charge::new(context, bytes)
    }

    /// Where guests meet host processes, if they do.
    pub fn exports(&self) -> Option<&Arc<Exports>> {
        self.exports.as_ref()
    }

    /// Bytes that all guests together hold.
    pub fn used(&self) -> u64 {
        self.quota.used()
    }

    /// A new guest with a window of its own. `waker` is called, from any thread, when work of the guest has finished.
    pub fn guest(self: &Arc<Self>, waker: Waker) -> std::io::Result<Guest> {
        self.guest_with_mode(WindowMode::Premapped, waker)
    }

    /// As [`Host::guest`], with a window that the VMM brings: a memfd as [`Window::adopt`] wants it, of [`Config::window_size`] bytes.
    pub fn guest_in(self: &Arc<Self>, window: OwnedFd, waker: Waker) -> std::io::Result<Guest> {
        let window = Window::adopt(window, self.config.window_size, self.config.warm)?;
        Guest::new(Arc::clone(self), window, Reach::Whole, waker)
    }

    /// A new guest of a VMM that maps the window as a whole, or each blob by itself ([`Guest::mapping`]). What host processes hand in
    /// can be mapped in the latter alone, and so can device memory that is exported as a file.
    pub fn guest_with_mode(
        self: &Arc<Self>,
        window_mode: WindowMode,
        waker: Waker,
    ) -> std::io::Result<Guest> {
        let window = self.new_window()?;
        let reach = match window_mode {
            WindowMode::Premapped => Reach::Whole,
            WindowMode::OnDemand => Reach::Each,
        };
        Guest::new(Arc::clone(self), window, reach, waker)
    }

    /// A new guest of a VMM in this process, that maps each blob by itself ([`Guest::mapping`]): from files, and from addresses.
    pub fn guest_here(self: &Arc<Self>, waker: Waker) -> std::io::Result<Guest> {
        let window = self.new_window()?;
        Guest::new(Arc::clone(self), window, Reach::Here, waker)
    }

    fn new_window(&self) -> std::io::Result<Window> {
        let size = self.config.window_size;
        Window::new(size, self.config.warm).map_err(|error| {
            let needs = "a guest takes a descriptor, a thread and that much address space";
            std::io::Error::new(
                error.kind(),
                format!("no window of {size} bytes: {error}; {needs}"),
            )
        })
    }
}

/// What a VMM can map for its guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// The window as a whole.
    Whole,
    /// Each blob by itself, from files.
    Each,
    /// Each blob by itself, from files and from addresses of this process.
    Here,
}

/// Heaps and types of the placements that a guest can have.
fn tell_memory(
    capset: &mut Capset,
    description: &Description,
    config: &Config,
    told: impl Fn(Placement) -> bool,
) {
    // What is not told comes last: indices are those of the provider.
    let types = || {
        let types = description.memory_types.iter();
        types.take_while(|found| told(found.placement))
    };
    let heaps = types()
        .map(|found| found.heap)
        .max()
        .map_or(0, |last| last + 1);
    capset.heaps = (0..heaps)
        .zip(&description.heaps)
        .map(|(_, heap)| Heap {
            size: heap.size.min(config.memory_limit),
            flags: heap.flags,
        })
        .collect();
    capset.types = types()
        .map(|found| MemoryType {
            property_flags: match found.placement {
                Placement::Window | Placement::Exported => found.property_flags,
                Placement::Device => found.property_flags & !HOST_VISIBLE,
            },
            heap: found.heap,
            cache: if found.property_flags & HOST_CACHED != 0 {
                Cache::Cached
            } else {
                Cache::WriteCombined
            },
        })
        .collect();
}

fn capset(description: &Description, config: &Config, exporting: bool) -> Capset {
    let page_size = description.attach_alignment.max(PAGE);
    let max_blob_size = description
        .max_allocation_size
        .min(config.context_limit)
        .min(config.memory_limit)
        .min(config.window_size);
    let mut capset = Capset {
        offer: Offer {
            requests: Request::ALL & !if exporting { 0 } else { EXPORTING },
            ..Offer::EVERYTHING
        },
        window_mode: WindowMode::Premapped,
        window_size: config.window_size,
        limits: Limits {
            max_blob_size: max_blob_size / page_size * page_size,
            max_context_bytes: config.context_limit.min(config.memory_limit),
            max_device_bytes: config.memory_limit,
            max_context_blobs: MAX_CONTEXT_OBJECTS,
        },
        page_size: u32::try_from(page_size).unwrap_or(u32::MAX),
        non_coherent_atom_size: u32::try_from(description.non_coherent_atom_size).unwrap_or(1),
        provider: match description.kind {
            ProviderKind::System => hostblob_capset::Provider::System,
            ProviderKind::Vulkan => hostblob_capset::Provider::Vulkan,
            ProviderKind::Gl => hostblob_capset::Provider::Gl,
        },
        vendor_id: description.vendor_id,
        device_id: description.device_id,
        device_uuid: description.device_uuid,
        driver_uuid: description.driver_uuid,
        device_name: description.device_name.clone(),
        driver_name: description.driver_name.clone(),
        heaps: Vec::new(),
        types: Vec::new(),
        blob_mem: BlobMem::HOST3D,
    };
    let told = |placement| placement != Placement::Exported;
    tell_memory(&mut capset, description, config, told);
    capset
}
