//! Two processes: what one has, the other neither reaches nor finds later.

use anyhow::{Context, Result, ensure};
use hostblob_guest::protocol::request::{
    BindClientId, CacheMode, Copy, Fill, Flush, Free, Invalidate, Map, OpenAnswers, Unmap,
};
use hostblob_guest::{Access, BlobInfo, CreateFlags, Device, Request, Status, WHOLE_SIZE};

use super::{Setup, answers, done, own, range};
use crate::pattern;
use crate::peer::Peer;

/// Sizes of one blob that is large against what a page is, and of some that are not.
const SIZES: [u64; 5] = [4096, 8192, 65536, 1 << 20, 24 << 20];

/// Names are those of a context: no request reaches memory of another process by its client id or resource id.
pub fn names_of_another_process_are_unknown(setup: &Setup) -> Result<()> {
    let sizes = [4096, 1 << 20, 65536, 4096].map(|size: u64| size.to_string());
    let (peer, line) = Peer::start(setup, "hold", &sizes)?;
    let ids: Vec<u64> = line.split(' ').map(str::parse).collect::<Result<_, _>>()?;
    let (&resource, client_ids) = ids.split_first().context("no ids")?;
    ensure!(client_ids.len() == sizes.len(), "{line}");
    let device = setup.open()?;
    for &theirs in client_ids {
        for request in requests_on(theirs) {
            answers(&device, request, Status::UnknownClientId)?;
        }
    }
    let mine = own(&device, 1 << 20)?;
    let foreign = client_ids
        .iter()
        .copied()
        .find(|&id| id != mine.client_id())
        .context("an id that is not mine")?;
    let read = Copy {
        source: range(foreign, 0, 4096),
        destination_client_id: mine.client_id(),
        destination_offset: 0,
    };
    answers(&device, read, Status::UnknownClientId)?;
    let written = Copy {
        source: range(mine.client_id(), 0, 4096),
        destination_client_id: foreign,
        destination_offset: 0,
    };
    answers(&device, written, Status::UnknownClientId)?;
    pattern::check_zero(&mine)?;
    blobs_of_foreign_names(&device, foreign)?;
    let agreed = *device.agreed();
    let stolen = OpenAnswers {
        resource_id: u32::try_from(resource)?,
        major: hostblob_guest::protocol::VERSION_MAJOR,
        minor: agreed.minor,
        requests: agreed.requests,
        create_flags: agreed.create_flags,
    };
    answers(&device, stolen, Status::InvalidArgument)?;
    peer.finish()
}

/// Everything that can be asked of one memory.
fn requests_on(client_id: u64) -> Vec<Request> {
    let range = range(client_id, 0, 4096);
    let map = Map {
        client_id,
        expected_cache: CacheMode::Any,
        access: Access::READ,
    };
    vec![
        Fill { range, value: 0 }.into(),
        Flush { range }.into(),
        Invalidate { range }.into(),
        map.into(),
        Unmap { client_id }.into(),
        BindClientId { client_id }.into(),
        Free { client_id }.into(),
    ]
}

fn blobs_of_foreign_names(device: &Device, blob_id: u64) -> Result<()> {
    let bind = [BindClientId { client_id: blob_id }.into()];
    let info = BlobInfo {
        blob_id,
        size: 4096,
        mappable: true,
        shareable: false,
        requests: &[],
    };
    ensure!(
        device.create_blob(&info).is_err(),
        "a blob of another process's memory"
    );
    let info = BlobInfo {
        requests: &bind,
        ..info
    };
    super::refused(
        device.create_blob(&info),
        Status::UnknownClientId,
        "a blob of another process's memory",
    )
}

fn comes_back_as_zeros(setup: &Setup, way: &str) -> Result<()> {
    let device = setup.open()?;
    for round in 0..3 {
        let mut arguments = vec![way.to_owned()];
        arguments.extend(SIZES.iter().map(u64::to_string));
        let (peer, line) = Peer::start(setup, "dirty", &arguments)?;
        ensure!(line == "done", "{line}");
        if way == "in-flight" {
            peer.kill()?;
        } else {
            peer.finish()?;
        }
        // The same sizes, so the same places; largest first, so that the place of one large blob becomes that of many.
        let memories = SIZES
            .iter()
            .rev()
            .map(|&size| own(&device, size))
            .collect::<Result<Vec<_>>>()?;
        for memory in &memories {
            pattern::check_zero(memory)
                .with_context(|| format!("round {round}, {} bytes", memory.size()))?;
        }
        for memory in &memories {
            done(device.fill(memory, 0, 4, 0x1))?;
            pattern::check_at(memory, 0, &[1, 0, 0, 0, 0, 0, 0, 0])?;
            pattern::check_at(memory, memory.size() - 8, &[0; 8])?;
        }
    }
    Ok(())
}

/// Written by the CPU, then freed by the end of the process.
pub fn memory_written_by_another_process_comes_back_as_zeros(setup: &Setup) -> Result<()> {
    comes_back_as_zeros(setup, "cpu")
}

/// Written by the host GPU.
pub fn memory_filled_by_another_process_comes_back_as_zeros(setup: &Setup) -> Result<()> {
    comes_back_as_zeros(setup, "gpu")
}

/// The process is killed while the host GPU may still be writing: late writes go nowhere.
pub fn memory_still_being_filled_comes_back_as_zeros(setup: &Setup) -> Result<()> {
    comes_back_as_zeros(setup, "in-flight")
}

/// The same place within one process: by CPU, by GPU, and while the GPU may still be writing.
pub fn memory_freed_by_this_process_comes_back_as_zeros(setup: &Setup) -> Result<()> {
    let device = setup.open()?;
    for round in 0..12 {
        for size in SIZES {
            let memory = own(&device, size)?;
            pattern::check_zero(&memory).with_context(|| format!("round {round}, {size} bytes"))?;
            match round % 3 {
                0 => pattern::write(&memory, round)?,
                1 => done(device.fill(&memory, 0, WHOLE_SIZE, 0xeeee_eeee))?,
                _ => drop(device.fill(&memory, 0, WHOLE_SIZE, 0xcccc_cccc)?),
            }
        }
        for size in SIZES {
            let blob = device.create_plain_blob(size)?;
            pattern::check_zero(&blob)
                .with_context(|| format!("round {round}, plain blob of {size} bytes"))?;
        }
    }
    ensure!(
        device
            .agreed()
            .create_flags
            .contains(CreateFlags::MAP_DIRECTLY),
        "all of it was direct"
    );
    Ok(())
}
