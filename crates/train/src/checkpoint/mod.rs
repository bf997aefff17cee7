//! Checkpoints: one safetensors file with everything that a run needs to go on bit for bit.
//!
//! A checkpoint has named sections, each of which one part of the run owns:
//!
//! | tensors | whose |
//! |---|---|
//! | `conv1.weight`, `bn1.running_mean`, ... | the encoder's, under the reference's names, so that other programs can read them |
//! | `prototypes.weight` or `prototypes.prototypes0.weight`, ... | the prototypes', likewise |
//! | `optimizer.NAME` | the optimiser's memory of both |
//! | `sections/codes/RANK/NAME` | what the codes of each process remember, such as the queue |
//! | `sections/loss/RANK/NAME` | what the loss of each process remembers |
//! | `sections/statistics/RANK/NAME` | batch-norm statistics of each of several processes |
//!
//! What the encoder's device has chosen by measuring ([`Encoder::choices`](swav_encoder::Encoder::choices)) is a value of the
//! section `device`. It is that of the last device that had something to choose: a run that goes on where there is nothing of the
//! kind writes again what it found, unread, for a device that comes later. The metadata entry `swav` is a JSON object with the version, the position, the number of processes, the
//! configuration, the identity of the data, small values of the sections, and a CRC-32C of all the rest. Random streams
//! need no state: they are derived from seed, epoch, sample and crop. Files of version 1, which had a queue in place of
//! sections, can be read.

mod file;
mod version1;

pub(crate) use file::write_atomically;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use swav_encoder::StateDict;

use crate::memory::bytes;
use crate::section::Section;

const PROTOTYPES: &str = "prototypes.";
/// The section of the encoder's devices, and the value in it.
pub(crate) const DEVICE: &str = "device";
pub(crate) const CHOICES: &str = "choices";

/// Why a checkpoint cannot be written, read or resumed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// Writing failed: a full disk, missing rights. Earlier checkpoints are as they were.
    #[error("cannot write the checkpoint {path}; earlier checkpoints are intact")]
    Write {
        /// The file that was to be written.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The tensors do not make a safetensors file.
    #[error("cannot lay out {path}; earlier checkpoints are intact")]
    Layout {
        /// The file that was to be written.
        path: PathBuf,
        /// Why.
        source: safetensors::SafeTensorError,
    },
    /// The file cannot be read at all.
    #[error("cannot read the checkpoint {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is truncated, or its contents are not what was written.
    #[error("the checkpoint {path} is damaged: {message}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What gave it away.
        message: String,
    },
    /// A newer version of this program wrote it.
    #[error(
        "the checkpoint {path} is of layout {got}: this program is too old for it, it reads layouts up to {expected}"
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// The newest version that this program reads.
        expected: u32,
        /// The file's version.
        got: u32,
    },
    /// The folder holds imported weights, which no training can go on from.
    #[error(
        "{path} holds imported weights and no training; start one from them in another folder, with encoder.init={path}"
    )]
    Imported {
        /// The folder.
        path: PathBuf,
    },
    /// Nothing to resume from.
    #[error("no usable checkpoint in {path}{}", damaged_list(.damaged))]
    None {
        /// The folder.
        path: PathBuf,
        /// Checkpoints that are there but damaged.
        damaged: Vec<PathBuf>,
    },
    /// The weights of a run that has ended are there, but no checkpoint. Starting over would replace them.
    #[error(
        "{path} has the weights of a finished run, but no checkpoint to go on from (nothing was changed)"
    )]
    Lost {
        /// The run's folder.
        path: PathBuf,
    },
    /// The file is larger than the memory that there is.
    #[error("the checkpoint {path} has {}, more than the {} of memory that are there", bytes(u128::from(*.size)), bytes(u128::from(*.available)))]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its bytes.
        size: u64,
        /// Bytes of memory.
        available: u64,
    },
    /// The checkpoint is of another architecture, other data, or another recipe.
    #[error("the checkpoint {path} does not fit this run:\n  {}", .differences.join("\n  "))]
    Mismatch {
        /// The file.
        path: PathBuf,
        /// Each difference, one line.
        differences: Vec<String>,
    },
}

fn damaged_list(damaged: &[PathBuf]) -> String {
    if damaged.is_empty() {
        return String::new();
    }
    let names: Vec<String> = damaged.iter().map(|path| path.display().to_string()).collect();
    format!("; damaged: {}", names.join(", "))
}

/// How far a run has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RunPosition {
    /// The epoch of the next step, from 0.
    pub epoch: u64,
    /// The batch of the next step within its epoch, from 0.
    pub batch: u64,
    /// Steps done in all.
    pub step: u64,
}

impl RunPosition {
    /// The same without the steps: what a loader needs.
    pub fn in_data(self) -> swav_data::Position {
        swav_data::Position { epoch: self.epoch, batch: self.batch }
    }
}

/// Everything that a run needs to go on.
#[derive(Debug, Clone, PartialEq)]
pub struct Checkpoint {
    /// How far the run has come.
    pub position: RunPosition,
    /// The resolved configuration as TOML.
    pub config: String,
    /// [`Dataset::fingerprint`](swav_data::Dataset::fingerprint) of the training images.
    pub data_fingerprint: u64,
    /// One line about the training images, for messages.
    pub data_description: String,
    /// How many processes trained together.
    pub world_size: usize,
    /// Parameters and batch-norm statistics of the encoder (those of rank 0), and the prototypes.
    pub state: StateDict,
    /// The optimiser's memory of all of them.
    pub optimizer: StateDict,
    /// By the name of the part: what it remembers, one section for each rank.
    pub sections: BTreeMap<String, Vec<Section>>,
}

impl Checkpoint {
    /// The encoder's part of [`state`](Self::state).
    pub fn encoder_state(&self) -> StateDict {
        self.part(|name| !name.starts_with(PROTOTYPES))
    }

    /// The prototypes' part of [`state`](Self::state).
    pub fn prototypes_state(&self) -> StateDict {
        self.part(|name| name.starts_with(PROTOTYPES))
    }

    /// The sections of one part, in the order of the ranks; none if it has remembered nothing.
    pub fn sections_of(&self, part: &str) -> &[Section] {
        self.sections.get(part).map_or(&[], Vec::as_slice)
    }

    fn part(&self, wanted: impl Fn(&str) -> bool) -> StateDict {
        let chosen = self.state.iter().filter(|(name, _)| wanted(name));
        chosen.map(|(name, tensor)| (name.to_owned(), tensor.clone())).collect()
    }
}

/// Whether the optimiser's memory of this name belongs to a prototype.
pub(crate) fn is_of_prototypes(name: &str) -> bool {
    name.starts_with(PROTOTYPES)
}
