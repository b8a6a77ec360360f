//! What a device really does, as opposed to what it says.
//!
//! For each strategy and each of the host's memory types: two page ranges of a scratch memfd are attached, written through
//! the file, copied by the GPU, read back through the file, and compared; then the same again with other bytes (a driver
//! that copies at import, or a stale cache, is caught here), and filled by the GPU and read. What passes may be offered to
//! guests, nothing else. The files are reached by `pread` and `pwrite`, not by the mapping that was
//! imported: it is the pages that must be shared, as a VMM sees them by a mapping of its own.

use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use ash::vk;

use super::attach::{Attacher, Buffer, GpuBytes, Strategy, Target, USAGE};
use super::commands::Commands;
use super::device::Device;
use super::types::may_be_window;
use crate::provider::ProviderError;
use crate::provider::mapping::{SharedFile, sealed_memfd};
use crate::provider::udmabuf::Udmabuf;

/// What came of trying a memory type with a strategy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProbeOutcome {
    /// Bytes went both ways.
    Works,
    /// Bytes went both ways, but the type is not host-visible and coherent, or is one of a special kind: not offered.
    WorksButUnfit,
    /// The strategy is not there: the extension or the device node.
    NotOffered(String),
    /// The driver refused.
    Refused(String),
    /// The driver accepted, and the bytes were not there.
    WrongBytes(String),
}

impl fmt::Display for ProbeOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Works => f.write_str("works"),
            Self::WorksButUnfit => f.write_str("works, not offered: not host-visible and coherent"),
            Self::NotOffered(why) => write!(f, "not offered: {why}"),
            Self::Refused(why) => write!(f, "refused: {why}"),
            Self::WrongBytes(what) => write!(f, "WRONG BYTES: {what}"),
        }
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

/// The bytes of the scratch file: a range to write, one to copy to, and one before them so that offsets are not 0.
struct Scratch {
    reader: OwnedFd,
    source: GpuBytes,
    destination: GpuBytes,
    grain: u64,
}

fn attempt(
    attacher: &Attacher,
    commands: &mut Commands,
    memory_type: u32,
) -> Result<(), ProbeOutcome> {
    let scratch = Scratch::new(attacher, memory_type)
        .map_err(|error| ProbeOutcome::Refused(error.to_string()))?;
    let outcome = scratch.exercise(commands);
    if outcome.is_err() {
        // Whatever failed, nothing of ours may be pending when the buffers go.
        let _ = commands.submit();
        let _ = commands.wait(commands.submitted());
    }
    outcome
}

impl Scratch {
    fn new(attacher: &Attacher, memory_type: u32) -> Result<Self, ProviderError> {
        let host = |error: rustix::io::Errno| {
            ProviderError::OutOfHostMemory(format!("scratch file: {error}"))
        };
        let grain = attacher.alignment();
        let descriptor = sealed_memfd("hostblob-probe", 3 * grain).map_err(host)?;
        let reader = rustix::io::fcntl_dupfd_cloexec(&descriptor, 0).map_err(host)?;
        let file = Arc::new(SharedFile::new(descriptor, 3 * grain)?);
        let attach = |offset| {
            attacher.attach(&Target {
                file: &file,
                offset,
                length: grain,
                memory_type,
            })
        };
        Ok(Self {
            reader,
            source: attach(grain)?,
            destination: attach(2 * grain)?,
            grain,
        })
    }

    fn exercise(&self, commands: &mut Commands) -> Result<(), ProbeOutcome> {
        for round in 0..2_u8 {
            let pattern = self.pattern(round);
            write_all(&self.reader, &pattern, self.grain)?;
            let region = vk::BufferCopy::default().size(self.grain);
            let (source, destination) = (self.source.buffer.raw, self.destination.buffer.raw);
            commands.copy(source, destination, region).map_err(gpu)?;
            finish(commands)?;
            let found = self.read(2 * self.grain)?;
            compare("a copy by the GPU", &pattern, &found)?;
        }
        let value = 0x5AC3_1E7F_u32;
        let raw = self.source.buffer.raw;
        commands.fill(raw, 0, self.grain, value).map_err(gpu)?;
        finish(commands)?;
        let expected: Vec<u8> = value
            .to_le_bytes()
            .into_iter()
            .cycle()
            .take(self.pattern(0).len())
            .collect();
        compare("a fill by the GPU", &expected, &self.read(self.grain)?)
    }

    /// Bytes that differ from round to round and have no short period.
    fn pattern(&self, round: u8) -> Vec<u8> {
        let mut word = 0x9E37_79B9_u32.wrapping_add(u32::from(round));
        (0..self.grain)
            .map(|_| {
                word = word.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                word.to_be_bytes()[0]
            })
            .collect()
    }

    fn read(&self, offset: u64) -> Result<Vec<u8>, ProbeOutcome> {
        let mut bytes = vec![0; self.pattern(0).len()];
        match rustix::io::pread(self.reader.as_fd(), &mut bytes[..], offset) {
            Ok(count) if count == bytes.len() => Ok(bytes),
            other => Err(ProbeOutcome::Refused(format!("pread: {other:?}"))),
        }
    }
}

fn write_all(file: &OwnedFd, bytes: &[u8], offset: u64) -> Result<(), ProbeOutcome> {
    match rustix::io::pwrite(file, bytes, offset) {
        Ok(count) if count == bytes.len() => Ok(()),
        other => Err(ProbeOutcome::Refused(format!("pwrite: {other:?}"))),
    }
}

fn finish(commands: &mut Commands) -> Result<(), ProbeOutcome> {
    let number = commands.submit().map_err(gpu)?;
    commands.wait(number).map_err(gpu)
}

#[allow(clippy::needless_pass_by_value, reason = "for `map_err`")]
fn gpu(error: ProviderError) -> ProbeOutcome {
    ProbeOutcome::Refused(error.to_string())
}

fn compare(what: &str, expected: &[u8], found: &[u8]) -> Result<(), ProbeOutcome> {
    let wrong = expected.iter().zip(found).filter(|(e, f)| e != f).count();
    if wrong == 0 && expected.len() == found.len() {
        return Ok(());
    }
    Err(ProbeOutcome::WrongBytes(format!(
        "after {what}, {wrong} of {} bytes differ",
        expected.len()
    )))
}
