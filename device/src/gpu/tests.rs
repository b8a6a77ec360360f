//! The device over the fake provider: each command, its error codes, and the bytes of its response.

use hostblob_allocator::Config as Limits;
use hostblob_allocator::provider::fake::FakeProvider;
use hostblob_protocol::EnvelopeBuilder;
use hostblob_protocol::request::{
    CacheMode, Create, CreateFlags, Fill, Import, MemoryRange, MemorySelector,
};
use hostblob_protocol::virtio_gpu::{
    CmdSubmit, CtxCreate, FLAG_FENCE, FLAG_INFO_RING_IDX, GetCapset, GetCapsetInfo, MapInfo,
    ResourceCreateBlob, ResourceMapBlob, ResourceOnly, blob_flag, blob_mem, cmd, map_cache, resp,
};
use zerocopy::byteorder::little_endian::U64;
use zerocopy::{Immutable, IntoBytes};

use super::*;

pub(crate) mod extremes;
mod images;
mod pages;
mod renderers;

pub(crate) const CAPSET_ID: u32 = 48;
pub(crate) const PAGE: u64 = 4096;

fn gpu() -> (Gpu, Arc<FakeProvider>) {
    gpu_in(WindowMode::Premapped)
}

fn gpu_in(mode: WindowMode) -> (Gpu, Arc<FakeProvider>) {
    let (host, fake) = host();
    (
        Gpu::in_mode(&host, CAPSET_ID, BlobMem::all(), mode, Arc::new(|| {})).unwrap(),
        fake,
    )
}

/// A window of 2 MiB, and 1 MiB for all.
pub(crate) fn host() -> (Arc<Host>, Arc<FakeProvider>) {
    let fake = Arc::new(FakeProvider::new());
    let limits = Limits {
        window_size: 2 << 20,
        memory_limit: 1 << 20,
        context_limit: 1 << 20,
        context_share: 0,
        warm: hostblob_allocator::window::Warmth::up_to(0),
    };
    (Host::new(Arc::clone(&fake) as _, limits).unwrap(), fake)
}

pub(crate) fn header(cmd_type: u32, context: u32) -> CtrlHdr {
    CtrlHdr {
        cmd_type: cmd_type.into(),
        ctx_id: context.into(),
        ..CtrlHdr::default()
    }
}

pub(crate) fn bytes<T: IntoBytes + Immutable + ?Sized>(header: CtrlHdr, body: &T) -> Vec<u8> {
    [header.as_bytes(), body.as_bytes()].concat()
}

fn run<T: IntoBytes + Immutable + ?Sized>(
    gpu: &mut Gpu,
    kind: u32,
    context: u32,
    body: &T,
) -> Response {
    gpu.execute(0, &bytes(header(kind, context), body), &NoPages)
        .expect("no fence, no waiting")
}

pub(crate) fn context_body() -> CtxCreate {
    CtxCreate {
        context_init: CAPSET_ID.into(),
        ..CtxCreate::default()
    }
}

pub(crate) fn blob(resource: u32, blob_id: u64, pages: u64) -> ResourceCreateBlob {
    ResourceCreateBlob {
        resource_id: resource.into(),
        blob_mem: blob_mem::HOST3D.into(),
        blob_flags: blob_flag::USE_MAPPABLE.into(),
        nr_entries: 0.into(),
        blob_id: blob_id.into(),
        size: (pages * PAGE).into(),
    }
}

pub(crate) fn map(resource: u32, offset: u64) -> ResourceMapBlob {
    ResourceMapBlob {
        resource_id: resource.into(),
        offset: offset.into(),
        ..Default::default()
    }
}

pub(crate) fn only(resource: u32) -> ResourceOnly {
    ResourceOnly {
        resource_id: resource.into(),
        ..Default::default()
    }
}

pub(crate) fn submit(data: &[u8]) -> Vec<u8> {
    let size = u32::try_from(data.len()).unwrap();
    [
        CmdSubmit {
            size: size.into(),
            ..Default::default()
        }
        .as_bytes(),
        data,
    ]
    .concat()
}

/// A device with context 1 and blob 1, mapped at 0.
fn used_gpu() -> (Gpu, Arc<FakeProvider>) {
    used_gpu_in(WindowMode::Premapped)
}

fn used_gpu_in(mode: WindowMode) -> (Gpu, Arc<FakeProvider>) {
    let (mut gpu, fake) = gpu_in(mode);
    assert_eq!(
        run(&mut gpu, cmd::CTX_CREATE, 1, &context_body()).kind(),
        resp::OK_NODATA
    );
    assert_eq!(
        run(&mut gpu, cmd::RESOURCE_CREATE_BLOB, 1, &blob(1, 0, 1)).kind(),
        resp::OK_NODATA
    );
    assert_eq!(
        run(&mut gpu, cmd::RESOURCE_MAP_BLOB, 0, &map(1, 0)).kind(),
        resp::OK_MAP_INFO
    );
    (gpu, fake)
}

#[test]
fn a_submit_wants_what_it_imports_and_has_it_for_itself_alone() {
    let (mut gpu, _) = gpu();
    run(&mut gpu, cmd::CTX_CREATE, 1, &context_body());
    let uuid = [7; 16];
    let import = |client_id| {
        let import = Import { client_id, uuid };
        submit(&EnvelopeBuilder::new(0).request(import).build())
    };
    let command = bytes(header(cmd::SUBMIT_3D, 1), import(1).as_slice());
    assert_eq!(gpu.wanted_object(&command), Some(uuid));
    for length in 0..command.len() {
        assert_eq!(gpu.wanted_object(&command[..length]), None, "{length}");
    }
    let of_another = bytes(header(cmd::SUBMIT_3D, 2), import(1).as_slice());
    assert_eq!(gpu.wanted_object(&of_another), None);
    let otherwise = bytes(header(cmd::RESOURCE_UNREF, 1), import(1).as_slice());
    assert_eq!(gpu.wanted_object(&otherwise), None);

    let memory = || {
        let flags = rustix::fs::MemfdFlags::ALLOW_SEALING;
        let memory = rustix::fs::memfd_create("object", flags).unwrap();
        rustix::fs::ftruncate(&memory, PAGE).unwrap();
        rustix::fs::fcntl_add_seals(&memory, rustix::fs::SealFlags::SHRINK).unwrap();
        memory
    };
    let imported = |gpu: &mut Gpu, client_id| {
        let body = import(client_id);
        run(gpu, cmd::SUBMIT_3D, 1, body.as_slice()).kind()
    };
    gpu.lend_object(uuid, memory());
    assert_eq!(imported(&mut gpu, 1), resp::OK_NODATA);
    assert_eq!(imported(&mut gpu, 2), resp::ERR_INVALID_PARAMETER);
    gpu.lend_object(uuid, memory());
    assert!(gpu.execute(0, &[0; 3], &NoPages).is_some());
    assert_eq!(imported(&mut gpu, 2), resp::ERR_INVALID_PARAMETER);
}

#[test]
fn capsets_are_described_and_given() {
    let (mut gpu, _) = gpu();
    let info = run(&mut gpu, cmd::GET_CAPSET_INFO, 0, &GetCapsetInfo::default());
    let (header, rest) = CtrlHdr::read_from_prefix(info.as_bytes()).unwrap();
    assert_eq!(header.cmd_type.get(), resp::OK_CAPSET_INFO);
    let info = hostblob_protocol::virtio_gpu::CapsetInfo::read_from_bytes(rest).unwrap();
    assert_eq!(
        (info.capset_id.get(), info.capset_max_version.get()),
        (CAPSET_ID, 1)
    );
    let asked = GetCapset {
        capset_id: CAPSET_ID.into(),
        capset_version: 1.into(),
    };
    let capset = run(&mut gpu, cmd::GET_CAPSET, 0, &asked);
    let capset = &capset.as_bytes()[24..];
    assert_eq!(capset.len(), info.capset_max_size.get() as usize);
    let capset = hostblob_capset::Capset::decode(capset).unwrap();
    assert_eq!(capset.window_size, 2 << 20);
    let config = Config::read_from_bytes(gpu.config()).unwrap();
    assert_eq!(
        (config.num_scanouts.get(), config.num_capsets.get()),
        (0, 1)
    );
    assert_eq!(config.blob_alignment.get(), capset.page_size);
}

#[test]
fn display_info_shows_no_scanout() {
    let (mut gpu, _) = gpu();
    let info = run(&mut gpu, cmd::GET_DISPLAY_INFO, 0, &());
    assert_eq!(info.kind(), resp::OK_DISPLAY_INFO);
    assert_eq!(info.as_bytes().len(), 24 + 16 * 24);
    assert!(info.as_bytes()[4..].iter().all(|&byte| byte == 0));
}

#[test]
fn every_refusal_has_the_code_of_the_specification() {
    let (mut gpu, _) = used_gpu();
    let mut check = |kind, context, body: &[u8], expected: u32| {
        let response = run(&mut gpu, kind, context, body);
        assert_eq!(
            response.kind(),
            expected,
            "command {kind:#x}, body {body:x?}"
        );
        assert_eq!(response.as_bytes().len(), 24);
    };
    let (p, r, x) = (
        resp::ERR_INVALID_PARAMETER,
        resp::ERR_INVALID_RESOURCE_ID,
        resp::ERR_INVALID_CONTEXT_ID,
    );
    let bad_index = GetCapsetInfo {
        capset_index: 1.into(),
        ..Default::default()
    };
    check(cmd::GET_CAPSET_INFO, 0, bad_index.as_bytes(), p);
    check(cmd::GET_CAPSET, 0, GetCapset::default().as_bytes(), p);
    check(cmd::CTX_CREATE, 0, context_body().as_bytes(), x);
    check(cmd::CTX_CREATE, 1, context_body().as_bytes(), x);
    let other = CtxCreate {
        context_init: (CAPSET_ID + 1).into(),
        ..CtxCreate::default()
    };
    check(cmd::CTX_CREATE, 2, other.as_bytes(), p);
    check(cmd::CTX_CREATE, 0, CtxCreate::default().as_bytes(), x);
    check(cmd::CTX_CREATE, 1, CtxCreate::default().as_bytes(), x);
    let long = CtxCreate {
        nlen: 65.into(),
        ..context_body()
    };
    check(cmd::CTX_CREATE, 2, long.as_bytes(), p);
    check(cmd::CTX_DESTROY, 2, &[], x);
    check(cmd::CTX_DESTROY, 0, &[], x);
    check(cmd::CTX_ATTACH_RESOURCE, 2, only(1).as_bytes(), x);
    check(cmd::CTX_ATTACH_RESOURCE, 1, only(2).as_bytes(), r);
    check(cmd::CTX_DETACH_RESOURCE, 1, only(0).as_bytes(), r);
    check(cmd::SUBMIT_3D, 2, &submit(b""), x);
    check(cmd::SUBMIT_3D, 1, &submit(b"garbage"), p);
    check(cmd::SUBMIT_3D, 1, &submit(b"1234")[..10], p);
    check(cmd::RESOURCE_CREATE_BLOB, 2, blob(2, 0, 1).as_bytes(), x);
    check(cmd::RESOURCE_CREATE_BLOB, 0, blob(2, 0, 1).as_bytes(), x);
    check(cmd::RESOURCE_CREATE_BLOB, 1, blob(0, 0, 1).as_bytes(), r);
    check(cmd::RESOURCE_CREATE_BLOB, 1, blob(1, 0, 1).as_bytes(), r);
    check(cmd::RESOURCE_CREATE_BLOB, 1, blob(2, 5, 1).as_bytes(), p);
    check(cmd::RESOURCE_CREATE_BLOB, 1, blob(2, 0, 0).as_bytes(), p);
    check(
        cmd::RESOURCE_CREATE_BLOB,
        1,
        blob(2, 0, 256).as_bytes(),
        resp::ERR_OUT_OF_MEMORY,
    );
    let entries = ResourceCreateBlob {
        nr_entries: u32::MAX.into(),
        ..blob(2, 0, 1)
    };
    check(cmd::RESOURCE_CREATE_BLOB, 1, entries.as_bytes(), p);
    let odd = ResourceCreateBlob {
        size: U64::new(u64::MAX),
        ..blob(2, 0, 1)
    };
    check(cmd::RESOURCE_CREATE_BLOB, 1, odd.as_bytes(), p);
    check(cmd::RESOURCE_MAP_BLOB, 0, map(2, 0).as_bytes(), r);
    check(cmd::RESOURCE_MAP_BLOB, 0, map(1, PAGE).as_bytes(), p);
    check(cmd::RESOURCE_UNMAP_BLOB, 0, only(2).as_bytes(), r);
    check(cmd::RESOURCE_UNREF, 0, only(2).as_bytes(), r);
    check(cmd::RESOURCE_UNREF, 0, only(0).as_bytes(), r);
    check(cmd::RESOURCE_ATTACH_BACKING, 0, &[0; 8], r);
    check(cmd::RESOURCE_ATTACH_BACKING, 0, only(1).as_bytes(), p);
    check(cmd::RESOURCE_DETACH_BACKING, 0, only(1).as_bytes(), p);
    check(cmd::RESOURCE_CREATE_2D, 0, &[0; 16], r);
    check(cmd::RESOURCE_FLUSH, 0, &[0; 24], r);
    check(cmd::TRANSFER_TO_HOST_2D, 0, &[0; 32], r);
    check(cmd::TRANSFER_TO_HOST_3D, 1, &[0; 48], r);
    check(cmd::TRANSFER_FROM_HOST_3D, 1, &[0; 40], p);
    check(cmd::RESOURCE_ASSIGN_UUID, 0, only(2).as_bytes(), r);
    check(cmd::RESOURCE_ASSIGN_UUID, 0, only(1).as_bytes(), p);
    check(cmd::SET_SCANOUT, 0, &[0; 24], resp::ERR_INVALID_SCANOUT_ID);
    check(
        cmd::SET_SCANOUT_BLOB,
        0,
        &[0; 72],
        resp::ERR_INVALID_SCANOUT_ID,
    );
    check(
        cmd::UPDATE_CURSOR,
        0,
        &[0; 32],
        resp::ERR_INVALID_SCANOUT_ID,
    );
    for kind in [
        cmd::RESOURCE_CREATE_3D,
        cmd::GET_EDID,
        0,
        0x10e,
        0x20a,
        resp::OK_NODATA,
        u32::MAX,
    ] {
        check(kind, 1, &[0; 64], resp::ERR_UNSPEC);
    }
    // And all is as before.
    check(
        cmd::RESOURCE_UNMAP_BLOB,
        0,
        only(1).as_bytes(),
        resp::OK_NODATA,
    );
    check(cmd::RESOURCE_UNMAP_BLOB, 0, only(1).as_bytes(), p);
    check(cmd::RESOURCE_UNREF, 0, only(1).as_bytes(), resp::OK_NODATA);
    check(cmd::CTX_DESTROY, 1, &[], resp::OK_NODATA);
}

#[test]
fn every_command_cut_at_every_length_is_refused_or_answered() {
    let data = EnvelopeBuilder::new(1).build();
    let commands = [
        bytes(header(cmd::GET_CAPSET_INFO, 0), &GetCapsetInfo::default()),
        bytes(
            header(cmd::GET_CAPSET, 0),
            &GetCapset {
                capset_id: CAPSET_ID.into(),
                ..Default::default()
            },
        ),
        bytes(header(cmd::CTX_CREATE, 2), &context_body()),
        bytes(header(cmd::CTX_ATTACH_RESOURCE, 1), &only(1)),
        bytes(header(cmd::SUBMIT_3D, 1), submit(&data).as_slice()),
        bytes(header(cmd::RESOURCE_CREATE_BLOB, 1), &blob(2, 0, 1)),
        bytes(header(cmd::RESOURCE_MAP_BLOB, 1), &map(1, 0)),
        bytes(header(cmd::RESOURCE_UNMAP_BLOB, 1), &only(1)),
        bytes(header(cmd::RESOURCE_ATTACH_BACKING, 1), &only(1)),
        bytes(header(cmd::RESOURCE_DETACH_BACKING, 1), &only(1)),
        bytes(header(cmd::RESOURCE_ASSIGN_UUID, 1), &only(1)),
        bytes(header(cmd::TRANSFER_TO_HOST_3D, 1), &[1_u8; 48]),
        bytes(header(cmd::TRANSFER_FROM_HOST_3D, 1), &[1_u8; 48]),
        bytes(header(cmd::RESOURCE_CREATE_2D, 1), &[1_u8; 16]),
        bytes(header(cmd::RESOURCE_CREATE_3D, 1), &[1_u8; 48]),
        bytes(header(cmd::TRANSFER_TO_HOST_2D, 1), &[1_u8; 32]),
        bytes(header(cmd::RESOURCE_FLUSH, 1), &[1_u8; 24]),
        bytes(header(cmd::SET_SCANOUT, 1), &[1_u8; 24]),
        bytes(header(cmd::RESOURCE_UNREF, 1), &only(1)),
    ];
    let (mut gpu, _) = used_gpu();
    for command in commands {
        for length in 0..command.len() {
            let response = gpu.execute(0, &command[..length], &NoPages).unwrap();
            let expected = if length < 24 {
                resp::ERR_INVALID_PARAMETER
            } else {
                response.kind()
            };
            assert_eq!(response.kind(), expected);
            assert!(
                response.kind() >= resp::ERR_UNSPEC,
                "cut at {length}: {command:x?}"
            );
        }
    }
    assert_eq!(
        run(&mut gpu, cmd::RESOURCE_UNMAP_BLOB, 0, &only(1)).kind(),
        resp::OK_NODATA
    );
}

#[test]
fn a_command_that_is_too_long_is_served() {
    let (mut gpu, _) = used_gpu();
    let long = [only(1).as_bytes(), &[0xff; 65536]].concat();
    assert_eq!(
        run(&mut gpu, cmd::RESOURCE_UNMAP_BLOB, 0, long.as_slice()).kind(),
        resp::OK_NODATA
    );
}

#[test]
fn the_offered_features_have_handlers() {
    let (mut gpu, _) = gpu();
    let served = |gpu: &mut Gpu, kind| run(gpu, kind, 1, &[0_u8; 80]).kind() != resp::ERR_UNSPEC;
    use hostblob_protocol::virtio_gpu as v;
    for (bit, command) in [
        (v::F_VIRGL, cmd::SUBMIT_3D),
        (v::F_EDID, cmd::GET_EDID),
        (v::F_RESOURCE_UUID, cmd::RESOURCE_ASSIGN_UUID),
        (v::F_RESOURCE_BLOB, cmd::RESOURCE_CREATE_BLOB),
        (v::F_RESOURCE_BLOB, cmd::RESOURCE_MAP_BLOB),
        (v::F_CONTEXT_INIT, cmd::CTX_CREATE),
    ] {
        let offered = gpu.features() & (1 << bit) != 0;
        assert_eq!(
            offered,
            served(&mut gpu, command),
            "feature {bit}, command {command:#x}"
        );
    }
}

#[test]
fn a_map_answers_with_its_cache_mode_and_padding_is_zero() {
    let (mut gpu, _) = used_gpu();
    run(&mut gpu, cmd::RESOURCE_UNMAP_BLOB, 0, &only(1));
    let response = run(&mut gpu, cmd::RESOURCE_MAP_BLOB, 1, &map(1, PAGE));
    let (header, body) = CtrlHdr::read_from_prefix(response.as_bytes()).unwrap();
    let expected = CtrlHdr {
        cmd_type: resp::OK_MAP_INFO.into(),
        ..Default::default()
    };
    assert_eq!(header, expected, "without a fence nothing is repeated");
    let info = MapInfo::read_from_bytes(body).unwrap();
    assert_eq!(
        info,
        MapInfo {
            map_info: map_cache::CACHED.into(),
            ..Default::default()
        }
    );
}

#[test]
fn a_fenced_command_is_answered_when_its_gpu_work_is_done() {
    let (mut gpu, fake) = used_gpu();
    let create = Create {
        client_id: 7,
        size: PAGE,
        memory: MemorySelector::Properties(2),
        flags: CreateFlags::HOST_VISIBLE | CreateFlags::MAP_DIRECTLY,
        alignment: 0,
        expected_cache: CacheMode::Cached,
    };
    let data = EnvelopeBuilder::new(0).request(create).build();
    run(&mut gpu, cmd::SUBMIT_3D, 1, submit(&data).as_slice());
    fake.hold();
    let fill = Fill {
        range: MemoryRange {
            client_id: 7,
            offset: 0,
            length: PAGE,
        },
        value: 3,
    };
    let data = EnvelopeBuilder::new(0).request(fill).build();
    let fenced = CtrlHdr {
        flags: (FLAG_FENCE | FLAG_INFO_RING_IDX).into(),
        fence_id: U64::new(99),
        ring_idx: 1,
        ..header(cmd::SUBMIT_3D, 1)
    };
    assert_eq!(
        gpu.execute(40, &bytes(fenced, submit(&data).as_slice()), &NoPages),
        None
    );
    let other_ring = CtrlHdr {
        ring_idx: 2,
        ..fenced
    };
    assert!(
        gpu.execute(
            41,
            &bytes(
                other_ring,
                submit(&EnvelopeBuilder::new(0).build()).as_slice()
            ),
            &NoPages
        )
        .is_some()
    );
    assert_eq!(gpu.completed(), []);
    fake.release_all();
    let done = loop {
        let done = gpu.completed();
        if !done.is_empty() {
            break done;
        }
        std::thread::yield_now();
    };
    let [(40, response)] = done.as_slice() else {
        panic!("{done:?}")
    };
    let (header, _) = CtrlHdr::read_from_prefix(response.as_bytes()).unwrap();
    let expected = CtrlHdr {
        cmd_type: resp::OK_NODATA.into(),
        ..fenced
    };
    assert_eq!(header, expected);
}

#[test]
fn where_blobs_are_mapped_one_by_one_each_change_is_told() {
    let (mut gpu, _) = used_gpu_in(WindowMode::OnDemand);
    let at = |page: u64| Mapping {
        span: hostblob_allocator::window::Span::new(page * PAGE, PAGE, 2 << 20).unwrap(),
        elsewhere: None,
    };
    assert_eq!(gpu.window_change(), Some(WindowChange::Map(at(0))));
    assert_eq!(gpu.window_change(), None, "once");
    run(&mut gpu, cmd::RESOURCE_MAP_BLOB, 0, &map(1, 0));
    assert_eq!(gpu.window_change(), None, "refused: it is mapped");
    run(&mut gpu, cmd::RESOURCE_UNMAP_BLOB, 0, &only(1));
    assert_eq!(gpu.window_change(), Some(WindowChange::Unmap(at(0))));
    run(&mut gpu, cmd::RESOURCE_UNMAP_BLOB, 0, &only(1));
    assert_eq!(gpu.window_change(), None, "refused: it is not mapped");
    run(&mut gpu, cmd::RESOURCE_MAP_BLOB, 0, &map(1, PAGE));
    run(&mut gpu, cmd::RESOURCE_UNREF, 0, &only(1));
    assert_eq!(gpu.window_change(), Some(WindowChange::Unmap(at(1))));
    run(&mut gpu, cmd::CTX_DESTROY, 1, &());
    assert_eq!(gpu.window_change(), None);
    assert!(!gpu.window_in_use());

    let (mut gpu, _) = used_gpu();
    assert_eq!(gpu.window_change(), None);
}

#[test]
fn a_mapping_that_failed_is_taken_back_and_answered_when_its_fence_says() {
    let (mut gpu, fake) = used_gpu_in(WindowMode::OnDemand);
    run(&mut gpu, cmd::RESOURCE_CREATE_BLOB, 1, &blob(2, 0, 1));
    let plain = bytes(header(cmd::RESOURCE_MAP_BLOB, 0), &map(2, PAGE));
    let mapped = gpu.execute(7, &plain, &NoPages).unwrap();
    assert_eq!(mapped.kind(), resp::OK_MAP_INFO);
    let refused = gpu.not_mapped(7, &plain, "no").unwrap();
    assert_eq!(refused.kind(), resp::ERR_OUT_OF_MEMORY);
    assert_eq!(gpu.guest().mapping(2), None);

    // GPU work is under way on the ring that the next one's fence is on.
    let create = Create {
        client_id: 7,
        size: PAGE,
        memory: MemorySelector::Properties(2),
        flags: CreateFlags::HOST_VISIBLE,
        alignment: 0,
        expected_cache: CacheMode::Cached,
    };
    fake.hold();
    let range = MemoryRange {
        client_id: 7,
        offset: 0,
        length: PAGE,
    };
    let data = EnvelopeBuilder::new(0)
        .request(create)
        .request(Fill { range, value: 3 })
        .build();
    run(&mut gpu, cmd::SUBMIT_3D, 1, submit(&data).as_slice());
    let fenced = CtrlHdr {
        flags: FLAG_FENCE.into(),
        ..header(cmd::RESOURCE_MAP_BLOB, 1)
    };
    let fenced = bytes(fenced, &map(2, PAGE));
    assert_eq!(gpu.execute(8, &fenced, &NoPages), None);
    assert!(gpu.window_change().is_some());
    assert_eq!(gpu.not_mapped(8, &fenced, "no"), None);
    assert_eq!((gpu.guest().mapping(2), gpu.completed()), (None, vec![]));
    fake.release_all();
    let done = loop {
        let done = gpu.completed();
        if !done.is_empty() {
            break done;
        }
        std::thread::yield_now();
    };
    let kinds: Vec<_> = done
        .iter()
        .map(|(tag, response)| (*tag, response.kind()))
        .collect();
    assert_eq!(kinds, [(8, resp::ERR_OUT_OF_MEMORY)]);
    let again = gpu.execute(9, &plain, &NoPages).unwrap();
    assert_eq!(again.kind(), resp::OK_MAP_INFO);
}

#[test]
fn reset_starts_anew() {
    let (mut gpu, _) = used_gpu();
    gpu.reset();
    assert_eq!(
        run(&mut gpu, cmd::RESOURCE_UNREF, 0, &only(1)).kind(),
        resp::ERR_INVALID_RESOURCE_ID
    );
    assert_eq!(
        run(&mut gpu, cmd::CTX_CREATE, 1, &context_body()).kind(),
        resp::OK_NODATA
    );
}
