//! What can go wrong: a config value out of range, an image or a buffer of the wrong size.

/// An error of this crate. Each message says what was expected and what came.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum AugmentError {
    /// A value of a config is outside its range.
    #[error("{key}: expected {expected}, got {got}")]
    OutOfRange {
        /// Dotted name of the value, as in the config file.
        key: String,
        /// The range that is allowed.
        expected: &'static str,
        /// The value that came.
        got: String,
    },
    /// An image without pixels.
    #[error("image: expected at least one pixel in each direction, got {width}x{height}")]
    EmptyImage {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
    },
    /// The number of bytes does not fit the size of the image.
    #[error("image of {width}x{height}x{channels}: expected {expected} bytes, got {got}")]
    ByteCount {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
        /// Bytes in a pixel.
        channels: usize,
        /// `width * height * channels`.
        expected: u64,
        /// The number of bytes that came.
        got: usize,
    },
    /// An output buffer of the wrong length.
    #[error("output of a {width}x{height} crop: expected {expected} floats, got {got}")]
    OutputLength {
        /// Width of the crop in pixels.
        width: usize,
        /// Height of the crop in pixels.
        height: usize,
        /// `width * height * 3`.
        expected: usize,
        /// The length that came.
        got: usize,
    },
    /// A crop index past the last crop of the recipe.
    #[error("crop: expected a number below {n_crops}, got {got}")]
    NoSuchCrop {
        /// The index that came, from 0.
        got: usize,
        /// How many crops the recipe takes of an image.
        n_crops: usize,
    },
    /// Other numbers of images, sample numbers or buffers than the call needs.
    #[error("{what}: expected {expected}, got {got}")]
    Count {
        /// What was counted.
        what: &'static str,
        /// How many were expected.
        expected: usize,
        /// How many came.
        got: usize,
    },
    /// A step that this build leaves out.
    #[error("{key}: expected 0 in a build without the feature `{feature}` of swav-augment, got {got}")]
    NotBuilt {
        /// Dotted name of the step's probability.
        key: String,
        /// The feature that has it.
        feature: &'static str,
        /// The probability that came.
        got: f32,
    },
}
