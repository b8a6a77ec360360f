//! Which provider a host gets.
//!
//! `auto` takes the best that works and says in one line why; a provider that was asked for by name either works or is an
//! error, never replaced by another.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use thiserror::Error;

use super::Provider;
use super::gl::{GlError, GlProvider};
use super::system::SystemProvider;
use super::vulkan::{VulkanError, VulkanProvider};

/// Which provider is wanted (`--provider`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Choice {
    /// Vulkan where it works, else OpenGL where that works, else system memory.
    #[default]
    Auto,
    /// Vulkan or nothing.
    Vulkan,
    /// OpenGL or nothing.
    Gl,
    /// System memory.
    System,
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Vulkan => "vulkan",
            Self::Gl => "gl",
            Self::System => "system",
        })
    }
}

/// Not the name of a provider.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0:?} is no provider: auto, vulkan, gl and system are")]
pub struct ParseChoiceError(String);

impl FromStr for Choice {
    type Err = ParseChoiceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "vulkan" => Ok(Self::Vulkan),
            "gl" => Ok(Self::Gl),
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
    /// Runs under `VK_LAYER_KHRONOS_validation`, or in a GL debug context: messages are logged and counted.
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
    /// OpenGL was asked for by name.
    #[error("provider gl: {0}")]
    Gl(#[from] GlError),
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
        Choice::Gl => Ok(gl(GlProvider::new(options)?, "asked for by name")),
        Choice::Auto => match VulkanProvider::new(options) {
            Ok(provider) => Ok(vulkan(provider, "the best that works on this host")),
            Err(error) => without_vulkan(options, error),
        },
    }
}

/// The next best after Vulkan. A device that was asked for by its number is a Vulkan one: the inventory counts OpenGL's
/// by themselves.
fn without_vulkan(options: &Options, error: VulkanError) -> Result<Opened, OpenError> {
    if let Some(DeviceSelector::Index(_)) = options.device {
        return Err(error.into());
    }
    match gl_with_window(options) {
        Ok(provider) => Ok(gl(provider, &format!("Vulkan does not work here: {error}"))),
        Err(_) if options.device.is_some() => Err(error.into()),
        Err(other) => Ok(system(
            options,
            format!("system memory, the CPU fills and copies: Vulkan: {error}; OpenGL: {other}"),
        )),
    }
}

/// OpenGL where it can attach to window memory: without that, the CPU serves a guest better.
fn gl_with_window(options: &Options) -> Result<GlProvider, GlError> {
    let provider = GlProvider::new(options)?;
    if provider.serves_window() {
        return Ok(provider);
    }
    Err(GlError::NoWindowMemory {
        renderer: provider.facts().renderer.clone(),
        reason: provider.pinned().to_string(),
    })
}

fn gl(provider: GlProvider, why: &str) -> Opened {
    let description = provider.description();
    let reason = format!(
        "OpenGL on {} ({}), attached by {}: {why}",
        description.device_name, description.driver_name, description.attach_strategy
    );
    Opened {
        provider: Arc::new(provider),
        reason,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::ProviderKind;

    #[test]
    fn names_are_parsed_and_printed() {
        for choice in [Choice::Auto, Choice::Vulkan, Choice::Gl, Choice::System] {
            assert_eq!(choice.to_string().parse(), Ok(choice));
        }
        let error = "opengl".parse::<Choice>().unwrap_err();
        assert!(error.to_string().contains("gl and system"), "{error}");
    }

    #[test]
    fn after_vulkan_comes_gl_and_the_reason_says_why() {
        let opened = without_vulkan(&Options::default(), VulkanError::NoDevice).unwrap();
        assert_eq!(
            opened.provider.description().kind,
            ProviderKind::Gl,
            "{}: install libegl1 libgl1-mesa-dri or run cargo xtask setup",
            opened.reason
        );
        assert!(
            opened.reason.contains("no Vulkan device"),
            "{}",
            opened.reason
        );
        assert!(!opened.reason.contains('\n'), "{}", opened.reason);
    }

    #[test]
    fn who_names_a_device_gets_it_or_an_error() {
        let with = |device| Options {
            device: Some(device),
            ..Options::default()
        };
        for device in [
            DeviceSelector::Index(0),
            DeviceSelector::Name("none such".to_owned()),
        ] {
            let error = without_vulkan(&with(device), VulkanError::NoDevice).unwrap_err();
            assert!(matches!(error, OpenError::Vulkan(_)), "{error}");
        }
        let name = DeviceSelector::Name("pipe".to_owned());
        let _ = without_vulkan(&with(name), VulkanError::NoDevice);
    }
}
