//! `exports HOSTBLOBD EXAMPLES`: starts the daemon with its sockets, and checks what processes beside it see; then once more without udmabuf, which
//! it takes away: for a virtual machine of its own. A line for each check, as of scenarios.

#![allow(clippy::panic, reason = "a check that panics is caught and reported")]

use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use hostblob_tests::exports::{Check, Sockets, WITH_UDMABUF, WITHOUT_UDMABUF};
use hostblob_tests::report;

const UDMABUF: &str = "/dev/udmabuf";

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (Some(program), Some(examples)) = (arguments.next(), arguments.next()) else {
        bail!("usage: exports HOSTBLOBD EXAMPLES");
    };
    let run = |checks| run(&program, &examples, checks);
    ensure!(Path::new(UDMABUF).exists(), "the kernel has no udmabuf");
    let with = run(WITH_UDMABUF)?;
    std::fs::remove_file(UDMABUF)?;
    let without = run(WITHOUT_UDMABUF)?;
    ensure!(with + without == 0, "{with} and {without} checks failed");
    Ok(())
}

/// How many of them failed, with a daemon of their own.
fn run(program: &str, examples: &str, checks: &[(&str, Check)]) -> Result<u32> {
    let folder = std::env::temp_dir();
    let sockets = Sockets {
        local: folder.join("local.sock"),
        export: folder.join("export.sock"),
        daemon: program.into(),
        examples: examples.into(),
    };
    let mut daemon = Command::new(program)
        .args(["--provider", "system", "--window", "256M", "--local-socket"])
        .arg(&sockets.local)
        .arg("--export-socket")
        .arg(&sockets.export)
        .spawn()
        .with_context(|| format!("{program} cannot be run"))?;
    let deadline = Instant::now() + Duration::from_secs(60);
    while !sockets.export.exists() {
        if let Some(status) = daemon.try_wait()? {
            bail!("hostblobd ended with {status}");
        }
        ensure!(Instant::now() < deadline, "hostblobd does not listen");
        std::thread::sleep(Duration::from_millis(10));
    }
    let mut failed = 0;
    for (name, check) in checks {
        let start = Instant::now();
        let result = std::panic::catch_unwind(|| check(&sockets));
        let result = result.unwrap_or_else(|_| Err(anyhow!("it panicked")));
        failed += u32::from(result.is_err());
        println!("{}", report::line(name, &result, start.elapsed()));
    }
    end(daemon, &sockets.export)?;
    Ok(failed)
}

fn end(mut daemon: Child, socket: &Path) -> Result<()> {
    let pid = i32::try_from(daemon.id())?;
    let pid = rustix::process::Pid::from_raw(pid).context("a process id")?;
    rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
    let status = daemon.wait()?;
    ensure!(status.success(), "hostblobd ended with {status}");
    ensure!(!socket.exists(), "the export socket was left behind");
    Ok(())
}
