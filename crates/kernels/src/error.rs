//! The errors of this crate.

/// What can be wrong with a call.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A buffer or tensor does not have the size that the operation needs.
    #[error("{what}: expected {expected}, got {got}")]
    Shape {
        /// The argument that is wrong.
        what: String,
        /// What the operation needs.
        expected: String,
        /// What the caller passed.
        got: String,
    },
    /// Training-mode batch norm needs more than one value per channel.
    #[error("batch norm in training mode needs at least 2 values per channel, got {got}")]
    TooFewForBatchNorm {
        /// Values per channel in the batch (images × height × width).
        got: usize,
    },
    /// The instruction set asked for is not available on this machine.
    #[error("instruction set {name} is not available here; expected one of: {available}")]
    Isa {
        /// The name asked for.
        name: String,
        /// The names that would work.
        available: String,
    },
    /// Sums over processes failed, see [`SumAcross`](crate::SumAcross).
    #[error("batch norm's sums over all processes failed")]
    SumAcross {
        /// What kept the processes from adding up.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl Error {
    /// A [`Error::Shape`] from displayable parts.
    pub(crate) fn shape(
        what: impl Into<String>,
        expected: impl std::fmt::Debug,
        got: impl std::fmt::Debug,
    ) -> Self {
        Error::Shape { what: what.into(), expected: format!("{expected:?}"), got: format!("{got:?}") }
    }
}
