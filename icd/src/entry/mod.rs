//! The boundary to C: which commands there are, and how they are called.
//!
//! | module | answers |
//! |---|---|
//! | `core`, `unserved`, `extension` | which commands? One row each: its C signature, and what it calls |
//! | `arguments` | what becomes of a C argument, and of a result? |
//! | this one | how is a command found by its name? |
//!
//! A row makes an `extern "system"` function that turns the arguments into references and calls a function of this crate. A panic ends
//! there. The type of each is checked against `ash`.

pub(crate) mod arguments;
mod core;
mod extension;
mod unserved;

use std::collections::HashMap;
use std::ffi::CStr;
use std::sync::LazyLock;

use ash::vk;

use crate::device::Device;
use crate::extensions::Extensions;
use crate::instance::Instance;
use extension::Table;

/// A command, as the tables have it.
#[derive(Clone, Copy)]
pub(crate) struct Command {
    /// Its name with `PFN_` before it.
    type_name: &'static str,
    function: unsafe extern "system" fn(),
}

/// What a command acts on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    Global,
    Instance,
    PhysicalDevice,
    Device,
}

/// Makes a function of each row and a table of all. `= path` is called with the arguments as its parameters want them.
macro_rules! commands {
    ($table:ident
        $($name:ident($($argument:ident: $type:ty),* $(,)?) $(-> $result:ty)? = $body:path;)*
    ) => {
        $(
            #[allow(non_snake_case, reason = "named as in C")]
            unsafe extern "system" fn $name($($argument: $type),*) $(-> $result)? {
                $crate::entry::arguments::guard(stringify!($name), || {
                    $(
                        // SAFETY: the program vouches for what it passes: the valid usage of the command.
                        let $argument = unsafe { $crate::entry::arguments::from($argument) };
                    )*
                    $body($($argument),*)
                })
            }
        )*
        $crate::entry::table! { $table $($name)* }
    };
}

/// The same for commands that nothing is called for: they refuse where they have a result, and do nothing where not.
macro_rules! refused {
    ($table:ident
        $($name:ident($($type:ty),* $(,)?) $(-> $result:ty)?;)*
    ) => {
        $(
            #[allow(non_snake_case, reason = "named as in C")]
            unsafe extern "system" fn $name($(_: $type),*) $(-> $result)? {
                $crate::entry::arguments::refuse(stringify!($name))
            }
        )*
        $crate::entry::table! { $table $($name)* }
    };
}

macro_rules! table {
    ($table:ident $($name:ident)*) => {
        pub(super) const $table: &[Command] = &[$(Command {
            type_name: stringify!($name),
            // SAFETY: a function pointer stays one; whoever calls it turns it back into the type of its name (Vulkan's contract).
            function: unsafe { std::mem::transmute::<vk::$name, unsafe extern "system" fn()>($name) },
        },)*];
    };
}

use {commands, refused, table};

#[derive(Clone, Copy)]
struct Entry {
    level: Level,
    /// Without it a device has not the command. Empty for core commands.
    extension: Extensions,
    function: unsafe extern "system" fn(),
}

static BY_NAME: LazyLock<HashMap<String, Entry>> = LazyLock::new(|| {
    let core = [
        (Level::Global, core::GLOBAL),
        (Level::Instance, core::INSTANCE),
        (Level::PhysicalDevice, core::PHYSICAL_DEVICE),
        (Level::Device, core::DEVICE),
        (Level::Device, unserved::DEVICE),
    ];
    let core = core.map(|(level, commands)| Table {
        level,
        extension: Extensions::empty(),
        commands,
        suffix: "",
    });
    let mut entries = HashMap::new();
    for table in core.iter().chain(&extension::TABLES) {
        for command in table.commands {
            let name = command.type_name;
            let name = name.strip_prefix("PFN_").unwrap_or(name);
            let entry = Entry {
                level: table.level,
                extension: table.extension,
                function: command.function,
            };
            entries.insert(format!("{name}{}", table.suffix), entry);
        }
    }
    for (extension, names) in extension::PROMOTED {
        for name in names {
            if let Some(&entry) = entries.get(*name) {
                entries.insert(format!("{name}KHR"), Entry { extension, ..entry });
            }
        }
    }
    entries
});

fn find(name: &CStr) -> Option<&'static Entry> {
    BY_NAME.get(name.to_str().ok()?)
}

/// The functions of the interface with the loader, by their names.
pub(crate) fn interface_proc_addr(name: &CStr) -> vk::PFN_vkVoidFunction {
    type Negotiate = unsafe extern "system" fn(*mut u32) -> vk::Result;
    type ProcAddr = vk::PFN_vkGetInstanceProcAddr;
    let negotiate: Negotiate = crate::vk_icdNegotiateLoaderICDInterfaceVersion;
    let physical: ProcAddr = crate::vk_icdGetPhysicalDeviceProcAddr;
    match name.to_bytes() {
        b"vk_icdNegotiateLoaderICDInterfaceVersion" => {
            // SAFETY: as in `table`.
            Some(unsafe {
                std::mem::transmute::<Negotiate, unsafe extern "system" fn()>(negotiate)
            })
        }
        b"vk_icdGetPhysicalDeviceProcAddr" => {
            // SAFETY: as in `table`.
            Some(unsafe { std::mem::transmute::<ProcAddr, unsafe extern "system" fn()>(physical) })
        }
        _ => None,
    }
}

/// `vkGetInstanceProcAddr`, `vk_icdGetInstanceProcAddr`: the commands of every level.
pub(crate) fn instance_proc_addr(
    instance: Option<&Instance>,
    name: &CStr,
) -> vk::PFN_vkVoidFunction {
    let entry = find(name)?;
    (instance.is_some() || entry.level == Level::Global).then_some(entry.function)
}

/// `vk_icdGetPhysicalDeviceProcAddr`: the commands of physical devices and no others.
pub(crate) fn physical_device_proc_addr(name: &CStr) -> vk::PFN_vkVoidFunction {
    let entry = find(name)?;
    (entry.level == Level::PhysicalDevice).then_some(entry.function)
}

/// `vkGetDeviceProcAddr`: the commands of devices, as far as their extensions are enabled.
pub(crate) fn device_proc_addr(device: &Device, name: &CStr) -> vk::PFN_vkVoidFunction {
    let entry = find(name)?;
    (entry.level == Level::Device && device.extensions().contains(entry.extension))
        .then_some(entry.function)
}

#[cfg(test)]
#[allow(clippy::panic, reason = "a test states what it expects")]
mod tests;
