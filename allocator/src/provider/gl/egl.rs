//! EGL: loaded at run time, displays that need no window system, and contexts of OpenGL 4.5 on them.
//!
//! libEGL stays loaded and displays stay initialised for the life of the process. A display is one per process, not per
//! caller, and eglTerminate ends it for everybody: another provider, the inventory, the VMM that embeds us.
//! And GL drivers leave threads and thread-local destructors behind that must not lose their code.

use std::ffi::{CStr, c_void};
use std::sync::OnceLock;

use khronos_egl as egl;

use super::error::GlError;

/// `EGL_PLATFORM_SURFACELESS_MESA` (EGL_MESA_platform_surfaceless): needs no window system and no device node.
const PLATFORM_SURFACELESS: egl::Enum = 0x31DD;
/// `EGL_PLATFORM_DEVICE_EXT` (EGL_EXT_platform_device): a display of a chosen device.
const PLATFORM_DEVICE: egl::Enum = 0x313F;

/// Devices that are asked for at most: more than any host has cards.
const MOST_DEVICES: egl::Int = 16;

/// What is used of EGL.
pub(super) type Egl = egl::DynamicInstance<egl::EGL1_5>;

static EGL: OnceLock<Result<Egl, String>> = OnceLock::new();

/// The process's libEGL.
pub(super) fn load() -> Result<&'static Egl, GlError> {
    EGL.get_or_init(|| {
        // SAFETY: loading runs the initialisers of the system's libEGL, which the host's administrator installed and
        // which may run in any process; the crate checks that the symbols of 1.5 are there. It is never unloaded.
        unsafe { Egl::load_required_from_filename("libEGL.so.1") }
            .map_err(|error| error.to_string())
    })
    .as_ref()
    .map_err(|reason| GlError::NoLoader {
        reason: reason.clone(),
    })
}

/// The address of a GL or EGL function.
pub(super) fn address(egl: &Egl, name: &CStr) -> *const c_void {
    name.to_str()
        .ok()
        .and_then(|name| egl.get_proc_address(name))
        .map_or(std::ptr::null(), |function| function as *const c_void)
}

/// An initialised display.
pub(super) struct Display {
    raw: egl::Display,
    /// For people: `surfaceless display`, `EGL device 0`.
    pub(super) name: String,
}

/// The displays that need no window system: the surfaceless one, or where that is missing, one per device.
pub(super) fn displays(egl: &Egl) -> Result<Vec<Display>, GlError> {
    let reason = match surfaceless(egl) {
        Ok(display) => return Ok(vec![display]),
        Err(reason) => reason,
    };
    match devices(egl) {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(format!("{reason}; no EGL device can be used")),
        Err(why) => Err(format!("{reason}; {why}")),
    }
    .map_err(|reason| GlError::NoDisplay { reason })
}

fn surfaceless(egl: &Egl) -> Result<Display, String> {
    if !client_has(egl, "EGL_MESA_platform_surfaceless") {
        return Err("no EGL_MESA_platform_surfaceless".to_owned());
    }
    // The surfaceless platform takes no native display: a null pointer is the default one.
    open(
        egl,
        PLATFORM_SURFACELESS,
        egl::DEFAULT_DISPLAY,
        "surfaceless display".to_owned(),
    )
}

/// A display of each device that EGL knows.
pub(super) fn devices(egl: &Egl) -> Result<Vec<Display>, String> {
    /// `eglQueryDevicesEXT`.
    type QueryDevices =
        unsafe extern "system" fn(egl::Int, *mut *mut c_void, *mut egl::Int) -> egl::Boolean;
    if !client_has(egl, "EGL_EXT_platform_device") {
        return Err("no EGL_EXT_platform_device".to_owned());
    }
    let query = egl
        .get_proc_address("eglQueryDevicesEXT")
        .ok_or("no eglQueryDevicesEXT")?;
    // SAFETY: this is the function's type in EGL_EXT_device_enumeration, which EGL_EXT_platform_device requires.
    let query = unsafe { std::mem::transmute::<extern "system" fn(), QueryDevices>(query) };
    let mut found = [std::ptr::null_mut(); MOST_DEVICES as usize];
    let mut count = 0;
    // SAFETY: `found` has room for as many as are asked for; both pointers are to live locals.
    if unsafe { query(MOST_DEVICES, found.as_mut_ptr(), &raw mut count) } == egl::FALSE {
        return Err(format!("eglQueryDevicesEXT: {:?}", egl.get_error()));
    }
    let count = usize::try_from(count).unwrap_or(0);
    Ok(found
        .into_iter()
        .take(count)
        .enumerate()
        .filter_map(|(index, device)| {
            open(egl, PLATFORM_DEVICE, device, format!("EGL device {index}"))
                .inspect_err(|why| log::info!("{why}"))
                .ok()
        })
        .collect())
}

/// Whether EGL itself, without a display, offers an extension.
fn client_has(egl: &Egl, name: &str) -> bool {
    egl.query_string(None, egl::EXTENSIONS)
        .is_ok_and(|all| contains(all, name))
}

fn contains(extensions: &CStr, name: &str) -> bool {
    extensions
        .to_string_lossy()
        .split_ascii_whitespace()
        .any(|extension| extension == name)
}

fn open(
    egl: &Egl,
    platform: egl::Enum,
    native: egl::NativeDisplayType,
    name: String,
) -> Result<Display, String> {
    let what = |call: &str, error: egl::Error| format!("{name}: {call}: {error}");
    // SAFETY: `native` is what the platform's extension asks for, both callers see to that: null for surfaceless, an
    // EGLDeviceEXT that eglQueryDevicesEXT gave (they live as long as the process) for devices.
    let raw = unsafe { egl.get_platform_display(platform, native, &[egl::ATTRIB_NONE]) }
        .map_err(|error| what("eglGetPlatformDisplay", error))?;
    egl.initialize(raw)
        .map_err(|error| what("eglInitialize", error))?;
    let extensions = egl
        .query_string(Some(raw), egl::EXTENSIONS)
        .map_err(|error| what("eglQueryString", error))?;
    if !contains(extensions, "EGL_KHR_surfaceless_context") {
        return Err(format!("{name}: no EGL_KHR_surfaceless_context"));
    }
    Ok(Display { raw, name })
}

/// An OpenGL context that is current on this thread, and on no other, until it is dropped.
pub(super) struct Current {
    egl: &'static Egl,
    display: egl::Display,
    context: egl::Context,
}

impl Current {
    /// Makes a context of OpenGL 4.5 core, robust where the display allows, and makes it current on this thread.
    pub(super) fn new(egl: &'static Egl, display: &Display, debug: bool) -> Result<Self, GlError> {
        let no = |reason: String| GlError::NoContext {
            display: display.name.clone(),
            reason,
        };
        let error = |call: &'static str| move |error: egl::Error| no(format!("{call}: {error}"));
        egl.bind_api(egl::OPENGL_API)
            .map_err(error("eglBindAPI(EGL_OPENGL_API)"))?;
        let wanted = [
            egl::RENDERABLE_TYPE,
            egl::OPENGL_BIT,
            egl::SURFACE_TYPE,
            0,
            egl::NONE,
        ];
        let config = egl
            .choose_first_config(display.raw, &wanted)
            .map_err(error("eglChooseConfig"))?
            .ok_or_else(|| no("no EGL configuration for OpenGL".to_owned()))?;
        let make = |robust| {
            let attributes = attributes(robust, debug);
            egl.create_context(display.raw, config, None, &attributes)
        };
        let context = make(true)
            .or_else(|_| make(false))
            .map_err(error("eglCreateContext(OpenGL 4.5 core)"))?;
        // From here on `drop` undoes it.
        let current = Self {
            egl,
            display: display.raw,
            context,
        };
        egl.make_current(display.raw, None, None, Some(context))
            .map_err(error("eglMakeCurrent"))?;
        Ok(current)
    }

    pub(super) fn egl(&self) -> &'static Egl {
        self.egl
    }
}

/// The attributes of a context. With `robust`, a GPU reset loses the context and is told by glGetGraphicsResetStatus.
fn attributes(robust: bool, debug: bool) -> Vec<egl::Int> {
    let truth = |value: bool| egl::Int::from(value);
    let mut attributes = vec![
        egl::CONTEXT_MAJOR_VERSION,
        4,
        egl::CONTEXT_MINOR_VERSION,
        5,
        egl::CONTEXT_OPENGL_PROFILE_MASK,
        egl::CONTEXT_OPENGL_CORE_PROFILE_BIT,
        egl::CONTEXT_OPENGL_DEBUG,
        truth(debug),
    ];
    if robust {
        attributes.extend([
            egl::CONTEXT_OPENGL_ROBUST_ACCESS,
            truth(true),
            egl::CONTEXT_OPENGL_RESET_NOTIFICATION_STRATEGY,
            egl::LOSE_CONTEXT_ON_RESET,
        ]);
    }
    attributes.push(egl::NONE);
    attributes
}

impl Drop for Current {
    fn drop(&mut self) {
        // Failures leave nothing to do: the display stays, see above.
        let _ = self.egl.make_current(self.display, None, None, None);
        let _ = self.egl.destroy_context(self.display, self.context);
        let _ = self.egl.release_thread();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_extension_is_found_by_its_whole_name() {
        assert!(contains(c"EGL_A EGL_AB", "EGL_AB"));
        assert!(!contains(c"EGL_ABC EGL_A", "EGL_AB"));
    }
}
