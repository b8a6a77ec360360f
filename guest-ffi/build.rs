//! Names the shared library: programs linked against it look for this name at run time, whatever the file is called.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libhostblob_guest.so.0");
}
