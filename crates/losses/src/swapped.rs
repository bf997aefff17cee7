//! The loss over all crops, its gradient and its diagnostics.

use ndarray::{Array2, ArrayView2};
use rayon::prelude::*;

use crate::diagnostics::{Diagnostics, entropy};
use crate::error::LossError;
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
    /// Its gradient by the scores, in their shape.
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
            return Err(LossError::TooFewCrops(n_crops));
        }
        let repeated = |(n, crop): (usize, &usize)| assign[..n].contains(crop);
        if assign.is_empty()
            || assign.iter().any(|&crop| crop >= n_crops)
            || assign.iter().enumerate().any(repeated)
        {
            return Err(LossError::AssignmentCrops { n_crops, assign: assign.to_vec() });
        }
        if !(temperature.is_finite() && temperature > 0.0) {
            return Err(LossError::Temperature(temperature));
        }
        Ok(Self { n_crops, assign: assign.to_vec(), temperature })
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

        let pairs = self.assign.len() * (self.n_crops - 1) * batch;
        let inverse_temperature = 1.0 / self.temperature;
        let scale = (f64::from(inverse_temperature) / pairs as f64) as f32;
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
                    partial.code_entropy += self.target(crop, sample, &flat_codes, &mut target);
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
    fn target(&self, crop: usize, sample: usize, codes: &[&[f32]], target: &mut [f32]) -> f64 {
        let k = target.len();
        target.fill(0.0);
        let mut own = 0.0;
        for (&assign, code) in self.assign.iter().zip(codes) {
            let code = &code[sample * k..][..k];
            if assign == crop {
                own = entropy(code.iter().map(|&q| f64::from(q)));
            } else {
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

fn check(what: &'static str, expected: usize, actual: usize) -> Result<(), LossError> {
    if expected == actual { Ok(()) } else { Err(LossError::Shape { what, expected, actual }) }
}
