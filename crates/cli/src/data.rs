//! `swav data check PATH`: reads a whole data set and says what is in it and what is wrong with it.

use std::{path::PathBuf, time::Instant};

use clap::Subcommand;
use swav_data::{DataConfig, Dataset, Split, check, counted};

use crate::judge::counter;
use crate::open::{DataSettings, OpenError, open, understood};
use crate::{check_report, named};

/// Looks at data sets.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Reads every image; reports counts, classes, sizes, bad images, duplicates and a crop recipe.
    Check(Check),
}

#[derive(Debug, clap::Args)]
struct Check {
    /// A folder, a file, shards with `{000..099}`, or `builtin`.
    path: PathBuf,
    /// The part to read: train, val, test or all.
    #[arg(long, default_value = "all", value_parser = named::<Split>)]
    split: Split,
    #[command(flatten)]
    data: DataSettings,
    /// How many bad images and duplicates are listed.
    #[arg(long, default_value_t = 20)]
    list: usize,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    match args.command {
        Command::Check(args) => run_check(&args),
    }
}

fn run_check(args: &Check) -> anyhow::Result<()> {
    let config = DataConfig { split: args.split, ..args.data.config(&args.path)? };
    let start = Instant::now();
    let data = open(&config).map_err(OpenError::of_an_argument)?;
    for line in understood(data.as_ref()) {
        say!("{line}")?;
    }
    say!("opened in {:.2} s; content id {:016x}", start.elapsed().as_secs_f64(), data.fingerprint())?;
    let n_images = data.len();
    let start = Instant::now();
    let report = check(&*data, counter("check", n_images));
    let seconds = start.elapsed().as_secs_f64();
    say!("read in {seconds:.1} s: {:.1} images/s\n", n_images as f64 / seconds.max(1e-9))?;
    check_report::print(&*data, &report, args.list)?;
    anyhow::ensure!(report.n_good() > 0, "nothing can be used of {}", counted(report.n_images, "image"));
    Ok(())
}
