//! hostblobd: serves host-visible GPU memory to one VM.

use std::process::ExitCode;

use clap::Parser;
use hostblob_device::cli::{Cli, Command};
use hostblob_device::{daemon, info};

fn main() -> ExitCode {
    let cli = Cli::parse();
    env_logger::Builder::new()
        .filter_level(cli.serve.log)
        // It logs each allocation.
        .filter_module(
            "offset_allocator",
            cli.serve.log.min(log::LevelFilter::Info),
        )
        .format_target(false)
        .init();
    match cli.command {
        Some(Command::Info) => {
            print!("{}", info::report());
            ExitCode::SUCCESS
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
