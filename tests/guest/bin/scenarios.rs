//! `scenarios [--provider NAME] [--group any|small_window] [NAME...]`: runs scenarios one after another, a line each. `scenarios --peer ROLE ...`
//! is the other process of some.
//!
//! In a guest through the render node, with `HOSTBLOB_SOCKET` over that socket.

#![allow(
    clippy::panic,
    reason = "a scenario that panics is caught and reported"
)]

use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use hostblob_guest::ENV_SOCKET;
use hostblob_guest::capset::Provider;
use hostblob_tests::scenario::{self, Group, SCENARIOS, Setup};
use hostblob_tests::{peer, report};

/// A scenario that takes longer hangs: those after it are not run.
const TIMEOUT: Duration = Duration::from_secs(90);

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [first, role, rest @ ..] = arguments.as_slice()
        && first == "--peer"
    {
        return peer::run(role, rest);
    }
    let mut setup = Setup {
        socket: std::env::var_os(ENV_SOCKET).map(Into::into),
        program: std::env::current_exe()?,
        provider: None,
    };
    let mut names: Vec<String> = Vec::new();
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        let mut value = || {
            arguments
                .next()
                .with_context(|| format!("{argument} needs a value"))
        };
        match argument.as_str() {
            "--provider" => setup.provider = Some(provider(&value()?)?),
            "--group" => names.extend(group(&value()?)?),
            name => names.push(name.to_owned()),
        }
    }
    let mut failed = 0;
    for name in names {
        let start = Instant::now();
        let result = run(&name, &setup);
        failed += u32::from(result.is_err());
        println!("{}", report::line(&name, &result, start.elapsed()));
    }
    if failed > 0 {
        bail!("{failed} scenarios failed");
    }
    Ok(())
}

fn provider(name: &str) -> Result<Provider> {
    Ok(match name {
        "system" => Provider::System,
        "vulkan" => Provider::Vulkan,
        "gl" => Provider::Gl,
        _ => bail!("no provider {name}"),
    })
}

/// Names in the group; in a guest, `any` has those that need a render node too.
fn group(name: &str) -> Result<Vec<String>> {
    let groups: &[Group] = match name {
        "any" if std::env::var_os(ENV_SOCKET).is_some() => &[Group::Any],
        "any" => &[Group::Any, Group::RenderNode],
        "small_window" => &[Group::SmallWindow],
        _ => bail!("no group {name}"),
    };
    let chosen = SCENARIOS
        .iter()
        .filter(|(_, group, _)| groups.contains(group));
    Ok(chosen.map(|(name, _, _)| (*name).to_owned()).collect())
}

fn run(name: &str, setup: &Setup) -> Result<()> {
    let (sender, receiver) = mpsc::channel();
    let (owned, copy) = (name.to_owned(), setup.clone());
    std::thread::spawn(move || {
        let result = std::panic::catch_unwind(|| scenario::run(&owned, &copy));
        let _ = sender.send(result.unwrap_or_else(|_| bail!("it panicked")));
    });
    match receiver.recv_timeout(TIMEOUT) {
        Ok(result) => result,
        Err(_) => {
            let hung = bail_hung();
            println!("{}", report::line(name, &hung, TIMEOUT));
            std::process::exit(2);
        }
    }
}

fn bail_hung() -> Result<()> {
    bail!("it hangs: no result after {TIMEOUT:?}")
}
