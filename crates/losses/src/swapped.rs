//! The loss over all crops, its gradient and its diagnostics.

use ndarray::{Array2, ArrayView2};
use rayon::prelude::*;

use crate::diagnostics::{Diagnostics, entropy};
use crate::error::LossError;
use crate::mutants::mutated;
use crate::softmax;

/// Rows that one task takes; part of the summation order, so it depends on nothing.
const ROWS_PER_TASK: usize = 16;

/// The swapped-prediction loss for a fixed number of crops and set of assignment crops.
#[derive(Debug, Clone, PartialEq)]
pub struct SwappedPrediction {
    n_crops: usize,
    assign: Vec<usize>,
    temperature: f32,
}

/// What [`SwappedPrediction::evaluate`] gives.
#[derive(Debug, Clone, PartialEq)]
pub struct SwappedLoss {
    /// The loss in nats, averaged over samples and pairs of crops.
    pub loss: f64,
    /// Its gradient with respect to the scores, in their shape.
    pub grad_scores: Array2<f32>,
    /// State of codes and predictions.
    pub diagnostics: Diagnostics,
}

impl SwappedPrediction {
    /// A loss over `n_crops` crops of each image, of which those in `assign` have codes, at `temperature` τ
    /// (0.1 in the reference).
    ///
    /// # Errors
    /// Fewer than two crops; assignment crops that are none, repeated or beyond the crops; a temperature that
    /// is not finite and positive.
    pub fn new(n_crops: usize, assign: &[usize], temperature: f32) -> Result<Self, LossError> {
        if n_crops < 2 {
            return Err(LossError::TooFewCrops { got: n_crops });
        }
        let repeated = |(n, crop): (usize, &usize)| assign[..n].contains(crop);
        if assign.is_empty()
            || assign.iter().any(|&crop| crop >= n_crops)
            || assign.iter().enumerate().any(repeated)
        {
            return Err(LossError::AssignmentCrops { n_crops, got: assign.to_vec() });
        }
        check_temperature(temperature)?;
        Ok(Self { n_crops, assign: assign.to_vec(), temperature })
    }

    /// The temperature τ, above 0.
    pub fn temperature(&self) -> f32 {
        self.temperature
    }

    /// Changes the temperature, as a schedule does from step to step.
    ///
    /// # Errors
    /// [`LossError::Temperature`] if it is not finite and above 0; the old one then stays.
    pub fn set_temperature(&mut self, temperature: f32) -> Result<(), LossError> {
        check_temperature(temperature)?;
        self.temperature = temperature;
        Ok(())
    }

    /// Crops of each image.
    pub fn n_crops(&self) -> usize {
        self.n_crops
    }

    /// The crops that have codes, in the order in which [`evaluate`](Self::evaluate) takes them.
    pub fn assign(&self) -> &[usize] {
        &self.assign
    }

    /// Loss, gradient and diagnostics.
    ///
    /// `scores` (`n_crops`·B, K) are ordered crop by crop: all samples of crop 0, then of crop 1. `codes` holds
    /// one (B, K) array for each assignment crop, in the order of [`assign`](Self::assign); rows usually sum to
    /// 1, but any non-negative weights are taken as they are.
    ///
    /// Values that are not finite are not refused: they make the loss not finite.
    ///
    /// # Errors
    /// [`LossError::Scores`] or [`LossError::Shape`].
    pub fn evaluate(
        &self,
        scores: ArrayView2<'_, f32>,
        codes: &[ArrayView2<'_, f32>],
    ) -> Result<SwappedLoss, LossError> {
        let (n_rows, k) = scores.dim();
        if n_rows == 0 || k == 0 || !n_rows.is_multiple_of(self.n_crops) {
            return Err(LossError::Scores { n_rows, n_columns: k, n_crops: self.n_crops });
        }
        let batch = n_rows / self.n_crops;
        check("codes, one for each assignment crop", self.assign.len(), codes.len())?;
        for code in codes {
            check("samples of a code", batch, code.nrows())?;
            check("prototypes of a code", k, code.ncols())?;
        }
        let scores = scores.as_standard_layout();
        let codes: Vec<_> = codes.iter().map(|code| code.as_standard_layout()).collect();
        let flat_scores = scores.as_slice().expect("standard layout is contiguous");
        let flat_codes: Vec<&[f32]> =
            codes.iter().map(|code| code.as_slice().expect("standard layout is contiguous")).collect();

        let others = if mutated("loss-mean-counts-own-crop") { self.n_crops } else { self.n_crops - 1 };
        let pairs = self.assign.len() * others * batch;
        let inverse_temperature = 1.0 / self.temperature;
        let slope = if mutated("temperature-missing-in-gradient") { 1.0 } else { inverse_temperature };
        let scale = (f64::from(slope) / pairs as f64) as f32;
        let swapped = !mutated("codes-not-swapped");
        let mut grad_scores = Array2::<f32>::zeros((n_rows, k));
        let grad = grad_scores.as_slice_mut().expect("a new array is contiguous");
        let tasks: Vec<Partial> = grad
            .par_chunks_mut(ROWS_PER_TASK * k)
            .enumerate()
            .map(|(task, grad)| {
                let mut partial = Partial { loss: 0.0, code_entropy: 0.0, usage: vec![0.0; k] };
                let mut target = vec![0.0f32; k];
                for (i, grad) in grad.chunks_exact_mut(k).enumerate() {
                    let row = task * ROWS_PER_TASK + i;
                    let (crop, sample) = (row / batch, row % batch);
                    partial.code_entropy += self.target(crop, sample, &flat_codes, swapped, &mut target);
                    let scores = &flat_scores[row * k..][..k];
                    partial.loss +=
                        softmax::row(scores, &target, inverse_temperature, scale, grad, &mut partial.usage);
                }
                partial
            })
            .collect();

        let mut usage = vec![0.0f64; k];
        let (mut loss, mut code_entropy) = (0.0, 0.0);
        for task in &tasks {
            loss += task.loss;
            code_entropy += task.code_entropy;
            for (total, &part) in usage.iter_mut().zip(&task.usage) {
                *total += f64::from(part);
            }
        }
        let loss = loss / pairs as f64;
        let diagnostics = Diagnostics {
            code_entropy: code_entropy / (self.assign.len() * batch) as f64,
            code_perplexity: entropy(mean_code(&flat_codes, k)).exp(),
            prediction_perplexity: entropy(usage).exp(),
            gap_to_ln_k: (k as f64).ln() - loss,
        };
        Ok(SwappedLoss { loss, grad_scores, diagnostics })
    }

    /// Sums the codes that `crop` has to predict for `sample` into `target`; returns the entropy of the
    /// crop's own code, or 0 if it has none, so that over all rows each code is counted once.
    ///
    /// `swapped` is true but for a fault that tests switch on: assignment crops then predict their own codes.
    fn target(&self, crop: usize, sample: usize, codes: &[&[f32]], swapped: bool, target: &mut [f32]) -> f64 {
        let k = target.len();
        target.fill(0.0);
        let mut own = 0.0;
        let predicts_others = swapped || !self.assign.contains(&crop);
        for (&assign, code) in self.assign.iter().zip(codes) {
            let code = &code[sample * k..][..k];
            if assign == crop {
                own = entropy(code.iter().map(|&q| f64::from(q)));
            }
            if (assign != crop) == predicts_others {
                for (t, &q) in target.iter_mut().zip(code) {
                    *t += q;
                }
            }
        }
        own
    }
}

/// Sums of one task's rows.
struct Partial {
    loss: f64,
    code_entropy: f64,
    usage: Vec<f32>,
}

/// Column sums over all codes, in a fixed order.
fn mean_code(codes: &[&[f32]], k: usize) -> Vec<f64> {
    let mut sums = vec![0.0f64; k];
    for row in codes.iter().flat_map(|code| code.chunks_exact(k)) {
        for (sum, &q) in sums.iter_mut().zip(row) {
            *sum += f64::from(q);
        }
    }
    sums
}

fn check_temperature(temperature: f32) -> Result<(), LossError> {
    if temperature.is_finite() && temperature > 0.0 {
        Ok(())
    } else {
        Err(LossError::Temperature { got: temperature })
    }
}

fn check(what: &'static str, expected: usize, got: usize) -> Result<(), LossError> {
    if expected == got { Ok(()) } else { Err(LossError::Shape { what, expected, got }) }
}
