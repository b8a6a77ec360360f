//! What `cargo xtask` does, and what the end-to-end tests build on: everything that is around hostblob.
//!
//! | module | answers the question |
//! |---|---|
//! | [`cache`] | where is what was downloaded, and is it whole? |
//! | [`apt`] | how do Debian's packages get there? |
//! | [`host_packages`] | does this host have a Vulkan driver? |
//! | [`environment`] | which QEMU, which guest kernel? |
//! | [`kernel`] | what does the guest boot? |
//! | [`libraries`] | which libraries do programs of the host need in the guest? |
//! | [`peers`] | what is hostblob measured against? |
//! | [`initramfs`] | what does the guest boot into? |
//! | [`vm`] | how does a program run in the guest? |
//! | [`daemon`] | how is hostblobd started and ended? |
//! | [`nightly`] | how is something built with nightly Rust? |
//! | [`build`] | which binaries are needed? |
//! | [`command`] | what does each sub-command do? |

pub mod apt;
pub mod build;
pub mod cache;
pub mod command;
pub mod daemon;
pub mod environment;
pub mod host_packages;
pub mod initramfs;
pub mod kernel;
pub mod libraries;
pub mod nightly;
pub mod peers;
pub mod progress;
pub mod vm;
