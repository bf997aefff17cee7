//! What can go wrong: shapes that do not fit, values that are not numbers.

/// An input that the prototype layer or the queue cannot take.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PrototypeError {
    /// There is no head, or a head without prototypes, or the dimension is zero.
    #[error("{what}: expected at least 1, got 0")]
    Empty {
        /// Which count is zero.
        what: &'static str,
    },
    /// Two extents that have to agree do not.
    #[error("{what}: expected {expected}, got {got}")]
    Shape {
        /// Which extent it is.
        what: &'static str,
        /// The extent that fits.
        expected: usize,
        /// The extent that came.
        got: usize,
    },
    /// The head does not exist.
    #[error("head: expected a number below {n_heads}, got {head}")]
    NoSuchHead {
        /// The index that was asked for.
        head: usize,
        /// How many heads there are.
        n_heads: usize,
    },
    /// A weight is infinite or not a number.
    #[error("prototype {row} of head {head}: expected finite numbers, got {got}")]
    NotFinite {
        /// The head.
        head: usize,
        /// The prototype's index in it.
        row: usize,
        /// The value found there.
        got: f32,
    },
    /// The queue cannot hold a whole number of batches.
    #[error("queue length: expected a positive multiple of the batch size {batch_size}, got {length}")]
    QueueLength {
        /// Rows of the queue.
        length: usize,
        /// Rows of a batch.
        batch_size: usize,
    },
}
