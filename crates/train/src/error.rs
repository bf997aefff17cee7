//! What can go wrong in a training run.

use std::path::PathBuf;

use crate::checkpoint::CheckpointError;
use crate::config::ConfigError;

/// Why a run could not start, go on, or be saved.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A checkpoint cannot be written, read or resumed.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A file of the run folder cannot be written or read.
    #[error("cannot {action} {path}: {source}")]
    RunFolder {
        /// What was tried.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The folder holds a run already.
    #[error(
        "{path} already holds a run; resume it with --resume, or choose another folder (nothing was changed)"
    )]
    RunExists {
        /// The folder.
        path: PathBuf,
    },
    /// The encoder refused its input or failed.
    #[error("encoder: {0}")]
    Encoder(#[from] swav_encoder::EncoderError),
    /// The prototypes or the queue refused their input.
    #[error("prototypes: {0}")]
    Prototypes(#[from] swav_prototypes::PrototypeError),
    /// The loss refused its input.
    #[error("loss: {0}")]
    Loss(#[from] swav_losses::LossError),
    /// The codes could not be computed.
    #[error("codes: {0}")]
    Codes(#[from] swav_ot::OtError),
    /// The data cannot be opened.
    #[error("data: {0}")]
    Data(#[from] swav_data::DataError),
    /// Batches cannot be loaded.
    #[error("data: {0}")]
    Loader(#[from] swav_data::LoaderError),
    /// There are fewer images than a batch.
    #[error(
        "the data hold {n_images} images, fewer than training.batch_size = {batch_size}: not one batch an epoch"
    )]
    TooFewImages {
        /// Images of the training split.
        n_images: usize,
        /// Images of a batch.
        batch_size: usize,
    },
    /// A number of the step is not finite: training has diverged.
    #[error("step {step}: {what} is not finite. {advice}")]
    NotFinite {
        /// The iteration, from 0.
        step: u64,
        /// Which number.
        what: &'static str,
        /// The likely cause, and the configuration key to change.
        advice: String,
    },
    /// Training has collapsed and `monitor.on_collapse` is `stop`.
    #[error("step {step}: training has collapsed: {sign}. {advice}")]
    Collapsed {
        /// The iteration, from 0.
        step: u64,
        /// The sign that lasted.
        sign: String,
        /// The likely cause, and the configuration key to change.
        advice: String,
    },
    /// Processes that train together cannot talk.
    #[error("all-reduce between processes: {0}")]
    Collective(swav_ot::CollectiveError),
    /// Threads cannot be started.
    #[error("cannot start {n_threads} threads: {message}")]
    Threads {
        /// How many were asked for.
        n_threads: usize,
        /// Why not.
        message: String,
    },
    /// The handler of Ctrl-C cannot be installed.
    #[error("cannot handle Ctrl-C: {0}")]
    Signal(String),
}
