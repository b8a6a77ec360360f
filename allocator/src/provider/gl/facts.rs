//! What an OpenGL context says of itself.

use std::ffi::c_uint;
use std::fmt;

use glow::HasContext;

use super::egl::{self, Current};

/// `GPU_MEMORY_INFO_DEDICATED_VIDMEM_NVX` (GL_NVX_gpu_memory_info): KiB.
const DEDICATED_VIDMEM_NVX: u32 = 0x9047;
/// `VBO_FREE_MEMORY_ATI` (GL_ATI_meminfo): KiB, in the first of four numbers.
const VBO_FREE_MEMORY_ATI: u32 = 0x87FB;
/// `GL_NUM_DEVICE_UUIDS_EXT` (GL_EXT_memory_object).
const NUM_DEVICE_UUIDS_EXT: u32 = 0x9596;
/// `GL_DEVICE_UUID_EXT`.
const DEVICE_UUID_EXT: u32 = 0x9597;
/// `GL_DRIVER_UUID_EXT`.
const DRIVER_UUID_EXT: u32 = 0x9598;

/// Renderers that are the CPU, by how their names begin.
const SOFTWARE: [&str; 3] = ["llvmpipe", "softpipe", "SWR"];

/// What an OpenGL context says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GlFacts {
    /// `GL_RENDERER`.
    pub renderer: String,
    /// `GL_VENDOR`.
    pub vendor: String,
    /// `GL_VERSION`.
    pub version: String,
    /// GL_AMD_pinned_memory: buffers over window memory.
    pub pinned_memory: bool,
    /// GL_ARB_buffer_storage: persistent mapped buffers.
    pub buffer_storage: bool,
    /// GL_EXT_memory_object_fd: import of dma-bufs and Vulkan memory.
    pub memory_object_fd: bool,
    /// A renderer on the CPU: its memory is the host's.
    pub software: bool,
    /// Bytes of memory of its own, where GL_NVX_gpu_memory_info or GL_ATI_meminfo says (the latter: what is free).
    pub video_memory: Option<u64>,
    /// `GL_DEVICE_UUID_EXT`, where GL_EXT_memory_object says.
    pub device_uuid: Option<[u8; 16]>,
    /// `GL_DRIVER_UUID_EXT`, likewise.
    pub driver_uuid: Option<[u8; 16]>,
}

impl fmt::Display for GlFacts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |offered| if offered { "offered" } else { "not offered" };
        writeln!(f, "{}, OpenGL {}", self.renderer, self.version)?;
        match self.video_memory {
            Some(size) => writeln!(f, "  video memory: {} MiB", size >> 20)?,
            None => writeln!(f, "  video memory: not told")?,
        }
        writeln!(f, "  pinned memory: {}", word(self.pinned_memory))?;
        writeln!(f, "  buffer storage: {}", word(self.buffer_storage))?;
        write!(f, "  memory objects by fd: {}", word(self.memory_object_fd))
    }
}

impl GlFacts {
    /// Asks the context that is current.
    pub(super) fn read(current: &Current, gl: &glow::Context) -> Self {
        let has = |name| gl.supported_extensions().contains(name);
        // SAFETY: the caller's `current` keeps the context of `gl` current on this thread; the names are valid for
        // glGetString.
        let [renderer, vendor, version] = [glow::RENDERER, glow::VENDOR, glow::VERSION]
            .map(|name| unsafe { gl.get_parameter_string(name) });
        let uuids = has("GL_EXT_memory_object")
            .then(|| Uuids::read(current, gl))
            .flatten();
        Self {
            pinned_memory: has("GL_AMD_pinned_memory"),
            buffer_storage: has("GL_ARB_buffer_storage"),
            memory_object_fd: has("GL_EXT_memory_object_fd"),
            software: SOFTWARE.iter().any(|name| renderer.starts_with(name)),
            video_memory: video_memory(gl),
            device_uuid: uuids.as_ref().map(|uuids| uuids.device),
            driver_uuid: uuids.map(|uuids| uuids.driver),
            renderer,
            vendor,
            version,
        }
    }

    /// `GL_RENDERER`'s vendor and version, in one line.
    pub(super) fn driver(&self) -> String {
        format!("{}, OpenGL {}", self.vendor, self.version)
    }
}

fn video_memory(gl: &glow::Context) -> Option<u64> {
    let parameter = if gl.supported_extensions().contains("GL_NVX_gpu_memory_info") {
        DEDICATED_VIDMEM_NVX
    } else if gl.supported_extensions().contains("GL_ATI_meminfo") {
        VBO_FREE_MEMORY_ATI
    } else {
        return None;
    };
    let mut numbers = [0; 4];
    // SAFETY: a context is current (see `read`), the extension of the parameter is offered, and the larger of the two
    // writes four numbers.
    unsafe { gl.get_parameter_i32_slice(parameter, &mut numbers) };
    let [kib, ..] = numbers;
    // A card of more than 2 TiB would come out negative, and one without memory of its own as 0.
    u64::try_from(kib)
        .ok()
        .filter(|kib| *kib > 0)
        .map(|kib| kib << 10)
}

struct Uuids {
    device: [u8; 16],
    driver: [u8; 16],
}

impl Uuids {
    /// GL_EXT_memory_object must be offered.
    fn read(current: &Current, gl: &glow::Context) -> Option<Self> {
        /// `glGetUnsignedBytevEXT`.
        type Get = unsafe extern "system" fn(c_uint, *mut u8);
        /// `glGetUnsignedBytei_vEXT`.
        type GetIndexed = unsafe extern "system" fn(c_uint, c_uint, *mut u8);
        let [get, get_indexed] = [c"glGetUnsignedBytevEXT", c"glGetUnsignedBytei_vEXT"]
            .map(|name| egl::address(current.egl(), name));
        if get.is_null() || get_indexed.is_null() {
            return None;
        }
        // SAFETY: a context is current (see `GlFacts::read`); the extension is offered.
        if unsafe { gl.get_parameter_i32(NUM_DEVICE_UUIDS_EXT) } < 1 {
            return None;
        }
        // SAFETY: not null, and this is its type in GL_EXT_memory_object.
        let get = unsafe { std::mem::transmute::<*const std::ffi::c_void, Get>(get) };
        // SAFETY: likewise.
        let get_indexed =
            unsafe { std::mem::transmute::<*const std::ffi::c_void, GetIndexed>(get_indexed) };
        let mut found = Self {
            device: [0; 16],
            driver: [0; 16],
        };
        // SAFETY: the device of index 0 exists, just asked; GL_UUID_SIZE_EXT is 16 bytes.
        unsafe { get_indexed(DEVICE_UUID_EXT, 0, found.device.as_mut_ptr()) };
        // SAFETY: likewise 16 bytes.
        unsafe { get(DRIVER_UUID_EXT, found.driver.as_mut_ptr()) };
        Some(found)
    }
}
