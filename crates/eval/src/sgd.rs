//! A linear classifier that is trained batch by batch with SGD, as on augmented crops, whose features never are in memory
//! together.

use ndarray::{Array1, Array2, ArrayView2, Axis};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Normal};

use crate::probe::rank;
use crate::{EvalError, Predictions};

/// Deviation of the initial weights, the SwAV reference's.
const INITIAL_DEVIATION: f32 = 0.01;

/// How one step changes the weights: PyTorch's SGD, `v <- momentum·v + g + weight_decay·w`, `w <- w - lr·v`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SgdRule {
    /// Learning rate.
    pub lr: f32,
    /// Momentum.
    pub momentum: f32,
    /// Weight decay, of the biases, too.
    pub weight_decay: f32,
}

/// What one step has seen.
#[derive(Debug, Clone, PartialEq)]
pub struct SgdStep {
    /// Mean cross-entropy of the batch in nats, before the update.
    pub loss: f64,
    /// Images of the batch that were classified right, before the update.
    pub n_right: usize,
    /// Gradient of the loss with respect to the features, (batch, d).
    pub gradient: Array2<f32>,
}

/// Logits `x Wᵀ + b` with their velocities.
#[derive(Debug, Clone, PartialEq)]
pub struct SgdClassifier {
    weights: Array2<f32>,
    bias: Array1<f32>,
    weights_velocity: Array2<f32>,
    bias_velocity: Array1<f32>,
}

impl SgdClassifier {
    /// For features of `dim` columns: weights normal with deviation 0.01, biases 0.
    pub fn new(n_classes: usize, dim: usize, seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let normal = Normal::new(0.0, INITIAL_DEVIATION).expect("the deviation is a positive number");
        Self {
            weights: Array2::from_shape_simple_fn((n_classes, dim), || normal.sample(&mut rng)),
            bias: Array1::zeros(n_classes),
            weights_velocity: Array2::zeros((n_classes, dim)),
            bias_velocity: Array1::zeros(n_classes),
        }
    }

    /// One step on `features` (batch, d), whose classes, from 0, are `targets`.
    ///
    /// # Errors
    /// [`EvalError::Length`] if numbers of rows or columns do not fit, [`EvalError::NotFinite`] if a feature is not finite or
    /// the weights have grown beyond numbers.
    pub fn step(
        &mut self,
        features: ArrayView2<'_, f32>,
        targets: &[usize],
        rule: SgdRule,
    ) -> Result<SgdStep, EvalError> {
        crate::neighbours::check_values(features, "batch")?;
        self.check_columns(features)?;
        if targets.len() != features.nrows() {
            return Err(EvalError::Length {
                what: "targets",
                expected: features.nrows(),
                got: targets.len(),
            });
        }
        let mut logits = self.logits(features);
        let n = features.nrows() as f64;
        let (mut loss, mut n_right) = (0.0, 0);
        for (row, (mut logits, &target)) in logits.rows_mut().into_iter().zip(targets).enumerate() {
            let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f64 = logits.iter().map(|&v| f64::from(v - most).exp()).sum();
            if !sum.is_finite() {
                return Err(EvalError::NotFinite { what: "logits", row, got: sum as f32 });
            }
            loss += sum.ln() - f64::from(logits[target] - most);
            n_right += usize::from(logits[target] >= most);
            for (class, value) in logits.iter_mut().enumerate() {
                let truth = f64::from(u8::from(class == target));
                *value = ((f64::from(*value - most).exp() / sum - truth) / n) as f32;
            }
        }
        let gradient = logits.dot(&self.weights);
        let of_weights = logits.t().dot(&features);
        let of_bias = logits.sum_axis(Axis(0));
        let SgdRule { lr, momentum, weight_decay } = rule;
        let update = |w: &mut f32, v: &mut f32, g: f32| {
            *v = momentum * *v + g + weight_decay * *w;
            *w -= lr * *v;
        };
        ndarray::azip!((w in &mut self.weights, v in &mut self.weights_velocity, &g in &of_weights) update(w, v, g));
        ndarray::azip!((w in &mut self.bias, v in &mut self.bias_velocity, &g in &of_bias) update(w, v, g));
        Ok(SgdStep { loss: loss / n, n_right, gradient })
    }

    /// Classifies features (m, d); class i is called `classes[i]`.
    ///
    /// # Errors
    /// [`EvalError::Length`] if the columns or the names of the classes are too many or too few, [`EvalError::NotFinite`].
    pub fn predict(&self, features: ArrayView2<'_, f32>, classes: &[u32]) -> Result<Predictions, EvalError> {
        crate::neighbours::check_values(features, "queries")?;
        self.check_columns(features)?;
        if classes.len() != self.bias.len() {
            return Err(EvalError::Length { what: "classes", expected: self.bias.len(), got: classes.len() });
        }
        Ok(Predictions { ranked: rank(self.logits(features).view(), classes) })
    }

    fn logits(&self, features: ArrayView2<'_, f32>) -> Array2<f32> {
        features.dot(&self.weights.t()) + &self.bias
    }

    fn check_columns(&self, features: ArrayView2<'_, f32>) -> Result<(), EvalError> {
        let (expected, got) = (self.weights.ncols(), features.ncols());
        if got == expected {
            return Ok(());
        }
        Err(EvalError::Length { what: "columns of the features", expected, got })
    }
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    #[test]
    fn two_steps_are_those_of_pytorch() {
        let mut classifier = SgdClassifier {
            weights: array![[0.1, -0.2], [0.0, 0.3], [0.2, 0.1]],
            bias: array![0.0, 0.1, -0.1],
            ..SgdClassifier::new(3, 2, 0)
        };
        let features = array![[1.0, 2.0], [-0.5, 1.0]];
        let rule = SgdRule { lr: 0.5, momentum: 0.9, weight_decay: 0.01 };
        let first = classifier.step(features.view(), &[1, 2], rule).unwrap();
        let second = classifier.step(features.view(), &[1, 2], rule).unwrap();
        // From torch.nn.Linear, cross_entropy and torch.optim.SGD in f64.
        let close = |a: f64, b: f64| (a - b).abs() < 1e-6;
        assert!(close(first.loss, LOSSES[0]) && close(second.loss, LOSSES[1]), "{first:?} {second:?}");
        let weights =
            classifier.weights.iter().zip(WEIGHTS).all(|(&w, expected)| close(f64::from(w), expected));
        assert!(weights, "{:?}", classifier.weights);
        let gradient =
            first.gradient.iter().zip(GRADIENT).all(|(&g, expected)| close(f64::from(g), expected));
        assert!(gradient, "{:?}", first.gradient);
    }

    const LOSSES: [f64; 2] = [0.9837601152, 0.7650961302];
    const WEIGHTS: [f64; 6] =
        [0.0699094140, -0.5792615865, 0.5013723745, 0.6137301412, -0.2756242885, 0.1626364453];
    const GRADIENT: [f64; 4] = [0.0419124709, -0.0780109434, -0.0592425467, 0.0101913810];

    #[test]
    fn diverged_weights_and_wrong_shapes_are_errors() {
        let mut classifier = SgdClassifier::new(2, 2, 0);
        let rule = SgdRule { lr: f32::MAX, momentum: 0.0, weight_decay: 0.0 };
        let features = array![[1e30, 0.0], [0.0, 1.0]];
        let diverged = (0..4).find_map(|_| classifier.step(features.view(), &[0, 1], rule).err());
        assert!(matches!(diverged, Some(EvalError::NotFinite { .. })), "{diverged:?}");
        let mut classifier = SgdClassifier::new(2, 2, 0);
        assert!(matches!(
            classifier.step(array![[1.0]].view(), &[0], rule),
            Err(EvalError::Length { expected: 2, got: 1, .. })
        ));
        assert!(matches!(
            classifier.step(array![[1.0, 2.0]].view(), &[0, 1], rule),
            Err(EvalError::Length { what: "targets", .. })
        ));
    }
}
