//! What the host's OpenGL offers for memory: one surfaceless context is made, asked, and destroyed.

use std::ffi::CStr;

use glow::HasContext;
use khronos_egl as egl;

/// `EGL_PLATFORM_SURFACELESS_MESA` (EGL_MESA_platform_surfaceless): needs no window system.
const PLATFORM_SURFACELESS: egl::Enum = 0x31DD;

/// The EGL that is loaded at run time: a host without it still starts.
type Egl = egl::DynamicInstance<egl::EGL1_5>;

/// What an OpenGL context says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GlFacts {
    /// `GL_RENDERER`.
    pub renderer: String,
    /// `GL_VERSION`.
    pub version: String,
    /// GL_AMD_pinned_memory: buffers over window memory.
    pub pinned_memory: bool,
    /// GL_ARB_buffer_storage: persistent mapped buffers.
    pub buffer_storage: bool,
    /// GL_EXT_memory_object_fd: import of dma-bufs and Vulkan memory.
    pub memory_object_fd: bool,
}

impl std::fmt::Display for GlFacts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let word = |offered| if offered { "offered" } else { "not offered" };
        writeln!(f, "{}, OpenGL {}", self.renderer, self.version)?;
        writeln!(f, "  pinned memory: {}", word(self.pinned_memory))?;
        writeln!(f, "  buffer storage: {}", word(self.buffer_storage))?;
        write!(f, "  memory objects by fd: {}", word(self.memory_object_fd))
    }
}

/// Asks the host's OpenGL. The error is one line: what is missing.
pub fn survey() -> Result<GlFacts, String> {
    // SAFETY: libEGL.so.1 is the system's EGL, whose initialisers may run in any process; the crate checks the symbols.
    let egl = unsafe { Egl::load_required_from_filename("libEGL.so.1") }
        .map_err(|error| format!("libEGL.so.1 (Debian: libegl1): {error}"))?;
    // SAFETY: the surfaceless platform takes no native display: a null pointer is the default one.
    let display = unsafe {
        egl.get_platform_display(
            PLATFORM_SURFACELESS,
            egl::DEFAULT_DISPLAY,
            &[egl::ATTRIB_NONE],
        )
    }
    .map_err(|error| format!("no surfaceless EGL display: {error}"))?;
    egl.initialize(display)
        .map_err(|error| format!("eglInitialize: {error}"))?;
    let facts = ask(&egl, display);
    // Ends what initialize() began; a failure leaves nothing that we could use.
    let _ = egl.terminate(display);
    facts
}

fn ask(egl: &Egl, display: egl::Display) -> Result<GlFacts, String> {
    let error = |what: &'static str| move |error: egl::Error| format!("{what}: {error}");
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
        .choose_first_config(display, &wanted)
        .map_err(error("eglChooseConfig"))?
        .ok_or("no EGL configuration for OpenGL")?;
    let attributes = [
        egl::CONTEXT_MAJOR_VERSION,
        4,
        egl::CONTEXT_MINOR_VERSION,
        5,
        egl::CONTEXT_OPENGL_PROFILE_MASK,
        egl::CONTEXT_OPENGL_CORE_PROFILE_BIT,
        egl::NONE,
    ];
    let context = egl
        .create_context(display, config, None, &attributes)
        .map_err(error("eglCreateContext(OpenGL 4.5 core)"))?;
    let facts = egl
        .make_current(display, None, None, Some(context))
        .map_err(error("eglMakeCurrent"))
        .map(|()| read(egl));
    let _ = egl.make_current(display, None, None, None);
    let _ = egl.destroy_context(display, context);
    facts
}

/// Reads the facts of the context that is current.
fn read(egl: &Egl) -> GlFacts {
    let load = |name: &CStr| {
        name.to_str()
            .ok()
            .and_then(|name| egl.get_proc_address(name))
            .map_or(std::ptr::null(), |function| {
                function as *const std::ffi::c_void
            })
    };
    // SAFETY: a context is current on this thread until the caller releases it, and the functions are its own.
    let gl = unsafe { glow::Context::from_loader_function_cstr(load) };
    let has = |name| gl.supported_extensions().contains(name);
    // SAFETY: as above; both names are valid for glGetString.
    let [renderer, version] =
        [glow::RENDERER, glow::VERSION].map(|name| unsafe { gl.get_parameter_string(name) });
    GlFacts {
        renderer,
        version,
        pinned_memory: has("GL_AMD_pinned_memory"),
        buffer_storage: has("GL_ARB_buffer_storage"),
        memory_object_fd: has("GL_EXT_memory_object_fd"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The test machine has libegl1 and libgl1-mesa-dri: llvmpipe at least.
    #[test]
    fn the_host_is_described() {
        let facts =
            survey().expect("install libegl1 and libgl1-mesa-dri, or run cargo xtask setup");
        assert!(facts.version.starts_with("4."), "{facts}");
        assert!(facts.buffer_storage, "core since OpenGL 4.4: {facts}");
        // A second time: nothing was left behind.
        assert_eq!(survey().as_ref(), Ok(&facts));
    }
}
