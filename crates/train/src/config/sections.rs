//! The sections of a configuration that belong to training itself, with the reference's defaults.

use serde::{Deserialize, Serialize};

/// Length of the run, batch size, seed, threads.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainingConfig {
    /// Passes over the data, at least 1. Default: 100.
    pub epochs: u64,
    /// Images a step in this process, at least 2. Default: 64. The reference's published recipes name the batch of all its
    /// processes together; here that number goes into this key.
    pub batch_size: usize,
    /// Root of all random streams, below 2^63. Default: 31.
    pub seed: u64,
    /// Threads of the computation; 0 takes rayon's default, one for each core. Results do not depend on it. Default: 0.
    pub threads: usize,
    /// `auto`, or another name that [`swav_encoder::build`] takes. Default: `auto`, the best that build and machine have.
    pub device: String,
    /// Whether batch norm takes its statistics over the images of all processes that train together. Nothing to a process
    /// alone. Default: true, as in the reference.
    pub sync_batch_norm: bool,
}

impl Default for TrainingConfig {
    fn default() -> Self {
        Self {
            epochs: 100,
            batch_size: 64,
            seed: 31,
            threads: 0,
            device: "auto".to_owned(),
            sync_batch_norm: true,
        }
    }
}

/// The prototype layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PrototypesConfig {
    /// Prototypes of each head, at least one head of at least 2. Default: one head of 3000.
    pub n_prototypes: Vec<usize>,
    /// Iterations from the start during which prototypes get no update at all. Default: 313.
    pub freeze_iters: u64,
}

impl Default for PrototypesConfig {
    fn default() -> Self {
        Self { n_prototypes: vec![3000], freeze_iters: 313 }
    }
}

/// Optimal transport for the codes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SinkhornConfig {
    /// Entropic regularisation in units of scores, above 0. Smaller gives sharper codes. Default: 0.05.
    pub epsilon: f64,
    /// Iterations; 0 gives a plain softmax. Default: 3.
    pub n_iters: usize,
}

impl Default for SinkhornConfig {
    fn default() -> Self {
        Self { epsilon: 0.05, n_iters: 3 }
    }
}

/// The swapped-prediction loss.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LossConfig {
    /// Temperature of the predictions' softmax, above 0. Default: 0.1.
    pub temperature: f32,
    /// Indices of the crops that get codes, counted over all crops of an image. Default: 0 and 1.
    pub crops_for_assign: Vec<usize>,
}

impl Default for LossConfig {
    fn default() -> Self {
        Self { temperature: 0.1, crops_for_assign: vec![0, 1] }
    }
}

/// The feature queue.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct QueueConfig {
    /// Embeddings kept for each assignment crop, rounded down to whole batches; 0 for no queue. Default: 0.
    pub length: usize,
    /// First epoch (from 0) with a queue. Default: 15.
    pub start_epoch: u64,
}

impl Default for QueueConfig {
    fn default() -> Self {
        Self { length: 0, start_epoch: 15 }
    }
}

/// Which rule updates the parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OptimizerKind {
    /// SGD with momentum and layer-wise adaptive rates, the reference's.
    Larc,
    /// SGD with momentum.
    Sgd,
    /// Adam with decoupled weight decay.
    Adamw,
}

/// The optimiser and its schedule: linear warm-up, then half a cosine from `base_lr` to `final_lr`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OptimizerConfig {
    /// The rule. Default: `larc`.
    pub kind: OptimizerKind,
    /// Learning rate at the end of warm-up, above 0. Default: 4.8.
    pub base_lr: f64,
    /// Learning rate towards which the cosine falls. Default: 0.
    pub final_lr: f64,
    /// Learning rate of the first iteration, if there is a warm-up. Default: 0.
    pub start_warmup_lr: f64,
    /// Epochs of warm-up. Default: 10.
    pub warmup_epochs: u64,
    /// Weight decay, at least 0. Default: 1e-6.
    pub weight_decay: f32,
    /// Momentum of `larc` and `sgd`, 0 to below 1. Default: 0.9.
    pub momentum: f32,
    /// Trust coefficient of `larc`, above 0. Default: 0.001.
    pub trust: f32,
    /// Decay of the mean gradient of `adamw`, 0 to below 1. Default: 0.9.
    pub beta1: f32,
    /// Decay of the mean squared gradient of `adamw`, 0 to below 1. Default: 0.999.
    pub beta2: f32,
    /// Denominator term of `adamw`, above 0. Default: 1e-8.
    pub adam_epsilon: f32,
    /// Whether biases and the scales and shifts of batch norm get neither weight decay nor adaptive rates. Default: false,
    /// as in the reference.
    pub exclude_norms_and_biases: bool,
    /// Norm that the gradients of encoder and prototypes together are scaled down to, at least 0; 0 leaves them. Default: 0.
    pub clip_norm: f64,
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self {
            kind: OptimizerKind::Larc,
            base_lr: 4.8,
            final_lr: 0.0,
            start_warmup_lr: 0.0,
            warmup_epochs: 10,
            weight_decay: 1e-6,
            momentum: 0.9,
            trust: 0.001,
            beta1: 0.9,
            beta2: 0.999,
            adam_epsilon: 1e-8,
            exclude_norms_and_biases: false,
            clip_norm: 0.0,
        }
    }
}

/// When the state is saved. It is also saved on Ctrl-C, on SIGTERM and at the end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CheckpointConfig {
    /// Every so many epochs; 0 for never. Default: 1.
    pub every_epochs: u64,
    /// Every so many minutes; 0 for never. Default: 30.
    pub every_minutes: f64,
    /// Every so many iterations; 0 for never. Default: 0.
    pub every_iters: u64,
    /// How many of the newest checkpoints stay, at least 2: the one before the newest is the way back if the
    /// newest is damaged. Default: 2.
    pub keep: usize,
    /// Checkpoints at the end of every so many epochs stay for good; 0 for none. Default: 25.
    pub keep_every_epochs: u64,
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        Self { every_epochs: 1, every_minutes: 30.0, every_iters: 0, keep: 2, keep_every_epochs: 25 }
    }
}

/// What to do when training has collapsed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnCollapse {
    /// Say so in the log, with advice, and go on.
    Warn,
    /// Stop with an error.
    Stop,
    /// Say so, and go on with half the learning rate and sharper codes from the next epoch on, at most three times.
    Remedy,
}

/// What is watched while training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MonitorConfig {
    /// Iterations between two lines of metrics, at least 1. Default: 1.
    pub log_every_iters: u64,
    /// Whether metrics are also written for TensorBoard. Default: true.
    pub tensorboard: bool,
    /// Epochs between two evaluations by the program `swav` while training, at least; 0 for none. Default: 1.
    pub evaluate_every_epochs: u64,
    /// Images of such an evaluation, at most, at least 2. Fewer are taken, or less often, where it would take more than a
    /// fiftieth of the work. Default: 2048.
    pub evaluate_images: usize,
    /// Iterations over which signs of collapse have to last, at least 1. Default: 500.
    pub patience_iters: u64,
    /// Spread of the embeddings, 0 (all equal) to 1, below which they count as collapsed. Default: 0.01.
    pub min_spread: f64,
    /// Share of prototypes, 0 to 1, that predictions have to use. Default: 0.02.
    pub min_usage: f64,
    /// Share of ln K by which the loss has to be below ln K. Default: 0.01.
    pub min_gap: f64,
    /// Share of ln K, 0 to 1, that the entropy of codes may have. Default: 0.97.
    pub max_code_entropy: f64,
    /// How unequally codes may use prototypes, 0 to 2: [`CodesVitals::row_residual`](crate::CodesVitals::row_residual).
    /// Default: 1.
    pub max_row_residual: f64,
    /// What to do on collapse. Default: `warn`.
    pub on_collapse: OnCollapse,
}

impl Default for MonitorConfig {
    fn default() -> Self {
        Self {
            log_every_iters: 1,
            tensorboard: true,
            evaluate_every_epochs: 1,
            evaluate_images: 2048,
            patience_iters: 500,
            min_spread: 0.01,
            min_usage: 0.02,
            min_gap: 0.01,
            max_code_entropy: 0.97,
            max_row_residual: 1.0,
            on_collapse: OnCollapse::Warn,
        }
    }
}

/// Whether and how batch-norm statistics are estimated anew before the weights are written: on whole images in
/// inference's view. In training, running statistics mix in those of low-resolution crops.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReestimationConfig {
    /// Whether it is done. Default: false, as in the reference.
    pub batch_norm: bool,
    /// Images to average over, at most; 0 for all. Default: 4096.
    pub n_images: usize,
    /// The shorter side of an image is resized to this many pixels, at least 1. Default: 256.
    pub resize: usize,
    /// Side of the centre that is cut out, at most `resize`. Default: 224.
    pub size: usize,
    /// Images at a time, at least 2. Default: 64.
    pub batch_size: usize,
}

impl Default for ReestimationConfig {
    fn default() -> Self {
        Self { batch_norm: false, n_images: 4096, resize: 256, size: 224, batch_size: 64 }
    }
}
