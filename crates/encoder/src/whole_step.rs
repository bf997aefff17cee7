//! A whole training step on the encoder's device: the seam for engines that compute scores, codes, loss and the
//! update of the prototypes where the embeddings are.
//!
//! A step in the trainer brings the embeddings to the host and their gradient back. On a GPU that wait costs more than
//! what is computed in between, so an engine may offer to do it all. What it cannot do (other codes, several heads, several
//! processes) stays with the trainer's own step, which gives the same numbers.

use ndarray::{Array2, Array3, ArrayView2, ArrayView3};

use crate::{Crops, EncoderError, Scaling, Slots, UpdateRule};

/// Crops of one resolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GroupShape {
    /// Crops of each image.
    pub n_crops: usize,
    /// Rows of pixels.
    pub height: usize,
    /// Columns of pixels.
    pub width: usize,
}

/// All that stays the same from step to step: what can be planned, allocated and captured ahead.
#[derive(Clone, Debug, PartialEq)]
pub struct StepPlan {
    /// Images of a batch.
    pub batch_size: usize,
    /// The resolutions, in the order in which their images come; crops are numbered through in this order.
    pub groups: Vec<GroupShape>,
    /// How the device makes values of crops that come as bytes; `None` where they come as values.
    pub scaling: Option<Scaling>,
    /// The crops that get codes.
    pub crops_for_assign: Vec<usize>,
    /// The temperature of the predictions, above 0.
    pub temperature: f32,
    /// The entropic regularisation of the codes, above 0.
    pub epsilon: f64,
    /// Rounds of Sinkhorn's algorithm.
    pub sinkhorn_iters: usize,
    /// Prototypes of the one head.
    pub n_prototypes: usize,
    /// Embeddings that the queue holds for each assignment crop; 0 for no queue.
    pub queue_length: usize,
}

/// What a single step is given besides its images.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepInputs {
    /// The step's number, which its report carries.
    pub step: u64,
    /// The optimiser's rule, with this step's learning rate, for encoder and prototypes.
    pub rule: UpdateRule,
    /// Gradients of encoder and prototypes are clipped to this norm together; `None` for no clipping.
    pub max_gradient_norm: Option<f64>,
    /// Whether prototypes are updated; without it they get no decay and no momentum either.
    pub update_prototypes: bool,
    /// Whether the queue, which is full then, takes part in the codes.
    pub use_queue: bool,
    /// Whether this batch's embeddings enter the queue.
    pub push_queue: bool,
}

/// What a step found. All norms and the spread are as the trainer's metrics have them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepReport {
    /// The step that this is about.
    pub step: u64,
    /// The loss in nats.
    pub loss: f64,
    /// Mean entropy of a sample's code in nats.
    pub code_entropy: f64,
    /// exp of the entropy of the mean code over the batch.
    pub code_perplexity: f64,
    /// exp of the entropy of the mean prediction over all crops.
    pub prediction_perplexity: f64,
    /// `1 - |mean z|²` over the batch.
    pub spread: f64,
    /// Norm of all parameters before the update, prototypes included where they are updated.
    pub parameter_norm: f64,
    /// Norm of all gradients before clipping, prototypes' included where they are updated.
    pub gradient_norm: f64,
}

/// Whole training steps on a device.
pub trait WholeStep {
    /// Makes ready for steps of this plan. Parameters, prototypes and queue stay as they are.
    ///
    /// # Errors
    /// [`EncoderError::Unsupported`] if the device cannot run such a step: the caller takes the host's path then.
    fn prepare(&mut self, plan: &StepPlan) -> Result<(), EncoderError>;

    /// Replaces the prototypes (K, D) and what the optimiser remembers of them.
    ///
    /// # Errors
    /// [`EncoderError::StateShape`] or a device's error.
    fn load_prototypes(&mut self, prototypes: ArrayView2<'_, f32>, slots: &Slots)
    -> Result<(), EncoderError>;

    /// The prototypes (K, D) and what the optimiser remembers of them.
    ///
    /// # Errors
    /// A device's error.
    fn prototypes(&mut self) -> Result<(Array2<f32>, Slots), EncoderError>;

    /// Replaces the queue (assignment crops, length, D), newest embeddings first.
    ///
    /// # Errors
    /// [`EncoderError::StateShape`] or a device's error.
    fn load_queue(&mut self, queue: ArrayView3<'_, f32>) -> Result<(), EncoderError>;

    /// The queue (assignment crops, length, D), newest embeddings first; rows that were never filled are zeros.
    ///
    /// # Errors
    /// A device's error.
    fn queue(&mut self) -> Result<Array3<f32>, EncoderError>;

    /// Runs one step. A device that works ahead may report an earlier step, or none yet; [`finish`](Self::finish)
    /// gives what is left.
    ///
    /// # Errors
    /// [`EncoderError::Images`] for other shapes than the plan's, for bytes where it has no scaling and for values where it has
    /// one, or a device's error, also of an earlier step.
    fn step(&mut self, crops: Crops<'_>, inputs: &StepInputs) -> Result<Option<StepReport>, EncoderError>;

    /// Waits for all steps and returns the reports that [`step`](Self::step) has not, in order.
    ///
    /// # Errors
    /// A device's error.
    fn finish(&mut self) -> Result<Vec<StepReport>, EncoderError>;
}
