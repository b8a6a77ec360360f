//! The Vulkan provider.
//!
//! | file | answers |
//! |---|---|
//! | `instance`, `physical`, `device` | what Vulkan there is: loading, choosing, the one VkDevice |
//! | `attach`, `local`, `export` | where bytes come from: ranges of files, device-local memory, dma-bufs of it |
//! | `probe`, `types` | what is offered: what works, and how the guest sees it |
//! | `commands`, `worker`, `waiter` | how work runs: recording, the thread that submits, the thread that answers |
//!
//! Two threads serve all sessions; `front`, `desk` and `lane` beside this folder are what providers with threads share.

mod attach;
mod commands;
mod device;
mod error;
mod export;
mod instance;
mod local;
mod physical;
mod probe;
mod types;
mod waiter;
mod worker;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::thread;

use super::desk::Desk;
use super::front::Threads;
use super::udmabuf::Udmabuf;
use super::{
    CompletionSink, Description, DeviceSelector, ExportKind, Options, Placement, Provider,
    ProviderKind, Session, property,
};
use attach::Attacher;
use commands::Commands;
use device::Device;
use instance::Instance;
use local::LocalPool;
use physical::Candidate;
use types::{Found, HostMemory, View};
use waiter::Answers;
use worker::{VulkanGpu, Worker};

pub use super::trial::ProbeOutcome;
pub use attach::Strategy;
pub use error::VulkanError;
pub use instance::ValidationCounter;
pub use physical::{DeviceClass, DeviceFacts};
pub use probe::{Probe, ProbeRow, Way};

/// A host GPU through Vulkan.
pub struct VulkanProvider {
    description: Arc<Description>,
    facts: DeviceFacts,
    probe: Probe,
    counter: Arc<ValidationCounter>,
    threads: Arc<Threads>,
    #[cfg(test)]
    device: std::sync::Weak<Device>,
}

impl VulkanProvider {
    /// Loads Vulkan, chooses a device, finds out what it can do, and starts the threads.
    ///
    /// # Errors
    /// Each way in which a host can lack what is needed has its own error, which says what to do.
    pub fn new(options: &Options) -> Result<Self, VulkanError> {
        let instance = Instance::new(options.validation)?;
        let counter = Arc::clone(instance.counter());
        let mut tried = Vec::new();
        for candidate in choose(&instance, options.device.as_ref())? {
            let DeviceFacts { name, class, .. } = &candidate.facts;
            match Engine::new(&candidate, options.memory_limit) {
                Ok(engine) => {
                    let warnings = tried.iter().filter_map(|it| not_as_good(it, name, *class));
                    warnings.for_each(|warning| log::warn!("{warning}"));
                    return engine.start(counter);
                }
                Err(error) => {
                    log::info!("{name}: {error}");
                    tried.push((name.clone(), *class, error));
                }
            }
        }
        let mut tried: Vec<VulkanError> = tried.into_iter().map(|(.., error)| error).collect();
        let only = tried.len() == 1;
        match tried.pop() {
            None => Err(VulkanError::NoDevice),
            Some(error) if only => Err(error),
            Some(last) => {
                tried.push(last);
                let lines: Vec<String> = tried.iter().map(ToString::to_string).collect();
                Err(VulkanError::NoWindowMemory {
                    tried: lines.join("; "),
                })
            }
        }
    }

    /// What the device was found to do.
    #[must_use]
    pub fn probe(&self) -> &Probe {
        &self.probe
    }

    /// What the device says about itself.
    #[must_use]
    pub fn facts(&self) -> &DeviceFacts {
        &self.facts
    }

    /// The count of validation messages. It outlives the provider: what is found when the device is destroyed counts.
    #[must_use]
    pub fn validation_counter(&self) -> Arc<ValidationCounter> {
        Arc::clone(&self.counter)
    }
}

impl std::fmt::Debug for VulkanProvider {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VulkanProvider")
            .field("description", &self.description)
            .finish_non_exhaustive()
    }
}

impl Provider for VulkanProvider {
    fn description(&self) -> &Description {
        &self.description
    }

    fn connect(&self, sink: CompletionSink) -> Box<dyn Session> {
        self.threads.connect(sink)
    }
}

/// What the operator hears where a device of a better class is not the one that is taken: guests are slower than that host could make them.
fn not_as_good(
    (better, their_class, error): &(String, DeviceClass, VulkanError),
    taken: &str,
    class: DeviceClass,
) -> Option<String> {
    (*their_class < class).then(|| {
        format!("{better} ({their_class}) does not serve, and {taken} ({class}) does: {error}")
    })
}

/// The devices to try, best first; the one that was asked for.
fn choose(
    instance: &Arc<Instance>,
    selector: Option<&DeviceSelector>,
) -> Result<Vec<Candidate>, VulkanError> {
    let mut all = physical::candidates(instance)?;
    if all.is_empty() {
        return Err(VulkanError::NoDevice);
    }
    let Some(wanted) = selector else {
        all.sort_by_key(|candidate| candidate.facts.class);
        return Ok(all);
    };
    let matches = |candidate: &&Candidate| match wanted {
        DeviceSelector::Index(index) => candidate.facts.index == *index,
        DeviceSelector::Name(name) => candidate
            .facts
            .name
            .to_lowercase()
            .contains(&name.to_lowercase()),
    };
    match all.iter().find(matches) {
        Some(found) => Ok(vec![found.clone()]),
        None => {
            let present: Vec<String> = all
                .iter()
                .map(|c| format!("{} {:?}", c.facts.index, c.facts.name))
                .collect();
            Err(VulkanError::NoSuchDevice {
                wanted: wanted.clone(),
                present: present.join(", "),
            })
        }
    }
}

/// A device that was found to serve, before its threads are started.
struct Engine {
    worker: Worker,
    probe: Probe,
}

impl Engine {
    fn new(candidate: &Candidate, memory_limit: Option<u64>) -> Result<Self, VulkanError> {
        let device = Device::new(candidate)?;
        let mut commands = Commands::new(&device)?;
        let udmabuf = Udmabuf::open().map(Arc::new);
        let probe = probe::probe(&device, &mut commands, udmabuf.as_ref());
        // A loss while something was tried is only one more way that does not work; another may have worked before.
        if let Some(lost) = device.lost() {
            return Err(VulkanError::Unsuitable {
                device: device.facts.name.clone(),
                reason: lost.to_string(),
            });
        }
        let strategy = probe.best().ok_or_else(|| VulkanError::NoWindowMemory {
            tried: format!("{}: {}", device.facts.name, probe.complaint()),
        })?;
        let attacher = Attacher::new(&device, strategy, udmabuf.ok());
        let buffer_types = probe::buffer_types(&device).map_err(|error| VulkanError::Host {
            what: "a buffer",
            reason: error.to_string(),
        })?;
        let host = HostMemory {
            types: &device.facts.types,
            heaps: &device.facts.heaps,
        };
        let found = Found {
            attachable: &probe.attachable(strategy),
            exportable: &probe.exportable(),
            buffers: buffer_types,
        };
        let view = types::view(host, found, memory_limit);
        let pool = LocalPool::new(&device, local_limit(&view))?;
        let description = Arc::new(describe(&device, &attacher, &view));
        let gpu = VulkanGpu {
            commands,
            attacher,
            pool,
            host_types: view.host_types(),
            device,
        };
        let worker = Worker {
            desk: Desk::new(gpu, description),
        };
        Ok(Self { worker, probe })
    }

    fn start(self, counter: Arc<ValidationCounter>) -> Result<VulkanProvider, VulkanError> {
        let Self { worker, probe } = self;
        let description = Arc::clone(worker.desk.description());
        let facts = worker.desk.gpu.device.facts.clone();
        let device = Arc::clone(&worker.desk.gpu.device);
        #[cfg(test)]
        let weak = Arc::downgrade(&device);
        let no_thread = |error: std::io::Error| VulkanError::Host {
            what: "a thread",
            reason: error.to_string(),
        };
        let (sender, inbox) = crossbeam_channel::unbounded();
        let (answers, batches, backlog) = Answers::new();
        let waiter = thread::Builder::new()
            .name("hb-vk-waiter".to_owned())
            .spawn(move || waiter::run(&device, &batches, &backlog))
            .map_err(no_thread)?;
        let thread = thread::Builder::new()
            .name("hb-vk-worker".to_owned())
            .spawn(move || {
                let mut worker = worker;
                worker.run(&inbox, &answers);
                // The waiter delivers what is left, and drops what it still holds of the device, before the worker's own
                // part goes.
                drop(answers);
                if waiter.join().is_err() {
                    log::error!("the Vulkan waiter panicked");
                }
                drop(worker);
            })
            .map_err(no_thread)?;
        Ok(VulkanProvider {
            description,
            facts,
            probe,
            counter,
            threads: Threads::new(sender, thread),
            #[cfg(test)]
            device: weak,
        })
    }
}

/// All that may be live in the device heaps that guests see.
fn local_limit(view: &View) -> u64 {
    let mut heaps: Vec<u32> = view
        .types
        .iter()
        .filter(|kind| kind.placement != Placement::Window)
        .map(|kind| kind.heap)
        .collect();
    heaps.sort_unstable();
    heaps.dedup();
    heaps
        .iter()
        .filter_map(|heap| view.heaps.get(usize::try_from(*heap).ok()?))
        .fold(0, |sum, heap| sum.saturating_add(heap.size))
}

fn describe(device: &Device, attacher: &Attacher, view: &View) -> Description {
    let facts = &device.facts;
    debug_assert!(
        view.types
            .iter()
            .all(|kind| kind.placement == Placement::Device
                || kind.property_flags & property::HOST_COHERENT != 0)
    );
    Description {
        kind: ProviderKind::Vulkan,
        device_name: facts.name.clone(),
        driver_name: facts.driver.clone(),
        attach_strategy: attacher.strategy().as_str().into(),
        vendor_id: facts.vendor_id,
        device_id: facts.device_id,
        device_uuid: facts.device_uuid,
        driver_uuid: facts.driver_uuid,
        heaps: view.heaps.clone(),
        memory_types: view.types.clone(),
        exports: ExportKind::File,
        attach_alignment: attacher.alignment(),
        non_coherent_atom_size: 1,
        max_allocation_size: attacher.max_length(),
    }
}

/// What a physical device says, and what it was found to do.
pub(super) type Surveyed = (DeviceFacts, Result<Probe, VulkanError>);

/// What each physical device says and does, for the inventory: a device is made, probed, and dropped.
pub(super) fn survey() -> Result<Vec<Surveyed>, VulkanError> {
    let instance = Instance::new(false)?;
    let udmabuf = Udmabuf::open().map(Arc::new);
    let probe_one = |candidate: &Candidate| {
        let device = Device::new(candidate)?;
        let mut commands = Commands::new(&device)?;
        Ok(probe::probe(&device, &mut commands, udmabuf.as_ref()))
    };
    let candidates = physical::candidates(&instance)?;
    Ok(candidates
        .into_iter()
        .map(|candidate| {
            let probe = probe_one(&candidate);
            (candidate.facts, probe)
        })
        .collect())
}
