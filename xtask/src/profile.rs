//! `cargo xtask profile`: where the time of a training step goes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use ndarray::s;
use serde_json::json;
use swav_kernels::profile::{self, Event};
use swav_losses::SwappedPrediction;
use swav_ot::Codes;
use swav_train::StepOutput;

use crate::timed::{Timed, scope};
use crate::workload::{EPSILON, Options, SINKHORN_ITERS, TEMPERATURE, Workload};

/// Steps before the profiled ones: memory is touched, caches and pools fill.
const WARM_UP_STEPS: usize = 2;
const STEP: &str = "step, all the rest";

/// Show where the time of a training step goes, by operation: a table, and a trace for chrome://tracing or Perfetto.
///
/// Takes the options of `bench speed`. Times are those of the calling thread, each operation without the ones inside
/// it, so that they add up to the step.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    workload: Options,

    /// List operations by shape, too.
    #[arg(long)]
    shapes: bool,

    /// File for the trace.
    #[arg(long, value_name = "FILE.json", default_value = "profile.json")]
    trace: PathBuf,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    let n_steps = args.workload.steps;
    let mut workload = Workload::new(&args.workload)?.wrap_encoder(|encoder| Box::new(Timed(encoder)));
    for _ in 0..WARM_UP_STEPS {
        workload.step()?;
    }
    profile::start();
    let mut last = None;
    for _ in 0..n_steps {
        last = Some(scope(STEP, || workload.step())?);
    }
    let events = profile::stop();
    let output = last.context("no step was profiled")?;

    profile::start();
    for _ in 0..n_steps {
        small_parts(&workload, &output)?;
    }
    let apart = profile::stop();

    println!("{n_steps} steps; milliseconds of one step");
    print_table(&rows(&events, n_steps, args.shapes));
    println!("\nof which outside the encoder, measured apart:");
    print_table(&rows(&apart, n_steps, false));
    write_trace(&events, &args.trace)?;
    println!("\ntrace: {} (open in chrome://tracing or ui.perfetto.dev)", args.trace.display());
    Ok(())
}

/// Does what a step does between forward and backward pass again, on its embeddings.
fn small_parts(workload: &Workload, output: &StepOutput) -> anyhow::Result<()> {
    let prototypes = &workload.swav.prototypes;
    let z = output.embeddings.view();
    let n_crops = workload.n_crops;
    let batch = z.nrows() / n_crops;
    let scores = scope("prototypes: scores", || prototypes.scores(0, z))?;
    let codes = scope("codes by Sinkhorn-Knopp", || {
        let mut solver = Codes::new(EPSILON, SINKHORN_ITERS)?;
        (0..2)
            .map(|crop| {
                let mut code = scores.slice(s![crop * batch..(crop + 1) * batch, ..]).to_owned();
                solver.assign(code.view_mut())?;
                Ok(code)
            })
            .collect::<Result<Vec<_>, swav_ot::OtError>>()
    })?;
    let loss = SwappedPrediction::new(n_crops, &[0, 1], TEMPERATURE)?;
    let views = [codes[0].view(), codes[1].view()];
    let swapped = scope("loss and its gradient", || loss.evaluate(scores.view(), &views))?;
    scope("prototypes: gradients", || {
        prototypes.grad_weights(0, swapped.grad_scores.view(), z)?;
        prototypes.grad_embeddings(0, swapped.grad_scores.view())
    })?;
    Ok(())
}

/// One line of the table, summed over all steps.
#[derive(Debug, Default, Clone, PartialEq)]
struct Row {
    name: String,
    n_calls: usize,
    self_us: f64,
    flops: f64,
    n_steps: usize,
}

/// Sums events by name (and shape), each without the time of those inside it; the longest first.
fn rows(events: &[Event], n_steps: usize, by_shape: bool) -> Vec<Row> {
    let mut sums: BTreeMap<String, Row> = BTreeMap::new();
    for (event, self_us) in events.iter().zip(self_times(events)) {
        let name = match by_shape && !event.detail.is_empty() {
            true => format!("{} {}", event.name, event.detail),
            false => event.name.to_owned(),
        };
        let row = sums.entry(name.clone()).or_insert_with(|| Row { name, n_steps, ..Row::default() });
        row.n_calls += 1;
        row.self_us += self_us;
        row.flops += event.flops;
    }
    let mut rows: Vec<Row> = sums.into_values().collect();
    rows.sort_by(|a, b| b.self_us.total_cmp(&a.self_us));
    rows
}

/// The duration of each event less those of the events directly inside it.
fn self_times(events: &[Event]) -> Vec<f64> {
    let end = |event: &Event| event.start_us + event.duration_us;
    let mut order: Vec<usize> = (0..events.len()).collect();
    // An outer event starts no later and ends no earlier than an inner one.
    order.sort_by(|&a, &b| {
        let (a, b) = (&events[a], &events[b]);
        a.start_us.total_cmp(&b.start_us).then(b.duration_us.total_cmp(&a.duration_us))
    });
    let mut own: Vec<f64> = events.iter().map(|event| event.duration_us).collect();
    let mut open: Vec<usize> = Vec::new();
    for index in order {
        let event = &events[index];
        while open.last().is_some_and(|&outer| end(&events[outer]) < end(event)) {
            open.pop();
        }
        if let Some(&outer) = open.last() {
            own[outer] -= event.duration_us;
        }
        open.push(index);
    }
    own
}

fn print_table(rows: &[Row]) {
    let total_us: f64 = rows.iter().map(|row| row.self_us).sum();
    let width = rows.iter().map(|row| row.name.len()).max().unwrap_or(0).max("operation".len());
    println!("{:<width$}  {:>6}  {:>9}  {:>6}  {:>8}", "operation", "calls", "ms", "share", "GFLOP/s");
    for row in rows {
        let steps = row.n_steps as f64;
        let speed = match row.flops > 0.0 && row.self_us > 0.0 {
            true => format!("{:.1}", row.flops / row.self_us / 1e3),
            false => String::new(),
        };
        println!(
            "{:<width$}  {:>6.1}  {:>9.3}  {:>5.1}%  {speed:>8}",
            row.name,
            row.n_calls as f64 / steps,
            row.self_us / steps / 1e3,
            100.0 * row.self_us / total_us,
        );
    }
    if let Some(first) = rows.first() {
        println!("{:<width$}  {:>6}  {:>9.3}", "sum", "", total_us / first.n_steps as f64 / 1e3);
    }
}

/// Writes complete events in the trace event format of Chrome.
fn write_trace(events: &[Event], path: &Path) -> anyhow::Result<()> {
    let complete = |event: &Event| {
        json!({
            "name": event.name, "cat": "swav", "ph": "X", "pid": 1, "tid": 1,
            "ts": event.start_us, "dur": event.duration_us,
            "args": { "shape": event.detail, "flops": event.flops },
        })
    };
    let trace =
        json!({ "traceEvents": events.iter().map(complete).collect::<Vec<_>>(), "displayTimeUnit": "ms" });
    std::fs::write(path, serde_json::to_string(&trace)?).with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(name: &'static str, start_us: f64, duration_us: f64) -> Event {
        Event { name, detail: String::new(), start_us, duration_us, flops: 1000.0 }
    }

    #[test]
    fn each_operation_counts_without_those_inside_it() {
        // In order of completion, as they are recorded.
        let events = [
            event("conv", 1.0, 2.0),
            event("conv", 4.0, 1.0),
            event("forward", 1.0, 5.0),
            event("step", 0.0, 10.0),
        ];
        assert_eq!(self_times(&events), [2.0, 1.0, 2.0, 5.0]);
        let rows = rows(&events, 1, false);
        let times: Vec<(&str, usize, f64)> =
            rows.iter().map(|row| (&*row.name, row.n_calls, row.self_us)).collect();
        assert_eq!(times, [("step", 1, 5.0), ("conv", 2, 3.0), ("forward", 1, 2.0)]);
    }
}
