//! What can go wrong: shapes that do not fit, values that are not numbers.

/// An input that the prototype layer or the queue cannot take.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PrototypeError {
    /// There is no head, or a head without prototypes, or the dimension is zero.
    #[error("{what} has to be at least 1, got 0")]
    Empty {
        /// Which count is zero.
        what: &'static str,
    },
    /// Two extents that have to agree do not.
    #[error("{what}: expected {expected}, got {actual}")]
    Shape {
        /// Which extent it is.
        what: &'static str,
        /// The extent that fits.
        expected: usize,
        /// The extent that came.
        actual: usize,
    },
    /// The head does not exist.
    #[error("head {head} does not exist, there are {n_heads}")]
    NoSuchHead {
        /// The index that was asked for.
        head: usize,
        /// How many heads there are.
        n_heads: usize,
    },
    /// A weight is infinite or not a number.
    #[error("prototype {row} of head {head} holds a value that is not finite")]
    NotFinite {
        /// The head.
        head: usize,
        /// The prototype's index in it.
        row: usize,
    },
    /// The queue cannot hold a whole number of batches.
    #[error("a queue of {length} rows is not a positive multiple of the batch size {batch_size}")]
    QueueLength {
        /// Rows of the queue.
        length: usize,
        /// Rows of a batch.
        batch_size: usize,
    },
}
