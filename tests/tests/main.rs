//! End-to-end tests: the whole of hostblob on stock parts.
//!
//! | module | what runs | where |
//! |---|---|---|
//! | `socket` | every scenario | over the local socket, providers `system` and `vulkan` |
//! | `vm` | every scenario, the programs, the C example | in QEMU over vfio-user and vhost-user, Vulkan on the host |
//! | `vulkan` | stock Vulkan programs, and allocators, on our driver | in QEMU |
//! | `lifecycle` | resets, reboots, stops | in QEMU over both |
//! | `killed` | memory that comes and goes, until QEMU is killed, again and again | in QEMU over both |
//! | `driver` | GPU work, while the process with the driver is killed | over the local socket, and in QEMU |
//! | `icd` | programs that know Vulkan alone, and each error they can meet | over the local socket |
//! | `faults` | a client, while system calls of the daemon fail | over the local socket |
//! | `soak` | many lives of memories, while what the daemon holds is counted | over the local socket |
//! | `daemon` | start, end, wrong flags | on the host |
//!
//! `vm`, `killed` and `lifecycle` need what `cargo xtask setup` fetches, and fail where it is missing.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests: what does not hold must stop them"
)]

#[path = "../fixture/mod.rs"]
mod fixture;

mod daemon;
mod driver;
mod exports;
mod faults;
mod icd;
mod killed;
mod lifecycle;
mod renderers;
mod soak;
mod socket;
mod vm;
mod vulkan;
