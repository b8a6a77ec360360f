//! What hostblobd and the process with the GPU driver give up once they run: `docs/sandbox.md` has the table.
//!
//! | file | gives up |
//! |---|---|
//! | `privileges.rs` | capabilities, new privileges |
//! | `files.rs` | files, networks and abstract sockets (Landlock) |
//! | `calls.rs` | system calls (seccomp) |
//!
//! The first two are properties of a thread, and inherited: they are given up while there is one thread. System calls go last, in all
//! threads, when everything has been opened.

mod calls;
mod files;
mod privileges;

#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::cli::{ProviderProcess, Serve};

pub(crate) use privileges::drop_privileges;

/// Whether there is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// What a process does not need is refused: the call fails
    On,
    /// None: for debuggers, profilers, and drivers that need more
    Off,
}

impl std::fmt::Display for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::On => "on",
            Self::Off => "off",
        })
    }
}

/// Why a process does not give something up. It does not serve then.
#[derive(Debug, Error)]
#[error("no sandbox, {what}: {why}; --sandbox off serves without it")]
pub struct SandboxError {
    what: &'static str,
    why: String,
}

impl SandboxError {
    fn new(what: &'static str, why: impl ToString) -> Self {
        let why = why.to_string();
        Self { what, why }
    }
}

impl From<SandboxError> for io::Error {
    fn from(error: SandboxError) -> Self {
        Self::other(error)
    }
}

/// What a process needs while it serves, beyond what each needs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Needs {
    /// A GPU driver is loaded into it.
    driver: bool,
    /// It connects to a Wayland compositor.
    compositor: bool,
    /// Folders of its sockets.
    sockets: Vec<PathBuf>,
    /// Folder of the snapshot that it saves.
    save: Option<PathBuf>,
    /// Files that it reads.
    read: Vec<PathBuf>,
}

impl Needs {
    /// The process with the GPU driver.
    pub fn of_driver() -> Self {
        Self {
            driver: true,
            ..Self::default()
        }
    }

    /// hostblobd itself.
    pub fn of_daemon(flags: &Serve) -> Self {
        let sockets = [
            &flags.socket_path,
            &flags.local_socket,
            &flags.export_socket,
        ];
        Self {
            driver: flags.provider_process == ProviderProcess::Off || !flags.capsets.is_empty(),
            compositor: flags.wayland_socket.is_some(),
            sockets: sockets
                .into_iter()
                .flatten()
                .map(|path| folder(path))
                .collect(),
            save: flags.save.as_deref().map(folder),
            read: flags.restore.iter().cloned().collect(),
        }
    }
}

/// Where a file is.
fn folder(path: &Path) -> PathBuf {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// A sandbox that has been entered in part: its process still makes any system call.
#[derive(Debug)]
pub struct Sandbox {
    mode: Mode,
    needs: Needs,
}

impl Sandbox {
    /// Gives up privileges and files. The caller has no second thread.
    ///
    /// # Errors
    /// Where the system refuses it. A kernel without Landlock is no error, but a line of the log.
    pub fn enter(mode: Mode, needs: Needs) -> Result<Self, SandboxError> {
        if mode == Mode::On {
            drop_privileges()?;
            files::restrict(&needs)?;
        }
        Ok(Self { mode, needs })
    }

    /// Gives up system calls, in all threads.
    ///
    /// # Errors
    /// Where the system refuses it.
    pub fn close(&self) -> Result<(), SandboxError> {
        match self.mode {
            Mode::On => calls::restrict(&self.needs),
            Mode::Off => Ok(()),
        }
    }
}
