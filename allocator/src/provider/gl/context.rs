//! The one OpenGL context of a provider: its functions, its errors, and whether it still lives.
//!
//! It belongs to the thread that made it; everything made of it holds an `Rc`, which keeps all of it on that
//! thread and the context until last.

use std::cell::{Cell, OnceCell};
use std::rc::Rc;
use std::sync::Arc;
#[cfg(test)]
use std::sync::atomic::AtomicBool;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use glow::HasContext;

use super::egl::{self, Current, Display};
use super::error::{self, CONTEXT_LOST, GlError};
use super::facts::GlFacts;
use super::functions::{Functions, RawSync};
use crate::provider::ProviderError;
#[cfg(test)]
use crate::provider::faults::Faults;

/// Error flags that are read after a call at most: there is one per error, unless the driver repeats itself for ever.
const MOST_ERRORS: u32 = 8;

/// Counts what the driver complains about; outlives the context.
#[derive(Debug, Default)]
pub struct MessageCounter {
    messages: AtomicU64,
}

impl MessageCounter {
    /// Debug messages of the types error, undefined behaviour and portability so far; always 0 when validation is off.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.messages.load(Ordering::Relaxed)
    }

    fn note(&self, kind: u32, message: &str) {
        match kind {
            glow::DEBUG_TYPE_ERROR
            | glow::DEBUG_TYPE_UNDEFINED_BEHAVIOR
            | glow::DEBUG_TYPE_PORTABILITY => {
                self.messages.fetch_add(1, Ordering::Relaxed);
                log::error!("OpenGL: {message}");
            }
            _ => log::debug!("OpenGL: {message}"),
        }
    }
}

/// The context, current on this thread.
pub(super) struct Gl {
    functions: Functions,
    pub(super) facts: GlFacts,
    /// Set once, by whoever first meets a loss.
    lost: OnceCell<String>,
    /// Whether the driver itself said so: a reset GPU has stopped.
    reset: Cell<bool>,
    #[cfg(test)]
    pub(super) faults: Arc<Faults<u32>>,
    /// While it is set no fence seems to be reached: software drivers are done before anyone asks.
    #[cfg(test)]
    pub(super) busy: Arc<AtomicBool>,
    /// Destroyed before `_glow`, which owns the closure that the driver calls with messages.
    _current: Current,
    _glow: glow::Context,
}

impl Gl {
    /// Makes a context on a display. With `validation` it is a debug context, whose messages `counter` counts.
    pub(super) fn new(
        egl: &'static egl::Egl,
        display: &Display,
        validation: bool,
        counter: &Arc<MessageCounter>,
    ) -> Result<Rc<Self>, GlError> {
        let current = Current::new(egl, display, validation)?;
        let functions = Functions::load(egl)?;
        // SAFETY: the context is current on this thread until `current` is dropped, and the functions are its own.
        let mut glow = unsafe {
            glow::Context::from_loader_function_cstr(|name| egl::address(current.egl(), name))
        };
        if validation {
            listen(&mut glow, Arc::clone(counter));
        }
        Ok(Rc::new(Self {
            functions,
            facts: GlFacts::read(&current, &glow),
            lost: OnceCell::new(),
            reset: Cell::new(false),
            #[cfg(test)]
            faults: Arc::new(Faults::new(CONTEXT_LOST)),
            #[cfg(test)]
            busy: Arc::default(),
            _current: current,
            _glow: glow,
        }))
    }

    /// Asked before each driver call that can fail while serving; always `Ok` outside of tests.
    fn fault(&self) -> Result<(), u32> {
        #[cfg(test)]
        self.faults.next()?;
        Ok(())
    }

    /// Makes GL calls and sees whether they were accepted. Errors are raised when a call is made, not when it runs, so
    /// this costs no wait for the GPU.
    pub(super) fn call(
        &self,
        name: &str,
        calls: impl FnOnce(&Functions),
    ) -> Result<(), ProviderError> {
        self.fault().map_err(|error| self.refusal(name, error))?;
        self.undo(name, calls)
    }

    /// The same for calls that take something back, which tests do not make fail.
    pub(super) fn undo(
        &self,
        name: &str,
        calls: impl FnOnce(&Functions),
    ) -> Result<(), ProviderError> {
        calls(&self.functions);
        self.check().map_err(|error| self.refusal(name, error))
    }

    /// The first error since the last check.
    fn check(&self) -> Result<(), u32> {
        // SAFETY: a plain query of the context that is current on this thread: `Gl` is bound to it by its `Rc`.
        let next = || unsafe { (self.functions.get_error)() };
        let first = next();
        if first == glow::NO_ERROR {
            return Ok(());
        }
        for _ in 1..MOST_ERRORS {
            if next() == glow::NO_ERROR {
                break;
            }
        }
        Err(first)
    }

    /// Waits until `busy` is cleared; whether `timeout` passed first.
    #[cfg(test)]
    fn seems_busy(&self, timeout: Duration) -> bool {
        let start = std::time::Instant::now();
        while self.busy.load(Ordering::Relaxed) {
            if start.elapsed() >= timeout {
                return true;
            }
            std::thread::sleep(Duration::from_micros(100));
        }
        false
    }

    /// What a refusal means to the caller; notes a lost context.
    fn refusal(&self, call: &str, error: u32) -> ProviderError {
        let error = error::refusal(call, error);
        if let ProviderError::DeviceLost(text) = &error {
            self.set_lost(text);
        }
        error
    }

    /// A fence behind all calls so far; the calls are sent on their way.
    pub(super) fn fence(self: &Rc<Self>) -> Result<Fence, ProviderError> {
        self.fault()
            .map_err(|error| self.refusal("glFenceSync", error))?;
        self.fence_unfaulted()
    }

    fn fence_unfaulted(self: &Rc<Self>) -> Result<Fence, ProviderError> {
        let functions = &self.functions;
        // SAFETY: the only condition and the only flags that there are.
        let raw = unsafe { (functions.fence_sync)(glow::SYNC_GPU_COMMANDS_COMPLETE, 0) };
        let checked = self.check();
        if raw.is_null() {
            let error = checked.err().unwrap_or(glow::INVALID_OPERATION);
            return Err(self.refusal("glFenceSync", error));
        }
        // SAFETY: no arguments; the context is current.
        unsafe { (functions.flush)() };
        Ok(Fence {
            raw,
            gl: Rc::clone(self),
        })
    }

    /// Waits for everything, however long it takes.
    pub(super) fn finish(&self) -> Result<(), ProviderError> {
        // SAFETY: no arguments; the context is current.
        self.call("glFinish", |gl| unsafe { (gl.finish)() })
    }

    /// Notes a reset of the GPU that the driver tells of.
    pub(super) fn check_reset(&self) -> Result<(), ProviderError> {
        if let Err(error) = self.fault()
            && error == CONTEXT_LOST
        {
            return Err(self.refusal("glGetGraphicsResetStatus", error));
        }
        // SAFETY: no arguments; the context is current.
        let status = unsafe { (self.functions.get_graphics_reset_status)() };
        if status != glow::NO_ERROR {
            self.reset.set(true);
            self.set_lost(&format!("the GPU was reset ({status:#x})"));
        }
        self.lost().map_or(Ok(()), Err)
    }

    /// Once the context is lost: whether nothing is under way any more.
    pub(super) fn is_settled(self: &Rc<Self>) -> bool {
        /// How long a GPU that counts as lost may take to show that it has stopped.
        const LAST_WAIT: Duration = Duration::from_secs(1);
        self.reset.get()
            || self
                .fence_unfaulted()
                .is_ok_and(|fence| matches!(fence.wait_unfaulted(LAST_WAIT), Ok(true)))
    }

    /// Notes that the context is lost; the first reason stays.
    pub(super) fn set_lost(&self, reason: &str) {
        if self.lost.set(reason.to_owned()).is_ok() {
            log::error!("{} is lost: {reason}", self.facts.renderer);
        }
    }

    /// Whether the context is lost, as the answer to a request.
    pub(super) fn lost(&self) -> Option<ProviderError> {
        self.lost.get().cloned().map(ProviderError::DeviceLost)
    }
}

/// Has the driver's debug messages counted and logged, at the call that they are about.
fn listen(glow: &mut glow::Context, counter: Arc<MessageCounter>) {
    // SAFETY: the context is current on this thread, and of 4.5, which has debug output.
    unsafe { glow.enable(glow::DEBUG_OUTPUT) };
    // SAFETY: likewise.
    unsafe { glow.enable(glow::DEBUG_OUTPUT_SYNCHRONOUS) };
    // SAFETY: likewise; glow owns the closure and `Gl` drops glow after the context is destroyed.
    unsafe {
        glow.debug_message_callback(move |_source, kind, _id, _severity, message| {
            counter.note(kind, message);
        });
    }
}

/// A sync object.
pub(super) struct Fence {
    raw: RawSync,
    gl: Rc<Gl>,
}

impl Fence {
    /// Waits until all calls before the fence are done; `false` when `timeout` passed first.
    pub(super) fn wait(&self, timeout: Duration) -> Result<bool, ProviderError> {
        self.gl
            .fault()
            .map_err(|error| self.gl.refusal("glClientWaitSync", error))?;
        #[cfg(test)]
        if self.gl.seems_busy(timeout) {
            return Ok(false);
        }
        self.wait_unfaulted(timeout)
    }

    fn wait_unfaulted(&self, timeout: Duration) -> Result<bool, ProviderError> {
        let timeout = u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX);
        // SAFETY: the sync object lives as long as `self`; the flag is the one that there is.
        let status = unsafe {
            (self.gl.functions.client_wait_sync)(self.raw, glow::SYNC_FLUSH_COMMANDS_BIT, timeout)
        };
        match status {
            glow::ALREADY_SIGNALED | glow::CONDITION_SATISFIED => Ok(true),
            glow::TIMEOUT_EXPIRED => Ok(false),
            _ => {
                let error = self.gl.check().err().unwrap_or(glow::INVALID_OPERATION);
                Err(self.gl.refusal("glClientWaitSync", error))
            }
        }
    }
}

impl Drop for Fence {
    fn drop(&mut self) {
        // SAFETY: made by `fence_unfaulted` of this context and deleted once; GL keeps it for as long as it is in use.
        unsafe { (self.gl.functions.delete_sync)(self.raw) };
    }
}
