//! `docs/protocol.md` says what the code does: its tables are made from the code, committed, and compared here.
//!
//! `HOSTBLOB_BLESS=1` writes the tables anew between their markers.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use hostblob_protocol::Status;

use crate::generated::compare;
use crate::layout::{fields, identity};
use crate::values::samples;

/// `VkResult` values, from the Vulkan specification and not from the crate.
fn vk_name(value: i32) -> &'static str {
    let names = BTreeMap::from([
        (0, "VK_SUCCESS"),
        (2, "VK_TIMEOUT"),
        (-1, "VK_ERROR_OUT_OF_HOST_MEMORY"),
        (-2, "VK_ERROR_OUT_OF_DEVICE_MEMORY"),
        (-4, "VK_ERROR_DEVICE_LOST"),
        (-5, "VK_ERROR_MEMORY_MAP_FAILED"),
        (-8, "VK_ERROR_FEATURE_NOT_PRESENT"),
        (-9, "VK_ERROR_INCOMPATIBLE_DRIVER"),
        (-10, "VK_ERROR_TOO_MANY_OBJECTS"),
        (-13, "VK_ERROR_UNKNOWN"),
        (-1_000_072_003, "VK_ERROR_INVALID_EXTERNAL_HANDLE"),
    ]);
    names[&value]
}

#[test]
fn statuses_are_documented() {
    let mut table = "| number | name | VkResult | message |\n|---|---|---|---|\n".to_owned();
    for status in Status::ALL {
        writeln!(
            table,
            "| {} | {status:?} | `{}` | {status} |",
            status.number(),
            vk_name(status.vk_result())
        )
        .unwrap();
    }
    compare("statuses", &table);
}

#[test]
fn request_numbers_are_documented() {
    let mut table =
        "| number | request | structure type | payload bytes |\n|---|---|---|---|\n".to_owned();
    for request in samples() {
        let (number, name) = identity(&request);
        let length: usize = fields(&request).iter().map(|field| field.bytes.len()).sum();
        writeln!(
            table,
            "| {number} | {name} | {:#06x} | {length} |",
            request.structure_type()
        )
        .unwrap();
    }
    compare("requests", &table);
}

#[test]
fn request_fields_are_documented() {
    for request in samples() {
        let mut table = "| offset | type | field | meaning |\n|---|---|---|---|\n".to_owned();
        let mut offset = 0;
        for field in fields(&request) {
            writeln!(
                table,
                "| {offset} | {} | {} | {} |",
                field.kind, field.name, field.meaning
            )
            .unwrap();
            offset += field.bytes.len();
        }
        compare(&format!("request {}", identity(&request).1), &table);
    }
}
