//! What the solver promises: hard problems, limits, forbidden pairs; and a campaign of random problems, from easy to
//! hopeless, each of which converges as far as its type allows, or says why not.
//!
//! The whole campaign takes many minutes of processor time:
//!
//! ```text
//! cargo test -p swav-ot --test campaign -- --ignored --nocapture
//! ```
//!
//! `SWAV_CAMPAIGN=FIRST..LAST` chooses problems (0..10000), `SWAV_CAMPAIGN_SECONDS` bounds the time.

mod exact;

use std::collections::BTreeMap;
use std::time::Instant;

use ndarray::{Array1, Array2, ArrayView1};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use swav_ot::{
    Acceleration, Annealing, BarycentreOptions, Fallback, Method, Options, OtError, PointCost, Problem, Real,
    Rung, Solution, Solver, Status, barycentre, sinkhorn_divergence,
};

/// A random problem in double precision.
struct Case {
    seed: u64,
    cost: Array2<f64>,
    source: Array1<f64>,
    target: Array1<f64>,
    epsilon: f64,
    tolerance: f64,
    method: Method,
    single: bool,
}

impl Case {
    /// Epsilons and costs of twelve orders of magnitude, sizes of 1 to 200, weights with zeros and with 1e-12.
    fn new(seed: u64, largest: usize) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut size = || {
            if rng.random_bool(0.5) {
                rng.random_range(1..=largest)
            } else {
                (largest as f64).powf(rng.random_range(0.0..1.0)) as usize
            }
        };
        let (n, m) = (size(), size());
        let epsilon = 10f64.powf(rng.random_range(-6.0..6.0));
        let scale = 10f64.powf(rng.random_range(-6.0..6.0));
        let mut cost = costs(&mut rng, n, m);
        cost *= scale;
        let single = rng.random_bool(0.5);
        if single {
            cost.mapv_inplace(|c| f64::from(c as f32));
        }
        let (source, target) = (weights(&mut rng, n), weights(&mut rng, m));
        let tolerance = if !single && rng.random_bool(0.5) { 1e-9 } else { 1e-6 };
        let method = [Method::Auto, Method::Auto, Method::Log, Method::Stabilised][rng.random_range(0..4)];
        Self { seed, cost, source, target, epsilon, tolerance, method, single }
    }

    fn ratio(&self) -> f64 {
        let (low, high) = self.cost.iter().fold((f64::MAX, f64::MIN), |(a, b), &c| (a.min(c), b.max(c)));
        (high - low) / self.epsilon
    }
}

impl std::fmt::Display for Case {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (kind, ratio) = (if self.single { "f32" } else { "f64" }, self.ratio());
        let (n, m) = self.cost.dim();
        write!(
            formatter,
            "{kind} {n} x {m}, spread/epsilon {ratio:.1e}, tolerance {:e}, {:?}",
            self.tolerance, self.method
        )
    }
}

fn costs(rng: &mut ChaCha8Rng, n: usize, m: usize) -> Array2<f64> {
    let mut uniform =
        |shape: (usize, usize)| Array2::from_shape_simple_fn(shape, || rng.random_range(0.0..1.0));
    let (x, y, table) = (uniform((n, 2)), uniform((m, 2)), uniform((n, m)));
    let distance = |(i, j)| (0..2).map(|d| f64::powi(x[[i, d]] - y[[j, d]], 2)).sum::<f64>();
    match rng.random_range(0..6) {
        0 | 1 => table,
        2 => Array2::from_shape_fn((n, m), distance),
        3 => Array2::from_shape_fn((n, m), |at| distance(at).sqrt()),
        // Many ties.
        4 => table.mapv(|c| (c * 5.0).floor()),
        // Both signs, and far from 0.
        _ => table.mapv(|c| c - 3.0),
    }
}

fn weights(rng: &mut ChaCha8Rng, n: usize) -> Array1<f64> {
    let kind = rng.random_range(0..5);
    let mut weights = Array1::from_shape_fn(n, |i| match kind {
        0 => 1.0,
        2 if i % 3 == 1 => 0.0,
        3 if i % 4 == 1 => 1e-12,
        4 => 10f64.powf(rng.random_range(-8.0..0.0)),
        _ => rng.random_range(0.01..1.0),
    });
    weights /= weights.sum();
    weights
}

/// How a case ended.
#[derive(Debug)]
struct Ending {
    status: Status,
    rung: Rung,
    n_iters: usize,
    n_newton_steps: usize,
    seconds: f64,
    /// The plan's marginals against the weights, computed from the potentials by plain loops.
    violation: f64,
    residual: f64,
    resolution: f64,
    epsilon: f64,
    gap: f64,
}

fn solve<T: Real>(case: &Case) -> Ending {
    let cost = case.cost.mapv(T::of);
    let (source, target) = (case.source.mapv(T::of), case.target.mapv(T::of));
    let problem = Problem::from_cost(cost.view(), case.epsilon)
        .and_then(|problem| problem.with_marginals(source.view(), target.view()))
        .unwrap_or_else(|error| panic!("case {}: {error}", case.seed));
    let options = Options::default().tolerance(case.tolerance).method(case.method);
    let mut solver = Solver::new(options).unwrap();
    let start = Instant::now();
    let solution = solver.solve(&problem).unwrap_or_else(|error| panic!("case {}: {error}", case.seed));
    let seconds = start.elapsed().as_secs_f64();
    let summary = solution.summary();
    let certificate = solution.certificate().unwrap();
    let costs = solution.costs();
    assert!(solution.plan().iter().all(|p| p.is_finite()), "case {}", case.seed);
    assert!(
        [costs.transport, costs.entropic, costs.dual].iter().all(|c| c.is_finite()),
        "case {}",
        case.seed
    );
    assert!(certificate.lower <= certificate.upper, "case {}", case.seed);
    Ending {
        status: summary.status,
        rung: summary.effort.rung,
        n_iters: summary.n_iters,
        n_newton_steps: summary.effort.n_newton_steps,
        seconds,
        violation: violation(&solution, &problem, &case.cost),
        residual: summary.residual,
        resolution: summary.resolution,
        epsilon: summary.epsilon,
        gap: certificate.gap(),
    }
}

fn violation<T: Real>(solution: &Solution<T>, problem: &Problem<T>, cost: &Array2<f64>) -> f64 {
    let (a, b) = (problem.source_weights(), problem.target_weights());
    let (scale, epsilon) = (a.iter().sum::<f64>() / b.iter().sum::<f64>(), solution.epsilon());
    let potentials = solution.potentials();
    let (mut rows, mut columns) = (vec![0.0; a.len()], vec![0.0; b.len()]);
    for ((i, j), c) in cost.indexed_iter() {
        if a[i] * b[j] == 0.0 {
            continue;
        }
        let p = a[i] * b[j] * scale * ((potentials.f[i] + potentials.g[j] - c) / epsilon).exp();
        rows[i] += p;
        columns[j] += p;
    }
    let rows: f64 = rows.iter().zip(a).map(|(p, a)| (p - a).abs()).sum();
    let columns: f64 = columns.iter().zip(b).map(|(p, b)| (p - b * scale).abs()).sum();
    (rows + columns) / a.iter().sum::<f64>()
}

impl Ending {
    /// Solves a case; gives also what should hold however it ended and does not.
    fn of(case: &Case) -> (Self, Vec<&'static str>) {
        let ending = if case.single { solve::<f32>(case) } else { solve::<f64>(case) };
        let known = ending.residual + ending.resolution;
        let entropy = 2.0 * ending.epsilon * ((case.cost.len() as f64).ln() + 1.0);
        let spread = case.ratio() * case.epsilon;
        let slack = 1e-12 * case.cost.iter().fold(0.0, |top: f64, c| top.max(c.abs()));
        let status = match ending.status {
            Status::Converged => ending.residual <= case.tolerance,
            Status::Rounding => ending.residual > case.tolerance && ending.residual <= ending.resolution,
            _ => false,
        };
        let checks = [
            (
                "the plan's marginals are as the residual says",
                ending.violation <= 2.0 * ending.residual + 4.0 * ending.resolution,
            ),
            ("the bounds are close", ending.gap <= entropy + 4.0 * known * spread + slack),
            ("it converged, or rounding is the limit", status),
        ];
        let broken = checks.iter().filter(|(_, holds)| !holds).map(|(what, _)| *what).collect();
        (ending, broken)
    }
}

/// What became of the cases of one order of magnitude of spread over epsilon.
#[derive(Default)]
struct Row {
    statuses: [usize; 4],
    rungs: [usize; 4],
    iters: Vec<usize>,
    newton: usize,
    seconds: f64,
    slowest: f64,
}

impl Row {
    fn add(&mut self, ending: &Ending) {
        self.statuses[match ending.status {
            Status::Converged => 0,
            Status::Rounding => 1,
            Status::IterationLimit => 2,
            _ => 3,
        }] += 1;
        self.rungs[ending.rung as usize] += 1;
        self.iters.push(ending.n_iters);
        self.newton += ending.n_newton_steps;
        self.seconds += ending.seconds;
        self.slowest = self.slowest.max(ending.seconds);
    }
}

/// Runs cases and prints a table; gives those for which something does not hold.
fn run(seeds: std::ops::Range<u64>, largest: usize, seconds: f64) -> Vec<u64> {
    let mut table: BTreeMap<(bool, i32), Row> = BTreeMap::new();
    let (mut others, begin, mut last) = (Vec::new(), Instant::now(), seeds.start);
    for seed in seeds {
        if begin.elapsed().as_secs_f64() > seconds {
            break;
        }
        let case = Case::new(seed, largest);
        let (ending, broken) = Ending::of(&case);
        if !broken.is_empty() {
            println!("case {seed}: not so: {broken:?}\n    {case}\n    {ending:?}");
            others.push(seed);
        }
        let magnitude = case.ratio().max(1e-2).log10().floor() as i32;
        table.entry((case.single, magnitude)).or_default().add(&ending);
        last = seed;
    }
    println!(
        "spread/eps  converged rounding limit stalled | chosen plain log newton | median sweeps, most; Newton steps; s, slowest"
    );
    for ((single, magnitude), row) in &mut table {
        row.iters.sort_unstable();
        println!(
            "{} 1e{magnitude:<3} {:?} | {:?} | {} {}; {}; {:.1} {:.2}",
            if *single { "f32" } else { "f64" },
            row.statuses,
            row.rungs,
            row.iters[row.iters.len() / 2],
            row.iters[row.iters.len() - 1],
            row.newton,
            row.seconds,
            row.slowest
        );
    }
    println!("up to case {last}, {:.0} s; not as they should be: {others:?}", begin.elapsed().as_secs_f64());
    others
}

fn on_one_thread<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap().install(work)
}

#[test]
#[ignore = "takes many minutes"]
fn the_campaign() {
    let range = std::env::var("SWAV_CAMPAIGN").unwrap_or_else(|_| "0..10000".into());
    let (first, end) = range.split_once("..").expect("FIRST..LAST");
    let seconds = std::env::var("SWAV_CAMPAIGN_SECONDS").map_or(f64::INFINITY, |s| s.parse().unwrap());
    let others = on_one_thread(|| run(first.parse().unwrap()..end.parse().unwrap(), 200, seconds));
    assert!(others.is_empty(), "{others:?}");
}

#[test]
fn a_slice_of_the_campaign() {
    let others = on_one_thread(|| run(0..150, 30, f64::INFINITY));
    assert!(others.is_empty(), "{others:?}");
    // One whose kernel in f32 lost numbers that its growing potentials made count.
    assert!(on_one_thread(|| run(8410..8411, 200, f64::INFINITY)).is_empty());
}

#[test]
fn plans_are_those_of_pot_and_optima_those_of_exact_solvers() {
    let cases: serde_json::Value = serde_json::from_str(include_str!("data/pot.json")).unwrap();
    for (k, case) in cases.as_array().unwrap().iter().enumerate() {
        let vector = |key: &str| -> Array1<f64> {
            case[key].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
        };
        let (a, b) = (vector("a"), vector("b"));
        let matrix = |key: &str| {
            let rows = case[key].as_array().unwrap().iter().flat_map(|row| row.as_array().unwrap());
            let values = rows.map(|x| x.as_f64().unwrap()).collect();
            Array2::from_shape_vec((a.len(), b.len()), values).unwrap()
        };
        let (cost, plan, number) = (matrix("cost"), matrix("plan"), |key: &str| case[key].as_f64().unwrap());
        let problem = Problem::from_cost(cost.view(), number("epsilon"))
            .unwrap()
            .with_marginals(a.view(), b.view())
            .unwrap();
        let mut solver = Solver::new(Options::default().tolerance(1e-12)).unwrap();
        let solution = solver.solve(&problem).unwrap().converged().unwrap();
        let got = solution.plan();
        assert!(got.iter().zip(&plan).all(|(p, q)| (p - q).abs() < 1e-10), "case {k}: {got} {plan}");
        let (bounds, optimum) = (solution.certificate().unwrap(), number("optimum"));
        let slack = 1e-12 * cost.iter().fold(0.0, |top: f64, c| top.max(*c));
        assert!(bounds.lower <= optimum + slack && optimum <= bounds.upper + slack, "case {k}: {bounds:?}");
        assert!((exact::optimum(&cost, &a, &b) - optimum).abs() <= 10.0 * slack, "case {k}");
    }
}

fn random(n: usize, m: usize, seed: u64) -> (Array2<f64>, Array1<f64>, Array1<f64>) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let cost = Array2::from_shape_simple_fn((n, m), || rng.random_range(0.0..1.0));
    let mut weights = |n: usize| {
        let weights = Array1::from_shape_simple_fn(n, || rng.random_range(0.01..1.0));
        let total = weights.sum();
        weights / total
    };
    let (a, b) = (weights(n), weights(m));
    (cost, a, b)
}

#[test]
fn small_epsilons_converge_for_every_seed() {
    for (scale, epsilon, seeds) in [(1000.0, 1.0, 12), (1000.0, 0.1, 12), (1000.0, 1e-3, 4)] {
        for seed in 0..seeds {
            let (cost, a, b) = random(20, 30, seed);
            let cost = cost * scale;
            let problem =
                Problem::from_cost(cost.view(), epsilon).unwrap().with_marginals(a.view(), b.view()).unwrap();
            let mut solver = Solver::new(Options::default()).unwrap();
            let solution = solver.solve(&problem).unwrap().converged().unwrap();
            let (bounds, optimum) = (solution.certificate().unwrap(), exact::optimum(&cost, &a, &b));
            assert!(bounds.lower <= optimum && optimum <= bounds.upper, "{bounds:?} {optimum}");
            assert!(bounds.gap() < 2.0 * epsilon * 7.4 + 0.01, "seed {seed}: {bounds:?}");
        }
    }
    for seed in 0..60 {
        let (cost, a, b) = random(20, 30, seed);
        let (cost, a, b) = (cost.mapv(|c| c as f32), a.mapv(|w| w as f32), b.mapv(|w| w as f32));
        let problem =
            Problem::from_cost(cost.view(), 1e-4).unwrap().with_marginals(a.view(), b.view()).unwrap();
        let mut solver = Solver::new(Options::default().tolerance(1e-5)).unwrap();
        let _ = solver.solve(&problem).unwrap().converged().unwrap();
    }
}

#[test]
fn as_many_sweeps_as_a_solve_took_are_enough() {
    for seed in 0..30 {
        let (cost, a, b) = random(11, 13, seed);
        let epsilon = [0.05, 1e-3, 1e-5][seed as usize % 3];
        let problem =
            Problem::from_cost(cost.view(), epsilon).unwrap().with_marginals(a.view(), b.view()).unwrap();
        let options = Options::default();
        let once = Solver::new(options).unwrap().solve(&problem).unwrap().converged().unwrap();
        let options = options.max_iters(once.n_iters());
        let again = Solver::new(options).unwrap().solve(&problem).unwrap().converged().unwrap();
        assert_eq!(once.potentials(), again.potentials(), "seed {seed}, {} sweeps", once.n_iters());
        // And with fewer, the best at the problem's epsilon is given.
        let options = options.max_iters(once.n_iters() - 1);
        let short = Solver::new(options).unwrap().solve(&problem).unwrap();
        assert_eq!(short.status(), Status::IterationLimit);
        let at_last = short.history().iter().filter(|record| record.epsilon == epsilon);
        assert_eq!(short.residual(), at_last.map(|record| record.residual).fold(f64::INFINITY, f64::min));
    }
}

#[test]
fn what_rounding_does_not_allow_is_told_apart_from_what_takes_longer() {
    let (cost, a, b) = random(12, 9, 5);
    let problem = |epsilon| {
        Problem::from_cost(cost.view(), epsilon).unwrap().with_marginals(a.view(), b.view()).unwrap()
    };
    let solve =
        |epsilon, options: Options| Solver::new(options).unwrap().solve(&problem(epsilon)).unwrap().summary();
    // No residual is as small as this.
    let rounding = solve(1e-6, Options::default().tolerance(1e-15));
    assert_eq!(rounding.status, Status::Rounding);
    assert!(rounding.residual <= rounding.resolution && rounding.resolution < 1e-8, "{rounding:?}");
    let plain = Options::default().acceleration(Acceleration::Off).fallback(Fallback::Off);
    assert_eq!(solve(1e-6, plain.max_iters(400)).status, Status::IterationLimit);
    // A window of one sweep is a request to stop early; there rounding is not at fault.
    let stalled = solve(1e-3, plain.stall_window(1).stall_fall(0.9).annealing(Annealing::Off));
    assert_eq!((stalled.status, stalled.effort.rung), (Status::Stalled, Rung::Chosen));
    // What is beyond single precision sums is reached on logarithms, and the effort says so.
    let (cost, a, b) = (cost.mapv(|c| c as f32), a.mapv(|w| w as f32), b.mapv(|w| w as f32));
    let single = Problem::from_cost(cost.view(), 0.05).unwrap().with_marginals(a.view(), b.view()).unwrap();
    let exact = Options::default().tolerance(1e-11);
    let summary = Solver::new(exact).unwrap().solve(&single).unwrap().converged().unwrap().summary();
    assert_eq!((summary.method, summary.effort.rung), (Method::Log, Rung::Logarithmic));
    assert!(summary.effort.n_kernel_sweeps > 0 && summary.effort.n_log_sweeps > 0, "{summary:?}");
    let kept = Solver::new(exact.fallback(Fallback::Off)).unwrap().solve(&single).unwrap().summary();
    assert!(matches!(kept.status, Status::Rounding) && kept.method == Method::Scaling, "{kept:?}");
}

#[test]
fn an_epsilon_below_what_the_type_resolves_is_its_limit() {
    let (cost, a, b) = random(8, 6, 3);
    let optimum = exact::optimum(&cost, &a, &b);
    let weights = [0.5, 0.5];
    for epsilon in [5e-324, 1e-310, 1e-200, 1e-20] {
        let problem =
            Problem::from_cost(cost.view(), epsilon).unwrap().with_marginals(a.view(), b.view()).unwrap();
        for method in [Method::Auto, Method::Log, Method::Stabilised] {
            let mut solver = Solver::new(Options::default().method(method)).unwrap();
            let solution = solver.solve(&problem).unwrap();
            let costs = solution.costs();
            assert!(
                (costs.transport - optimum).abs() < 1e-2 && costs.dual.is_finite(),
                "{costs:?} {optimum}"
            );
            let bounds = solution.certificate().unwrap();
            assert!(bounds.lower <= optimum && optimum <= bounds.upper && bounds.gap() < 1e-2, "{bounds:?}");
            assert!(solution.epsilon() > epsilon && solution.plan().iter().all(|p| p.is_finite()));
        }
        for relaxed in [problem.clone().relax(0.5), problem.clone().partial(0.4)] {
            let relaxed = relaxed.unwrap();
            let mut solver = Solver::new(Options::default()).unwrap();
            let costs = solver.solve(&relaxed).unwrap().costs();
            assert!(costs.entropic.is_finite() && costs.dual.is_finite(), "{costs:?}");
        }
        let points =
            Problem::from_points(cost.view(), cost.view(), PointCost::SquaredEuclidean, epsilon).unwrap();
        let mut solver = Solver::new(Options::default()).unwrap();
        let divergence = sinkhorn_divergence(&points, &mut solver).unwrap();
        assert!(divergence.value.abs() < 1e-2, "{divergence:?}");
        let square = random(6, 6, 4).0;
        let histograms = ndarray::stack(ndarray::Axis(1), &[b.view(), b.view()]).unwrap();
        let options = BarycentreOptions::new(epsilon).max_iters(200);
        let mean = barycentre(square.view(), histograms.view(), ndarray::aview1(&weights), options).unwrap();
        assert!(mean.weights.iter().all(|w| w.is_finite()) && (mean.weights.sum() - 1.0).abs() < 1e-9);
    }
}

#[test]
fn an_infinite_cost_forbids_its_pair() {
    for seed in 0..6 {
        let (mut cost, a, b) = random(9, 12, seed);
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        // A chain of allowed pairs keeps it feasible: the rest is forbidden or not.
        cost.indexed_iter_mut()
            .filter(|((i, j), _)| *j != *i && *i != 0 && *j != 0 && rng.random_bool(0.5))
            .for_each(|(_, c)| *c = f64::INFINITY);
        let optimum = exact::optimum(&cost, &a, &b);
        let scores = -&cost;
        let (x, y) = (
            Array2::from_shape_fn((9, 1), |(i, _)| i as f64),
            Array2::from_shape_fn((12, 1), |(j, _)| j as f64),
        );
        let of_indices = |x: ArrayView1<f64>, y: ArrayView1<f64>| cost[[x[0] as usize, y[0] as usize]];
        for epsilon in [0.1, 1e-3] {
            let problems = [
                Problem::from_masked_cost(cost.view(), epsilon),
                Problem::from_masked_scores(scores.view(), epsilon),
                Problem::from_points(x.view(), y.view(), PointCost::Custom(&of_indices), epsilon),
            ];
            let plans = problems.map(|problem| {
                let problem = problem.unwrap().with_marginals(a.view(), b.view()).unwrap();
                let mut solver = Solver::new(Options::default().tolerance(1e-10)).unwrap();
                let solution = solver.solve(&problem).unwrap().converged().unwrap();
                let costs = solution.costs();
                assert!((costs.entropic - costs.dual).abs() < 1e-7, "{costs:?}");
                assert!(costs.transport >= optimum - 1e-9 && costs.transport < optimum + 10.0 * epsilon);
                assert!(matches!(solution.certificate(), Err(OtError::Unsupported { .. })));
                let plan = solution.plan();
                assert!(plan.iter().zip(&cost).all(|(p, c)| c.is_finite() || *p == 0.0));
                plan
            });
            for plan in &plans[1..] {
                assert!(plan.iter().zip(&plans[0]).all(|(p, q)| (p - q).abs() < 1e-8));
            }
        }
    }
}

#[test]
fn forbidden_pairs_that_leave_no_plan_are_an_error() {
    let none = f64::INFINITY;
    let solve = |cost: &Array2<f64>, a: &[f64], b: &[f64]| {
        let problem = Problem::from_masked_cost(cost.view(), 0.1).unwrap();
        let problem = problem.with_marginals(ndarray::aview1(a), ndarray::aview1(b)).unwrap();
        let mut solver = Solver::new(Options::default()).unwrap();
        solver.solve(&problem).map(|solution| {
            (
                solution.plan(),
                solution.costs(),
                solution.barycentric(cost.slice(ndarray::s![0..1, ..]).mapv(|_| 1.0).t()).unwrap(),
            )
        })
    };
    // Two blocks whose masses differ.
    let blocks = ndarray::array![[0.0, 1.0, none], [1.0, 0.0, none], [none, none, 0.5]];
    match solve(&blocks, &[0.3, 0.3, 0.4], &[0.3, 0.2, 0.5]) {
        Err(OtError::Infeasible { expected, got }) => {
            assert!((expected - 1.0).abs() + (got - 0.9).abs() < 1e-9)
        }
        other => panic!("{other:?}"),
    }
    assert!(solve(&blocks, &[0.3, 0.3, 0.4], &[0.4, 0.2, 0.4]).is_ok());
    // Points without weight may be without partners.
    let padded = ndarray::array![[0.0, 1.0, none], [1.0, 0.0, none], [none, none, none]];
    let (plan, costs, means) = solve(&padded, &[0.4, 0.6, 0.0], &[0.5, 0.5, 0.0]).unwrap();
    assert!(plan.row(2).sum() == 0.0 && costs.dual.is_finite() && means[[2, 0]] == 0.0, "{plan} {costs:?}");
    let all = Array2::from_elem((3, 3), none);
    assert!(matches!(solve(&all, &[0.4, 0.6, 0.0], &[0.5, 0.5, 0.0]), Err(OtError::Infeasible { .. })));
    // Without being asked to, an infinity is refused; so are others in any case.
    assert!(matches!(Problem::from_cost(blocks.view(), 0.1), Err(OtError::NotFinite { .. })));
    assert!(matches!(Problem::from_masked_cost((-&blocks).view(), 0.1), Err(OtError::NotFinite { .. })));
    assert!(matches!(Problem::from_masked_scores(blocks.view(), 0.1), Err(OtError::NotFinite { .. })));
    let x = Array2::<f64>::zeros((2, 1));
    for wrong in [f64::NAN, f64::NEG_INFINITY] {
        let cost = |_: ArrayView1<f64>, _: ArrayView1<f64>| wrong;
        let problem = Problem::from_points(x.view(), x.view(), PointCost::Custom(&cost), 0.1).unwrap();
        let error = Solver::new(Options::default()).unwrap().solve(&problem).unwrap_err();
        assert!(matches!(&error, OtError::NotFinite { index, .. } if index == &[0, 0]), "{error}");
    }
    // Relaxed marginals leave such points alone, exact ones beside them do not.
    let lonely = ndarray::array![[0.0, none], [none, none]];
    let half = Problem::from_masked_cost(lonely.view(), 0.1).unwrap().relax_target(1.0).unwrap();
    let error = Solver::new(Options::default()).unwrap().solve(&half).unwrap_err();
    assert!(matches!(error, OtError::Infeasible { expected: 1.0, got: 0.5 }), "{error}");
    let problem = Problem::from_masked_cost(lonely.view(), 0.1).unwrap().relax(1.0).unwrap();
    let mut solver = Solver::new(Options::default()).unwrap();
    let solution = solver.solve(&problem).unwrap().converged().unwrap();
    let costs = solution.costs();
    assert!((costs.entropic - costs.dual).abs() < 1e-6 && solution.plan()[[1, 1]] == 0.0, "{costs:?}");
}
