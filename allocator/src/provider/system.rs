//! The provider without a GPU: maps the files, and the CPU fills and copies.
//!
//! It serves hosts without a driver, and tests. Each session has a worker thread of its own, so two guests do not wait
//! for each other, and a caller never waits for a copy. Long work is done in steps of a MiB, between which
//! a dropped session is noticed: that bounds how long a drop blocks.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Receiver, Sender};
use rustix::io::Errno;

use super::mapping::{Mapping, SharedFile, sealed_memfd};
use super::outlet::Outlet;
use super::table::{AttachRange, Attached, CopyRange, Place, Table};
use super::{
    AttachmentId, Completion, CompletionSink, Description, Elsewhere, ExportKind, Heap,
    HostAddress, MemoryType, Placement, Provider, ProviderError, ProviderKind, Request, Session,
    property,
};

/// Bytes between two looks at whether the session is gone: about 0.2 ms of copying.
const STEP: u64 = 1 << 20;

/// Plain memory as a provider.
#[derive(Debug)]
pub struct SystemProvider {
    description: Arc<Description>,
}

impl SystemProvider {
    /// Offers the host's memory, of which heaps report at most `memory_limit` bytes.
    #[must_use]
    pub fn new(memory_limit: Option<u64>) -> Self {
        Self {
            description: Arc::new(describe(memory_limit)),
        }
    }

    /// With a type of memory that is exported beside the others, as GPUs have it. There is nothing that it does better here than memory in the
    /// window: it is for tests.
    #[must_use]
    pub fn exporting(memory_limit: Option<u64>, exports: ExportKind) -> Self {
        let mut description = describe(memory_limit);
        description.exports = exports;
        description.memory_types.push(MemoryType {
            property_flags: property::DEVICE_LOCAL | SHARED,
            heap: 0,
            placement: Placement::Exported,
        });
        Self {
            description: Arc::new(description),
        }
    }
}

/// What the CPU's memory is to the CPU.
const SHARED: u32 = property::HOST_VISIBLE | property::HOST_COHERENT | property::HOST_CACHED;

impl Provider for SystemProvider {
    fn description(&self) -> &Description {
        &self.description
    }

    fn connect(&self, sink: CompletionSink) -> Box<dyn Session> {
        let outlet = Arc::new(Outlet::new(sink));
        let cancelled = Arc::new(AtomicBool::new(false));
        let (sender, receiver) = crossbeam_channel::unbounded();
        let worker = Worker {
            description: Arc::clone(&self.description),
            outlet: Arc::clone(&outlet),
            cancelled: Arc::clone(&cancelled),
            table: Table::new(),
        };
        let thread = thread::Builder::new()
            .name("hb-system".to_owned())
            .spawn(move || worker.run(&receiver))
            .inspect_err(|error| log::error!("no thread for a session: {error}"))
            .ok();
        Box::new(SystemSession {
            sender: Some(sender),
            outlet,
            cancelled,
            thread,
        })
    }
}

/// Bytes of memory that the host has.
pub(super) fn physical_memory() -> u64 {
    let info = rustix::system::sysinfo();
    // The fields are `unsigned long`, 32 bits wide on 32-bit hosts.
    #[allow(clippy::useless_conversion)]
    u64::from(info.totalram).saturating_mul(u64::from(info.mem_unit.max(1)))
}

fn describe(memory_limit: Option<u64>) -> Description {
    let total = physical_memory();
    let size = memory_limit.map_or(total, |limit| limit.min(total));
    Description {
        kind: ProviderKind::System,
        device_name: "system memory".to_owned(),
        driver_name: concat!("hostblob ", env!("CARGO_PKG_VERSION")).to_owned(),
        attach_strategy: "cpu".into(),
        vendor_id: 0,
        device_id: 0,
        device_uuid: *b"hostblob-system\0",
        driver_uuid: *b"hostblob-system\0",
        heaps: vec![Heap {
            size,
            flags: property::HEAP_DEVICE_LOCAL,
        }],
        memory_types: vec![
            MemoryType {
                property_flags: property::DEVICE_LOCAL,
                heap: 0,
                placement: Placement::Device,
            },
            MemoryType {
                property_flags: SHARED,
                heap: 0,
                placement: Placement::Window,
            },
        ],
        exports: ExportKind::File,
        attach_alignment: rustix::param::page_size() as u64,
        non_coherent_atom_size: 1,
        max_allocation_size: size,
    }
}

/// A guest's end of a worker thread.
struct SystemSession {
    /// Taken in `drop`, which ends the thread.
    sender: Option<Sender<(u64, Request)>>,
    outlet: Arc<Outlet>,
    cancelled: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Session for SystemSession {
    fn submit(&mut self, sequence: u64, request: Request) {
        let sent = self
            .sender
            .as_ref()
            .is_some_and(|sender| sender.send((sequence, request)).is_ok());
        if !sent {
            self.outlet.deliver_gone(sequence);
        }
    }
}

impl Drop for SystemSession {
    fn drop(&mut self) {
        self.outlet.close();
        self.cancelled.store(true, Ordering::Relaxed);
        self.sender = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the thread of a system session panicked");
        }
    }
}

/// What stands for bytes here.
#[derive(Debug)]
enum Bytes {
    File { file: Arc<SharedFile>, offset: u64 },
    Private(Arc<Mapping>),
    Exported { mapped: SharedFile, file: Arc<File> },
}

impl Bytes {
    /// The mapping, and where the attachment begins in it.
    fn parts(&self) -> (&Mapping, u64) {
        match self {
            Self::File { file, offset } => (file.mapping(), *offset),
            Self::Private(mapping) => (mapping, 0),
            Self::Exported { mapped, .. } => (mapped.mapping(), 0),
        }
    }
}

struct Worker {
    description: Arc<Description>,
    outlet: Arc<Outlet>,
    cancelled: Arc<AtomicBool>,
    table: Table<Bytes>,
}

impl Worker {
    fn run(mut self, inbox: &Receiver<(u64, Request)>) {
        for (sequence, request) in inbox {
            if self.is_cancelled() {
                return;
            }
            let result = self.execute(request);
            self.outlet.deliver(Completion { sequence, result });
        }
    }

    fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    fn execute(&mut self, request: Request) -> Result<Option<Elsewhere>, ProviderError> {
        let done = match request {
            Request::AddFile {
                file,
                descriptor,
                length,
            } => self.table.add_file(file, descriptor, length),
            Request::AddPieces { file, pieces } => self.table.add_pieces(file, pieces),
            Request::RemoveFile { file } => self.table.remove_file(file),
            Request::Attach {
                attachment,
                file,
                offset,
                length,
                memory_type,
            } => self.attach(&AttachRange {
                attachment,
                file,
                offset,
                length,
                memory_type,
            }),
            Request::Allocate {
                attachment,
                length,
                memory_type,
            } => self.allocate(attachment, length, memory_type),
            Request::Release { attachment } => self.table.remove(attachment).map(drop),
            Request::Export { attachment } => return self.export(attachment).map(Some),
            Request::Fill {
                attachment,
                offset,
                length,
                value,
            } => self.fill(attachment, offset, length, value),
            Request::Copy {
                source,
                source_offset,
                destination,
                destination_offset,
                length,
            } => self.copy(&CopyRange {
                source,
                source_offset,
                destination,
                destination_offset,
                length,
            }),
        };
        done.map(|()| None)
    }

    fn attach(&mut self, range: &AttachRange) -> Result<(), ProviderError> {
        let file = self.table.check_attach(&self.description, range)?;
        let attached = Attached {
            length: range.length,
            place: Place::File {
                file: range.file,
                offset: range.offset,
            },
            bytes: Bytes::File {
                file,
                offset: range.offset,
            },
        };
        self.table.insert(range.attachment, attached);
        Ok(())
    }

    fn allocate(
        &mut self,
        attachment: AttachmentId,
        length: u64,
        memory_type: u32,
    ) -> Result<(), ProviderError> {
        let place =
            self.table
                .check_allocate(&self.description, attachment, length, memory_type)?;
        let bytes = match (place, self.description.exports) {
            (Place::Own(Placement::Exported), ExportKind::File) => {
                let full = |error: Errno| ProviderError::OutOfHostMemory(error.to_string());
                let file = sealed_memfd("hostblob-exported", length).map_err(full)?;
                let mapped = rustix::io::fcntl_dupfd_cloexec(&file, 0).map_err(full)?;
                Bytes::Exported {
                    mapped: SharedFile::new(mapped, length)?,
                    file: Arc::new(file.into()),
                }
            }
            _ => Bytes::Private(Arc::new(Mapping::private(length)?)),
        };
        let attached = Attached {
            length,
            place,
            bytes,
        };
        self.table.insert(attachment, attached);
        Ok(())
    }

    fn export(&self, attachment: AttachmentId) -> Result<Elsewhere, ProviderError> {
        let (bytes, length) = self.table.check_export(attachment)?;
        match bytes {
            Bytes::Exported { file, .. } => Ok(Elsewhere::File(Arc::clone(file))),
            Bytes::Private(mapping) => {
                let base = mapping.range(0, length)?;
                let owner = Arc::clone(mapping);
                Ok(Elsewhere::Address(HostAddress::new(base, length, owner)))
            }
            Bytes::File { .. } => Err(ProviderError::Invalid("bytes of a file".to_owned())),
        }
    }

    fn fill(
        &self,
        attachment: AttachmentId,
        offset: u64,
        length: u64,
        value: u32,
    ) -> Result<(), ProviderError> {
        let (mapping, start) = self.table.check_fill(attachment, offset, length)?.parts();
        self.in_steps(length, |done, step| {
            mapping.fill(start + offset + done, step, value)
        })
    }

    fn copy(&self, range: &CopyRange) -> Result<(), ProviderError> {
        let (source, destination) = self.table.check_copy(range)?;
        let (source, source_start) = source.parts();
        let (destination, destination_start) = destination.parts();
        self.in_steps(range.length, |done, step| {
            destination.copy_from(
                destination_start + range.destination_offset + done,
                source,
                source_start + range.source_offset + done,
                step,
            )
        })
    }

    /// Calls `work(done, step)` over `length` bytes until the session is dropped. `STEP` is a multiple of 4, so a
    /// fill keeps its phase.
    fn in_steps(
        &self,
        length: u64,
        work: impl Fn(u64, u64) -> Result<(), ProviderError>,
    ) -> Result<(), ProviderError> {
        let mut done = 0;
        while done < length && !self.is_cancelled() {
            let step = STEP.min(length - done);
            work(done, step)?;
            done += step;
        }
        Ok(())
    }
}
