//! Optimiser rules: how a parameter follows its gradient, on the host.
//!
//! [`apply`] works on plain slices, so the same code updates an encoder on the CPU and the prototypes. Sums run
//! in f64 in the order of the elements, so the result does not depend on the number of threads.

use serde::{Deserialize, Serialize};

use crate::{EncoderError, StateDict, StateTensor};

/// An optimiser's rule with the hyperparameters of this step. `p` is the parameter, `g` its gradient.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum UpdateRule {
    /// SGD with layer-wise adaptive rates (You et al. 2017, equation 6; the form of NVIDIA Apex's `LARC` with
    /// `clip=False`, which the SwAV reference uses): if `|p|` and `|g|` are both non-zero,
    /// `g <- (g + weight_decay·p)·trust·|p| / (|g| + weight_decay·|p| + 1e-8)`, else `g` stays as it is, without
    /// weight decay; then `v <- momentum·v + g` and `p <- p - lr·v`. Biases and batch-norm parameters included.
    Larc {
        /// Learning rate, not negative.
        lr: f32,
        /// Momentum in `0..1`.
        momentum: f32,
        /// Weight decay, not negative.
        weight_decay: f32,
        /// Trust coefficient, .001 in the reference.
        trust: f32,
    },
    /// SGD with momentum as PyTorch has it: `g <- g + weight_decay·p`, `v <- momentum·v + g`, `p <- p - lr·v`.
    Sgd {
        /// Learning rate, not negative.
        lr: f32,
        /// Momentum in `0..1`.
        momentum: f32,
        /// Weight decay, not negative.
        weight_decay: f32,
    },
    /// Adam with decoupled weight decay (Loshchilov and Hutter 2019, algorithm 2, with PyTorch's placing of
    /// epsilon): `p <- p·(1 - lr·weight_decay)`, `m <- b1·m + (1 - b1)·g`, `s <- b2·s + (1 - b2)·g²`,
    /// `p <- p - lr·(m / (1 - b1^t)) / (sqrt(s / (1 - b2^t)) + epsilon)` at the t-th update.
    AdamW {
        /// Learning rate, not negative.
        lr: f32,
        /// Decay of the mean of gradients, `0..1`.
        beta1: f32,
        /// Decay of the mean of squared gradients, `0..1`.
        beta2: f32,
        /// Added to the denominator, positive.
        epsilon: f32,
        /// Weight decay, not negative.
        weight_decay: f32,
    },
}

/// What an optimiser keeps beside one parameter. Empty until the first update.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Slots {
    /// Momentum (LARC, SGD) or the mean of gradients (AdamW).
    pub first: Vec<f32>,
    /// The mean of squared gradients (AdamW only).
    pub second: Vec<f32>,
    /// The number of updates so far.
    pub n_updates: u64,
}

const FIRST: &str = "first";
const SECOND: &str = "second";
const UPDATES: &str = "n_updates";

impl Slots {
    /// Writes the slots of the parameter `name` into a state as `NAME.first`, `NAME.second` (if used) and
    /// `NAME.n_updates`; nothing before the first update.
    pub fn store(&self, name: &str, shape: &[usize], state: &mut StateDict) {
        if self.n_updates == 0 {
            return;
        }
        for (slot, values) in [(FIRST, &self.first), (SECOND, &self.second)] {
            if !values.is_empty() {
                let tensor = StateTensor::new(shape.to_vec(), values.clone());
                state.insert(format!("{name}.{slot}"), tensor.expect("slots have their parameter's length"));
            }
        }
        // Two parts of 24 bits, since an f32 counts exactly only up to 2^24.
        let parts = [(self.n_updates >> 24) as f32, (self.n_updates & 0xff_ffff) as f32];
        let count = StateTensor::new(vec![2], parts.to_vec()).expect("two values");
        state.insert(format!("{name}.{UPDATES}"), count);
    }

    /// Whether a name in a state is one that [`Slots::store`] gives to a slot of one of these parameters.
    pub(crate) fn owns<'a>(name: &str, mut parameters: impl Iterator<Item = &'a str>) -> bool {
        let Some((parameter, slot)) = name.rsplit_once('.') else { return false };
        [FIRST, SECOND, UPDATES].contains(&slot) && parameters.any(|known| known == parameter)
    }

    /// Reads what [`Slots::store`] wrote; empty slots where the state has none for this parameter.
    ///
    /// # Errors
    /// [`EncoderError::StateShape`] or [`EncoderError::Missing`] if the state is of another parameter.
    pub fn restore(name: &str, shape: &[usize], state: &StateDict) -> Result<Self, EncoderError> {
        let key = format!("{name}.{UPDATES}");
        if state.get(&key).is_none() {
            return Ok(Self::default());
        }
        let parts = state.expect(&key, &[2])?.data();
        let n_updates = ((parts[0] as u64) << 24) + parts[1] as u64;
        let first = state.expect(&format!("{name}.{FIRST}"), shape)?.data().to_vec();
        let key = format!("{name}.{SECOND}");
        let second = match state.get(&key) {
            Some(_) => state.expect(&key, shape)?.data().to_vec(),
            None => Vec::new(),
        };
        Ok(Self { first, second, n_updates })
    }
}

/// Norms of one or more parameters and gradients, for logs and for the detection of divergence.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct UpdateStats {
    /// Euclidean norm of the parameters before the update.
    pub parameter_norm: f64,
    /// Euclidean norm of the gradients before weight decay; not finite if a gradient is not.
    pub gradient_norm: f64,
}

impl UpdateStats {
    /// The norms of two sets of parameters taken together.
    pub fn merge(self, other: Self) -> Self {
        Self {
            parameter_norm: self.parameter_norm.hypot(other.parameter_norm),
            gradient_norm: self.gradient_norm.hypot(other.gradient_norm),
        }
    }
}

/// Updates one parameter in place.
///
/// # Panics
/// If the lengths of value, gradient and non-empty slots differ.
pub fn apply(rule: &UpdateRule, value: &mut [f32], gradient: &[f32], slots: &mut Slots) -> UpdateStats {
    assert_eq!(value.len(), gradient.len(), "a gradient has its parameter's length");
    let stats = UpdateStats { parameter_norm: norm(value), gradient_norm: norm(gradient) };
    slots.n_updates += 1;
    slots.first.resize(value.len(), 0.0);
    match *rule {
        UpdateRule::Larc { lr, momentum, weight_decay, trust } => {
            let (scale, decay) = larc_scale(stats, weight_decay, trust);
            momentum_step(value, gradient, &mut slots.first, lr, momentum, scale, decay);
        }
        UpdateRule::Sgd { lr, momentum, weight_decay } => {
            momentum_step(value, gradient, &mut slots.first, lr, momentum, 1.0, weight_decay);
        }
        UpdateRule::AdamW { lr, beta1, beta2, epsilon, weight_decay } => {
            slots.second.resize(value.len(), 0.0);
            let (first_scale, second_scale) = adam_corrections(beta1, beta2, slots.n_updates);
            let state = slots.first.iter_mut().zip(slots.second.iter_mut());
            for ((p, &g), (m, s)) in value.iter_mut().zip(gradient).zip(state) {
                *m = beta1 * *m + (1.0 - beta1) * g;
                *s = beta2 * *s + (1.0 - beta2) * g * g;
                *p -= lr * weight_decay * *p;
                *p -= lr * (*m * first_scale) / ((*s * second_scale).sqrt() + epsilon);
            }
        }
    }
    stats
}

/// LARC's factor on `g + decay·p` and the decay that goes with it; `(1, 0)` where a norm is zero.
pub(crate) fn larc_scale(stats: UpdateStats, weight_decay: f32, trust: f32) -> (f32, f32) {
    let UpdateStats { parameter_norm, gradient_norm } = stats;
    if parameter_norm == 0.0 || gradient_norm == 0.0 {
        return (1.0, 0.0);
    }
    let denominator = gradient_norm + f64::from(weight_decay) * parameter_norm + 1e-8;
    ((f64::from(trust) * parameter_norm / denominator) as f32, weight_decay)
}

/// `1 / (1 - b1^t)` and `1 / (1 - b2^t)`.
pub(crate) fn adam_corrections(beta1: f32, beta2: f32, n_updates: u64) -> (f32, f32) {
    let correction = |beta: f32| (1.0 / (1.0 - f64::from(beta).powf(n_updates as f64))) as f32;
    (correction(beta1), correction(beta2))
}

fn momentum_step(
    value: &mut [f32],
    gradient: &[f32],
    velocity: &mut [f32],
    lr: f32,
    momentum: f32,
    scale: f32,
    decay: f32,
) {
    for ((p, &g), v) in value.iter_mut().zip(gradient).zip(velocity) {
        *v = momentum * *v + (g + decay * *p) * scale;
        *p -= lr * *v;
    }
}

/// Euclidean norm: eight running sums in f64 (so that it vectorises), added in a fixed order.
fn norm(values: &[f32]) -> f64 {
    let mut sums = [0.0f64; 8];
    let (chunks, rest) = values.as_chunks::<8>();
    for chunk in chunks {
        for (sum, &x) in sums.iter_mut().zip(chunk) {
            *sum += f64::from(x) * f64::from(x);
        }
    }
    for (sum, &x) in sums.iter_mut().zip(rest) {
        *sum += f64::from(x) * f64::from(x);
    }
    sums.iter().sum::<f64>().sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LARC: UpdateRule = UpdateRule::Larc { lr: 0.5, momentum: 0.9, weight_decay: 0.01, trust: 0.001 };

    #[test]
    fn larc_scales_the_decayed_gradient() {
        let (mut p, g) = (vec![3.0f32, 4.0], vec![0.6f32, 0.8]);
        let mut slots = Slots::default();
        let stats = apply(&LARC, &mut p, &g, &mut slots);
        assert!((stats.parameter_norm - 5.0).abs() < 1e-12 && (stats.gradient_norm - 1.0).abs() < 1e-6);
        let scale = 0.001 * 5.0 / (1.0 + 0.01 * 5.0 + 1e-8);
        for (i, (start, g)) in [(3.0f32, 0.6f32), (4.0, 0.8)].into_iter().enumerate() {
            let v = (g + 0.01 * start) * scale;
            assert!((slots.first[i] - v).abs() < 1e-8);
            assert!((p[i] - (start - 0.5 * v)).abs() < 1e-6);
        }
    }

    #[test]
    fn larc_leaves_the_gradient_alone_where_a_norm_is_zero() {
        let (mut p, mut slots) = (vec![0.0f32; 2], Slots::default());
        apply(&LARC, &mut p, &[1.0, -2.0], &mut slots);
        assert_eq!((p, slots.first), (vec![-0.5, 1.0], vec![1.0, -2.0]));
        // A zero gradient: no decay either, only the momentum that is left.
        let (mut p, mut slots) = (vec![2.0f32], Slots { first: vec![1.0], n_updates: 1, ..Slots::default() });
        apply(&LARC, &mut p, &[0.0], &mut slots);
        assert_eq!((p, slots.first), (vec![2.0 - 0.5 * 0.9], vec![0.9]));
    }

    #[test]
    fn sgd_accumulates_momentum_and_decays() {
        let rule = UpdateRule::Sgd { lr: 0.1, momentum: 0.5, weight_decay: 0.2 };
        let (mut p, mut slots) = (vec![1.0f32], Slots::default());
        apply(&rule, &mut p, &[1.0], &mut slots);
        assert!((p[0] - 0.88).abs() < 1e-6);
        apply(&rule, &mut p, &[1.0], &mut slots);
        assert!((p[0] - (0.88 - 0.1 * (0.5 * 1.2 + 1.0 + 0.2 * 0.88))).abs() < 1e-6);
    }

    #[test]
    fn adamw_takes_a_first_step_of_the_learning_rate() {
        let rule = UpdateRule::AdamW { lr: 0.1, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.5 };
        let (mut p, mut slots) = (vec![2.0f32, -1.0], Slots::default());
        apply(&rule, &mut p, &[3.0, -1e-3], &mut slots);
        assert!((p[0] - (2.0 * 0.95 - 0.1)).abs() < 1e-5 && (p[1] - (-0.95 + 0.1)).abs() < 1e-4);
    }

    #[test]
    fn slots_survive_a_state() {
        let slots = Slots { first: vec![1.0, 2.0], second: vec![3.0, 4.0], n_updates: (5 << 24) + 7 };
        let mut state = StateDict::new();
        slots.store("w", &[2, 1], &mut state);
        assert_eq!(Slots::restore("w", &[2, 1], &state).unwrap(), slots);
        assert_eq!(Slots::restore("other", &[2], &state).unwrap(), Slots::default());
        assert!(matches!(Slots::restore("w", &[3], &state), Err(EncoderError::StateShape { .. })));
    }

    #[test]
    fn a_gradient_that_is_not_finite_shows_in_the_stats() {
        let stats = apply(&LARC, &mut [1.0], &[f32::NAN], &mut Slots::default());
        assert!(!stats.gradient_norm.is_finite());
    }
}
