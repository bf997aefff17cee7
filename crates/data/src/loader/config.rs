//! How batches are made, and which.

use std::thread;

#[cfg(feature = "serde")]
use serde::{Deserialize, Serialize};

use crate::{LoaderError, Shuffle};

/// A place in a run: the next batch to be delivered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize), serde(deny_unknown_fields))]
pub struct Position {
    /// The epoch, from 0.
    pub epoch: u64,
    /// The batch in the epoch, from 0.
    pub batch: u64,
}

/// What happens to an image that cannot be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize), serde(rename_all = "kebab-case"))]
pub enum OnBad {
    /// The next usable image takes its place: the neighbours by index, then others by a fixed rule.
    #[default]
    Replace,
    /// The batch is smaller without it; a batch without any usable image is not delivered.
    LeaveOut,
}

/// How batches are made.
///
/// At most `queue_batches` + 3 batches are in memory at a time, the one in use included.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize), serde(default, deny_unknown_fields))]
pub struct LoaderConfig {
    /// Threads that decode and augment, apart from those that compute; 0 is one for each core. Default: 0.
    pub n_workers: usize,
    /// Finished batches that may wait, at least 1. Default: 2.
    pub queue_batches: usize,
    /// The order of images. Default: `auto`.
    pub shuffle: Shuffle,
    /// Images among which windowed shuffling permutes, at least 1. Default: 16384.
    pub window_images: usize,
    /// Leaves out the incomplete last batch of an epoch. Default: true.
    pub drop_last: bool,
    /// What happens to images that cannot be used. Default: `replace`.
    pub on_bad: OnBad,
    /// The share of the data set's images, 0 to 1, that may be unusable; more of them end the loading. Default: 0.1.
    pub max_bad_share: f64,
}

impl Default for LoaderConfig {
    fn default() -> Self {
        Self {
            n_workers: 0,
            queue_batches: 2,
            shuffle: Shuffle::Auto,
            window_images: 16_384,
            drop_last: true,
            on_bad: OnBad::Replace,
            max_bad_share: 0.1,
        }
    }
}

impl LoaderConfig {
    /// The settings for reading a data set in its order, whole, with bad images left out. With one epoch in the
    /// [`BatchPlan`] it is read once.
    pub fn evaluation() -> Self {
        Self { shuffle: Shuffle::None, drop_last: false, on_bad: OnBad::LeaveOut, ..Self::default() }
    }

    /// Checks the ranges of all values.
    ///
    /// # Errors
    /// [`LoaderError::Config`] with the field, its range and the value.
    pub fn check(&self) -> Result<LoaderSpec, LoaderError> {
        at_least_1(&[("queue_batches", self.queue_batches), ("window_images", self.window_images)])?;
        if !(0.0..=1.0).contains(&self.max_bad_share) {
            let got = self.max_bad_share.to_string();
            return Err(LoaderError::Config { field: "max_bad_share", expected: "a share from 0 to 1", got });
        }
        let n_workers = match self.n_workers {
            0 => thread::available_parallelism().map_or(1, usize::from),
            n => n,
        };
        Ok(LoaderSpec { config: Self { n_workers, ..self.clone() } })
    }
}

/// A checked [`LoaderConfig`], in which the number of workers is known.
#[derive(Clone, Debug, PartialEq)]
pub struct LoaderSpec {
    pub(super) config: LoaderConfig,
}

/// Which batches a loader delivers: what is known when a run starts, not written in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchPlan {
    /// Images in a batch of this process, at least 1. Default: 64.
    pub batch_size: usize,
    /// The seed of orders and views. Default: 0.
    pub seed: u64,
    /// The number of this process, below `world_size`. Default: 0.
    pub rank: usize,
    /// The number of processes that share each batch, at least 1. Default: 1.
    pub world_size: usize,
    /// Epochs after which the loader ends; `None` goes on forever. Default: `None`.
    pub n_epochs: Option<u64>,
}

impl Default for BatchPlan {
    fn default() -> Self {
        Self { batch_size: 64, seed: 0, rank: 0, world_size: 1, n_epochs: None }
    }
}

impl BatchPlan {
    pub(super) fn refuse_wrong(&self) -> Result<(), LoaderError> {
        at_least_1(&[("batch_size", self.batch_size), ("world_size", self.world_size)])?;
        if self.rank >= self.world_size {
            let got = format!("rank {} of {}", self.rank, self.world_size);
            return Err(LoaderError::Config { field: "rank", expected: "below world_size", got });
        }
        Ok(())
    }
}

fn at_least_1(counts: &[(&'static str, usize)]) -> Result<(), LoaderError> {
    match counts.iter().find(|(_, value)| *value == 0) {
        Some(&(field, _)) => Err(LoaderError::Config { field, expected: "at least 1", got: "0".to_owned() }),
        None => Ok(()),
    }
}
