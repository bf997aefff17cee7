//! What can go wrong in an optimiser that knows its parameters by name.

use thiserror::Error;

/// An error of an [`Optimizer`](crate::Optimizer).
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum OptimError {
    /// A gradient, or what the optimiser remembers, is of another length than the parameter.
    #[error("{what} of `{name}`: expected {expected} values, got {got}")]
    Length {
        /// The gradient or a slot.
        what: &'static str,
        /// The parameter's name.
        name: String,
        /// The parameter's length.
        expected: usize,
        /// The length given.
        got: usize,
    },
    /// A name that occurs twice in one update.
    #[error("update: expected each parameter once, got `{name}` twice")]
    Twice {
        /// The parameter's name.
        name: String,
    },
}
