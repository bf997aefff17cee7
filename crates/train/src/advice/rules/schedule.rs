//! Rules about length, batch, learning rate and freezing.

use swav_data::counted;

use crate::advice::{Case, Finding, Level};
use crate::config::OptimizerKind;

/// Updates below which hardly anything is learnt.
const MIN_STEPS: u64 = 200;

pub(super) fn batch_above_images(case: &Case<'_>) -> Option<Finding> {
    let (batch, n_images) = (case.batch(), case.n_images());
    (batch > n_images && n_images >= 2).then(|| {
        let better = suitable_batch(n_images);
        Finding::new(
            "batch-above-images",
            Level::Error,
            format!("training.batch_size = {batch}, and there are {n_images} images"),
            "there is not one whole batch an epoch",
            format!("training.batch_size = {better}"),
        )
        .set("training.batch_size", better)
    })
}

pub(super) fn batch_tiny(case: &Case<'_>) -> Option<Finding> {
    let batch = case.batch();
    (batch < 16 && case.n_images() >= 64).then(|| {
        Finding::new(
            "batch-tiny",
            Level::Warning,
            format!("training.batch_size = {batch}"),
            "batch norm takes its statistics from so few images that they are noise, and codes can hardly be balanced",
            "training.batch_size = 32 or more",
        )
        .set("training.batch_size", 32.min(suitable_batch(case.n_images()).max(16)))
    })
}

pub(super) fn few_steps(case: &Case<'_>) -> Option<Finding> {
    let total = case.total_steps();
    if total >= MIN_STEPS || case.steps_per_epoch() == 0 {
        return None;
    }
    let epochs = (2 * MIN_STEPS).div_ceil(case.steps_per_epoch());
    Some(
        Finding::new(
            "few-steps",
            Level::Warning,
            format!(
                "{} in all: {} of {}",
                counted(total as usize, "update"),
                counted(case.config.training.epochs as usize, "epoch"),
                counted(case.steps_per_epoch() as usize, "batch")
            ),
            "learning begins after some hundred updates",
            format!("training.epochs = {epochs}, or a smaller training.batch_size"),
        )
        .set("training.epochs", epochs),
    )
}

pub(super) fn learning_rate(case: &Case<'_>) -> Option<Finding> {
    let optimizer = &case.config.optimizer;
    let usual = usual_lr(optimizer.kind, case.batch());
    let (least, most) = match optimizer.kind {
        OptimizerKind::Larc => (usual / 16.0, 4.0 * usual),
        OptimizerKind::Sgd => (usual / 16.0, 8.0 * usual),
        OptimizerKind::Adamw => (usual / 20.0, 5.0 * usual),
    };
    // Numbers of recipes lie on the border: rounding must not decide.
    let (least, most) = (least * 0.999, most * 1.001);
    if (least..=most).contains(&optimizer.base_lr) {
        return None;
    }
    let (what, cause) = match optimizer.base_lr > most {
        true => (
            "high",
            "the first updates throw the network off, and embeddings collapse or the loss becomes infinite",
        ),
        false => ("low", "the run ends before anything is learnt"),
    };
    let better = two_digits(usual);
    let ratio = optimizer.final_lr / optimizer.base_lr;
    Some(
        Finding::new(
            "learning-rate",
            Level::Warning,
            format!(
                "optimizer.base_lr = {} is {what} for {:?} with training.batch_size = {}",
                optimizer.base_lr,
                optimizer.kind,
                case.batch()
            )
            .replace("Larc", "LARC")
            .replace("Sgd", "SGD")
            .replace("Adamw", "AdamW"),
            format!("{cause}; the rate goes with the batch"),
            format!("optimizer.base_lr = {better} for this batch"),
        )
        .set("optimizer.base_lr", better)
        .set("optimizer.final_lr", two_digits(better * ratio.min(0.01)))
        .set("optimizer.start_warmup_lr", two_digits(optimizer.start_warmup_lr.min(better / 10.0))),
    )
}

pub(super) fn no_warm_up(case: &Case<'_>) -> Option<Finding> {
    let (optimizer, epochs) = (&case.config.optimizer, case.config.training.epochs);
    let large = optimizer.kind != OptimizerKind::Adamw && optimizer.base_lr > 1.0;
    (large && optimizer.warmup_epochs == 0).then(|| {
        let better = (epochs / 10).clamp(1, 10).min(epochs);
        Finding::new(
            "no-warm-up",
            Level::Warning,
            format!("optimizer.base_lr = {} from the first update on", optimizer.base_lr),
            "a large rate before the network has settled makes embeddings collapse",
            format!("optimizer.warmup_epochs = {better}"),
        )
        .set("optimizer.warmup_epochs", better)
    })
}

pub(super) fn warm_up_long(case: &Case<'_>) -> Option<Finding> {
    let (warmup, epochs) = (case.config.optimizer.warmup_epochs, case.config.training.epochs);
    (warmup > 0 && 2 * warmup > epochs).then(|| {
        let better = epochs / 10;
        Finding::new(
            "warm-up-long",
            Level::Warning,
            format!("optimizer.warmup_epochs = {warmup} of {epochs} epochs"),
            "more than half of the run goes by before the learning rate is what it should be",
            format!("optimizer.warmup_epochs = {better}"),
        )
        .set("optimizer.warmup_epochs", better)
    })
}

pub(super) fn rate_rises(case: &Case<'_>) -> Option<Finding> {
    let optimizer = &case.config.optimizer;
    (optimizer.final_lr > optimizer.base_lr || optimizer.start_warmup_lr > optimizer.base_lr).then(|| {
        let better = two_digits(optimizer.base_lr / 1000.0);
        Finding::new(
            "rate-rises",
            Level::Warning,
            format!(
                "optimizer.final_lr = {} and start_warmup_lr = {} with base_lr = {}",
                optimizer.final_lr, optimizer.start_warmup_lr, optimizer.base_lr
            ),
            "the learning rate is meant to rise to base_lr and to fall from there",
            format!("optimizer.final_lr = {better}, optimizer.start_warmup_lr = 0"),
        )
        .set("optimizer.final_lr", better)
        .set("optimizer.start_warmup_lr", "0.0")
    })
}

pub(super) fn weight_decay(case: &Case<'_>) -> Option<Finding> {
    let optimizer = &case.config.optimizer;
    let (most, better) = match optimizer.kind {
        OptimizerKind::Larc | OptimizerKind::Sgd => (0.001, 1e-6),
        OptimizerKind::Adamw => (0.2, 1e-4),
    };
    (f64::from(optimizer.weight_decay) > most).then(|| {
        Finding::new(
            "weight-decay",
            Level::Warning,
            format!("optimizer.weight_decay = {}", optimizer.weight_decay),
            "weights shrink faster than they are taught",
            format!("optimizer.weight_decay = {better:e}"),
        )
        .set("optimizer.weight_decay", format!("{better:e}"))
    })
}

pub(super) fn frozen_throughout(case: &Case<'_>) -> Option<Finding> {
    let (freeze, total) = (case.config.prototypes.freeze_iters, case.total_steps());
    (total > 0 && 3 * freeze > total).then(|| {
        let better = suitable_freeze(total);
        Finding::new(
            "frozen-throughout",
            Level::Warning,
            format!("prototypes.freeze_iters = {freeze} of {total} steps"),
            "prototypes stay where they were drawn for a third of the run or more",
            format!("prototypes.freeze_iters = {better}"),
        )
        .set("prototypes.freeze_iters", better)
    })
}

/// The learning rate that recipes have for this batch: LARC goes with the batch up to the reference's 4.8, AdamW with its
/// root.
pub(in crate::advice) fn usual_lr(kind: OptimizerKind, batch: usize) -> f64 {
    let batch = batch as f64;
    match kind {
        OptimizerKind::Larc => (0.6 * batch / 256.0).min(4.8),
        OptimizerKind::Sgd => 0.05 * batch / 256.0,
        OptimizerKind::Adamw => 0.001 * (batch / 64.0).sqrt().clamp(0.7, 4.0),
    }
}

/// A batch that gives at least eight updates an epoch, within 16 to 256.
pub(in crate::advice) fn suitable_batch(n_images: usize) -> usize {
    let eighth = (n_images / 8).max(2);
    let power = 1 << eighth.ilog2();
    power.clamp(16, 256).min(n_images.max(2))
}

/// A hundred steps, or a twentieth of a short run.
pub(in crate::advice) fn suitable_freeze(total_steps: u64) -> u64 {
    (total_steps / 20).min(100)
}

/// Two digits are what a learning rate is chosen by.
pub(in crate::advice) fn two_digits(value: f64) -> f64 {
    format!("{value:.1e}").parse().unwrap_or(value)
}
