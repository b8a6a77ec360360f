//! The thread that owns the GPU: it alone imports, allocates, records and submits, for all sessions.
//!
//! Imports pin pages and a ring of command buffers can be full, so none of this runs on a caller's thread. Requests that
//! arrive together are recorded into one command buffer. Answers leave in the order of the requests of their
//! session: at once when nothing of the session is under way, else through the waiter.

use std::collections::HashMap;
use std::sync::Arc;

use ash::vk;
use crossbeam_channel::Receiver;

use super::attach::{Attacher, GpuBytes, Target};
use super::commands::Commands;
use super::device::Device;
use super::local::LocalPool;
use super::waiter::{Answers, Batch, Entry, Lane};
use crate::provider::table::{AttachRange, Attached, CopyRange, Place, Table};
use crate::provider::{AttachmentId, Completion, Description, ProviderError, Request};

/// Requests that one submission gathers at most: enough to spread its cost, few enough that the first is not kept
/// waiting by a guest that floods the queue.
const BURST: usize = 64;

/// What sessions send.
pub(super) enum ToWorker {
    Open {
        session: u64,
        lane: Arc<Lane>,
    },
    Request {
        session: u64,
        sequence: u64,
        request: Request,
    },
    Close {
        session: u64,
    },
}

/// All that the thread owns. Fields are dropped in their order: attachments before what they were made of.
pub(super) struct Worker {
    pub(super) sessions: HashMap<u64, OpenSession>,
    pub(super) pending: Vec<Entry>,
    pub(super) commands: Commands,
    pub(super) attacher: Attacher,
    pub(super) pool: Arc<LocalPool>,
    pub(super) description: Arc<Description>,
    /// For each guest memory type, the host's own index.
    pub(super) host_types: Vec<u32>,
    pub(super) device: Arc<Device>,
}

pub(super) struct OpenSession {
    table: Table<GpuBytes>,
    lane: Arc<Lane>,
}

/// What a request has led to.
enum Done {
    /// It is finished.
    Now,
    /// It is recorded.
    Recorded,
    /// Memory exists and its zeroing is recorded.
    Allocated(AttachmentId),
    /// This goes as soon as earlier work is finished.
    Retired(GpuBytes),
}

/// A lost device does nothing any more, but lets go of what is released.
fn after_loss(table: &mut Table<GpuBytes>, request: &Request) -> Done {
    match request {
        Request::Release { attachment } => table
            .remove(*attachment)
            .map_or(Done::Now, |attached| Done::Retired(attached.bytes)),
        _ => Done::Now,
    }
}

impl Worker {
    /// Serves until every session and the provider are gone, then waits for all work.
    pub(super) fn run(&mut self, inbox: &Receiver<ToWorker>, answers: &Answers) {
        while let Ok(first) = inbox.recv() {
            self.handle(first);
            for message in inbox.try_iter().take(BURST) {
                self.handle(message);
            }
            self.flush(answers, inbox.is_empty());
        }
    }

    fn handle(&mut self, message: ToWorker) {
        match message {
            ToWorker::Open { session, lane } => {
                let table = Table::new();
                self.sessions.insert(session, OpenSession { table, lane });
            }
            ToWorker::Request {
                session,
                sequence,
                request,
            } => self.serve(session, sequence, request),
            ToWorker::Close { session } => self.close(session),
        }
    }

    fn serve(&mut self, id: u64, sequence: u64, request: Request) {
        // Out of the map while it is served, so that `self` stays free.
        let Some(mut session) = self.sessions.remove(&id) else {
            return;
        };
        let (result, done) = match self.device.lost() {
            Some(error) => (Err(error), after_loss(&mut session.table, &request)),
            None => match self.execute(&mut session.table, request) {
                Ok(done) => (Ok(()), done),
                Err(error) => (Err(error), Done::Now),
            },
        };
        let lane = Arc::clone(&session.lane);
        self.sessions.insert(id, session);
        self.answer(id, &lane, Completion { sequence, result }, done);
    }

    fn answer(&mut self, id: u64, lane: &Arc<Lane>, completion: Completion, done: Done) {
        let on_gpu = matches!(done, Done::Recorded | Done::Allocated(_));
        if lane.is_clear() && !on_gpu {
            drop(done);
            lane.outlet.deliver(completion);
            return;
        }
        let mut entry = Entry::new(lane, Some(completion));
        entry.on_gpu = on_gpu;
        match done {
            Done::Now | Done::Recorded => {}
            Done::Allocated(attachment) => entry.allocated = Some((id, attachment)),
            Done::Retired(bytes) => entry = entry.retire(vec![bytes]),
        }
        self.pending.push(entry);
    }

    fn close(&mut self, id: u64) {
        let Some(OpenSession { table, lane }) = self.sessions.remove(&id) else {
            return;
        };
        if lane.is_clear() {
            drop(table);
        } else {
            let entry = Entry::new(&lane, None).retire(table.into_bytes().collect());
            self.pending.push(entry);
        }
    }

    /// Submits what was recorded and passes the answers on.
    fn flush(&mut self, answers: &Answers, idle: bool) {
        if self.commands.is_open()
            && let Err(error) = self.commands.submit()
        {
            self.undo(&error);
        }
        if self.pending.is_empty() {
            return;
        }
        let batch = Batch {
            number: self.commands.submitted(),
            entries: std::mem::take(&mut self.pending),
        };
        answers.settle(&self.device, batch, idle);
    }

    /// A submission failed: what it held is not done, and memory that was not zeroed is not allocated.
    fn undo(&mut self, error: &ProviderError) {
        for entry in self.pending.iter_mut().filter(|entry| entry.on_gpu) {
            entry.fail(error);
            if let Some((session, attachment)) = entry.allocated.take()
                && let Some(session) = self.sessions.get_mut(&session)
            {
                // Not submitted, so no work is pending on it. It may have been released in the same burst.
                let _ = session.table.remove(attachment);
            }
        }
    }

    fn execute(
        &mut self,
        table: &mut Table<GpuBytes>,
        request: Request,
    ) -> Result<Done, ProviderError> {
        match request {
            Request::AddFile {
                file,
                descriptor,
                length,
            } => table.add_file(file, descriptor, length).map(|()| Done::Now),
            Request::Attach {
                attachment,
                file,
                offset,
                length,
                memory_type,
            } => self.attach(
                table,
                &AttachRange {
                    attachment,
                    file,
                    offset,
                    length,
                    memory_type,
                },
            ),
            Request::Allocate {
                attachment,
                length,
                memory_type,
            } => self.allocate(table, attachment, length, memory_type),
            Request::Release { attachment } => table
                .remove(attachment)
                .map(|attached| Done::Retired(attached.bytes)),
            Request::Fill {
                attachment,
                offset,
                length,
                value,
            } => {
                let buffer = table.check_fill(attachment, offset, length)?.buffer.raw;
                self.commands.fill(buffer, offset, length, value)?;
                Ok(Done::Recorded)
            }
            Request::Copy {
                source,
                source_offset,
                destination,
                destination_offset,
                length,
            } => self.copy(
                table,
                &CopyRange {
                    source,
                    source_offset,
                    destination,
                    destination_offset,
                    length,
                },
            ),
        }
    }

    fn attach(
        &self,
        table: &mut Table<GpuBytes>,
        range: &AttachRange,
    ) -> Result<Done, ProviderError> {
        let file = table.check_attach(&self.description, range)?;
        let bytes = self.attacher.attach(&Target {
            file: &file,
            offset: range.offset,
            length: range.length,
            memory_type: self.host_type(range.memory_type)?,
        })?;
        let place = Place::File {
            file: range.file,
            offset: range.offset,
        };
        let attached = Attached {
            length: range.length,
            place,
            bytes,
        };
        table.insert(range.attachment, attached);
        Ok(Done::Now)
    }

    fn allocate(
        &mut self,
        table: &mut Table<GpuBytes>,
        attachment: AttachmentId,
        length: u64,
        memory_type: u32,
    ) -> Result<Done, ProviderError> {
        table.check_allocate(&self.description, attachment, length, memory_type)?;
        let bytes = self.pool.allocate(length, self.host_type(memory_type)?)?;
        self.commands.fill(bytes.buffer.raw, 0, vk::WHOLE_SIZE, 0)?;
        let attached = Attached {
            length,
            place: Place::Own,
            bytes,
        };
        table.insert(attachment, attached);
        Ok(Done::Allocated(attachment))
    }

    fn copy(&mut self, table: &Table<GpuBytes>, range: &CopyRange) -> Result<Done, ProviderError> {
        let (source, destination) = table.check_copy(range)?;
        let region = vk::BufferCopy {
            src_offset: range.source_offset,
            dst_offset: range.destination_offset,
            size: range.length,
        };
        self.commands
            .copy(source.buffer.raw, destination.buffer.raw, region)?;
        Ok(Done::Recorded)
    }

    fn host_type(&self, memory_type: u32) -> Result<u32, ProviderError> {
        usize::try_from(memory_type)
            .ok()
            .and_then(|index| self.host_types.get(index))
            .copied()
            .ok_or_else(|| ProviderError::Invalid(format!("memory type {memory_type}")))
    }
}
