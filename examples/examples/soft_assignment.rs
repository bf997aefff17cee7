//! Assigns requests to servers of limited capacity, each to several in proportion.
//!
//! ```text
//! cargo run --release -p swav-examples --example soft_assignment
//! ```
//! Scores say how well a server suits a request. A softmax of the scores overloads the popular servers; transport with
//! the capacities as marginal does not. Letting 80 of 100 requests go where they fit best is a partial problem.

use anyhow::Result;
use ndarray::{Array1, Array2, array};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use swav_ot::{Options, Problem, Solver};

const REQUESTS: usize = 100;
const EPSILON: f64 = 0.1;

fn main() -> Result<()> {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    // Server 0 suits everybody, server 3 hardly anybody.
    let popularity = [0.6, 0.3, 0.1, -0.2];
    let scores = Array2::from_shape_fn((REQUESTS, 4), |(_, s)| popularity[s] + rng.random_range(-0.5..0.5));
    let demand = Array1::from_elem(REQUESTS, 1.0);
    let capacity = array![20.0, 20.0, 30.0, 30.0];
    let mut solver = Solver::new(Options::default().tolerance(1e-9))?;

    let mut softmax = scores.mapv(|s: f64| (s / EPSILON).exp());
    for mut row in softmax.rows_mut() {
        let total = row.sum();
        row /= total;
    }
    report("softmax", &softmax, &scores);

    let problem =
        Problem::from_scores(scores.view(), EPSILON)?.with_marginals(demand.view(), capacity.view())?;
    let plan = solver.solve(&problem)?.converged()?.plan();
    report("capacities", &plan, &scores);

    // Capacities as bounds, and only 80 requests served.
    let plan = solver.solve(&problem.partial(80.0)?)?.plan();
    report("80 served", &plan, &scores);
    Ok(())
}

fn report(name: &str, plan: &Array2<f64>, scores: &Array2<f64>) {
    let load = plan.sum_axis(ndarray::Axis(0));
    let mean = (plan * scores).sum() / plan.sum();
    println!("{name:>10}: load {load:5.1}, mean score {mean:.3}");
}
