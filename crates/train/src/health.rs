//! Is training still going anywhere? Detects collapse, and says what is likely to help.

use swav_encoder::Precision;

use crate::config::{MonitorConfig, OptimizerKind, Settings};
use crate::error::Quantity;
use crate::step::StepNumbers;

/// Watches the diagnostics of each step for signs that last.
///
/// Sign 1: the embeddings are all but equal. Sign 2: predictions use a few prototypes only. Sign 3: the loss
/// does not get below ln K. Each has to hold for `monitor.patience_iters` iterations in a row, and is then
/// reported once until it has gone away.
#[derive(Debug, Clone)]
pub struct Watch {
    config: MonitorConfig,
    n_prototypes: usize,
    lasting: [u64; 3],
}

/// A sign of collapse, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alarm {
    /// What has been seen, with numbers.
    pub sign: String,
    /// The likely cause, and the configuration keys to change.
    pub advice: String,
}

impl Watch {
    /// Watches a run with `n_prototypes` in its first head.
    pub fn new(config: &MonitorConfig, n_prototypes: usize) -> Self {
        Self { config: config.clone(), n_prototypes, lasting: [0; 3] }
    }

    /// Looks at one step; an alarm for a sign that has just lasted long enough.
    pub fn observe(&mut self, output: &StepNumbers, settings: &Settings) -> Option<Alarm> {
        let k = self.n_prototypes as f64;
        let ln_k = k.ln();
        let usage = output.diagnostics.map(|diagnostics| diagnostics.prediction_perplexity);
        let gap = output.diagnostics.map(|diagnostics| diagnostics.gap_to_ln_k);
        let present = [
            output.spread < self.config.min_spread,
            usage.is_some_and(|usage| usage < (self.config.min_usage * k).max(1.0)),
            gap.is_some_and(|gap| gap < self.config.min_gap * ln_k),
        ];
        let mut first = None;
        for (sign, (lasting, present)) in self.lasting.iter_mut().zip(present).enumerate() {
            *lasting = if present { *lasting + 1 } else { 0 };
            if *lasting == self.config.patience_iters && first.is_none() {
                first = Some(sign);
            }
        }
        let patience = self.config.patience_iters;
        let sign = match first? {
            0 => format!(
                "for {patience} iterations all embeddings have been nearly equal (spread {:.4}, below \
                 monitor.min_spread)",
                output.spread
            ),
            1 => format!(
                "for {patience} iterations predictions have used {:.1} of {k} prototypes (below \
                 monitor.min_usage)",
                usage.unwrap_or_default()
            ),
            _ => format!(
                "for {patience} iterations the loss ({:.4}) has not come below ln K = {ln_k:.4}",
                output.loss
            ),
        };
        Some(Alarm { sign, advice: collapse_advice(settings) })
    }
}

/// What helps against collapse, most likely first, with the current values (from the reference's "common issues").
fn collapse_advice(settings: &Settings) -> String {
    let config = settings.config();
    let mut advice = Vec::new();
    if config.sinkhorn.epsilon > 0.03 {
        advice.push(format!(
            "sharpen the codes: sinkhorn.epsilon = 0.03 or less (now {})",
            config.sinkhorn.epsilon
        ));
    }
    let k = config.prototypes.n_prototypes[0];
    let seen = config.training.batch_size + config.queue.length;
    if seen < k {
        advice.push(format!(
            "codes are computed from {seen} embeddings for {k} prototypes: fewer prototypes.n_prototypes, a larger \
             training.batch_size or queue.length"
        ));
    }
    if config.optimizer.warmup_epochs == 0 {
        advice.push(format!(
            "start gently: optimizer.warmup_epochs above 0, or a lower optimizer.base_lr (now {})",
            config.optimizer.base_lr
        ));
    } else {
        advice.push(format!("lower optimizer.base_lr (now {})", config.optimizer.base_lr));
    }
    advice.push(format!(
        "freeze prototypes for longer: prototypes.freeze_iters (now {})",
        config.prototypes.freeze_iters
    ));
    advice
        .push("make crops easier: larger min_scale in augment.crops, weaker augment.color_jitter".to_owned());
    format!("Try, one at a time: {}", advice.join("; "))
}

/// What is likely to have made a number infinite or not a number, and the key to change.
pub(crate) fn divergence_advice(what: Quantity, step: u64, lr: f64, settings: &Settings) -> String {
    let config = settings.config();
    let mut advice = Vec::new();
    if step == 0 {
        advice.push(
            "nothing has been learnt yet, so the cause is in the images or the initial weights: look at \
             augment.normalize.std and at weights that were loaded"
                .to_owned(),
        );
    } else {
        let usual = match config.optimizer.kind {
            OptimizerKind::Larc => 4.8,
            OptimizerKind::Sgd => 0.1,
            OptimizerKind::Adamw => 1e-3,
        };
        let verdict = if lr > usual { "is high" } else { "may be too high" };
        advice.push(format!(
            "the learning rate {lr:.3e} {verdict} for this optimiser and batch: lower optimizer.base_lr (now {}), or \
             raise optimizer.warmup_epochs (now {})",
            config.optimizer.base_lr, config.optimizer.warmup_epochs
        ));
    }
    if config.encoder.precision == Precision::Mixed {
        advice.push("16-bit activations may have overflowed: encoder.precision = \"f32\"".to_owned());
    }
    if config.loss.temperature < 0.05 {
        advice.push(format!("a higher loss.temperature (now {})", config.loss.temperature));
    }
    if what == Quantity::Loss && config.sinkhorn.epsilon < 0.01 {
        advice.push(format!("a higher sinkhorn.epsilon (now {})", config.sinkhorn.epsilon));
    }
    format!("Likely cause: {}. The newest checkpoint is from before", advice.join("; "))
}
