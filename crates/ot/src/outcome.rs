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

/// How a solve ended. Whatever it was, the iterate of the lowest residual is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
#[non_exhaustive]
pub enum Status {
    /// The residual is within the tolerance.
    Converged,
    /// The iteration limit came first: more iterations would have helped.
    IterationLimit,
    /// There was no more progress, on any rung that was allowed, although rounding would let the residual fall further.
    Stalled,
    /// The residual is above the tolerance and at most [`Summary::resolution`]: rounding does not let it fall further.
    Rounding,
}

impl std::fmt::Display for Status {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Converged => "converged",
            Self::IterationLimit => "the iteration limit came first",
            Self::Stalled => "no more progress",
            Self::Rounding => "rounding lets the residual fall no further",
        })
    }
}

/// What a solve turns to, in this order, where its residual no longer falls; see
/// [`Fallback`](crate::Fallback).
///
/// In between, a kernel whose numbers near the limits of the type absorbs the potentials
/// ([`Method::Stabilised`], whatever was chosen).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Rung {
    /// The method and the acceleration of the options.
    #[default]
    Chosen,
    /// No acceleration.
    Plain,
    /// Sweeps on logarithms with sums in double precision, for `f32` costs too.
    Logarithmic,
    /// Newton's method on the dual objective along a path of falling epsilons, damped, with a sweep after each step. Of
    /// problems with exact marginals that are not sharded and have at most 1024 targets (sources, where costs lie in
    /// memory column by column). A step takes roughly as long as a twelfth of that number of sweeps.
    Newton,
}

/// What a solve took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Effort {
    /// The last rung of the ladder that was needed.
    pub rung: Rung,
    /// Sweeps over a stored kernel.
    pub n_kernel_sweeps: usize,
    /// Sweeps on logarithms, with those that absorb potentials, which are in no history.
    pub n_log_sweeps: usize,
    /// Kernels that absorbed potentials.
    pub n_absorptions: usize,
    /// Accelerated steps that were taken back.
    pub n_taken_back: usize,
    /// Newton steps.
    pub n_newton_steps: usize,
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
    /// The residual of what is given, the lowest at the problem's epsilon; relative to the source's mass.
    pub residual: f64,
    /// What rounding lets the residual be known to: about the unit in the last place of a potential over epsilon.
    pub resolution: f64,
    /// The epsilon that the potentials belong to: the problem's, or the smallest that double precision resolves at costs
    /// of this size (their largest absolute value times 2^-40) where that is larger. Below it the plan would not change.
    pub epsilon: f64,
    /// The arithmetic that the result comes from; never `Auto`.
    pub method: Method,
    /// Mass of the plan.
    pub mass: f64,
    /// What the solve took.
    pub effort: Effort,
}

/// The residual after one sweep.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Record {
    /// Epsilon of the stage.
    pub epsilon: f64,
    /// Residual, relative to the source's mass.
    pub residual: f64,
}
