//! Another process with a context of its own: a guest application beside the one under test.
//!
//! It is the program `scenarios` with `--peer ROLE ARGUMENTS`: it does its part, prints one line, waits until its standard input
//! ends, checks what it has to check, and ends with 0.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::process::{Child, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use hostblob_guest::{AllocateInfo, Device, Memory, OpenOptions, WHOLE_SIZE};

use crate::pattern;
use crate::scenario::Setup;

/// What it wrote everywhere.
pub const SEED: u64 = 0x5ec2e7;

/// What it filled memory with that it imported by UUID.
pub const PEER_FILL: u32 = 0x7ee7_7ee7;

/// The other process, seen from here. Killed when dropped.
#[derive(Debug)]
pub struct Peer {
    child: Child,
    stdout: BufReader<ChildStdout>,
}

impl Peer {
    /// Starts it, and returns when it has printed its line.
    pub fn start(setup: &Setup, role: &str, arguments: &[String]) -> Result<(Self, String)> {
        let mut peer = Self::spawn(setup, role, arguments, Stdio::piped())?;
        let line = peer.line()?;
        Ok((peer, line))
    }

    /// Starts it with this standard input.
    pub fn spawn(setup: &Setup, role: &str, arguments: &[String], stdin: Stdio) -> Result<Self> {
        let mut command = Command::new(&setup.program);
        command.arg("--peer").arg(role).args(arguments);
        if let Some(socket) = &setup.socket {
            command.env(hostblob_guest::ENV_SOCKET, socket);
        }
        let mut child = command
            .stdin(stdin)
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("{} cannot be run", setup.program.display()))?;
        let stdout = BufReader::new(child.stdout.take().context("no pipe")?);
        Ok(Self { child, stdout })
    }

    /// Its next line.
    pub fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        ensure!(
            line.ends_with('\n'),
            "the peer ended early: {:?}",
            self.child.wait()
        );
        Ok(line.trim_end().to_owned())
    }

    /// Lets it go on, and waits for its end.
    pub fn finish(mut self) -> Result<()> {
        drop(self.child.stdin.take());
        let status = self.child.wait()?;
        ensure!(status.success(), "the peer ended with {status}");
        Ok(())
    }

    /// SIGKILL.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The part of the other process itself.
pub fn run(role: &str, arguments: &[String]) -> Result<()> {
    let device = Device::open(&OpenOptions::default())?;
    match role {
        "hold" => hold(&device, arguments),
        "dirty" => dirty(&device, arguments),
        "import" => import(&device),
        "import_uuid" => import_uuid(&device, arguments),
        "map_foreign" => map_foreign(&device, arguments),
        "greedy" => greedy(&device),
        "many" => many(device),
        _ => bail!("no role {role}"),
    }
}

fn say(line: &str) -> Result<()> {
    let mut stdout = std::io::stdout();
    writeln!(stdout, "{line}")?;
    Ok(stdout.flush()?)
}

fn wait_for_end() -> Result<()> {
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

/// Does it over and over until we are to end.
fn until_end(mut step: impl FnMut()) {
    let waiting = std::thread::spawn(wait_for_end);
    while !waiting.is_finished() {
        step();
    }
}

fn sizes(arguments: &[String]) -> Result<Vec<u64>> {
    arguments.iter().map(|text| Ok(text.parse()?)).collect()
}

fn allocate(device: &Device, sizes: &[u64]) -> Result<Vec<Memory>> {
    let one = |size: &u64| device.allocate(&AllocateInfo::new(*size).dedicated());
    Ok(sizes.iter().map(one).collect::<Result<_, _>>()?)
}

/// Holds memories of these sizes, and a plain blob; tells their ids; checks in the end that nobody touched them.
fn hold(device: &Device, arguments: &[String]) -> Result<()> {
    let memories = allocate(device, &sizes(arguments)?)?;
    for memory in &memories {
        pattern::write(memory, SEED)?;
    }
    let blob = device.create_plain_blob(8192)?;
    pattern::write(&blob, SEED)?;
    let mut line = blob.resource_id().to_string();
    for memory in &memories {
        line += &format!(" {}", memory.client_id());
    }
    say(&line)?;
    wait_for_end()?;
    for memory in &memories {
        pattern::check(memory, SEED).context("memory of the holding process")?;
    }
    pattern::check(&blob, SEED).context("blob of the holding process")
}

/// Writes memories of these sizes in the way that the first argument says, and ends.
fn dirty(device: &Device, arguments: &[String]) -> Result<()> {
    let (way, arguments) = arguments.split_first().context("which way?")?;
    let memories = allocate(device, &sizes(arguments)?)?;
    let mut fences = Vec::new();
    for memory in &memories {
        if way == "cpu" {
            pattern::write(memory, SEED)?;
        } else {
            fences.push(device.fill(memory, 0, WHOLE_SIZE, 0xdddd_dddd)?);
        }
    }
    if way == "gpu" {
        for fence in &fences {
            fence.wait(None)?;
        }
    }
    // "in-flight": the GPU may still be writing when this process is gone.
    say("done")?;
    if way == "in-flight" {
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL)?;
    }
    Ok(())
}

/// Takes in the dma-buf that is our standard input, checks it, and writes into it.
fn import(device: &Device) -> Result<()> {
    let stdin = std::io::stdin();
    let memory = device.import_dma_buf(stdin.as_fd())?;
    pattern::check(&memory, SEED).context("imported memory")?;
    if memory.client_id() != 0 {
        let copied = device.allocate(&AllocateInfo::new(memory.size()).dedicated())?;
        let copy = device.copy(&memory, 0, &copied, 0, memory.size())?;
        copy.wait(None)?;
        pattern::check(&copied, SEED).context("imported memory, copied by the host GPU")?;
    }
    pattern::write(&memory, SEED + 1)?;
    say(&memory.size().to_string())
}

/// Names memory that a host process handed in, by its token: checks it and writes to it, by our processor and by the host GPU.
fn map_foreign(device: &Device, arguments: &[String]) -> Result<()> {
    let memory = device.import(uuid(arguments)?)?;
    pattern::check(&memory, SEED).context("mapped memory of a host process")?;
    pattern::write(&memory, SEED + 1)?;
    device.fill(&memory, 0, 4096, PEER_FILL)?.wait(None)?;
    let mut first = [0; 4];
    memory.read(0, &mut first)?;
    ensure!(
        first == PEER_FILL.to_le_bytes(),
        "the host GPU wrote {first:x?}"
    );
    say(&memory.size().to_string())
}

/// Makes holes of a page, takes all that there is, and goes on: has the host GPU fill some of it that it gives back at once, and takes that again. Tells
/// how many it has.
fn greedy(device: &Device) -> Result<()> {
    const LEAST: u64 = 64 << 10;
    let small = allocate(device, &[4096; 500])?;
    let mut held: Vec<Memory> = small.into_iter().step_by(2).collect();
    let mut moving = allocate(device, &[LEAST; 8])?;
    let usual = moving.len();
    let take = |size| device.allocate(&AllocateInfo::new(size).dedicated());
    for size in [16 << 20, 1 << 20, LEAST] {
        held.extend(std::iter::from_fn(|| take(size).ok()));
    }
    say(&(held.len() + usual).to_string())?;
    until_end(|| {
        if let Some(memory) = moving.pop() {
            // Nobody waits for it.
            let _ = device.fill(&memory, 0, WHOLE_SIZE, 0x9999_9999);
        }
        // It is charged until the GPU has let go of it: then with the next ones. Nothing but these is ever given back.
        let missing = usual - moving.len();
        moving.extend(std::iter::from_fn(|| take(LEAST).ok()).take(missing));
    });
    Ok(())
}

/// Opens many contexts, and goes on: closes one and opens one. Tells how many it has.
fn many(device: Device) -> Result<()> {
    /// Fewer than a local socket serves, and than there are shares.
    const MOST: usize = 40;
    let open = || Device::open(&OpenOptions::default());
    let mut devices = vec![device];
    devices.extend(std::iter::from_fn(|| open().ok()).take(MOST));
    say(&devices.len().to_string())?;
    until_end(|| {
        devices.pop();
        devices.extend(open());
    });
    Ok(())
}

fn uuid(arguments: &[String]) -> Result<[u8; 16]> {
    let text = arguments.first().context("which UUID?")?;
    let digits: String = text.chars().filter(|c| *c != '-').collect();
    Ok(u128::from_str_radix(&digits, 16)?.to_be_bytes())
}

/// Names the memory of this UUID, lets the host GPU copy and fill it; in the end nobody else has a name for it.
fn import_uuid(device: &Device, arguments: &[String]) -> Result<()> {
    let memory = device.import(uuid(arguments)?)?;
    let copied = device.allocate(&AllocateInfo::new(memory.size()).dedicated())?;
    let copy = |what| -> Result<()> {
        let fence = device.copy(&memory, 0, &copied, 0, memory.size())?;
        fence.wait(None).context(what)
    };
    copy("a copy of shared memory")?;
    pattern::check(&copied, SEED).context("shared memory")?;
    device.fill(&memory, 0, WHOLE_SIZE, PEER_FILL)?.wait(None)?;
    say(&memory.size().to_string())?;
    wait_for_end()?;
    copy("a copy of memory whose maker has dropped it")?;
    pattern::check_words(&copied, PEER_FILL)
}
