//! Everything that can be wrong with a problem, an option or a solve.

use crate::collective::CollectiveError;

/// Why a problem was refused or a solve could not give finite numbers.
///
/// Not reaching the tolerance is no error: see [`Status`](crate::Status).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OtError {
    /// An array has another shape than the problem needs.
    #[error("{what}: expected shape {expected:?}, got {got:?}")]
    Shape {
        /// Which array.
        what: &'static str,
        /// The shape it should have.
        expected: Vec<usize>,
        /// The shape it has.
        got: Vec<usize>,
    },
    /// A dimension that must be at least 1 is 0.
    #[error("{what}: expected at least one element, got none")]
    Empty {
        /// Which array or dimension.
        what: &'static str,
    },
    /// An input holds NaN or an infinity.
    #[error("{what}: expected finite numbers, got {value} at {index:?}")]
    NotFinite {
        /// Which array.
        what: &'static str,
        /// The first such place.
        index: Vec<usize>,
        /// What stands there.
        value: f64,
    },
    /// A weight is negative.
    #[error("{what}: expected weights of at least 0, got {value} at {index}")]
    NegativeWeight {
        /// Which marginal.
        what: &'static str,
        /// The first such place.
        index: usize,
        /// What stands there.
        value: f64,
    },
    /// A marginal without mass.
    #[error("{what}: expected a positive total mass, got weights that sum to {total}")]
    NoMass {
        /// Which marginal.
        what: &'static str,
        /// The sum of its weights.
        total: f64,
    },
    /// Two marginals that must balance do not have the same mass.
    #[error("expected marginals of equal mass, got {source_mass} and {target_mass}")]
    Unbalanced {
        /// Total of the first marginal.
        source_mass: f64,
        /// Total of the second marginal.
        target_mass: f64,
    },
    /// A parameter is outside its range.
    #[error("{name}: expected {expected}, got {got}")]
    Parameter {
        /// Its name.
        name: &'static str,
        /// Its range.
        expected: &'static str,
        /// Its value.
        got: f64,
    },
    /// The scaling domain cannot hold `exp(-cost / epsilon)`.
    #[error(
        "costs spread over {range:.3e} times epsilon, more than {limit} that the scaling domain can hold in this \
         type; use Method::Auto, Method::Stabilised or Method::Log"
    )]
    ScalingRange {
        /// `(max - min) / epsilon` of the costs.
        range: f64,
        /// The largest that is safe.
        limit: f64,
    },
    /// The pairs that are not forbidden cannot carry the mass.
    #[error(
        "the forbidden pairs leave no plan: expected a mass of {expected} to be movable between the allowed ones, \
         got {got}"
    )]
    Infeasible {
        /// The mass that has to be moved.
        expected: f64,
        /// The most that can be.
        got: f64,
    },
    /// A number of the solve left the range of its type.
    #[error(
        "{what} is not finite after {n_iters} iterations: the costs or potentials exceed the type's range"
    )]
    Overflow {
        /// Which quantity.
        what: &'static str,
        /// Iterations done until then.
        n_iters: usize,
    },
    /// A strict accessor was asked for a solution that did not converge.
    #[error(
        "not converged after {n_iters} iterations: {status}; residual {residual:.3e}, tolerance {tolerance:.3e}"
    )]
    NotConverged {
        /// How the solve ended.
        status: crate::Status,
        /// Iterations done.
        n_iters: usize,
        /// The lowest residual.
        residual: f64,
        /// The residual asked for.
        tolerance: f64,
    },
    /// An operation that this kind of problem does not have.
    #[error("{operation} is not defined for {problem}")]
    Unsupported {
        /// What was asked.
        operation: &'static str,
        /// Of what.
        problem: &'static str,
    },
    /// The caller's all-reduce failed.
    #[error("the all-reduce between the shards failed")]
    Collective(#[source] CollectiveError),
}

/// Checks that a parameter is finite and above 0.
pub(crate) fn positive(name: &'static str, value: f64) -> Result<f64, OtError> {
    if value.is_finite() && value > 0.0 {
        Ok(value)
    } else {
        Err(OtError::Parameter { name, expected: "a finite number above 0", got: value })
    }
}
