//! Callbacks: what a program wants to see or do at each step and epoch.

use std::cell::RefCell;
use std::error::Error;

use swav_encoder::Encoder;

use crate::error::TrainError;
use crate::metrics::Metrics;
use crate::step::{StepOutput, Swav};

/// What a callback returns; its error ends the run.
pub type HookResult = Result<(), Box<dyn Error + Send + Sync>>;

/// A step that has just been done.
pub struct StepEvent<'a> {
    /// Its numbers.
    pub metrics: &'a Metrics,
    /// Its embeddings, scores, codes and gradients; `None` if the step ran on a device as a whole.
    pub output: Option<&'a StepOutput>,
    /// The encoder after the step.
    pub encoder: &'a dyn Encoder,
    /// Prototypes, codes and loss after the step.
    pub swav: &'a Swav,
}

/// An epoch that has just been done.
pub struct EpochEvent<'a> {
    /// The epoch, from 0.
    pub epoch: u64,
    /// Mean loss of its steps, of those that this process did since it began or resumed.
    pub mean_loss: f64,
    /// The encoder after the epoch.
    pub encoder: &'a dyn Encoder,
    /// Prototypes, codes and loss after the epoch.
    pub swav: &'a Swav,
    /// What callbacks have found out about the epoch, for the run's records.
    pub notes: &'a Notes,
}

/// Numbers that callbacks have found out, such as an accuracy. They go into `metrics.jsonl` as a line of their own, `{"epoch":
/// 3, "step": 1200, "evaluation": {"knn_accuracy": 0.71}}`, to TensorBoard as `evaluation/NAME`, and into the progress line.
#[derive(Debug, Default)]
pub struct Notes(RefCell<Vec<(String, f64)>>);

impl Notes {
    /// Adds a number. One that is not finite is left out: JSON has no word for it.
    pub fn add(&self, name: impl Into<String>, value: f64) {
        if value.is_finite() {
            self.0.borrow_mut().push((name.into(), value));
        }
    }

    /// All numbers so far, in the order in which they were added.
    pub(crate) fn into_numbers(self) -> Vec<(String, f64)> {
        self.0.into_inner()
    }
}

type OnStep = Box<dyn FnMut(&StepEvent<'_>) -> HookResult + Send>;
type OnEpoch = Box<dyn FnMut(&EpochEvent<'_>) -> HookResult + Send>;

/// All callbacks of a run, in the order in which they were given.
#[derive(Default)]
pub(crate) struct Hooks {
    pub(crate) on_step: Vec<OnStep>,
    pub(crate) on_epoch: Vec<OnEpoch>,
}

impl Hooks {
    /// Whether somebody looks at every step.
    pub(crate) fn watch_steps(&self) -> bool {
        !self.on_step.is_empty()
    }

    pub(crate) fn step(&mut self, event: &StepEvent<'_>) -> Result<(), TrainError> {
        self.on_step.iter_mut().try_for_each(|hook| hook(event)).map_err(TrainError::Own)
    }

    pub(crate) fn epoch(&mut self, event: &EpochEvent<'_>) -> Result<(), TrainError> {
        self.on_epoch.iter_mut().try_for_each(|hook| hook(event)).map_err(TrainError::Own)
    }
}
