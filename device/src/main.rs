//! hostblobd: serves host-visible GPU memory to one VM.

use std::io;
use std::process::ExitCode;

use clap::Parser;
use hostblob_allocator::provider;
use hostblob_device::cli::{Cli, Command, Gpu};
use hostblob_device::sandbox::{Mode, Needs, Sandbox, SandboxError};
use hostblob_device::{daemon, info, launcher};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let level = match &cli.command {
        Some(Command::Provider(gpu) | Command::Launcher(gpu)) => gpu.log,
        Some(Command::Info { .. }) | None => cli.serve.gpu.log,
    };
    env_logger::Builder::new()
        .filter_level(level)
        // It logs each allocation.
        .filter_module("offset_allocator", level.min(log::LevelFilter::Info))
        .format_target(false)
        .init();
    match cli.command {
        Some(Command::Info { sandbox }) => match enter_of_driver(sandbox) {
            Ok(()) => {
                print!("{}", info::report());
                ExitCode::SUCCESS
            }
            Err(error) => {
                eprintln!("hostblobd: {error}");
                ExitCode::FAILURE
            }
        },
        Some(Command::Provider(gpu)) => ended("provider", serve_driver(&gpu)),
        Some(Command::Launcher(gpu)) => ended("launcher", launcher::serve_stdin(&gpu)),
        None => match daemon::run(&cli.serve) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("hostblobd: {error}");
                ExitCode::FAILURE
            }
        },
    }
}

/// What a GPU driver does not need is given up before there is one.
fn enter_of_driver(mode: Mode) -> Result<(), SandboxError> {
    Sandbox::enter(mode, Needs::of_driver())?.close()
}

/// The process with the GPU driver.
fn serve_driver(gpu: &Gpu) -> io::Result<()> {
    enter_of_driver(gpu.sandbox)?;
    provider::process::serve_stdin(gpu.provider, &gpu.options())
}

/// The end of a process that hostblobd has started.
fn ended(role: &str, result: io::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hostblobd {role}: {error}; hostblobd itself starts it");
            ExitCode::FAILURE
        }
    }
}
