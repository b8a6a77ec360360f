//! The GL functions that handle memory, with the types of the specification.
//!
//! glow serves the queries; its buffer calls take 32-bit sizes and slices, and slices of memory that a guest writes are
//! not to be had. The context is 4.5, so each function is there: all are core since then.

use std::ffi::{c_int, c_uint, c_void};

use super::egl::Egl;
use super::error::GlError;

/// `GLsync`.
pub(super) type RawSync = *const c_void;

macro_rules! functions {
    ($($(#[$doc:meta])* $field:ident = $name:literal ($($argument:ty),*) $(-> $result:ty)?;)*) => {
        /// Functions of the context that is current.
        pub(super) struct Functions {
            $($(#[$doc])* pub(super) $field: unsafe extern "system" fn($($argument),*) $(-> $result)?,)*
        }

        impl Functions {
            /// Asks EGL for all of them.
            pub(super) fn load(egl: &Egl) -> Result<Self, GlError> {
                Ok(Self {
                    $($field: {
                        let function = egl.get_proc_address($name).ok_or_else(|| missing($name))?;
                        // SAFETY: this is the function's type in the GL 4.5 specification (glcorearb.h), by its name.
                        unsafe {
                            std::mem::transmute::<
                                extern "system" fn(),
                                unsafe extern "system" fn($($argument),*) $(-> $result)?,
                            >(function)
                        }
                    },)*
                })
            }
        }
    };
}

functions! {
    get_error = "glGetError"() -> c_uint;
    get_graphics_reset_status = "glGetGraphicsResetStatus"() -> c_uint;
    /// How many, names.
    gen_buffers = "glGenBuffers"(c_int, *mut c_uint);
    /// How many, names.
    create_buffers = "glCreateBuffers"(c_int, *mut c_uint);
    /// How many, names.
    delete_buffers = "glDeleteBuffers"(c_int, *const c_uint);
    /// Target, name.
    bind_buffer = "glBindBuffer"(c_uint, c_uint);
    /// Target, size, data, usage.
    buffer_data = "glBufferData"(c_uint, isize, *const c_void, c_uint);
    /// Name, size, data, flags.
    named_buffer_storage = "glNamedBufferStorage"(c_uint, isize, *const c_void, c_uint);
    /// Name, offset, length, access.
    map_named_buffer_range = "glMapNamedBufferRange"(c_uint, isize, isize, c_uint) -> *mut c_void;
    /// Name, internal format, offset, size, format, type, value.
    clear_named_buffer_sub_data = "glClearNamedBufferSubData"(c_uint, c_uint, isize, isize, c_uint, c_uint, *const c_void);
    /// From, to, offset, offset, size.
    copy_named_buffer_sub_data = "glCopyNamedBufferSubData"(c_uint, c_uint, isize, isize, isize);
    memory_barrier = "glMemoryBarrier"(c_uint);
    /// Condition, flags.
    fence_sync = "glFenceSync"(c_uint, c_uint) -> RawSync;
    /// Sync, flags, nanoseconds.
    client_wait_sync = "glClientWaitSync"(RawSync, c_uint, u64) -> c_uint;
    delete_sync = "glDeleteSync"(RawSync);
    flush = "glFlush"();
    finish = "glFinish"();
}

fn missing(name: &'static str) -> GlError {
    GlError::Host {
        what: "eglGetProcAddress",
        reason: format!("no {name}"),
    }
}
