//! What can go wrong in an evaluation.

use thiserror::Error;

/// An evaluation that cannot be made of what was given.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum EvalError {
    /// A value of the configuration is out of its range.
    #[error("{key}: expected {expected}, got {got}")]
    Config {
        /// The configuration key.
        key: &'static str,
        /// The values that are allowed.
        expected: String,
        /// The value that came.
        got: String,
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
        "row {row} of the {what}: expected finite numbers, got {got}: \
         has the network that made these features diverged?"
    )]
    NotFinite {
        /// Which set of features it is.
        what: &'static str,
        /// Its first such row.
        row: usize,
        /// The value found there.
        got: f32,
    },
    /// All labels are equal, so there is nothing to tell apart.
    #[error("expected labels of two classes or more, got {label} for all {n_images} images")]
    OneClass {
        /// The label.
        label: u32,
        /// How many images have it.
        n_images: usize,
    },
    /// An image without a label, where labels are needed.
    #[error(
        "{image} has no label (data: {dataset}); accuracy needs labelled images, for example one folder per class"
    )]
    NoLabel {
        /// The first such image.
        image: String,
        /// The data set it belongs to.
        dataset: String,
    },
    /// The data set is empty.
    #[error("data set {dataset}: expected at least one image, got none")]
    NoImages {
        /// The data set.
        dataset: String,
    },
    /// Not one image could be read.
    #[error("data set {dataset}: none of its images can be read; the first is {image}")]
    Unreadable {
        /// The data set.
        dataset: String,
        /// Its first image.
        image: String,
        /// What is wrong with that.
        source: swav_data::SampleError,
    },
    /// The view of the images is out of range.
    #[error("the view of the images cannot be used")]
    View {
        /// Which value it is.
        #[from]
        source: swav_augment::AugmentError,
    },
    /// The encoder failed.
    #[error("the encoder could not embed the images")]
    Encoder {
        /// What it said.
        #[from]
        source: swav_encoder::EncoderError,
    },
}
