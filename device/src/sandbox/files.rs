//! Files, by Landlock (landlock(7)). What is open already stays so.

use std::env;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreated, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};

use super::{Needs, SandboxError};

/// The newest kernel that this has run on: what an older one does not know it does not refuse.
const KNOWN: ABI = ABI::V7;

/// Where drivers are, what describes them, and what they ask the kernel. Not all of /etc and /proc: other processes and users are there.
const OF_DRIVERS: [&str; 24] = [
    "/usr",
    "/lib",
    "/lib64",
    "/opt",
    "/nix/store",
    "/gnu/store",
    "/run/opengl-driver",
    "/etc/ld.so.cache",
    "/etc/vulkan",
    "/etc/glvnd",
    "/etc/egl",
    "/etc/drirc",
    "/etc/nvidia",
    "/etc/alternatives",
    "/sys",
    "/proc/self",
    "/proc/driver",
    "/proc/cpuinfo",
    "/proc/devices",
    "/proc/meminfo",
    "/proc/modules",
    "/proc/stat",
    "/proc/version",
    "/proc/sys",
];

/// Environment variables that name drivers of one's own: lists of files and folders, with colons.
const NAMING_DRIVERS: [&str; 11] = [
    "LD_LIBRARY_PATH",
    "LIBGL_DRIVERS_PATH",
    "GBM_BACKENDS_PATH",
    "VK_DRIVER_FILES",
    "VK_ICD_FILENAMES",
    "VK_ADD_DRIVER_FILES",
    "VK_LAYER_PATH",
    "VK_ADD_LAYER_PATH",
    "VK_IMPLICIT_LAYER_PATH",
    "__EGL_VENDOR_LIBRARY_DIRS",
    "__EGL_VENDOR_LIBRARY_FILENAMES",
];

/// GPUs, and what makes dma-bufs beside what everybody has.
const DEVICES: [&str; 5] = [
    "/dev/dri",
    "/dev/kfd",
    "/dev/dma_heap",
    "/dev/null",
    "/dev/urandom",
];

/// What NVIDIA's devices begin with.
const NVIDIA: &str = "nvidia";

/// The calling thread, and those it starts, reach no file that is not among `needs`, no network, and no abstract socket.
pub(super) fn restrict(needs: &Needs) -> Result<(), SandboxError> {
    match restrict_to(&grants(needs), needs.driver) {
        Ok(RulesetStatus::NotEnforced) => {
            log::warn!("this kernel has no Landlock (Linux 5.13): files are kept by seccomp alone");
            Ok(())
        }
        Ok(RulesetStatus::PartiallyEnforced) => {
            log::info!(
                "this kernel has a part of Landlock: see docs/sandbox.md for what older ones leave to seccomp"
            );
            Ok(())
        }
        Ok(RulesetStatus::FullyEnforced) => Ok(()),
        Err(error) => Err(SandboxError::new("Landlock", error)),
    }
}

type Grant = (PathBuf, BitFlags<AccessFs>);

fn grants(needs: &Needs) -> Vec<Grant> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let device = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::ReadDir | AccessFs::IoctlDev;
    let in_folder = AccessFs::MakeReg | AccessFs::RemoveFile | AccessFs::ReadDir;
    let mut grants: Vec<Grant> = Vec::new();
    let mut grant = |path: &Path, access| grants.push((path.to_owned(), access));
    // Dma-bufs of the window, for host processes.
    grant(Path::new("/dev/udmabuf"), device);
    grant(Path::new("/sys/module/udmabuf/parameters"), read);
    for folder in &needs.sockets {
        grant(folder, AccessFs::MakeSock | AccessFs::RemoveFile);
    }
    for path in &needs.read {
        grant(path, AccessFs::ReadFile.into());
    }
    if let Some(folder) = &needs.save {
        grant(folder, in_folder | AccessFs::WriteFile | AccessFs::Truncate);
    }
    if needs.driver {
        for path in OF_DRIVERS {
            grant(Path::new(path), read);
        }
        for path in named_drivers() {
            grant(&path, read);
        }
        for path in DEVICES {
            grant(Path::new(path), device);
        }
        for path in nvidia_devices() {
            grant(&path, device);
        }
    }
    grants
}

/// What the environment names. A file describes a driver that is beside it.
fn named_drivers() -> Vec<PathBuf> {
    let values = NAMING_DRIVERS.iter().filter_map(env::var_os);
    let mut paths: Vec<PathBuf> = Vec::new();
    for value in values {
        for path in env::split_paths(&value).filter(|path| path.is_absolute()) {
            match path.parent() {
                Some(folder) if path.is_file() => paths.push(folder.to_owned()),
                _ => paths.push(path),
            }
        }
    }
    paths
}

fn nvidia_devices() -> Vec<PathBuf> {
    let entries = std::fs::read_dir("/dev").into_iter().flatten().flatten();
    let ours = entries.filter(|entry| {
        entry
            .file_name()
            .as_encoded_bytes()
            .starts_with(NVIDIA.as_bytes())
    });
    ours.map(|entry| entry.path()).collect()
}

fn restrict_to(grants: &[Grant], driver: bool) -> Result<RulesetStatus, RulesetError> {
    let ruleset = Ruleset::default()
        .handle_access(AccessFs::from_all(KNOWN))?
        .handle_access(AccessNet::from_all(KNOWN))?
        .scope(Scope::AbstractUnixSocket)?;
    // hostblobd ends the driver's process; that one ends nobody.
    let ruleset = match driver {
        true => ruleset.scope(Scope::Signal)?,
        false => ruleset,
    };
    let mut created = ruleset.create()?;
    for (path, access) in grants {
        created = add(created, path, *access)?;
    }
    Ok(created.restrict_self()?.ruleset)
}

/// What is not there is not granted.
fn add(
    ruleset: RulesetCreated,
    path: &Path,
    access: BitFlags<AccessFs>,
) -> Result<RulesetCreated, RulesetError> {
    let Ok(opened) = PathFd::new(path) else {
        return Ok(ruleset);
    };
    // Rights over a folder's entries make no sense for a file.
    let access = match path.is_dir() {
        true => access,
        false => access & AccessFs::from_file(KNOWN),
    };
    ruleset.add_rule(PathBeneath::new(opened, access))
}
