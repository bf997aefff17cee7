//! `cargo xtask bench cuda`: everything about an NVIDIA card in one call of a few minutes. First that it computes what
//! the CPU computes, then how long training steps take, beside PyTorch's if a script is given.
//!
//! The work is cut into [parts](Part) in the order of their worth, so that a call on a machine that is lent for minutes
//! gives the most in the time there is. A part that fails does not stop the others.

mod bits;
mod checks;
mod child;
mod clock;
mod course;
mod engine;
mod fixtures;
mod found;
mod inside;
mod libraries;
mod machines;
mod parity;
mod part;
mod photos;
mod pretrain;
mod report;
mod speed;
mod whole;
mod workload;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, ensure};
use swav_train::TrainConfig;

use clock::Clock;
use engine::Speed;
use part::Part;
use report::Report;

/// Compare an NVIDIA card with the CPU, and time training steps on it; beside PyTorch with --torch-script.
///
/// Ends with a table of all parts, a table of speeds, and one line of JSON that has everything. What there was no time for is
/// listed as skipped. Fails if anything was wrong, but only after everything has run.
#[derive(clap::Args, Debug, Clone)]
pub struct Args {
    /// The device.
    #[arg(long, default_value = "cuda:0")]
    device: String,
    /// These parts only, in the order in which they are listed here.
    #[arg(long, value_name = "PART,...", value_delimiter = ',', conflicts_with = "parity_only")]
    parts: Vec<Part>,
    /// No measurements: the parts up to `fixtures`.
    #[arg(long)]
    parity_only: bool,
    /// Seconds after which no part is begun any more, and programs that were started are ended.
    #[arg(long, value_name = "N", default_value_t = 230)]
    limit_s: u64,
    /// Steps of a round, after four that are not timed.
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u32).range(1..))]
    steps: u32,
    /// Rounds of each training step, ours and PyTorch's in turn.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// A script that times the same step in PyTorch: it takes `speed --arch --stem --sizes --counts --batch --hidden
    /// --prototypes --steps --device`, further `--bf16 --channels-last --foreach --compile`, and ends with a JSON line
    /// that has step_ms and peak_gpu_mb.
    #[arg(long, value_name = "FILE.py")]
    torch_script: Option<PathBuf>,
    /// The Python that runs it.
    #[arg(long, value_name = "PROGRAM", default_value = "python3")]
    python: PathBuf,
    /// A test program of swav-encoder with its feature `cuda` (target/.../deps/swav_encoder-*) to run the parity tests of,
    /// where there is no cargo; SWAV_FIXTURES says where the fixtures are.
    #[arg(long, value_name = "PROGRAM")]
    tests: Option<PathBuf>,
    /// Photographs that the part `pretrain` makes and trains on; at least a batch, and a batch is 64.
    #[arg(long, value_name = "N", default_value_t = 256)]
    photos: usize,
    /// Seconds that the part `pretrain` trains for, at most.
    #[arg(long, value_name = "N", default_value_t = 25)]
    train_s: u32,
    /// Change a value of the configuration that the part `pretrain` trains with, as in training.batch_size=32. Repeatable.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
}

impl Args {
    /// The card's number, if the device is one.
    fn card(&self) -> anyhow::Result<Option<usize>> {
        match self.device.strip_prefix("cuda") {
            Some("") => Ok(Some(0)),
            Some(rest) => {
                let number = rest.strip_prefix(':').and_then(|number| number.parse().ok());
                let device = &self.device;
                number
                    .map(Some)
                    .with_context(|| format!("--device {device}: expected cuda:N or another device"))
            }
            None => Ok(None),
        }
    }

    /// The parts that are wanted, in the order of their worth.
    fn wanted(&self) -> Vec<Part> {
        let is_wanted = |part: &Part| match self.parts.is_empty() {
            true => !self.parity_only || part.compares(),
            false => self.parts.contains(part),
        };
        Part::ALL.into_iter().filter(is_wanted).collect()
    }
}

/// What every part can see: the arguments, the time that is left, and what has been found so far.
struct Bench {
    args: Args,
    /// The card's number, if the device is one.
    card: Option<usize>,
    /// What the part `pretrain` trains with.
    config: TrainConfig,
    clock: Clock,
    report: Arc<Mutex<Report>>,
}

impl Bench {
    fn new(args: Args) -> anyhow::Result<Self> {
        let card = args.card().map_err(swav_cli::usage)?;
        let config = pretrain::config(&args.device, &args.settings);
        let config = config.map_err(|error| swav_cli::usage(format!("{error:#}")))?;
        let clock = Clock::start(args.limit_s);
        Ok(Self { args, card, config, clock, report: Arc::default() })
    }

    /// What has been found so far. A part that panicked does not keep it.
    fn report(&self) -> MutexGuard<'_, Report> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The card's number.
    fn number(&self) -> anyhow::Result<usize> {
        self.card.with_context(|| format!("{} is no card", self.args.device))
    }

    /// Prints a speed and keeps it, whatever becomes of the part that measured it.
    fn keep(&self, speed: Speed) {
        println!("{speed}");
        self.report().speeds.push(speed);
    }
}

/// Runs the benchmark.
pub fn run(args: Args) -> anyhow::Result<()> {
    let bench = Bench::new(args)?;
    course::run(&bench, &bench.args.wanted());
    let report = bench.report();
    print!("{report}");
    println!("{}", report.json(&bench.args.device, &bench.clock));
    let wrong = report.wrong_parts();
    ensure!(wrong.is_empty(), "wrong: {}", wrong.join(", "));
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    /// The arguments that a command line gives.
    pub(super) fn args(line: &str) -> Result<Args, clap::Error> {
        let words = std::iter::once("cuda").chain(line.split_whitespace());
        Line::try_parse_from(words).map(|line| line.args)
    }

    #[test]
    fn parts_are_run_in_the_order_of_their_worth() {
        assert_eq!(args("").unwrap().wanted(), Part::ALL);
        assert_eq!(args("--parts pretrain,libs").unwrap().wanted(), [Part::Libs, Part::Pretrain]);
        let compared = args("--parity-only").unwrap().wanted();
        assert_eq!((compared[0], compared[compared.len() - 1]), (Part::Libs, Part::Fixtures));
    }

    #[test]
    fn an_unknown_part_is_answered_with_the_names_of_all() {
        let Err(error) = args("--parts libs,nonsense") else { panic!("expected an error") };
        let error = error.to_string();
        assert!(error.contains("nonsense"), "{error}");
        for part in Part::ALL {
            assert!(error.contains(part.name()), "{part} in {error}");
        }
    }

    #[test]
    fn the_device_says_whether_there_is_a_card() {
        let card = |device: &str| args(&format!("--device {device}")).unwrap().card();
        assert_eq!(card("cuda").unwrap(), Some(0));
        assert_eq!(card("cuda:3").unwrap(), Some(3));
        assert_eq!(card("cpu").unwrap(), None);
        assert!(card("cuda:x").is_err());
    }
}
