//! A guest as a stream of bytes: saved here, restored here or by another daemon. `docs/snapshot.md` has the format.
//!
//! | file | holds |
//! |---|---|
//! | `stream.rs` | sections, checksums, fields |
//! | `records.rs` | what is in each section |
//! | `tables.rs` | contexts, memories and blobs: from a guest, checked, and into one |
//! | `contents.rs` | the bytes of memories |
//!
//! Rules:
//! - **Nothing under way.** GPU work is waited for; what waits for host processes is a reason to refuse.
//! - **A snapshot is a stranger.** It is checked as a guest's commands are: tables before anything is changed, quotas by charging them,
//!   and a guest whose restore failed is reset.
//! - **No renderer in it.** Types of memory are known by their properties, device memory by its bytes.

mod contents;
mod records;
pub mod stream;
mod tables;

use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use thiserror::Error;

use super::Guest;
use crate::Error as Refusal;
use crate::blob::{Home, Memory};
use crate::provider::{Placement, ProviderError};
use crate::quota::Exceeded;
use crate::work::GPU_TIMEOUT;
use records::tag;
use stream::{FormatError, Reader, Writer};
use tables::Plan;

/// What a guest's stream begins with.
const MAGIC: [u8; 8] = *b"HBLBGUES";

/// Why a guest cannot be saved now. It is as before.
#[derive(Debug, Error)]
pub enum SaveError {
    /// The sink fails.
    #[error("it cannot be written: {0}")]
    Io(#[from] io::Error),
    /// GPU work under way does not end.
    #[error("the GPU did not finish within {0:?}")]
    GpuTimeout(Duration),
    /// Device memory cannot be read.
    #[error("device memory cannot be read: {0}")]
    Provider(ProviderError),
    /// Host processes look at a memory, or another device of the VM may: they would go on looking at bytes that nobody changes any more.
    #[error("a host process or another device has memory open: {0}")]
    Open(String),
    /// Memory that a host process handed in is that process's.
    #[error("context {context} has imported memory of a host process as {client_id:#x}")]
    Foreign {
        /// Which context.
        context: u32,
        /// What it calls the memory.
        client_id: u64,
    },
    /// Device memory with a file or an address of its own is the driver's; the host that restores may have no such memory.
    #[error(
        "context {context} has device memory that can be mapped as {client_id:#x}: free it first"
    )]
    Exported {
        /// Which context.
        context: u32,
        /// What it calls the memory.
        client_id: u64,
    },
    /// Requests, or responses, wait for host processes.
    #[error("{0} requests wait for host processes")]
    Waiting(usize),
    /// There is no room to copy device memory to.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// Why a guest was not restored. It is as new.
#[derive(Debug, Error)]
pub enum RestoreError {
    /// The bytes are not a snapshot that can be read here.
    #[error("no snapshot that can be read: {0}")]
    Format(#[from] FormatError),
    /// There are contexts or resources already.
    #[error("the guest is in use")]
    InUse,
    /// The window is a PCI BAR, which does not change its size.
    #[error("the window was {saved} bytes and is {here}: start with --window {saved}")]
    Window {
        /// In the snapshot.
        saved: u64,
        /// Of this guest.
        here: u64,
    },
    /// This host has no such memory.
    #[error(
        "no memory type of this host has property flags {properties:#x} in {} with cache mode {cache:?}",
        if *device { "device memory" } else { "the window" }
    )]
    NoMemoryType {
        /// `VkMemoryPropertyFlags`, as the guest was told.
        properties: u32,
        /// In device memory.
        device: bool,
        /// What a guest maps it as.
        cache: hostblob_capset::Cache,
    },
    /// The limits of this host are lower.
    #[error("over a limit of this host: {0}")]
    Limit(#[from] Exceeded),
    /// This host lacks something else that the guest uses.
    #[error("{0} is needed: the guest uses it")]
    Missing(&'static str),
    /// This host refuses what the snapshot has, as it would refuse it from a guest.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Tables that no guest can have.
    #[error("the snapshot contradicts itself: {0}")]
    Inconsistent(&'static str),
    /// Device memory cannot be had, or not be written.
    #[error("device memory: {0}")]
    Provider(ProviderError),
    /// GPU work does not end.
    #[error("the GPU did not finish within {0:?}")]
    GpuTimeout(Duration),
}

/// How waiting for the GPU ended otherwise than well.
#[derive(Debug)]
enum Unfinished {
    Timeout,
    Failed(ProviderError),
}

impl From<Unfinished> for SaveError {
    fn from(unfinished: Unfinished) -> Self {
        match unfinished {
            Unfinished::Timeout => Self::GpuTimeout(GPU_TIMEOUT),
            Unfinished::Failed(error) => Self::Provider(error),
        }
    }
}

impl From<Unfinished> for RestoreError {
    fn from(unfinished: Unfinished) -> Self {
        match unfinished {
            Unfinished::Timeout => Self::GpuTimeout(GPU_TIMEOUT),
            Unfinished::Failed(error) => Self::Provider(error),
        }
    }
}

impl Guest {
    /// Writes the guest to `sink`: contexts, memories, blobs, and the bytes that are the host's. Bytes in the guest's own pages are not
    /// among them: whoever saves the guest's memory has those.
    ///
    /// The guest must not run meanwhile, or what it changes may be saved before or after the change. GPU work under way is waited for.
    pub fn save(&mut self, sink: &mut dyn Write) -> Result<(), SaveError> {
        self.process_completions();
        match self.finish_work() {
            // What failed was told to whoever asked for it.
            Ok(()) | Err(Unfinished::Failed(_)) => {}
            Err(timeout) => return Err(timeout.into()),
        }
        self.look_at_holds();
        self.check_saveable()?;
        let mut writer = Writer::new(sink, MAGIC)?;
        tables::write(self, &mut writer)?;
        contents::write(self, &mut writer)?;
        writer.finish()?;
        Ok(())
    }

    /// Makes the guest what [`Guest::save`] wrote, perhaps of another daemon with another provider. It must have no contexts and no
    /// resources. Blobs in the guest's own pages have none until [`Guest::attach_backing`] or [`Guest::replace_backing`] brings them.
    ///
    /// Nothing is taken from `source` beyond the snapshot's end.
    pub fn restore(&mut self, source: &mut dyn Read) -> Result<(), RestoreError> {
        if !self.is_new() {
            return Err(RestoreError::InUse);
        }
        // Keys are used again: what is on its way out must be gone.
        match self.finish_work() {
            Ok(()) | Err(Unfinished::Failed(_)) => {}
            Err(timeout) => return Err(timeout.into()),
        }
        let numbers = (self.next_key, self.next_serial);
        let restored = self.restore_from(source);
        if restored.is_err() {
            self.reset();
            if !matches!(self.finish_work(), Err(Unfinished::Timeout)) {
                (self.next_key, self.next_serial) = numbers;
            }
        }
        restored
    }

    /// Whether there are no contexts and no resources, as after a reset.
    pub fn is_new(&self) -> bool {
        self.contexts.is_empty() && self.blobs.is_empty() && self.memories.is_empty()
    }

    fn restore_from(&mut self, source: &mut dyn Read) -> Result<(), RestoreError> {
        let mut reader = Reader::new(source, MAGIC)?;
        let mut plan = Plan::default();
        let mut contents = None;
        while let Some((kind, payload)) = reader.next_section()? {
            if kind == tag::CONTENT {
                let contents = match &mut contents {
                    Some(contents) => contents,
                    None => contents.insert(std::mem::take(&mut plan).install(self)?),
                };
                contents.take(self, payload)?;
            } else if contents.is_some() || !plan.take(self, kind, payload)? {
                return Err(reader.unexpected(kind).into());
            }
        }
        let contents = match contents {
            Some(contents) => contents,
            None => plan.install(self)?,
        };
        contents.finish(self)
    }

    fn check_saveable(&self) -> Result<(), SaveError> {
        let waiting = self.waiting();
        if waiting > 0 {
            return Err(SaveError::Waiting(waiting));
        }
        for memory in self.memories.values() {
            if let (Some(id), Some(exports)) = (memory.shared().export, &self.exports)
                && exports.is_open(id)
            {
                return Err(SaveError::Open(called(memory)));
            }
            if memory.shared().lent.is_some() {
                return Err(SaveError::Open(called(memory)));
            }
            if let (Home::Foreign { .. }, Some(name)) = (&memory.home, memory.names.first()) {
                return Err(SaveError::Foreign {
                    context: name.context.id,
                    client_id: name.client_id,
                });
            }
            if self.placement(memory.memory_type) == Placement::Exported {
                return Err(SaveError::Exported {
                    context: memory.context.id,
                    client_id: memory.names.first().map_or(0, |name| name.client_id),
                });
            }
        }
        Ok(())
    }

    /// Waits until all work is done, for at most [`GPU_TIMEOUT`]; the first failure that is seen meanwhile.
    fn finish_work(&mut self) -> Result<(), Unfinished> {
        let deadline = Instant::now() + GPU_TIMEOUT;
        let mut failed = None;
        while !self.work.reached(self.work.submitted()) {
            let Some(done) = self.work.wait_done(deadline) else {
                return Err(Unfinished::Timeout);
            };
            if let Err(error) = &done.result {
                failed.get_or_insert_with(|| error.clone());
            }
            self.finish(done);
        }
        failed.map_or(Ok(()), |error| Err(Unfinished::Failed(error)))
    }
}

/// A memory, for people.
fn called(memory: &Memory) -> String {
    match (&memory.label, memory.names.first()) {
        (Some(label), _) => format!("{:?}", &**label),
        (None, Some(name)) => format!("{:#x} of context {}", name.client_id, name.context.id),
        (None, None) => format!("{} bytes without a name", memory.size),
    }
}
