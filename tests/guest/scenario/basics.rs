//! One process, the CPU alone.

use std::collections::HashSet;

use anyhow::{Context, Result, ensure};
use hostblob_guest::protocol::request::request_bit;
use hostblob_guest::{AllocateInfo, CreateFlags, Memory, TransportKind};

use super::{CONTEXT_LIMIT, MEMORY_LIMIT, SMALL_WINDOW, Setup, WINDOW, own};
use crate::pattern;

/// The capset says what the daemon was started with, and nothing that cannot be.
pub fn capset_is_readable_and_sensible(setup: &Setup) -> Result<()> {
    let device = setup.open()?;
    let capset = device.capabilities();
    let expected = match setup.socket {
        Some(_) => TransportKind::Socket,
        None => TransportKind::Drm,
    };
    ensure!(
        device.transport() == expected,
        "transport: {:?}",
        device.transport()
    );
    if let Some(provider) = setup.provider {
        ensure!(capset.provider == provider, "provider: {capset:?}");
    }
    ensure!(
        [WINDOW, SMALL_WINDOW].contains(&capset.window_size),
        "window: {capset:?}"
    );
    let limits = capset.limits;
    ensure!(limits.max_context_bytes == CONTEXT_LIMIT, "{limits:?}");
    ensure!(limits.max_device_bytes == MEMORY_LIMIT, "{limits:?}");
    ensure!(limits.max_blob_size >= 64 << 20, "{limits:?}");
    ensure!(
        limits.max_blob_size <= CONTEXT_LIMIT.min(capset.window_size),
        "{limits:?}"
    );
    ensure!(limits.max_context_blobs >= 20_000, "{limits:?}");
    ensure!(
        capset.page_size.is_power_of_two() && capset.page_size >= 4096,
        "{capset:?}"
    );
    ensure!(
        capset.non_coherent_atom_size.is_power_of_two(),
        "{capset:?}"
    );
    ensure!(
        !capset.device_name.is_empty() && !capset.driver_name.is_empty(),
        "{capset:?}"
    );
    ensure!(
        capset.device_uuid != [0; 16] && capset.driver_uuid != [0; 16],
        "{capset:?}"
    );
    ensure!(!capset.heaps.is_empty(), "{capset:?}");
    for heap in &capset.heaps {
        ensure!(
            heap.size > 0 && heap.size <= MEMORY_LIMIT,
            "heap: {capset:?}"
        );
    }
    for memory_type in &capset.types {
        ensure!(
            (memory_type.heap as usize) < capset.heaps.len(),
            "{capset:?}"
        );
    }
    ensure!(
        capset.types.iter().any(|t| t.is_host_visible()),
        "{capset:?}"
    );
    ensure!(
        capset.types.iter().any(|t| !t.is_host_visible()),
        "no private memory: {capset:?}"
    );
    let agreed = device.agreed();
    let needed = [
        request_bit::CREATE,
        request_bit::BIND_CLIENT_ID,
        request_bit::MAP,
        request_bit::UNMAP,
        request_bit::FREE,
        request_bit::FLUSH,
        request_bit::INVALIDATE,
        request_bit::FILL,
        request_bit::COPY,
        request_bit::QUERY_BUDGET,
        request_bit::IMPORT,
        request_bit::IMPORT_RESOURCE,
        request_bit::SHARE,
    ];
    for bit in needed {
        ensure!(
            agreed.requests & bit != 0,
            "request {bit:#x} is not served: {agreed:?}"
        );
    }
    ensure!(
        agreed.requests & request_bit::PUBLISH == 0,
        "buffers for host processes are offered, without an export socket: {agreed:?}"
    );
    ensure!(agreed.create_flags == CreateFlags::all(), "{agreed:?}");
    Ok(())
}

fn allocate_write_read(setup: &Setup, size: u64) -> Result<()> {
    let device = setup.open()?;
    let infos = [
        AllocateInfo::new(size)
            .dedicated()
            .name("with a blob of its own"),
        AllocateInfo::new(size).deferred().name("bound later"),
        AllocateInfo::new(size),
    ];
    for (seed, info) in (1..).zip(&infos) {
        let memory = device.allocate(info)?;
        check_one(&memory, size, seed).with_context(|| format!("{info:?}"))?;
    }
    Ok(())
}

fn check_one(memory: &Memory, size: u64, seed: u64) -> Result<()> {
    ensure!(memory.size() == size, "size: {}", memory.size());
    pattern::check_zero(memory).context("fresh")?;
    pattern::write(memory, seed)?;
    pattern::check(memory, seed)?;
    let address = memory.map()?;
    ensure!(memory.map()? == address, "the address changed");
    ensure!(
        memory.is_suballocated() || address.addr().get() % 4096 == 0,
        "address {address:?}"
    );
    // Through the address itself, without the library between.
    for position in [0, size / 2, size - 1] {
        // SAFETY: `map` promises `size` bytes at the address until unmap or drop, both of which come later; no GPU work runs.
        let byte = unsafe {
            address
                .as_ptr()
                .wrapping_add(position as usize)
                .read_volatile()
        };
        ensure!(
            byte == pattern::byte(seed, position),
            "byte {position:#x} is {byte:#04x}"
        );
    }
    // SAFETY: as above; the last byte of the memory.
    unsafe {
        address
            .as_ptr()
            .wrapping_add(size as usize - 1)
            .write_volatile(0x42)
    };
    pattern::check_at(memory, size - 1, &[0x42])
}

/// A page.
pub fn allocate_write_read_4k(setup: &Setup) -> Result<()> {
    allocate_write_read(setup, 4096)
}

/// A MiB.
pub fn allocate_write_read_1m(setup: &Setup) -> Result<()> {
    allocate_write_read(setup, 1 << 20)
}

/// A large texture.
pub fn allocate_write_read_64m(setup: &Setup) -> Result<()> {
    allocate_write_read(setup, 64 << 20)
}

/// Small memories come from few blobs, keep their alignment, and none has a byte of another.
pub fn small_memories_do_not_overlap(setup: &Setup) -> Result<()> {
    let device = setup.open()?;
    let mut live = Vec::new();
    for number in 0..600_u64 {
        let alignment = 1 << (number % 13);
        let info = AllocateInfo::new(1 + number * 37 % 9000).alignment(alignment);
        let memory = device.allocate(&info)?;
        ensure!(memory.is_suballocated(), "{info:?} has a blob of its own");
        ensure!(
            memory.offset().is_multiple_of(alignment.max(64)),
            "{info:?}: offset {:#x}",
            memory.offset()
        );
        ensure!(
            memory
                .map()?
                .addr()
                .get()
                .is_multiple_of(alignment as usize),
            "{info:?}: address"
        );
        pattern::write(&memory, number)?;
        live.push((number, memory));
        if number % 3 == 2 {
            let (seed, memory) = live.swap_remove((number * 7919 % live.len() as u64) as usize);
            pattern::check(&memory, seed)?;
        }
    }
    for (seed, memory) in &live {
        pattern::check(memory, *seed)?;
    }
    let blobs: HashSet<_> = live.iter().map(|(_, memory)| memory.client_id()).collect();
    let statistics = device.statistics();
    ensure!(
        blobs.len() <= 2 && statistics.blocks <= 2,
        "{} blobs, {statistics:?}",
        blobs.len()
    );
    ensure!(
        statistics.suballocations == live.len() as u64,
        "{statistics:?}"
    );
    ensure!(statistics.commands < 20, "{statistics:?}");
    Ok(())
}

/// `blob_id` 0 is host memory for everybody: zeros at first, its own bytes after.
pub fn plain_blobs_of_id_0(setup: &Setup) -> Result<()> {
    let device = setup.open()?;
    let sizes = [4096, 8192, 1 << 20, 3 << 20];
    for round in 0..3 {
        let blobs = sizes.map(|size| device.create_plain_blob(size));
        let blobs = blobs.into_iter().collect::<Result<Vec<_>, _>>()?;
        for (seed, blob) in (1 + round..).zip(&blobs) {
            pattern::check_zero(blob).with_context(|| format!("round {round}"))?;
            pattern::write(blob, seed)?;
        }
        for (seed, blob) in (1 + round..).zip(&blobs) {
            blob.unmap();
            pattern::check(blob, seed)?;
        }
        let ids: HashSet<_> = blobs.iter().map(|blob| blob.resource_id()).collect();
        ensure!(ids.len() == sizes.len(), "resource ids: {ids:?}");
    }
    Ok(())
}

/// Not in the list: what the other scenarios leave behind must be nothing.
pub fn nothing_is_left(setup: &Setup) -> Result<()> {
    let device = setup.open()?;
    super::eventually("all memory is free", || {
        let budget = device.budget(0)?;
        Ok(budget.budget == CONTEXT_LIMIT.min(device.capabilities().heaps[0].size))
    })?;
    own(&device, 4096).map(drop)
}
