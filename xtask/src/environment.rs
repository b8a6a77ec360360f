//! The QEMU and the guest that programs run in: the host's own QEMU where it is new enough, else one from the cache.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::apt::{Apt, run};
use crate::libraries::GuestLibraries;
use crate::{cache, kernel};

/// Cache entries, pinned by suite: a newer point release is fetched when the entry is removed.
const QEMU_ENTRY: &str = "qemu-trixie-backports";
const GUEST_ENTRY: &str = "guest-trixie-elf";

/// Kernel modules of the guest, in the order of loading.
const MODULES: [&str; 5] = [
    "drm",
    "drm_kms_helper",
    "drm_shmem_helper",
    "virtio_dma_buf",
    "virtio-gpu",
];

/// What a virtual machine is made of.
#[derive(Debug, Clone)]
pub struct Environment {
    /// The emulator.
    pub qemu: Qemu,
    /// What it boots.
    pub guest: GuestFiles,
    /// What programs of this host need there.
    pub libraries: GuestLibraries,
}

/// A QEMU that can load our device.
#[derive(Debug, Clone)]
pub enum Qemu {
    /// `qemu-system-x86_64` on the PATH.
    Installed,
    /// Debian packages unpacked into this folder, run with their own C library.
    Unpacked(PathBuf),
}

/// Kernel, modules and busybox.
#[derive(Debug, Clone)]
pub struct GuestFiles(PathBuf);

impl Environment {
    /// Installs what is missing.
    pub fn prepare() -> Result<Self> {
        Ok(Self {
            qemu: Qemu::prepare()?,
            guest: GuestFiles::prepare()?,
            libraries: GuestLibraries::prepare()?,
        })
    }

    /// Only looks: tests do not install.
    pub fn find() -> Result<Self> {
        let missing = "is missing: run `cargo xtask setup`";
        let qemu =
            match Qemu::installed() {
                Some(qemu) => qemu,
                None => Qemu::Unpacked(cache::find(QEMU_ENTRY)?.with_context(|| {
                    format!("a QEMU with vfio-user-pci (10.1 or newer) {missing}")
                })?),
            };
        let guest =
            cache::find(GUEST_ENTRY)?.with_context(|| format!("the guest kernel {missing}"))?;
        Ok(Self {
            qemu,
            guest: GuestFiles(guest),
            libraries: GuestLibraries::find()?,
        })
    }
}

impl Qemu {
    fn installed() -> Option<Self> {
        let qemu = Self::Installed;
        qemu.lists_device("vfio-user-pci").then_some(qemu)
    }

    fn prepare() -> Result<Self> {
        if let Some(qemu) = Self::installed() {
            return Ok(qemu);
        }
        let what = "fetching QEMU 11 from trixie-backports (some 45 MB)";
        let root = cache::entry(QEMU_ENTRY, what, |folder| {
            let state = folder.join("apt");
            let apt = Apt::new(&state, &["trixie", "trixie-backports"])?;
            apt.install("trixie-backports", &["qemu-system-x86"], folder)?;
            fs::remove_dir_all(state)?;
            Ok(())
        })?;
        let qemu = Self::Unpacked(root);
        if !qemu.lists_device("vfio-user-pci") {
            bail!(
                "the QEMU of trixie-backports does not offer vfio-user-pci: remove {QEMU_ENTRY} from {} and try again, \
                 or put QEMU 10.1 or newer on the PATH",
                cache::folder()?.display()
            );
        }
        Ok(qemu)
    }

    /// A command that runs this QEMU, without arguments of its own but those that find its files.
    pub fn command(&self) -> Command {
        match self {
            Qemu::Installed => Command::new("qemu-system-x86_64"),
            Qemu::Unpacked(root) => {
                let usr = root.join("usr");
                let mut command = Command::new(usr.join("lib64/ld-linux-x86-64.so.2"));
                // Of what SDL loads, a part lies in a folder of its own.
                let libraries = usr.join("lib/x86_64-linux-gnu");
                let mut path = libraries.clone().into_os_string();
                path.push(":");
                path.push(libraries.join("pulseaudio"));
                command.arg("--library-path").arg(path);
                command.arg(usr.join("bin/qemu-system-x86_64"));
                for data in ["share/qemu", "share/seabios", "lib/ipxe/qemu"] {
                    command.arg("-L").arg(usr.join(data));
                }
                command
            }
        }
    }

    /// Whether it knows a device model.
    pub fn lists_device(&self, device: &str) -> bool {
        let quoted = format!("name \"{device}\"");
        run(self.command().args(["-device", "help"])).is_ok_and(|text| text.contains(&quoted))
    }

    /// Its version, for people.
    pub fn version(&self) -> String {
        let text = run(self.command().arg("--version")).unwrap_or_default();
        text.lines().next().unwrap_or("unknown version").to_owned()
    }
}

impl GuestFiles {
    fn prepare() -> Result<Self> {
        let what = "fetching the guest kernel from trixie (some 110 MB)";
        let folder = cache::entry(GUEST_ENTRY, what, |folder| {
            let (state, root) = (folder.join("apt"), folder.join("root"));
            let apt = Apt::new(&state, &["trixie"])?;
            let image = apt.first_dependency("linux-image-amd64")?;
            apt.download(&[&image, "busybox-static"], &root)?;
            take(&root, folder)?;
            fs::remove_dir_all(state)?;
            fs::remove_dir_all(root)?;
            Ok(())
        })?;
        Ok(Self(folder))
    }

    /// The kernel, uncompressed.
    pub fn kernel(&self) -> PathBuf {
        self.0.join("vmlinux")
    }

    /// A static busybox.
    pub fn busybox(&self) -> PathBuf {
        self.0.join("busybox")
    }

    /// Modules in the order of loading, uncompressed.
    pub fn modules(&self) -> impl Iterator<Item = PathBuf> + '_ {
        MODULES.iter().map(|name| self.0.join(format!("{name}.ko")))
    }
}

/// Takes what a guest needs out of unpacked packages.
fn take(root: &Path, to: &Path) -> Result<()> {
    let image = find(&root.join("boot"), &|name| name.starts_with("vmlinuz-"))
        .context("the kernel package has no /boot/vmlinuz")?;
    let kernel = kernel::unpack(&fs::read(&image)?).with_context(|| image.display().to_string())?;
    fs::write(to.join("vmlinux"), kernel)?;
    let busybox = find(root, &|name| name == "busybox").context("busybox-static has no busybox")?;
    fs::copy(busybox, to.join("busybox"))?;
    for module in MODULES {
        let file = format!("{module}.ko.xz");
        let path = find(&root.join("usr/lib/modules"), &|name| name == file)
            .or_else(|| find(&root.join("lib/modules"), &|name| name == file))
            .with_context(|| format!("the kernel package has no module {module}"))?;
        let mut reader = lzma_rust2::XzReader::new(fs::File::open(path)?, true);
        let mut plain = fs::File::create(to.join(format!("{module}.ko")))?;
        std::io::copy(&mut reader, &mut plain)
            .with_context(|| format!("{file} cannot be decompressed"))?;
    }
    Ok(())
}

/// The first regular file below `folder` whose name fits.
fn find(folder: &Path, fits: &dyn Fn(&str) -> bool) -> Option<PathBuf> {
    let mut entries: Vec<_> = fs::read_dir(folder).ok()?.flatten().collect();
    entries.sort_by_key(fs::DirEntry::file_name);
    entries.into_iter().find_map(|entry| {
        let kind = entry.file_type().ok()?;
        if kind.is_dir() {
            find(&entry.path(), fits)
        } else {
            let name = entry.file_name();
            (kind.is_file() && name.to_str().is_some_and(fits)).then(|| entry.path())
        }
    })
}
