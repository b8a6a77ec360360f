//! From flags to a running daemon, and to its end.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hostblob_allocator::exports::{self, Exports};
use hostblob_allocator::provider::process::{ProcessError, ProcessProvider};
use hostblob_allocator::provider::{self, Choice, OpenError, Provider};
use hostblob_allocator::window::Warmth;
use hostblob_allocator::{Config, ConfigError, Host, Outside};
use hostblob_capset::WindowMode;
use parking_lot::Mutex;
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use thiserror::Error;

use crate::cli::{ProviderProcess, Serve, TransportKind, WindowModeKind};
use crate::export;
use crate::gpu::renderers::{Offer, RendererError, Renderers};
use crate::gpu::{BlobMem, Gpu, RestoreError, Waker};
use crate::launcher::Launcher;
use crate::sandbox::{Needs, Sandbox, SandboxError};
use crate::shutdown::Shutdown;
use crate::transport::snapshot::{self, Snapshots};
use crate::transport::{self, SocketError, TransportError, Unpublished};

/// Why the daemon does not run.
#[derive(Debug, Error)]
pub enum DaemonError {
    /// The provider that was asked for does not work here.
    #[error(transparent)]
    Provider(#[from] OpenError),
    /// It does not work in a process of its own.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// Over other transports the window is the VMM's before a blob is mapped.
    #[error(
        "--window-mode on-demand needs a VMM that is asked for each blob: --socket-path with --transport vhost-user"
    )]
    WindowMode,
    /// Other renderers cannot be had.
    #[error(transparent)]
    Renderers(#[from] RendererError),
    /// The system does not let it give up what it does not need.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// Limits that make no sense.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A socket cannot be had.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The transport failed.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The snapshot cannot be had, or not be served here.
    #[error("{path}: {error}")]
    Restore {
        /// Which.
        path: PathBuf,
        /// Why not.
        error: RestoreError,
    },
    /// No thread for a socket.
    #[error("no thread for {0}: {1}")]
    Thread(&'static str, std::io::Error),
    /// The system refuses something that every process needs.
    #[error("{0}: {1}")]
    System(&'static str, std::io::Error),
}

/// Serves until SIGTERM or SIGINT. The caller has no second thread.
pub fn run(flags: &Serve) -> Result<(), DaemonError> {
    let asks_the_vmm = flags.socket_path.is_some() && flags.transport == TransportKind::VhostUser;
    if flags.window_mode == WindowModeKind::OnDemand && !asks_the_vmm {
        return Err(DaemonError::WindowMode);
    }
    one_heap();
    // Before the launcher, which gives it to the process with the driver: that has each guest-page blob's files.
    raise_descriptor_limit();
    // Sockets and snapshots are for their owner alone.
    rustix::process::umask(rustix::fs::Mode::from_bits_truncate(0o077));
    // What it starts needs more than hostblobd itself.
    let launcher = launcher(flags).map_err(ProcessError::System)?;
    let sandbox = Sandbox::enter(flags.gpu.sandbox, Needs::of_daemon(flags))?;
    let shutdown = Shutdown::new().map_err(|e| DaemonError::System("eventfd", e))?;
    end_on_signals(&shutdown).map_err(|e| DaemonError::System("signal handlers", e))?;
    let provider = open_provider(flags, launcher)?;
    serve(flags, provider, &shutdown, || sandbox.close())
}

/// All threads allocate from one heap. glibc makes up to eight for each processor as threads come and go with guests, and each keeps what the tables
/// of one guest took: 5 to 19 MiB resident in place of 1. Contention is rare, since glibc serves what is small from a cache of the thread.
///
/// And tables are never part of it: glibc keeps those of a size that was freed once, and something small behind one keeps it resident.
fn one_heap() {
    /// Bytes: glibc's own, until something larger is freed.
    #[cfg(target_env = "gnu")]
    const TABLE: libc::c_int = 128 << 10;
    #[cfg(target_env = "gnu")]
    for (parameter, value) in [(libc::M_ARENA_MAX, 1), (libc::M_MMAP_THRESHOLD, TABLE)] {
        // SAFETY: mallopt(3) takes any value, and there is no second thread yet. Its result says that the parameter is known, as both are since
        // glibc 2.10.
        unsafe {
            libc::mallopt(parameter, value);
        }
    }
}

/// Serves until `shutdown`. When everything is open that has a path, and before anybody can connect, `is_ready` is called.
pub(crate) fn serve(
    flags: &Serve,
    provider: Arc<dyn Provider>,
    shutdown: &Shutdown,
    is_ready: impl FnOnce() -> Result<(), SandboxError>,
) -> Result<(), DaemonError> {
    let config = Config {
        window_size: flags.window,
        memory_limit: flags.gpu.memory_limit,
        context_limit: flags.context_limit,
        context_share: flags.context_share,
        warm: Warmth {
            limit: flags.warm_limit,
            time: Duration::from_secs(flags.warm_time),
        },
    };
    let renderers = renderers(flags)?;
    let exports = Exports::new();
    let outside = outside(flags, &exports);
    let host = Host::with_outside(provider, config, outside)?;

    // Before anybody else takes of the memory that it needs.
    let snapshots = Arc::new(Snapshots::new());
    let restored = match &flags.restore {
        Some(path) => Some(restore(path, &snapshots, |waker| {
            new_gpu(flags, &host, renderers.as_ref(), waker)
        })?),
        None => None,
    };
    let _saver = match &flags.save {
        Some(path) => {
            let started = Saver::start(path.clone(), Arc::clone(&snapshots));
            Some(started.map_err(|e| DaemonError::System("signal handlers", e))?)
        }
        None => None,
    };
    let local = serve_on(
        flags.local_socket.as_deref(),
        "the local socket",
        |listener| {
            transport::local::spawn(listener, host.clone(), flags.capset_id, shutdown.clone())
        },
    )?;
    let viewers = serve_on(
        flags.export_socket.as_deref(),
        "the export socket",
        |listener| export::spawn(listener, exports, shutdown.clone()),
    )?;
    let vmm = flags
        .socket_path
        .as_deref()
        .map(Unpublished::new)
        .transpose()?;
    is_ready()?;
    // Now that their threads are there, and have given up what they do not need.
    let mut sockets = Vec::new();
    for (thread, unpublished) in local.into_iter().chain(viewers) {
        sockets.push((thread, publish(unpublished)?));
    }
    let vmm = match vmm {
        Some((listener, unpublished)) => Some((listener, publish(unpublished)?)),
        None => None,
    };
    let served = match &vmm {
        None => {
            wait_for(shutdown);
            Ok(())
        }
        Some((listener, _file)) => {
            let new_gpu = first_restored(restored, |waker| {
                new_gpu(flags, &host, renderers.as_ref(), waker)
            });
            serve_vmm(flags, listener, new_gpu, shutdown, &snapshots)
        }
    };
    shutdown.request();
    for (thread, _file) in sockets {
        let _ = thread.join();
    }
    served.map(|()| log::info!("ended"))
}

/// What starts the provider's process, where there is to be one. Plain memory needs no driver, and so no process.
fn launcher(flags: &Serve) -> std::io::Result<Option<Launcher>> {
    let wanted =
        flags.provider_process == ProviderProcess::On && flags.gpu.provider != Choice::System;
    wanted.then(|| Launcher::start(&flags.gpu)).transpose()
}

/// The provider, in a process of its own where there is a launcher.
fn open_provider(
    flags: &Serve,
    launcher: Option<Launcher>,
) -> Result<Arc<dyn Provider>, DaemonError> {
    let Some(launcher) = launcher else {
        let opened = provider::open(flags.gpu.provider, &flags.gpu.options())?;
        log::info!("provider: {}", opened.reason);
        return Ok(opened.provider);
    };
    let spawn = move |socket: OwnedFd| launcher.launch(&socket);
    let provider = ProcessProvider::new(Box::new(spawn), Duration::from_secs(flags.gpu_timeout))?;
    log::info!("provider, in a process of its own: {}", provider.reason());
    Ok(Arc::new(provider))
}

/// What connects guests with other processes.
fn outside(flags: &Serve, exports: &Arc<Exports>) -> Outside {
    let wanted = flags.export_socket.is_some();
    let exporter = match exports::udmabuf() {
        Ok(exporter) => Some(exporter),
        Err(why) => {
            if wanted {
                log::warn!(
                    "guests cannot export memory to host processes, only import theirs: {why}"
                );
            }
            None
        }
    };
    Outside {
        exports: wanted.then(|| Arc::clone(exports)),
        exporter,
    }
}

/// What the guest is offered besides our own context.
fn renderers(flags: &Serve) -> Result<Option<Arc<Renderers>>, RendererError> {
    let offer = Offer {
        wayland: flags.wayland_socket.clone(),
        capsets: flags.capsets.clone(),
    };
    if offer.is_empty() {
        return Ok(None);
    }
    let renderers = Renderers::start(offer)?;
    for capset in renderers.capsets() {
        log::info!("capset {}: {}, by rutabaga", capset.id, capset.name());
    }
    Ok(Some(renderers))
}

/// Blobs of other renderers, 2D resources, and blobs of guest pages are a descriptor each, or more. What a shell gives a process is little.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        log::debug!("the limit of descriptors stays as it is: {error}");
    }
}

fn new_gpu(
    flags: &Serve,
    host: &Arc<Host>,
    renderers: Option<&Arc<Renderers>>,
    waker: Waker,
) -> std::io::Result<Gpu> {
    let window_mode = match flags.window_mode {
        WindowModeKind::Premapped => WindowMode::Premapped,
        WindowModeKind::OnDemand => WindowMode::OnDemand,
    };
    let (id, mode, theirs) = (flags.capset_id, window_mode, Arc::clone(&waker));
    let mut gpu = Gpu::in_mode(host, id, BlobMem::all(), mode, waker)?;
    if let Some(renderers) = renderers {
        gpu = gpu.with_renderers(renderers, theirs);
    }
    if let Some(display) = flags.display {
        gpu = gpu.with_display(display);
    }
    Ok(gpu)
}

fn serve_vmm(
    flags: &Serve,
    listener: &UnixListener,
    new_gpu: impl Fn(Waker) -> std::io::Result<Gpu>,
    shutdown: &Shutdown,
    snapshots: &Snapshots,
) -> Result<(), DaemonError> {
    match flags.transport {
        TransportKind::VfioUser => {
            transport::vfio_user::serve_saveable(listener, new_gpu, shutdown, snapshots)?;
        }
        TransportKind::VhostUser => {
            transport::vhost_user::serve_saveable(listener, new_gpu, shutdown, snapshots)?;
        }
    }
    Ok(())
}

/// A device that was made before its connection, and the place of that one's waker.
struct Restored {
    gpu: Gpu,
    waker: Arc<OnceLock<Waker>>,
}

fn restore(
    path: &Path,
    snapshots: &Snapshots,
    new: impl FnOnce(Waker) -> std::io::Result<Gpu>,
) -> Result<Restored, DaemonError> {
    let start = Instant::now();
    let waker = Arc::<OnceLock<Waker>>::default();
    let relay = Arc::clone(&waker);
    let relay: Waker = Arc::new(move || {
        if let Some(waker) = relay.get() {
            waker();
        }
    });
    let mut gpu = new(relay).map_err(|e| DaemonError::System("a device", e))?;
    let held = snapshot::restore_file(&mut gpu, path).map_err(|error| DaemonError::Restore {
        path: path.to_owned(),
        error,
    })?;
    snapshots.set_held(held);
    log::info!("restored from {} in {:?}", path.display(), start.elapsed());
    Ok(Restored { gpu, waker })
}

/// The restored device for the first connection, and new ones for others.
fn first_restored(
    restored: Option<Restored>,
    new: impl Fn(Waker) -> std::io::Result<Gpu>,
) -> impl Fn(Waker) -> std::io::Result<Gpu> {
    let restored = Mutex::new(restored);
    move |waker| match restored.lock().take() {
        Some(Restored { gpu, waker: place }) => {
            let _ = place.set(Arc::clone(&waker));
            // What has finished before woke nobody.
            waker();
            Ok(gpu)
        }
        None => new(waker),
    }
}

/// Saves the VM's device to a file on each SIGUSR1, until it drops: what is being saved by then is saved.
struct Saver {
    signals: signal_hook::iterator::Handle,
    thread: Option<JoinHandle<()>>,
}

impl Saver {
    fn start(path: PathBuf, snapshots: Arc<Snapshots>) -> std::io::Result<Self> {
        let mut signals = signal_hook::iterator::Signals::new([SIGUSR1])?;
        let handle = signals.handle();
        let thread = std::thread::Builder::new()
            .name("hostblob-save".into())
            .spawn(move || {
                for _ in signals.forever() {
                    save(&path, &snapshots);
                }
            })?;
        Ok(Self {
            signals: handle,
            thread: Some(thread),
        })
    }
}

impl Drop for Saver {
    fn drop(&mut self) {
        self.signals.close();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn save(path: &Path, snapshots: &Snapshots) {
    let start = Instant::now();
    match snapshots.save_file(path) {
        Ok(bytes) => log::info!(
            "saved {bytes} bytes to {} in {:?}",
            path.display(),
            start.elapsed()
        ),
        Err(error) => log::error!("nothing is saved to {}: {error}", path.display()),
    }
}

/// Listens for `path`, if there is one, with a thread of its own.
fn serve_on(
    path: Option<&Path>,
    name: &'static str,
    spawn: impl FnOnce(UnixListener) -> std::io::Result<JoinHandle<()>>,
) -> Result<Option<(JoinHandle<()>, Unpublished)>, DaemonError> {
    let Some(path) = path else {
        return Ok(None);
    };
    let (listener, unpublished) = Unpublished::new(path)?;
    let thread = spawn(listener).map_err(|e| DaemonError::Thread(name, e))?;
    Ok(Some((thread, unpublished)))
}

/// A socket file that goes when the daemon does.
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn publish(unpublished: Unpublished) -> Result<SocketFile, SocketError> {
    let file = SocketFile(unpublished.publish()?);
    log::info!("listening on {}", file.0.display());
    Ok(file)
}

fn wait_for(shutdown: &Shutdown) {
    let mut poll = [rustix::event::PollFd::new(
        shutdown,
        rustix::event::PollFlags::IN,
    )];
    while !shutdown.is_requested() {
        // Interrupted by the signal itself, or woken by what its handler requests.
        let _ = rustix::event::poll(&mut poll, None);
    }
}

fn end_on_signals(shutdown: &Shutdown) -> std::io::Result<()> {
    let mut signals = signal_hook::iterator::Signals::new([SIGTERM, SIGINT])?;
    let shutdown = shutdown.clone();
    std::thread::Builder::new()
        .name("hostblob-signals".into())
        .spawn(move || {
            for signal in signals.forever() {
                log::info!("signal {signal}: ending");
                shutdown.request();
            }
        })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::Cli;

    /// By then its process has given up what it does not need.
    #[test]
    fn nobody_connects_before_the_daemon_is_ready() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name| folder.path().join(name).to_str().unwrap().to_owned();
        let sockets = ["vmm", "local", "export"].map(path);
        let names = ["--socket-path", "--local-socket", "--export-socket"];
        let sockets_of = names.into_iter().zip(&sockets);
        let arguments = sockets_of.flat_map(|(name, path)| [name, path]);
        let flags = Cli::parse_from(["hostblobd"].into_iter().chain(arguments)).serve;
        let there = || sockets.iter().filter(|path| Path::new(path).exists());
        let opened = provider::open(Choice::System, &flags.gpu.options()).unwrap();
        let shutdown = Shutdown::new().unwrap();
        let is_ready = || {
            assert_eq!(there().count(), 0);
            Ok(())
        };
        std::thread::scope(|scope| {
            let serving = scope.spawn(|| serve(&flags, opened.provider, &shutdown, is_ready));
            while there().count() < sockets.len() && !serving.is_finished() {
                std::thread::sleep(Duration::from_millis(1));
            }
            shutdown.request();
            serving.join().unwrap().unwrap();
        });
        assert_eq!(there().count(), 0);
    }
}
