//! The same program in guests of several devices, all booted once and asked in turn, so that a slow moment of the machine falls on all.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use serde_json::json;

use super::{Extents, Records, traced};
use crate::daemon::Daemon;
use crate::environment::Environment;
use crate::peers::{Peer, Screen, VENUS_CAPSET};
use crate::progress::{note, step};
use crate::vm::{Transport, Vm, VmBuilder};

/// hostblob's capset.
const CAPSET: &str = "hostblob";

/// Longest time that all of it may take.
pub(super) const TIMEOUT: Duration = Duration::from_secs(3600);

/// The bytes of a guest, with buffers of 64 MiB in it.
pub(super) const MEMORY_MIB: u32 = 768;

/// Most live blobs of the system in which each is a region of QEMU: at 1,000 of them one more takes 20 ms and longer.
const SLOW_LIVE: &str = "0,100,1000";

/// The devices that hostblob is measured against.
pub(super) struct Peers {
    /// A region of QEMU for each blob.
    old: Peer,
    /// The strongest that is known: virglrenderer maps into one region.
    pub(super) new: Peer,
}

/// Installs what is missing.
pub(super) fn peers(environment: &Environment) -> Result<Peers> {
    Ok(Peers {
        old: Peer::prepare(&["trixie", "trixie-backports"], environment)?,
        new: Peer::prepare(&["forky"], environment)?,
    })
}

/// A guest that waits to be asked.
pub(super) struct System {
    name: &'static str,
    vm: Vm,
    /// Outlives the machine.
    daemon: Option<Daemon>,
    rounds: u32,
    lost: bool,
}

impl System {
    /// Starts it, to be asked in so many rounds. `None` for a peer that does not start: that is a finding.
    pub(super) fn boot(
        name: &'static str,
        about: &str,
        vm: &VmBuilder<'_>,
        daemon: Option<Daemon>,
        rounds: u32,
        records: &mut Records,
    ) -> Result<Option<Self>> {
        let vm = match vm.start() {
            Ok(vm) => vm,
            Err(error) if daemon.is_some() => return Err(error.context(name)),
            Err(error) => {
                records.missing(name, &first_line(&error))?;
                return Ok(None);
            }
        };
        records.add(&json!({ "system": name, "is": about }))?;
        Ok(Some(Self {
            name,
            vm,
            daemon,
            rounds,
            lost: false,
        }))
    }

    /// Waits until its program can be asked.
    pub(super) fn wait(&mut self, records: &mut Records) -> Result<()> {
        match self.vm.wait_for("ready", 1) {
            Ok(()) => Ok(()),
            Err(error) => lose(self, &error, records),
        }
    }
}

/// Boots all, asks them in turn, and looks at what the daemons do meanwhile.
pub(super) fn measure(
    environment: &Environment,
    peers: &Peers,
    program: &Path,
    extents: Extents,
    records: &mut Records,
) -> Result<()> {
    let screen = Screen::start()?;
    let mut systems = step("booting four guests", || {
        boot(environment, peers, program, extents, &screen, records)
    })?;
    ask_all(&mut systems, records)?;
    for system in &mut systems {
        let transport = system.daemon.as_ref().and_then(Daemon::transport);
        if let Some(transport) = transport {
            let what = format!("system calls of hostblobd: {}", system.name);
            step(&what, || count(system, transport, records))?;
        }
    }
    end(systems)
}

/// Asks all in turn, as often as each is to be asked.
pub(super) fn ask_all(systems: &mut [System], records: &mut Records) -> Result<()> {
    let most = systems.iter().map(|system| system.rounds).max();
    for round in 0..most.unwrap_or(0) {
        for system in systems.iter_mut() {
            if round < system.rounds && !system.lost {
                let what = format!("round {} of {}: {}", round + 1, system.rounds, system.name);
                if let Err(error) = step(&what, || ask(system, round, records)) {
                    lose(system, &error, records)?;
                }
            }
        }
    }
    Ok(())
}

/// Ends them, in order.
pub(super) fn end(systems: Vec<System>) -> Result<()> {
    for system in systems {
        if system.lost {
            continue;
        }
        // It answers by its end.
        let _ = system.vm.type_line("end");
        let output = system.vm.wait()?;
        if output.status != Some(0) {
            note(&format!(
                "{}: the program ended with {:?}",
                system.name, output.status
            ));
        }
    }
    Ok(())
}

fn boot(
    environment: &Environment,
    peers: &Peers,
    program: &Path,
    extents: Extents,
    screen: &Screen,
    records: &mut Records,
) -> Result<Vec<System>> {
    let Extents { blobs, large, .. } = extents;
    let sizes = |blobs: usize, large: usize| {
        format!("4096x{blobs},65536x{blobs},1048576x{blobs},67108864x{large}")
    };
    let guest = |environment, capset: &str, live: &str, sizes: String| {
        let arguments = [
            "--serve".to_owned(),
            capset.to_string(),
            live.to_owned(),
            sizes,
        ];
        Vm::builder(environment)
            .program(program, arguments)
            .memory_mib(MEMORY_MIB)
            .timeout(TIMEOUT)
    };
    let mut systems = Vec::new();
    for (name, transport) in [
        ("hostblob, vfio-user", Transport::VfioUser),
        ("hostblob, vhost-user", Transport::VhostUser),
    ] {
        let daemon = Daemon::builder().transport(transport).start()?;
        let vm = guest(environment, CAPSET, extents.live, sizes(blobs, large)).device(&daemon);
        let (about, rounds) = (environment.qemu.version(), extents.rounds);
        let system = System::boot(name, &about, &vm, Some(daemon), rounds, records)?;
        systems.extend(system);
    }
    for (name, peer, rounds, live, sizes) in [
        (
            "virglrenderer 1.3",
            &peers.new,
            extents.rounds,
            extents.live,
            sizes(blobs, large),
        ),
        (
            "virglrenderer 1.1",
            &peers.old,
            extents.slow_rounds,
            if blobs > 100 { SLOW_LIVE } else { extents.live },
            sizes(blobs.div_ceil(10), large.div_ceil(4)),
        ),
    ] {
        let vm = guest(&peer.environment, VENUS_CAPSET, live, sizes);
        let vm = peer.configure(vm, screen);
        let system = System::boot(name, &peer.about(), &vm, None, rounds, records)?;
        systems.extend(system);
    }
    for system in &mut systems {
        system.wait(records)?;
    }
    Ok(systems)
}

fn ask(system: &mut System, round: u32, records: &mut Records) -> Result<()> {
    let output = system.vm.ask("round")?;
    let more = [("system", json!(system.name)), ("round", json!(round))];
    records.take(&output, &more)?;
    Ok(())
}

/// A peer that fails is a finding; a daemon of ours that does is an error.
fn lose(system: &mut System, error: &anyhow::Error, records: &mut Records) -> Result<()> {
    if let Some(daemon) = &system.daemon {
        anyhow::bail!(
            "{}: {error:#}\n--- hostblobd\n{}",
            system.name,
            daemon.log()
        );
    }
    system.lost = true;
    records.missing(system.name, &first_line(error))
}

/// The rest are consoles and logs.
fn first_line(error: &anyhow::Error) -> String {
    let text = format!("{error:#}");
    text.lines().next().unwrap_or_default().to_owned()
}

/// Blobs of a guest while the daemon is traced.
const LIVES: usize = 500;

fn count(system: &mut System, transport: Transport, records: &mut Records) -> Result<()> {
    let Some(daemon) = &system.daemon else {
        return Ok(());
    };
    let pid = daemon.pid();
    let request = format!("lives {LIVES}");
    let calls = match traced::attach(pid) {
        Ok(trace) => {
            system.vm.ask(&request)?;
            trace.finish()?
        }
        Err(error) => return records.missing("system calls in a VM", &format!("{error:#}")),
    };
    let each = |number: u64| traced::ratio(number, LIVES);
    records.count(system.name, "calls-per-blob", "calls", each(calls.total()))?;
    for (name, number) in calls.most(6) {
        records.count(
            system.name,
            &format!("calls-per-blob: {name}"),
            "calls",
            each(number),
        )?;
    }
    if transport == Transport::VhostUser {
        records.count(
            system.name,
            "shmem-maps",
            "messages",
            traced::exact(calls.descriptors),
        )?;
    }
    Ok(())
}
