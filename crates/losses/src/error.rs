//! What can go wrong: parameters out of range, shapes that do not fit.

/// An input that the loss cannot take.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum LossError {
    /// The temperature does not allow a softmax.
    #[error("temperature: expected a finite number above 0, got {got}")]
    Temperature {
        /// The temperature that came.
        got: f32,
    },
    /// Swapping needs two crops at least.
    #[error("crops of each image: expected at least 2, since one predicts the other, got {got}")]
    TooFewCrops {
        /// The number of crops that came.
        got: usize,
    },
    /// The assignment crops are not distinct crops.
    #[error("assignment crops: expected at least one, all distinct and below {n_crops}, got {got:?}")]
    AssignmentCrops {
        /// Crops of each image.
        n_crops: usize,
        /// What came.
        got: Vec<usize>,
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
    /// The scores have no rows or no columns, or not the same whole number of rows for every crop.
    #[error(
        "scores: expected at least one column and a positive multiple of {n_crops} rows (crops), \
         got {n_rows} rows and {n_columns} columns"
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
