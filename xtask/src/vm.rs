//! A virtual machine that runs one program: stock QEMU, a stock kernel, our device.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use xtask::{daemon::Daemon, environment::Environment, vm::{Transport, Vm}};
//! let environment = Environment::find()?;
//! let daemon = Daemon::builder().transport(Transport::VfioUser).start()?;
//! let output = Vm::builder(&environment).device(&daemon).program("./hello", ["world"]).run()?;
//! assert_eq!(output.status, Some(0));
//! # Ok(())
//! # }
//! ```

mod channel;
mod qmp;

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::daemon::Daemon;
use crate::environment::Environment;
use crate::initramfs::{self, Payload};
use crate::libraries::Set;
use channel::Channels;
pub use qmp::Qmp;

/// Longest time that a virtual machine runs unless told otherwise: emulated, on two busy cores.
const TIMEOUT: Duration = Duration::from_secs(240);
/// Longest time until QEMU has made its sockets.
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// How QEMU loads hostblobd.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Transport {
    /// `vfio-user-pci`: QEMU 10.1 and newer.
    VfioUser,
    /// `vhost-user-test-device-pci`: QEMU 11 and newer.
    VhostUser,
}

impl Transport {
    /// As hostblobd's `--transport` names it.
    pub fn name(self) -> &'static str {
        match self {
            Transport::VfioUser => "vfio-user",
            Transport::VhostUser => "vhost-user",
        }
    }

    /// QEMU's arguments for a device behind `socket`.
    pub fn qemu_arguments(self, socket: &Path) -> Vec<String> {
        let socket = socket.display();
        match self {
            Transport::VfioUser => vec![
                "-device".to_owned(),
                format!(
                    r#"{{"driver":"vfio-user-pci","socket":{{"path":"{socket}","type":"unix"}}}}"#
                ),
            ],
            Transport::VhostUser => vec![
                "-chardev".to_owned(),
                format!("socket,id=hostblob,path={socket}"),
                "-device".to_owned(),
                "vhost-user-test-device-pci,chardev=hostblob,virtio-id=16,num_vqs=2,vq_size=256,config_size=24"
                    .to_owned(),
            ],
        }
    }
}

/// What a virtual machine is started with.
#[derive(Debug, Clone)]
pub struct VmBuilder<'a> {
    environment: &'a Environment,
    device: Option<(Transport, PathBuf)>,
    payload: Payload,
    variables: Vec<(String, String)>,
    host_variables: Vec<(String, OsString)>,
    files: Vec<(PathBuf, String)>,
    arguments: Vec<OsString>,
    memory_mib: u32,
    timeout: Duration,
    tee: bool,
}

/// What a program in the guest left behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// The program's exit status, as a shell tells it; `None` where it did not come to one.
    pub status: Option<i32>,
    /// What it printed, to standard output and standard error.
    pub stdout: String,
    /// What the kernel printed.
    pub console: String,
    /// How many times the guest booted.
    pub boots: u32,
}

/// A running virtual machine. Killed when dropped.
#[derive(Debug)]
pub struct Vm {
    child: Child,
    folder: TempDir,
    channels: Arc<Channels>,
    deadline: Instant,
}

impl Vm {
    /// A virtual machine without a device and with a shell.
    pub fn builder(environment: &Environment) -> VmBuilder<'_> {
        VmBuilder {
            environment,
            device: None,
            payload: Payload::Shell,
            variables: Vec::new(),
            host_variables: Vec::new(),
            files: Vec::new(),
            arguments: Vec::new(),
            memory_mib: 512,
            timeout: TIMEOUT,
            tee: false,
        }
    }

    /// What the program has printed so far.
    pub fn stdout(&self) -> String {
        self.channels.output()
    }

    /// How many times the guest has booted so far.
    pub fn boots(&self) -> u32 {
        self.channels.boots()
    }

    /// Waits until the program has printed `text` `times` times.
    pub fn wait_for(&mut self, text: &str, times: usize) -> Result<()> {
        while self.stdout().matches(text).count() < times {
            if self.child.try_wait()?.is_some() && !self.stdout().contains(text) {
                bail!(
                    "the guest ended before it printed {text:?}:\n{}",
                    self.report()
                );
            }
            if Instant::now() > self.deadline {
                bail!(
                    "the guest did not print {text:?} {times} times:\n{}",
                    self.report()
                );
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Types a line on the program's terminal.
    pub fn type_line(&self, line: &str) -> Result<()> {
        self.channels.type_line(line)
    }

    /// Types a line on the program's terminal, and returns what the program prints until its line `done`.
    pub fn ask(&mut self, line: &str) -> Result<String> {
        let start = self.channels.output_length();
        self.type_line(line)?;
        let mut looked = start;
        loop {
            // Looked at only where there is more: the guest's processors need ours.
            let length = self.channels.output_length();
            if length > looked {
                looked = length;
                let text = self.channels.output_from(start);
                if text.lines().any(|line| line == "done") {
                    return Ok(text);
                }
            }
            if self.child.try_wait()?.is_some() || self.channels.exit().is_some() {
                bail!(
                    "the guest's program ended before it answered {line:?}:\n{}",
                    self.report()
                );
            }
            if Instant::now() > self.deadline {
                bail!(
                    "the guest did not answer {line:?} in time:\n{}",
                    self.report()
                );
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// QEMU's monitor.
    pub fn qmp(&self) -> Result<Qmp> {
        Qmp::connect(&self.folder.path().join("qmp"))
    }

    /// Ends QEMU as SIGKILL does.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Waits for the guest to power off.
    pub fn wait(mut self) -> Result<Output> {
        loop {
            if self.child.try_wait()?.is_some() {
                break;
            }
            if Instant::now() > self.deadline {
                bail!("the guest did not end in time:\n{}", self.report());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        self.channels.finish();
        if self.channels.boots() == 0 {
            bail!("the guest did not come up:\n{}", self.report());
        }
        Ok(Output {
            status: self.channels.exit(),
            stdout: self.channels.output(),
            console: self.read("console"),
            boots: self.channels.boots(),
        })
    }

    fn read(&self, name: &str) -> String {
        let bytes = std::fs::read(self.folder.path().join(name)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).replace('\r', "")
    }

    /// Everything that may explain a failure.
    fn report(&self) -> String {
        format!(
            "--- program\n{}\n--- console\n{}\n--- QEMU\n{}",
            self.stdout(),
            self.read("console"),
            self.read("qemu")
        )
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl VmBuilder<'_> {
    /// Loads the device that a daemon serves.
    #[must_use]
    pub fn device(mut self, daemon: &Daemon) -> Self {
        self.device = daemon
            .transport()
            .map(|transport| (transport, daemon.socket()));
        self
    }

    /// Runs a static program of the host instead of a shell, then powers off. `HOSTBLOB_BOOT` tells it which boot it is, from 1.
    #[must_use]
    pub fn program<S: Into<String>>(
        mut self,
        program: impl Into<PathBuf>,
        arguments: impl IntoIterator<Item = S>,
    ) -> Self {
        let arguments = arguments.into_iter().map(Into::into).collect();
        self.payload = Payload::Program(program.into(), arguments);
        self
    }

    /// An environment variable of the program.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    /// An environment variable of QEMU.
    #[must_use]
    pub fn host_env(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.host_variables.push((name.to_owned(), value.into()));
        self
    }

    /// A file of the host under a path of the guest, executable.
    #[must_use]
    pub fn file(mut self, host: impl Into<PathBuf>, guest: &str) -> Self {
        self.files.push((host.into(), guest.to_owned()));
        self
    }

    /// A C library and what there is to Vulkan, by which programs of the host that are not static run in the guest too.
    pub fn libraries(mut self, set: Set) -> Result<Self> {
        self.files.extend(self.environment.libraries.files(set)?);
        Ok(self)
    }

    /// Our Vulkan driver, of this manifest, which the loader then finds alone.
    #[must_use]
    pub fn vulkan_driver(mut self, manifest: &Path) -> Self {
        const MANIFEST: &str = "/driver/vulkan_hostblob.json";
        const LIBRARY: &str = "libvulkan_hostblob.so";
        let library = manifest.with_file_name(LIBRARY);
        self = self.env("VK_DRIVER_FILES", MANIFEST);
        self.file(manifest, MANIFEST)
            .file(library, &format!("/driver/{LIBRARY}"))
    }

    /// Memory of the guest.
    #[must_use]
    pub fn memory_mib(mut self, memory_mib: u32) -> Self {
        self.memory_mib = memory_mib;
        self
    }

    /// After this time the guest counts as hung.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Further arguments of QEMU.
    #[must_use]
    pub fn qemu_args<I: IntoIterator<Item: Into<OsString>>>(mut self, arguments: I) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// Shows the program's output as it comes, on our standard output.
    #[must_use]
    pub fn tee(mut self) -> Self {
        self.tee = true;
        self
    }

    /// Runs it to its end.
    pub fn run(&self) -> Result<Output> {
        self.start()?.wait()
    }

    /// Starts it.
    pub fn start(&self) -> Result<Vm> {
        let folder = TempDir::with_prefix("hostblob-vm-")?;
        let path = |name: &str| folder.path().join(name);
        let mut command = self.command(folder.path())?;
        command
            .arg("-serial")
            .arg(format!("file:{}", path("console").display()));
        for name in ["program", "control"] {
            let socket = path(name);
            command.arg("-chardev").arg(format!(
                "socket,id={name},path={},server=on,wait=on",
                socket.display()
            ));
            command.arg("-serial").arg(format!("chardev:{name}"));
        }
        command
            .arg("-qmp")
            .arg(format!("unix:{},server=on,wait=off", path("qmp").display()));
        let log = File::create(path("qemu"))?;
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let mut child = command.spawn().context("QEMU cannot be started")?;
        let channels = Channels::connect(&mut child, folder.path(), self.tee, START_TIMEOUT);
        let channels = match channels {
            Ok(channels) => channels,
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                let log = std::fs::read_to_string(path("qemu")).unwrap_or_default();
                return Err(error.context(format!("QEMU did not start; it says: {}", log.trim())));
            }
        };
        Ok(Vm {
            child,
            folder,
            channels,
            deadline: Instant::now() + self.timeout,
        })
    }

    /// Runs it with our terminal as its console.
    pub fn interact(&self) -> Result<()> {
        let folder = TempDir::with_prefix("hostblob-vm-")?;
        let mut command = self.command(folder.path())?;
        command.args(["-serial", "mon:stdio", "-serial", "null", "-serial", "null"]);
        let status = command.status().context("QEMU cannot be started")?;
        if !status.success() {
            bail!("QEMU ended with {status}");
        }
        Ok(())
    }

    fn command(&self, folder: &Path) -> Result<Command> {
        let initrd = folder.join("initrd");
        let guest = &self.environment.guest;
        initramfs::write(&initrd, guest, &self.payload, &self.variables, &self.files)?;
        let mut command = self.environment.qemu.command();
        command.args([
            "-nodefaults",
            "-nographic",
            "-no-user-config",
            "-accel",
            "tcg",
        ]);
        command.args(["-cpu", "max", "-smp", "2", "-M", "q35,memory-backend=mem"]);
        let size = self.memory_mib;
        command
            .arg("-object")
            .arg(format!("memory-backend-memfd,id=mem,size={size}M,share=on"));
        command.arg("-m").arg(format!("{size}M"));
        command
            .arg("-kernel")
            .arg(guest.kernel())
            .arg("-initrd")
            .arg(initrd);
        command.args(["-append", "console=ttyS0 quiet loglevel=5 panic=-1"]);
        if let Some((transport, socket)) = &self.device {
            command.args(transport.qemu_arguments(socket));
        }
        command.args(&self.arguments);
        command.envs(
            self.host_variables
                .iter()
                .map(|(name, value)| (name, value)),
        );
        Ok(command)
    }
}
