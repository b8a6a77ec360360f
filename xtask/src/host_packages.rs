//! What the host itself needs: a Vulkan driver, OpenGL, the validation layer. lavapipe and llvmpipe count as any other.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::apt::run;
use crate::progress::{note, step};

/// Something that a Debian package brings, and how to see that it is there.
struct Need {
    package: &'static str,
    /// Any of these, with `*` for any characters in the last part.
    files: &'static [&'static str],
}

const VULKAN: &[Need] = &[
    Need {
        package: "libvulkan1",
        files: &["/usr/lib/*/libvulkan.so.1", "/usr/lib64/libvulkan.so.1"],
    },
    Need {
        package: "mesa-vulkan-drivers",
        files: &["/usr/share/vulkan/icd.d/*.json", "/etc/vulkan/icd.d/*.json"],
    },
];

const GL: &[Need] = &[
    Need {
        package: "libegl1",
        files: &["/usr/lib/*/libEGL.so.1", "/usr/lib64/libEGL.so.1"],
    },
    Need {
        package: "libgl1-mesa-dri",
        files: &["/usr/lib/*/dri/*.so", "/usr/lib/*/libgallium-*.so"],
    },
];

const VALIDATION: &[Need] = &[Need {
    package: "vulkan-validationlayers",
    files: &["/usr/share/vulkan/explicit_layer.d/*validation*.json"],
}];

/// Programs that use Vulkan, and what it takes to compile one.
const VULKAN_CLIENTS: &[Need] = &[
    Need {
        package: "vulkan-tools",
        files: &["/usr/bin/vulkaninfo"],
    },
    Need {
        package: "libvulkan-dev",
        files: &["/usr/include/vulkan/vulkan.h"],
    },
    Need {
        package: "gcc",
        files: &["/usr/bin/cc"],
    },
];

/// A compositor without a screen, for the clients of a guest.
const COMPOSITOR: &[Need] = &[Need {
    package: "weston",
    files: &["/usr/bin/weston"],
}];

const BENCH: &[Need] = &[
    Need {
        package: "xvfb",
        files: &["/usr/bin/Xvfb"],
    },
    Need {
        package: "valgrind",
        files: &["/usr/bin/valgrind"],
    },
];

/// Counts system calls, and makes them fail.
const TRACER: &[Need] = &[Need {
    package: "strace",
    files: &["/usr/bin/strace"],
}];

/// The bench, which is built with the tests, links a peer that is written in C++.
const COMPILER: &[Need] = &[Need {
    package: "g++",
    files: &["/usr/bin/c++"],
}];

/// How much of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// To run.
    Run,
    /// To run programs that use Vulkan as well.
    Clients,
    /// To test as well.
    Test,
    /// To measure.
    Bench,
}

/// Installs what is missing, with apt-get when allowed; else says which line to run.
pub fn ensure(extent: Extent) -> Result<()> {
    let more: &[&[Need]] = match extent {
        Extent::Run => &[],
        Extent::Clients => &[VULKAN_CLIENTS],
        Extent::Test => &[VALIDATION, COMPOSITOR, COMPILER, TRACER, VULKAN_CLIENTS],
        Extent::Bench => &[BENCH, COMPILER, TRACER],
    };
    let missing: Vec<&str> = VULKAN
        .iter()
        .chain(GL)
        .chain(more.iter().copied().flatten())
        .filter(|need| !need.files.iter().any(|pattern| exists(pattern)))
        .map(|need| need.package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let packages = missing.join(" ");
    note(&format!("this host lacks {packages}"));
    let line = format!("apt-get install -y {packages}");
    let Some(prefix) = privileges() else {
        bail!("packages are missing; run: sudo {line}");
    };
    step(&line, || {
        // Lists may be old or absent: a failed update is told by the install.
        let _ = run(command(prefix, &["update"]).env("DEBIAN_FRONTEND", "noninteractive"));
        let mut arguments = vec!["install", "-y", "--no-install-recommends"];
        arguments.extend(missing);
        run(command(prefix, &arguments).env("DEBIAN_FRONTEND", "noninteractive")).map(drop)
    })
}

/// Whether the Vulkan loader is there at all.
pub fn has_vulkan() -> bool {
    VULKAN
        .iter()
        .all(|need| need.files.iter().any(|pattern| exists(pattern)))
}

/// What to put before apt-get: nothing for root, sudo where it asks for no password.
fn privileges() -> Option<&'static [&'static str]> {
    if rustix::process::geteuid().is_root() {
        return Some(&[]);
    }
    let sudo = Command::new("sudo").args(["-n", "true"]).output();
    sudo.is_ok_and(|output| output.status.success())
        .then_some(&["sudo", "-n"])
}

fn command(prefix: &[&str], arguments: &[&str]) -> Command {
    let words = [prefix, &["apt-get"], arguments].concat();
    let (program, rest) = words
        .split_first()
        .map_or(("apt-get", &[][..]), |(p, r)| (*p, r));
    let mut command = Command::new(program);
    command.args(rest);
    command
}

/// Whether a path exists; `*` stands for any one part, or any characters around it in a part.
fn exists(pattern: &str) -> bool {
    fn walk(base: &Path, parts: &[&str]) -> bool {
        let Some((part, rest)) = parts.split_first() else {
            return base.exists();
        };
        if !part.contains('*') {
            return walk(&base.join(part), rest);
        }
        let Ok(entries) = std::fs::read_dir(base) else {
            return false;
        };
        entries.flatten().any(|entry| {
            entry
                .file_name()
                .to_str()
                .is_some_and(|name| matches(part, name))
                && walk(&entry.path(), rest)
        })
    }
    let parts: Vec<&str> = pattern.split('/').filter(|part| !part.is_empty()).collect();
    walk(Path::new("/"), &parts)
}

fn matches(pattern: &str, name: &str) -> bool {
    let mut pieces = pattern.split('*');
    let first = pieces.next().unwrap_or_default();
    let Some(mut rest) = name.strip_prefix(first) else {
        return false;
    };
    let mut pieces: Vec<&str> = pieces.collect();
    let last = pieces.pop().unwrap_or_default();
    for piece in pieces {
        match rest.find(piece) {
            Some(at) => rest = rest.get(at + piece.len()..).unwrap_or_default(),
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        assert!(matches("*.json", "lvp_icd.x86_64.json"));
        assert!(matches(
            "*validation*.json",
            "VkLayer_khronos_validation.json"
        ));
        assert!(matches("libgallium-*.so", "libgallium-25.0.so"));
        assert!(!matches("*.json", "json"));
        assert!(!matches("libgallium-*.so", "libgallium.so"));
        assert!(exists("/proc/self/*tus"));
        assert!(!exists("/proc/self/*none*"));
    }
}
