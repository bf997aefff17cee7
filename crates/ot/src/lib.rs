//! Entropic optimal transport: certified, sharded, deterministic.

mod chunks;
mod codes;
mod collective;
mod error;
mod real;
mod simd;

pub use codes::{Codes, codes};
pub use collective::{Alone, Collective, CollectiveError};
pub use error::OtError;
pub use real::Real;

/// How a solve ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Status {
    /// The residual is within the tolerance.
    Converged,
    /// The iteration limit came first.
    IterationLimit,
    /// The residual stopped falling above the tolerance: rounding of the type does not let it.
    Stalled,
}
