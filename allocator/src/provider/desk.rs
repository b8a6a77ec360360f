//! What the thread that owns a GPU does with messages, whatever the API: sessions, checks, and who is answered when.
//!
//! The API itself is a [`Gpu`]: a few calls that are handed checked ranges only. Requests that arrive together are
//! recorded together; the thread then submits, and passes the answers that [`Desk::take_pending`] gives on with the
//! submission.

use std::collections::HashMap;
use std::sync::Arc;

use crossbeam_channel::Receiver;

use super::lane::{Entry, Lane};
use super::mapping::SharedFile;
use super::table::{AttachRange, Attached, CopyRange, Place, Table};
use super::{AttachmentId, Completion, Description, Elsewhere, ProviderError, Request};

/// Requests that one submission gathers at most: enough to spread its cost, few enough that the first is not kept
/// waiting by a guest that floods the queue.
const BURST: usize = 64;

/// Bytes of work that end a burst. Work that is submitted together ends together, and has to end within the time of one job
/// (`process::JOB_TIME`): the slowest of our GPUs, a processor, fills this in half a second.
const BURST_BYTES: u64 = 1 << 30;

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

/// A place in an attachment, for a copy.
pub(super) struct At<'a, B> {
    pub(super) bytes: &'a B,
    pub(super) offset: u64,
}

/// A host GPU API, called from one thread. All arguments were checked against [`Description`] and the attachments.
pub(super) trait Gpu {
    /// What an attachment is; dropped only when no recorded work uses it.
    type Bytes;

    /// Why nothing works any more, once that is so.
    fn lost(&self) -> Option<ProviderError>;

    /// Attaches to a range of a file.
    fn attach(
        &mut self,
        file: &Arc<SharedFile>,
        range: &AttachRange,
    ) -> Result<Self::Bytes, ProviderError>;

    /// Allocates device memory and records its zeroing.
    fn allocate(&mut self, length: u64, memory_type: u32) -> Result<Self::Bytes, ProviderError>;

    /// Where the CPU finds memory of an exported type.
    fn export(&mut self, bytes: &Self::Bytes, length: u64) -> Result<Elsewhere, ProviderError>;

    /// Records a fill.
    fn fill(
        &mut self,
        bytes: &Self::Bytes,
        offset: u64,
        length: u64,
        value: u32,
    ) -> Result<(), ProviderError>;

    /// Records a copy.
    fn copy(
        &mut self,
        source: At<'_, Self::Bytes>,
        destination: At<'_, Self::Bytes>,
        length: u64,
    ) -> Result<(), ProviderError>;
}

struct OpenSession<B> {
    table: Table<B>,
    lane: Arc<Lane>,
}

/// What a request has led to.
enum Done<B> {
    /// It is finished.
    Now,
    /// It is recorded.
    Recorded,
    /// Memory exists and its zeroing is recorded.
    Allocated(AttachmentId),
    /// It is there once what was recorded before is finished: its zeroing may be among that.
    Exported(Elsewhere),
    /// This goes as soon as earlier work is finished.
    Retired(B),
}

/// The sessions of a GPU. Fields are dropped in their order: attachments before what they were made of.
pub(super) struct Desk<G: Gpu> {
    sessions: HashMap<u64, OpenSession<G::Bytes>>,
    pending: Vec<Entry<G::Bytes>>,
    /// Bytes of the work that was recorded since [`Desk::take_pending`].
    recorded: u64,
    description: Arc<Description>,
    pub(super) gpu: G,
}

/// A lost device does nothing any more, but lets go of what is released.
fn after_loss<B>(table: &mut Table<B>, request: &Request) -> Done<B> {
    match request {
        Request::Release { attachment } => table
            .remove(*attachment)
            .map_or(Done::Now, |attached| Done::Retired(attached.bytes)),
        _ => Done::Now,
    }
}

impl<G: Gpu> Desk<G> {
    pub(super) fn new(gpu: G, description: Arc<Description>) -> Self {
        Self {
            sessions: HashMap::new(),
            pending: Vec::new(),
            recorded: 0,
            description,
            gpu,
        }
    }

    pub(super) fn description(&self) -> &Arc<Description> {
        &self.description
    }

    /// Handles a message, and those that are behind it: as much as one submission takes.
    pub(super) fn handle_burst(&mut self, first: ToWorker, inbox: &Receiver<ToWorker>) {
        self.handle(first);
        for _ in 0..BURST {
            if self.recorded >= BURST_BYTES {
                return;
            }
            match inbox.try_recv() {
                Ok(message) => self.handle(message),
                Err(_) => return,
            }
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

    /// The answers that wait for what was recorded since the last call, and for all before it.
    pub(super) fn take_pending(&mut self) -> Vec<Entry<G::Bytes>> {
        self.recorded = 0;
        std::mem::take(&mut self.pending)
    }

    /// A submission failed: what it held is not done, and memory that was not zeroed is not allocated.
    pub(super) fn undo(&mut self, error: &ProviderError) {
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

    fn serve(&mut self, id: u64, sequence: u64, request: Request) {
        // Out of the map while it is served, so that `self` stays free.
        let Some(mut session) = self.sessions.remove(&id) else {
            return;
        };
        let (result, done) = match self.gpu.lost() {
            Some(error) => (Err(error), after_loss(&mut session.table, &request)),
            None => match self.execute(&mut session.table, request) {
                Ok(done) => (Ok(()), done),
                Err(error) => (Err(error), Done::Now),
            },
        };
        let result = result.map(|()| match &done {
            Done::Exported(elsewhere) => Some(elsewhere.clone()),
            _ => None,
        });
        let lane = Arc::clone(&session.lane);
        self.sessions.insert(id, session);
        self.answer(id, &lane, Completion { sequence, result }, done);
    }

    fn answer(&mut self, id: u64, lane: &Arc<Lane>, completion: Completion, done: Done<G::Bytes>) {
        let on_gpu = matches!(
            done,
            Done::Recorded | Done::Allocated(_) | Done::Exported(_)
        );
        if lane.is_clear() && !on_gpu {
            drop(done);
            lane.outlet.deliver(completion);
            return;
        }
        let mut entry = Entry::new(lane, Some(completion));
        entry.on_gpu = on_gpu;
        match done {
            Done::Now | Done::Recorded | Done::Exported(_) => {}
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

    fn execute(
        &mut self,
        table: &mut Table<G::Bytes>,
        request: Request,
    ) -> Result<Done<G::Bytes>, ProviderError> {
        match request {
            Request::AddFile {
                file,
                descriptor,
                length,
            } => table.add_file(file, descriptor, length).map(|()| Done::Now),
            Request::AddPieces { file, pieces } => {
                table.add_pieces(file, pieces).map(|()| Done::Now)
            }
            Request::RemoveFile { file } => table.remove_file(file).map(|()| Done::Now),
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
            Request::Export { attachment } => {
                let (bytes, length) = table.check_export(attachment)?;
                Ok(Done::Exported(self.gpu.export(bytes, length)?))
            }
            Request::Release { attachment } => table
                .remove(attachment)
                .map(|attached| Done::Retired(attached.bytes)),
            Request::Fill {
                attachment,
                offset,
                length,
                value,
            } => {
                let bytes = table.check_fill(attachment, offset, length)?;
                self.gpu.fill(bytes, offset, length, value)?;
                self.record(length);
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
        &mut self,
        table: &mut Table<G::Bytes>,
        range: &AttachRange,
    ) -> Result<Done<G::Bytes>, ProviderError> {
        let file = table.check_attach(&self.description, range)?;
        let attached = Attached {
            length: range.length,
            place: Place::File {
                file: range.file,
                offset: range.offset,
            },
            bytes: self.gpu.attach(&file, range)?,
        };
        table.insert(range.attachment, attached);
        Ok(Done::Now)
    }

    fn record(&mut self, bytes: u64) {
        self.recorded = self.recorded.saturating_add(bytes);
    }

    fn allocate(
        &mut self,
        table: &mut Table<G::Bytes>,
        attachment: AttachmentId,
        length: u64,
        memory_type: u32,
    ) -> Result<Done<G::Bytes>, ProviderError> {
        let place = table.check_allocate(&self.description, attachment, length, memory_type)?;
        let attached = Attached {
            length,
            place,
            bytes: self.gpu.allocate(length, memory_type)?,
        };
        table.insert(attachment, attached);
        self.record(length);
        Ok(Done::Allocated(attachment))
    }

    fn copy(
        &mut self,
        table: &Table<G::Bytes>,
        range: &CopyRange,
    ) -> Result<Done<G::Bytes>, ProviderError> {
        let (source, destination) = table.check_copy(range)?;
        self.gpu.copy(
            At {
                bytes: source,
                offset: range.source_offset,
            },
            At {
                bytes: destination,
                offset: range.destination_offset,
            },
            range.length,
        )?;
        self.record(range.length);
        Ok(Done::Recorded)
    }
}

#[cfg(test)]
mod tests {
    use super::super::system::SystemProvider;
    use super::super::{Placement, Provider, outlet::Outlet};
    use super::*;

    /// A GPU that does nothing.
    struct Idle;

    impl Gpu for Idle {
        type Bytes = ();

        fn lost(&self) -> Option<ProviderError> {
            None
        }

        fn attach(&mut self, _: &Arc<SharedFile>, _: &AttachRange) -> Result<(), ProviderError> {
            Ok(())
        }

        fn allocate(&mut self, _: u64, _: u32) -> Result<(), ProviderError> {
            Ok(())
        }

        fn export(&mut self, (): &(), _: u64) -> Result<Elsewhere, ProviderError> {
            Err(ProviderError::Invalid("there is none".to_owned()))
        }

        fn fill(&mut self, (): &(), _: u64, _: u64, _: u32) -> Result<(), ProviderError> {
            Ok(())
        }

        fn copy(&mut self, _: At<'_, ()>, _: At<'_, ()>, _: u64) -> Result<(), ProviderError> {
            Ok(())
        }
    }

    #[test]
    fn a_submission_has_so_many_bytes() {
        let description = SystemProvider::new(None).description().clone();
        let types = &description.memory_types;
        let in_device = types
            .iter()
            .position(|it| it.placement == Placement::Device);
        let memory_type = u32::try_from(in_device.unwrap()).unwrap();
        let mut desk = Desk::new(Idle, Arc::new(description));
        let lane = Lane::new(Arc::new(Outlet::new(Box::new(drop))));
        desk.handle(ToWorker::Open { session: 0, lane });
        for (length, together) in [
            (BURST_BYTES / 4, 4),
            (BURST_BYTES * 2, 1),
            (4096, BURST + 1),
        ] {
            let (sender, inbox) = crossbeam_channel::unbounded();
            for number in 0..200 {
                let attachment = AttachmentId(length * 1000 + number);
                let request = Request::Allocate {
                    attachment,
                    length,
                    memory_type,
                };
                let sequence = number;
                let allocate = ToWorker::Request {
                    session: 0,
                    sequence,
                    request,
                };
                sender.send(allocate).unwrap();
            }
            for _ in 0..2 {
                let first = inbox.recv().unwrap();
                desk.handle_burst(first, &inbox);
                assert_eq!(desk.take_pending().len(), together, "of {length} bytes");
            }
        }
    }
}
