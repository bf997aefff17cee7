//! From an optimiser's rule to what the card's update takes.

use swav_cuda::tape::{Rule, Scalars, UpdateScalars};
use swav_optim::{Method, Role, adam_corrections};

use crate::UpdateRule;

/// The tape's rule of a method, and its numbers for the `t`-th update.
fn numbers(method: &Method, gradient_scale: f32, t: u64) -> (Rule, UpdateScalars) {
    let base = UpdateScalars { gradient_scale, ..UpdateScalars::default() };
    match *method {
        Method::Larc { lr, momentum, weight_decay, trust } => {
            (Rule::Larc, UpdateScalars { lr, momentum, weight_decay, trust, ..base })
        }
        Method::Sgd { lr, momentum, weight_decay } => {
            // Below zero: plain, for the classes that LARC leaves alone.
            (Rule::Sgd, UpdateScalars { lr, momentum, weight_decay, trust: -1.0, ..base })
        }
        Method::AdamW { lr, beta1, beta2, epsilon, weight_decay } => {
            let (first_correction, second_correction) = adam_corrections(beta1, beta2, t);
            let numbers = UpdateScalars {
                lr,
                momentum: beta1,
                beta2,
                epsilon,
                weight_decay,
                first_correction,
                second_correction,
                ..base
            };
            (Rule::AdamW, numbers)
        }
    }
}

/// The tape's rule, and the scalars of the `t`-th update of the encoder and of the `t_prototypes`-th of the prototypes.
pub(super) fn scalars_of(rule: &UpdateRule, t: u64, t_prototypes: u64) -> (Rule, Scalars) {
    let (kind, weights) = numbers(&rule.for_role(Role::Weight), rule.gradient_scale, t);
    let (_, norms) = numbers(&rule.for_role(Role::Norm), rule.gradient_scale, t);
    let (_, prototypes) = numbers(&rule.for_role(Role::Weight), rule.gradient_scale, t_prototypes);
    let mut scalars = Scalars::default();
    scalars.classes[..3].copy_from_slice(&[weights, norms, prototypes]);
    (kind, scalars)
}
