//! Many problems in one call.

use ndarray::{ArrayView3, Axis};
use rayon::prelude::*;

use crate::error::OtError;
use crate::options::Options;
use crate::problem::Problem;
use crate::real::Real;
use crate::solution::Solution;
use crate::solver::Solver;

/// One problem for each matrix of `costs` (problems, n, m), with uniform marginals; set others problem by problem.
///
/// # Errors
/// As [`Problem::from_cost`].
pub fn problems_from_costs<'a, T: Real>(
    costs: ArrayView3<'a, T>,
    epsilon: f64,
) -> Result<Vec<Problem<'a, T>>, OtError> {
    (0..costs.len_of(Axis(0)))
        .map(|k| Problem::from_cost(costs.index_axis_move(Axis(0), k), epsilon))
        .collect()
}

/// Solves many problems, spread over threads. Each result has the same bits as if solved alone. Suited to many
/// small problems, where one problem alone could not keep several threads busy.
///
/// # Errors
/// The first error in the order of the problems; see [`Solver::solve`].
pub fn solve_batch<'p, 'a, T: Real>(
    problems: &'p [Problem<'a, T>],
    options: Options,
) -> Result<Vec<Solution<'p, 'a, T>>, OtError> {
    let solver = Solver::new(options)?;
    let results: Vec<_> =
        problems.par_iter().map_init(|| solver.clone(), |solver, problem| solver.solve(problem)).collect();
    results.into_iter().collect()
}
