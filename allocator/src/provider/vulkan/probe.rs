//! What a device really does, as opposed to what it says.
//!
//! Each strategy is tried with each of the host's memory types, as `trial` says. What passes may be offered to guests,
//! nothing else.

use std::fmt;
use std::sync::Arc;

use ash::vk;

use super::attach::{Attacher, Buffer, GpuBytes, Strategy, Target};
use super::commands::Commands;
use super::device::Device;
use super::export;
use super::local::LocalPool;
use super::types::{may_be_exported, may_be_window};
use crate::provider::mapping::SharedFile;
use crate::provider::trial::{ProbeOutcome, Scratch, Trial};
use crate::provider::udmabuf::Udmabuf;
use crate::provider::{Piece, ProviderError};

/// A way for GPU and CPU to reach the same bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Way {
    /// The GPU is attached to memory in the window.
    Attach(Strategy),
    /// Memory of the device is exported as a dma-buf.
    Export,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Attach(strategy) => strategy.as_str(),
            Self::Export => "exported dma-buf",
        })
    }
}

/// One line of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeRow {
    /// The host's own index.
    pub memory_type: u32,
    /// `VkMemoryPropertyFlags`.
    pub property_flags: u32,
    /// The host's own index.
    pub heap: u32,
    /// How it was tried.
    pub way: Way,
    /// What came of it.
    pub outcome: ProbeOutcome,
}

/// What a device really does: each way with each memory type.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Probe {
    /// The table.
    pub rows: Vec<ProbeRow>,
}

impl Probe {
    /// The host's memory types that `strategy` can attach and that may be offered.
    #[must_use]
    pub fn attachable(&self, strategy: Strategy) -> Vec<u32> {
        self.working(Way::Attach(strategy))
    }

    /// The host's memory types that can be exported and that may be offered.
    #[must_use]
    pub fn exportable(&self) -> Vec<u32> {
        self.working(Way::Export)
    }

    fn working(&self, way: Way) -> Vec<u32> {
        self.rows
            .iter()
            .filter(|row| row.way == way && row.outcome == ProbeOutcome::Works)
            .map(|row| row.memory_type)
            .collect()
    }

    /// The strategy that attaches most types; the host pointer where both are equal, for it needs no descriptor.
    #[must_use]
    pub fn best(&self) -> Option<Strategy> {
        let (pointer, dma_buf) = (
            self.attachable(Strategy::HostPointer).len(),
            self.attachable(Strategy::DmaBuf).len(),
        );
        match (pointer, dma_buf) {
            (0, 0) => None,
            _ if pointer >= dma_buf => Some(Strategy::HostPointer),
            _ => Some(Strategy::DmaBuf),
        }
    }

    /// In one line, why nothing works.
    pub(super) fn complaint(&self) -> String {
        let mut reasons: Vec<String> = self
            .rows
            .iter()
            .filter(|row| row.way != Way::Export)
            .map(|row| format!("{} {}", row.way, row.outcome))
            .collect();
        reasons.sort();
        reasons.dedup();
        reasons.join(", ")
    }
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<16} {:>4} {:>4}  {:<46} outcome",
            "way", "type", "heap", "flags"
        )?;
        for row in &self.rows {
            let flags = format!(
                "{:?}",
                vk::MemoryPropertyFlags::from_raw(row.property_flags)
            );
            writeln!(
                f,
                "{:<16} {:>4} {:>4}  {:<46} {}",
                row.way.to_string(),
                row.memory_type,
                row.heap,
                flags,
                row.outcome
            )?;
        }
        Ok(())
    }
}

/// The memory types that a plain buffer of ours may live in, as a bit mask.
pub(super) fn buffer_types(device: &Arc<Device>) -> Result<u32, ProviderError> {
    let page = rustix::param::page_size() as u64;
    Ok(Buffer::new(device, page, None)?
        .requirements()
        .memory_type_bits)
}

/// Tries everything.
pub(super) fn probe(
    device: &Arc<Device>,
    commands: &mut Commands,
    udmabuf: Result<&Arc<Udmabuf>, &String>,
) -> Probe {
    let mut rows = Vec::new();
    for strategy in [Strategy::HostPointer, Strategy::DmaBuf] {
        let missing = missing(device, strategy, udmabuf.err());
        let attacher = Attacher::new(device, strategy, udmabuf.ok().cloned());
        for (memory_type, &(property_flags, heap)) in (0_u32..).zip(&device.facts.types) {
            let outcome = match &missing {
                Some(why) => ProbeOutcome::NotOffered(why.clone()),
                None => match attempt(&attacher, commands, memory_type) {
                    Ok(()) if may_be_window(property_flags) => ProbeOutcome::Works,
                    Ok(()) => ProbeOutcome::WorksButUnfit,
                    Err(outcome) => outcome,
                },
            };
            rows.push(ProbeRow {
                memory_type,
                property_flags,
                heap,
                way: Way::Attach(strategy),
                outcome,
            });
        }
    }
    rows.extend(exports(device, commands));
    Probe { rows }
}

/// Tries to export memory of each type that could be offered so.
fn exports(device: &Arc<Device>, commands: &mut Commands) -> Vec<ProbeRow> {
    let missing = export::missing(device);
    let pool = LocalPool::new(device, TRIAL_LIMIT);
    let mut attempt = |memory_type| match (&missing, &pool) {
        (Some(why), _) => ProbeOutcome::NotOffered(why.clone()),
        (None, Err(error)) => ProbeOutcome::Refused(error.to_string()),
        (None, Ok(pool)) => attempt_export(pool, commands, memory_type)
            .map_or_else(|outcome| outcome, |()| ProbeOutcome::Works),
    };
    let types = (0_u32..).zip(&device.facts.types);
    types
        .filter(|(_, (flags, _))| may_be_exported(*flags))
        .map(|(memory_type, &(property_flags, heap))| ProbeRow {
            memory_type,
            property_flags,
            heap,
            way: Way::Export,
            outcome: attempt(memory_type),
        })
        .collect()
}

/// Memory of the device that a trial may take.
const TRIAL_LIMIT: u64 = 16 << 20;

/// What a strategy needs and this host lacks.
fn missing(device: &Device, strategy: Strategy, udmabuf: Option<&String>) -> Option<String> {
    match strategy {
        Strategy::HostPointer if device.host_pointers.is_none() => {
            return Some("no VK_EXT_external_memory_host".to_owned());
        }
        Strategy::DmaBuf if device.memory_fd.is_none() => {
            return Some("no VK_EXT_external_memory_dma_buf".to_owned());
        }
        Strategy::DmaBuf if udmabuf.is_some() => return udmabuf.cloned(),
        _ => {}
    }
    let features = device.external_features(strategy.handle_type());
    // VUID-VkImportMemoryHostPointerInfoEXT-handleType-01747 and its like for descriptors.
    if !features.contains(vk::ExternalMemoryFeatureFlags::IMPORTABLE) {
        return Some("buffers cannot import it".to_owned());
    }
    if features.contains(vk::ExternalMemoryFeatureFlags::DEDICATED_ONLY) {
        return Some("buffers import it only with dedicated allocations".to_owned());
    }
    None
}

fn attempt(
    attacher: &Attacher,
    commands: &mut Commands,
    memory_type: u32,
) -> Result<(), ProbeOutcome> {
    let scratch = Scratch::new(attacher.alignment())?;
    let attach = |offset| {
        attacher.attach(&Target {
            file: &scratch.file,
            offset,
            length: attacher.alignment(),
            memory_type,
        })
    };
    let mut attempt = Attempt {
        source: attach(scratch.source())?,
        destination: attach(scratch.destination())?,
        length: attacher.alignment(),
        commands,
    };
    let outcome = scratch.exercise(&mut attempt);
    if outcome.is_err() {
        // Whatever failed, nothing of ours may be pending when the buffers go.
        let _ = finish(attempt.commands);
    }
    outcome
}

/// A strategy with a memory type, on trial.
struct Attempt<'a> {
    source: GpuBytes,
    destination: GpuBytes,
    length: u64,
    commands: &'a mut Commands,
}

impl Trial for Attempt<'_> {
    fn copy(&mut self) -> Result<(), ProviderError> {
        let region = vk::BufferCopy::default().size(self.length);
        let (source, destination) = (self.source.buffer.raw, self.destination.buffer.raw);
        self.commands.copy(source, destination, region)?;
        finish(self.commands)
    }

    fn fill(&mut self, value: u32) -> Result<(), ProviderError> {
        let raw = self.source.buffer.raw;
        self.commands.fill(raw, 0, self.length, value)?;
        finish(self.commands)
    }
}

/// The file is the staging area here: the CPU reaches the device's memory by its dma-buf.
fn attempt_export(
    pool: &Arc<LocalPool>,
    commands: &mut Commands,
    memory_type: u32,
) -> Result<(), ProbeOutcome> {
    let length = rustix::param::page_size() as u64;
    let scratch = Scratch::new(length)?;
    let exported = |offset| {
        let bytes = export::allocate(pool, length, memory_type)?;
        let elsewhere = export::export(&bytes, length)?;
        let file = elsewhere
            .file()
            .cloned()
            .ok_or_else(|| ProviderError::Driver("there is no file".to_owned()))?;
        let piece = Piece {
            file,
            offset: 0,
            length,
        };
        let mapped = SharedFile::stitched(vec![piece])?;
        Ok::<_, ProviderError>(Exposed {
            bytes,
            mapped,
            offset,
        })
    };
    let mut attempt = ExportAttempt {
        source: exported(scratch.source())?,
        destination: exported(scratch.destination())?,
        staging: Arc::clone(&scratch.file),
        length,
        commands,
    };
    let outcome = scratch.exercise(&mut attempt);
    if outcome.is_err() {
        let _ = finish(attempt.commands);
    }
    outcome
}

/// Exported memory, and its place in the staging area.
struct Exposed {
    bytes: GpuBytes,
    mapped: SharedFile,
    offset: u64,
}

/// Exported memory of a type, on trial.
struct ExportAttempt<'a> {
    source: Exposed,
    destination: Exposed,
    staging: Arc<SharedFile>,
    length: u64,
    commands: &'a mut Commands,
}

impl ExportAttempt<'_> {
    fn read_back(&self, from: &Exposed) -> Result<(), ProviderError> {
        let staging = self.staging.mapping();
        staging.copy_from(from.offset, from.mapped.mapping(), 0, self.length)
    }
}

impl Trial for ExportAttempt<'_> {
    fn copy(&mut self) -> Result<(), ProviderError> {
        let (source, destination) = (&self.source, &self.destination);
        let staging = self.staging.mapping();
        source
            .mapped
            .mapping()
            .copy_from(0, staging, source.offset, self.length)?;
        let region = vk::BufferCopy::default().size(self.length);
        let (from, to) = (source.bytes.buffer.raw, destination.bytes.buffer.raw);
        self.commands.copy(from, to, region)?;
        finish(self.commands)?;
        self.read_back(&self.destination)
    }

    fn fill(&mut self, value: u32) -> Result<(), ProviderError> {
        let raw = self.source.bytes.buffer.raw;
        self.commands.fill(raw, 0, self.length, value)?;
        finish(self.commands)?;
        self.read_back(&self.source)
    }
}

/// Submits what is recorded and waits for it.
fn finish(commands: &mut Commands) -> Result<(), ProviderError> {
    let submitted = commands.submit().map(drop);
    let waited = commands.wait(commands.submitted());
    submitted.and(waited)
}
