//! The cache folder: downloads and what was made of them, outside the checkout, so that a clean checkout finds it again.
//!
//! An entry is complete or absent: it is made in a temporary folder and renamed. A lock file keeps two runs from making the same entry twice.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::FlockOperation;

use crate::progress::step;

/// Environment variable that names another folder.
pub const ENV: &str = "HOSTBLOB_CACHE";

/// The folder: `$HOSTBLOB_CACHE`, else `$XDG_CACHE_HOME/hostblob`, else `~/.cache/hostblob`.
pub fn folder() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(ENV) {
        return Ok(path.into());
    }
    if let Some(path) = std::env::var_os("XDG_CACHE_HOME").filter(|path| !path.is_empty()) {
        return Ok(PathBuf::from(path).join("hostblob"));
    }
    let home = std::env::var_os("HOME")
        .with_context(|| format!("neither {ENV} nor HOME is set: where should downloads go?"))?;
    Ok(PathBuf::from(home).join(".cache/hostblob"))
}

/// The entry of this name, if it is there.
pub fn find(name: &str) -> Result<Option<PathBuf>> {
    let path = folder()?.join(name);
    Ok(path.is_dir().then_some(path))
}

/// The entry of this name; where it is missing, `make` fills an empty folder that becomes it.
pub fn entry(name: &str, what: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let folder = folder()?;
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let lock = fs::File::create(folder.join(format!("{name}.lock")))
        .with_context(|| format!("cannot write to {}", folder.display()))?;
    rustix::fs::flock(&lock, FlockOperation::LockExclusive)
        .with_context(|| format!("cannot lock {name}"))?;
    let path = folder.join(name);
    if path.is_dir() {
        return Ok(path);
    }
    let temporary = folder.join(format!("{name}.part"));
    // Left behind by a run that was ended.
    let _ = fs::remove_dir_all(&temporary);
    fs::create_dir_all(&temporary)?;
    step(what, || make(&temporary))?;
    fs::rename(&temporary, &path)?;
    Ok(path)
}
