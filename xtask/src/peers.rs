//! Other devices that give a guest host-visible memory, to be measured beside ours: QEMU's own virtio-gpu-gl with Venus, run by a QEMU of
//! its own under a virtual X server, with llvmpipe and lavapipe as the GPU.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

use crate::apt::{Apt, run};
use crate::cache;
use crate::environment::{Environment, Qemu};
use crate::vm::VmBuilder;

/// The capset of Venus.
pub const VENUS_CAPSET: &str = "4";

/// What a QEMU with virtio-gpu-gl and Venus is made of.
const PACKAGES: [&str; 9] = [
    "qemu-system-x86",
    "qemu-system-gui",
    "qemu-system-modules-opengl",
    "virgl-server",
    "mesa-vulkan-drivers",
    "libgl1-mesa-dri",
    "libegl-mesa0",
    "libglx-mesa0",
    "libgl1",
];

/// Starts the program of virglrenderer that runs Venus, with the C library that belongs to it.
const RENDER_SERVER: &str = "render-server";

/// A QEMU with virtio-gpu-gl, unpacked.
#[derive(Debug, Clone)]
pub struct Peer {
    root: PathBuf,
    /// What a virtual machine of it is made of.
    pub environment: Environment,
}

impl Peer {
    /// That of the last one of these Debian suites; installed where it is missing. It boots what `ours` does.
    pub fn prepare(suites: &[&str], ours: &Environment) -> Result<Self> {
        let suite = suites.last().context("no suite")?;
        let what = format!("fetching QEMU with virtio-gpu-gl from {suite} (some 190 MB)");
        let root = cache::entry(&format!("qemu-gl-{suite}"), &what, |folder| {
            let state = folder.join("apt");
            let apt = Apt::new(&state, suites)?;
            apt.install(suite, &PACKAGES, folder)?;
            fs::remove_dir_all(state)?;
            Ok(())
        })?;
        write_render_server(&root)?;
        let environment = Environment {
            qemu: Qemu::Unpacked(root.clone()),
            ..ours.clone()
        };
        Ok(Self { root, environment })
    }

    /// The version of its virglrenderer: the first line of the package's changelog has it in brackets.
    fn virglrenderer(&self) -> String {
        let changelog = self.path("share/doc/libvirglrenderer1/changelog.Debian.gz");
        let text = run(Command::new("zcat").arg(changelog)).unwrap_or_default();
        let version = text
            .split_once('(')
            .and_then(|(_, rest)| rest.split_once(')'));
        version.map_or_else(|| "unknown".to_owned(), |(version, _)| version.to_owned())
    }

    /// What it is, for people.
    pub fn about(&self) -> String {
        format!(
            "virtio-gpu-gl with Venus, virglrenderer {}, {}",
            self.virglrenderer(),
            self.environment.qemu.version()
        )
    }

    fn path(&self, part: &str) -> PathBuf {
        self.root.join("usr").join(part)
    }

    /// Loads virtio-gpu-gl instead of our device, and finds all that it needs below the root.
    pub fn configure<'a>(&self, vm: VmBuilder<'a>, screen: &Screen) -> VmBuilder<'a> {
        let driver = self.path("share/vulkan/icd.d/lvp_icd.json");
        vm.qemu_args([
            "-display",
            "sdl,gl=on",
            "-device",
            "virtio-gpu-gl-pci,hostmem=8G,blob=on,venus=on",
        ])
        .host_env("DISPLAY", &screen.display)
        .host_env("SDL_AUDIODRIVER", "dummy")
        .host_env("QEMU_MODULE_DIR", self.path("lib/x86_64-linux-gnu/qemu"))
        .host_env("LIBGL_ALWAYS_SOFTWARE", "1")
        .host_env("LIBGL_DRIVERS_PATH", self.path("lib/x86_64-linux-gnu/dri"))
        .host_env(
            "__EGL_VENDOR_LIBRARY_FILENAMES",
            self.path("share/glvnd/egl_vendor.d/50_mesa.json"),
        )
        .host_env("VK_DRIVER_FILES", &driver)
        .host_env("RENDER_SERVER_EXEC_PATH", self.root.join(RENDER_SERVER))
    }
}

fn write_render_server(root: &Path) -> Result<()> {
    let usr = root.join("usr");
    let usr = usr.display();
    let text = format!(
        "#!/bin/sh\nexec '{usr}/lib64/ld-linux-x86-64.so.2' --library-path '{usr}/lib/x86_64-linux-gnu' \
         '{usr}/libexec/virgl_render_server' \"$@\"\n"
    );
    let path = root.join(RENDER_SERVER);
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

/// A virtual X server. Ended when dropped.
#[derive(Debug)]
pub struct Screen {
    child: Child,
    display: String,
}

impl Screen {
    /// Starts it on a display that is free.
    pub fn start() -> Result<Self> {
        let mut child = Command::new("Xvfb")
            .args([
                "-displayfd",
                "1",
                "-screen",
                "0",
                "640x480x24",
                "-nolisten",
                "tcp",
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("Xvfb cannot be started")?;
        let mut number = String::new();
        if let Some(stdout) = child.stdout.take() {
            BufReader::new(stdout).read_line(&mut number)?;
        }
        let screen = Self {
            child,
            display: format!(":{}", number.trim()),
        };
        anyhow::ensure!(!number.trim().is_empty(), "Xvfb did not start");
        Ok(screen)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
