//! `demo [--socket PATH] [--brief]`: hostblob's main job as a short story. Ends with 0 when all of it is true. `--brief` measures nothing.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use hostblob_guest::capset::{Cache, Provider};
use hostblob_guest::{AllocateInfo, Device, ENV_SOCKET, OpenOptions, Status, TransportKind};
use hostblob_tests::raw::Node;
use hostblob_tests::scenario::PATIENCE;
use hostblob_tests::{latency, pattern};

const SIZE: u64 = 16 << 20;
const RUNS: usize = 200;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (brief, arguments) = match arguments.as_slice() {
        [rest @ .., "--brief"] => (true, rest),
        all => (false, all),
    };
    let device = match arguments {
        [] => story(&OpenOptions::default(), None)?,
        ["--socket", path] => story(&OpenOptions::socket(path), Some(PathBuf::from(path)))?,
        ["--stranger", id] => return stranger(id.parse()?),
        _ => bail!("demo [--socket PATH] [--brief]"),
    };
    if brief { Ok(()) } else { measure(&device) }
}

fn story(options: &OpenOptions, socket: Option<PathBuf>) -> Result<Device> {
    let device = Device::open(options).context("no device")?;
    introduce(&device);
    share(&device)?;
    isolate(&device, socket)?;
    Ok(device)
}

fn measure(device: &Device) -> Result<()> {
    println!("guest: how long a guest process waits for memory:");
    println!();
    let mut rows = match device.transport() {
        TransportKind::Drm => latency::measure(&Node::open()?, RUNS)?,
        TransportKind::Socket => latency::measure(device, RUNS)?,
    };
    rows.extend(latency::library(device, RUNS)?);
    print!("{}", latency::table(&rows));
    println!();
    if let Some(ratio) = latency::ratio(&rows) {
        println!(
            "guest: with 10,000 blobs alive a new one takes {ratio:.2} times as long as with none"
        );
    }
    Ok(())
}

fn introduce(device: &Device) {
    let capset = device.capabilities();
    let way = match device.transport() {
        TransportKind::Drm => "the kernel's render node",
        TransportKind::Socket => "the daemon's local socket",
    };
    let provider = match capset.provider {
        Provider::System => "no GPU, plain system memory",
        Provider::Vulkan => "Vulkan",
        Provider::Gl => "OpenGL",
    };
    println!(
        "guest: found {} ({}) through {way}",
        capset.device_name, capset.driver_name
    );
    println!(
        "guest: provider: {provider}; window: {} MiB; memory types:",
        capset.window_size >> 20
    );
    for (index, memory_type) in capset.types.iter().enumerate() {
        let cache = match memory_type.cache {
            Cache::Cached => "cached",
            Cache::Uncached => "uncached",
            Cache::WriteCombined => "write-combined",
        };
        let flags = memory_type.property_flags;
        let named = [
            (1, "device-local"),
            (2, "host-visible"),
            (4, "coherent"),
            (8, "cached"),
        ];
        let words: Vec<_> = named
            .iter()
            .filter(|(bit, _)| flags & bit != 0)
            .map(|(_, word)| *word)
            .collect();
        let mapping = if memory_type.is_host_visible() {
            format!(", mapped {cache}")
        } else {
            String::new()
        };
        println!("guest:   {index}: {}{mapping}", words.join(" "));
    }
}

/// The guest writes, the host GPU copies and fills, the guest reads.
fn share(device: &Device) -> Result<()> {
    let source = device.allocate(&AllocateInfo::new(SIZE).name("demo source"))?;
    let destination = device.allocate(&AllocateInfo::new(SIZE).name("demo destination"))?;
    pattern::check_zero(&source).context("fresh memory")?;
    println!(
        "guest: allocated two host-visible memories of {} MiB, mapped; they read as zeros",
        SIZE >> 20
    );
    pattern::write(&source, 1)?;
    source.flush(0, SIZE)?;
    println!("guest: wrote a pattern into the first");
    device
        .copy(&source, 0, &destination, 0, SIZE)?
        .wait(Some(PATIENCE))?;
    destination.invalidate(0, SIZE)?;
    pattern::check(&destination, 1).context("copied by the host GPU")?;
    println!("guest: the host GPU copied it into the second; all {SIZE} bytes are right");
    device
        .fill(&destination, 4096, 4096, 0x6c62_6f62)?
        .wait(Some(PATIENCE))?;
    pattern::check_at(&destination, 4096, &b"bobl".repeat(1024))
        .context("filled by the host GPU")?;
    pattern::check_at(&destination, 8192, &pattern::bytes(1, 8192, 4096))
        .context("beside the fill")?;
    println!("guest: the host GPU filled one page of it; the page says so, its neighbours do not");
    drop((source, destination));
    for round in 0..2 {
        let memory = device.allocate(&AllocateInfo::new(SIZE))?;
        pattern::check_zero(&memory).with_context(|| format!("memory used before, {round}"))?;
    }
    println!("guest: freed both; memory allocated now is zeros again");
    Ok(())
}

/// A second process cannot name our memory.
fn isolate(device: &Device, socket: Option<PathBuf>) -> Result<()> {
    let mut secret = device.allocate(&AllocateInfo::new(4096).dedicated())?;
    // The other process has memory of its own under the first numbers.
    while secret.client_id() < 8 {
        secret = device.allocate(&AllocateInfo::new(4096).dedicated())?;
    }
    secret.write(0, b"secret")?;
    let mut command = Command::new(std::env::current_exe()?);
    command
        .arg("--stranger")
        .arg(secret.client_id().to_string());
    if let Some(socket) = socket {
        command.env(ENV_SOCKET, socket);
    }
    let status = command
        .stdin(Stdio::null())
        .status()
        .context("the second process")?;
    ensure!(status.success(), "the second process ended with {status}");
    pattern::check_at(&secret, 0, b"secret")?;
    println!("guest: a second process asked for the memory of the first: refused, unknown there");
    Ok(())
}

fn stranger(client_id: u64) -> Result<()> {
    use hostblob_guest::MemoryRange;
    use hostblob_guest::protocol::request::{Copy, Fill};
    let device = Device::open(&OpenOptions::default())?;
    let mine = device.allocate(&AllocateInfo::new(4096).dedicated())?;
    ensure!(mine.client_id() != client_id, "the number is mine");
    let range = MemoryRange {
        client_id,
        offset: 0,
        length: 4096,
    };
    let copy = Copy {
        source: range,
        destination_client_id: mine.client_id(),
        destination_offset: 0,
    };
    for request in [copy.into(), Fill { range, value: 0 }.into()] {
        let answer = device.request(&[request])?;
        ensure!(
            answer.status == Status::UnknownClientId,
            "the host answers {:?}",
            answer.status
        );
    }
    pattern::check_zero(&mine)
}
