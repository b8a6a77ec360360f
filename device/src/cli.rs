//! The command line of hostblobd. `docs/hostblobd.md` is generated from it.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use hostblob_allocator::provider::process::JOB_TIME;
use hostblob_allocator::provider::{Choice, DeviceSelector, Options};
use hostblob_allocator::text::parse_size;
use hostblob_allocator::window::Warmth;
use hostblob_protocol::DEFAULT_CAPSET_ID;

use crate::gpu::{Display, MAX_SIDE};
use crate::sandbox;

/// Host-visible GPU memory for one virtual machine.
///
/// Serves a virtio-gpu device to a VMM: a guest's GPU driver allocates host memory through it and maps it through the PCI BAR.
/// Ends on SIGTERM and SIGINT.
#[derive(Debug, Parser)]
#[command(
    name = "hostblobd",
    version,
    args_conflicts_with_subcommands = true,
    after_help = "Sizes are bytes, with K, M, G or T for powers of 1024."
)]
pub struct Cli {
    /// What to do instead of serving.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// How to serve.
    #[command(flatten)]
    pub serve: Serve,
}

/// What to do instead of serving.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Say what this host can offer, and the VMM command lines that load it
    Info {
        /// Look at GPUs from within the sandbox that their drivers serve in
        #[arg(long, value_enum, default_value = "on")]
        sandbox: sandbox::Mode,
    },
    /// What hostblobd runs the GPU driver in: speaks to it on standard input
    #[command(hide = true)]
    Provider(Gpu),
    /// What starts that for hostblobd: is told so on standard input
    #[command(hide = true)]
    Launcher(Gpu),
}

/// Which GPU, and how its driver and hostblobd are watched.
#[derive(Debug, Clone, Args)]
pub struct Gpu {
    /// What attaches the GPU: auto, vulkan, gl or system (plain memory)
    #[arg(long, default_value = "auto")]
    pub provider: Choice,
    /// GPU, by its number in `hostblobd info` or a part of its name
    #[arg(long, value_name = "INDEX|NAME")]
    pub device: Option<DeviceSelector>,
    /// Memory that all guest processes together may hold
    #[arg(long, value_name = "SIZE", default_value = "4G", value_parser = parse_size)]
    pub memory_limit: u64,
    /// Run Vulkan under VK_LAYER_KHRONOS_validation
    #[arg(long)]
    pub validation: bool,
    /// What hostblobd and the process with the GPU driver may do (docs/sandbox.md)
    #[arg(long, value_enum, default_value = "on")]
    pub sandbox: sandbox::Mode,
    /// Least severe log level: error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub log: log::LevelFilter,
}

impl Gpu {
    /// What the provider is started with.
    pub fn options(&self) -> Options {
        Options {
            device: self.device.clone(),
            validation: self.validation,
            memory_limit: Some(self.memory_limit),
        }
    }

    /// The flags that say the same.
    pub fn to_flags(&self) -> Vec<String> {
        let mut flags = vec![
            format!("--provider={}", self.provider),
            format!("--memory-limit={}", self.memory_limit),
            format!("--sandbox={}", self.sandbox),
            format!("--log={}", self.log),
        ];
        flags.extend(self.device.iter().map(|device| match device {
            DeviceSelector::Index(index) => format!("--device={index}"),
            DeviceSelector::Name(name) => format!("--device={name}"),
        }));
        if self.validation {
            flags.push("--validation".to_owned());
        }
        flags
    }
}

/// Where the GPU driver is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum ProviderProcess {
    /// In a process of its own: a driver that crashes loses its work and device memory, guests keep theirs
    On,
    /// In this process
    Off,
}

/// Which protocol the VMM speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum TransportKind {
    /// QEMU 10.1 and newer (vfio-user-pci), cloud-hypervisor (--user-device)
    VfioUser,
    /// crosvm (--vhost-user), QEMU 11 (vhost-user-test-device-pci)
    VhostUser,
}

/// When the VMM maps what into the window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum WindowModeKind {
    /// The whole window in one: blobs cost the VMM nothing
    Premapped,
    /// Each blob by itself: memory of host processes and of the GPU can be mapped too. At most 448 blobs; needs vhost-user
    OnDemand,
}

/// How to serve.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("sockets").args(["socket_path", "local_socket"]).required(true).multiple(true))]
pub struct Serve {
    /// Socket that the VMM connects to
    #[arg(long, value_name = "PATH")]
    pub socket_path: Option<PathBuf>,
    /// Protocol that the VMM speaks on it
    #[arg(long, value_enum, default_value = "vfio-user")]
    pub transport: TransportKind,
    /// Size of the window (the PCI BAR): a power of two. It is sparse: address space, not memory
    #[arg(long, value_name = "SIZE", default_value = "8G", value_parser = parse_size)]
    pub window: u64,
    /// What the VMM maps into the window, and when
    #[arg(long, value_enum, default_value = "premapped")]
    pub window_mode: WindowModeKind,
    /// Which GPU, and how it is watched.
    #[command(flatten)]
    pub gpu: Gpu,
    /// Where the GPU driver is
    #[arg(long, value_enum, default_value = "on")]
    pub provider_process: ProviderProcess,
    /// Seconds that the GPU may take for one job: then its driver's process is ended, and another one started
    #[arg(long, value_name = "SECONDS", default_value_t = JOB_TIME.as_secs(), value_parser = clap::value_parser!(u64).range(1..))]
    pub gpu_timeout: u64,
    /// Memory that one guest process (one virtio-gpu context) may hold
    #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = parse_size)]
    pub context_limit: u64,
    /// Memory that each guest process has for sure, whatever others hold. Where that is not left, no new one is served
    #[arg(long, value_name = "SIZE", default_value = "1M", value_parser = parse_size)]
    pub context_share: u64,
    /// Clean pages that are kept for the next blob
    #[arg(long, value_name = "SIZE", default_value = "128M", value_parser = parse_size)]
    pub warm_limit: u64,
    /// Seconds until clean pages that nobody took are given back to the host
    #[arg(long, value_name = "SECONDS", default_value_t = Warmth::TIME.as_secs())]
    pub warm_time: u64,
    /// Number of our capset. Linux, 6.12 at least, makes contexts of ids up to 30 alone
    #[arg(long, value_name = "ID", default_value_t = DEFAULT_CAPSET_ID, value_parser = clap::value_parser!(u32).range(1..64))]
    pub capset_id: u32,
    /// Socket for programs on this host, without a VM
    #[arg(long, value_name = "PATH")]
    pub local_socket: Option<PathBuf>,
    /// Socket where host processes of the same user look at what guests share, and hand in memory
    #[arg(long, value_name = "PATH")]
    pub export_socket: Option<PathBuf>,
    /// Socket of a Wayland compositor: programs in the guest become its clients (cross-domain contexts)
    #[arg(long, value_name = "PATH", requires = "socket_path")]
    pub wayland_socket: Option<PathBuf>,
    /// Capsets of other renderers to offer: virgl2, venus, drm, where built with the cargo feature virgl
    #[arg(
        long,
        value_name = "NAMES",
        value_delimiter = ',',
        requires = "socket_path"
    )]
    pub capsets: Vec<String>,
    /// A screen for the guest, which host processes see through the export socket
    #[arg(long, value_name = "WIDTHxHEIGHT", value_parser = parse_display, requires = "socket_path")]
    pub display: Option<Display>,
    /// Begin with the device of this snapshot (docs/snapshot.md): the first VMM that connects gets it
    #[arg(long, value_name = "FILE", requires = "socket_path")]
    pub restore: Option<PathBuf>,
    /// Save the VM's device to this file on SIGUSR1. Pause the VM before
    #[arg(long, value_name = "FILE", requires = "socket_path")]
    pub save: Option<PathBuf>,
}

/// Pixels.
fn parse_display(text: &str) -> Result<Display, String> {
    let side = |text: &str| {
        let side = text.parse().ok();
        side.filter(|side| (1..=MAX_SIDE).contains(side))
    };
    text.split_once('x')
        .and_then(|(width, height)| {
            Some(Display {
                width: side(width)?,
                height: side(height)?,
            })
        })
        .ok_or_else(|| {
            format!("a width and a height are expected, at most {MAX_SIDE}, such as 1920x1080")
        })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_flags_are_consistent() {
        Cli::command().debug_assert();
    }

    /// The page that describes each flag: written where `HOSTBLOB_BLESS` is set, compared otherwise.
    #[test]
    fn the_page_is_up_to_date() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/hostblobd.md");
        let help = Cli::command().term_width(100).render_long_help();
        let page = format!(
            "# hostblobd\n\n<!-- Made from device/src/cli.rs: HOSTBLOB_BLESS=1 cargo test -p hostblob-device -->\n\n\
             ```text\n{help}```\n"
        );
        if std::env::var_os("HOSTBLOB_BLESS").is_some() {
            std::fs::write(path, &page).unwrap();
        }
        assert_eq!(std::fs::read_to_string(path).unwrap_or_default(), page);
    }

    #[test]
    fn a_child_gets_the_same_gpu() {
        let flags = ["--provider", "gl", "--device", "some card", "--validation"];
        let flags = [
            &["hostblobd", "--local-socket", "s", "--log", "warn"],
            &flags[..],
        ]
        .concat();
        let serve = Cli::try_parse_from(flags).unwrap().serve;
        let child = ["hostblobd".to_owned(), "provider".to_owned()];
        let child = [&child[..], &serve.gpu.to_flags()].concat();
        match Cli::try_parse_from(child).unwrap().command {
            Some(Command::Provider(gpu)) => {
                assert_eq!(gpu.options(), serve.gpu.options());
                assert_eq!((gpu.provider, gpu.log), (serve.gpu.provider, serve.gpu.log));
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn displays() {
        let (width, height) = (1920, 1080);
        assert_eq!(parse_display("1920x1080"), Ok(Display { width, height }));
        for bad in [
            "",
            "1920",
            "0x1",
            "1x0",
            "1x16385",
            "-1x1",
            "1x1x1",
            "1920X1080",
            "1920 x 1080",
        ] {
            assert!(parse_display(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_socket_is_needed() {
        assert!(Cli::try_parse_from(["hostblobd"]).is_err());
        assert!(Cli::try_parse_from(["hostblobd", "--local-socket", "s"]).is_ok());
        assert!(Cli::try_parse_from(["hostblobd", "info"]).is_ok());
        assert!(
            Cli::try_parse_from(["hostblobd", "--socket-path", "s", "--capset-id", "64"]).is_err()
        );
    }

    #[test]
    fn snapshots_are_of_vms() {
        for flag in ["--save", "--restore"] {
            let local = ["hostblobd", "--local-socket", "s", flag, "f"];
            let error = Cli::try_parse_from(local).unwrap_err().to_string();
            assert!(error.contains("--socket-path <PATH>"), "{error}");
            let both = [&local[..], &["--socket-path", "s"]].concat();
            assert!(Cli::try_parse_from(both).is_ok());
        }
    }
}
