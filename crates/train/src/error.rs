//! What can go wrong in a training run.

use std::error::Error;
use std::fmt;
use std::path::PathBuf;

use swav_collective::CollectiveError;

use crate::checkpoint::CheckpointError;
use crate::config::ConfigError;
use crate::memory::bytes;

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
    /// A part of a checkpoint does not fit the part of this run that it belongs to.
    #[error("the checkpoint's section `{part}`: expected {expected}, got {got}")]
    Section {
        /// The part.
        part: &'static str,
        /// What fits.
        expected: String,
        /// What came.
        got: String,
    },
    /// A file of the run folder cannot be written or read.
    #[error("cannot {action} {path}")]
    RunFolder {
        /// What was tried.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The folder holds a run already.
    #[error("{path} already holds a run; resume it, or choose another folder (nothing was changed)")]
    RunExists {
        /// The folder.
        path: PathBuf,
    },
    /// The folder for a new run has something else in it.
    #[error(
        "{path} is not empty and holds no run (it has `{found}`): choose another folder for the run (nothing was changed)"
    )]
    NotARun {
        /// The folder.
        path: PathBuf,
        /// What is in it.
        found: String,
    },
    /// Another process trains in the folder.
    #[error("{path} is in use{}; wait for it, or choose another folder", by(.holder))]
    RunBusy {
        /// The folder.
        path: PathBuf,
        /// Who has it, as that says of itself; empty if it does not.
        holder: String,
    },
    /// The disk of the run's folder has no room for a checkpoint.
    #[error(
        "{path}: {} free on its disk, and a checkpoint takes about {}; make room, or name a folder elsewhere",
        bytes((*.free).into()),
        bytes(*.checkpoint)
    )]
    DiskFull {
        /// The folder.
        path: PathBuf,
        /// Bytes of a checkpoint.
        checkpoint: u128,
        /// Bytes that are free.
        free: u64,
    },
    /// Weights cannot be read, written, or used here.
    #[error("{what}")]
    Weights {
        /// What was to be done with them.
        what: &'static str,
        /// Why not.
        source: swav_weights::WeightsError,
    },
    /// The encoder refused its input or failed.
    #[error("the encoder failed")]
    Encoder(#[source] swav_encoder::EncoderError),
    /// The encoder is not the one that the configuration describes.
    #[error("the encoder is not the configuration's: expected {expected}, got {got}")]
    OtherEncoder {
        /// What the configuration says.
        expected: String,
        /// What the encoder says of itself.
        got: String,
    },
    /// The prototypes or the queue refused their input.
    #[error("the prototypes refused their input")]
    Prototypes(#[from] swav_prototypes::PrototypeError),
    /// The loss refused its input.
    #[error("the loss refused its input")]
    Loss(#[from] swav_losses::LossError),
    /// The codes could not be computed.
    #[error("codes cannot be computed")]
    Codes(#[from] swav_ot::OtError),
    /// The loss works with codes of other crops than those that were given.
    #[error("the loss wants codes of the crops {expected:?}, got {got:?}")]
    CodesOfCrops {
        /// The crops that the loss wants codes of.
        expected: Vec<usize>,
        /// Those that came; `None` is a code of the whole image.
        got: Vec<Option<usize>>,
    },
    /// There are fewer crops.
    #[error("expected a crop below {n_crops}, got {crop}")]
    NoSuchCrop {
        /// The crop that was asked for.
        crop: usize,
        /// Crops of an image.
        n_crops: usize,
    },
    /// The batch's indices and its crops are not of the same images.
    #[error("a batch of {n_images} images cannot have {n_rows} crops")]
    Batch {
        /// How many indices came.
        n_images: usize,
        /// How many embeddings came.
        n_rows: usize,
    },
    /// The data cannot be opened.
    #[error("the images cannot be opened")]
    Data(#[from] swav_data::DataError),
    /// Batches cannot be loaded.
    #[error("batches cannot be loaded")]
    Loader(#[from] swav_data::LoaderError),
    /// There are fewer images than a batch.
    #[error(
        "the data hold {n_images} images, fewer than the {batch_size} of a batch: set training.batch_size to {n_images} or \
         less, over all processes"
    )]
    TooFewImages {
        /// Images of the training split.
        n_images: usize,
        /// Images of a batch, of all processes together.
        batch_size: usize,
    },
    /// Statistics of batch normalisation need more images that can be read.
    #[error("batch-norm statistics need 2 images or more, got {got} that can be read")]
    TooFewForStatistics {
        /// Images that can be read.
        got: usize,
    },
    /// A number of the step is not finite: training has diverged.
    #[error("step {step}: {what} is not finite. {advice}")]
    NotFinite {
        /// The iteration, from 0.
        step: u64,
        /// Which number.
        what: Quantity,
        /// The likely cause, and the configuration key to change; empty in a loop without configuration.
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
    /// Another of the processes that train together has failed.
    #[error("rank {rank} failed: {reason}")]
    Rank {
        /// Which.
        rank: usize,
        /// What it said.
        reason: String,
    },
    /// The processes that train together do not run the same training.
    #[error("all processes need the same {what}, but rank {rank} has another than rank 0")]
    RanksDiffer {
        /// What differs.
        what: &'static str,
        /// The first rank with another one than rank 0.
        rank: usize,
    },
    /// Processes that train together cannot talk.
    #[error("the processes cannot go on together")]
    Collective(#[source] CollectiveError),
    /// A part or a callback that was given to the trainer failed.
    #[error("a part of the caller's failed")]
    Own(#[source] Box<dyn Error + Send + Sync>),
    /// The encoder reports a step that was not asked for, or in another order.
    #[error("the device reports step {step} out of turn")]
    Report {
        /// The step that it reports.
        step: u64,
    },
    /// The encoder has run whole steps on its device, and now says that it cannot.
    #[error("the device runs no whole steps any more")]
    DeviceGone,
    /// Threads cannot be started.
    #[error("cannot start {n_threads} threads")]
    Threads {
        /// How many were asked for.
        n_threads: usize,
        /// Why not.
        source: rayon::ThreadPoolBuildError,
    },
    /// The handler of Ctrl-C cannot be installed.
    #[cfg(feature = "signals")]
    #[error("cannot handle Ctrl-C")]
    Signal(#[from] ctrlc::Error),
}

fn by(holder: &str) -> String {
    if holder.is_empty() { String::new() } else { format!(" by {holder}") }
}

/// A number that has to be finite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Quantity {
    /// A component of an embedding.
    Embedding,
    /// The loss.
    Loss,
    /// The norm of all gradients.
    Gradient,
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Embedding => "an embedding",
            Self::Loss => "the loss",
            Self::Gradient => "a gradient",
        })
    }
}

impl TrainError {
    /// The failure of a part that the caller brings: codes, a loss, a callback.
    pub fn own(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Own(error.into())
    }

    /// A section of a checkpoint that does not fit the part that it belongs to.
    pub fn section(part: &'static str, expected: impl ToString, got: impl ToString) -> Self {
        Self::Section { part, expected: expected.to_string(), got: got.to_string() }
    }
}

impl From<CollectiveError> for TrainError {
    fn from(error: CollectiveError) -> Self {
        match error {
            CollectiveError::Aborted { rank, reason } => Self::Rank { rank, reason },
            other => Self::Collective(other),
        }
    }
}

impl From<swav_encoder::EncoderError> for TrainError {
    fn from(error: swav_encoder::EncoderError) -> Self {
        match error {
            swav_encoder::EncoderError::Collective(error) => error.into(),
            other => Self::Encoder(other),
        }
    }
}

/// An error and its causes in one line: what another process is told.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        cause = error.source();
    }
    text
}
