//! `cargo xtask install`: hostblobd and the guest library under a prefix, as a distribution's package would have them.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::build;
use crate::progress::{note, step};

/// The version that the library's soname names; grows when a program built before no longer works.
const SONAME: &str = "libhostblob_guest.so.0";

/// Where to.
#[derive(Debug, Clone, clap::Args)]
pub struct Flags {
    /// Folder that gets bin, lib and include
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
    let libraries = step("building the guest library", || {
        build::host_library("hostblob-guest")
    })?;
    let source = build::workspace().join("guest-ffi");
    copy(&hostblobd, &root.join("bin/hostblobd"), 0o755)?;
    copy(
        &libraries.join("libhostblob_guest.a"),
        &root.join("lib/libhostblob_guest.a"),
        0o644,
    )?;
    copy(
        &libraries.join("libhostblob_guest.so"),
        &root.join("lib").join(SONAME),
        0o755,
    )?;
    let link = root.join("lib/libhostblob_guest.so");
    let _ = fs::remove_file(&link);
    symlink(SONAME, &link).with_context(|| format!("cannot make {}", link.display()))?;
    copy(
        &source.join("include/hostblob_guest.h"),
        &root.join("include/hostblob_guest.h"),
        0o644,
    )?;
    let template = fs::read_to_string(source.join("hostblob-guest.pc.in"))?;
    let path = |folder: &str| prefix.join(folder).to_string_lossy().into_owned();
    let text = template
        .replace("@prefix@", &prefix.to_string_lossy())
        .replace("@libdir@", &path("lib"))
        .replace("@includedir@", &path("include"))
        .replace("@version@", env!("CARGO_PKG_VERSION"));
    let target = root.join("lib/pkgconfig/hostblob-guest.pc");
    make_parent(&target)?;
    fs::write(&target, text).with_context(|| format!("cannot write {}", target.display()))?;
    note(&format!("installed under {}", root.display()));
    Ok(())
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
