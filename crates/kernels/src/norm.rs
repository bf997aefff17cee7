//! Batch normalisation's arithmetic on channels: statistics, and the affine maps that fuse it into
//! the convolutions before and after it.

use crate::mutants::mutated;
use crate::{Context, Error};

/// Added to the variance before its square root.
pub const BN_EPSILON: f32 = 1e-5;

/// The weight of a new batch in the running statistics.
pub const BN_MOMENTUM: f32 = 0.1;

/// The mean and variance of a batch, per channel.
#[derive(Debug, Clone, PartialEq)]
pub struct BatchStats {
    /// Mean of each channel.
    pub mean: Vec<f32>,
    /// Biased variance (divided by `count`) of each channel: the one that normalises.
    pub var: Vec<f32>,
    /// Values per channel: images × height × width.
    pub count: usize,
}

impl BatchStats {
    /// Moves running statistics towards this batch: `running = (1 - momentum)·running + momentum·batch`,
    /// with the unbiased variance (`count - 1` in the denominator), as PyTorch does.
    ///
    /// # Errors
    /// [`Error::Shape`] if the slices do not have one value per channel.
    pub fn update_running(&self, mean: &mut [f32], var: &mut [f32], momentum: f32) -> Result<(), Error> {
        for (what, len) in [("running mean", mean.len()), ("running variance", var.len())] {
            if len != self.mean.len() {
                return Err(Error::shape(what, self.mean.len(), len));
            }
        }
        let unbiased = match mutated("bn-biased-variance") {
            false => self.count as f32 / (self.count.max(2) - 1) as f32,
            true => 1.0,
        };
        let momentum = if mutated("bn-momentum-wrong-side") { 1.0 - momentum } else { momentum };
        for c in 0..mean.len() {
            mean[c] += momentum * (self.mean[c] - mean[c]);
            var[c] += momentum * (self.var[c] * unbiased - var[c]);
        }
        Ok(())
    }
}

/// A per-channel affine map `y·scale + shift`: batch norm with its statistics folded in.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Affine {
    /// `gamma / sqrt(var + eps)`.
    pub scale: Vec<f32>,
    /// `beta - mean·scale`.
    pub shift: Vec<f32>,
}

impl Affine {
    /// Folds statistics and parameters.
    pub fn new(mean: &[f32], var: &[f32], gamma: &[f32], beta: &[f32]) -> Self {
        let scale: Vec<f32> = var.iter().zip(gamma).map(|(v, g)| g / (v + BN_EPSILON).sqrt()).collect();
        let shift = mean.iter().zip(beta).zip(&scale).map(|((m, b), s)| b - m * s).collect();
        Self { scale, shift }
    }
}

/// Sums over the batch that batch norm's gradient needs, by channel.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct GradSums {
    /// Σ g
    pub grad: Vec<f64>,
    /// Σ g·(y - mean)
    pub grad_centred: Vec<f64>,
}

/// The gradient of batch norm as an affine map of two streams: `dy = g·on_grad + y·on_raw + constant`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct GradAffine {
    /// Factor of the gradient with respect to the normalised output.
    pub on_grad: Vec<f32>,
    /// Factor of the raw value.
    pub on_raw: Vec<f32>,
    /// What is added.
    pub constant: Vec<f32>,
}

impl GradAffine {
    /// From `dx = gamma·r·(g - Σg/N - xhat·Σ(g·xhat)/N)` with `r = 1/sqrt(var + eps)`, where statistics and sums are those
    /// of the whole batch, over all processes. Adds the gradients of gamma and beta, which are those of this process's part
    /// of it, to `d_gamma` and `d_beta`.
    ///
    /// # Errors
    /// [`Error::SumAcross`] if processes cannot add up their sums.
    pub fn new(
        ctx: &Context,
        stats: &BatchStats,
        sums: &GradSums,
        gamma: &[f32],
        d_gamma: &mut [f32],
        d_beta: &mut [f32],
    ) -> Result<Self, Error> {
        let channels = gamma.len();
        let whole = ctx.merge_sums(sums)?;
        let mut out = Self {
            on_grad: Vec::with_capacity(channels),
            on_raw: Vec::with_capacity(channels),
            constant: Vec::with_capacity(channels),
        };
        let n = stats.count as f64;
        for c in 0..channels {
            let r = 1.0 / (f64::from(stats.var[c]) + f64::from(BN_EPSILON)).sqrt();
            d_gamma[c] += (sums.grad_centred[c] * r) as f32;
            d_beta[c] += sums.grad[c] as f32;
            let a = f64::from(gamma[c]) * r;
            let b = -a * r * (whole.grad_centred[c] * r) / n;
            out.on_grad.push(a as f32);
            out.on_raw.push(b as f32);
            out.constant.push((-a * whole.grad[c] / n - b * f64::from(stats.mean[c])) as f32);
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn running_variance_is_unbiased() {
        let stats = BatchStats { mean: vec![2.0], var: vec![3.0], count: 4 };
        let (mut mean, mut var) = (vec![0.0], vec![1.0]);
        stats.update_running(&mut mean, &mut var, 0.1).unwrap();
        assert!((mean[0] - 0.2).abs() < 1e-6);
        assert!((var[0] - (0.9 + 0.1 * 4.0)).abs() < 1e-6);
        assert!(stats.update_running(&mut [], &mut var, 0.1).is_err());
    }

    #[test]
    fn affine_normalises() {
        let a = Affine::new(&[1.0], &[4.0 - BN_EPSILON], &[3.0], &[0.5]);
        assert!((5.0 * a.scale[0] + a.shift[0] - (3.0 * (5.0 - 1.0) / 2.0 + 0.5)).abs() < 1e-5);
    }
}
