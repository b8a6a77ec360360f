//! The C API: `hostblob_guest.h` is generated from these files.
//!
//! | module | answers the question |
//! |---|---|
//! | [`status`] | which number is which error, and what does it say? |
//! | [`types`] | which structures cross the boundary? |
//! | [`device`], [`memory`], [`fence`], [`share`], [`buffer`], [`buffer_pool`] | what can be called? |
//! | `handle` | how are pointers, sizes and panics kept from doing harm? |
//!
//! Rules for every function:
//! - Handles are owned by the caller until the function that its documentation names takes them. NULL is
//!   refused, and so is a handle of another kind; a handle already given back is not detectable.
//! - All functions may be called from any thread, on the same handle at the same time, except with the call that gives
//!   that handle back.
//! - On an error, outputs are NULL, -1 or untouched, and [`status::hb_last_error`] says more, to the same thread.
//! - Structures begin with their size in bytes, set by the caller, so that old programs and new libraries agree on
//!   what is there. Fields that are not set are 0.
//! - A panic never crosses the boundary: it becomes `HB_ERROR_INTERNAL`.

#![allow(non_camel_case_types, reason = "these are C names")]

pub mod buffer;
pub mod buffer_pool;
pub mod device;
pub mod fence;
mod handle;
pub mod memory;
pub mod share;
pub mod status;
pub mod types;
