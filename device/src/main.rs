//! hostblobd: serves host-visible GPU memory to one VM.

use std::process::ExitCode;

use clap::Parser;
use hostblob_allocator::provider;
use hostblob_device::cli::{Cli, Command};
use hostblob_device::{daemon, info};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let level = match &cli.command {
        Some(Command::Provider(gpu)) => gpu.log,
        Some(Command::Info) | None => cli.serve.gpu.log,
    };
    env_logger::Builder::new()
        .filter_level(level)
        // It logs each allocation.
        .filter_module("offset_allocator", level.min(log::LevelFilter::Info))
        .format_target(false)
        .init();
    match cli.command {
        Some(Command::Info) => {
            print!("{}", info::report());
            ExitCode::SUCCESS
        }
        Some(Command::Provider(gpu)) => {
            match provider::process::serve_stdin(gpu.provider, &gpu.options()) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    eprintln!("hostblobd provider: {error}; hostblobd itself starts it");
                    ExitCode::FAILURE
                }
            }
        }
        None => match daemon::run(&cli.serve) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("hostblobd: {error}");
                ExitCode::FAILURE
            }
        },
    }
}
