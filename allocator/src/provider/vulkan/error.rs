//! Why Vulkan cannot be had, and what a driver's answer means to the caller.
//!
//! Errors at start are for a person who has to do something about them; errors of a request become a status of the guest.

use ash::vk;
use thiserror::Error;

use crate::provider::{DeviceSelector, ProviderError};

/// Why the Vulkan provider cannot start.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum VulkanError {
    /// libvulkan is missing.
    #[error(
        "no Vulkan loader ({reason}): install libvulkan1 and a driver (mesa-vulkan-drivers has one for CPUs), or use the system provider"
    )]
    NoLoader {
        /// The dynamic linker's words.
        reason: String,
    },
    /// libvulkan is too old.
    #[error("the Vulkan loader speaks {major}.{minor}, but 1.2 is needed: update libvulkan1")]
    OldLoader {
        /// Its version.
        major: u32,
        /// Its version.
        minor: u32,
    },
    /// Validation was asked for and is not installed.
    #[error("validation was asked for, but {missing} is missing: install vulkan-validationlayers")]
    NoValidation {
        /// The layer or the extension.
        missing: &'static str,
    },
    /// A loader without drivers.
    #[error(
        "no Vulkan device: install a driver (mesa-vulkan-drivers has one for CPUs), or use the system provider"
    )]
    NoDevice,
    /// The selector matches nothing.
    #[error("no Vulkan device has {wanted}; there are: {present}")]
    NoSuchDevice {
        /// What was asked for.
        wanted: DeviceSelector,
        /// Numbers and names of those that exist.
        present: String,
    },
    /// No device that was tried has a usable memory type.
    #[error(
        "no memory type can be attached to window memory: {tried}; see `hostblobd info`, or use the system provider"
    )]
    NoWindowMemory {
        /// Each device that was tried and what was wrong with it.
        tried: String,
    },
    /// A device lacks what everything here is built on.
    #[error("{device} cannot be used: {reason}")]
    Unsuitable {
        /// Its name.
        device: String,
        /// What it lacks.
        reason: String,
    },
    /// The driver refused a call that is not expected to fail.
    #[error("{call} failed: {result:?}")]
    Call {
        /// The function.
        call: &'static str,
        /// Its answer.
        result: vk::Result,
    },
    /// The operating system refused something.
    #[error("{what}: {reason}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// The error.
        reason: String,
    },
}

/// An adapter for `map_err`: names the call that failed at start.
pub(super) fn call(call: &'static str) -> impl Fn(vk::Result) -> VulkanError {
    move |result| VulkanError::Call { call, result }
}

/// What a driver's refusal of a request means.
pub(super) fn refusal(call: &str, result: vk::Result) -> ProviderError {
    let text = format!("{call}: {result:?}");
    match result {
        vk::Result::ERROR_OUT_OF_HOST_MEMORY | vk::Result::ERROR_TOO_MANY_OBJECTS => {
            ProviderError::OutOfHostMemory(text)
        }
        vk::Result::ERROR_OUT_OF_DEVICE_MEMORY => ProviderError::OutOfDeviceMemory(text),
        vk::Result::ERROR_DEVICE_LOST => ProviderError::DeviceLost(text),
        _ => ProviderError::Driver(text),
    }
}
