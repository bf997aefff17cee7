//! What can go wrong: a config value out of range, an image or a buffer of the wrong size.

/// An error of this crate. Each message says what was expected and what came.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum AugmentError {
    /// A value of a config is outside its range.
    #[error("`{key}` must be {expected}, but is {value}")]
    OutOfRange {
        /// Dotted name of the value, as in the config file.
        key: String,
        /// The range that is allowed.
        expected: &'static str,
        /// The value that came.
        value: String,
    },
    /// An image without pixels.
    #[error("an image needs at least one pixel in each direction, but is {width}x{height}")]
    EmptyImage {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
    },
    /// The number of bytes does not fit the size of the image.
    #[error("an image of {width}x{height}x{channels} has {expected} bytes, but {actual} came")]
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
        actual: usize,
    },
    /// An output buffer of the wrong length.
    #[error("the output of a {width}x{height} crop has {expected} floats, but the buffer has {actual}")]
    OutputLength {
        /// Width of the crop in pixels.
        width: usize,
        /// Height of the crop in pixels.
        height: usize,
        /// `width * height * 3`.
        expected: usize,
        /// The length that came.
        actual: usize,
    },
    /// A crop index past the last crop of the recipe.
    #[error("the recipe has {n_crops} crops, so there is no crop {crop}")]
    NoSuchCrop {
        /// The index that came, from 0.
        crop: usize,
        /// How many crops the recipe takes of an image.
        n_crops: usize,
    },
    /// Other numbers of images, sample numbers or buffers than the call needs.
    #[error("expected {expected} {what}, but {actual} came")]
    Count {
        /// What was counted.
        what: &'static str,
        /// How many were expected.
        expected: usize,
        /// How many came.
        actual: usize,
    },
}
