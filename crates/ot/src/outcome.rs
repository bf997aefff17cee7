//! Where a solve starts from, and how it ended.

use ndarray::Array1;

use crate::options::Method;

/// Dual potentials in cost units: the plan is `a_i b_j exp((f_i + g_j - C_ij) / epsilon)`. They are double precision
/// for `f32` problems too, so that they can start a solve in another precision or with another epsilon.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Potentials {
    /// One for each source.
    pub f: Array1<f64>,
    /// One for each target.
    pub g: Array1<f64>,
}

impl Potentials {
    /// All zero.
    pub fn zeros(n_sources: usize, n_targets: usize) -> Self {
        Self { f: Array1::zeros(n_sources), g: Array1::zeros(n_targets) }
    }
}

/// How a solve ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Status {
    /// The residual is within the tolerance.
    Converged,
    /// The iteration limit came first.
    IterationLimit,
    /// The residual stopped falling above the tolerance: rounding does not let it.
    Stalled,
}

/// Where the iterations start from.
#[derive(Clone, Copy, Debug)]
pub enum Start<'s> {
    /// Zero potentials.
    Zero,
    /// The potentials of a similar problem. Only those of one side are read: the first update makes the others.
    From(&'s Potentials),
    /// Whatever the output holds: for [`Solver::solve_into`](crate::Solver::solve_into).
    Output,
}

/// What a solve into the caller's memory tells.
#[derive(Clone, Copy, Debug, PartialEq)]
#[must_use]
pub struct Summary {
    /// How it ended.
    pub status: Status,
    /// Sweeps done, over all stages.
    pub n_iters: usize,
    /// The last residual, relative to the source's mass.
    pub residual: f64,
    /// The arithmetic that was chosen; never `Auto`.
    pub method: Method,
    /// Mass of the plan.
    pub mass: f64,
}

/// The residual after one sweep.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Record {
    /// Epsilon of the stage.
    pub epsilon: f64,
    /// Residual, relative to the source's mass.
    pub residual: f64,
}
