//! What only a guest kernel can do: dma-bufs and sync files.

use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use hostblob_guest::{AllocateInfo, Status, WHOLE_SIZE};
use rustix::event::{PollFd, PollFlags, Timespec};

use super::{PATIENCE, Setup, done, own, refused};
use crate::pattern;
use crate::peer::{PEER_FILL, Peer, SEED};
use crate::raw::Node;

/// PRIME: another process takes in a dma-buf of our memory, sees our bytes, writes its own; both CPU and host GPU here see those.
pub fn dma_buf_goes_to_another_process(setup: &Setup) -> Result<()> {
    let device = setup.open()?;
    let size = 1 << 20;
    let infos = [
        AllocateInfo::new(size).shareable(),
        AllocateInfo::new(size).shareable().deferred(),
    ];
    for info in infos {
        let memory = device.allocate(&info)?;
        pattern::write(&memory, SEED)?;
        let buffer = memory.export_dma_buf()?;
        let mut peer = Peer::spawn(setup, "import", &[], Stdio::from(buffer))?;
        let line = peer.line()?;
        ensure!(
            line == size.to_string(),
            "the other process took in {line} bytes"
        );
        peer.finish()?;
        pattern::check(&memory, SEED + 1)
            .with_context(|| format!("written by the other process, {info:?}"))?;
        let copied = own(&device, size)?;
        done(device.copy(&memory, 0, &copied, 0, size))?;
        pattern::check(&copied, SEED + 1)?;
    }
    // A dma-buf keeps the bytes alive, and what becomes of them when it is closed is nobody's.
    let memory = device.allocate(&AllocateInfo::new(size).shareable())?;
    pattern::write(&memory, SEED)?;
    let buffer = memory.export_dma_buf()?;
    drop(memory);
    let other = own(&device, size)?;
    pattern::check_zero(&other)?;
    let mut peer = Peer::spawn(setup, "import", &[], Stdio::from(buffer))?;
    peer.line()
        .context("a dma-buf of memory that its maker has dropped")?;
    peer.finish()?;
    pattern::check_zero(&other)?;
    refused(
        own(&device, 4096)?.export_dma_buf(),
        Status::FlagsMismatch,
        "export of memory that is not shareable",
    )
}

/// Another process names our memory by the UUID that we gave it, and the host GPU works on it for both.
pub fn memory_is_shared_by_uuid(setup: &Setup) -> Result<()> {
    let device = setup.open()?;
    let size = 1 << 20;
    let memory = device.allocate(&AllocateInfo::new(size).shareable())?;
    pattern::write(&memory, SEED)?;
    let uuid = memory.share()?;
    ensure!(memory.share()? == uuid, "the same UUID each time");
    let text = uuid.map(|byte| format!("{byte:02x}")).concat();
    let (peer, line) = Peer::start(setup, "import_uuid", std::slice::from_ref(&text))?;
    ensure!(
        line == size.to_string(),
        "the other process sees {line} bytes"
    );
    pattern::check_words(&memory, PEER_FILL).context("filled for the other process")?;
    // It outlives us: what the other process has a name for stays.
    drop(memory);
    peer.finish()?;
    let other = own(&device, size)?;
    pattern::check_zero(&other)?;
    refused(
        device.import(uuid),
        Status::UnknownUuid,
        "import of what nobody shares any more",
    )?;
    refused(
        own(&device, size)?.share(),
        Status::NotShareable,
        "sharing of memory that is not shareable",
    )
}

/// Memory in the guest's own pages: the kernel maps it, the host GPU works on it where it is, and nothing of it is charged.
pub fn gpu_works_on_guest_pages(setup: &Setup) -> Result<()> {
    let device = setup.open()?;
    let heap = 0;
    let used = device.budget(heap)?.usage;
    for size in [4096, 1 << 20, 16 << 20] {
        let pages = device.allocate_guest(size).context("guest pages")?;
        ensure!(pages.size() == size, "{size} bytes");
        pattern::check_zero(&pages)?;
        let with_pages = device.budget(heap)?.usage;
        ensure!(
            with_pages == used,
            "{size} bytes of the guest's own are charged"
        );
        pattern::write(&pages, SEED)?;
        let host = own(&device, size)?;
        done(device.copy(&pages, 0, &host, 0, size))?;
        pattern::check(&host, SEED).context("copied from guest pages")?;
        done(device.fill(&host, 0, WHOLE_SIZE, 0x1234_5678))?;
        done(device.copy(&host, 0, &pages, 0, size))?;
        pattern::check_words(&pages, 0x1234_5678).context("copied to guest pages")?;
        done(device.fill(&pages, 0, WHOLE_SIZE, 0x9abc_def0))?;
        pattern::check_words(&pages, 0x9abc_def0).context("filled guest pages")?;
        // Dropped with work under way: the kernel gives the pages to others when the host has let go of them, and not before.
        let fence = device.fill(&pages, 0, WHOLE_SIZE, 0xffff_ffff)?;
        drop(pages);
        fence.wait(Some(PATIENCE))?;
    }
    Ok(())
}

/// A blob with memory of the host and pages of the guest: transfers copy between the two what they are asked to, and nothing else.
pub fn transfers_move_the_bytes_asked_for(_: &Setup) -> Result<()> {
    let node = Node::open()?;
    let blob = node.create_with_pages(8192)?;
    let pages = node.map(&blob)?;
    ensure!(pages.first_not_zero().is_none(), "pages are not zeros");
    let pattern = |index: usize| 0x1111_2222_3333_0000 + index as u64;
    for index in 0..512 {
        pages.store(index, pattern(index));
    }
    node.to_host(&blob, 0, 4096, 4096)?;
    for index in 0..512 {
        pages.store(index, 0);
    }
    ensure!(
        pages.first_not_zero().is_none(),
        "the other page was written"
    );
    // 16 bytes of what is there now, and of what was never written.
    node.from_host(&blob, 64, 4096 + 8, 16)?;
    node.from_host(&blob, 4096, 0, 4096)?;
    for index in 0..pages.words() {
        let expected = match index {
            8 => pattern(1),
            9 => pattern(2),
            _ => 0,
        };
        let found = pages.load(index);
        ensure!(
            found == expected,
            "word {index} is {found:#x}, not {expected:#x}"
        );
    }
    drop(pages);
    node.close(blob)
}

/// A fence as a sync file: readable when the host is done, and not before the bytes are there.
pub fn sync_file_signals(setup: &Setup) -> Result<()> {
    let device = setup.open()?;
    let memory = own(&device, 8 << 20)?;
    for value in 1..10_u32 {
        let fence = device.fill(&memory, 0, WHOLE_SIZE, value)?;
        let file = fence.export_sync_file()?;
        drop(fence);
        let mut poll = [PollFd::new(&file, PollFlags::IN)];
        let timeout = Timespec {
            tv_sec: i64::try_from(PATIENCE.as_secs())?,
            tv_nsec: 0,
        };
        ensure!(
            rustix::event::poll(&mut poll, Some(&timeout))? == 1,
            "the sync file does not signal"
        );
        pattern::check_words(&memory, value)?;
    }
    Ok(())
}
