//! What can go wrong in an evaluation.

use thiserror::Error;

/// An evaluation that cannot be made of what was given.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum EvalError {
    /// A value of the configuration is out of its range.
    #[error("{key} = {value}: expected {expected}")]
    Config {
        /// The configuration key.
        key: &'static str,
        /// The value that came.
        value: String,
        /// The values that are allowed.
        expected: String,
    },
    /// There are no features to compare with.
    #[error("no features in the {what}; expected at least one row and one column")]
    Empty {
        /// Which set of features is empty.
        what: &'static str,
    },
    /// Two lengths that belong together differ.
    #[error("expected {expected} {what}, got {got}")]
    Length {
        /// What is counted.
        what: &'static str,
        /// How many there should be.
        expected: usize,
        /// How many there are.
        got: usize,
    },
    /// A feature is not a finite number.
    #[error(
        "row {row} of the {what} holds {value}, which is not a finite number: \
         has the network that made these features diverged?"
    )]
    NotFinite {
        /// Which set of features it is.
        what: &'static str,
        /// Its first such row.
        row: usize,
        /// The value found there.
        value: f32,
    },
    /// An image without a label, where labels are needed.
    #[error(
        "{image} has no label (data: {dataset}); k-NN accuracy needs labelled images, \
         for example one folder a class"
    )]
    NoLabel {
        /// The first such image.
        image: String,
        /// The data set it belongs to.
        dataset: String,
    },
    /// Not one image could be read.
    #[error("no image can be used (data: {dataset}); {first}")]
    NoImages {
        /// The data set.
        dataset: String,
        /// The first image and what is wrong with it.
        first: String,
    },
    /// The view of the images is out of range.
    #[error(transparent)]
    View(#[from] swav_augment::AugmentError),
    /// The encoder failed.
    #[error(transparent)]
    Encoder(#[from] swav_encoder::EncoderError),
}
