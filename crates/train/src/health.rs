//! Is training still going anywhere? Watches the numbers of each step for what goes wrong, and says what is likely to help.
//!
//! The same [`Watch`] looks at a run while it goes on and, through [`explain`], at the metrics of one that has ended.

use std::fmt;

use serde::{Deserialize, Serialize};
use swav_encoder::Precision;

use crate::config::{OptimizerKind, Settings, TrainConfig};
use crate::error::Quantity;
use crate::metrics::Metrics;
use crate::resume::may_change;

/// Weight of the newest loss in its running mean.
const SMOOTHING: f64 = 0.02;
/// Losses on each side of the queue's first use that are compared.
const AROUND_QUEUE: u64 = 50;
/// Share of ln K by which the loss may jump there.
const MAX_JUMP: f64 = 0.1;
/// Share of ln K by which the running mean of the loss may be above its lowest.
const MAX_RISE: f64 = 0.15;
/// Squared distance between the means of queue and batch, in units of what chance gives, that counts as stale.
const MAX_QUEUE_DRIFT: f64 = 30.0;
/// Above these, predictions can hardly tell prototypes apart, and weights shrink faster than they learn.
const MAX_TEMPERATURE: f32 = 0.3;
const MAX_DECAY: f32 = 0.1;

/// What can go wrong while training.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Symptom {
    /// All embeddings are nearly equal: `spread` is below `monitor.min_spread`.
    EqualEmbeddings,
    /// Predictions use a few prototypes only: `prediction_perplexity` is below `monitor.min_usage` times K.
    FewPrototypes,
    /// Codes are nearly uniform: `code_entropy` is above `monitor.max_code_entropy` times ln K.
    UniformCodes,
    /// The loss does not come below ln K: `gap_to_ln_k` is below `monitor.min_gap` times ln K.
    NothingLearnt,
    /// Codes do not use prototypes equally: `row_residual` is above `monitor.max_row_residual`.
    UnbalancedCodes,
    /// The loss was a tenth of ln K higher after the queue came into use than before.
    QueueJump,
    /// The queue's embeddings are not where the batch's are: `queue_drift` is above 30.
    StaleQueue,
    /// The loss rose by more than 15% of ln K from its lowest, and stayed there.
    LossRises,
}

impl Symptom {
    /// All of them, in the order in which a step's alarms are given: what explains another comes first.
    pub const ALL: [Self; 8] = [
        Self::EqualEmbeddings,
        Self::FewPrototypes,
        Self::UniformCodes,
        Self::NothingLearnt,
        Self::UnbalancedCodes,
        Self::QueueJump,
        Self::StaleQueue,
        Self::LossRises,
    ];

    /// Whether nothing useful can come of the run: what `monitor.on_collapse` is about. The others are only warned of.
    pub fn is_collapse(self) -> bool {
        matches!(self, Self::EqualEmbeddings | Self::FewPrototypes | Self::UniformCodes | Self::NothingLearnt)
    }

    /// The number in the metrics that shows it.
    pub fn evidence(self) -> &'static str {
        match self {
            Self::EqualEmbeddings => "spread",
            Self::FewPrototypes => "prediction_perplexity",
            Self::UniformCodes => "code_entropy",
            Self::NothingLearnt => "gap_to_ln_k",
            Self::UnbalancedCodes => "row_residual",
            Self::StaleQueue => "queue_drift",
            Self::QueueJump | Self::LossRises => "loss",
        }
    }
}

impl fmt::Display for Symptom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::EqualEmbeddings => "embeddings nearly equal",
            Self::FewPrototypes => "few prototypes in use",
            Self::UniformCodes => "codes nearly uniform",
            Self::NothingLearnt => "nothing learnt",
            Self::UnbalancedCodes => "codes not balanced",
            Self::QueueJump => "loss jumped with the queue",
            Self::StaleQueue => "stale queue",
            Self::LossRises => "loss rises",
        })
    }
}

/// Something that has gone wrong, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alarm {
    /// What it is.
    pub symptom: Symptom,
    /// The step at which it had lasted long enough.
    pub step: u64,
    /// The first step at which it was seen.
    pub since: u64,
    /// What has been seen, with numbers.
    pub sign: String,
    /// The likely cause, and the configuration keys to change.
    pub advice: String,
}

/// Watches the numbers of each step for symptoms that last.
///
/// Most have to hold for `monitor.patience_iters` iterations in a row, and are then reported once until they have gone
/// away; a jump of the loss where the queue comes into use is reported once.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Watch {
    /// The first step at which each symptom was seen, if it is there, and whether it was reported.
    present: [Option<(u64, bool)>; Symptom::ALL.len()],
    last_step: Option<u64>,
    /// Running mean of the loss, its lowest value so far, and when that was.
    smoothed: Option<f64>,
    lowest: Option<(u64, f64)>,
    /// Losses before the queue came into use, and sum and number of those since.
    before_queue: Vec<f64>,
    with_queue: Option<(u64, f64, u64)>,
    queue_judged: bool,
}

impl Watch {
    /// A watch that has seen nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Looks at one step, of which no number of codes or predictions counts if `code_perplexity` is 0: a loss of one's own
    /// may have none. Gives an alarm for each symptom that has just lasted long enough.
    pub fn observe(&mut self, metrics: &Metrics, config: &TrainConfig) -> Vec<Alarm> {
        let jump = self.follow(metrics, config);
        let seen = self.symptoms(metrics, config);
        let mut alarms = Vec::new();
        for (at, symptom) in Symptom::ALL.into_iter().enumerate() {
            let (present, patience) = match symptom {
                Symptom::QueueJump => (jump.is_some(), 1),
                _ => (seen[at], config.monitor.patience_iters),
            };
            let Some((since, reported)) = present.then(|| self.present[at].unwrap_or((metrics.step, false)))
            else {
                self.present[at] = None;
                continue;
            };
            let due = !reported && metrics.step + 1 - since >= patience;
            self.present[at] = Some((since, reported || due));
            if due {
                let sign = self.sign(symptom, since, metrics, config, jump);
                let advice = advice(symptom, config);
                alarms.push(Alarm { symptom, step: metrics.step, since, sign, advice });
            }
        }
        alarms
    }

    /// Takes the loss in; how far it jumped, once enough of it has been seen with the queue.
    fn follow(&mut self, metrics: &Metrics, config: &TrainConfig) -> Option<f64> {
        // A metrics file may be read twice over, and a run may be resumed at an earlier step.
        let gap = self.last_step.map_or(1, |last| metrics.step.saturating_sub(last).max(1));
        self.last_step = Some(metrics.step);
        let weight = 1.0 - (1.0 - SMOOTHING).powi(i32::try_from(gap).unwrap_or(i32::MAX));
        let smoothed = self.smoothed.map_or(metrics.loss, |old| old + weight * (metrics.loss - old));
        self.smoothed = Some(smoothed);
        if self.lowest.is_none_or(|(_, lowest)| smoothed < lowest) {
            self.lowest = Some((metrics.step, smoothed));
        }
        if !metrics.queue_used {
            self.before_queue.push(metrics.loss);
            if self.before_queue.len() as u64 > AROUND_QUEUE {
                self.before_queue.remove(0);
            }
            return None;
        }
        if self.queue_judged {
            return None;
        }
        let (first, sum, n) = self.with_queue.unwrap_or((metrics.step, 0.0, 0));
        self.with_queue = Some((first, sum + metrics.loss, n + 1));
        if metrics.step - first < AROUND_QUEUE {
            return None;
        }
        self.queue_judged = true;
        // What the queue changes is not held against the loss later on.
        self.lowest = Some((metrics.step, smoothed));
        if self.before_queue.is_empty() {
            return None;
        }
        let before = self.before_queue.iter().sum::<f64>() / self.before_queue.len() as f64;
        let jump = (sum + metrics.loss) / (n + 1) as f64 - before;
        (jump > MAX_JUMP * ln_k(config)).then_some(jump)
    }

    /// Which symptoms this step shows, in the order of [`Symptom::ALL`].
    fn symptoms(&self, metrics: &Metrics, config: &TrainConfig) -> [bool; Symptom::ALL.len()] {
        let (monitor, ln_k) = (&config.monitor, ln_k(config));
        let known = metrics.code_perplexity > 0.0;
        let least_used = (monitor.min_usage * n_prototypes(config)).max(1.0);
        let risen = self.smoothed.zip(self.lowest).is_some_and(|(now, (_, low))| now - low > MAX_RISE * ln_k);
        Symptom::ALL.map(|symptom| match symptom {
            Symptom::EqualEmbeddings => metrics.spread < monitor.min_spread,
            Symptom::FewPrototypes => known && metrics.prediction_perplexity < least_used,
            Symptom::UniformCodes => known && metrics.code_entropy > monitor.max_code_entropy * ln_k,
            Symptom::NothingLearnt => known && metrics.gap_to_ln_k < monitor.min_gap * ln_k,
            Symptom::UnbalancedCodes => {
                metrics.row_residual.is_some_and(|residual| residual > monitor.max_row_residual)
            }
            Symptom::StaleQueue => metrics.queue_drift.is_some_and(|drift| drift > MAX_QUEUE_DRIFT),
            Symptom::LossRises => risen,
            Symptom::QueueJump => false,
        })
    }

    fn sign(
        &self,
        symptom: Symptom,
        since: u64,
        metrics: &Metrics,
        config: &TrainConfig,
        jump: Option<f64>,
    ) -> String {
        let (k, ln_k, n) = (n_prototypes(config), ln_k(config), metrics.step + 1 - since);
        match symptom {
            Symptom::EqualEmbeddings => format!(
                "for {n} iterations all embeddings have been nearly equal (spread {:.4}, below monitor.min_spread)",
                metrics.spread.max(0.0)
            ),
            Symptom::FewPrototypes => format!(
                "for {n} iterations predictions have used {:.1} of {k} prototypes (below monitor.min_usage)",
                metrics.prediction_perplexity
            ),
            Symptom::UniformCodes => format!(
                "for {n} iterations codes have been nearly uniform (entropy {:.3} of at most ln K = {ln_k:.3}, above \
                 monitor.max_code_entropy)",
                metrics.code_entropy
            ),
            Symptom::NothingLearnt => format!(
                "for {n} iterations the loss ({:.4}) has not come below ln K = {ln_k:.4}",
                metrics.loss
            ),
            Symptom::UnbalancedCodes => format!(
                "for {n} iterations {:.0}% of the codes' mass has lain where equal use of the prototypes has none (row \
                 residual {:.2}, above monitor.max_row_residual)",
                50.0 * metrics.row_residual.unwrap_or_default(),
                metrics.row_residual.unwrap_or_default()
            ),
            Symptom::QueueJump => format!(
                "the loss rose by {:.3} when the queue came into use at step {}",
                jump.unwrap_or_default(),
                self.with_queue.map_or(metrics.step, |(first, ..)| first)
            ),
            Symptom::StaleQueue => format!(
                "for {n} iterations the queue's embeddings have lain elsewhere than the batch's (squared distance of the \
                 means {:.0} times what chance gives)",
                metrics.queue_drift.unwrap_or_default()
            ),
            Symptom::LossRises => {
                let (at, low) = self.lowest.unwrap_or((metrics.step, metrics.loss));
                let now = self.smoothed.unwrap_or(metrics.loss);
                format!(
                    "the loss has risen from {low:.3} at step {at} to {now:.3}, and stayed there for {n} iterations"
                )
            }
        }
    }
}

/// What went wrong in a run, by its metrics, in the order in which it showed.
///
/// ```
/// use swav_train::{TrainConfig, explain};
/// assert_eq!(explain(&[], &TrainConfig::default()), []);
/// ```
pub fn explain(metrics: &[Metrics], config: &TrainConfig) -> Vec<Alarm> {
    let mut watch = Watch::new();
    metrics.iter().flat_map(|line| watch.observe(line, config)).collect()
}

/// Prototypes of the first head, which diagnostics are about.
fn n_prototypes(config: &TrainConfig) -> f64 {
    config.prototypes.n_prototypes.first().copied().unwrap_or(1) as f64
}

fn ln_k(config: &TrainConfig) -> f64 {
    n_prototypes(config).ln()
}

/// A change that may help, and the keys that it is of.
struct Remedy {
    keys: &'static [&'static str],
    what: String,
}

/// Puts remedies into words: those that a resume takes, and those that need a new run. The group of the likeliest comes first.
fn prescription(remedies: Vec<Remedy>) -> String {
    let resumable = |remedy: &Remedy| remedy.keys.iter().all(|key| may_change(key));
    let resume_first = remedies.first().is_some_and(resumable);
    let (resume, new): (Vec<_>, Vec<_>) = remedies.into_iter().partition(resumable);
    let list =
        |remedies: Vec<Remedy>| remedies.into_iter().map(|remedy| remedy.what).collect::<Vec<_>>().join("; ");
    match (resume.is_empty(), new.is_empty()) {
        (true, _) => format!("in a new run, {}", list(new)),
        (false, true) => format!("at a resume or in a new run, {}", list(resume)),
        (false, false) if resume_first => {
            format!("at a resume or in a new run, {}. In a new run only, {}", list(resume), list(new))
        }
        (false, false) => {
            format!("in a new run, {}. At a resume, too, {}", list(new), list(resume))
        }
    }
}

/// The likely cause of a symptom and what helps, most likely first, with the current values (partly from the reference's
/// "common issues").
fn advice(symptom: Symptom, config: &TrainConfig) -> String {
    use Help::{Cooler, Easier, Frozen, Gentler, Iterate, Later, Lighter, More, Sharper, Shorter, Softer};
    let (cause, help): (_, &[Help]) = match symptom {
        Symptom::EqualEmbeddings => (
            "The network maps all images to one point, which agrees with itself at no effort",
            &[Lighter, Gentler, Sharper, More, Frozen, Easier],
        ),
        Symptom::FewPrototypes => (
            "The network always predicts the same few prototypes, whatever it is shown",
            &[Sharper, More, Gentler, Frozen, Easier],
        ),
        Symptom::UniformCodes => (
            "Epsilon is large against the differences between scores, or the embeddings are nearly equal; such codes \
             teach nothing",
            &[Lighter, Sharper, More, Gentler, Frozen],
        ),
        Symptom::NothingLearnt => (
            "Codes cannot be predicted from other crops better than by chance",
            &[Cooler, Lighter, Sharper, More, Gentler, Frozen, Easier],
        ),
        Symptom::UnbalancedCodes => (
            "Scores are too far apart for so few Sinkhorn iterations at this epsilon",
            &[Softer, Iterate, More],
        ),
        Symptom::QueueJump | Symptom::StaleQueue => (
            "Embeddings change faster than the queue is renewed, so codes are balanced against a network of the past",
            &[Later, Shorter, Gentler],
        ),
        Symptom::LossRises => ("Training has become unstable", &[Gentler, Frozen, Sharper]),
    };
    let remedies = help.iter().filter_map(|help| help.remedy(config)).collect();
    format!("{cause}. Try, one at a time: {}", prescription(remedies))
}

/// Changes that help against one symptom or another.
#[derive(Debug, Clone, Copy)]
enum Help {
    Cooler,
    Lighter,
    Sharper,
    Softer,
    Iterate,
    More,
    Gentler,
    Frozen,
    Easier,
    Later,
    Shorter,
}

impl Help {
    /// The change in words; `None` where the configuration has it already.
    fn remedy(self, config: &TrainConfig) -> Option<Remedy> {
        let epsilon = config.sinkhorn.epsilon;
        let k = config.prototypes.n_prototypes.first().copied().unwrap_or(0);
        let seen = config.training.batch_size + config.queue.length;
        let lr = config.optimizer.base_lr;
        let (keys, what): (&'static [&'static str], String) = match self {
            Self::Cooler if config.loss.temperature > MAX_TEMPERATURE => (
                &["loss.temperature"],
                format!("lower loss.temperature: 0.1 is usual (now {})", config.loss.temperature),
            ),
            Self::Lighter if config.optimizer.weight_decay > MAX_DECAY => (
                &["optimizer.weight_decay"],
                format!("lower optimizer.weight_decay (now {})", config.optimizer.weight_decay),
            ),
            Self::Sharper if epsilon > 0.03 => (
                &["sinkhorn.epsilon"],
                format!("sharpen the codes: sinkhorn.epsilon = 0.03 or less (now {epsilon})"),
            ),
            Self::Softer if epsilon < 0.03 => (
                &["sinkhorn.epsilon"],
                format!("soften the codes: sinkhorn.epsilon = 0.03 to 0.05 (now {epsilon})"),
            ),
            Self::Iterate if config.sinkhorn.n_iters < 10 => (
                &["sinkhorn.n_iters"],
                format!("more iterations: sinkhorn.n_iters = 10 (now {})", config.sinkhorn.n_iters),
            ),
            Self::More if seen < k => (
                &["prototypes.n_prototypes", "queue.length"],
                format!(
                    "codes are computed from {seen} embeddings for {k} prototypes: fewer prototypes.n_prototypes, a \
                     larger training.batch_size or queue.length"
                ),
            ),
            Self::Cooler | Self::Lighter | Self::Sharper | Self::Softer | Self::Iterate | Self::More => {
                return None;
            }
            Self::Gentler if config.optimizer.warmup_epochs == 0 => (
                &["optimizer.warmup_epochs", "optimizer.base_lr"],
                format!(
                    "start gently: optimizer.warmup_epochs above 0, or a lower optimizer.base_lr (now {lr})"
                ),
            ),
            Self::Gentler => (&["optimizer.base_lr"], format!("lower optimizer.base_lr (now {lr})")),
            Self::Frozen => (
                &["prototypes.freeze_iters"],
                format!(
                    "freeze prototypes for longer: prototypes.freeze_iters (now {})",
                    config.prototypes.freeze_iters
                ),
            ),
            Self::Easier => (
                &["augment.crops", "augment.color_jitter"],
                "make crops easier: larger min_scale in augment.crops, weaker augment.color_jitter"
                    .to_owned(),
            ),
            Self::Later => (
                &["queue.start_epoch"],
                format!(
                    "let the queue begin later: queue.start_epoch (now {}), when features are steadier",
                    config.queue.start_epoch
                ),
            ),
            Self::Shorter => {
                (&["queue.length"], format!("a shorter queue: queue.length (now {})", config.queue.length))
            }
        };
        Some(Remedy { keys, what })
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> TrainConfig {
        let overrides = ["prototypes.n_prototypes=[60]", "monitor.patience_iters=20"].map(str::to_owned);
        TrainConfig::parse("", &overrides).unwrap()
    }

    /// A run that goes well, in the numbers that real ones have.
    fn healthy(step: u64) -> Metrics {
        let done = 1.0 - (-(step as f64) / 30.0).exp();
        let loss = 4.6 - 1.8 * done;
        Metrics {
            step,
            epoch: step / 100,
            batch: step % 100,
            loss,
            lr: 0.001,
            code_entropy: 3.1 - done,
            code_perplexity: 59.7,
            prediction_perplexity: 43.0 + 16.0 * done,
            gap_to_ln_k: 60f64.ln() - loss,
            spread: 0.6,
            gradient_norm: 1.0,
            parameter_norm: 30.0,
            queue_used: false,
            row_residual: Some(0.1),
            queue_drift: None,
            images_per_s: 500.0,
            data_wait: 0.0,
        }
    }

    /// The symptoms of 400 steps, of which `spoil` spoils those from 200 on, with the step and the first sign of each.
    fn of_run(spoil: impl Fn(&mut Metrics)) -> Vec<(Symptom, u64, u64)> {
        let lines: Vec<Metrics> = (0..400)
            .map(|step| {
                let mut line = healthy(step);
                if step >= 200 {
                    spoil(&mut line);
                }
                line
            })
            .collect();
        explain(&lines, &config()).into_iter().map(|alarm| (alarm.symptom, alarm.step, alarm.since)).collect()
    }

    #[test]
    fn a_healthy_run_is_met_with_silence() {
        assert_eq!(of_run(|_| ()), []);
        // One with a queue that is as it should be, and one whose own loss knows no codes.
        let queue = |line: &mut Metrics| {
            (line.queue_used, line.queue_drift) = (true, Some(2.0));
            line.loss += 0.05;
        };
        assert_eq!(of_run(queue), []);
        assert_eq!(of_run(|line| (line.code_perplexity, line.prediction_perplexity) = (0.0, 0.0)), []);
    }

    #[test]
    fn each_way_to_fail_has_its_alarm_once_and_in_time() {
        let due = 219;
        type Spoil = fn(&mut Metrics);
        let cases: [(Symptom, Spoil); 6] = [
            (Symptom::EqualEmbeddings, |line| line.spread = 0.001),
            (Symptom::FewPrototypes, |line| line.prediction_perplexity = 1.1),
            (Symptom::UniformCodes, |line| line.code_entropy = 4.09),
            (Symptom::UnbalancedCodes, |line| line.row_residual = Some(1.6)),
            (Symptom::StaleQueue, |line| line.queue_drift = Some(80.0)),
            (Symptom::NothingLearnt, |line| line.gap_to_ln_k = 0.0),
        ];
        for (symptom, spoil) in cases {
            let alarms = of_run(spoil);
            assert_eq!(alarms, [(symptom, due, 200)]);
        }
        let rises = of_run(|line| line.loss += 0.9);
        assert_eq!(rises.iter().map(|alarm| alarm.0).collect::<Vec<_>>(), [Symptom::LossRises]);
        let jump = of_run(|line| {
            line.queue_used = true;
            line.loss += 0.5;
        });
        assert_eq!(jump, [(Symptom::QueueJump, 250, 250)]);
    }

    #[test]
    fn what_goes_away_is_forgotten_and_reported_again_when_it_is_back() {
        let lines: Vec<Metrics> = (0..200)
            .map(|step| Metrics { spread: if step % 100 < 50 { 0.5 } else { 0.001 }, ..healthy(step) })
            .collect();
        let steps: Vec<u64> = explain(&lines, &config()).iter().map(|alarm| alarm.step).collect();
        assert_eq!(steps, [69, 169]);
        // Only every fifth step in the metrics.
        let some: Vec<Metrics> = lines.iter().filter(|line| line.step % 5 == 0).cloned().collect();
        let steps: Vec<u64> = explain(&some, &config()).iter().map(|alarm| alarm.step).collect();
        assert_eq!(steps, [70, 170]);
    }

    #[test]
    fn a_watch_goes_on_where_it_was_saved() {
        let lines: Vec<Metrics> = (0..100).map(|step| Metrics { spread: 0.0, ..healthy(step) }).collect();
        let mut whole = Watch::new();
        let expected: Vec<_> = lines.iter().map(|line| whole.observe(line, &config())).collect();
        let mut watch = Watch::new();
        for (line, expected) in lines.iter().zip(expected) {
            let saved = serde_json::to_string(&watch).unwrap();
            watch = serde_json::from_str(&saved).unwrap();
            assert_eq!(watch.observe(line, &config()), expected);
        }
    }
}
