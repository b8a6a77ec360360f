//! `VK_EXT_debug_utils`: what the driver has to say goes to the program's messengers.
//!
//! Names of memory go to the host. Those of other objects, tags and labels have nobody to read them.

use std::ffi::{CStr, CString, c_void};

use ash::vk::{self, Handle};
use parking_lot::{Mutex, RwLock};

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
    /// Locked while callbacks run, so that none outlives its messenger. They may not call Vulkan
    /// (VUID-PFN_vkDebugUtilsMessengerCallbackEXT-None-04769), so none makes or destroys one.
    list: RwLock<Vec<(u64, Callback)>>,
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
// SAFETY: as above; nothing of it changes.
unsafe impl Sync for Callback {}

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

    fn add(&self, number: u64, callback: Callback) {
        self.list.write().push((number, callback));
    }

    /// No callback of it is under way, or comes, after this returns.
    fn remove(&self, gone: u64) {
        self.list.write().retain(|(number, _)| *number != gone);
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
        for (_, callback) in &*self.list.read() {
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
    messengers.add(number, callback);
    out.set(handle);
    Ok(())
}

pub(crate) fn destroy(
    instance: &Instance,
    messenger: Owned<Messenger>,
    callbacks: Option<Callbacks>,
) {
    if let Some(Messenger(gone)) = messenger.get() {
        instance.messengers().remove(*gone);
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use super::*;

    /// What a program has behind its `pUserData`.
    #[derive(Default)]
    struct Program {
        begun: AtomicU32,
        ended: AtomicU32,
    }

    unsafe extern "system" fn slow(
        _: vk::DebugUtilsMessageSeverityFlagsEXT,
        _: vk::DebugUtilsMessageTypeFlagsEXT,
        data: *const vk::DebugUtilsMessengerCallbackDataEXT<'_>,
        user_data: *mut c_void,
    ) -> vk::Bool32 {
        // SAFETY: the test's own, which outlives its messengers.
        let program = unsafe { &*user_data.cast::<Program>() };
        // SAFETY: a structure that lives across the call.
        let data = unsafe { &*data };
        // SAFETY: as above, and so does its text.
        let message = unsafe { CStr::from_ptr(data.p_message) };
        assert_eq!(message, c"the device is lost");
        program.begun.fetch_add(1, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(100));
        program.ended.fetch_add(1, Ordering::SeqCst);
        vk::FALSE
    }

    fn callback(program: &Program, severities: vk::DebugUtilsMessageSeverityFlagsEXT) -> Callback {
        Callback {
            severities,
            types: vk::DebugUtilsMessageTypeFlagsEXT::GENERAL,
            function: Some(slow),
            user_data: std::ptr::from_ref(program).cast_mut().cast(),
        }
    }

    #[test]
    fn a_messenger_is_destroyed_when_its_last_callback_has_returned() {
        let messengers = Messengers::default();
        let (program, other) = (Program::default(), Program::default());
        let errors = vk::DebugUtilsMessageSeverityFlagsEXT::ERROR;
        messengers.add(1, callback(&program, errors));
        messengers.add(
            2,
            callback(&other, vk::DebugUtilsMessageSeverityFlagsEXT::INFO),
        );
        std::thread::scope(|scope| {
            // As the queue's thread does.
            scope.spawn(|| messengers.tell_error("the device is lost"));
            while program.begun.load(Ordering::SeqCst) == 0 {
                std::thread::yield_now();
            }
            messengers.remove(1);
            assert_eq!(program.ended.load(Ordering::SeqCst), 1);
        });
        messengers.tell_error("the device is lost");
        assert_eq!(program.begun.load(Ordering::SeqCst), 1, "it is gone");
        assert_eq!(
            other.begun.load(Ordering::SeqCst),
            0,
            "errors are not its own"
        );
    }
}
