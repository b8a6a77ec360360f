//! hostblob behind the C interface of rutabaga_gfx (`rutabaga_gfx_ffi.h` 0.1.6), for VMMs that load that library: QEMU's
//! `virtio-gpu-rutabaga`, for one. The capset of hostblob is added to those of an embedded rutabaga_gfx, which serves everything else.
//!
//! | module | answers the question |
//! |---|---|
//! | [`ffi`], [`types`] | what can be called, with what? |
//! | `boundary`, `error` | how are pointers, handles and panics kept from doing harm? which number is which error? |
//! | `device`, `routing` | what is one device? who of the two gets a call? |
//! | `ours`, `pages`, `places` | what does a VMM's memory mean to the allocator, and where does it see blobs? |
//! | `theirs` | what is rutabaga_gfx not trusted with? |
//! | `fences` | when is the VMM called back? |
//! | `settings`, `messages` | what does the operator set, and where is he told what? |
//!
//! Rules for every function:
//! - 0 is good, a negative errno is not: -EINVAL for what makes no sense (rutabaga_gfx says so to everything), -ENOMEM at limits, -EOPNOTSUPP
//!   for what is not served, -EIO where a GPU driver refuses, -ENODEV from `rutabaga_init` without a GPU, -ESRCH for a panic.
//! - On an error nothing has changed, and outputs are not written. The reason goes to the debug callback.
//! - A handle is no address: one that was finished, or never initialised, is refused.
//! - Calls may come from any thread; one at a time is served.

#![allow(non_camel_case_types, reason = "these are C names")]

mod boundary;
mod device;
mod error;
mod fences;
pub mod ffi;
mod messages;
mod ours;
mod pages;
mod places;
mod routing;
mod settings;
mod theirs;
pub mod types;
