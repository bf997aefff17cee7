//! What can go wrong in an encoder.

use swav_collective::CollectiveError;
use thiserror::Error;

use crate::DeviceMemory;

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
    /// Images of a shape that no encoder takes, or none at all.
    #[error("images: expected {expected}, got {got}")]
    Images {
        /// What images have to be.
        expected: &'static str,
        /// What was given.
        got: String,
    },
    /// The output of a stage that the encoder does not have.
    #[error("layer {got} of the encoder: expected {}", layers(*.expected))]
    NoLayer {
        /// How many stages it has.
        expected: usize,
        /// The stage that was asked for.
        got: usize,
    },
    /// Batch normalisation in training needs at least two values per channel.
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
    /// A device name that nothing is called.
    #[error("device: expected {expected}, got `{got}`")]
    UnknownDevice {
        /// The names that there are.
        expected: &'static str,
        /// What was given.
        got: String,
    },
    /// A device that this build or this machine does not have.
    #[error("device `{device}` is not available: {advice}")]
    Unavailable {
        /// The device's name.
        device: String,
        /// What to do.
        advice: String,
        /// Why it does not open, where it was tried.
        #[source]
        source: Option<BoxedError>,
    },
    /// Something that the device cannot do, and that was asked for.
    #[error("device `{device}` has no {what}: {advice}")]
    Unsupported {
        /// The device's name.
        device: String,
        /// What was asked for.
        what: &'static str,
        /// What to do instead.
        advice: &'static str,
    },
    /// The device's own memory has no room for what was asked for.
    #[error("the memory of device `{device}` does not suffice{}", what_fits(.memory.as_ref()))]
    OutOfMemory {
        /// The device's name.
        device: String,
        /// What training takes there, and what would fit, where the device knows of the whole step.
        memory: Option<DeviceMemory>,
        /// What it said.
        #[source]
        source: BoxedError,
    },
    /// The device failed: a lost driver, a library that refuses.
    #[error("device `{device}` failed")]
    Device {
        /// The device's name.
        device: String,
        /// What it said.
        #[source]
        source: BoxedError,
    },
    /// The kernels of the CPU refused an operation.
    #[error("the kernels of the CPU refuse")]
    Kernels(#[source] swav_kernels::Error),
    /// The processes that train together cannot talk to each other.
    #[error("the encoder's exchange with other processes failed")]
    Collective(#[from] CollectiveError),
    /// An error of an encoder of your own.
    #[error("the encoder failed")]
    Own(#[source] BoxedError),
}

fn what_fits(memory: Option<&DeviceMemory>) -> String {
    memory.map_or("; smaller batches need less".into(), |memory| format!(": {memory}"))
}

/// Which stages there are.
fn layers(n: usize) -> String {
    match n {
        0 => "none, for it has no stages".into(),
        1 => "1, its only stage".into(),
        n => format!("1 to {n}"),
    }
}

/// A failure between processes that the kernels met is one of the processes.
impl From<swav_kernels::Error> for EncoderError {
    fn from(error: swav_kernels::Error) -> Self {
        match error {
            swav_kernels::Error::SumAcross { source } => match source.downcast::<CollectiveError>() {
                Ok(error) => Self::Collective(*error),
                Err(source) => Self::Kernels(swav_kernels::Error::SumAcross { source }),
            },
            error => Self::Kernels(error),
        }
    }
}

/// An error of whatever an engine is made with.
pub type BoxedError = Box<dyn std::error::Error + Send + Sync>;
