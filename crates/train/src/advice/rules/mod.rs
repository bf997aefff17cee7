//! The rules: each looks at a case and finds at most one thing.

mod codes;
mod crops;
mod machine;
mod schedule;

use super::{Case, Finding};

pub(super) use codes::suitable_prototypes;
pub(super) use machine::{batch_of_a_card, rounded};
pub(super) use schedule::{suitable_batch, suitable_freeze, two_digits, usual_lr};

type Rule = fn(&Case<'_>) -> Option<Finding>;

/// Lists the rules with their names.
macro_rules! rules {
    ($($name:literal => $rule:path,)*) => {
        /// Every rule.
        pub(super) const ALL: &[Rule] = &[$($rule,)*];
        /// Their names, in the same order.
        pub(super) const NAMES: &[&str] = &[$($name,)*];
    };
}

rules! {
    "batch-above-images" => schedule::batch_above_images,
    "batch-tiny" => schedule::batch_tiny,
    "few-steps" => schedule::few_steps,
    "learning-rate" => schedule::learning_rate,
    "no-warm-up" => schedule::no_warm_up,
    "warm-up-long" => schedule::warm_up_long,
    "rate-rises" => schedule::rate_rises,
    "weight-decay" => schedule::weight_decay,
    "frozen-throughout" => schedule::frozen_throughout,
    "queue-not-whole-batches" => codes::queue_not_whole_batches,
    "queue-never-used" => codes::queue_never_used,
    "queue-above-images" => codes::queue_above_images,
    "few-embeddings-for-prototypes" => codes::few_embeddings_for_prototypes,
    "prototypes-above-images" => codes::prototypes_above_images,
    "prototypes-below-classes" => codes::prototypes_below_classes,
    "epsilon-large" => codes::epsilon_large,
    "epsilon-small" => codes::epsilon_small,
    "epsilon-precision" => codes::epsilon_precision,
    "sinkhorn-iterations" => codes::sinkhorn_iterations,
    "temperature" => codes::temperature,
    "assignment-crops" => codes::assignment_crops,
    "crops-above-images" => crops::crops_above_images,
    "crops-show-nothing" => crops::crops_show_nothing,
    "crops-alike" => crops::crops_alike,
    "no-photometry" => crops::no_photometry,
    "colour-of-grey" => crops::colour_of_grey,
    "crops-below-stride" => crops::crops_below_stride,
    "stem-for-small-images" => crops::stem_for_small_images,
    "other-view" => crops::other_view,
    "bad-images" => machine::bad_images,
    "threads-above-cores" => machine::threads_above_cores,
    "cache-above-memory" => machine::cache_above_memory,
    "memory" => machine::memory,
    "card-memory" => machine::card_memory,
    "waiting-for-data" => machine::waiting_for_data,
}
