//! What can go wrong in an encoder.

use thiserror::Error;

/// An error of an encoder or of its configuration.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum EncoderError {
    /// A configuration value is out of its range.
    #[error("encoder.{key}: expected {expected}, got {got}")]
    Config {
        /// The key below `encoder`.
        key: &'static str,
        /// The values that are allowed.
        expected: &'static str,
        /// The value that was given.
        got: String,
    },
    /// An image batch whose data and dimensions disagree, or that is empty.
    #[error("image batch: expected {expected}, got {got}")]
    ImageBatch {
        /// What a batch has to be.
        expected: String,
        /// What was given.
        got: String,
    },
    /// Batch normalisation in training needs at least two values a channel.
    #[error(
        "batch normalisation `{layer}` in training: expected more than 1 value per channel, got {got}; use more \
         images per batch or larger crops"
    )]
    BatchTooSmall {
        /// The layer's name.
        layer: String,
        /// The number of values per channel.
        got: usize,
    },
    /// `backward` without a `forward_train` before it.
    #[error("backward: expected a forward_train before it, got none since the last backward")]
    NoForward,
    /// A gradient of the wrong shape.
    #[error("gradient of the embeddings: expected shape {expected:?}, got {got:?}")]
    GradientShape {
        /// Rows and columns of the embeddings.
        expected: [usize; 2],
        /// What was given.
        got: [usize; 2],
    },
    /// `update` without gradients.
    #[error("update: expected gradients from a backward pass, got none since the last forward_train")]
    NoGradients,
    /// A state that lacks a tensor.
    #[error("state: expected a tensor `{name}`, got none; is it from another architecture?")]
    Missing {
        /// The tensor's name.
        name: String,
    },
    /// A state with a tensor that the encoder does not have.
    #[error("state: got a tensor `{name}` that this encoder does not have; is it from another architecture?")]
    Unexpected {
        /// The tensor's name.
        name: String,
    },
    /// A tensor of a state with another shape than the encoder's.
    #[error("state: expected `{name}` of shape {expected:?}, got {got:?}; is it from another architecture?")]
    StateShape {
        /// The tensor's name.
        name: String,
        /// The encoder's shape.
        expected: Vec<usize>,
        /// The state's shape.
        got: Vec<usize>,
    },
    /// A state tensor whose values and shape disagree.
    #[error("tensor of shape {shape:?}: expected {expected} values, got {got}")]
    TensorLength {
        /// The tensor's shape.
        shape: Vec<usize>,
        /// The product of the shape.
        expected: usize,
        /// The number of values given.
        got: usize,
    },
    /// A device name that is not understood, or that this build does not have.
    #[error("device: expected {expected}, got `{got}`")]
    UnknownDevice {
        /// The names that this build understands.
        expected: &'static str,
        /// What was given.
        got: String,
    },
    /// The device failed: out of memory, a missing driver or library.
    #[error("device: {0}")]
    Device(String),
    /// The kernels of the CPU refused an operation.
    #[error(transparent)]
    Kernels(#[from] swav_kernels::Error),
}
