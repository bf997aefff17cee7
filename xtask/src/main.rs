//! What work on the project needs beside the program's own commands: benchmarks, profiles, a CUDA toolkit.
//!
//! `cargo xtask` starts this program for its own commands. It knows those of `swav`, too, so that one file is enough on
//! a machine that cannot build.

mod bench;
mod cuda_bundle;
mod cuda_toolkit;
mod memory;
mod profile;
mod timed;
mod workload;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

#[global_allocator]
static ALLOCATOR: swav_kernels::AlignedAllocator = swav_kernels::AlignedAllocator;

#[derive(Parser)]
#[command(version, about = "Learn image features without labels (SwAV), and work on the project")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    #[command(flatten)]
    Program(swav_cli::Command),
    Bench(bench::Args),
    CudaBundle(cuda_bundle::Args),
    CudaToolkit(cuda_toolkit::Args),
    Profile(profile::Args),
}

fn main() -> ExitCode {
    swav_cli::start_log();
    let mut command = swav_cli::describe(Cli::command());
    let matches = match command.try_get_matches_from_mut(std::env::args_os()) {
        Ok(matches) => matches,
        Err(error) => return swav_cli::finish(Err(error.into()), &mut command),
    };
    let result = match Cli::from_arg_matches(&matches).map(|cli| cli.command) {
        Ok(Command::Program(program)) => program.run(),
        Ok(Command::Bench(args)) => bench::run(args),
        Ok(Command::CudaBundle(args)) => cuda_bundle::run(args),
        Ok(Command::CudaToolkit(args)) => cuda_toolkit::run(args),
        Ok(Command::Profile(args)) => profile::run(args),
        Err(error) => Err(error.into()),
    };
    swav_cli::finish(result, &mut command)
}
