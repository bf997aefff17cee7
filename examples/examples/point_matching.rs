//! Matches two point clouds and proves how good the match is.
//!
//! ```text
//! cargo run --release -p swav-examples --example point_matching
//! ```
//! The second cloud is the first, rotated a little, with noise and in another order. The certificate bounds the cost of
//! the best possible match from below and above; a smaller epsilon closes the gap.

use anyhow::Result;
use ndarray::Array2;
use rand::{Rng, SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use swav_ot::{Options, PointCost, Potentials, Problem, Solver, Start};

const POINTS: usize = 400;

fn main() -> Result<()> {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let x = Array2::from_shape_simple_fn((POINTS, 2), || rng.random_range(-1.0..1.0f64));
    let mut order: Vec<usize> = (0..POINTS).collect();
    order.shuffle(&mut rng);
    let (sin, cos) = 0.02f64.sin_cos();
    let y = Array2::from_shape_fn((POINTS, 2), |(j, d)| {
        let (p, q) = (x[[order[j], 0]], x[[order[j], 1]]);
        let turned = if d == 0 { cos * p - sin * q } else { sin * p + cos * q };
        turned + rng.random_range(-0.005..0.005)
    });

    let mut solver = Solver::new(Options::default().tolerance(1e-5))?;
    let mut start: Option<Potentials> = None;
    println!("{:>8} {:>7} {:>12} {:>12} {:>9}", "epsilon", "sweeps", "at least", "at most", "correct");
    for epsilon in [0.1, 0.01, 0.001, 0.0002] {
        let problem = Problem::from_points(x.view(), y.view(), PointCost::SquaredEuclidean, epsilon)?;
        // Potentials are in cost units, so those of one epsilon are a good start for the next.
        let from = start.as_ref().map_or(Start::Zero, Start::From);
        let solution = solver.solve_from(&problem, from)?;
        let bounds = solution.certificate()?;
        let matched = solution.round()?.strongest_targets();
        let correct = (0..POINTS).filter(|&i| order[matched[i]] == i).count();
        println!(
            "{epsilon:>8} {:>7} {:>12.6} {:>12.6} {correct:>5}/{POINTS}",
            solution.n_iters(),
            bounds.lower,
            bounds.upper
        );
        start = Some(solution.into_potentials());
    }
    Ok(())
}
