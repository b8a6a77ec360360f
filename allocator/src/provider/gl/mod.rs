//! The OpenGL provider: buffers over window memory by GL_AMD_pinned_memory, without a display and without a DRM node.
//!
//! | file | answers |
//! |---|---|
//! | `egl`, `functions`, `context`, `facts` | what OpenGL there is: loading, displays, the one context |
//! | `buffer`, `persistent` | where bytes come from: ranges of files, device-local memory, buffers with an address |
//! | `probe`, `view`, `survey` | what is offered: what works, how the guest sees it, and people |
//! | `commands`, `worker` | how work runs: giving and fencing, the thread that does all of it |
//!
//! One thread serves all sessions, since a context belongs to one; `front`, `desk` and `lane` beside this folder are what
//! providers with threads share. It ends when the provider and its last session are dropped, after the work in flight.

mod buffer;
mod commands;
mod context;
mod egl;
mod error;
mod facts;
mod functions;
mod persistent;
mod probe;
mod survey;
mod view;
mod worker;

#[cfg(test)]
mod tests;

use std::rc::Rc;
use std::sync::Arc;
use std::thread;

use super::desk::Desk;
use super::front::Threads;
use super::trial::ProbeOutcome;
use super::{CompletionSink, Description, DeviceSelector, Options, Placement, Provider, Session};
use buffer::Budget;
use commands::Commands;
use context::Gl;
use egl::{Display, Egl};
use persistent::Persistent;
use view::Shared;
use worker::{GlGpu, Worker};

pub use context::MessageCounter;
pub use error::GlError;
pub use facts::GlFacts;
pub use survey::{GlReport, survey};

/// A host GPU through OpenGL.
pub struct GlProvider {
    started: Started,
    counter: Arc<MessageCounter>,
    threads: Arc<Threads>,
}

/// What the thread tells once it serves.
struct Started {
    description: Arc<Description>,
    facts: GlFacts,
    pinned: ProbeOutcome,
    persistent: ProbeOutcome,
    #[cfg(test)]
    faults: Arc<super::faults::Faults<u32>>,
    #[cfg(test)]
    busy: Arc<std::sync::atomic::AtomicBool>,
}

impl GlProvider {
    /// Loads EGL, makes a context, finds out what it can do, and starts the thread. With `validation` it is a debug
    /// context.
    ///
    /// A device without pinned memory serves as well: its [`Description`] then has no type for the window.
    ///
    /// # Errors
    /// Each way in which a host can lack what is needed has its own error, which says what to do.
    pub fn new(options: &Options) -> Result<Self, GlError> {
        let counter = Arc::new(MessageCounter::default());
        let (sender, inbox) = crossbeam_channel::unbounded();
        let (report, told) = crossbeam_channel::bounded(1);
        let (options, messages) = (options.clone(), Arc::clone(&counter));
        let worker = thread::Builder::new()
            .name("hb-gl-worker".to_owned())
            .spawn(move || match choose(&options, &messages) {
                Ok(engine) => {
                    let _ = report.send(Ok(engine.started()));
                    engine.worker().run(&inbox);
                }
                Err(error) => {
                    let _ = report.send(Err(error));
                }
            })
            .map_err(|error| GlError::Host {
                what: "a thread",
                reason: error.to_string(),
            })?;
        let threads = Threads::new(sender, worker);
        // On failure `threads` is dropped, which waits for the thread to end.
        let started = told.recv().unwrap_or_else(|_| {
            Err(GlError::Host {
                what: "the driver",
                reason: "its thread ended without a word".to_owned(),
            })
        })?;
        Ok(Self {
            started,
            counter,
            threads,
        })
    }

    /// What the context says about itself.
    #[must_use]
    pub fn facts(&self) -> &GlFacts {
        &self.started.facts
    }

    /// What came of pinning window memory.
    #[must_use]
    pub fn pinned(&self) -> &ProbeOutcome {
        &self.started.pinned
    }

    /// What came of persistent mapped buffers.
    #[must_use]
    pub fn persistent(&self) -> &ProbeOutcome {
        &self.started.persistent
    }

    /// Whether anything can be attached to window memory: without it guests of other processes get device-local memory only.
    #[must_use]
    pub fn serves_window(&self) -> bool {
        serves_window(&self.started.description)
    }

    /// The count of debug messages. It outlives the provider: what is said when the context is destroyed counts.
    #[must_use]
    pub fn message_counter(&self) -> Arc<MessageCounter> {
        Arc::clone(&self.counter)
    }
}

impl std::fmt::Debug for GlProvider {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GlProvider")
            .field("description", &self.started.description)
            .finish_non_exhaustive()
    }
}

impl Provider for GlProvider {
    fn description(&self) -> &Description {
        &self.started.description
    }

    fn connect(&self, sink: CompletionSink) -> Box<dyn Session> {
        self.threads.connect(sink)
    }
}

fn serves_window(description: &Description) -> bool {
    description
        .memory_types
        .iter()
        .any(|kind| kind.placement == Placement::Window)
}

/// A context that was found to serve, on the thread that will.
struct Engine {
    desk: Desk<GlGpu>,
    pinned: ProbeOutcome,
    persistent: ProbeOutcome,
}

impl Engine {
    fn new(
        egl: &'static Egl,
        display: &Display,
        validation: bool,
        memory_limit: Option<u64>,
        counter: &Arc<MessageCounter>,
    ) -> Result<Self, GlError> {
        let gl = Gl::new(egl, display, validation, counter)?;
        let mut commands = Commands::new(&gl);
        let trial = Budget::new(&gl, buffer::largest());
        probe::local(&mut commands, &trial).map_err(|error| GlError::Unsuitable {
            renderer: gl.facts.renderer.clone(),
            reason: error.to_string(),
        })?;
        let pinned = probe::pinned(&gl, &mut commands, &trial);
        let persistent = probe::persistent(&mut commands, &Persistent::new(&trial));
        // A loss while these were tried is only one more way in which they do not work.
        if let Some(lost) = gl.lost() {
            return Err(GlError::Unsuitable {
                renderer: gl.facts.renderer.clone(),
                reason: lost.to_string(),
            });
        }
        let shared = match (&pinned, &persistent) {
            (ProbeOutcome::Works, _) => Shared::Pinned,
            (_, ProbeOutcome::Works) => Shared::Persistent,
            _ => Shared::No,
        };
        let description = Arc::new(view::describe(&gl.facts, shared, memory_limit));
        let budget = Budget::new(&gl, view::device_heap(&description));
        let gpu = GlGpu {
            commands,
            persistent: Persistent::new(&budget),
            budget,
            description: Arc::clone(&description),
            gl,
        };
        Ok(Self {
            desk: Desk::new(gpu, description),
            pinned,
            persistent,
        })
    }

    fn gl(&self) -> &Rc<Gl> {
        &self.desk.gpu.gl
    }

    fn facts(&self) -> &GlFacts {
        &self.gl().facts
    }

    fn started(&self) -> Started {
        Started {
            description: Arc::clone(self.desk.description()),
            facts: self.facts().clone(),
            pinned: self.pinned.clone(),
            persistent: self.persistent.clone(),
            #[cfg(test)]
            faults: Arc::clone(&self.gl().faults),
            #[cfg(test)]
            busy: Arc::clone(&self.gl().busy),
        }
    }

    fn worker(self) -> Worker {
        Worker::new(self.desk)
    }
}

/// The engine of the best display, or of the one that was asked for.
///
/// One context is current on a thread at a time, so where there are several displays each is looked at and closed again
/// before the chosen one is opened.
fn choose(options: &Options, counter: &Arc<MessageCounter>) -> Result<Engine, GlError> {
    let egl = egl::load()?;
    let displays = egl::displays(egl)?;
    let open = |display: &Display| {
        let (validation, limit) = (options.validation, options.memory_limit);
        Engine::new(egl, display, validation, limit, counter)
    };
    if let ([only], None) = (displays.as_slice(), &options.device) {
        return open(only);
    }
    let (seen, last) = numbered(&displays, |display| {
        let engine = open(display)?;
        Ok((engine.facts().clone(), rank(&engine)))
    });
    let chosen = match &options.device {
        None => seen.iter().min_by_key(|(_, (_, rank))| *rank),
        Some(wanted) => seen
            .iter()
            .find(|(index, (facts, _))| is_wanted(wanted, *index, &facts.renderer)),
    };
    match (chosen.and_then(|(index, ..)| displays.get(*index)), last) {
        (Some(display), _) => open(display),
        (None, Some(error)) if seen.is_empty() => Err(error),
        (None, _) => Err(GlError::NoSuchDevice {
            wanted: options.device.clone().unwrap_or(DeviceSelector::Index(0)),
            present: seen
                .iter()
                .map(|(index, (facts, _))| format!("{index} {:?}", facts.renderer))
                .collect::<Vec<_>>()
                .join(", "),
        }),
    }
}

/// What each display says, with its number, and why the last one of the others does not work. Those have numbers too: `--device` takes the same
/// number before and after a driver has failed, and the inventory shows it.
fn numbered<D, T, E>(
    displays: &[D],
    mut look: impl FnMut(&D) -> Result<T, E>,
) -> (Vec<(usize, T)>, Option<E>) {
    let mut seen = Vec::new();
    let mut last = None;
    for (index, display) in displays.iter().enumerate() {
        match look(display) {
            Ok(found) => seen.push((index, found)),
            Err(error) => last = Some(error),
        }
    }
    (seen, last)
}

/// The lower, the better: window memory counts more than speed, for without it there is little to offer.
fn rank(engine: &Engine) -> (bool, bool) {
    (
        !serves_window(engine.desk.description()),
        engine.facts().software,
    )
}

fn is_wanted(wanted: &DeviceSelector, index: usize, renderer: &str) -> bool {
    match wanted {
        DeviceSelector::Index(number) => *number == index,
        DeviceSelector::Name(name) => renderer.to_lowercase().contains(&name.to_lowercase()),
    }
}
