//! What is too much, or not what was expected, is refused with its status, and the next request is served.

use std::collections::VecDeque;
use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hostblob_guest::capset::Cache;
use hostblob_guest::protocol::request::{Create, Free, Map};
use hostblob_guest::{
    Access, AllocateInfo, CacheMode, CreateFlags, Device, MapInfo, Memory, MemorySelector, Status,
    WHOLE_SIZE,
};

use super::{
    CONTEXT_LIMIT, MEMORY_LIMIT, SMALL_WINDOW, Setup, answers, create, done, eventually, own,
    refused,
};
use crate::pattern;
use crate::peer::Peer;

const MIB: u64 = 1 << 20;

/// A creation or a mapping that expects another cache mode; the right one is served.
pub fn cache_mode_mismatch_is_refused(setup: &Setup) -> Result<()> {
    let device = setup.open()?;
    let visible = (0_u32..)
        .zip(&device.capabilities().types)
        .filter(|(_, t)| t.is_host_visible());
    for (index, memory_type) in visible {
        let (right, wrong) = match memory_type.cache {
            Cache::Cached => (
                CacheMode::Cached,
                [CacheMode::WriteCombined, CacheMode::Uncached],
            ),
            Cache::WriteCombined => (
                CacheMode::WriteCombined,
                [CacheMode::Cached, CacheMode::Uncached],
            ),
            Cache::Uncached => (
                CacheMode::Uncached,
                [CacheMode::Cached, CacheMode::WriteCombined],
            ),
        };
        let info = AllocateInfo::new(4096).memory_type(index);
        for info in [info, info.dedicated(), info.deferred()] {
            let memory = device.allocate(&info.expected_cache(right))?;
            for expected_cache in wrong {
                refused(
                    device.allocate(&info.expected_cache(expected_cache)),
                    Status::CacheModeMismatch,
                    "allocation with the wrong cache mode",
                )?;
                let map = MapInfo {
                    expected_cache,
                    access: Access::READ,
                };
                refused(
                    memory.map_with(&map),
                    Status::CacheModeMismatch,
                    "map with the wrong cache mode",
                )?;
                // The host itself refuses, not only the library.
                let map = Map {
                    client_id: memory.client_id(),
                    expected_cache,
                    access: Access::READ,
                };
                answers(&device, map, Status::CacheModeMismatch)?;
                let creation = Create {
                    memory: MemorySelector::Index(index),
                    expected_cache,
                    ..create(device.reserve_client_id(), 4096, CreateFlags::HOST_VISIBLE)
                };
                answers(&device, creation, Status::CacheModeMismatch)?;
            }
            let map = MapInfo {
                expected_cache: right,
                access: Access::READ | Access::WRITE,
            };
            memory.map_with(&map)?;
            pattern::check_zero(&memory)?;
        }
    }
    Ok(())
}

/// Memories of 16 MiB until one is refused, and the status of that one.
fn until_refused(device: &Device) -> Result<(Vec<Memory>, Status)> {
    let mut held = Vec::new();
    loop {
        match device.allocate(&AllocateInfo::new(16 * MIB).dedicated()) {
            Ok(memory) => held.push(memory),
            Err(error) => {
                let status = error
                    .status()
                    .with_context(|| format!("{error:?} has no status"))?;
                return Ok((held, status));
            }
        }
        ensure!(held.len() < 1000, "nothing limits the context");
    }
}

/// A context may hold [`CONTEXT_LIMIT`], and not a block more; what it frees it may have again.
pub fn quota_of_the_context_is_refused_and_refunded(setup: &Setup) -> Result<()> {
    let device = setup.open()?;
    let before = device.budget(0)?;
    ensure!(
        before.usage < MIB,
        "an empty context holds {} bytes",
        before.usage
    );
    let (mut held, status) = until_refused(&device)?;
    ensure!(
        status == Status::ContextQuotaExceeded,
        "{status:?} after {} times 16 MiB",
        held.len()
    );
    // The control page is charged too, hence one less than what the limit has room for.
    ensure!(
        held.len() as u64 == CONTEXT_LIMIT / (16 * MIB) - 1,
        "{} times 16 MiB",
        held.len()
    );
    let full = device.budget(0)?;
    ensure!(
        full.usage == before.usage + held.len() as u64 * 16 * MIB,
        "{before:?}, then {full:?}"
    );
    let creation = create(
        device.reserve_client_id(),
        16 * MIB,
        CreateFlags::HOST_VISIBLE,
    );
    answers(&device, creation, Status::ContextQuotaExceeded)?;
    refused(
        device.allocate(&AllocateInfo::new(16 * MIB).deferred()),
        Status::ContextQuotaExceeded,
        "deferred memory past the limit",
    )?;
    ensure!(
        device.create_plain_blob(16 * MIB).is_err(),
        "a plain blob past the limit"
    );
    for _ in 0..3 {
        held.pop();
        let again = own(&device, 16 * MIB)?;
        pattern::check_at(&again, 0, &[0; 4096])?;
        held.insert(0, again);
        refused(
            device.allocate(&AllocateInfo::new(16 * MIB).dedicated()),
            Status::ContextQuotaExceeded,
            "the next one",
        )?;
    }
    drop(held);
    eventually("the refund", || Ok(device.budget(0)?.usage == before.usage))?;
    // A block that nothing is in any more does not stand in the way.
    drop(device.allocate(&AllocateInfo::new(4096))?);
    ensure!(device.statistics().blocks == 1, "no block stays");
    own(&device, CONTEXT_LIMIT - 8 * MIB).map(drop)
}

/// All contexts together may hold [`MEMORY_LIMIT`].
pub fn quota_of_the_device_is_refused_and_refunded(setup: &Setup) -> Result<()> {
    let device = setup.open()?;
    let sizes = vec![(16 * MIB).to_string(); 12];
    let (peer, _) = Peer::start(setup, "hold", &sizes)?;
    let (held, status) = until_refused(&device)?;
    ensure!(
        status == Status::DeviceQuotaExceeded,
        "{status:?} after {} times 16 MiB",
        held.len()
    );
    let expected = (MEMORY_LIMIT - 192 * MIB) / (16 * MIB) - 1;
    ensure!(
        held.len() as u64 == expected,
        "{} times 16 MiB, not {expected}",
        held.len()
    );
    let budget = device.budget(0)?;
    ensure!(budget.budget < budget.usage + 16 * MIB, "{budget:?}");
    let mut rest = Vec::new();
    for size in [MIB, 64 << 10] {
        let take = || device.allocate(&AllocateInfo::new(size).dedicated()).ok();
        rest.extend(std::iter::from_fn(take));
    }
    match setup.open().err().map(|error| format!("{error:#}")) {
        None => bail!("a context for which there is no share"),
        Some(text) => ensure!(text.contains("makes no context"), "{text}"),
    }
    drop(rest);
    peer.finish()?;
    eventually("the refund", || {
        Ok(device
            .allocate(&AllocateInfo::new(16 * MIB).dedicated())
            .is_ok())
    })?;
    let (_more, status) = until_refused(&device)?;
    ensure!(
        status == Status::ContextQuotaExceeded,
        "{status:?} with the device to itself"
    );
    Ok(())
}

/// Memory that a process takes, has filled by the host GPU and gives back, while it holds `HELD` of it: within a share.
struct Turns {
    allocations: Vec<Duration>,
    fills: Vec<Duration>,
}

impl Turns {
    /// Each must be served: with zeros first, then with what is written there.
    fn take(device: &Device) -> Result<Self> {
        const SIZE: u64 = 64 << 10;
        const HELD: usize = 12;
        let mut turns = Self {
            allocations: Vec::new(),
            fills: Vec::new(),
        };
        let mut held = VecDeque::new();
        for turn in 0..5 * HELD {
            if held.len() == HELD {
                held.pop_front();
            }
            let start = Instant::now();
            let memory = own(device, SIZE).with_context(|| format!("turn {turn}"))?;
            turns.allocations.push(start.elapsed());
            pattern::check_zero(&memory)?;
            let start = Instant::now();
            done(device.fill(&memory, 0, SIZE / 2, 0x5a5a_5a5a))?;
            turns.fills.push(start.elapsed());
            pattern::check_at(&memory, SIZE / 2 - 8, &[0x5a; 8])?;
            pattern::check_at(&memory, SIZE / 2, &[0; 8])?;
            held.push_back(memory);
        }
        turns.allocations.sort();
        turns.fills.sort();
        Ok(turns)
    }
}

impl fmt::Display for Turns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let middle = |times: &[Duration]| times.get(times.len() / 2).copied().unwrap_or_default();
        let longest = |times: &[Duration]| times.last().copied().unwrap_or_default();
        write!(
            f,
            "allocation {:.1?} (at most {:.1?}), fill {:.1?} (at most {:.1?})",
            middle(&self.allocations),
            longest(&self.allocations),
            middle(&self.fills),
            longest(&self.fills)
        )
    }
}

/// Three processes take dozens of contexts and all memory, in pieces with holes between, and keep the device and the GPU busy: a fourth one has its share, in
/// as many turns as ever, and none of them takes longer than anything here may.
pub fn greedy_processes_leave_another_its_share(setup: &Setup) -> Result<()> {
    let device = setup.open()?;
    let before = device.budget(0)?;
    let alone = Turns::take(&device)?;
    let (many, contexts) = Peer::start(setup, "many", &[])?;
    let (greedy, blobs) = Peer::start(setup, "greedy", &[])?;
    let (late, more) = Peer::start(setup, "greedy", &[])?;
    let left = device.budget(0)?;
    ensure!(
        left.budget < left.usage + 4 * MIB,
        "there is more than a share: {left:?}"
    );
    let among = Turns::take(&device)?;
    println!(
        "alone: {alone}\namong {contexts} contexts, and {blobs} and {more} blobs of others: {among}"
    );
    for peer in [many, greedy, late] {
        peer.finish()?;
    }
    eventually("the refund", || Ok(device.budget(0)? == before))
}

/// Arguments that no creation may have.
pub fn senseless_creations_are_refused(setup: &Setup) -> Result<()> {
    let device = setup.open()?;
    let id = device.reserve_client_id();
    let most = device.capabilities().limits.max_blob_size;
    let visible = CreateFlags::HOST_VISIBLE;
    for size in [
        0,
        1,
        4095,
        4097,
        most + 4096,
        1 << 63,
        u64::MAX,
        u64::MAX - 4095,
    ] {
        answers(&device, create(id, size, visible), Status::InvalidArgument)?;
    }
    answers(&device, create(0, 4096, visible), Status::InvalidArgument)?;
    answers(
        &device,
        create(id, 4096, CreateFlags::MAP_DIRECTLY),
        Status::InvalidArgument,
    )?;
    for alignment in [3, 8192 * 1024, u64::MAX] {
        let creation = Create {
            alignment,
            ..create(id, 4096, visible)
        };
        answers(&device, creation, Status::InvalidArgument)?;
    }
    for memory in [
        MemorySelector::Index(1000),
        MemorySelector::Index(u32::MAX),
        MemorySelector::Properties(u32::MAX),
    ] {
        let creation = Create {
            memory,
            ..create(id, 4096, visible)
        };
        answers(&device, creation, Status::InvalidMemoryType)?;
    }
    answers(&device, create(id, 4096, visible), Status::Ok)?;
    answers(&device, create(id, 4096, visible), Status::ClientIdInUse)?;
    answers(&device, Free { client_id: id }, Status::Ok)?;
    answers(&device, Free { client_id: id }, Status::UnknownClientId)?;
    for size in [most + 1, 1 << 40, 1 << 62] {
        let result = device.allocate(&AllocateInfo::new(size));
        let status = result.err().and_then(|error| error.status());
        ensure!(
            status.is_some_and(|status| status != Status::Internal),
            "{size} bytes: {status:?}"
        );
    }
    refused(
        device.allocate(&AllocateInfo::new(0)),
        Status::InvalidArgument,
        "0 bytes",
    )?;
    refused(
        device.allocate(&AllocateInfo::new(u64::MAX)),
        Status::OutOfHostMemory,
        "u64::MAX bytes",
    )
    .context("the library's own arithmetic")?;
    own(&device, 4096).map(drop)
}

/// The window is full: memory that needs none is still served, and a place that is freed serves the next.
pub fn exhausted_window_is_refused_and_recovers(setup: &Setup) -> Result<()> {
    const SIZE: u64 = 4 * MIB;
    let device = setup.open()?;
    let mut held = Vec::new();
    let status = loop {
        match device.allocate(&AllocateInfo::new(SIZE).dedicated()) {
            Ok(memory) => held.push(memory),
            Err(error) => {
                break error
                    .status()
                    .with_context(|| format!("{error:?} has no status"))?;
            }
        }
        ensure!(
            (held.len() as u64) <= SMALL_WINDOW / SIZE,
            "more than the window holds"
        );
    };
    ensure!(
        status == Status::WindowExhausted,
        "{status:?} after {} times 4 MiB",
        held.len()
    );
    ensure!(
        held.len() as u64 >= SMALL_WINDOW / SIZE - 2,
        "only {} times 4 MiB",
        held.len()
    );
    for (seed, memory) in (0..).zip(&held) {
        pattern::write(memory, seed)?;
    }
    let later = device.allocate(&AllocateInfo::new(SIZE).deferred())?;
    done(device.fill(&later, 0, WHOLE_SIZE, 0x7777_7777))?;
    refused(
        later.map(),
        Status::WindowExhausted,
        "map into a full window",
    )?;
    for (seed, memory) in (0..).zip(&held) {
        pattern::check(memory, seed)?;
    }
    held.truncate(held.len() - 1);
    // The guest kernel has the place back when the host has answered.
    eventually("room for one more", || Ok(later.map().is_ok()))?;
    pattern::check_words(&later, 0x7777_7777)?;
    refused(
        device.allocate(&AllocateInfo::new(SIZE).dedicated()),
        Status::WindowExhausted,
        "the next one",
    )?;
    later.unmap();
    drop(held);
    eventually("room for a large one", || {
        let result = device.allocate(&AllocateInfo::new(SMALL_WINDOW / 2).dedicated());
        result.map_or(Ok(false), |memory| {
            pattern::check_zero(&memory).map(|()| true)
        })
    })?;
    pattern::check_words(&later, 0x7777_7777)
}
