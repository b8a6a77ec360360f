//! `cargo xtask miri`: what needs no kernel, run by Miri, which finds undefined behaviour that no sanitizer sees.
//!
//! What it runs is slow, by three orders of magnitude, and has neither memfd nor mmap of files: so these are the words that guest and host share, the
//! formats of bytes, and the guest library's books about answers.

use anyhow::{Context, Result, bail};

use crate::{build, nightly};

/// Packages, and names of their unit tests; all where there are none.
const TESTED: [(&str, &[&str]); 3] = [
    ("hostblob-protocol", &[]),
    ("hostblob-capset", &[]),
    (
        "hostblob-guest",
        &["ledger::", "waits::", "transport::socket::inbox::"],
    ),
];

/// Runs all; the error says that something failed.
pub fn run() -> Result<()> {
    let miri = |arguments: &[&str]| {
        let mut command = nightly::cargo();
        command.arg("miri").args(arguments);
        command
    };
    if !build::works(&mut miri(&["--version"])) {
        bail!("Miri is missing: rustup toolchain install nightly --component miri");
    }
    for (package, names) in TESTED {
        let mut command = miri(&["test", "--quiet", "--package", package, "--lib"]);
        command
            .arg("--target-dir")
            .arg(build::target().join("miri"))
            .arg("--")
            .args(names)
            .env("MIRIFLAGS", "-Zmiri-disable-isolation")
            .current_dir(build::workspace());
        let status = command.status().context("cargo cannot be run")?;
        if !status.success() {
            bail!("{package}: Miri ended with {status}; see above");
        }
    }
    Ok(())
}
