//! How memory comes, stays and goes.

use anyhow::{Context, Result, ensure};
use hostblob_guest::protocol::request::{BindClientId, Copy, Fill, Free};
use hostblob_guest::{
    AllocateInfo, BlobInfo, CreateFlags, OpenOptions, PoolOptions, Status, WHOLE_SIZE,
};

use super::{
    CONTEXT_LIMIT, MEMORY_LIMIT, Setup, answers, create, done, eventually, own, range, refused,
};
use crate::pattern;
use crate::peer::Peer;

const MIB: u64 = 1 << 20;

/// CREATE without MAP_DIRECTLY, used by the GPU, bound to a blob, freed by name, and still there while its blob is.
pub fn created_first_and_bound_later(setup: &Setup) -> Result<()> {
    let device = setup.open()?;
    let size = 256 << 10;
    let id = device.reserve_client_id();
    let bind = [BindClientId { client_id: id }.into()];
    let info = BlobInfo {
        blob_id: id,
        size,
        mappable: true,
        shareable: false,
        requests: &bind,
    };
    refused(
        device.create_blob(&info),
        Status::UnknownClientId,
        "binding what does not exist",
    )?;
    answers(
        &device,
        create(id, size, CreateFlags::HOST_VISIBLE),
        Status::Ok,
    )?;
    answers(
        &device,
        Fill {
            range: range(id, 0, size),
            value: 0x1234_5678,
        },
        Status::Ok,
    )?;
    let unbound = BlobInfo {
        requests: &[],
        ..info
    };
    ensure!(
        device.create_blob(&unbound).is_err(),
        "a blob of memory that was not bound"
    );
    let blob = device.create_blob(&info)?;
    pattern::check_words(&blob, 0x1234_5678)?;
    answers(&device, bind[0], Status::AlreadyBound)?;
    pattern::write(&blob, 51)?;
    answers(&device, Free { client_id: id }, Status::Ok)?;
    answers(
        &device,
        Fill {
            range: range(id, 0, size),
            value: 0,
        },
        Status::UnknownClientId,
    )?;
    pattern::check(&blob, 51).context("freed by name, held by its blob")?;
    // The name is free at once.
    answers(
        &device,
        create(id, size, CreateFlags::HOST_VISIBLE),
        Status::Ok,
    )?;
    let next = device.create_blob(&info)?;
    pattern::check_zero(&next)?;
    pattern::check(&blob, 51)?;
    drop(blob);
    pattern::check_zero(&next)?;
    answers(&device, Free { client_id: id }, Status::Ok)
}

/// Deferred memory leaves the window and comes back elsewhere with its bytes, written by CPU or GPU meanwhile.
pub fn contents_survive_unmap(setup: &Setup) -> Result<()> {
    let device = setup.open()?;
    let sizes = [4096, 64 << 10, 3 * MIB];
    let memories = sizes.map(|size| device.allocate(&AllocateInfo::new(size).deferred()));
    let memories = memories.into_iter().collect::<Result<Vec<_>, _>>()?;
    let witness = own(&device, 3 * MIB)?;
    for round in 0..4_u64 {
        for (seed, memory) in (round..).zip(&memories) {
            pattern::write(memory, seed)?;
            memory.unmap();
        }
        // Others take the places meanwhile.
        let others = sizes.map(|size| own(&device, size));
        for other in others {
            let other = other?;
            pattern::check_zero(&other)?;
            pattern::write(&other, 99)?;
        }
        for (seed, memory) in (round..).zip(&memories) {
            pattern::check(memory, seed).with_context(|| format!("round {round}"))?;
            memory.unmap();
            memory.unmap();
            // While it has no place, the host GPU reaches it.
            done(device.copy(memory, 0, &witness, 0, memory.size()))?;
            pattern::check_at(&witness, 0, &pattern::bytes(seed, 0, memory.size()))?;
            done(device.fill(memory, 4, 8, 0xffff_ffff))?;
            pattern::check_at(memory, 0, &pattern::bytes(seed, 0, 4))?;
            pattern::check_at(memory, 4, &[0xff; 8])?;
            pattern::check_at(memory, 12, &pattern::bytes(seed, 12, memory.size() - 12))?;
        }
    }
    // Memory with a blob of its own keeps its place, and its bytes too.
    let direct = own(&device, 64 << 10)?;
    pattern::write(&direct, 5)?;
    direct.unmap();
    pattern::check(&direct, 5)
}

fn leaves_nothing(setup: &Setup, end: fn(Peer) -> Result<()>) -> Result<()> {
    let device = setup.open()?;
    let before = device.budget(0)?;
    // The second starts from what the first left.
    for _ in 0..2 {
        let large = vec![(16 * MIB).to_string(); 12];
        let small = vec![4096.to_string(); 100];
        let (peer, _) = Peer::start(setup, "hold", &[large, small].concat())?;
        let during = device.budget(0)?;
        let least = MEMORY_LIMIT - 192 * MIB + before.usage;
        ensure!(
            during.budget < least,
            "the peer's memory does not count: {during:?}"
        );
        end(peer)?;
        eventually("its memory is free", || Ok(device.budget(0)? == before))?;
        let memory = own(&device, CONTEXT_LIMIT - 8 * MIB)?;
        pattern::check_zero(&memory)?;
    }
    eventually("our memory is free", || Ok(device.budget(0)? == before))
}

/// A process that ends with memory of all sizes.
pub fn ended_process_leaves_nothing(setup: &Setup) -> Result<()> {
    leaves_nothing(setup, Peer::finish)
}

/// A process that is killed (SIGKILL) with live blobs.
pub fn killed_process_leaves_nothing(setup: &Setup) -> Result<()> {
    leaves_nothing(setup, Peer::kill)
}

/// Contexts are opened, used and closed, many times; two of one process at a time do not know each other.
pub fn contexts_come_and_go(setup: &Setup) -> Result<()> {
    let first = setup.open()?;
    let before = first.budget(0)?;
    for round in 0..60_u64 {
        let second = setup.open()?;
        let (a, b) = (own(&first, 4096)?, own(&second, 4096)?);
        pattern::write(&a, round)?;
        pattern::write(&b, round + 1)?;
        pattern::check(&a, round)?;
        let (mine, theirs) = (a.client_id(), second.reserve_client_id() + 1000);
        let copy = Copy {
            source: range(theirs, 0, 4096),
            destination_client_id: mine,
            destination_offset: 0,
        };
        answers(&first, copy, Status::UnknownClientId)?;
        if round % 2 == 0 {
            drop(second);
            pattern::check(&b, round + 1).context("memory outlives the handle that made it")?;
        }
    }
    eventually("all memory is free", || Ok(first.budget(0)? == before))
}

/// Four threads allocate, write, have the host copy, check and free at once, on one device.
pub fn threads_share_a_device(setup: &Setup) -> Result<()> {
    let options = OpenOptions {
        pool: PoolOptions {
            first_block: 4 * MIB,
            largest_block: 4 * MIB,
            shards: 4,
            ..PoolOptions::default()
        },
        endpoint: setup.socket.clone().map_or(
            hostblob_guest::Endpoint::AnyRenderNode,
            hostblob_guest::Endpoint::Socket,
        ),
        ..OpenOptions::default()
    };
    let device = hostblob_guest::Device::open(&options)?;
    let one = |thread: u64| -> Result<()> {
        let mut live = Vec::new();
        for round in 0..60_u64 {
            let seed = thread * 1000 + round;
            let size = [700, 4096, 9000, 65536][(round % 4) as usize];
            let info = AllocateInfo::new(size);
            let info = if round % 5 == 0 {
                info.dedicated()
            } else {
                info
            };
            let memory = device.allocate(&info)?;
            pattern::write(&memory, seed)?;
            if round % 4 == 3 {
                let copied = device.allocate(&info)?;
                done(device.copy(&memory, 0, &copied, 0, size))?;
                pattern::check(&copied, seed)?;
                done(device.fill(&copied, 0, WHOLE_SIZE, 0))?;
            }
            live.push((seed, memory));
            if live.len() > 20 {
                let (seed, memory) = live.swap_remove((round * 7 % 20) as usize);
                pattern::check(&memory, seed)?;
            }
        }
        live.iter()
            .try_for_each(|(seed, memory)| pattern::check(memory, *seed))
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (1..=4)
            .map(|thread| scope.spawn(move || one(thread)))
            .collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().expect("no thread panics"))
    })?;
    ensure!(
        device.statistics().suballocations == 0,
        "{:?}",
        device.statistics()
    );
    Ok(())
}
