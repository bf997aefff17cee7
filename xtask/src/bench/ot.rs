//! `cargo xtask bench ot`: speed of entropic transport beside PyTorch, POT and the machine's read bandwidth.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ndarray::{Array2, Axis};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde_json::{Value, json};
use swav_ot::{Acceleration, Codes, Fallback, Method, Norm, Options, Potentials, Problem, Solver, Start};

/// The yardsticks, run by `--python`.
const YARDSTICK: &str = include_str!("ot_yardstick.py");
/// Prototypes of SwAV's ImageNet recipe.
const PROTOTYPES: usize = 3000;
/// Time that a case is repeated for at least in each round: threads take a while to settle on cores.
const CASE_TIME: Duration = Duration::from_millis(300);
/// Repetitions of a case in each round at least.
const REPEATS: usize = 3;
/// Floats of the bandwidth measurement: 400 MB, beyond any cache.
const BANDWIDTH_FLOATS: usize = 100_000_000;

/// Measure entropic optimal transport beside PyTorch, POT and the read bandwidth.
#[derive(clap::Args)]
pub struct Args {
    /// A Python with torch, pot and numpy, to measure the yardsticks in the same run.
    #[arg(long)]
    python: Option<PathBuf>,
    /// Rounds, in each of which a case and its yardstick take turns; medians count.
    #[arg(long, default_value_t = 7)]
    rounds: usize,
}

/// Measures, prints a table, and last one JSON line.
///
/// # Errors
/// If a solve does not converge, or the yardsticks cannot be run.
pub fn run(args: Args) -> Result<()> {
    ensure!(args.rounds > 0, "--rounds: expected at least 1, got 0");
    let mut yardstick = args.python.as_deref().map(Yardstick::start).transpose()?;
    let mut cases = Vec::new();
    for batch in [64, 256, 4096] {
        cases.push(codes_case(batch, args.rounds, yardstick.as_mut())?);
    }
    for (n, epsilon) in [(1000, 0.05), (1000, 0.01), (5000, 0.05)] {
        cases.push(general_case(n, epsilon, args.rounds, yardstick.as_mut())?);
    }
    drop(yardstick);
    let (bound, bandwidth) = bandwidth_case(args.rounds)?;
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

/// The median time of some runs, without the first.
fn median_ms(mut work: impl FnMut() -> Result<()>) -> Result<f64> {
    work()?;
    let mut times = Vec::new();
    let begin = Instant::now();
    while times.len() < REPEATS || begin.elapsed() < CASE_TIME {
        let start = Instant::now();
        work()?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    Ok(median(&mut times))
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Times taken in turns: a shared machine's speed drifts, so only what was measured side by side is compared.
struct Turns {
    /// By round.
    ours: Vec<f64>,
    theirs: Vec<f64>,
    /// The yardstick's last answer.
    answer: Value,
}

impl Turns {
    fn take(
        rounds: usize,
        mut yardstick: Option<&mut Yardstick>,
        case: &Value,
        mut work: impl FnMut() -> Result<()>,
    ) -> Result<Self> {
        let mut turns = Self { ours: Vec::new(), theirs: Vec::new(), answer: Value::Null };
        for _ in 0..rounds {
            if let Some(yardstick) = &mut yardstick {
                turns.answer = yardstick.ask(case)?;
                let ms = turns.answer["ms"].as_f64().context("a yardstick's answer without ms")?;
                turns.theirs.push(ms);
            }
            turns.ours.push(median_ms(&mut work)?);
        }
        Ok(turns)
    }

    fn ours_ms(&self) -> f64 {
        median(&mut self.ours.clone())
    }

    fn theirs_ms(&self) -> Option<f64> {
        (!self.theirs.is_empty()).then(|| median(&mut self.theirs.clone()))
    }

    /// The median of the rounds' ratios.
    fn times_faster(&self) -> Option<f64> {
        let mut ratios: Vec<f64> =
            self.theirs.iter().zip(&self.ours).map(|(theirs, ours)| theirs / ours).collect();
        (!ratios.is_empty()).then(|| median(&mut ratios))
    }
}

/// One SwAV case: codes of unit embeddings against unit prototypes.
fn codes_case(batch: usize, rounds: usize, yardstick: Option<&mut Yardstick>) -> Result<Value> {
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
    let case = json!({"case": "swav", "batch": batch, "prototypes": PROTOTYPES});
    let turns =
        Turns::take(rounds, yardstick, &case, || Ok(codes.assign_into(scores.view(), out.view_mut())?))?;
    Ok(json!({
        "case": "swav", "batch": batch, "prototypes": PROTOTYPES, "n_iters": 3, "dtype": "f32",
        "ms": turns.ours_ms(), "torch_ms": turns.theirs_ms(), "times_faster": turns.times_faster(),
    }))
}

/// One general case: two clouds of normal points, squared distances over their maximum, to an L2 residual of 1e-6
/// (the criterion that POT stops by), from the cost matrix to the plan. POT looks at its residual in every tenth
/// iteration, so `residual` tells how far each plan's marginals are from the weights in the end. `ms` is with a solver and
/// a plan that are used again, `first_ms` with new ones each time, as POT has it.
fn general_case(
    n: usize,
    epsilon: f64,
    rounds: usize,
    mut yardstick: Option<&mut Yardstick>,
) -> Result<Value> {
    let points = clouds(n);
    let cost = squared_distances(&points);
    let mut line =
        json!({"case": "general", "n": n, "m": n, "epsilon": epsilon, "dtype": "f64", "tolerance": 1e-6});
    for (method, name, pot) in [(Method::Auto, "auto", "sinkhorn"), (Method::Log, "log", "sinkhorn_log")] {
        if method == Method::Log && n > 2000 {
            continue;
        }
        let options = Options::default().method(method).norm(Norm::L2);
        let (mut n_iters, mut plan) = (0, Array2::zeros((n, n)));
        let mut solver = Solver::new(options)?;
        let mut first_ms = Vec::new();
        // The same points on both sides: POT's number of iterations depends on them.
        let case = json!({"case": pot, "epsilon": epsilon, "x": rows(&points[0]), "y": rows(&points[1])});
        let turns = Turns::take(rounds, yardstick.as_deref_mut(), &case, || {
            let problem = Problem::from_cost(cost.view(), epsilon)?;
            let solution = solver.solve(&problem)?.converged()?;
            n_iters = solution.n_iters();
            Ok(solution.plan_into(plan.view_mut())?)
        })?;
        for _ in 0..rounds {
            let start = Instant::now();
            let problem = Problem::from_cost(cost.view(), epsilon)?;
            drop(Solver::new(options)?.solve(&problem)?.converged()?.plan());
            first_ms.push(start.elapsed().as_secs_f64() * 1e3);
        }
        line[format!("{name}_ms")] = json!(turns.ours_ms());
        line[format!("{name}_first_ms")] = json!(median(&mut first_ms));
        line[format!("{name}_iters")] = json!(n_iters);
        line[format!("{name}_residual")] = json!(violation(&plan));
        if let Some(ratio) = turns.times_faster() {
            line[format!("pot_{pot}_ms")] = json!(turns.theirs_ms());
            for what in ["iters", "residual"] {
                line[format!("pot_{pot}_{what}")] = turns.answer[what].clone();
            }
            line[if method == Method::Log { "log_times_faster" } else { "times_faster" }] = json!(ratio);
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

/// Time of one iteration on a matrix of 100 MB over the time to read it once, and the bytes read per second; medians of
/// rounds that measure both.
fn bandwidth_case(rounds: usize) -> Result<(Value, f64)> {
    const FEW: usize = 5;
    const MANY: usize = 35;
    let n = 5000;
    let cost = squared_distances(&clouds(n)).mapv(|c| c as f32);
    let problem = Problem::from_cost(cost.view(), 0.05)?;
    let mut out = Potentials::zeros(n, n);
    let solver_of = |n_iters: usize, out: &mut Potentials| {
        // Exactly so many sweeps, whether they still change something or not.
        let options = Options::default()
            .acceleration(Acceleration::Off)
            .fallback(Fallback::Off)
            .stall_window(usize::MAX)
            .tolerance(1e-30)
            .max_iters(n_iters);
        let mut solver = Solver::new(options)?;
        // Its memory is there from now on.
        let summary = solver.solve_into(&problem, Start::Zero, out)?;
        ensure!(summary.n_iters == n_iters, "expected {n_iters} iterations, got {}", summary.n_iters);
        Ok((solver, n_iters))
    };
    let mut solvers = [solver_of(FEW, &mut out)?, solver_of(MANY, &mut out)?];
    let values = vec![1.0f32; BANDWIDTH_FLOATS];
    let (mut iterations, mut ratios, mut bandwidths) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        let bandwidth = read_bandwidth(&values);
        let mut times = [0.0; 2];
        for ((solver, n_iters), ms) in solvers.iter_mut().zip(&mut times) {
            let start = Instant::now();
            let summary = solver.solve_into(&problem, Start::Zero, &mut out)?;
            *ms = start.elapsed().as_secs_f64() * 1e3;
            ensure!(summary.n_iters == *n_iters, "expected {n_iters} iterations, got {}", summary.n_iters);
        }
        // The difference of two lengths leaves out what is done once.
        let ms = (times[1] - times[0]) / (MANY - FEW) as f64;
        iterations.push(ms);
        ratios.push(ms / (4.0 * (n * n) as f64 / bandwidth * 1e3));
        bandwidths.push(bandwidth);
    }
    let bandwidth = median(&mut bandwidths);
    let case = json!({
        "case": "bandwidth", "n": n, "m": n, "dtype": "f32", "ms_per_iter": median(&mut iterations),
        "bound_ms": 4.0 * (n * n) as f64 / bandwidth * 1e3, "times_bound": median(&mut ratios),
    });
    Ok((case, bandwidth))
}

/// Bytes a second that all threads together read in order: the best of three sums.
fn read_bandwidth(values: &[f32]) -> f64 {
    let mut best: f64 = 0.0;
    for _ in 0..3 {
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
        best = best.max(4.0 * values.len() as f64 / seconds);
    }
    best
}

/// Two clouds of normal points, the second shifted.
fn clouds(n: usize) -> [Array2<f64>; 2] {
    let mut rng = ChaCha8Rng::seed_from_u64(n as u64);
    [normal(n, 3, &mut rng), normal(n, 3, &mut rng) + 0.3]
}

/// Squared distances over their maximum.
fn squared_distances([x, y]: &[Array2<f64>; 2]) -> Array2<f64> {
    let cost = Array2::from_shape_fn((x.nrows(), y.nrows()), |(i, j)| {
        (0..3).map(|d| (x[[i, d]] - y[[j, d]]).powi(2)).sum::<f64>()
    });
    let largest = cost.iter().copied().fold(0.0, f64::max);
    cost / largest
}

fn rows(points: &Array2<f64>) -> Vec<Vec<f64>> {
    points.rows().into_iter().map(|row| row.to_vec()).collect()
}

/// Standard normal numbers, by the Box-Muller transform.
fn normal(n: usize, d: usize, rng: &mut ChaCha8Rng) -> Array2<f64> {
    Array2::from_shape_simple_fn((n, d), || {
        let (u, v): (f64, f64) = (1.0 - rng.random::<f64>(), rng.random());
        (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
    })
}

/// A Python process that runs a case when it is asked to.
struct Yardstick {
    process: Child,
    /// Until the process is to end.
    cases: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Yardstick {
    fn start(python: &Path) -> Result<Self> {
        let mut process = Command::new(python)
            .args(["-c", YARDSTICK])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("running {}", python.display()))?;
        let (cases, answers) = (process.stdin.take(), process.stdout.take());
        let answers = BufReader::new(answers.context("the yardstick's output")?);
        Ok(Self { process, cases, answers })
    }

    /// Runs a case for a while; its median time in `ms`, and what else there is to say of it.
    fn ask(&mut self, case: &Value) -> Result<Value> {
        let name = &case["case"];
        let gone = || {
            format!(
                "the yardstick ended before it had measured {name}: does its Python have torch, pot and numpy?"
            )
        };
        let cases = self.cases.as_mut().with_context(gone)?;
        writeln!(cases, "{case}").and_then(|()| cases.flush()).with_context(gone)?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        ensure!(!line.is_empty(), gone());
        serde_json::from_str(&line).with_context(|| format!("the yardstick's answer {line:?}"))
    }
}

impl Drop for Yardstick {
    fn drop(&mut self) {
        // It ends with its input; how it ends no longer matters.
        self.cases = None;
        let _ = self.process.wait();
    }
}
