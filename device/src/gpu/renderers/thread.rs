//! The thread that owns rutabaga. All calls go through it, one at a time.
//!
//! Rutabaga is not written for a guest that means harm: it may panic, and a call may wait for a compositor or for whoever reads the other end of
//! a pipe. So a call here has a deadline, and a panic ends with it. Either way the thread is lost, and what is left is everybody else's.

use std::cell::Cell;
use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};
use hostblob_allocator::Waker;
use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec};
use rutabaga_gfx::{
    RUTABAGA_PATH_TYPE_WAYLAND, Rutabaga, RutabagaBuilder, RutabagaDescriptor, RutabagaError,
    RutabagaFence, RutabagaHandler, RutabagaPath, RutabagaResult,
};

use super::pages::Pages;
use super::{Capset, Offer, RendererError};
use crate::gpu::fault::Fault;
use hostblob_protocol::virtio_gpu::resp;

/// Longest time that a call may take. The guest's other commands wait meanwhile.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// Longest time that making a renderer may take: a GPU driver is loaded.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// How often a thread that watches a descriptor looks whether it is still needed.
const WATCH: Duration = Duration::from_secs(1);

/// What the thread owns. The pages go last: rutabaga has their addresses.
pub(super) struct State {
    pub(super) rutabaga: Rutabaga,
    pub(super) pages: HashMap<u32, Arc<Pages>>,
}

type Work = Box<dyn FnOnce(&mut State) + Send>;

enum Job {
    Work(Work),
    End,
}

/// Whom fences wake: the guest that has the renderer now.
#[derive(Default)]
struct Relay(Mutex<Option<Waker>>);

impl Relay {
    fn wake(&self) {
        let waker = self.0.lock().clone();
        if let Some(waker) = waker {
            waker();
        }
    }
}

/// The thread, from outside. It ends when this drops.
pub(super) struct Thread {
    jobs: Sender<Job>,
    relay: Arc<Relay>,
    /// Fences that were reached.
    pub(super) reached: Receiver<RutabagaFence>,
    pub(super) capsets: Vec<Capset>,
    /// Numbers of fences: never used again in the life of a rutabaga, which may have several guests one after the other.
    fences: Cell<u64>,
}

impl Thread {
    /// Starts rutabaga.
    pub(super) fn start(offer: &Offer) -> Result<Self, RendererError> {
        let (jobs, work) = unbounded();
        let (ready, started) = bounded(1);
        let (signal, reached) = unbounded();
        let relay = Arc::<Relay>::default();
        let woken = Arc::clone(&relay);
        let handler = RutabagaHandler::new(move |fence: RutabagaFence| {
            // Nobody hears it when the guest is gone.
            let _ = signal.send(fence);
            woken.wake();
        });
        let (offer, poller) = (offer.clone(), jobs.clone());
        spawn("hostblob-render", move || {
            match build(&offer, handler) {
                Ok((state, capsets)) => {
                    if let Some(descriptor) = state.rutabaga.poll_descriptor() {
                        let watch = move || watch(&descriptor, &poller);
                        if let Err(error) = spawn("hostblob-poll", watch) {
                            let _ = ready.send(Err(error));
                            return;
                        }
                    }
                    let _ = ready.send(Ok(capsets));
                    serve(state, &work);
                }
                Err(error) => {
                    let _ = ready.send(Err(error));
                }
            };
        })?;
        let capsets = started
            .recv_timeout(START_TIMEOUT)
            .map_err(|_| RendererError::NotStarted("it does not come to an end".to_owned()))??;
        Ok(Self {
            jobs,
            relay,
            reached,
            capsets,
            fences: Cell::new(0),
        })
    }

    /// The number of the next fence.
    pub(super) fn next_fence(&self) -> u64 {
        self.fences.update(|last| last + 1);
        self.fences.get()
    }

    /// Whom fences wake from now on.
    pub(super) fn set_waker(&self, waker: Option<Waker>) {
        *self.relay.0.lock() = waker;
    }

    /// Calls rutabaga. [`Fault::RendererLost`]: nobody knows what came of it, and no other call will be answered.
    pub(super) fn call<R: Send + 'static>(
        &self,
        work: impl FnOnce(&mut State) -> RutabagaResult<R> + Send + 'static,
    ) -> Result<R, Fault> {
        let (answer, result) = bounded(1);
        let work: Work = Box::new(move |state| {
            let _ = answer.send(work(state).map_err(|error| refusal(&error)));
        });
        if self.jobs.send(Job::Work(work)).is_err() {
            return Err(Fault::RendererLost("it has ended"));
        }
        match result.recv_timeout(CALL_TIMEOUT) {
            Ok(result) => result,
            Err(RecvTimeoutError::Timeout) => Err(Fault::RendererLost("it did not answer in 5 s")),
            Err(RecvTimeoutError::Disconnected) => Err(Fault::RendererLost("it panicked")),
        }
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.set_waker(None);
        let _ = self.jobs.send(Job::End);
    }
}

impl std::fmt::Debug for Thread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Thread")
            .field("capsets", &self.capsets)
            .finish_non_exhaustive()
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), RendererError> {
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(run);
    thread.map(drop).map_err(RendererError::Thread)
}

fn build(
    offer: &Offer,
    handler: RutabagaHandler<RutabagaFence>,
) -> Result<(State, Vec<Capset>), RendererError> {
    let started = |error: RutabagaError| RendererError::NotStarted(error.to_string());
    let wayland = offer.wayland.iter().map(|path| RutabagaPath {
        path: path.clone(),
        path_type: RUTABAGA_PATH_TYPE_WAYLAND,
    });
    let rutabaga = RutabagaBuilder::new(offer.mask(), handler)
        .set_rutabaga_paths(Some(wayland.collect()))
        // A renderer has no display of its own here, and gives its memory away as descriptors.
        .set_use_egl(true)
        .set_use_surfaceless(true)
        .set_use_external_blob(true)
        .build()
        .map_err(started)?;
    let capsets = (0..rutabaga.get_num_capsets()).map(|index| {
        let (id, max_version, max_size) = rutabaga.get_capset_info(index)?;
        Ok(Capset {
            id,
            max_version,
            max_size,
        })
    });
    let capsets = capsets
        .collect::<RutabagaResult<Vec<_>>>()
        .map_err(started)?;
    let pages = HashMap::new();
    Ok((State { rutabaga, pages }, capsets))
}

fn serve(mut state: State, jobs: &Receiver<Job>) {
    while let Ok(Job::Work(work)) = jobs.recv() {
        if std::panic::catch_unwind(AssertUnwindSafe(|| work(&mut state))).is_err() {
            // What a panic has left behind is not looked at again, not even to take it apart: that might panic too.
            std::mem::forget(state);
            return;
        }
    }
    let _ = std::panic::catch_unwind(AssertUnwindSafe(|| drop(state)));
}

/// Has rutabaga look when its descriptor says so. The answer is waited for: the descriptor stays ready until then.
fn watch(descriptor: &RutabagaDescriptor, jobs: &Sender<Job>) {
    let timeout = Timespec::try_from(WATCH).ok();
    loop {
        let mut poll = [PollFd::new(descriptor, PollFlags::IN)];
        let _ = rustix::event::poll(&mut poll, timeout.as_ref());
        let (answer, done) = bounded::<()>(1);
        let work: Work = Box::new(move |state| {
            state.rutabaga.event_poll();
            drop(answer);
        });
        if jobs.send(Job::Work(work)).is_err() {
            return;
        }
        let _ = done.recv();
    }
}

/// What the guest is told.
fn refusal(error: &RutabagaError) -> Fault {
    let response = match error {
        RutabagaError::InvalidContextId => resp::ERR_INVALID_CONTEXT_ID,
        RutabagaError::InvalidResourceId => resp::ERR_INVALID_RESOURCE_ID,
        RutabagaError::InvalidCommandBuffer
        | RutabagaError::InvalidCommandSize(_)
        | RutabagaError::InvalidCapset
        | RutabagaError::InvalidIovec
        | RutabagaError::CheckedArithmetic { .. }
        | RutabagaError::CheckedRange { .. }
        | RutabagaError::InvalidCrossDomainChannel
        | RutabagaError::InvalidCrossDomainItemId
        | RutabagaError::InvalidCrossDomainItemType
        | RutabagaError::InvalidCrossDomainState
        | RutabagaError::InvalidCrossDomainWriteLength
        | RutabagaError::InvalidGrallocDimensions
        | RutabagaError::InvalidGrallocDrmFormat => resp::ERR_INVALID_PARAMETER,
        _ => resp::ERR_UNSPEC,
    };
    let reason = error.to_string();
    Fault::Renderer { response, reason }
}
