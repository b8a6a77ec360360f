//! A hostblobd of one's own: started with its sockets in a temporary folder, ended and checked.

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::build;
use crate::vm::Transport;

/// Environment variable that names a hostblobd which is built already.
pub const ENV: &str = "HOSTBLOB_DAEMON";

/// Environment variable: `off` starts it without its sandbox, unless a test says otherwise. Builds that measure themselves write files.
pub const SANDBOX_ENV: &str = "HOSTBLOB_SANDBOX";

/// Longest time until it listens: the probe of a GPU takes part of it.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest time that an orderly end may take.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// A running hostblobd. Ended when dropped.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    folder: TempDir,
    transport: Option<Transport>,
}

/// What a [`Daemon`] is started with.
#[derive(Debug, Clone)]
pub struct DaemonBuilder {
    transport: Option<Transport>,
    wrapper: Vec<OsString>,
    arguments: Vec<OsString>,
}

impl Daemon {
    /// With a local socket, and nothing else that is not asked for.
    pub fn builder() -> DaemonBuilder {
        DaemonBuilder {
            transport: None,
            wrapper: Vec::new(),
            arguments: Vec::new(),
        }
    }

    /// The socket for a VMM.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("vmm.sock")
    }

    /// The local socket.
    pub fn local_socket(&self) -> PathBuf {
        self.folder.path().join("local.sock")
    }

    /// How a VMM loads it; `None` where only the local socket is served.
    pub fn transport(&self) -> Option<Transport> {
        self.transport
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// All that it has logged so far.
    pub fn log(&self) -> String {
        let bytes = std::fs::read(self.folder.path().join("log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Whether it is running.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// SIGTERM, and its exit status. An error where it does not end.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        if let Some(status) = self.child.try_wait()? {
            return Ok(status);
        }
        if let Some(pid) = rustix::process::Pid::from_raw(i32::try_from(self.child.id())?) {
            rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        }
        let deadline = Instant::now() + STOP_TIMEOUT;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        bail!(
            "hostblobd did not end within {STOP_TIMEOUT:?} of SIGTERM; its log:\n{}",
            self.log()
        )
    }

    fn wait_until_it_listens(&mut self) -> Result<()> {
        let mut sockets = vec![self.local_socket()];
        if self.transport.is_some() {
            sockets.push(self.socket());
        }
        let deadline = Instant::now() + START_TIMEOUT;
        while !sockets.iter().all(|socket| socket.exists()) {
            if let Some(status) = self.child.try_wait()? {
                bail!("hostblobd ended with {status}; it says:\n{}", self.log());
            }
            if Instant::now() > deadline {
                bail!(
                    "hostblobd does not listen after {START_TIMEOUT:?}; its log:\n{}",
                    self.log()
                );
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.stop().is_err() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

impl DaemonBuilder {
    /// Serves a VMM too.
    #[must_use]
    pub fn transport(mut self, transport: Transport) -> Self {
        self.transport = Some(transport);
        self
    }

    /// A program that starts it, with its arguments, and becomes it: `strace -D`.
    #[must_use]
    pub fn under<I: IntoIterator<Item: Into<OsString>>>(mut self, wrapper: I) -> Self {
        self.wrapper = wrapper.into_iter().map(Into::into).collect();
        self
    }

    /// Further arguments.
    #[must_use]
    pub fn args<I: IntoIterator<Item: Into<OsString>>>(mut self, arguments: I) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// Starts it, and returns when it listens.
    pub fn start(&self) -> Result<Daemon> {
        let program = binary()?;
        let folder = TempDir::with_prefix("hostblobd-")?;
        let log = File::create(folder.path().join("log"))?;
        let mut words = self.wrapper.iter().map(OsString::as_os_str);
        let mut command = Command::new(words.next().unwrap_or(program.as_os_str()));
        command.args(words);
        if !self.wrapper.is_empty() {
            command.arg(&program);
        }
        command
            .arg("--local-socket")
            .arg(folder.path().join("local.sock"));
        if let Some(transport) = self.transport {
            command
                .arg("--socket-path")
                .arg(folder.path().join("vmm.sock"));
            command.arg("--transport").arg(transport.name());
        }
        if let Some(mode) = std::env::var_os(SANDBOX_ENV)
            && !self.arguments.iter().any(|flag| flag == "--sandbox")
        {
            command.arg("--sandbox").arg(mode);
        }
        command.args(&self.arguments);
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let child = command
            .spawn()
            .with_context(|| format!("{} cannot be started", program.display()))?;
        let mut daemon = Daemon {
            child,
            folder,
            transport: self.transport,
        };
        daemon.wait_until_it_listens()?;
        Ok(daemon)
    }
}

/// hostblobd itself: the one that [`ENV`] names, else built now.
pub fn binary() -> Result<PathBuf> {
    match std::env::var_os(ENV) {
        Some(path) if Path::new(&path).exists() => Ok(path.into()),
        Some(path) => bail!(
            "{ENV} names {}, which does not exist",
            Path::new(&path).display()
        ),
        None => build::host_binary("hostblob-device", "hostblobd"),
    }
}
