//! Shared libraries of the guest's Debian suite, for programs that want a Vulkan driver there: with them, programs of this host run in the
//! guest as well.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::apt::{Apt, run};
use crate::cache;

const ENTRY: &str = "guest-libraries-trixie";
const PACKAGES: [&str; 4] = [
    "libvulkan1",
    "mesa-vulkan-drivers",
    "libgcc-s1",
    "libstdc++6",
];

/// Where Debian has libraries, and the interpreter of programs.
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";
const INTERPRETER: &str = "lib64/ld-linux-x86-64.so.2";
/// What is wanted for itself; what these need comes along.
const WANTED: [&str; 4] = [
    "libvulkan.so.1",
    "libvulkan_lvp.so",
    "libgcc_s.so.1",
    "libdl.so.2",
];
const MANIFEST: &str = "usr/share/vulkan/icd.d/lvp_icd.json";

/// A folder laid out as in the guest: the C library, the Vulkan loader, and Mesa's driver for the CPU.
#[derive(Debug, Clone)]
pub struct GuestLibraries(PathBuf);

impl GuestLibraries {
    pub(crate) fn prepare() -> Result<Self> {
        let what = "fetching the guest's Vulkan driver from trixie (some 60 MB)";
        let folder = cache::entry(ENTRY, what, |folder| {
            let (state, root) = (folder.join("apt"), folder.join("root"));
            let apt = Apt::new(&state, &["trixie"])?;
            apt.install("trixie", &PACKAGES, &root)?;
            take(&root, folder)?;
            fs::remove_dir_all(state)?;
            fs::remove_dir_all(root)?;
            Ok(())
        })?;
        Ok(Self(folder))
    }

    pub(crate) fn find() -> Result<Self> {
        let found = cache::find(ENTRY)?;
        let found =
            found.context("the guest's Vulkan driver is missing: run `cargo xtask setup`")?;
        Ok(Self(found))
    }

    /// Every file, and its path in the guest.
    pub fn files(&self) -> Result<Vec<(PathBuf, String)>> {
        let mut folders = vec![self.0.clone()];
        let mut files = Vec::new();
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder)? {
                let path = entry?.path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    let name = path.strip_prefix(&self.0)?.to_string_lossy();
                    files.push((path.clone(), format!("/{name}")));
                }
            }
        }
        files.sort();
        Ok(files)
    }
}

/// Takes the libraries that are needed out of unpacked packages.
fn take(root: &Path, to: &Path) -> Result<()> {
    let libraries = root.join(LIBRARIES);
    let mut needed: BTreeSet<String> = WANTED.map(str::to_owned).into();
    for wanted in WANTED {
        // The suite's own interpreter says what it would load.
        let text = run(Command::new(root.join("usr").join(INTERPRETER))
            .arg("--library-path")
            .arg(&libraries)
            .arg("--list")
            .arg(libraries.join(wanted)))?;
        let names = text.lines().filter_map(|line| line.split_once(" => "));
        needed.extend(names.map(|(name, _)| name.trim().to_owned()));
    }
    let copy = |from: PathBuf, name: &str| {
        let to = to.join(name);
        fs::create_dir_all(to.parent().context("a file has a folder")?)?;
        fs::copy(&from, &to).with_context(|| format!("{} is missing", from.display()))
    };
    for name in &needed {
        copy(libraries.join(name), &format!("{LIBRARIES}/{name}"))?;
    }
    copy(root.join("usr").join(INTERPRETER), INTERPRETER)?;
    copy(root.join(MANIFEST), MANIFEST)?;
    Ok(())
}
