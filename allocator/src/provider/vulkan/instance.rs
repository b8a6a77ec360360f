//! The VkInstance, loaded at run time, and the validation messages that it reports.

use std::ffi::{CStr, c_void};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ash::{Entry, ext, vk};

use super::error::{VulkanError, call};

const LAYER: &CStr = c"VK_LAYER_KHRONOS_validation";

/// The version that this code knows; a device may offer less, but not less than 1.2.
const API_VERSION: u32 = vk::API_VERSION_1_3;

/// Counts what the validation layer complains about; outlives the instance, so that leaks found at the end count.
#[derive(Debug, Default)]
pub struct ValidationCounter {
    messages: AtomicU64,
}

impl ValidationCounter {
    /// Warnings and errors of the validation layer so far; always 0 when validation is off.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.messages.load(Ordering::Relaxed)
    }
}

/// A VkInstance with its messenger. Devices hold it in an `Arc`: it goes last.
pub(super) struct Instance {
    pub(super) raw: ash::Instance,
    messenger: Option<(ext::debug_utils::Instance, vk::DebugUtilsMessengerEXT)>,
    counter: Arc<ValidationCounter>,
    /// The API version that devices may be used with.
    pub(super) api_version: u32,
    pub(super) validation: bool,
    /// Keeps libvulkan loaded: the function pointers above point into it.
    _entry: Entry,
}

impl Instance {
    /// Loads libvulkan and makes an instance, with the validation layer where asked for.
    pub(super) fn new(validation: bool) -> Result<Arc<Self>, VulkanError> {
        // SAFETY: loading runs libvulkan's initialisers, which the host's administrator installed; `_entry` keeps it
        // loaded for as long as anything of it is called.
        let entry = unsafe { Entry::load() }.map_err(|error| VulkanError::NoLoader {
            reason: error.to_string(),
        })?;
        let loader = loader_version(&entry)?;
        let validation = match validation {
            true => find_validation(&entry)?,
            false => Validation::Off,
        };
        let counter = Arc::new(ValidationCounter::default());
        let mut instance = create(entry, loader.min(API_VERSION), validation, counter)?;
        if instance.validation {
            instance.add_messenger()?;
        }
        Ok(Arc::new(instance))
    }

    /// Makes the messenger; on failure `drop` undoes the instance.
    fn add_messenger(&mut self) -> Result<(), VulkanError> {
        let loader = ext::debug_utils::Instance::new(&self._entry, &self.raw);
        let info = messenger_info(&self.counter);
        // SAFETY: the extension is enabled on this instance; `counter` lives until the messenger is destroyed in `drop`.
        let raw = unsafe { loader.create_debug_utils_messenger(&info, None) }
            .map_err(call("vkCreateDebugUtilsMessengerEXT"))?;
        self.messenger = Some((loader, raw));
        Ok(())
    }

    pub(super) fn counter(&self) -> &Arc<ValidationCounter> {
        &self.counter
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        if let Some((loader, messenger)) = self.messenger.take() {
            // SAFETY: made by `add_messenger` of this instance and destroyed once; no call is under way, since devices
            // hold an `Arc` of `self` and are gone.
            unsafe { loader.destroy_debug_utils_messenger(messenger, None) };
        }
        // SAFETY: all children (devices, the messenger) are destroyed: each holds an `Arc` of `self`, or was just destroyed.
        // The counter, named in the creation chain, is a field and still alive.
        unsafe { self.raw.destroy_instance(None) };
    }
}

fn loader_version(entry: &Entry) -> Result<u32, VulkanError> {
    // SAFETY: a call without arguments into the loaded library.
    let version = unsafe { entry.try_enumerate_instance_version() }
        .map_err(call("vkEnumerateInstanceVersion"))?
        .unwrap_or(vk::API_VERSION_1_0);
    if version < vk::API_VERSION_1_2 {
        return Err(VulkanError::OldLoader {
            major: vk::api_version_major(version),
            minor: vk::api_version_minor(version),
        });
    }
    Ok(version)
}

/// What validation there is on this host.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Validation {
    Off,
    /// The layer alone.
    Plain,
    /// And it checks barriers (VK_EXT_validation_features, which newer layers may drop for VK_EXT_layer_settings).
    Barriers,
}

fn find_validation(entry: &Entry) -> Result<Validation, VulkanError> {
    // SAFETY: the library is loaded; ash owns the arrays.
    let layers = unsafe { entry.enumerate_instance_layer_properties() }
        .map_err(call("vkEnumerateInstanceLayerProperties"))?;
    let layer = |l: &vk::LayerProperties| l.layer_name_as_c_str() == Ok(LAYER);
    if !layers.iter().any(layer) {
        return Err(VulkanError::NoValidation {
            missing: "VK_LAYER_KHRONOS_validation",
        });
    }
    // SAFETY: as above; the layer was just found.
    let extensions = unsafe { entry.enumerate_instance_extension_properties(Some(LAYER)) }
        .map_err(call("vkEnumerateInstanceExtensionProperties"))?;
    let offers = |name: &CStr| {
        extensions
            .iter()
            .any(|e| e.extension_name_as_c_str() == Ok(name))
    };
    if !offers(ext::debug_utils::NAME) {
        return Err(VulkanError::NoValidation {
            missing: "VK_EXT_debug_utils",
        });
    }
    Ok(if offers(ext::validation_features::NAME) {
        Validation::Barriers
    } else {
        Validation::Plain
    })
}

fn create(
    entry: Entry,
    api_version: u32,
    validation: Validation,
    counter: Arc<ValidationCounter>,
) -> Result<Instance, VulkanError> {
    let application = vk::ApplicationInfo::default()
        .application_name(c"hostblob")
        .api_version(api_version);
    let layers = [LAYER.as_ptr()];
    let extensions = match validation {
        Validation::Off => vec![],
        Validation::Plain => vec![ext::debug_utils::NAME.as_ptr()],
        Validation::Barriers => vec![
            ext::debug_utils::NAME.as_ptr(),
            ext::validation_features::NAME.as_ptr(),
        ],
    };
    let checks = [vk::ValidationFeatureEnableEXT::SYNCHRONIZATION_VALIDATION];
    let mut features = vk::ValidationFeaturesEXT::default().enabled_validation_features(&checks);
    // Covers vkCreateInstance and vkDestroyInstance, where leaked objects are reported.
    let mut messages = messenger_info(&counter);
    let mut info = vk::InstanceCreateInfo::default()
        .application_info(&application)
        .enabled_extension_names(&extensions);
    if validation != Validation::Off {
        info = info.enabled_layer_names(&layers).push_next(&mut messages);
    }
    if validation == Validation::Barriers {
        info = info.push_next(&mut features);
    }
    // SAFETY: every pointer in `info` lives to the end of this function, except the counter behind the messenger's user
    // data, which the instance uses until vkDestroyInstance: the returned value keeps it.
    let raw = unsafe { entry.create_instance(&info, None) }.map_err(|result| match result {
        // A loader without any driver.
        vk::Result::ERROR_INCOMPATIBLE_DRIVER => VulkanError::NoDevice,
        result => call("vkCreateInstance")(result),
    })?;
    Ok(Instance {
        raw,
        messenger: None,
        counter,
        api_version,
        validation: validation != Validation::Off,
        _entry: entry,
    })
}

fn messenger_info(
    counter: &Arc<ValidationCounter>,
) -> vk::DebugUtilsMessengerCreateInfoEXT<'static> {
    vk::DebugUtilsMessengerCreateInfoEXT::default()
        .message_severity(
            vk::DebugUtilsMessageSeverityFlagsEXT::WARNING
                | vk::DebugUtilsMessageSeverityFlagsEXT::ERROR,
        )
        .message_type(
            vk::DebugUtilsMessageTypeFlagsEXT::GENERAL
                | vk::DebugUtilsMessageTypeFlagsEXT::VALIDATION
                | vk::DebugUtilsMessageTypeFlagsEXT::PERFORMANCE,
        )
        .pfn_user_callback(Some(on_message))
        .user_data(Arc::as_ptr(counter).cast_mut().cast())
}

/// Logs a message and counts it if the validation layer means it. Loaders also send general ones (a driver of another
/// GPU that does not load): those are no concern of ours.
unsafe extern "system" fn on_message(
    severity: vk::DebugUtilsMessageSeverityFlagsEXT,
    types: vk::DebugUtilsMessageTypeFlagsEXT,
    data: *const vk::DebugUtilsMessengerCallbackDataEXT<'_>,
    user_data: *mut c_void,
) -> vk::Bool32 {
    // SAFETY: Vulkan passes a valid structure, or null never; valid during this call.
    let text = unsafe { data.as_ref() }
        .map(|data| data.p_message)
        .filter(|message| !message.is_null())
        // SAFETY: a message is a NUL-terminated string that lives during this call.
        .map(|message| unsafe { CStr::from_ptr(message) }.to_string_lossy())
        .unwrap_or_default();
    if !types.contains(vk::DebugUtilsMessageTypeFlagsEXT::VALIDATION) {
        log::debug!("vulkan: {text}");
        return vk::FALSE;
    }
    // SAFETY: `user_data` is the counter that `messenger_info` named; the instance that calls keeps it alive.
    if let Some(counter) = unsafe { user_data.cast::<ValidationCounter>().as_ref() } {
        counter.messages.fetch_add(1, Ordering::Relaxed);
    }
    if severity.contains(vk::DebugUtilsMessageSeverityFlagsEXT::ERROR) {
        log::error!("vulkan validation: {text}");
    } else {
        log::warn!("vulkan validation: {text}");
    }
    vk::FALSE
}
