//! The capset's bytes as seen from outside: golden bytes, arbitrary bytes, hosts of other versions, the document.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "helpers of tests state what they expect, as tests do"
)]

mod bytes;
#[path = "../../../protocol/tests/wire/generated.rs"]
mod generated;
#[path = "../../../protocol/tests/wire/golden.rs"]
mod golden;
mod layout;
mod negotiation;
mod values;
