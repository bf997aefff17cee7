//! Criterion benches of entropic transport: SwAV's codes, and general problems in every domain.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ndarray::Array2;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use swav_ot::{Acceleration, Codes, Method, Norm, Options, PointCost, Potentials, Problem, Solver, Start};

fn uniform(n: usize, m: usize, low: f64, high: f64) -> Array2<f64> {
    let mut rng = ChaCha8Rng::seed_from_u64((n * 31 + m) as u64);
    Array2::from_shape_simple_fn((n, m), || rng.random_range(low..high))
}

/// SwAV's case: 3000 prototypes, 3 iterations, f32.
fn codes(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("codes");
    group.sample_size(20);
    for batch in [64, 256, 4096] {
        let scores = uniform(batch, 3000, -0.4, 0.4).mapv(|s| s as f32);
        let mut out = scores.clone();
        let mut codes = Codes::new(0.05, 3).expect("a valid epsilon");
        group.throughput(Throughput::Elements(scores.len() as u64));
        group.bench_function(BenchmarkId::from_parameter(batch), |bencher| {
            bencher.iter(|| codes.assign_into(scores.view(), out.view_mut()).expect("finite scores"));
        });
    }
    group.finish();
}

/// 1000 x 1000 points to an L2 residual of 1e-6, f64.
fn general(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("general-1000");
    group.sample_size(10);
    let (x, y) = (uniform(1000, 3, 0.0, 1.0), uniform(1000, 3, 0.1, 1.1));
    let cost = Array2::from_shape_fn((1000, 1000), |(i, j)| {
        (0..3).map(|d| (x[[i, d]] - y[[j, d]]).powi(2)).sum::<f64>()
    });
    let epsilon = 0.01 * cost.iter().copied().fold(0.0, f64::max);
    let by_cost = Problem::from_cost(cost.view(), epsilon).expect("finite costs");
    let by_points = Problem::from_points(x.view(), y.view(), PointCost::SquaredEuclidean, epsilon)
        .expect("finite points");
    for (name, problem, method) in [
        ("scaling", &by_cost, Method::Scaling),
        ("stabilised", &by_cost, Method::Stabilised),
        ("log", &by_cost, Method::Log),
        ("points", &by_points, Method::Auto),
    ] {
        let options = Options::default().method(method).norm(Norm::L2);
        let mut solver = Solver::new(options).expect("valid options");
        let mut out = Potentials::zeros(1000, 1000);
        group.bench_function(name, |bencher| {
            bencher.iter(|| solver.solve_into(problem, Start::Zero, &mut out).expect("a solvable problem"));
        });
    }
    group.finish();
}

/// Ten plain sweeps: their time is to grow linearly with the number of elements.
fn sweeps(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("ten-sweeps-f32");
    group.sample_size(10);
    for n in [250, 500, 1000, 2000] {
        let cost = uniform(n, n, 0.0, 1.0).mapv(|c| c as f32);
        let problem = Problem::from_cost(cost.view(), 0.05).expect("finite costs");
        let options = Options::default().acceleration(Acceleration::Off).tolerance(1e-30).max_iters(10);
        let mut solver = Solver::new(options).expect("valid options");
        let mut out = Potentials::zeros(n, n);
        group.throughput(Throughput::Elements((n * n) as u64));
        group.bench_function(BenchmarkId::from_parameter(n), |bencher| {
            bencher.iter(|| solver.solve_into(&problem, Start::Zero, &mut out).expect("a solvable problem"));
        });
    }
    group.finish();
}

criterion_group!(benches, codes, general, sweeps);
criterion_main!(benches);
