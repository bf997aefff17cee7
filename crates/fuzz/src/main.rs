//! Feeds damaged and hostile input to the project's parsers, reproducibly:
//!
//! ```text
//! cargo run --release -p swav-fuzz -- --parser parquet --cases 1000000 --seed 1
//! ```
//!
//! A case fails if a panic escapes, if it takes more than 10 seconds twice, or if the process's memory grows by more than the limit; its input
//! is then kept in a file, and the exit status is 1. What aborts the process is found by its case number: `--seed` repeats all.
//! `--write-seeds DIR` writes the whole files that damage begins with, as a corpus for other fuzzers (see `fuzz/` at the root).

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::Context;
use clap::Parser as _;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use swav_fuzz::{Answer, Parser, case, feed, seeds};

/// A case that takes longer hangs, for all a user can tell.
const MAX_TIME: Duration = Duration::from_secs(10);
/// What a case may add to the peak of the process's memory: inputs are below 100 kB and images below a megapixel.
const MAX_GROWTH_KIB: u64 = 256 << 10;

/// Feeds damaged and hostile input to the project's parsers.
#[derive(clap::Parser)]
struct Arguments {
    /// The parser; all of them, one after the other, if it is not given.
    #[arg(long, value_enum)]
    parser: Option<Parser>,
    /// Cases for each parser.
    #[arg(long, default_value_t = 10_000)]
    cases: u64,
    /// Stops a parser after so many seconds, if its cases are not done before.
    #[arg(long)]
    seconds: Option<u64>,
    /// The seed of all cases.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where inputs of failed cases are kept.
    #[arg(long, default_value = "fuzz-failures")]
    keep: PathBuf,
    /// Feeds this file alone to --parser, such as a case that failed.
    #[arg(long, requires = "parser")]
    input: Option<PathBuf>,
    /// Writes the undamaged files into this folder, one folder for each parser, and ends.
    #[arg(long)]
    write_seeds: Option<PathBuf>,
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    // Panics are caught and counted here; their messages would fill the screen.
    std::panic::set_hook(Box::new(|_| ()));
    let parsers = arguments.parser.map_or_else(|| Parser::ALL.to_vec(), |parser| vec![parser]);
    if let Some(folder) = &arguments.write_seeds {
        parsers.iter().try_for_each(|&parser| write_seeds(parser, folder))?;
        return Ok(ExitCode::SUCCESS);
    }
    if let (Some(path), Some(parser)) = (&arguments.input, arguments.parser) {
        let (input, scratch, begun) = (fs::read(path)?, tempfile::tempdir()?, Instant::now());
        let answer = feed(parser, &input, scratch.path());
        println!(
            "{answer:?} in {:.3} s; peak of memory {} MiB",
            begun.elapsed().as_secs_f64(),
            peak_kib() >> 10
        );
        return Ok(ExitCode::SUCCESS);
    }
    let mut n_failed = 0;
    for parser in parsers {
        let deadline = arguments.seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
        let report = campaign(parser, arguments.cases, arguments.seed, deadline, &arguments.keep)?;
        println!("{report}");
        n_failed += report.failures.len();
    }
    Ok(if n_failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn write_seeds(parser: Parser, folder: &Path) -> anyhow::Result<()> {
    let folder = folder.join(parser.name());
    fs::create_dir_all(&folder)?;
    for (number, seed) in seeds(parser, &folder)?.iter().enumerate() {
        fs::write(folder.join(format!("seed-{number}")), seed)?;
    }
    Ok(())
}

/// What came of the cases of one parser.
struct Report {
    parser: Parser,
    n_cases: u64,
    n_read: u64,
    n_refused: u64,
    /// Panics of decoders that the parser contained and reported as errors.
    n_contained: u64,
    seconds: f64,
    /// The peak of the process's memory when the parser was done.
    peak_kib: u64,
    failures: Vec<String>,
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{}: {} cases in {:.1} s: {} read, {} refused, {} panics contained, {} failures; peak of memory {} MiB",
            self.parser.name(),
            self.n_cases,
            self.seconds,
            self.n_read,
            self.n_refused,
            self.n_contained,
            self.failures.len(),
            self.peak_kib >> 10
        )?;
        self.failures.iter().try_for_each(|failure| write!(f, "\n  {failure}"))
    }
}

fn campaign(
    parser: Parser,
    n_cases: u64,
    seed: u64,
    deadline: Option<Instant>,
    keep: &Path,
) -> anyhow::Result<Report> {
    let scratch = tempfile::tempdir().context("a folder for the inputs")?;
    let seeds = seeds(parser, scratch.path())?;
    let (mut n_read, mut n_refused, mut n_contained, mut failures) = (0, 0, 0, Vec::new());
    let (begun, mut peak) = (Instant::now(), peak_kib());
    let mut number = 0;
    while number < n_cases && failures.len() < 20 && deadline.is_none_or(|deadline| Instant::now() < deadline)
    {
        // Each case has a stream of its own, so that it can be repeated alone.
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(number);
        let input = case(parser, &seeds, &mut rng);
        let started = Instant::now();
        let answer = catch_unwind(AssertUnwindSafe(|| feed(parser, &input, scratch.path())));
        let growth = peak_kib().saturating_sub(peak);
        peak += growth;
        let mut failed = |what: String| -> anyhow::Result<()> {
            fs::create_dir_all(keep)?;
            let file = keep.join(format!("{}-{seed}-{number}", parser.name()));
            fs::write(&file, &input)?;
            failures.push(format!("case {number}: {what}; its input is {}", file.display()));
            Ok(())
        };
        match answer {
            Ok(Answer::Read) => n_read += 1,
            Ok(Answer::Refused) => n_refused += 1,
            Ok(Answer::Contained) => n_contained += 1,
            Err(payload) => {
                let text = payload.downcast_ref::<String>().map(String::as_str);
                let text = text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("no message");
                failed(format!("a panic escaped: {text}"))?;
            }
        }
        let is_slow = started.elapsed() > MAX_TIME;
        if is_slow && is_slow_again(parser, &input, scratch.path()) {
            failed(format!("it took {:.1} s", started.elapsed().as_secs_f64()))?;
        }
        if growth > MAX_GROWTH_KIB {
            failed(format!("memory grew by {} MiB", growth >> 10))?;
        }
        number += 1;
    }
    let seconds = begun.elapsed().as_secs_f64();
    Ok(Report { parser, n_cases: number, peak_kib: peak, n_read, n_refused, n_contained, seconds, failures })
}

/// Whether an input takes long once more: on a busy machine any case may, once.
fn is_slow_again(parser: Parser, input: &[u8], scratch: &Path) -> bool {
    let begun = Instant::now();
    // What it does was counted the first time.
    let _ = catch_unwind(AssertUnwindSafe(|| feed(parser, input, scratch)));
    begun.elapsed() > MAX_TIME
}

/// The peak of the process's memory in KiB; 0 where the system does not tell.
fn peak_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|number| number.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_campaign_of_every_parser_finds_nothing() {
        let keep = tempfile::tempdir().unwrap();
        for &parser in Parser::ALL {
            let report = campaign(parser, 400, 1, None, keep.path()).unwrap();
            assert!(report.failures.is_empty(), "{report}");
            assert_eq!(report.n_read + report.n_refused + report.n_contained, 400);
            assert!(report.n_read > 0 && report.n_refused > 0, "{report}");
        }
    }
    /// Two seconds of every parser, with other cases each day: `.ci/run` does it.
    #[test]
    #[ignore = "takes 16 seconds"]
    fn a_campaign_of_every_parser_finds_nothing() {
        let keep = std::env::temp_dir().join("swav-fuzz-failures");
        let today =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() / 86_400;
        for &parser in Parser::ALL {
            let deadline = Instant::now() + Duration::from_secs(2);
            let report = campaign(parser, u64::MAX, today, Some(deadline), &keep).unwrap();
            println!("{report}");
            assert!(report.failures.is_empty(), "{report}");
        }
    }
}
