//! Values for the tests: one of each request with telling bytes, and any at all.

use hostblob_protocol::Request;
use hostblob_protocol::request::{
    Access, BindClientId, CacheMode, Copy, Create, CreateFlags, Fill, Flush, Free, Import,
    ImportResource, Invalidate, Map, MemoryRange, MemorySelector, OpenAnswers, Present, Publish,
    QueryBudget, Share, Unmap, WaitReleased, Withdraw,
};
use proptest::prelude::*;

const RANGE: MemoryRange = MemoryRange {
    client_id: 0x1122_3344_5566_7788,
    offset: 0x1000,
    length: 0x2_0000,
};

/// One of each request, in the order of their numbers; each field has its own bytes.
pub(crate) fn samples() -> Vec<Request> {
    vec![
        OpenAnswers {
            resource_id: 0x0102_0304,
            major: 1,
            minor: 2,
            requests: 0x1fff,
            create_flags: CreateFlags::HOST_VISIBLE | CreateFlags::SHAREABLE,
        }
        .into(),
        Create {
            client_id: 0x1122_3344_5566_7788,
            size: 0x0001_0000_2000,
            memory: MemorySelector::Index(3),
            flags: CreateFlags::HOST_VISIBLE | CreateFlags::MAP_DIRECTLY,
            alignment: 0x1000,
            expected_cache: CacheMode::WriteCombined,
        }
        .into(),
        BindClientId {
            client_id: 0x1122_3344_5566_7788,
        }
        .into(),
        Map {
            client_id: 0x1122_3344_5566_7788,
            expected_cache: CacheMode::Cached,
            access: Access::READ | Access::WRITE,
        }
        .into(),
        Unmap {
            client_id: 0x1122_3344_5566_7788,
        }
        .into(),
        Free {
            client_id: 0x1122_3344_5566_7788,
        }
        .into(),
        Flush { range: RANGE }.into(),
        Invalidate { range: RANGE }.into(),
        Fill {
            range: RANGE,
            value: 0xdead_beef,
        }
        .into(),
        Copy {
            source: RANGE,
            destination_client_id: 0x99aa_bbcc_ddee_ff00,
            destination_offset: 0x3000,
        }
        .into(),
        Import {
            client_id: 0x1122_3344_5566_7788,
            uuid: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
        }
        .into(),
        QueryBudget { heap: 2 }.into(),
        ImportResource {
            client_id: 0x1122_3344_5566_7788,
            resource_id: 0x0102_0304,
        }
        .into(),
        Share {
            client_id: 0x1122_3344_5566_7788,
        }
        .into(),
        Publish {
            client_id: 0x1122_3344_5566_7788,
            offset: 0x2_0000,
            width: 640,
            height: 480,
            stride: 2560,
            fourcc: 0x3432_5258,
            modifier: 0x0102_0304_0506_0708,
        }
        .into(),
        Withdraw {
            client_id: 0x1122_3344_5566_7788,
            offset: 0x2_0000,
        }
        .into(),
        Present {
            client_id: 0x1122_3344_5566_7788,
            offset: 0x2_0000,
        }
        .into(),
        WaitReleased {
            client_id: 0x1122_3344_5566_7788,
            offset: 0x2_0000,
            timeout: 1_000_000_000,
        }
        .into(),
    ]
}

fn create_flags() -> impl Strategy<Value = CreateFlags> {
    any::<u32>().prop_map(CreateFlags::from_bits_truncate)
}

fn cache_mode() -> impl Strategy<Value = CacheMode> {
    prop_oneof![
        Just(CacheMode::Any),
        Just(CacheMode::Cached),
        Just(CacheMode::Uncached),
        Just(CacheMode::WriteCombined),
    ]
}

fn range() -> impl Strategy<Value = MemoryRange> {
    any::<(u64, u64, u64)>().prop_map(|(client_id, offset, length)| MemoryRange {
        client_id,
        offset,
        length,
    })
}

/// Any request, with any bytes in its fields.
pub(crate) fn request() -> impl Strategy<Value = Request> {
    let open = (any::<(u32, u16, u16, u64)>(), create_flags());
    let selector = prop_oneof![
        any::<u32>().prop_map(MemorySelector::Index),
        any::<u32>().prop_map(MemorySelector::Properties),
    ];
    let create = (
        any::<(u64, u64, u64)>(),
        selector,
        create_flags(),
        cache_mode(),
    );
    let map = (
        any::<u64>(),
        cache_mode(),
        any::<u32>().prop_map(Access::from_bits_truncate),
    );
    prop_oneof![
        open.prop_map(|((resource_id, major, minor, requests), create_flags)| {
            OpenAnswers {
                resource_id,
                major,
                minor,
                requests,
                create_flags,
            }
            .into()
        }),
        create.prop_map(
            |((client_id, size, alignment), memory, flags, expected_cache)| {
                Create {
                    client_id,
                    size,
                    memory,
                    flags,
                    alignment,
                    expected_cache,
                }
                .into()
            }
        ),
        any::<u64>().prop_map(|client_id| BindClientId { client_id }.into()),
        map.prop_map(|(client_id, expected_cache, access)| {
            Map {
                client_id,
                expected_cache,
                access,
            }
            .into()
        }),
        any::<u64>().prop_map(|client_id| Unmap { client_id }.into()),
        any::<u64>().prop_map(|client_id| Free { client_id }.into()),
        range().prop_map(|range| Flush { range }.into()),
        range().prop_map(|range| Invalidate { range }.into()),
        (range(), any::<u32>()).prop_map(|(range, value)| Fill { range, value }.into()),
        (range(), any::<(u64, u64)>()).prop_map(
            |(source, (destination_client_id, destination_offset))| {
                Copy {
                    source,
                    destination_client_id,
                    destination_offset,
                }
                .into()
            }
        ),
        any::<(u64, [u8; 16])>().prop_map(|(client_id, uuid)| Import { client_id, uuid }.into()),
        any::<u32>().prop_map(|heap| QueryBudget { heap }.into()),
        sharing_request(),
    ]
}

fn sharing_request() -> impl Strategy<Value = Request> {
    let publish = (any::<(u64, u64)>(), any::<(u32, u32, u32, u32, u64)>());
    prop_oneof![
        any::<(u64, u32)>().prop_map(|(client_id, resource_id)| {
            ImportResource {
                client_id,
                resource_id,
            }
            .into()
        }),
        any::<u64>().prop_map(|client_id| Share { client_id }.into()),
        publish.prop_map(
            |((client_id, offset), (width, height, stride, fourcc, modifier))| {
                Publish {
                    client_id,
                    offset,
                    width,
                    height,
                    stride,
                    fourcc,
                    modifier,
                }
                .into()
            }
        ),
        any::<(u64, u64)>().prop_map(|(client_id, offset)| Withdraw { client_id, offset }.into()),
        any::<(u64, u64)>().prop_map(|(client_id, offset)| Present { client_id, offset }.into()),
        any::<(u64, u64, u64)>().prop_map(|(client_id, offset, timeout)| {
            WaitReleased {
                client_id,
                offset,
                timeout,
            }
            .into()
        }),
    ]
}

#[test]
fn there_is_a_sample_of_each_request() {
    let types: Vec<u16> = samples().iter().map(Request::structure_type).collect();
    assert_eq!(types, Request::TYPES);
}
