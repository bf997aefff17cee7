//! The update itself: how a parameter follows its gradient.
//!
//! Sums run in f64 in the order of the elements, so that the result does not depend on the number of threads.

use crate::mutants::mutated;
use crate::{Method, Role, Slots, UpdateRule, UpdateStats, norm};

/// Added to the denominator of LARC's rate.
pub const LARC_EPSILON: f64 = 1e-8;

/// Updates one parameter in place and returns the norms of the parameter and of the gradient as they were given.
///
/// Slots that are empty count as zeros.
///
/// # Panics
/// If the lengths of value, gradient and non-empty slots differ.
pub fn apply(
    rule: &UpdateRule,
    role: Role,
    value: &mut [f32],
    gradient: &[f32],
    slots: &mut Slots,
) -> UpdateStats {
    assert_eq!(value.len(), gradient.len(), "a gradient has its parameter's length");
    for (slot, values) in slots.vectors() {
        assert_eq!(value.len(), values.len(), "the slot `{slot}` has its parameter's length");
    }
    let stats = UpdateStats { parameter_norm: norm(value), gradient_norm: norm(gradient) };
    let clip = rule.gradient_scale;
    slots.n_updates += 1;
    slots.first.resize(value.len(), 0.0);
    match rule.for_role(role) {
        Method::Larc { lr, momentum, weight_decay, trust } => {
            let clipped = UpdateStats { gradient_norm: stats.gradient_norm * f64::from(clip), ..stats };
            let (scale, decay) = larc_factors(clipped, weight_decay, trust);
            Momentum { lr, momentum, clip, scale, decay }.step(value, gradient, &mut slots.first);
        }
        Method::Sgd { lr, momentum, weight_decay } => {
            let step = Momentum { lr, momentum, clip, scale: 1.0, decay: weight_decay };
            step.step(value, gradient, &mut slots.first);
        }
        Method::AdamW { lr, beta1, beta2, epsilon, weight_decay } => {
            slots.second.resize(value.len(), 0.0);
            let (first_scale, second_scale) = adam_corrections(beta1, beta2, slots.n_updates);
            let state = slots.first.iter_mut().zip(slots.second.iter_mut());
            for ((p, &g), (m, s)) in value.iter_mut().zip(gradient).zip(state) {
                let g = g * clip;
                *m = beta1 * *m + (1.0 - beta1) * g;
                *s = beta2 * *s + (1.0 - beta2) * g * g;
                *p -= lr * weight_decay * *p;
                *p -= lr * (*m * first_scale) / ((*s * second_scale).sqrt() + epsilon);
            }
        }
    }
    stats
}

/// LARC's factor on `g + decay·p`, `trust·|p| / (|g| + weight_decay·|p| + 1e-8)`, and the decay that goes with it;
/// `(1, 0)` where a norm is zero.
pub fn larc_factors(stats: UpdateStats, weight_decay: f32, trust: f32) -> (f32, f32) {
    let UpdateStats { parameter_norm, gradient_norm } = stats;
    if parameter_norm == 0.0 || gradient_norm == 0.0 {
        return (1.0, 0.0);
    }
    let epsilon = if mutated("larc-without-epsilon") { 0.0 } else { LARC_EPSILON };
    let denominator = gradient_norm + f64::from(weight_decay) * parameter_norm + epsilon;
    let scale = (f64::from(trust) * parameter_norm / denominator) as f32;
    if mutated("larc-decay-not-folded") {
        return (scale, weight_decay / scale);
    }
    (scale, weight_decay)
}

/// `1 / (1 - b1^t)` and `1 / (1 - b2^t)` at the t-th update.
pub fn adam_corrections(beta1: f32, beta2: f32, n_updates: u64) -> (f32, f32) {
    let correction = |beta: f32| (1.0 / (1.0 - f64::from(beta).powf(n_updates as f64))) as f32;
    (correction(beta1), correction(beta2))
}

/// `v <- momentum·v + (clip·g + decay·p)·scale`, `p <- p - lr·v`.
struct Momentum {
    lr: f32,
    momentum: f32,
    clip: f32,
    scale: f32,
    decay: f32,
}

impl Momentum {
    fn step(self, value: &mut [f32], gradient: &[f32], velocity: &mut [f32]) {
        let Self { mut lr, momentum, clip, mut scale, decay } = self;
        if mutated("sgd-momentum-of-lr") {
            (scale, lr) = (scale * lr, 1.0);
        }
        for ((p, &g), v) in value.iter_mut().zip(gradient).zip(velocity) {
            *v = momentum * *v + (g * clip + decay * *p) * scale;
            *p -= lr * *v;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LARC: UpdateRule =
        UpdateRule::new(Method::Larc { lr: 0.5, momentum: 0.9, weight_decay: 0.01, trust: 0.001 });

    #[test]
    fn larc_leaves_the_gradient_alone_where_a_norm_is_zero() {
        let (mut p, mut slots) = (vec![0.0f32; 2], Slots::default());
        apply(&LARC, Role::Weight, &mut p, &[1.0, -2.0], &mut slots);
        assert_eq!((p, slots.first), (vec![-0.5, 1.0], vec![1.0, -2.0]));
        // A zero gradient: no decay either, only the momentum that is left.
        let (mut p, mut slots) = (vec![2.0f32], Slots { first: vec![1.0], n_updates: 1, ..Slots::default() });
        apply(&LARC, Role::Weight, &mut p, &[0.0], &mut slots);
        assert_eq!((p, slots.first), (vec![2.0 - 0.5 * 0.9], vec![0.9]));
    }

    #[test]
    fn a_gradient_that_is_not_finite_shows_in_the_stats() {
        let stats = apply(&LARC, Role::Weight, &mut [1.0], &[f32::NAN], &mut Slots::default());
        assert!(!stats.gradient_norm.is_finite());
    }

    #[test]
    #[should_panic(expected = "the slot `first` has its parameter's length")]
    fn slots_of_another_length_are_refused() {
        let mut slots = Slots { first: vec![1.0], n_updates: 1, ..Slots::default() };
        apply(&LARC, Role::Weight, &mut [1.0, 2.0], &[1.0, 2.0], &mut slots);
    }
}
