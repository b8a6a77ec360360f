//! The queues, the device behind them, and the thread that runs commands from the one to the other.
//!
//! # Threads
//!
//! - The *queue thread* ([`Engine::run`]) takes commands from the queues, executes them and gives the responses back.
//! - The *message thread* serves the VMM: it changes the memory, starts and resets the queues, wakes the queue thread for
//!   notifications. The VM's processor that notifies waits for its reply, so it takes no lock.
//! - GPU threads of the device wake the queue thread.
//!
//! # Locks
//!
//! There are two, `rings` (queues and guest memory) and `device`, and **no thread ever holds both**, so there is no order to get wrong;
//! under neither is anything waited for but the other thread's current step. `rings` is held to copy a command in or a response
//! out, `device` to execute one. So a memory change waits for a copy, never for a command, let alone for the GPU. Memory that the VMM took
//! away is not touched once its message is answered.
//!
//! # Snapshots
//!
//! A save takes no more commands and waits for those under way, then holds `device` for as long as it takes. The VM stands still
//! meanwhile, so nobody else wants it. Whoever writes to the VMM itself gives up when the VMM goes on otherwise.
//!
//! # Reset
//!
//! Each start of the device is a *generation*. A reset empties the queues and raises the generation under `rings`, then resets the
//! device under `device`. A command that was on its way meanwhile belongs to an old generation: it is dropped before it is executed (the
//! generation is looked at under `device`), or its response is dropped (looked at under `rings`).

mod rings;

use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use hostblob_allocator::GPU_TIMEOUT;
use parking_lot::Mutex;
use virtio_queue::Queue;
use vm_memory::GuestMemoryMmap;

use super::snapshot::{self, Held, Saves};
use super::{Device, LateWindow, Wake};
use crate::gpu::{GuestPages, NoPages, Response, RestoreError, SaveError};
use crate::virtqueue::{Next, QUEUES};
use rings::{Rings, Tag};

/// Commands of one queue in a row before the other, finished GPU work and the end get their turn.
const TURN: usize = 64;
/// Responses after which the driver is interrupted although more commands are there. A guest that asks one thing after the other gets
/// one interrupt for each, a burst one for this many.
const RESPONSES_PER_INTERRUPT: usize = 16;

/// How long a save waits for commands under way.
const SETTLE_TIMEOUT: Duration = if cfg!(test) {
    Duration::from_millis(200)
} else {
    GPU_TIMEOUT
};

/// Between two looks at what is under way.
const BETWEEN_LOOKS: Duration = Duration::from_millis(1);

/// What interrupts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// The device status or configuration changed.
    Config,
    /// A queue has used buffers.
    Queue(u16),
}

/// How the driver and the queue thread reach each other.
pub(super) trait Signals: Send + Sync + 'static {
    /// Waits until `wake` is due, or until a driver notified where that does not come as a message.
    fn wait(&self, wake: &Wake) {
        wake.wait();
    }
    /// Interrupts the driver.
    fn raise(&self, source: Source);
    /// Other devices of the VM may ask for a blob, or no longer.
    fn announce(&self, _uuid: [u8; 16], _is_there: bool) {}
    /// The device is reset.
    fn reset(&self);
}

/// The state that both threads use.
#[derive(Debug)]
pub(super) struct Engine<D, S> {
    rings: Mutex<Rings>,
    device: Mutex<D>,
    generation: AtomicU32,
    /// A queue broke; the driver has not reset the device yet.
    needs_reset: AtomicBool,
    stopping: AtomicBool,
    /// The device was restored with blobs that are mapped: the guest has to reach the window before it goes on.
    window_wanted: AtomicBool,
    pub(super) interrupts: S,
    wake: Arc<Wake>,
}

/// While it exists no command is taken.
struct Pause<'a, D: Device, S: Signals>(&'a Engine<D, S>);

impl<'a, D: Device, S: Signals> Pause<'a, D, S> {
    fn new(engine: &'a Engine<D, S>) -> Self {
        engine.rings.lock().paused += 1;
        Self(engine)
    }
}

impl<D: Device, S: Signals> Drop for Pause<'_, D, S> {
    fn drop(&mut self) {
        self.0.rings.lock().paused -= 1;
        self.0.wake();
    }
}

impl<D: Device, S: Signals> Saves for Engine<D, S> {
    /// The device's lock is held for as long as it takes: the VMM has stopped the VM.
    fn save(&self, sink: &mut dyn Write) -> Result<(), SaveError> {
        let _pause = Pause::new(self);
        self.settle()?.write(sink)?;
        self.device.lock().save(sink)
    }
}

impl<D: Device, S: Signals> Engine<D, S> {
    /// An engine whose queues run once they are started and may reach guest memory.
    pub(super) fn new(device: D, wake: Arc<Wake>, signals: S) -> Self {
        Self {
            rings: Mutex::default(),
            device: Mutex::new(device),
            generation: AtomicU32::new(0),
            needs_reset: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            window_wanted: AtomicBool::new(false),
            interrupts: signals,
            wake,
        }
    }

    /// A driver notified, or something else may let the queues go on.
    pub(super) fn wake(&self) {
        self.wake.wake();
    }

    /// Starts the queues.
    pub(super) fn start(&self, queues: [Option<Queue>; QUEUES]) {
        self.rings.lock().set(queues);
        self.wake();
    }

    /// Starts one queue. One that goes on where it was stopped keeps its chains, and gets the responses that came meanwhile.
    pub(super) fn start_queue(&self, index: u16, queue: Queue) {
        let Some(started) = self.rings.lock().start(index, queue) else {
            return;
        };
        for (tag, response) in &started.parked {
            self.give_back(*tag, response);
        }
        if started.goes_on {
            // For what was given back before the stop too: its interrupt may have come to nothing.
            self.interrupts.raise(Source::Queue(index));
        }
        self.wake();
    }

    /// Stops one queue. When it returns, guest memory is not touched for it any more. `None` if it does not run.
    pub(super) fn stop_queue(&self, index: u16) -> Option<u16> {
        self.rings.lock().stop(index)
    }

    /// Stops the queues and resets the device; what was under way is dropped. When it returns, nothing of before is left.
    pub(super) fn reset(&self) {
        let before = {
            let mut rings = self.rings.lock();
            self.generation.fetch_add(1, Ordering::SeqCst);
            rings.clear()
        };
        drop(before);
        self.window_wanted.store(false, Ordering::SeqCst);
        self.device.lock().reset();
        self.needs_reset.store(false, Ordering::SeqCst);
        self.interrupts.reset();
    }

    /// Replaces the guest memory. When it returns the old one is not used any more.
    pub(super) fn set_memory(&self, memory: GuestMemoryMmap) {
        let old = {
            let mut rings = self.rings.lock();
            rings.memory_changed = true;
            std::mem::replace(&mut rings.memory, memory)
        };
        drop(old);
        self.wake();
    }

    /// Whether the function may reach guest memory.
    pub(super) fn set_bus_master(&self, enabled: bool) {
        self.rings.lock().bus_master = enabled;
        self.wake();
    }

    /// What a restored device's queues hold. None runs yet.
    pub(super) fn install(&self, held: Held) -> Result<(), RestoreError> {
        {
            let mut rings = self.rings.lock();
            if rings.any_runs() {
                return Err(RestoreError::Running);
            }
            rings.install(held, self.generation.load(Ordering::SeqCst));
            // The device looks for the guest's pages, whether or not they are known by now.
            rings.memory_changed = true;
        }
        let in_use = self.device.lock().window_in_use();
        self.window_wanted.store(in_use, Ordering::SeqCst);
        self.wake();
        Ok(())
    }

    /// Replaces the device's state by one that was saved, while no queue runs. If that fails the device is as after a reset.
    pub(super) fn restore(&self, source: &mut dyn Read) -> Result<(), RestoreError> {
        if self.rings.lock().any_runs() {
            return Err(RestoreError::Running);
        }
        self.reset();
        let held = snapshot::restore(&mut *self.device.lock(), source)?;
        self.install(held).inspect_err(|_| self.reset())
    }

    /// Waits until every command that was taken has its response, and says what stopped queues still hold. None is taken meanwhile.
    fn settle(&self) -> Result<Held, SaveError> {
        let deadline = Instant::now() + SETTLE_TIMEOUT;
        loop {
            let under_way = {
                let rings = self.rings.lock();
                match rings.under_way() {
                    0 => return Ok(rings.held()),
                    under_way => under_way,
                }
            };
            if self.stopping() {
                return Err(SaveError::Ending);
            }
            if Instant::now() > deadline {
                return Err(SaveError::Busy(under_way));
            }
            self.wake();
            std::thread::sleep(BETWEEN_LOOKS);
        }
    }

    /// Whether the driver has to reset the device.
    pub(super) fn needs_reset(&self) -> bool {
        self.needs_reset.load(Ordering::SeqCst)
    }

    /// Uses the device between commands.
    pub(super) fn with_device<R>(&self, f: impl FnOnce(&mut D) -> R) -> R {
        f(&mut self.device.lock())
    }

    /// Ends [`Self::run`] after its current command.
    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        self.wake();
    }

    /// Whether it is to end.
    pub(super) fn stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// The queue thread, where the guest reaches the window from the beginning.
    pub(super) fn run(&self) {
        self.run_with(&mut LateWindow::premapped());
    }

    /// The queue thread, where `window` has to be mapped first.
    pub(super) fn run_with(&self, window: &mut LateWindow<'_>) {
        let mut command = Vec::new();
        while !self.stopping() {
            self.interrupts.wait(&self.wake);
            while !self.stopping() && self.turn(&mut command, window) {}
        }
    }

    /// Serves each queue for a while, and gives back what the GPU has finished; whether there may be more.
    pub(super) fn turn(&self, command: &mut Vec<u8>, window: &mut LateWindow<'_>) -> bool {
        let mut more = false;
        self.reach_window(window);
        self.tell_of_memory();
        for queue in (0..).take(QUEUES) {
            more |= self.serve(queue, command, window);
        }
        self.give_back_completed();
        more
    }

    /// Maps the window for blobs that were restored, once a queue runs: VMMs take no request before.
    fn reach_window(&self, window: &mut LateWindow<'_>) {
        if !self.window_wanted.load(Ordering::SeqCst) {
            return;
        }
        let (runs, generation) = {
            let rings = self.rings.lock();
            let runs = rings.bus_master && rings.any_runs();
            (runs, self.generation.load(Ordering::SeqCst))
        };
        if !runs || !self.window_wanted.swap(false, Ordering::SeqCst) {
            return;
        }
        if let Some(mapped) = window.map(generation) {
            if !mapped {
                log::error!(
                    "the restored guest does not reach its blobs: the window is not mapped"
                );
            }
            self.device.lock().set_window_mapped(mapped);
        }
    }

    /// The device looks again where the guest's pages are. A blob of pages that the VMM took away meanwhile still has them mapped: they
    /// are a file's, which the guest may or may not see any more.
    fn tell_of_memory(&self) {
        let memory = {
            let mut rings = self.rings.lock();
            std::mem::take(&mut rings.memory_changed).then(|| rings.memory.clone())
        };
        if let Some(memory) = memory {
            self.device.lock().guest_pages_changed(&memory);
        }
    }

    /// Executes commands of a queue until there are none or its turn is over; whether there may be more.
    fn serve(&self, queue: u16, command: &mut Vec<u8>, window: &mut LateWindow<'_>) -> bool {
        let mut responses = 0;
        let mut more = true;
        for _ in 0..TURN {
            let tag = match self.next(queue, command) {
                Some((_, Next::Again)) => continue,
                Some((generation, Next::Command(head))) => Tag {
                    generation,
                    queue,
                    head,
                },
                Some((_, Next::Empty | Next::Unreachable)) | None => {
                    more = false;
                    break;
                }
            };
            let Some(response) = self.execute(tag, command, window) else {
                continue;
            };
            self.give_back(tag, &response);
            responses += 1;
            if responses % RESPONSES_PER_INTERRUPT == 0 {
                self.interrupt(queue);
            }
        }
        self.interrupt(queue);
        more && !self.stopping()
    }

    /// Takes a step on a queue; none if it does not run. The generation is that of the queue.
    fn next(&self, index: u16, command: &mut Vec<u8>) -> Option<(u32, Next)> {
        let mut rings = self.rings.lock();
        let next = rings.next(index, command)?;
        let generation = self.generation.load(Ordering::SeqCst);
        if let Ok(next) = next {
            return Some((generation, next));
        }
        // Under the lock, so that a reset comes wholly before or after.
        self.needs_reset.store(true, Ordering::SeqCst);
        drop(rings);
        self.interrupts.raise(Source::Config);
        None
    }

    fn execute(&self, tag: Tag, command: &[u8], window: &mut LateWindow<'_>) -> Option<Response> {
        // Under no lock: to map the window the VMM changes the memory first, and waits until that is done.
        if D::needs_window(command)
            && let Some(mapped) = window.map(tag.generation)
        {
            self.device.lock().set_window_mapped(mapped);
        }
        // Under no lock: to answer, the VMM may ask other devices, and this one too.
        let object = window.look_up(|| self.wanted_object(tag, command));
        let memory = D::needs_guest_pages(command).then(|| self.rings.lock().memory.clone());
        let pages: &dyn GuestPages = match &memory {
            Some(memory) => memory,
            None => &NoPages,
        };
        let (mut response, change, mut window_in_use, objects) = {
            let mut device = self.device.lock();
            if self.generation.load(Ordering::SeqCst) != tag.generation {
                return None;
            }
            if let Some((uuid, descriptor)) = object {
                device.lend_object(uuid, descriptor);
            }
            let response = device.execute(tag.pack(), command, pages);
            let objects = device.shared_object_changes();
            let change = device.window_change();
            // Where nothing is to be unmapped, nobody has to look through all blobs.
            let in_use = !window.is_mapped() || device.window_in_use();
            (response, change, in_use, objects)
        };
        for (uuid, is_there) in objects {
            self.interrupts.announce(uuid, is_there);
        }
        // Under no lock, as above, and before the response: the guest reaches for the blob when it has that.
        if let Err(reason) = window.change(tag.generation, change) {
            (response, window_in_use) = self.take_back(tag, command, &reason.to_string())?;
        }
        if !window_in_use {
            // Before the response: a guest that has let go of everything may reset the device next.
            window.unmap(tag.generation);
        }
        response
    }

    /// What a command imports of another device; nothing when the device was reset meanwhile.
    fn wanted_object(&self, tag: Tag, command: &[u8]) -> Option<[u8; 16]> {
        let device = self.device.lock();
        let is_current = self.generation.load(Ordering::SeqCst) == tag.generation;
        is_current.then(|| device.wanted_object(command))?
    }

    /// The device takes a mapping back: its response to that, and whether it uses the window. `None` when it was reset meanwhile.
    fn take_back(
        &self,
        tag: Tag,
        command: &[u8],
        reason: &str,
    ) -> Option<(Option<Response>, bool)> {
        let mut device = self.device.lock();
        if self.generation.load(Ordering::SeqCst) != tag.generation {
            return None;
        }
        let response = device.not_mapped(tag.pack(), command, reason);
        Some((response, device.window_in_use()))
    }

    fn give_back(&self, tag: Tag, response: &Response) {
        let mut rings = self.rings.lock();
        if self.generation.load(Ordering::SeqCst) == tag.generation {
            rings.finish(tag, response);
        }
    }

    fn give_back_completed(&self) {
        let completed = self.with_device(D::completed);
        if completed.is_empty() {
            return;
        }
        for (tag, response) in &completed {
            self.give_back(Tag::unpack(*tag), response);
        }
        for queue in (0..).take(QUEUES) {
            self.interrupt(queue);
        }
    }

    fn interrupt(&self, index: u16) {
        if self.rings.lock().wants_interrupt(index) {
            self.interrupts.raise(Source::Queue(index));
        }
    }
}

#[cfg(test)]
mod tests;
