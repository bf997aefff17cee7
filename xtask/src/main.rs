//! Training, evaluation and benchmark commands of the workspace: `cargo xtask --help`.

mod augment;
mod bench;
mod configuration;
mod cuda_toolkit;
mod data;
mod embed;
mod eval;
mod glyphs;
mod judge;
mod memory;
mod pretrain;
mod profile;
mod run_network;
mod test;
mod timed;
mod workload;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use tracing_subscriber::EnvFilter;

#[global_allocator]
static ALLOCATOR: swav_kernels::AlignedAllocator = swav_kernels::AlignedAllocator;

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    version,
    about = "Learn image features without labels (SwAV): training, evaluation, benchmarks",
    after_help = "Begin with `cargo xtask pretrain`: it trains on built-in images for some minutes and needs nothing \
                  else.\nExit status: 0 success, 1 failure, 2 wrong usage. RUST_LOG=debug shows more."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Pretrain(pretrain::Args),
    Eval(eval::Args),
    Embed(embed::Args),
    Data(data::Args),
    Augment(augment::Args),
    Bench(bench::Args),
    CudaToolkit(cuda_toolkit::Args),
    Profile(profile::Args),
    Test(test::Args),
}

fn main() -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .without_time()
        .with_target(false)
        .init();
    let result = match Cli::parse().command {
        Command::Pretrain(args) => pretrain::run(args),
        Command::Eval(args) => eval::run(args),
        Command::Embed(args) => embed::run(args),
        Command::Data(args) => data::run(args),
        Command::Augment(args) => augment::run(args),
        Command::Bench(args) => bench::run(args),
        Command::CudaToolkit(args) => cuda_toolkit::run(args),
        Command::Profile(args) => profile::run(args),
        Command::Test(args) => test::run(args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => match error.downcast::<clap::Error>() {
            Ok(usage) => usage.format(&mut Cli::command()).exit(),
            Err(error) => {
                eprintln!("error: {error:#}");
                ExitCode::FAILURE
            }
        },
    }
}

/// An error of usage, which ends the program with status 2.
fn usage(message: impl std::fmt::Display) -> anyhow::Error {
    clap::Error::raw(clap::error::ErrorKind::ValueValidation, format!("{message}\n")).into()
}
