//! Debian packages of other suites, unpacked into a folder: with a private apt state, so that the host's own packages stay as they are.
//!
//! The mirror is the one that this host uses for Debian; proxies and the like come from its own apt configuration.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

/// Used only where the host's own apt sources name no Debian mirror.
const DEFAULT_MIRROR: &str = "http://deb.debian.org/debian";

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// A private apt state in a folder of its own.
pub struct Apt {
    folder: PathBuf,
}

impl Apt {
    /// Makes the state and fetches the package lists of these suites, the first one preferred unless another is asked for.
    pub fn new(folder: &Path, suites: &[&str]) -> Result<Self> {
        ensure!(
            Path::new(KEYRING).exists(),
            "{KEYRING} is missing: install debian-archive-keyring (this needs a Debian host)"
        );
        for sub in ["lists/partial", "cache/archives/partial", "state"] {
            fs::create_dir_all(folder.join(sub))?;
        }
        fs::write(folder.join("status"), "")?;
        let mirror = mirror();
        let sources: String = suites
            .iter()
            .map(|suite| format!("deb [signed-by={KEYRING}] {mirror} {suite} main\n"))
            .collect();
        fs::write(folder.join("sources.list"), sources)?;
        let apt = Self {
            folder: folder.to_owned(),
        };
        apt.run("apt-get", &["update"])
            .with_context(|| format!("the package lists of {mirror} cannot be fetched"))?;
        Ok(apt)
    }

    /// Downloads a package with all that it depends on and unpacks them into `root`.
    pub fn install(&self, suite: &str, packages: &[&str], root: &Path) -> Result<()> {
        let mut arguments = vec![
            "-y",
            "--no-install-recommends",
            "--download-only",
            "-t",
            suite,
            "install",
        ];
        arguments.extend(packages);
        self.run("apt-get", &arguments)?;
        unpack_all(&self.folder.join("cache/archives"), root)
    }

    /// Downloads packages alone and unpacks them into `root`.
    pub fn download(&self, packages: &[&str], root: &Path) -> Result<()> {
        let folder = self.folder.join("downloads");
        fs::create_dir_all(&folder)?;
        let mut arguments = vec!["download"];
        arguments.extend(packages);
        run(self
            .command("apt-get")
            .args(&arguments)
            .current_dir(&folder))?;
        unpack_all(&folder, root)
    }

    /// The first package that `package` depends on: what a metapackage stands for.
    pub fn first_dependency(&self, package: &str) -> Result<String> {
        let text = self.run("apt-cache", &["depends", package])?;
        text.lines()
            .find_map(|line| line.trim().strip_prefix("Depends: "))
            .map(str::to_owned)
            .with_context(|| {
                format!("{package} depends on nothing: the suite has changed its names")
            })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let folder = self.folder.display();
        for option in [
            format!("Dir::Etc::sourcelist={folder}/sources.list"),
            "Dir::Etc::sourceparts=-".to_owned(),
            "Dir::Etc::preferencesparts=-".to_owned(),
            format!("Dir::State={folder}/state"),
            format!("Dir::State::Lists={folder}/lists"),
            format!("Dir::State::status={folder}/status"),
            format!("Dir::Cache={folder}/cache"),
            "APT::Architecture=amd64".to_owned(),
            "APT::Architectures=amd64".to_owned(),
            "APT::Sandbox::User=".to_owned(),
            "Debug::NoLocking=1".to_owned(),
        ] {
            command.args(["-o", &option]);
        }
        command.env("LC_ALL", "C");
        command
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Result<String> {
        run(self.command(program).args(arguments))
    }
}

fn unpack_all(folder: &Path, root: &Path) -> Result<()> {
    fs::create_dir_all(root)?;
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            run(Command::new("dpkg").arg("-x").args([path.as_path(), root]))?;
        }
    }
    Ok(())
}

/// Runs a command; its output, or one line that says what it was and its last words.
pub fn run(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .output()
        .with_context(|| format!("{program} cannot be run"))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        let last = text
            .lines()
            .rev()
            .find(|line| !line.trim().is_empty())
            .unwrap_or("no message");
        bail!("{program} ended with {}: {last}", output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn mirror() -> String {
    let mut texts = vec![fs::read_to_string("/etc/apt/sources.list").unwrap_or_default()];
    if let Ok(entries) = fs::read_dir("/etc/apt/sources.list.d") {
        texts.extend(
            entries
                .flatten()
                .filter_map(|entry| fs::read_to_string(entry.path()).ok()),
        );
    }
    texts
        .iter()
        .find_map(|text| debian_mirror(text))
        .unwrap_or_else(|| DEFAULT_MIRROR.to_owned())
}

/// The first Debian archive (not its security one) that an apt source file names, in either format.
fn debian_mirror(text: &str) -> Option<String> {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.starts_with('#'))
        .filter(|line| line.starts_with("deb ") || line.starts_with("URIs:"))
        .flat_map(str::split_whitespace)
        .map(|word| word.trim_end_matches('/'))
        .find(|word| word.contains("://") && word.ends_with("/debian"))
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_mirror_is_found_in_both_formats() {
        let deb822 = "Types: deb\n# http://old/debian\nURIs: http://mirror.example/debian/\nSuites: bookworm\n";
        assert_eq!(
            debian_mirror(deb822).as_deref(),
            Some("http://mirror.example/debian")
        );
        let list =
            "# deb http://no/debian x\ndeb [arch=amd64] https://a.example/debian bookworm main\n";
        assert_eq!(
            debian_mirror(list).as_deref(),
            Some("https://a.example/debian")
        );
        let others =
            "deb http://a.example/debian-security x main\nURIs: https://other.example/node\n";
        assert_eq!(debian_mirror(others), None);
    }
}
