//! `cargo xtask bench ot`: speed of entropic transport beside PyTorch, POT and the machine's read bandwidth.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ndarray::{Array2, Axis};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde_json::{Value, json};
use swav_ot::{Acceleration, Codes, Method, Norm, Options, Potentials, Problem, Solver, Start};

/// The yardsticks, run by `--python`.
const YARDSTICK: &str = include_str!("ot_yardstick.py");
/// Prototypes of SwAV's ImageNet recipe.
const PROTOTYPES: usize = 3000;
/// Time that a case is repeated for at least: threads take a while to settle on cores.
const CASE_TIME: Duration = Duration::from_millis(500);
/// Floats of the bandwidth measurement: 400 MB, beyond any cache.
const BANDWIDTH_FLOATS: usize = 100_000_000;

/// Measure entropic optimal transport beside PyTorch, POT and the read bandwidth.
#[derive(clap::Args)]
pub struct Args {
    /// A Python with torch, pot and numpy, to measure the yardsticks in the same run.
    #[arg(long)]
    python: Option<PathBuf>,
    /// Repetitions of each case at least; the median counts. Short cases are repeated for half a second.
    #[arg(long, default_value_t = 9)]
    repeats: usize,
}

/// Measures, prints a table, and last one JSON line.
///
/// # Errors
/// If a solve does not converge, or the yardsticks cannot be run.
pub fn run(args: Args) -> Result<()> {
    ensure!(args.repeats > 0, "--repeats: expected at least 1, got 0");
    let yardsticks = match &args.python {
        Some(python) => yardsticks(python, args.repeats)?,
        None => BTreeMap::new(),
    };
    let mut cases = Vec::new();
    for batch in [64, 256, 4096] {
        cases.push(codes_case(batch, args.repeats, &yardsticks)?);
    }
    for (n, epsilon) in [(1000, 0.05), (1000, 0.01), (5000, 0.05)] {
        cases.push(general_case(n, epsilon, args.repeats.min(5), &yardsticks)?);
    }
    let bandwidth = read_bandwidth(args.repeats);
    let bound = bandwidth_case(bandwidth)?;
    for case in &cases {
        println!("{case}");
    }
    println!("{bound}");
    let smallest = |kind: &str, key: &str| {
        cases
            .iter()
            .filter(|case| case["case"] == kind)
            .filter_map(|case| case[key].as_f64())
            .min_by(f64::total_cmp)
    };
    println!(
        "{}",
        json!({
            "bench": "ot",
            "threads": rayon::current_num_threads(),
            "times_faster_than_torch": smallest("swav", "times_faster"),
            "times_faster_than_pot": smallest("general", "times_faster"),
            "times_bandwidth_bound": bound["times_bound"],
            "read_gb_per_s": bandwidth / 1e9,
            "cases": cases,
        })
    );
    Ok(())
}

fn median_ms(repeats: usize, mut work: impl FnMut() -> Result<()>) -> Result<f64> {
    work()?;
    let mut times = Vec::with_capacity(repeats);
    let begin = Instant::now();
    while times.len() < repeats || begin.elapsed() < CASE_TIME {
        let start = Instant::now();
        work()?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

/// One SwAV case: codes of unit embeddings against unit prototypes.
fn codes_case(batch: usize, repeats: usize, yardsticks: &BTreeMap<String, Value>) -> Result<Value> {
    let mut rng = ChaCha8Rng::seed_from_u64(batch as u64);
    let mut unit = |n: usize| {
        let mut rows = normal(n, 128, &mut rng).mapv(|x| x as f32);
        for mut row in rows.axis_iter_mut(Axis(0)) {
            let norm = row.dot(&row).sqrt();
            row /= norm;
        }
        rows
    };
    let scores = unit(batch).dot(&unit(PROTOTYPES).t());
    let mut codes = Codes::<f32>::new(0.05, 3)?;
    let mut out = scores.clone();
    let ms = median_ms(repeats, || Ok(codes.assign_into(scores.view(), out.view_mut())?))?;
    let torch = yardsticks.get(&format!("swav {batch}")).and_then(|case| case["torch_ms"].as_f64());
    Ok(json!({
        "case": "swav", "batch": batch, "prototypes": PROTOTYPES, "n_iters": 3, "dtype": "f32", "ms": ms,
        "torch_ms": torch, "times_faster": torch.map(|torch| torch / ms),
    }))
}

/// One general case: two clouds of normal points, squared distances over their maximum, to an L2 residual of 1e-6
/// (the criterion that POT stops by), from the cost matrix to the plan. POT looks at its residual in every tenth
/// iteration, so `residual` tells how far each plan's marginals are from the weights in the end. `ms` is with a solver and
/// a plan that are used again, `first_ms` with new ones each time, as POT has it.
fn general_case(
    n: usize,
    epsilon: f64,
    repeats: usize,
    yardsticks: &BTreeMap<String, Value>,
) -> Result<Value> {
    let cost = squared_distances(n);
    let mut line =
        json!({"case": "general", "n": n, "m": n, "epsilon": epsilon, "dtype": "f64", "tolerance": 1e-6});
    let yardstick = yardsticks.get(&format!("general {n} {epsilon}"));
    for (method, name, pot) in [(Method::Auto, "auto", "sinkhorn"), (Method::Log, "log", "sinkhorn_log")] {
        if method == Method::Log && n > 2000 {
            continue;
        }
        let options = Options::default().method(method).norm(Norm::L2);
        let (mut n_iters, mut plan) = (0, Array2::zeros((n, n)));
        let mut solver = Solver::new(options)?;
        let ms = median_ms(repeats, || {
            let problem = Problem::from_cost(cost.view(), epsilon)?;
            let solution = solver.solve(&problem)?.converged()?;
            n_iters = solution.n_iters();
            Ok(solution.plan_into(plan.view_mut())?)
        })?;
        let first_ms = median_ms(repeats, || {
            let problem = Problem::from_cost(cost.view(), epsilon)?;
            drop(Solver::new(options)?.solve(&problem)?.converged()?.plan());
            Ok(())
        })?;
        line[format!("{name}_ms")] = json!(ms);
        line[format!("{name}_first_ms")] = json!(first_ms);
        line[format!("{name}_iters")] = json!(n_iters);
        line[format!("{name}_residual")] = json!(violation(&plan));
        if let Some(pot_ms) = yardstick.and_then(|case| case[format!("{pot}_ms")].as_f64()) {
            line[format!("pot_{pot}_ms")] = json!(pot_ms);
            for what in ["iters", "residual"] {
                line[format!("pot_{pot}_{what}")] =
                    yardstick.map_or(Value::Null, |case| case[format!("{pot}_{what}")].clone());
            }
            let key = if method == Method::Log { "log_times_faster" } else { "times_faster" };
            line[key] = json!(pot_ms / ms);
            line[format!("{key}_first")] = json!(pot_ms / first_ms);
        }
    }
    Ok(line)
}

/// L2 distance of a plan's marginals from uniform ones; the larger of the two.
fn violation(plan: &Array2<f64>) -> f64 {
    let distance = |axis: usize| {
        let sums = plan.sum_axis(Axis(axis));
        let weight = 1.0 / sums.len() as f64;
        sums.iter().map(|sum| (sum - weight).powi(2)).sum::<f64>().sqrt()
    };
    distance(0).max(distance(1))
}

/// Time of one iteration on a matrix of 100 MB, over the time to read it once.
fn bandwidth_case(bandwidth: f64) -> Result<Value> {
    let n = 5000;
    let cost = squared_distances(n).mapv(|c| c as f32);
    let problem = Problem::from_cost(cost.view(), 0.05)?;
    let mut out = Potentials::zeros(n, n);
    let mut ms_of = |n_iters: usize| -> Result<f64> {
        let options = Options::default().acceleration(Acceleration::Off).tolerance(1e-30).max_iters(n_iters);
        let mut solver = Solver::new(options)?;
        median_ms(5, || {
            let summary = solver.solve_into(&problem, Start::Zero, &mut out)?;
            ensure!(summary.n_iters == n_iters, "expected {n_iters} iterations, got {}", summary.n_iters);
            Ok(())
        })
    };
    // The difference of two lengths leaves out what is done once.
    let (few, many) = (ms_of(5)?, ms_of(35)?);
    let ms = (many - few) / 30.0;
    let bound_ms = 4.0 * (n * n) as f64 / bandwidth * 1e3;
    Ok(json!({
        "case": "bandwidth", "n": n, "m": n, "dtype": "f32", "ms_per_iter": ms, "bound_ms": bound_ms,
        "times_bound": ms / bound_ms,
    }))
}

/// Bytes a second that all threads together read in order: the best of some sums over 400 MB.
fn read_bandwidth(repeats: usize) -> f64 {
    let values = vec![1.0f32; BANDWIDTH_FLOATS];
    let mut best: f64 = 0.0;
    for _ in 0..repeats.max(3) {
        let start = Instant::now();
        let total: f32 = values
            .par_chunks(1 << 18)
            .map(|chunk| {
                // Enough independent sums that the additions do not wait for each other.
                let mut sums = [0.0f32; 64];
                for part in chunk.as_chunks::<64>().0 {
                    sums.iter_mut().zip(part).for_each(|(sum, x)| *sum += x);
                }
                sums.iter().sum::<f32>()
            })
            .sum();
        let seconds = start.elapsed().as_secs_f64();
        std::hint::black_box(total);
        best = best.max(4.0 * BANDWIDTH_FLOATS as f64 / seconds);
    }
    best
}

fn squared_distances(n: usize) -> Array2<f64> {
    let mut rng = ChaCha8Rng::seed_from_u64(n as u64);
    let (x, y) = (normal(n, 3, &mut rng), normal(n, 3, &mut rng) + 0.3);
    let cost =
        Array2::from_shape_fn((n, n), |(i, j)| (0..3).map(|d| (x[[i, d]] - y[[j, d]]).powi(2)).sum::<f64>());
    let largest = cost.iter().copied().fold(0.0, f64::max);
    cost / largest
}

/// Standard normal numbers, by the Box-Muller transform.
fn normal(n: usize, d: usize, rng: &mut ChaCha8Rng) -> Array2<f64> {
    Array2::from_shape_simple_fn((n, d), || {
        let (u, v): (f64, f64) = (1.0 - rng.random::<f64>(), rng.random());
        (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
    })
}

/// Runs the Python yardsticks; cases by name.
fn yardsticks(python: &PathBuf, repeats: usize) -> Result<BTreeMap<String, Value>> {
    let output = Command::new(python)
        .args(["-c", YARDSTICK, &repeats.to_string()])
        .output()
        .with_context(|| format!("running {}", python.display()))?;
    ensure!(
        output.status.success(),
        "the yardsticks failed under {}: {}",
        python.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout)?
        .lines()
        .map(|line| {
            let case: Value =
                serde_json::from_str(line).with_context(|| format!("yardstick line {line:?}"))?;
            let name = match case["case"].as_str() {
                Some("swav") => format!("swav {}", case["batch"]),
                _ => format!("general {} {}", case["n"], case["epsilon"]),
            };
            Ok((name, case))
        })
        .collect()
}
