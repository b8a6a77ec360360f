//! `cargo xtask`: set-up, demo, tests and virtual machines of hostblob.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use xtask::command::{
    DaemonFlags, bench, coverage, demo, fuzz, install, interleavings, kani, miri, sanitize, setup,
    test, vm,
};

/// Set-up, demo, tests and virtual machines of hostblob.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show the main job: a guest process maps host GPU memory
    Demo {
        #[command(flatten)]
        daemon: DaemonFlags,
        /// The same over the local socket, without a virtual machine
        #[arg(long)]
        no_vm: bool,
        /// Programs that know Vulkan alone, on our driver: over the local socket, then in the virtual machine
        #[arg(long)]
        icd: bool,
    },
    /// Run every check and every test
    Test(test::Flags),
    /// Measure everything, beside peers: a report in target/bench
    Bench(bench::Flags),
    /// Measure which lines of protocol, allocator and device the tests run
    Coverage(coverage::Flags),
    /// Run the fuzz targets, each for a minute
    Fuzz(fuzz::Flags),
    /// Look at what threads can do to each other, in every order
    Interleavings(interleavings::Flags),
    /// Run what needs no kernel under Miri, which finds undefined behaviour
    Miri,
    /// Prove, with Kani, what must hold of a guest's numbers
    Kani,
    /// Run the tests on AddressSanitizer and LeakSanitizer
    Sanitize(sanitize::Flags),
    /// Run something of your own in the guest
    #[command(subcommand)]
    Vm(VmCommand),
    /// Install what demo, test and vm need; bench installs the rest itself
    Setup,
    /// Put hostblobd, the C libraries and the Vulkan driver under a prefix
    Install(install::Flags),
}

#[derive(Debug, Subcommand)]
enum VmCommand {
    /// A static program, against a fresh hostblobd
    Run {
        #[command(flatten)]
        daemon: DaemonFlags,
        /// The program
        program: String,
        /// Its arguments
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// A shell
    Shell {
        #[command(flatten)]
        daemon: DaemonFlags,
    },
}

fn main() -> ExitCode {
    let command = Cli::parse().command;
    if let Command::Demo { daemon, no_vm, icd } = &command {
        return match demo::run(daemon, *no_vm, *icd) {
            Ok(()) => {
                println!("demo: PASS");
                ExitCode::SUCCESS
            }
            Err(error) => {
                println!("demo: FAIL - {error:#}");
                ExitCode::FAILURE
            }
        };
    }
    match run(&command) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: &Command) -> Result<u8> {
    match command {
        Command::Demo { daemon, no_vm, icd } => demo::run(daemon, *no_vm, *icd).map(|()| 0),
        Command::Test(flags) => test::run(flags).map(|()| 0),
        Command::Bench(flags) => bench::run(flags).map(|()| 0),
        Command::Coverage(flags) => coverage::run(flags).map(|()| 0),
        Command::Fuzz(flags) => fuzz::run(flags).map(|()| 0),
        Command::Interleavings(flags) => interleavings::run(flags).map(|()| 0),
        Command::Miri => miri::run().map(|()| 0),
        Command::Kani => kani::run().map(|()| 0),
        Command::Sanitize(flags) => sanitize::run(flags).map(|()| 0),
        Command::Setup => setup::run().map(|()| 0),
        Command::Install(flags) => install::run(flags).map(|()| 0),
        Command::Vm(VmCommand::Run {
            daemon,
            program,
            arguments,
        }) => vm::run(daemon, program, arguments),
        Command::Vm(VmCommand::Shell { daemon }) => vm::shell(daemon).map(|()| 0),
    }
}
