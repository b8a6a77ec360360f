//! Exchanges with VMMs: crosvm's, QEMU's, and those that no sane VMM makes.

#![allow(
    clippy::cast_possible_truncation,
    reason = "sizes of this test are small"
)]

mod cut;
mod exchanges;
mod hostile;
mod lookups;
mod objects;
mod on_demand;
mod state;
mod vmm;
