//! What the guest boots into: busybox, the modules, one program, and an init that ties them together.
//!
//! Three serial ports keep things apart: the first is the console (kernel messages, a shell), the second carries the program's output, the
//! third is the control channel: init announces each boot and is told its number, and reports the program's exit status.

use std::collections::HashSet;
use std::fs;
use std::io::{Cursor, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use cpio::newc::{Builder, trailer};

use crate::environment::GuestFiles;

/// What the guest does once it is up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Payload {
    /// Runs this static program with these arguments, then powers off.
    Program(PathBuf, Vec<String>),
    /// Gives a shell on the console.
    Shell,
}

/// Path, mode, content.
type Entry = (String, u32, Vec<u8>);

const MODE_FILE: u32 = 0o100_755;
const MODE_FOLDER: u32 = 0o040_755;

/// Linux wants a terminal's raw mode, or newlines come out twice.
const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox mkdir -p /bin /sbin /usr/bin /usr/sbin /proc /sys /dev /tmp
/bin/busybox --install -s
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /tmp
export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/tmp
for module in $(cat /modules); do insmod "/$module.ko" || echo "init: $module does not load" >&2; done
stty -F /dev/ttyS1 raw -echo
stty -F /dev/ttyS2 raw -echo
. /payload
"#;

/// Asks for the number of this boot, runs the program, reports how it ended.
const RUN_PROGRAM: &str = r#"exec 3<>/dev/ttyS2
echo boot >&3
read -r HOSTBLOB_BOOT <&3
export HOSTBLOB_BOOT
/bin/sh /command >/dev/ttyS1 2>&1 </dev/null
echo "exit $?" >&3
sync
poweroff -f
"#;

const RUN_SHELL: &str = r#"echo; echo "A shell in the guest; 'poweroff -f' or Ctrl-A X ends it."
setsid cttyhack sh
poweroff -f
"#;

/// Writes the archive. `files` are further files: their path on the host, and in the guest.
pub fn write(
    to: &Path,
    guest: &GuestFiles,
    payload: &Payload,
    environment: &[(String, String)],
    files: &[(PathBuf, String)],
) -> Result<()> {
    let mut entries: Vec<Entry> = vec![("dev".to_owned(), MODE_FOLDER, Vec::new())];
    let mut file = |name: &str, bytes: Vec<u8>| entries.push((name.to_owned(), MODE_FILE, bytes));
    file("init", INIT.into());
    file("bin/busybox", read(&guest.busybox())?);
    let mut modules = String::new();
    for module in guest.modules() {
        let name = module
            .file_stem()
            .and_then(|name| name.to_str())
            .unwrap_or_default()
            .to_owned();
        modules.push_str(&name);
        modules.push('\n');
        file(&format!("{name}.ko"), read(&module)?);
    }
    file("modules", modules.into());
    match payload {
        Payload::Shell => file("payload", RUN_SHELL.into()),
        Payload::Program(path, arguments) => {
            file("payload", RUN_PROGRAM.into());
            let name = path
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or("program");
            let name = format!("program/{name}");
            file(&name, read(path)?);
            file("command", command(&name, arguments, environment).into());
        }
    }
    for (path, name) in files {
        file(name.trim_start_matches('/'), read(path)?);
    }
    let archive = archive(with_folders(entries))?;
    fs::write(to, archive).with_context(|| format!("cannot write {}", to.display()))
}

/// The entries with the folders that they are in, each before what is in it: Linux makes none by itself.
fn with_folders(entries: Vec<Entry>) -> Vec<Entry> {
    let mut known: HashSet<String> = HashSet::new();
    let mut all = Vec::new();
    for entry in entries {
        let mut folders: Vec<String> = Path::new(&entry.0)
            .ancestors()
            .skip(1)
            .filter_map(Path::to_str)
            .filter(|folder| !folder.is_empty())
            .map(str::to_owned)
            .collect();
        folders.reverse();
        for folder in folders {
            if known.insert(folder.clone()) {
                all.push((folder, MODE_FOLDER, Vec::new()));
            }
        }
        if known.insert(entry.0.clone()) {
            all.push(entry);
        }
    }
    all
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

fn command(program: &str, arguments: &[String], environment: &[(String, String)]) -> String {
    let mut text = String::new();
    for (name, value) in environment {
        text.push_str(&format!("export {name}={}\n", quote(value)));
    }
    text.push_str(&format!("exec {}", quote(&format!("/{program}"))));
    for argument in arguments {
        text.push(' ');
        text.push_str(&quote(argument));
    }
    text.push('\n');
    text
}

/// A word of a POSIX shell.
fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

fn archive(entries: Vec<Entry>) -> Result<Vec<u8>> {
    let mut output = Vec::new();
    for (inode, (name, mode, bytes)) in (1..).zip(entries) {
        let links = if mode == MODE_FOLDER { 2 } else { 1 };
        let length = u32::try_from(bytes.len()).with_context(|| format!("{name} is too large"))?;
        let builder = Builder::new(&name).ino(inode).mode(mode).nlink(links);
        let mut writer = builder.write(&mut output, length);
        std::io::copy(&mut Cursor::new(bytes).take(u64::from(length)), &mut writer)?;
        writer.finish()?;
    }
    trailer(&mut output)?;
    Ok(output)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_survive_the_shell() {
        assert_eq!(quote("a b"), "'a b'");
        assert_eq!(quote("it's"), r"'it'\''s'");
        let text = command(
            "program/p",
            &["x y".into(), "$z".into()],
            &[("A".into(), "1 2".into())],
        );
        assert_eq!(text, "export A='1 2'\nexec '/program/p' 'x y' '$z'\n");
    }

    #[test]
    fn the_archive_reads_back() {
        let entries = vec![
            ("bin/x".to_owned(), MODE_FILE, b"hello".to_vec()),
            ("lib/a/y".to_owned(), MODE_FILE, Vec::new()),
            ("bin/z".to_owned(), MODE_FILE, Vec::new()),
        ];
        let bytes = archive(with_folders(entries)).unwrap();
        let mut rest = Cursor::new(bytes);
        let mut seen = Vec::new();
        loop {
            let mut reader = cpio::NewcReader::new(rest).unwrap();
            if reader.entry().is_trailer() {
                break;
            }
            let (name, mode) = (reader.entry().name().to_owned(), reader.entry().mode());
            let mut content = Vec::new();
            reader.read_to_end(&mut content).unwrap();
            seen.push((name, mode, content));
            rest = reader.finish().unwrap();
        }
        assert_eq!(
            seen,
            [
                ("bin".to_owned(), MODE_FOLDER, Vec::new()),
                ("bin/x".to_owned(), MODE_FILE, b"hello".to_vec()),
                ("lib".to_owned(), MODE_FOLDER, Vec::new()),
                ("lib/a".to_owned(), MODE_FOLDER, Vec::new()),
                ("lib/a/y".to_owned(), MODE_FILE, Vec::new()),
                ("bin/z".to_owned(), MODE_FILE, Vec::new()),
            ]
        );
    }
}
