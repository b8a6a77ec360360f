//! Which provider a host gets.
//!
//! `auto` takes the best that works and says in one line why; a provider that was asked for by name either works or is an
//! error, never replaced by another.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use thiserror::Error;

use super::Provider;
use super::system::SystemProvider;
use super::vulkan::{VulkanError, VulkanProvider};

/// Which provider is wanted (`--provider`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Choice {
    /// Vulkan where it works, else system memory.
    #[default]
    Auto,
    /// Vulkan or nothing.
    Vulkan,
    /// System memory.
    System,
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Vulkan => "vulkan",
            Self::System => "system",
        })
    }
}

/// Not the name of a provider.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0:?} is no provider: auto, vulkan and system are")]
pub struct ParseChoiceError(String);

impl FromStr for Choice {
    type Err = ParseChoiceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "vulkan" => Ok(Self::Vulkan),
            "system" => Ok(Self::System),
            _ => Err(ParseChoiceError(text.to_owned())),
        }
    }
}

/// Which device is wanted (`--device`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceSelector {
    /// By its number in the inventory, from 0.
    Index(usize),
    /// By a part of its name, in any case; the first that matches.
    Name(String),
}

impl fmt::Display for DeviceSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Index(index) => write!(f, "index {index}"),
            Self::Name(name) => write!(f, "name {name:?}"),
        }
    }
}

impl FromStr for DeviceSelector {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text.parse() {
            Ok(index) => Self::Index(index),
            Err(_) => Self::Name(text.to_owned()),
        })
    }
}

/// What a provider is started with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// The device; without one, the best that can be attached to window memory.
    pub device: Option<DeviceSelector>,
    /// Runs under `VK_LAYER_KHRONOS_validation`: messages are logged and counted.
    pub validation: bool,
    /// Heaps are reported with at most this many bytes (`--memory-limit`).
    pub memory_limit: Option<u64>,
}

/// A provider, and why this one.
#[derive(Clone)]
pub struct Opened {
    /// The provider.
    pub provider: Arc<dyn Provider>,
    /// One line for the log and the demo.
    pub reason: String,
}

impl fmt::Debug for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opened")
            .field("kind", &self.provider.description().kind)
            .field("reason", &self.reason)
            .finish()
    }
}

/// Why no provider could be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// Vulkan was asked for by name.
    #[error("provider vulkan: {0}")]
    Vulkan(#[from] VulkanError),
}

/// Opens a provider.
///
/// # Errors
/// When the chosen one does not work here. `auto` fails only where a device was asked for by `--device`: who names a
/// device does not want plain memory instead.
pub fn open(choice: Choice, options: &Options) -> Result<Opened, OpenError> {
    match choice {
        Choice::System => Ok(system(
            options,
            "system memory: asked for by name".to_owned(),
        )),
        Choice::Vulkan => Ok(vulkan(VulkanProvider::new(options)?, "asked for by name")),
        Choice::Auto => match VulkanProvider::new(options) {
            Ok(provider) => Ok(vulkan(provider, "the best that works on this host")),
            Err(error) if options.device.is_some() => Err(error.into()),
            Err(error) => Ok(system(
                options,
                format!("system memory, the CPU fills and copies: {error}"),
            )),
        },
    }
}

fn system(options: &Options, reason: String) -> Opened {
    Opened {
        provider: Arc::new(SystemProvider::new(options.memory_limit)),
        reason,
    }
}

fn vulkan(provider: VulkanProvider, why: &str) -> Opened {
    let description = provider.description();
    let reason = format!(
        "Vulkan on {} ({}), attached by {}: {why}",
        description.device_name, description.driver_name, description.attach_strategy
    );
    Opened {
        provider: Arc::new(provider),
        reason,
    }
}
