#![doc = include_str!("../README.md")]

#[macro_use]
mod output;

mod augment;
mod check_report;
mod cluster;
mod configuration;
mod counter;
mod csv;
mod data;
mod doctor;
mod embed;
mod eval;
mod exit;
mod export;
mod glyphs;
mod gpu;
mod import;
mod judge;
mod monitor;
mod names;
mod open;
mod output_file;
mod output_folder;
mod pretrain;
mod recipes;
mod report;
mod run_network;
mod run_record;
mod search;
mod sheet;
mod signals;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

pub use exit::{EXIT_STATUS, finish, usage};
pub use names::{PROGRAM_VARIABLE, named, program};
pub use recipes::{RECIPES, Recipe};

/// The commands of the program.
#[expect(
    missing_docs,
    reason = "clap would show it instead of what the arguments' documentation says of the command"
)]
#[derive(Debug, Subcommand)]
pub enum Command {
    Pretrain(pretrain::Args),
    Eval(eval::Args),
    Embed(embed::Args),
    Cluster(cluster::Args),
    Search(search::Args),
    Import(import::Args),
    Export(export::Args),
    Data(data::Args),
    Augment(augment::Args),
    Doctor(doctor::Args),
    Report(report::Args),
    Gpu(gpu::Args),
}

impl Command {
    /// Does what the command says, printing results to standard output and the rest to standard error.
    ///
    /// # Errors
    /// The chain of causes; [`finish`] prints it and gives the exit status.
    pub fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Pretrain(args) => pretrain::run(args),
            Self::Eval(args) => eval::run(args),
            Self::Embed(args) => embed::run(args),
            Self::Cluster(args) => cluster::run(args),
            Self::Search(args) => search::run(args),
            Self::Import(args) => import::run(args),
            Self::Export(args) => export::run(args),
            Self::Data(args) => data::run(args),
            Self::Augment(args) => augment::run(args),
            Self::Doctor(args) => doctor::run(args),
            Self::Report(args) => report::run(args),
            Self::Gpu(args) => gpu::run(args),
        }
    }
}

#[derive(Debug, Parser)]
#[command(version, about = "Learn image features without labels (SwAV): training, evaluation, use")]
struct Cli {
    #[command(subcommand)]
    command: Command,

    /// Print results, warnings and errors only: no notes, no log, no progress.
    #[arg(long, short, global = true)]
    quiet: bool,
}

/// The program: reads the arguments of the process, runs the command, and gives the exit status.
pub fn main() -> ExitCode {
    run(std::env::args_os())
}

/// The program on given arguments, of which the first is the name of the program.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let mut command = describe(Cli::command());
    let parsed = command.try_get_matches_from_mut(arguments).and_then(|mut matches| {
        Cli::from_arg_matches_mut(&mut matches).map_err(|error| error.format(&mut command))
    });
    let result = parsed.map_err(anyhow::Error::from).and_then(|cli| {
        if cli.quiet {
            output::be_quiet();
        }
        start_log();
        cli.command.run()
    });
    finish(result, &mut command)
}

/// Gives a command line the name of the program and the words at the end of its help.
pub fn describe(command: clap::Command) -> clap::Command {
    let program = program();
    let begin = format!(
        "Begin with `{program} pretrain`: it trains on built-in images for some minutes and needs nothing else.\n\
         {EXIT_STATUS} RUST_LOG=debug shows more."
    );
    command.display_name(program.clone()).bin_name(program).after_help(begin)
}

/// Sends the log to standard error: from `info` on (`warn` with `--quiet`), or what `RUST_LOG` says (`debug`,
/// `swav_data=trace,warn`). Colours are for terminals, and not where `NO_COLOR` is set.
pub fn start_log() {
    let wanted = std::env::var("RUST_LOG").ok().and_then(|text| text.parse::<Targets>().ok());
    let usual = if output::is_quiet() { LevelFilter::WARN } else { LevelFilter::INFO };
    let filter = wanted.unwrap_or_else(|| Targets::new().with_default(usual));
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(|| output::LogLines)
        .with_ansi(output::has_colours())
        .without_time()
        .with_target(false);
    // Only the first log of a process counts.
    let _ = tracing_subscriber::registry().with(lines).with(filter).try_init();
}
