//! `cargo xtask install`: hostblobd, the C libraries and the Vulkan driver under a prefix, as a distribution's package would have them.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::build;
use crate::progress::{note, step};

/// A C library, as it is built and as it is installed.
struct Library {
    package: &'static str,
    /// Folder of the package.
    source: &'static str,
    /// What cargo calls it, without an ending.
    name: &'static str,
    /// Whether programs may link it statically.
    has_archive: bool,
    /// Folder under lib and include. Programs are to find the one that stands in for another's library when they are told to, not else.
    folder: &'static str,
    /// Under include of the package.
    header: &'static str,
    /// The pkg-config file.
    pkg_config: &'static str,
}

const LIBRARIES: [Library; 2] = [
    Library {
        package: "hostblob-guest",
        source: "guest-ffi",
        name: "libhostblob_guest",
        has_archive: true,
        folder: "",
        header: "hostblob_guest.h",
        pkg_config: "hostblob-guest.pc",
    },
    Library {
        package: "hostblob-rutabaga-ffi",
        source: "rutabaga-ffi",
        name: "librutabaga_gfx_ffi",
        has_archive: false,
        folder: "hostblob",
        header: "rutabaga_gfx/rutabaga_gfx_ffi.h",
        pkg_config: "hostblob.pc",
    },
];

/// The version that the libraries' sonames name; grows when a program built before no longer works.
const SONAME_VERSION: &str = ".so.0";

/// Where to.
#[derive(Debug, Clone, clap::Args)]
pub struct Flags {
    /// Folder that gets bin, lib, include and share
    #[arg(long, value_name = "DIR", default_value = "/usr/local")]
    pub prefix: PathBuf,
    /// Folder that stands for the root of the file system, for packagers
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub destdir: PathBuf,
}

/// Builds and copies.
pub fn run(flags: &Flags) -> Result<()> {
    let prefix = std::path::absolute(&flags.prefix)?;
    let root = flags
        .destdir
        .join(prefix.strip_prefix("/").unwrap_or(&prefix));
    let hostblobd = step("building hostblobd", || {
        build::host_binary("hostblob-device", "hostblobd")
    })?;
    copy(&hostblobd, &root.join("bin/hostblobd"), 0o755)?;
    for library in &LIBRARIES {
        library.install(&prefix, &root)?;
    }
    install_driver(&root)?;
    note(&format!("installed under {}", root.display()));
    Ok(())
}

impl Library {
    /// `prefix` is where it will be, `root` the folder that stands for it now.
    fn install(&self, prefix: &Path, root: &Path) -> Result<()> {
        let built = step(&format!("building {}", self.name), || {
            build::host_library(self.package)
        })?;
        let source = build::workspace().join(self.source);
        let parts = |kind| {
            [kind, self.folder]
                .into_iter()
                .filter(|part| !part.is_empty())
        };
        let (lib, include): (PathBuf, PathBuf) =
            (parts("lib").collect(), parts("include").collect());
        let file = |ending: &str| format!("{}{ending}", self.name);
        if self.has_archive {
            let archive = file(".a");
            copy(
                &built.join(&archive),
                &root.join(&lib).join(&archive),
                0o644,
            )?;
        }
        let versioned = file(SONAME_VERSION);
        let library = root.join(&lib).join(&versioned);
        copy(&built.join(file(".so")), &library, 0o755)?;
        let link = root.join(&lib).join(file(".so"));
        let _ = fs::remove_file(&link);
        symlink(&versioned, &link).with_context(|| format!("cannot make {}", link.display()))?;
        copy(
            &source.join("include").join(self.header),
            &root.join(&include).join(self.header),
            0o644,
        )?;
        let template = fs::read_to_string(source.join(format!("{}.in", self.pkg_config)))?;
        let text = template
            .replace("@prefix@", &prefix.to_string_lossy())
            .replace("@libdir@", &prefix.join(&lib).to_string_lossy())
            .replace("@includedir@", &prefix.join(&include).to_string_lossy())
            .replace("@version@", env!("CARGO_PKG_VERSION"));
        let target = root.join("lib/pkgconfig").join(self.pkg_config);
        make_parent(&target)?;
        fs::write(&target, text).with_context(|| format!("cannot write {}", target.display()))
    }
}

/// The Vulkan driver where loaders look for it: the manifest finds the library by its place beside it, wherever the prefix is.
fn install_driver(root: &Path) -> Result<()> {
    const LIBRARY: &str = "libvulkan_hostblob.so";
    let manifest = step("building the Vulkan driver", build::vulkan_driver)?;
    copy(
        &manifest.with_file_name(LIBRARY),
        &root.join("lib").join(LIBRARY),
        0o755,
    )?;
    let text = fs::read_to_string(&manifest)?;
    let text = text.replace(&format!("./{LIBRARY}"), &format!("../../../lib/{LIBRARY}"));
    let target = root.join("share/vulkan/icd.d/vulkan_hostblob.json");
    make_parent(&target)?;
    fs::write(&target, text).with_context(|| format!("cannot write {}", target.display()))
}

fn make_parent(path: &Path) -> Result<()> {
    let parent = path.parent().unwrap_or(path);
    fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))
}

fn copy(from: &Path, to: &Path, mode: u32) -> Result<()> {
    make_parent(to)?;
    // A running program's file cannot be written, but it can be replaced.
    let _ = fs::remove_file(to);
    fs::copy(from, to)
        .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    fs::set_permissions(to, fs::Permissions::from_mode(mode))?;
    Ok(())
}
