//! What processes beside the daemon see of a guest's memory, and it of theirs: both sides are here.
//!
//! The daemon needs udmabuf, which a host may lack, and the kernel of our virtual machine has. So it runs in there, with its sockets and no
//! VMM.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use hostblob_export::{BlobId, Client, Event, Exported, Mapping};
use hostblob_guest::protocol::request::request_bit;
use hostblob_guest::{
    ALL_BUFFERS, AllocateInfo, BufferInfo, BufferPool, Device, Endpoint, Error, Memory,
    OpenOptions, Status, WHOLE_SIZE,
};
use rustix::fs::{MemfdFlags, SealFlags};

use crate::pattern;
use crate::scenario::{PATIENCE, done, refused};

/// XR24, DRM_FORMAT_XRGB8888.
const XR24: u32 = 0x3432_5258;
const SIZE: u64 = 1 << 20;
const FRAME: BufferInfo = BufferInfo {
    offset: 0,
    width: 64,
    height: 64,
    stride: 256,
    fourcc: XR24,
    modifier: 0,
};

/// Where the daemon is.
#[derive(Debug, Clone)]
pub struct Sockets {
    /// Its local socket.
    pub local: PathBuf,
    /// Its export socket.
    pub export: PathBuf,
    /// hostblobd itself.
    pub daemon: PathBuf,
    /// The folder with the examples of the libraries.
    pub examples: PathBuf,
}

/// What must hold.
pub type Check = fn(&Sockets) -> Result<()>;

/// The one list of the checks, by what they need: hands it to another macro.
#[macro_export]
macro_rules! for_each_export_check {
    ($macro:ident) => {
        $macro! {
            with_udmabuf {
                frames_are_seen_without_a_copy,
                two_memories_are_flipped_with_two_descriptors,
                buffers_of_a_pool_are_offsets_in_one_descriptor,
                a_descriptor_shows_its_memory_and_nothing_else,
                freed_memory_stays_with_who_holds_it,
                memory_that_is_open_does_not_move,
                waits_end_with_release_timeout_and_leaving,
                memory_of_others_is_imported,
                device_memory_is_mapped_from_its_own_dma_buf,
                example_writes_a_frame_to_a_png,
                example_flips_two_memories,
                example_flips_two_buffers_of_a_pool,
                example_fills_memory_that_was_handed_in,
            }
            without_udmabuf {
                without_udmabuf_exports_are_not_offered,
                without_udmabuf_memory_of_others_is_imported,
                without_udmabuf_no_device_memory_is_mapped,
            }
        }
    };
}

macro_rules! registry {
    (with_udmabuf { $($with:ident,)* } without_udmabuf { $($without:ident,)* }) => {
        /// Checks for a kernel with udmabuf.
        pub const WITH_UDMABUF: &[(&str, Check)] = &[$((stringify!($with), $with),)*];
        /// Checks for one without.
        pub const WITHOUT_UDMABUF: &[(&str, Check)] = &[$((stringify!($without), $without),)*];
    };
}
for_each_export_check!(registry);

impl Sockets {
    fn device(&self) -> Result<Device> {
        let options = OpenOptions {
            endpoint: Endpoint::Socket(self.local.clone()),
            ..OpenOptions::default()
        };
        Ok(Device::open(&options)?)
    }

    fn client(&self) -> Result<Client> {
        Ok(Client::connect(&self.export)?)
    }
}

fn shareable(device: &Device, name: &str) -> Result<Memory> {
    let info = AllocateInfo::new(SIZE).shareable().dedicated().name(name);
    Ok(device.allocate(&info)?)
}

/// The blob of this name.
fn find(client: &mut Client, name: &str) -> Result<BlobId> {
    let blobs = client.list()?;
    let found = blobs.iter().find(|blob| blob.name == name);
    Ok(found
        .with_context(|| format!("no blob {name} in {blobs:?}"))?
        .id)
}

fn open(client: &mut Client, name: &str) -> Result<Exported> {
    let id = find(client, name)?;
    Ok(client.open(id)?)
}

fn next_present(client: &mut Client) -> Result<(BlobId, u64)> {
    loop {
        match client.next_event(PATIENCE)? {
            Some(Event::Presented { blob, offset, .. }) => return Ok((blob, offset)),
            Some(_) => {}
            None => bail!("nothing was presented"),
        }
    }
}

fn look(exported: &Exported) -> Result<Mapping> {
    let mapping = Mapping::new(&exported.descriptor, exported.size)?;
    ensure!(mapping.is_dma_buf(), "the descriptor is no dma-buf");
    Ok(mapping)
}

fn shows(mapping: &Mapping, offset: u64, expected: &[u8]) -> Result<()> {
    let mut bytes = vec![0; expected.len()];
    mapping.read(offset, &mut bytes)?;
    let wrong = bytes.iter().zip(expected).position(|(a, b)| a != b);
    ensure!(
        wrong.is_none(),
        "byte {wrong:?} from {offset:#x} on is wrong"
    );
    Ok(())
}

fn whole(seed: u64) -> Vec<u8> {
    pattern::bytes(seed, 0, SIZE)
}

fn frames_are_seen_without_a_copy(sockets: &Sockets) -> Result<()> {
    let device = sockets.device()?;
    let needed = request_bit::PUBLISH | request_bit::PRESENT | request_bit::WAIT_RELEASED;
    let offered = device.capabilities().offer.requests;
    ensure!(offered & needed == needed, "offered: {offered:#x}");
    let memory = shareable(&device, "frame")?;
    memory.publish(&FRAME)?;
    let mut client = sockets.client()?;
    let id = find(&mut client, "frame")?;
    let exported = client.open(id)?;
    ensure!(exported.size == SIZE, "{} bytes", exported.size);
    let buffer = exported.buffers.first().context("no buffer")?;
    let layout = buffer.layout;
    ensure!(
        (layout.width, layout.height, layout.stride, layout.fourcc) == (64, 64, 256, XR24),
        "{layout:?}"
    );
    let mapping = look(&exported)?;
    for seed in 1..4 {
        pattern::write(&memory, seed)?;
        memory.present(0)?;
        ensure!(next_present(&mut client)? == (id, 0), "another buffer");
        shows(&mapping, 0, &whole(seed))?;
        client.release(id, 0)?;
        memory.wait_released(0, Some(PATIENCE))?;
    }
    // What the host GPU writes is seen too.
    done(device.fill(&memory, 0, WHOLE_SIZE, 0x0403_0201))?;
    shows(&mapping, SIZE - 8, &[1, 2, 3, 4, 1, 2, 3, 4])?;
    client.close(id)?;
    Ok(())
}

fn two_memories_are_flipped_with_two_descriptors(sockets: &Sockets) -> Result<()> {
    let device = sockets.device()?;
    let memories = [shareable(&device, "front")?, shareable(&device, "back")?];
    let mut client = sockets.client()?;
    let mut views = Vec::new();
    for (memory, name) in memories.iter().zip(["front", "back"]) {
        memory.publish(&FRAME)?;
        let exported = open(&mut client, name)?;
        views.push((exported.id, look(&exported)?));
    }
    for (seed, turn) in (10..20).zip([0, 1].into_iter().cycle()) {
        let (memory, (id, mapping)) = (&memories[turn], &views[turn]);
        memory.wait_released(0, Some(PATIENCE))?;
        pattern::write(memory, seed)?;
        memory.present(0)?;
        ensure!(next_present(&mut client)? == (*id, 0), "the other memory");
        shows(mapping, 0, &whole(seed))?;
        client.release(*id, 0)?;
    }
    // The same buffer when it is asked for again.
    let (id, mapping) = &views[0];
    let again = look(&client.open(*id)?)?;
    pattern::write(&memories[0], 77)?;
    shows(mapping, 0, &whole(77))?;
    shows(&again, 0, &whole(77))
}

fn buffers_of_a_pool_are_offsets_in_one_descriptor(sockets: &Sockets) -> Result<()> {
    let device = sockets.device()?;
    let pool = BufferPool::new(&device, 8 * 64 * 64 * 4)?;
    let mut client = sockets.client()?;
    let buffers: Vec<_> = (0..4)
        .map(|_| pool.allocate(64, 64, 4, XR24))
        .collect::<Result<_, _>>()?;
    let blob = client.list()?.pop().context("no pool")?;
    let exported = client.open(blob.id)?;
    let mapping = look(&exported)?;
    let offsets: Vec<u64> = exported.buffers.iter().map(|b| b.layout.offset).collect();
    let expected: Vec<u64> = buffers.iter().map(|buffer| buffer.offset()).collect();
    ensure!(offsets == expected, "{offsets:?}, not {expected:?}");
    for (seed, buffer) in (30..).zip(&buffers) {
        let bytes = pattern::bytes(seed, 0, buffer.size());
        buffer.write(0, &bytes)?;
        buffer.present()?;
        ensure!(
            next_present(&mut client)?.1 == buffer.offset(),
            "another buffer"
        );
        shows(&mapping, buffer.offset(), &bytes)?;
    }
    // Each is released by itself.
    client.release(blob.id, buffers[1].offset())?;
    buffers[1].wait_released(Some(PATIENCE))?;
    timed_out(buffers[2].wait_released(Some(Duration::ZERO)))
}

fn timed_out<T>(result: hostblob_guest::Result<T>) -> Result<()> {
    match result {
        Err(Error::Timeout) => Ok(()),
        Err(error) => bail!("{error}, not a timeout"),
        Ok(_) => bail!("it did not wait"),
    }
}

fn a_descriptor_shows_its_memory_and_nothing_else(sockets: &Sockets) -> Result<()> {
    let device = sockets.device()?;
    let before = shareable(&device, "before")?;
    let memory = shareable(&device, "shown")?;
    let after = shareable(&device, "after")?;
    memory.publish(&FRAME)?;
    for (seed, memory) in [(1, &before), (2, &memory), (3, &after)] {
        pattern::write(memory, seed)?;
    }
    let mut client = sockets.client()?;
    let exported = open(&mut client, "shown")?;
    let end = rustix::fs::seek(&exported.descriptor, rustix::fs::SeekFrom::End(0))?;
    ensure!(end == SIZE, "the dma-buf has {end} bytes");
    shows(&look(&exported)?, 0, &whole(2))?;
    ensure!(
        Mapping::new(&exported.descriptor, 2 * SIZE).is_err(),
        "more than the memory can be mapped"
    );
    let names: Vec<String> = client.list()?.into_iter().map(|blob| blob.name).collect();
    ensure!(
        names == ["shown"],
        "what was not shared is listed: {names:?}"
    );
    refused(
        device
            .allocate(&AllocateInfo::new(SIZE).dedicated())?
            .publish(&FRAME),
        Status::NotShareable,
        "a buffer in memory that is not shareable",
    )
}

fn freed_memory_stays_with_who_holds_it(sockets: &Sockets) -> Result<()> {
    let device = sockets.device()?;
    let memory = shareable(&device, "freed")?;
    memory.publish(&FRAME)?;
    pattern::write(&memory, 5)?;
    let mut client = sockets.client()?;
    let id = find(&mut client, "freed")?;
    let exported = client.open(id)?;
    let mapping = look(&exported)?;
    drop(memory);
    loop {
        match client.next_event(PATIENCE)? {
            Some(Event::Destroyed(gone)) if gone == id => break,
            Some(_) => {}
            None => bail!("nobody says that it is gone"),
        }
    }
    // All of what the guest gets now is zeros, and none of it is what the other process holds.
    let others: Vec<_> = (0..8)
        .map(|_| shareable(&device, "next"))
        .collect::<Result<_>>()?;
    for other in &others {
        pattern::check_zero(other)?;
        pattern::write(other, 6)?;
    }
    shows(&mapping, 0, &whole(5)).context("memory that the guest has freed")?;
    ensure!(client.open(id).is_err(), "what is gone cannot be opened");
    client.close(id)?;
    Ok(())
}

fn memory_that_is_open_does_not_move(sockets: &Sockets) -> Result<()> {
    let device = sockets.device()?;
    let info = AllocateInfo::new(SIZE)
        .shareable()
        .deferred()
        .name("deferred");
    let memory = device.allocate(&info)?;
    pattern::write(&memory, 8)?;
    memory.publish(&FRAME)?;
    let mut client = sockets.client()?;
    let exported = open(&mut client, "deferred")?;
    let mapping = look(&exported)?;
    shows(&mapping, 0, &whole(8))?;
    pattern::check(&memory, 8)?;
    pattern::write(&memory, 9)?;
    shows(&mapping, 0, &whole(9)).context("after more of the guest's writes")
}

fn waits_end_with_release_timeout_and_leaving(sockets: &Sockets) -> Result<()> {
    let device = sockets.device()?;
    let memory = shareable(&device, "waited for")?;
    memory.publish(&FRAME)?;
    let mut client = sockets.client()?;
    let mut other = sockets.client()?;
    let id = find(&mut client, "waited for")?;
    let (_one, _two) = (client.open(id)?, other.open(id)?);
    memory.present(0)?;
    timed_out(memory.wait_released(0, Some(Duration::from_millis(50))))?;
    next_present(&mut client)?;
    client.release(id, 0)?;
    timed_out(memory.wait_released(0, Some(Duration::from_millis(50))))
        .context("the other one still uses it")?;
    let fence = memory.released_fence(0, Some(PATIENCE))?;
    // GPU work is not behind it.
    done(device.fill(&memory, 0, WHOLE_SIZE, 1))?;
    next_present(&mut other)?;
    other.release(id, 0)?;
    fence.wait(Some(PATIENCE))?;
    timed_out(memory.wait_released(ALL_BUFFERS, Some(Duration::ZERO)))?;
    client.close(id)?;
    drop(other);
    memory.wait_released(ALL_BUFFERS, Some(PATIENCE))?;
    Ok(())
}

fn memory_of_others_is_imported(sockets: &Sockets) -> Result<()> {
    let device = sockets.device()?;
    let mut client = sockets.client()?;
    memfd_is_imported(&device, &mut client)?;

    // A dma-buf too: that of memory of ours, through which the guest sees itself.
    let source = shareable(&device, "source")?;
    source.publish(&FRAME)?;
    pattern::write(&source, 42)?;
    let exported = open(&mut client, "source")?;
    let token = client.hand_in(&exported.descriptor)?;
    let imported = device.import(token.0)?;
    let mine = device.allocate(&AllocateInfo::new(SIZE).dedicated())?;
    done(device.copy(&imported, 0, &mine, 0, SIZE))?;
    pattern::check(&mine, 42)?;
    client.take_back(token)?;
    refused(
        device.import(token.0),
        Status::UnknownUuid,
        "import by a token that was taken back",
    )?;
    done(device.fill(&imported, 0, WHOLE_SIZE, 7))?;
    pattern::check_words(&source, 7).context("an import outlives its token")
}

fn without_udmabuf_exports_are_not_offered(sockets: &Sockets) -> Result<()> {
    let device = sockets.device()?;
    let exporting = request_bit::PUBLISH
        | request_bit::WITHDRAW
        | request_bit::PRESENT
        | request_bit::WAIT_RELEASED;
    let offered = device.capabilities().offer.requests;
    ensure!(offered & exporting == 0, "offered: {offered:#x}");
    let memory = shareable(&device, "frame")?;
    refused(
        memory.publish(&FRAME),
        Status::Unsupported,
        "a buffer that nobody could open",
    )
}

fn without_udmabuf_memory_of_others_is_imported(sockets: &Sockets) -> Result<()> {
    memfd_is_imported(&sockets.device()?, &mut sockets.client()?)
}

fn memfd_is_imported(device: &Device, client: &mut Client) -> Result<()> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let memfd = File::from(rustix::fs::memfd_create("theirs", flags)?);
    rustix::fs::ftruncate(&memfd, SIZE)?;
    ensure!(client.hand_in(&memfd).is_err(), "a memfd that can shrink");
    rustix::fs::fcntl_add_seals(&memfd, SealFlags::SHRINK)?;
    memfd.write_all_at(&whole(40), 0)?;
    let token = client.hand_in(&memfd)?;
    let imported = device.import(token.0)?;
    ensure!(imported.size() == SIZE, "{} bytes", imported.size());
    let mine = device.allocate(&AllocateInfo::new(SIZE).dedicated())?;
    done(device.copy(&imported, 0, &mine, 0, SIZE))?;
    pattern::check(&mine, 40)?;
    pattern::write(&mine, 41)?;
    done(device.copy(&mine, 0, &imported, 0, SIZE))?;
    let mut bytes = vec![0; SIZE as usize];
    memfd.read_exact_at(&mut bytes, 0)?;
    ensure!(bytes == whole(41), "what the guest wrote is not there");
    Ok(())
}

/// An example that runs, until it has ended or this is dropped.
struct Example(Child);

impl Example {
    fn start(sockets: &Sockets, name: &str, arguments: &[&str]) -> Result<Self> {
        let mut command = Command::new(sockets.examples.join(name));
        command
            .args(arguments)
            .env(hostblob_guest::ENV_SOCKET, &sockets.local)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let child = command.spawn();
        Ok(Self(
            child.with_context(|| format!("{name} cannot be run"))?,
        ))
    }

    /// What it says until it ends, which it does with 0.
    fn end(mut self) -> Result<String> {
        drop(self.0.stdin.take());
        let mut text = String::new();
        let mut stdout = self.0.stdout.take().context("no pipe")?;
        stdout.read_to_string(&mut text)?;
        let status = self.0.wait()?;
        ensure!(status.success(), "it ended with {status}: {text}");
        Ok(text)
    }
}

impl Drop for Example {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn export_socket(sockets: &Sockets) -> Result<&str> {
    sockets.export.to_str().context("a path in UTF-8")
}

fn example_writes_a_frame_to_a_png(sockets: &Sockets) -> Result<()> {
    let path = "/tmp/frame.png";
    let viewer = Example::start(sockets, "frame_to_png", &[export_socket(sockets)?, path])?;
    let drawing = Example::start(sockets, "draw_frames", &["1000"])?;
    print!("{}", viewer.end()?);
    drop(drawing);
    let bytes = std::fs::read(path)?;
    ensure!(bytes.starts_with(b"\x89PNG\r\n\x1a\n"), "not a PNG");
    let dimension = |at: usize| bytes.get(at..at + 4);
    ensure!(
        dimension(16) == Some(&640_u32.to_be_bytes())
            && dimension(20) == Some(&480_u32.to_be_bytes()),
        "not 640 x 480"
    );
    Ok(())
}

fn flips(sockets: &Sockets, drawing: &[&str], expected: &str) -> Result<()> {
    let viewer = Example::start(sockets, "double_buffer", &[export_socket(sockets)?, "10"])?;
    let drawing = Example::start(sockets, "draw_frames", drawing)?;
    let text = viewer.end()?;
    drop(drawing);
    ensure!(text.contains(expected), "{text}");
    Ok(())
}

fn example_flips_two_memories(sockets: &Sockets) -> Result<()> {
    flips(sockets, &["1000"], "10 flips, 2 different buffers")
}

fn example_flips_two_buffers_of_a_pool(sockets: &Sockets) -> Result<()> {
    flips(sockets, &["1000", "pool"], "10 flips, 1 different buffers")
}

fn example_fills_memory_that_was_handed_in(sockets: &Sockets) -> Result<()> {
    let mut owner = Example::start(sockets, "hand_in", &[export_socket(sockets)?])?;
    let mut token = String::new();
    let mut stdout = BufReader::new(owner.0.stdout.take().context("no pipe")?);
    stdout.read_line(&mut token)?;
    let guest = Example::start(sockets, "share", &[token.trim()])?;
    let text = guest.end()?;
    ensure!(text.contains("filled"), "{text}");
    drop(owner.0.stdin.take());
    let mut seen = String::new();
    stdout.read_to_string(&mut seen)?;
    ensure!(seen.contains("***************"), "{seen}");
    ensure!(owner.0.wait()?.success(), "hand_in failed");
    Ok(())
}

/// What a program of the daemon's side says of Vulkan.
fn vulkan(program: &Path, argument: &str) -> Result<String> {
    let mut command = Command::new(program);
    let output = command.arg(argument).output();
    let output = output.with_context(|| format!("{} cannot be run", program.display()))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "it ended with {}: {text}{errors}",
        output.status
    );
    print!("{text}");
    Ok(text)
}

/// Mesa's driver for the CPU exports memory by udmabuf.
fn device_memory_is_mapped_from_its_own_dma_buf(sockets: &Sockets) -> Result<()> {
    let table = vulkan(&sockets.daemon, "info")?;
    let row = table.lines().find(|line| line.contains("exported dma-buf"));
    let row = row.context("info has no row for exported memory")?;
    ensure!(row.ends_with(" works"), "{row}");
    let text = vulkan(&sockets.examples.join("each_blob"), "vulkan")?;
    for place in ["the window", "a dma-buf of device memory"] {
        let line =
            format!("mapped from {place}: new memory has 0, the guest wrote 1, the host GPU 42");
        ensure!(text.contains(&line), "not {line}");
    }
    Ok(())
}

fn without_udmabuf_no_device_memory_is_mapped(sockets: &Sockets) -> Result<()> {
    let table = vulkan(&sockets.daemon, "info")?;
    let mut rows = table
        .lines()
        .filter(|line| line.contains("exported dma-buf"));
    ensure!(rows.all(|row| !row.ends_with(" works")), "it works");
    let text = vulkan(&sockets.examples.join("each_blob"), "vulkan")?;
    ensure!(text.contains("mapped from the window"), "no window type");
    ensure!(!text.contains("dma-buf of device memory"), "it is offered");
    Ok(())
}
