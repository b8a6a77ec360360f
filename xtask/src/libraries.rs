//! What the guest's Debian suite has for Vulkan, and its C library: with them, programs of this host run in the guest as well.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::apt::{Apt, run};
use crate::cache;

/// The name changes with what is in it: an entry is complete or absent.
const ENTRY: &str = "guest-vulkan-trixie";
const PACKAGES: [&str; 6] = [
    "libvulkan1",
    "mesa-vulkan-drivers",
    "vulkan-tools",
    "vulkan-validationlayers",
    "libgcc-s1",
    "libstdc++6",
];

/// Where Debian has libraries, and the interpreter of programs.
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";
const INTERPRETER: &str = "lib64/ld-linux-x86-64.so.2";

/// What a guest is given beside its programs. No guest needs all of it: its memory has to hold it, and its boot to unpack it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Set {
    /// The Vulkan loader and Mesa's driver for the CPU, for a daemon in the guest. 175 MB, most of it LLVM's.
    Driver,
    /// The Vulkan loader, vulkaninfo, the validation layer and Mesa's Venus, for clients of our device and of its peers. 45 MB.
    Client,
}

impl Set {
    const ALL: [Self; 2] = [Self::Driver, Self::Client];

    fn name(self) -> &'static str {
        match self {
            Self::Driver => "driver",
            Self::Client => "client",
        }
    }

    /// Paths in the guest. The libraries that these need come along.
    fn wanted(self) -> &'static [&'static str] {
        match self {
            Self::Driver => &[
                "usr/lib/x86_64-linux-gnu/libvulkan_lvp.so",
                "usr/share/vulkan/icd.d/lvp_icd.json",
            ],
            Self::Client => &[
                "usr/bin/vulkaninfo",
                "usr/lib/x86_64-linux-gnu/libVkLayer_khronos_validation.so",
                "usr/share/vulkan/explicit_layer.d/VkLayer_khronos_validation.json",
                "usr/lib/x86_64-linux-gnu/libvulkan_virtio.so",
                "usr/share/vulkan/icd.d/virtio_icd.json",
            ],
        }
    }
}

/// What programs of this host need at least.
const ALWAYS: [&str; 4] = [
    "usr/lib/x86_64-linux-gnu/libvulkan.so.1",
    "usr/lib/x86_64-linux-gnu/libgcc_s.so.1",
    "usr/lib/x86_64-linux-gnu/libstdc++.so.6",
    "usr/lib/x86_64-linux-gnu/libdl.so.2",
];

/// Folders laid out as in the guest, one for each [`Set`].
#[derive(Debug, Clone)]
pub struct GuestLibraries(PathBuf);

impl GuestLibraries {
    pub(crate) fn prepare() -> Result<Self> {
        let what = "fetching the guest's Vulkan from trixie (some 65 MB)";
        let folder = cache::entry(ENTRY, what, |folder| {
            let (state, root) = (folder.join("apt"), folder.join("root"));
            let apt = Apt::new(&state, &["trixie"])?;
            apt.install("trixie", &PACKAGES, &root)?;
            for set in Set::ALL {
                take(&root, set.wanted(), &folder.join(set.name()))?;
            }
            fs::remove_dir_all(state)?;
            fs::remove_dir_all(root)?;
            Ok(())
        })?;
        Ok(Self(folder))
    }

    pub(crate) fn find() -> Result<Self> {
        let found = cache::find(ENTRY)?;
        let found = found.context("the guest's Vulkan is missing: run `cargo xtask setup`")?;
        Ok(Self(found))
    }

    /// Every file of a set, and its path in the guest.
    pub fn files(&self, set: Set) -> Result<Vec<(PathBuf, String)>> {
        let root = self.0.join(set.name());
        let mut folders = vec![root.clone()];
        let mut files = Vec::new();
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder)? {
                let path = entry?.path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    let name = path.strip_prefix(&root)?.to_string_lossy();
                    files.push((path.clone(), format!("/{name}")));
                }
            }
        }
        files.sort();
        Ok(files)
    }
}

/// Takes what is wanted out of unpacked packages.
fn take(root: &Path, wanted: &[&str], to: &Path) -> Result<()> {
    let interpreter = root.join("usr").join(INTERPRETER);
    let mut files: BTreeSet<String> = BTreeSet::new();
    for wanted in wanted.iter().chain(&ALWAYS) {
        files.insert((*wanted).to_owned());
        if wanted.ends_with(".json") {
            continue;
        }
        // The suite's own interpreter says what it would load.
        let text = run(Command::new(&interpreter)
            .arg("--library-path")
            .arg(root.join(LIBRARIES))
            .arg("--list")
            .arg(root.join(wanted)))?;
        let names = text.lines().filter_map(|line| line.split_once(" => "));
        // The interpreter names itself.
        let names = names.filter(|(_, path)| path.contains(LIBRARIES));
        files.extend(names.map(|(name, _)| format!("{LIBRARIES}/{}", name.trim())));
    }
    let copy = |from: PathBuf, name: &str| {
        let to = to.join(name);
        fs::create_dir_all(to.parent().context("a file has a folder")?)?;
        fs::copy(&from, &to).with_context(|| format!("{} is missing", from.display()))
    };
    for file in &files {
        copy(root.join(file), file)?;
    }
    copy(interpreter, INTERPRETER)?;
    Ok(())
}
