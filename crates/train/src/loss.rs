//! The loss of a step.

use ndarray::{Array2, ArrayView2};
use swav_losses::{Diagnostics, SwappedPrediction};

use crate::codes::Code;
use crate::error::TrainError;
use crate::moment::Moment;
use crate::section::Section;

/// A loss on the scores of one batch under one head.
///
/// Implement it to train with another one; [`Swapped`] is SwAV's. Losses of several heads are averaged.
pub trait Loss: Send {
    /// The loss and its gradient with respect to the scores.
    ///
    /// # Errors
    /// The implementation's; one of another crate can use [`TrainError::own`].
    fn evaluate(&mut self, input: &LossInput<'_>) -> Result<LossOutput, TrainError>;

    /// What this process has to remember for the run to go on with the same bits; empty if nothing.
    fn save(&self) -> Section {
        Section::default()
    }

    /// Takes back what the processes of an earlier run saved, as [`AssignCodes::load`](crate::AssignCodes::load).
    ///
    /// # Errors
    /// [`TrainError::Section`] if that does not fit.
    fn load(&mut self, sections: &[Section], _rank: usize, _world_size: usize) -> Result<(), TrainError> {
        match sections.iter().all(Section::is_empty) {
            true => Ok(()),
            false => Err(TrainError::section("loss", "a part without memory", "memory of another kind")),
        }
    }

    /// The swapped prediction that this is, if it is one whose temperature is constant: what an encoder that runs whole
    /// steps on its device can compute there.
    fn as_swapped(&self) -> Option<&SwappedPrediction> {
        None
    }
}

/// What a loss is computed from. Rows are ordered crop by crop: all images of crop 0, then of crop 1, ...
#[derive(Clone, Copy)]
pub struct LossInput<'a> {
    /// When.
    pub moment: Moment,
    /// Which head, from 0.
    pub head: usize,
    /// Scores (crops·B, K).
    pub scores: ArrayView2<'a, f32>,
    /// The codes, as they were assigned; constants.
    pub codes: &'a [Code],
}

/// What [`Loss::evaluate`] gives.
#[derive(Debug, Clone, PartialEq)]
pub struct LossOutput {
    /// The loss, averaged over what it is a loss of.
    pub loss: f64,
    /// Its gradient with respect to the scores, in their shape.
    pub grad_scores: Array2<f32>,
    /// State of codes and predictions, which are watched for signs of collapse; `None` if there is no such thing.
    pub diagnostics: Option<Diagnostics>,
}

type TemperatureSchedule = Box<dyn Fn(Moment) -> f32 + Send>;

/// SwAV's loss: each crop predicts the codes of the others. See [`SwappedPrediction`].
pub struct Swapped {
    loss: SwappedPrediction,
    temperature: Option<TemperatureSchedule>,
}

impl Swapped {
    /// The loss as `loss` has it.
    pub fn new(loss: SwappedPrediction) -> Self {
        Self { loss, temperature: None }
    }

    /// Computes the temperature of each step, above 0, in place of a constant one.
    #[must_use]
    pub fn with_temperature(mut self, temperature: impl Fn(Moment) -> f32 + Send + 'static) -> Self {
        self.temperature = Some(Box::new(temperature));
        self
    }
}

impl Loss for Swapped {
    fn evaluate(&mut self, input: &LossInput<'_>) -> Result<LossOutput, TrainError> {
        let crops: Vec<Option<usize>> = input.codes.iter().map(|code| code.crop).collect();
        if !crops.iter().copied().eq(self.loss.assign().iter().map(|&crop| Some(crop))) {
            return Err(TrainError::CodesOfCrops { expected: self.loss.assign().to_vec(), got: crops });
        }
        let codes: Vec<_> = input.codes.iter().map(|code| code.weights.view()).collect();
        if let Some(temperature) = &self.temperature {
            self.loss.set_temperature(temperature(input.moment))?;
        }
        let out = self.loss.evaluate(input.scores, &codes)?;
        Ok(LossOutput { loss: out.loss, grad_scores: out.grad_scores, diagnostics: Some(out.diagnostics) })
    }

    fn as_swapped(&self) -> Option<&SwappedPrediction> {
        self.temperature.is_none().then_some(&self.loss)
    }
}
