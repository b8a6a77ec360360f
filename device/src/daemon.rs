//! From flags to a running daemon, and to its end.

use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use hostblob_allocator::exports::Exports;
use hostblob_allocator::provider::{self, OpenError, Options};
use hostblob_allocator::{Config, ConfigError, Host};
use hostblob_capset::WindowMode;
use signal_hook::consts::{SIGINT, SIGTERM};
use thiserror::Error;

use crate::cli::{Serve, TransportKind, WindowModeKind};
use crate::export;
use crate::gpu::{BlobMem, Gpu};
use crate::shutdown::Shutdown;
use crate::transport::{self, SocketError, TransportError};

/// Why the daemon does not run.
#[derive(Debug, Error)]
pub enum DaemonError {
    /// The provider that was asked for does not work here.
    #[error(transparent)]
    Provider(#[from] OpenError),
    /// Over other transports the window is the VMM's before a blob is mapped.
    #[error(
        "--window-mode on-demand needs a VMM that is asked for each blob: --socket-path with --transport vhost-user"
    )]
    WindowMode,
    /// Limits that make no sense.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A socket cannot be had.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The transport failed.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// No thread for a socket.
    #[error("no thread for {0}: {1}")]
    Thread(&'static str, std::io::Error),
    /// The system refuses something that every process needs.
    #[error("{0}: {1}")]
    System(&'static str, std::io::Error),
}

/// Serves until SIGTERM or SIGINT.
pub fn run(flags: &Serve) -> Result<(), DaemonError> {
    let asks_the_vmm = flags.socket_path.is_some() && flags.transport == TransportKind::VhostUser;
    if flags.window_mode == WindowModeKind::OnDemand && !asks_the_vmm {
        return Err(DaemonError::WindowMode);
    }
    let shutdown = Shutdown::new().map_err(|e| DaemonError::System("eventfd", e))?;
    end_on_signals(&shutdown).map_err(|e| DaemonError::System("signal handlers", e))?;
    // Sockets are for their owner alone.
    rustix::process::umask(rustix::fs::Mode::from_bits_truncate(0o077));
    let options = Options {
        device: flags.device.clone(),
        validation: flags.validation,
        memory_limit: Some(flags.memory_limit),
    };
    let opened = provider::open(flags.provider, &options)?;
    log::info!("provider: {}", opened.reason);
    let config = Config {
        window_size: flags.window,
        memory_limit: flags.memory_limit,
        context_limit: flags.context_limit,
        warm_limit: flags.warm_limit,
    };
    let exports = Exports::new();
    let host = match flags.export_socket {
        Some(_) => Host::with_exports(opened.provider, config, Arc::clone(&exports))?,
        None => Host::new(opened.provider, config)?,
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
    let served = match &flags.socket_path {
        None => {
            wait_for(&shutdown);
            Ok(())
        }
        Some(path) => serve_vmm(flags, path, &host, &shutdown),
    };
    shutdown.request();
    for (thread, _file) in local.into_iter().chain(viewers) {
        let _ = thread.join();
    }
    served.map(|()| log::info!("ended"))
}

fn serve_vmm(
    flags: &Serve,
    path: &Path,
    host: &Arc<Host>,
    shutdown: &Shutdown,
) -> Result<(), DaemonError> {
    let (listener, _file) = bind(path)?;
    let window_mode = match flags.window_mode {
        WindowModeKind::Premapped => WindowMode::Premapped,
        WindowModeKind::OnDemand => WindowMode::OnDemand,
    };
    let new_gpu = |waker| Gpu::in_mode(host, flags.capset_id, BlobMem::all(), window_mode, waker);
    match flags.transport {
        TransportKind::VfioUser => transport::vfio_user::serve(&listener, new_gpu, shutdown)?,
        TransportKind::VhostUser => transport::vhost_user::serve(&listener, new_gpu, shutdown)?,
    }
    Ok(())
}

/// Listens at `path`, if there is one, with a thread of its own.
fn serve_on(
    path: Option<&Path>,
    name: &'static str,
    spawn: impl FnOnce(UnixListener) -> std::io::Result<JoinHandle<()>>,
) -> Result<Option<(JoinHandle<()>, SocketFile)>, DaemonError> {
    let Some(path) = path else {
        return Ok(None);
    };
    let (listener, file) = bind(path)?;
    let thread = spawn(listener).map_err(|e| DaemonError::Thread(name, e))?;
    Ok(Some((thread, file)))
}

/// A socket file that goes when the daemon does.
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn bind(path: &Path) -> Result<(UnixListener, SocketFile), SocketError> {
    let listener = transport::listen(path)?;
    log::info!("listening on {}", path.display());
    Ok((listener, SocketFile(path.to_owned())))
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
