//! The thread that owns the context: a GL context belongs to one thread, so it does all of it, for all sessions.
//!
//! Requests that arrive together are given together and fenced once. While submissions are in flight the thread waits for
//! the oldest in short slices, between which it takes what has arrived: there is no thread to wait beside it, because that
//! would need a second context that shares this one's objects, the part of GL that drivers get wrong.

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, TryRecvError, select};

use super::buffer::{Budget, GlBytes};
use super::commands::{Commands, PATIENCE};
use super::context::Gl;
use super::persistent::Persistent;
use crate::provider::desk::{At, Desk, Gpu, ToWorker};
use crate::provider::lane::Batch;
use crate::provider::mapping::SharedFile;
use crate::provider::table::AttachRange;
use crate::provider::{Description, Elsewhere, Placement, ProviderError};

/// How long a request that arrives while the GPU is busy may lie: short against the work that it arrives behind, and long
/// enough that looking costs nothing.
const SLICE: Duration = Duration::from_micros(200);

/// The context, as the desk asks of it. Fields are dropped in their order: what is made of the context before it.
pub(super) struct GlGpu {
    pub(super) commands: Commands,
    pub(super) budget: Rc<Budget>,
    pub(super) persistent: Persistent,
    /// What the guest is told.
    pub(super) description: Arc<Description>,
    pub(super) gl: Rc<Gl>,
}

impl Gpu for GlGpu {
    type Bytes = GlBytes;

    fn lost(&self) -> Option<ProviderError> {
        self.gl.lost()
    }

    fn attach(
        &mut self,
        file: &Arc<SharedFile>,
        range: &AttachRange,
    ) -> Result<GlBytes, ProviderError> {
        GlBytes::pin(&self.gl, file, range.offset, range.length)
    }

    fn allocate(&mut self, length: u64, memory_type: u32) -> Result<GlBytes, ProviderError> {
        let (bytes, size) = match self.description.placement(memory_type) {
            Some(Placement::Exported) => (self.persistent.allocate(length)?, length),
            _ => {
                let bytes = GlBytes::allocate(&self.budget, length)?;
                let size = bytes.own_size();
                (bytes, size)
            }
        };
        self.commands.fill(&bytes, 0, size, 0)?;
        Ok(bytes)
    }

    fn export(&mut self, bytes: &GlBytes, length: u64) -> Result<Elsewhere, ProviderError> {
        bytes.address(length)
    }

    fn fill(
        &mut self,
        bytes: &GlBytes,
        offset: u64,
        length: u64,
        value: u32,
    ) -> Result<(), ProviderError> {
        self.commands.fill(bytes, offset, length, value)
    }

    fn copy(
        &mut self,
        source: At<'_, GlBytes>,
        destination: At<'_, GlBytes>,
        length: u64,
    ) -> Result<(), ProviderError> {
        self.commands.copy(&source, &destination, length)
    }
}

/// All that the thread owns. Fields are dropped in their order.
pub(super) struct Worker {
    /// Answers that wait, in the order of their submissions.
    in_flight: VecDeque<Batch<GlBytes>>,
    /// When something last became ready, for the log.
    progress: Instant,
    desk: Desk<GlGpu>,
}

impl Worker {
    pub(super) fn new(desk: Desk<GlGpu>) -> Self {
        Self {
            in_flight: VecDeque::new(),
            progress: Instant::now(),
            desk,
        }
    }

    /// Serves until every session and the provider are gone, then waits for all work.
    pub(super) fn run(mut self, inbox: &Receiver<ToWorker>) {
        loop {
            let message = match self.in_flight.is_empty() {
                true => self.next(inbox),
                false => inbox.try_recv(),
            };
            self.desk.gpu.persistent.collect();
            match message {
                Ok(first) => {
                    self.desk.handle_burst(first, inbox);
                    self.flush();
                    self.answer(Duration::ZERO);
                }
                Err(TryRecvError::Empty) => self.answer(SLICE),
                Err(TryRecvError::Disconnected) => break,
            }
        }
        while !self.in_flight.is_empty() {
            self.answer(PATIENCE);
        }
        let persistent = &self.desk.gpu.persistent;
        persistent.collect();
        if persistent.is_in_use() {
            log::warn!("an address of device memory is held: the OpenGL context is left as it is");
            std::mem::forget(self.desk);
        }
    }

    /// Waits for the next message, and deletes what is not needed meanwhile.
    fn next(&self, inbox: &Receiver<ToWorker>) -> Result<ToWorker, TryRecvError> {
        let persistent = &self.desk.gpu.persistent;
        loop {
            select! {
                recv(inbox) -> message => return message.map_err(|_| TryRecvError::Disconnected),
                recv(persistent.gone()) -> name => name.into_iter().for_each(|name| persistent.delete(name)),
            }
        }
    }

    /// Fences what was given and lets the answers wait for it.
    fn flush(&mut self) {
        if let Err(error) = self.desk.gpu.commands.submit() {
            self.desk.undo(&error);
        }
        let entries = self.desk.take_pending();
        if entries.is_empty() {
            return;
        }
        if self.in_flight.is_empty() {
            self.progress = Instant::now();
        }
        self.in_flight.push_back(Batch {
            number: self.desk.gpu.commands.submitted(),
            entries,
        });
    }

    /// Answers what is done, after waiting for the oldest for `timeout` at most.
    fn answer(&mut self, mut timeout: Duration) {
        while let Some(oldest) = self.in_flight.front() {
            let done = self.desk.gpu.commands.reached(oldest.number, timeout);
            if matches!(done, Ok(false)) {
                self.complain(oldest.number);
                return;
            }
            let Some(mut batch) = self.in_flight.pop_front() else {
                return;
            };
            if let Err(error) = done {
                batch.fail(&error);
                if !self.desk.gpu.commands.is_settled() {
                    batch.leak();
                }
            }
            batch.deliver();
            self.progress = Instant::now();
            timeout = Duration::ZERO;
        }
    }

    fn complain(&mut self, number: u64) {
        if self.progress.elapsed() >= PATIENCE {
            log::warn!("the GPU has not finished submission {number}, still waiting");
            self.progress = Instant::now();
        }
    }
}
