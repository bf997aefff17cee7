//! `cargo xtask bench speed`: the time of a training step on random images.

use std::time::Instant;

use serde::Serialize;

use crate::memory::peak_rss_mib;
use crate::workload::{Options, Workload};

/// Steps before the measured ones: memory is touched, caches and pools fill.
const WARM_UP_STEPS: usize = 2;

/// Time a training step on random images: forward, prototypes, codes, loss, backward, LARC.
///
/// The last line is JSON: step_ms (the median), min_ms, max_ms, images_per_s, peak_rss_mb.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    workload: Options,
}

#[derive(Serialize)]
struct Report {
    mode: &'static str,
    step_ms: f64,
    min_ms: f64,
    max_ms: f64,
    images_per_s: f64,
    peak_rss_mb: Option<f64>,
}

/// Runs the benchmark.
pub fn run(args: Args) -> anyhow::Result<()> {
    let mut workload = Workload::new(&args.workload)?;
    let mut times_ms = Vec::with_capacity(args.workload.steps);
    for step in 0..WARM_UP_STEPS + args.workload.steps {
        let begin = Instant::now();
        workload.step()?;
        let elapsed_ms = begin.elapsed().as_secs_f64() * 1e3;
        if step >= WARM_UP_STEPS {
            times_ms.push(elapsed_ms);
        }
    }
    times_ms.sort_by(f64::total_cmp);
    let step_ms = median(&times_ms);
    let report = Report {
        mode: "speed",
        step_ms,
        min_ms: times_ms[0],
        max_ms: times_ms[times_ms.len() - 1],
        images_per_s: args.workload.batch as f64 / (step_ms / 1e3),
        peak_rss_mb: peak_rss_mib(),
    };
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}

/// The middle of sorted numbers, or the mean of the two in the middle.
pub(super) fn median(sorted: &[f64]) -> f64 {
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_median_of_an_even_number_is_between_the_middle_two() {
        assert_eq!(super::median(&[1.0, 2.0, 9.0]), 2.0);
        assert_eq!(super::median(&[1.0, 2.0, 4.0, 9.0]), 3.0);
    }
}
