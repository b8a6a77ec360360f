//! What a device really does, as opposed to what it says.
//!
//! Each strategy is tried with each of the host's memory types, as `trial` says. What passes may be offered to guests,
//! nothing else.

use std::fmt;
use std::sync::Arc;

use ash::vk;

use super::attach::{Attacher, Buffer, GpuBytes, Strategy, Target, USAGE};
use super::commands::Commands;
use super::device::Device;
use super::types::may_be_window;
use crate::provider::ProviderError;
use crate::provider::trial::{ProbeOutcome, Scratch, Trial};
use crate::provider::udmabuf::Udmabuf;

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
    pub strategy: Strategy,
    /// What came of it.
    pub outcome: ProbeOutcome,
}

/// What a device really does: each strategy with each memory type.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Probe {
    /// The table.
    pub rows: Vec<ProbeRow>,
}

impl Probe {
    /// The host's memory types that `strategy` can attach and that may be offered.
    #[must_use]
    pub fn attachable(&self, strategy: Strategy) -> Vec<u32> {
        self.rows
            .iter()
            .filter(|row| row.strategy == strategy && row.outcome == ProbeOutcome::Works)
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
            .map(|row| format!("{} {}", row.strategy, row.outcome))
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
            "strategy", "type", "heap", "flags"
        )?;
        for row in &self.rows {
            let flags = format!(
                "{:?}",
                vk::MemoryPropertyFlags::from_raw(row.property_flags)
            );
            writeln!(
                f,
                "{:<16} {:>4} {:>4}  {:<46} {}",
                row.strategy.as_str(),
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
                strategy,
                outcome,
            });
        }
    }
    Probe { rows }
}

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
    let info = vk::PhysicalDeviceExternalBufferInfo::default()
        .usage(USAGE)
        .handle_type(strategy.handle_type());
    let mut properties = vk::ExternalBufferProperties::default();
    // SAFETY: a plain query of a physical device of a live instance; the handle type's extension is offered.
    unsafe {
        device
            .instance
            .raw
            .get_physical_device_external_buffer_properties(device.handle, &info, &mut properties);
    }
    let features = properties
        .external_memory_properties
        .external_memory_features;
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
        let _ = attempt.finish();
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

impl Attempt<'_> {
    fn finish(&mut self) -> Result<(), ProviderError> {
        let submitted = self.commands.submit().map(drop);
        let waited = self.commands.wait(self.commands.submitted());
        submitted.and(waited)
    }
}

impl Trial for Attempt<'_> {
    fn copy(&mut self) -> Result<(), ProviderError> {
        let region = vk::BufferCopy::default().size(self.length);
        let (source, destination) = (self.source.buffer.raw, self.destination.buffer.raw);
        self.commands.copy(source, destination, region)?;
        self.finish()
    }

    fn fill(&mut self, value: u32) -> Result<(), ProviderError> {
        let raw = self.source.buffer.raw;
        self.commands.fill(raw, 0, self.length, value)?;
        self.finish()
    }
}
