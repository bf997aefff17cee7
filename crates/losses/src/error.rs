//! What can go wrong: parameters out of range, shapes that do not fit.

/// An input that the loss cannot take.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum LossError {
    /// The temperature does not allow a softmax.
    #[error("temperature has to be finite and above 0, got {0}")]
    Temperature(f32),
    /// Swapping needs two crops at least.
    #[error("swapped prediction needs at least 2 crops, got {0}")]
    TooFewCrops(usize),
    /// The assignment crops are not distinct crops.
    #[error("assignment crops have to be distinct, at least one, and below {n_crops}; got {assign:?}")]
    AssignmentCrops {
        /// Crops of each image.
        n_crops: usize,
        /// What came.
        assign: Vec<usize>,
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
    /// The scores have no rows or no columns, or not a whole number of rows a crop.
    #[error(
        "scores of {n_rows} rows and {n_columns} columns are not the same number of samples for {n_crops} crops"
    )]
    Scores {
        /// Rows that came.
        n_rows: usize,
        /// Columns that came.
        n_columns: usize,
        /// Crops of each image.
        n_crops: usize,
    },
}
