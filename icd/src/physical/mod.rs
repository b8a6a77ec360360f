//! `VkPhysicalDevice`: what the host said of itself, in Vulkan's terms.
//!
//! | module | answers |
//! |---|---|
//! | `properties`, `limits` | who is it, and how much can it? |
//! | `features`, `formats` | what can it? Buffers and transfers |
//! | `heaps` | which memory has it, and how much is left? |
//! | `queue_families` | where does work go? |
//! | `external` | what can go to other processes? |

pub(crate) mod external;
pub(crate) mod features;
pub(crate) mod formats;
pub(crate) mod heaps;
mod limits;
pub(crate) use limits::MAP_ALIGNMENT;
pub(crate) mod properties;
pub(crate) mod queue_families;

use std::sync::Arc;

use ash::vk;
use hostblob_guest::protocol::request::request_bit;
use hostblob_guest::{Capset, CreateFlags, Device as Guest, Error, OpenOptions, TransportKind};
use parking_lot::Mutex;

use crate::debug_utils::Messengers;
use crate::extensions::Extensions;
use crate::object::Callbacks;

/// A connection to the host, and what it said.
pub(crate) struct PhysicalDevice {
    options: OpenOptions,
    /// The context that all devices made of it share, so that the budget is of all.
    guest: Mutex<Guest>,
    capset: Capset,
    exports: bool,
    callbacks: Option<Callbacks>,
    messengers: Arc<Messengers>,
}

/// Whether Vulkan programs can live on it (Vulkan, "Device Memory": the memory types that there must be).
fn check(guest: &Guest) -> Result<(), String> {
    const MAPPED: u32 = vk::MemoryPropertyFlags::HOST_VISIBLE.as_raw()
        | vk::MemoryPropertyFlags::HOST_COHERENT.as_raw();
    let capset = guest.capabilities();
    if capset.find_type(MAPPED).is_none() {
        return Err("the host offers no memory that the guest can map".to_owned());
    }
    let needed = request_bit::FILL | request_bit::COPY;
    if guest.agreed().requests & needed != needed {
        return Err("the host serves no fills and copies".to_owned());
    }
    Ok(())
}

impl PhysicalDevice {
    /// Connects; an error says why there is no device.
    pub(crate) fn open(
        options: &OpenOptions,
        callbacks: Option<Callbacks>,
        messengers: &Arc<Messengers>,
    ) -> Result<Self, String> {
        let guest = Guest::open(options).map_err(|error| error.to_string())?;
        check(&guest)?;
        let exports = guest.transport() == TransportKind::Drm
            && guest.agreed().create_flags.contains(CreateFlags::SHAREABLE);
        Ok(Self {
            options: options.clone(),
            capset: guest.capabilities().clone(),
            guest: Mutex::new(guest),
            exports,
            callbacks,
            messengers: messengers.clone(),
        })
    }

    /// The connection. One that the host has ended is made again, where the host is the same.
    pub(crate) fn connect(&self) -> Result<Guest, vk::Result> {
        let mut guest = self.guest.lock();
        let Err(Error::DeviceLost(reason)) = guest.budget(0) else {
            return Ok(guest.clone());
        };
        let again = Guest::open(&self.options).map_err(|error| {
            log::info!("the device is lost ({reason}) and cannot be found again: {error}");
            vk::Result::ERROR_DEVICE_LOST
        })?;
        if *again.capabilities() != self.capset {
            log::info!(
                "the device is lost ({reason}), and another one is there: make a new VkInstance"
            );
            return Err(vk::Result::ERROR_DEVICE_LOST);
        }
        *guest = again;
        Ok(guest.clone())
    }

    /// The connection as it is.
    pub(crate) fn guest(&self) -> Guest {
        self.guest.lock().clone()
    }

    pub(crate) fn capset(&self) -> &Capset {
        &self.capset
    }

    /// Whether memory can leave the process as a dma-buf, and come in.
    pub(crate) fn exports(&self) -> bool {
        self.exports
    }

    pub(crate) fn extensions(&self) -> Extensions {
        match self.exports {
            true => Extensions::all(),
            false => Extensions::all() - Extensions::DMA_BUF,
        }
    }

    pub(crate) fn callbacks(&self, callbacks: Option<Callbacks>) -> Option<Callbacks> {
        callbacks.or(self.callbacks)
    }

    pub(crate) fn messengers(&self) -> &Arc<Messengers> {
        &self.messengers
    }
}
