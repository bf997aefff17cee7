//! `swav gpu`: which NVIDIA cards and libraries are here, what is missing and how to get it, and whether a card computes
//! what it should.

use anyhow::{Context, bail};
use swav_cuda::driver::{Card, Properties, cards};
use swav_cuda::exec::ExecutorOptions;
use swav_cuda::libs;
use swav_cuda::plans::Selection;
use swav_cuda::self_test::self_test;

/// Look for NVIDIA cards and the libraries that they need, and test them.
///
/// Lists what was found where, and what is missing with the way to get it. Then trains small networks on each usable card
/// and on the CPU and compares, which takes a second. Fails where no card is usable or a result is wrong.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Look, but do not test.
    #[arg(long)]
    no_test: bool,
    /// Print every comparison of the test.
    #[arg(long)]
    verbose: bool,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    let report = libs::report();
    say!("{}", report.to_string().trim_end())?;
    let found = cards().context("no card can be used")?;
    if found.is_empty() {
        bail!("the driver sees no card");
    }
    let mut usable = Vec::new();
    for card in &found {
        match card.check() {
            Ok(()) => {
                say!("{card}")?;
                usable.push(card);
            }
            Err(error) => say!("{card}: too old, {error}")?,
        }
    }
    if usable.is_empty() {
        bail!("no card is new enough");
    }
    if !report.is_complete() {
        bail!("a card is there, but not all libraries: see above");
    }
    let mut wrong = Vec::new();
    for card in usable.into_iter().filter(|_| !args.no_test) {
        if !test(card, args.verbose)? {
            wrong.push(format!("cuda:{}", card.ordinal));
        }
    }
    if !wrong.is_empty() {
        bail!("wrong results on {}", wrong.join(", "));
    }
    Ok(())
}

/// Tests a card; whether it passes.
fn test(card: &Properties, verbose: bool) -> anyhow::Result<bool> {
    let ordinal = card.ordinal;
    // cuDNN's own choices: timing them would take longer than the test.
    let options = ExecutorOptions { selection: Selection::First, ..ExecutorOptions::default() };
    let opened = Card::open(ordinal).with_context(|| format!("opening cuda:{ordinal}"))?;
    let result = self_test(&opened, options).with_context(|| format!("testing cuda:{ordinal}"))?;
    for check in result.checks.iter().filter(|check| verbose || !check.passes()) {
        say!("    {check}")?;
    }
    let failed = result.checks.iter().filter(|check| !check.passes()).count();
    let (all, seconds) = (result.checks.len(), result.seconds);
    match failed {
        0 => say!("cuda:{ordinal}: self-test passed, {all} comparisons in {seconds:.1} s")?,
        _ => say!("cuda:{ordinal}: self-test FAILED, {failed} of {all} comparisons")?,
    }
    Ok(failed == 0)
}
