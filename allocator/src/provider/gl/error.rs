//! Why OpenGL cannot be had, and what a driver's answer means to the caller.
//!
//! Errors at start are for a person who has to do something about them; errors of a request become a status of the guest.

use thiserror::Error;

use crate::provider::{DeviceSelector, ProviderError};

/// Why the GL provider cannot start.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum GlError {
    /// libEGL is missing or older than 1.5.
    #[error(
        "no EGL 1.5 ({reason}): install libegl1 and a driver (libgl1-mesa-dri has one for CPUs), or use another provider"
    )]
    NoLoader {
        /// The dynamic linker's words.
        reason: String,
    },
    /// No display without a window system.
    #[error(
        "no EGL display without a window system ({reason}): install a driver (libgl1-mesa-dri has one for CPUs), or use another provider"
    )]
    NoDisplay {
        /// What was tried.
        reason: String,
    },
    /// A display without OpenGL 4.5.
    #[error("{display}: {reason}")]
    NoContext {
        /// Which display.
        display: String,
        /// What failed.
        reason: String,
    },
    /// The selector matches nothing.
    #[error("no OpenGL device has {wanted}; there are: {present}")]
    NoSuchDevice {
        /// What was asked for.
        wanted: DeviceSelector,
        /// Numbers and names of those that exist.
        present: String,
    },
    /// Buffers cannot be had over window memory.
    #[error("{renderer} cannot be attached to window memory: {reason}")]
    NoWindowMemory {
        /// `GL_RENDERER`.
        renderer: String,
        /// What the probe found.
        reason: String,
    },
    /// The device lacks what everything here is built on.
    #[error("{renderer} cannot be used: {reason}")]
    Unsuitable {
        /// `GL_RENDERER`.
        renderer: String,
        /// What does not work.
        reason: String,
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

/// `GL_CONTEXT_LOST` (GL 4.5): the GPU was reset.
pub(super) const CONTEXT_LOST: u32 = 0x0507;

/// What a GL error of a call means. Memory that is short is the host's for a pin, the device's for everything else.
pub(super) fn refusal(call: &str, error: u32) -> ProviderError {
    let text = format!("{call}: {}", name(error));
    match error {
        glow::OUT_OF_MEMORY if call == PIN => ProviderError::OutOfHostMemory(text),
        glow::OUT_OF_MEMORY => ProviderError::OutOfDeviceMemory(text),
        CONTEXT_LOST => ProviderError::DeviceLost(text),
        _ => ProviderError::Driver(text),
    }
}

/// The call that pins window memory, as errors name it.
pub(super) const PIN: &str = "glBufferData of pinned memory";

fn name(error: u32) -> String {
    match error {
        glow::INVALID_ENUM => "GL_INVALID_ENUM".to_owned(),
        glow::INVALID_VALUE => "GL_INVALID_VALUE".to_owned(),
        glow::INVALID_OPERATION => "GL_INVALID_OPERATION".to_owned(),
        glow::OUT_OF_MEMORY => "GL_OUT_OF_MEMORY".to_owned(),
        CONTEXT_LOST => "GL_CONTEXT_LOST".to_owned(),
        other => format!("GL error {other:#x}"),
    }
}
