//! What the end-to-end tests do with a device: written once, run in a virtual machine and over the local socket.
//!
//! | module | answers the question |
//! |---|---|
//! | [`scenario`] | what must hold, whatever the transport? |
//! | [`peer`] | what does another process do meanwhile? |
//! | [`exports`] | what do processes beside the daemon see? |
//! | [`virtqueue`] | what can a guest do that is its own driver? |
//! | [`raw`] | what does the kernel offer without our library? |
//! | [`cross_domain`], [`wayland`] | what does a Wayland client need, and do? |
//! | [`report`] | how does a program in the guest tell the harness? |
//! | [`latency`] | how long does it take? |
//!
//! The programs in `bin/` are thin: they pick from here. All are linked statically for the guest.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "tests: what does not hold must stop them, and the sizes are their own"
)]

pub mod cross_domain;
pub mod exports;
pub mod latency;
pub mod pattern;
pub mod peer;
pub mod raw;
pub mod report;
pub mod scenario;
pub mod virtqueue;
pub mod wayland;
