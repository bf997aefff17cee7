//! Is training still going anywhere? Detects collapse, and says what is likely to help.

use swav_encoder::Precision;

use crate::config::{MonitorConfig, OptimizerKind, Settings};
use crate::error::Quantity;
use crate::resume::may_change;
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

/// A change that may help, and the keys that it is of.
struct Remedy {
    keys: &'static [&'static str],
    what: String,
}

/// Puts remedies into words, most likely first: those that a resume takes, and those that need a new run.
fn prescription(remedies: Vec<Remedy>) -> String {
    let (resume, new): (Vec<_>, Vec<_>) =
        remedies.into_iter().partition(|remedy| remedy.keys.iter().all(|key| may_change(key)));
    let list =
        |remedies: Vec<Remedy>| remedies.into_iter().map(|remedy| remedy.what).collect::<Vec<_>>().join("; ");
    match (resume.is_empty(), new.is_empty()) {
        (true, _) => format!("in a new run, {}", list(new)),
        (false, true) => format!("at a resume or in a new run, {}", list(resume)),
        (false, false) => {
            format!("at a resume or in a new run, {}. In a new run only, {}", list(resume), list(new))
        }
    }
}

/// What helps against collapse, most likely first, with the current values (from the reference's "common issues").
fn collapse_advice(settings: &Settings) -> String {
    let config = settings.config();
    let mut remedies = Vec::new();
    let mut try_out = |keys: &'static [&'static str], what: String| remedies.push(Remedy { keys, what });
    if config.sinkhorn.epsilon > 0.03 {
        let now = config.sinkhorn.epsilon;
        try_out(
            &["sinkhorn.epsilon"],
            format!("sharpen the codes: sinkhorn.epsilon = 0.03 or less (now {now})"),
        );
    }
    let k = config.prototypes.n_prototypes[0];
    let seen = config.training.batch_size + config.queue.length;
    if seen < k {
        try_out(
            &["prototypes.n_prototypes", "queue.length"],
            format!(
                "codes are computed from {seen} embeddings for {k} prototypes: fewer prototypes.n_prototypes, a larger \
                 training.batch_size or queue.length"
            ),
        );
    }
    let lr = config.optimizer.base_lr;
    let gently = match config.optimizer.warmup_epochs {
        0 => {
            format!("start gently: optimizer.warmup_epochs above 0, or a lower optimizer.base_lr (now {lr})")
        }
        _ => format!("lower optimizer.base_lr (now {lr})"),
    };
    try_out(&["optimizer.warmup_epochs", "optimizer.base_lr"], gently);
    let now = config.prototypes.freeze_iters;
    try_out(
        &["prototypes.freeze_iters"],
        format!("freeze prototypes for longer: prototypes.freeze_iters (now {now})"),
    );
    try_out(
        &["augment.crops", "augment.color_jitter"],
        "make crops easier: larger min_scale in augment.crops, weaker augment.color_jitter".to_owned(),
    );
    format!("Try, one at a time: {}", prescription(remedies))
}

/// What is likely to have made a number infinite or not a number, and the key to change.
pub(crate) fn divergence_advice(what: Quantity, step: u64, lr: f64, settings: &Settings) -> String {
    let config = settings.config();
    let mut remedies = Vec::new();
    let mut try_out = |keys: &'static [&'static str], what: String| remedies.push(Remedy { keys, what });
    let cause = if step == 0 {
        try_out(
            &["augment.normalize"],
            "look at augment.normalize.std and at weights that were loaded".to_owned(),
        );
        "nothing has been learnt yet, so it is in the images or the initial weights".to_owned()
    } else {
        let usual = match config.optimizer.kind {
            OptimizerKind::Larc => 4.8,
            OptimizerKind::Sgd => 0.1,
            OptimizerKind::Adamw => 1e-3,
        };
        let verdict = if lr > usual { "is high" } else { "may be too high" };
        let (base_lr, warmup) = (config.optimizer.base_lr, config.optimizer.warmup_epochs);
        try_out(
            &["optimizer.base_lr", "optimizer.warmup_epochs"],
            format!(
                "lower optimizer.base_lr (now {base_lr}), or raise optimizer.warmup_epochs (now {warmup})"
            ),
        );
        format!("the learning rate {lr:.3e} {verdict} for this optimiser and batch")
    };
    if config.encoder.precision == Precision::Mixed {
        try_out(
            &["encoder.precision"],
            "16-bit activations may have overflowed: encoder.precision = \"f32\"".to_owned(),
        );
    }
    if config.loss.temperature < 0.05 {
        try_out(
            &["loss.temperature"],
            format!("a higher loss.temperature (now {})", config.loss.temperature),
        );
    }
    if what == Quantity::Loss && config.sinkhorn.epsilon < 0.01 {
        try_out(
            &["sinkhorn.epsilon"],
            format!("a higher sinkhorn.epsilon (now {})", config.sinkhorn.epsilon),
        );
    }
    format!("Likely cause: {cause}. Try: {}. The newest checkpoint is from before", prescription(remedies))
}
