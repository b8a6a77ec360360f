//! The wire format as seen from outside: golden bytes, arbitrary bytes, other versions, the document.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "helpers of tests state what they expect, as tests do"
)]

mod compatibility;
mod documented;
mod export;
mod generated;
mod golden;
mod golden_files;
mod layout;
mod properties;
mod ring;
mod values;
