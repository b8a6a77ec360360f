//! `VK_EXT_debug_utils`: what the driver has to say goes to the program's messengers.
//!
//! Names of memory go to the host. Those of other objects, tags and labels have nobody to read them.

use std::ffi::{CStr, CString, c_void};

use ash::vk::{self, Handle};
use parking_lot::Mutex;

use crate::command::CommandBuffer;
use crate::device::Device;
use crate::entry::arguments::{Out, from};
use crate::instance::Instance;
use crate::memory::DeviceMemory;
use crate::object::{self, Callbacks, Owned, objects};
use crate::queue::Queue;

/// The messengers of an instance.
#[derive(Default)]
pub(crate) struct Messengers {
    list: Mutex<Vec<(u64, Callback)>>,
    next: Mutex<u64>,
}

#[derive(Clone, Copy)]
struct Callback {
    severities: vk::DebugUtilsMessageSeverityFlagsEXT,
    types: vk::DebugUtilsMessageTypeFlagsEXT,
    function: vk::PFN_vkDebugUtilsMessengerCallbackEXT,
    user_data: *mut c_void,
}

// SAFETY: a function, and a pointer that only it uses; the specification lets a driver call it from any thread.
unsafe impl Send for Callback {}

/// A messenger: its number in the list.
pub(crate) struct Messenger(u64);

objects! { Messenger = vk::DebugUtilsMessengerEXT; }

impl Messengers {
    /// Something worth knowing.
    pub(crate) fn tell_info(&self, text: &str) {
        self.tell(vk::DebugUtilsMessageSeverityFlagsEXT::INFO, text);
    }

    /// Something that went wrong.
    pub(crate) fn tell_error(&self, text: &str) {
        self.tell(vk::DebugUtilsMessageSeverityFlagsEXT::ERROR, text);
    }

    fn tell(&self, severity: vk::DebugUtilsMessageSeverityFlagsEXT, text: &str) {
        let text = CString::new(text.replace('\0', " ")).unwrap_or_default();
        let data = vk::DebugUtilsMessengerCallbackDataEXT::default()
            .message_id_name(c"hostblob")
            .message(&text);
        self.pass(severity, vk::DebugUtilsMessageTypeFlagsEXT::GENERAL, &data);
    }

    fn pass(
        &self,
        severity: vk::DebugUtilsMessageSeverityFlagsEXT,
        types: vk::DebugUtilsMessageTypeFlagsEXT,
        data: &vk::DebugUtilsMessengerCallbackDataEXT<'_>,
    ) {
        // Copied, so that a callback may make and destroy messengers.
        let callbacks: Vec<Callback> = self.list.lock().iter().map(|(_, one)| *one).collect();
        for callback in callbacks {
            if !callback.severities.contains(severity) || !callback.types.intersects(types) {
                continue;
            }
            if let Some(function) = callback.function {
                // SAFETY: the program's function with its own pointer, and a structure that lives across the call. What it returns
                // is for layers.
                unsafe { function(severity, types, data, callback.user_data) };
            }
        }
    }
}

pub(crate) fn create(
    instance: &Instance,
    info: &vk::DebugUtilsMessengerCreateInfoEXT<'_>,
    callbacks: Option<Callbacks>,
    out: Out<'_, vk::DebugUtilsMessengerEXT>,
) -> Result<(), vk::Result> {
    let messengers = instance.messengers();
    let number = {
        let mut next = messengers.next.lock();
        *next += 1;
        *next
    };
    let handle = object::create(Messenger(number), instance.callbacks(callbacks))?;
    let callback = Callback {
        severities: info.message_severity,
        types: info.message_type,
        function: info.pfn_user_callback,
        user_data: info.p_user_data,
    };
    messengers.list.lock().push((number, callback));
    out.set(handle);
    Ok(())
}

pub(crate) fn destroy(
    instance: &Instance,
    messenger: Owned<Messenger>,
    callbacks: Option<Callbacks>,
) {
    if let Some(Messenger(gone)) = messenger.get() {
        let mut list = instance.messengers().list.lock();
        list.retain(|(number, _)| number != gone);
    }
    messenger.destroy(instance.callbacks(callbacks));
}

pub(crate) fn submit(
    instance: &Instance,
    severity: vk::DebugUtilsMessageSeverityFlagsEXT,
    types: vk::DebugUtilsMessageTypeFlagsEXT,
    data: &vk::DebugUtilsMessengerCallbackDataEXT<'_>,
) {
    instance.messengers().pass(severity, types, data);
}

/// Memory has its name at the host too, where people and host processes read it.
pub(crate) fn set_name(_: &Device, info: &vk::DebugUtilsObjectNameInfoEXT<'_>) {
    if info.p_object_name.is_null() || info.object_type != vk::ObjectType::DEVICE_MEMORY {
        return;
    }
    // SAFETY: a string that ends, by the valid usage of the structure.
    let name = unsafe { CStr::from_ptr(info.p_object_name) };
    let memory = vk::DeviceMemory::from_raw(info.object_handle);
    // SAFETY: live memory, by the valid usage of the structure.
    let memory: &DeviceMemory = unsafe { from(memory) };
    memory.set_name(&name.to_string_lossy());
}

pub(crate) fn set_tag(_: &Device, _: &vk::DebugUtilsObjectTagInfoEXT<'_>) {}

pub(crate) fn queue_label(_: &Queue, _: &vk::DebugUtilsLabelEXT<'_>) {}

pub(crate) fn end_queue_label(_: &Queue) {}

pub(crate) fn command_label(_: &CommandBuffer, _: &vk::DebugUtilsLabelEXT<'_>) {}

pub(crate) fn end_command_label(_: &CommandBuffer) {}
