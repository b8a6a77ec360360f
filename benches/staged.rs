//! The way into the device, one function for each command, so that callgrind tells them apart.

use std::hint::black_box;

use hostblob_device::gpu::{Gpu, NoPages, Response};

/// Hands a command over, and returns the response.
pub type Stage = fn(&mut Gpu, &[u8]) -> Response;

macro_rules! stages {
    ($($(#[$doc:meta])* $name:ident)*) => {
        $(
            $(#[$doc])*
            ///
            /// # Panics
            /// Where the response comes later: that of a fence would.
            #[inline(never)]
            pub fn $name(gpu: &mut Gpu, command: &[u8]) -> Response {
                // Otherwise all are one function to the linker.
                black_box(stringify!($name));
                gpu.execute(0, command, &NoPages).expect("no fence, no waiting")
            }
        )*
    };
}

stages! {
    /// SUBMIT_3D.
    submit
    /// RESOURCE_CREATE_BLOB.
    create_blob
    /// RESOURCE_MAP_BLOB.
    map_blob
    /// RESOURCE_UNMAP_BLOB.
    unmap_blob
    /// RESOURCE_UNREF.
    unref
    /// All others.
    other
}
