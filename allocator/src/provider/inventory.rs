//! What this host could offer, for people: `hostblobd info`.
//!
//! It never fails: what is missing is a line that says so.

use std::fmt;

use super::gl::{self, GlReport};
use super::udmabuf::Udmabuf;
use super::vulkan::{self, DeviceFacts, Probe};

/// A Vulkan device: what it says, and what it was found to do.
#[derive(Debug, Clone)]
pub struct DeviceReport {
    /// What it says about itself.
    pub facts: DeviceFacts,
    /// What was found by trying; or why nothing could be tried.
    pub probe: Result<Probe, String>,
}

/// What this host could offer.
#[derive(Debug, Clone)]
pub struct Inventory {
    /// Every physical device; or why there is no Vulkan.
    pub vulkan: Result<Vec<DeviceReport>, String>,
    /// Every OpenGL device that needs no window system; or why there is none.
    pub gl: Result<Vec<GlReport>, String>,
    /// The largest dma-buf that /dev/udmabuf makes, in bytes; or why it cannot be used.
    pub udmabuf: Result<u64, String>,
}

/// Looks. Takes as long as making a VkDevice of each physical device: a second or so.
#[must_use]
pub fn inventory() -> Inventory {
    let vulkan = vulkan::survey()
        .map(|devices| {
            devices
                .into_iter()
                .map(|(facts, probe)| DeviceReport {
                    facts,
                    probe: probe.map_err(|error| error.to_string()),
                })
                .collect()
        })
        .map_err(|error| error.to_string());
    Inventory {
        vulkan,
        gl: gl::survey(),
        udmabuf: Udmabuf::open().map(|device| device.size_limit()),
    }
}

impl fmt::Display for Inventory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.udmabuf {
            Ok(limit) => writeln!(f, "udmabuf: usable, up to {} MiB each", limit >> 20)?,
            Err(why) => writeln!(f, "udmabuf: not usable: {why}")?,
        }
        match &self.gl {
            Ok(devices) => devices
                .iter()
                .try_for_each(|device| writeln!(f, "{device}"))?,
            Err(why) => writeln!(f, "OpenGL: {why}")?,
        }
        match &self.vulkan {
            Ok(devices) if devices.is_empty() => writeln!(f, "Vulkan: no device"),
            Ok(devices) => devices.iter().try_for_each(|device| write!(f, "{device}")),
            Err(why) => writeln!(f, "Vulkan: {why}"),
        }
    }
}

impl fmt::Display for DeviceReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let facts = &self.facts;
        let (major, minor, patch) = facts.api_version;
        writeln!(
            f,
            "Vulkan device {}: {} ({}), driver {}, Vulkan {major}.{minor}.{patch}, {:04x}:{:04x}",
            facts.index, facts.name, facts.class, facts.driver, facts.vendor_id, facts.device_id
        )?;
        for (index, (size, flags)) in facts.heaps.iter().enumerate() {
            let local = if flags & super::property::HEAP_DEVICE_LOCAL != 0 {
                ", device-local"
            } else {
                ""
            };
            writeln!(f, "  heap {index}: {} MiB{local}", size >> 20)?;
        }
        match facts.host_pointer_alignment {
            Some(alignment) => writeln!(f, "  host pointers: offered, alignment {alignment}")?,
            None => writeln!(f, "  host pointers: not offered")?,
        }
        let dma_buf = if facts.dma_buf {
            "offered"
        } else {
            "not offered"
        };
        writeln!(f, "  dma-buf import: {dma_buf}")?;
        match &self.probe {
            Ok(probe) => probe
                .to_string()
                .lines()
                .try_for_each(|line| writeln!(f, "  {line}")),
            Err(why) => writeln!(f, "  not tried: {why}"),
        }
    }
}
