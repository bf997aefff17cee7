//! Codes: what each crop's prediction is compared with.
//!
//! Anything that assigns codes is an [`AssignCodes`]. It sees the scores, embeddings and image indices of a batch, may
//! act at the start of an epoch, may remember, owns a section of the checkpoint, and works over a
//! [`Collective`]. [`SinkhornCodes`], optimal transport with a feature queue, is SwAV's.
//!
//! # How other clustering methods fit
//!
//! **DeepCluster-v2** (Caron et al. 2020, appendix; the reference's `main_deepclusterv2.py`) alternates k-means over the
//! whole data set with classification of every crop:
//! - *An index-keyed bank.* [`remember`](AssignCodes::remember) writes the embeddings of the assignment crops at
//!   [`CodesInput::indices`] into arrays of (assignment crop, image, D) that the implementation owns. Each process
//!   holds the rows of the images that it has seen; its [`save`](AssignCodes::save) puts them into its own section.
//!   Before the first epoch [`start_epoch`](AssignCodes::start_epoch) fills it: [`EpochStart`] has the encoder, the data
//!   and the crops.
//! - *k-means each epoch, replaced prototypes.* `start_epoch` has the prototypes by mutable reference and the collective
//!   for the sums of the centroids: after ten iterations it writes the centroids, of unit length, over the weights of
//!   each head, and keeps the label of each image under each head. The optimiser leaves the prototypes alone if
//!   `prototypes.freeze_iters` is as long as the run, as in the reference's script.
//! - *Every crop is predicted, its own included.* [`assign`](AssignCodes::assign) looks the labels of
//!   [`CodesInput::indices`] up and gives one [`Code`] whose [`crop`](Code::crop) is `None`: it belongs to the image, not to a crop.
//! - *The loss*, cross entropy of all crops with that code, is another [`Loss`](crate::Loss) of a dozen lines.
//!   [`Swapped`](crate::Swapped) refuses codes that belong to no crop.
//!
//! **SeLa-v2** has the same bank and the same loss. Its `start_epoch` computes the scores of the bank's rows, runs
//! [`swav_ot::Codes::assign_sharded`] over those of all processes for each head, and keeps the strongest prototype of each
//! image; prototypes are trained as in SwAV.
//!
//! **Hard codes** wrap another implementation and round what it gives: `examples/hard_codes.rs`.

mod sinkhorn;

pub use sinkhorn::{QueueShape, SinkhornCodes};

use ndarray::{Array2, ArrayView2, s};
use swav_augment::MultiCrop;
use swav_collective::Collective;
use swav_data::Dataset;
use swav_encoder::Encoder;
use swav_prototypes::Prototypes;

use crate::error::TrainError;
use crate::moment::Moment;
use crate::section::Section;

/// Something that assigns codes to the images of a batch.
///
/// In each step [`assign`](Self::assign) is called once for each head, in the order of the heads; then, if the loss is finite,
/// [`remember`](Self::remember) once. Every process makes the same calls.
pub trait AssignCodes: Send {
    /// The codes of a batch under one head.
    ///
    /// # Errors
    /// The implementation's; one of another crate can use [`TrainError::own`].
    fn assign(&mut self, input: &CodesInput<'_>) -> Result<Assigned, TrainError>;

    /// Acts before the first step of an epoch. Not called when a run is resumed in the middle of one.
    ///
    /// # Errors
    /// The implementation's.
    fn start_epoch(&mut self, _start: &mut EpochStart<'_>) -> Result<(), TrainError> {
        Ok(())
    }

    /// Takes the batch into memory, after codes and loss have been computed.
    ///
    /// # Errors
    /// The implementation's.
    fn remember(&mut self, _batch: &Remembered<'_>) -> Result<(), TrainError> {
        Ok(())
    }

    /// What the latest assignment under the first head says of itself, of this process's rows.
    fn vitals(&self) -> CodesVitals {
        CodesVitals::default()
    }

    /// What this process has to remember for the run to go on with the same bits; empty if nothing.
    fn save(&self) -> Section {
        Section::default()
    }

    /// Takes back what the processes of an earlier run [saved](Self::save), one section each, in the order of their
    /// ranks. This process is `rank` of `world_size`, which may be another number than that of the sections: then
    /// what they hold has to be divided anew.
    ///
    /// # Errors
    /// [`TrainError::Section`] if that does not fit; nothing changes then.
    fn load(&mut self, sections: &[Section], _rank: usize, _world_size: usize) -> Result<(), TrainError> {
        match sections.iter().all(Section::is_empty) {
            true => Ok(()),
            false => Err(TrainError::section("codes", "a part without memory", "memory of another kind")),
        }
    }

    /// This, if it is Sinkhorn codes whose regularisation is constant: those that an encoder which runs whole steps on its
    /// device can compute there. `None` if only this code can.
    fn as_sinkhorn(&mut self) -> Option<&mut SinkhornCodes> {
        None
    }
}

/// What codes are computed from: one batch under one head. Rows are ordered crop by crop: all images of crop 0, then
/// of crop 1, ...
#[derive(Clone, Copy)]
pub struct CodesInput<'a> {
    /// When.
    pub moment: Moment,
    /// Which head, from 0.
    pub head: usize,
    /// The index in the data set of each image of the batch.
    pub indices: &'a [usize],
    /// Embeddings (crops·B, D), rows of unit length.
    pub embeddings: ArrayView2<'a, f32>,
    /// Scores (crops·B, K) under this head.
    pub scores: ArrayView2<'a, f32>,
    /// The prototypes of all heads, rows of unit length.
    pub prototypes: &'a Prototypes,
    /// The processes that train together; each has its own images of the batch.
    pub collective: &'a dyn Collective,
}

impl<'a> CodesInput<'a> {
    /// Number of images B.
    pub fn batch_size(&self) -> usize {
        self.indices.len()
    }

    /// The scores (B, K) of one crop.
    ///
    /// # Errors
    /// [`TrainError::NoSuchCrop`].
    pub fn scores_of(&self, crop: usize) -> Result<ArrayView2<'a, f32>, TrainError> {
        rows_of_crop(self.scores, crop, self.batch_size())
    }
}

/// A batch that enters the memory.
#[derive(Clone, Copy)]
pub struct Remembered<'a> {
    /// When.
    pub moment: Moment,
    /// The index in the data set of each image of the batch.
    pub indices: &'a [usize],
    /// Embeddings (crops·B, D), crop by crop.
    pub embeddings: ArrayView2<'a, f32>,
}

impl<'a> Remembered<'a> {
    /// The embeddings (B, D) of one crop.
    ///
    /// # Errors
    /// [`TrainError::NoSuchCrop`].
    pub fn embeddings_of(&self, crop: usize) -> Result<ArrayView2<'a, f32>, TrainError> {
        rows_of_crop(self.embeddings, crop, self.indices.len())
    }
}

/// The start of an epoch.
pub struct EpochStart<'a> {
    /// When: the epoch's first step.
    pub moment: Moment,
    /// The prototypes, which may be replaced.
    pub prototypes: &'a mut Prototypes,
    /// The encoder, to embed images with.
    pub encoder: &'a dyn Encoder,
    /// All training images.
    pub data: &'a dyn Dataset,
    /// The crops of an image.
    pub views: &'a MultiCrop,
    /// The processes that train together.
    pub collective: &'a dyn Collective,
}

/// Numbers that show whether codes are what they should be. `None` where they are not known.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct CodesVitals {
    /// How unequally the codes use prototypes: sum over k of |share of k - 1/K|, 0 (equally, as the constraint says) to 2.
    pub row_residual: Option<f64>,
    /// How far the queue's embeddings are from the batch's: the squared distance of their means over what it is by chance,
    /// `|m_q - m_b|² / (s (1/B + 1/L))` with the spread `s = 1 - |m_b|²`, B embeddings in the batch and L in the queue.
    /// Around 1 if the network stands still.
    pub queue_drift: Option<f64>,
}

/// What [`AssignCodes::assign`] gives.
#[derive(Debug, Clone, PartialEq)]
pub struct Assigned {
    /// The codes, in an order that the loss understands.
    pub codes: Vec<Code>,
    /// Whether remembered embeddings took part.
    pub used_memory: bool,
}

/// The codes of one crop of each image, or of each image as a whole.
#[derive(Debug, Clone, PartialEq)]
pub struct Code {
    /// Whose code it is: this crop is not asked to predict it. `None` if it is the image's, which all crops predict.
    pub crop: Option<usize>,
    /// Weights (B, K) of the prototypes, not negative; rows usually sum to 1.
    pub weights: Array2<f32>,
}

/// The rows of one crop.
fn rows_of_crop(
    rows: ArrayView2<'_, f32>,
    crop: usize,
    batch: usize,
) -> Result<ArrayView2<'_, f32>, TrainError> {
    let n_crops = rows.nrows().checked_div(batch).unwrap_or(0);
    if crop >= n_crops {
        return Err(TrainError::NoSuchCrop { crop, n_crops });
    }
    Ok(rows.slice_move(s![crop * batch..(crop + 1) * batch, ..]))
}
