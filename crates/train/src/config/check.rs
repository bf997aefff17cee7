//! Checks every value of a configuration, and builds from it what training works with.

use std::sync::Arc;

use swav_augment::{AugmentError, CenterCrop, EvalView, MultiCrop};
use swav_data::{DataError, LoaderConfig, LoaderError, LoaderSpec, OnBad};
use swav_encoder::{Description, EncoderError, EncoderSpec};
use swav_losses::SwappedPrediction;
use swav_optim::{Groups, Method, UpdateRule};
use swav_ot::Codes;
use swav_prototypes::{FeatureQueue, Freeze};

use super::sizes::{check_bounds, too_small};
use super::{ConfigError, OptimizerKind, ReestimationConfig, TrainConfig};
use crate::TrainError;
use crate::codes::{QueueShape, SinkhornCodes};
use crate::reestimation::Reestimation;
use crate::schedule::Schedule;
use crate::step::Update;

/// A checked configuration, with what was built of it.
#[derive(Debug, Clone)]
pub struct Settings {
    config: TrainConfig,
    encoder: EncoderSpec,
    multi_crop: Arc<MultiCrop>,
    loss: SwappedPrediction,
    codes: Codes<f32>,
    loader: LoaderSpec,
    reestimation: Reestimation,
}

impl Settings {
    pub(super) fn new(mut config: TrainConfig) -> Result<Self, ConfigError> {
        if !config.own_encoder.is_empty() {
            return Err(ConfigError::OwnEncoder { description: config.own_encoder });
        }
        check_bounds(&config)?;
        check_numbers(&config)?;
        config.augment = config.augment.resolved();
        let multi_crop = config.augment.check().map_err(|error| augment_error("augment", error))?;
        let encoder = config.encoder.check().map_err(encoder_error)?;
        config.data.check().map_err(data_error)?;
        let loader = check_loader(&config.loader)?;
        if encoder.embedding_dim() < 2 {
            return Err(value("encoder.dim", "at least 2", encoder.embedding_dim()));
        }
        let loss = loss(&config, &multi_crop)?;
        let codes = Codes::new(config.sinkhorn.epsilon, config.sinkhorn.n_iters)
            .map_err(|_| value("sinkhorn.epsilon", "a finite number above 0", config.sinkhorn.epsilon))?;
        let ReestimationConfig { n_images, resize, size, batch_size, .. } = config.reestimation;
        let view = EvalView::new(CenterCrop { resize, size }, *multi_crop.normalize())
            .map_err(|error| augment_error("reestimation", error))?;
        let reestimation = Reestimation { view, max_images: n_images, batch_size };
        let multi_crop = Arc::new(multi_crop);
        Ok(Self { config, encoder, multi_crop, loss, codes, loader, reestimation })
    }

    /// Takes down what the encoder is that the run has.
    ///
    /// # Errors
    /// [`TrainError::OtherEncoder`] if it is another network than the configuration's.
    pub(crate) fn describe(&mut self, description: Description) -> Result<(), TrainError> {
        match description {
            Description::Network(network) if network == self.config.encoder => Ok(()),
            Description::Network(network) => Err(TrainError::OtherEncoder {
                expected: format!("{:?}", self.config.encoder),
                got: format!("{network:?}"),
            }),
            Description::Own(description) => {
                self.config.own_encoder = description;
                Ok(())
            }
            other => Err(TrainError::OtherEncoder {
                expected: format!("{:?}", self.config.encoder),
                got: format!("{other:?}"),
            }),
        }
    }

    /// The configuration that was checked, with every number of the augmentation written out.
    pub fn config(&self) -> &TrainConfig {
        &self.config
    }

    /// The network.
    pub fn encoder(&self) -> &EncoderSpec {
        &self.encoder
    }

    /// The crops of each image.
    pub fn multi_crop(&self) -> &Arc<MultiCrop> {
        &self.multi_crop
    }

    /// How batches are loaded.
    pub fn loader(&self) -> &LoaderSpec {
        &self.loader
    }

    /// How images are shown to the trained network.
    pub fn eval_view(&self) -> &EvalView {
        &self.reestimation.view
    }

    /// How batch-norm statistics are estimated anew.
    pub fn reestimation(&self) -> &Reestimation {
        &self.reestimation
    }

    /// The loss.
    pub fn loss(&self) -> &SwappedPrediction {
        &self.loss
    }

    /// What computes the codes.
    pub fn codes(&self) -> &Codes<f32> {
        &self.codes
    }

    /// The learning rates of a run with `iters_per_epoch` steps an epoch.
    pub fn schedule(&self, iters_per_epoch: u64) -> Schedule {
        Schedule::of(&self.config, iters_per_epoch)
    }

    /// The optimiser's rule at a learning rate.
    pub fn update_rule(&self, lr: f64) -> UpdateRule {
        let o = &self.config.optimizer;
        let (lr, momentum, weight_decay) = (lr as f32, o.momentum, o.weight_decay);
        let mut rule = UpdateRule::new(match o.kind {
            OptimizerKind::Larc => Method::Larc { lr, momentum, weight_decay, trust: o.trust },
            OptimizerKind::Sgd => Method::Sgd { lr, momentum, weight_decay },
            OptimizerKind::Adamw => {
                Method::AdamW { lr, beta1: o.beta1, beta2: o.beta2, epsilon: o.adam_epsilon, weight_decay }
            }
        });
        if o.exclude_norms_and_biases {
            rule.groups = Groups::ExemptNormsAndBiases;
        }
        rule
    }

    /// How step number `step` changes the parameters, at a learning rate.
    pub(crate) fn update(&self, step: u64, lr: f64) -> Update {
        let clip_norm = self.config.optimizer.clip_norm;
        let freeze = Freeze { n_iters: self.config.prototypes.freeze_iters };
        Update {
            rule: self.update_rule(lr),
            max_gradient_norm: (clip_norm > 0.0).then_some(clip_norm),
            update_prototypes: freeze.allows_update(step),
        }
    }

    /// Codes as the configuration has them, with their queue, for embeddings of dimension `dim` in one of `world_size`
    /// processes.
    pub fn sinkhorn_codes(&self, dim: usize, world_size: usize) -> SinkhornCodes {
        let codes = SinkhornCodes::new(self.codes.clone(), &self.config.loss.crops_for_assign);
        let (batch_size, start_epoch) = (self.config.training.batch_size, self.config.queue.start_epoch);
        match self.queue_length(world_size) {
            0 => codes,
            length => codes.with_queue(QueueShape { length, batch_size, dim, start_epoch }),
        }
    }

    /// Rows of each list of the queue in this process, of `world_size`; 0 for no queue.
    pub fn queue_length(&self, world_size: usize) -> usize {
        let global = self.config.training.batch_size * world_size;
        FeatureQueue::usable_length(self.config.queue.length, global) / world_size.max(1)
    }
}

fn loss(config: &TrainConfig, multi_crop: &MultiCrop) -> Result<SwappedPrediction, ConfigError> {
    let n_crops = multi_crop.n_crops();
    let assign = &config.loss.crops_for_assign;
    SwappedPrediction::new(n_crops, assign, config.loss.temperature).map_err(|error| {
        if n_crops < 2 {
            value("augment.crops", "2 crops or more in all", n_crops)
        } else if assign.iter().any(|&crop| crop >= n_crops) || assign.is_empty() {
            value(
                "loss.crops_for_assign",
                &format!("indices below {n_crops}, at least one"),
                format!("{assign:?}"),
            )
        } else {
            value("loss.crops_for_assign", &error.to_string(), format!("{assign:?}"))
        }
    })
}

/// Every step needs the same number of images: schedule and queue count on it.
fn check_loader(loader: &LoaderConfig) -> Result<LoaderSpec, ConfigError> {
    let spec = loader.check().map_err(|error| match error {
        LoaderError::Config { field, expected, got } => value(&format!("loader.{field}"), expected, got),
        other => value("loader", "valid settings", other),
    })?;
    if !loader.drop_last {
        return Err(value("loader.drop_last", "true in training", false));
    }
    if loader.on_bad != OnBad::Replace {
        return Err(value("loader.on_bad", "replace in training", "leave-out"));
    }
    Ok(spec)
}

fn check_numbers(config: &TrainConfig) -> Result<(), ConfigError> {
    let t = &config.training;
    at_least("training.epochs", t.epochs, 1)?;
    at_least("training.batch_size", t.batch_size as u64, 2)?;
    if t.seed > i64::MAX as u64 {
        return Err(value("training.seed", "a number below 2^63", t.seed));
    }
    let heads = &config.prototypes.n_prototypes;
    if heads.is_empty() || heads.iter().any(|&k| !(2..=1 << 24).contains(&k)) {
        let expected = "a list of numbers from 2 to 2^24, one for each head";
        return Err(value("prototypes.n_prototypes", expected, format!("{heads:?}")));
    }
    above_zero("sinkhorn.epsilon", config.sinkhorn.epsilon)?;
    above_zero("loss.temperature", f64::from(config.loss.temperature))?;
    let o = &config.optimizer;
    above_zero("optimizer.base_lr", o.base_lr)?;
    let rates = [
        ("optimizer.base_lr", o.base_lr),
        ("optimizer.final_lr", o.final_lr),
        ("optimizer.start_warmup_lr", o.start_warmup_lr),
    ];
    for (key, rate) in rates {
        within(key, rate, 0.0, f64::from(f32::MAX))?;
        too_small(key, rate)?;
    }
    if o.warmup_epochs > t.epochs {
        let expected = format!(
            "at most training.epochs = {0} (lower optimizer.warmup_epochs to {0} or less, or raise training.epochs)",
            t.epochs
        );
        return Err(value("optimizer.warmup_epochs", &expected, o.warmup_epochs));
    }
    within("optimizer.weight_decay", f64::from(o.weight_decay), 0.0, f64::from(f32::MAX))?;
    within("optimizer.clip_norm", o.clip_norm, 0.0, f64::MAX)?;
    above_zero("optimizer.trust", f64::from(o.trust))?;
    above_zero("optimizer.adam_epsilon", f64::from(o.adam_epsilon))?;
    let shares =
        [("optimizer.momentum", o.momentum), ("optimizer.beta1", o.beta1), ("optimizer.beta2", o.beta2)];
    for (key, share) in shares {
        if !(0.0..1.0).contains(&share) {
            return Err(value(key, "at least 0 and below 1", share));
        }
    }
    if config.queue.length > 0 && config.queue.length < t.batch_size {
        let expected = format!("0 for no queue, or at least training.batch_size = {}", t.batch_size);
        return Err(value("queue.length", &expected, config.queue.length));
    }
    at_least("checkpoint.keep", config.checkpoint.keep as u64, 2)?;
    within("checkpoint.every_minutes", config.checkpoint.every_minutes, 0.0, f64::MAX)?;
    let m = &config.monitor;
    at_least("monitor.log_every_iters", m.log_every_iters, 1)?;
    at_least("monitor.evaluate_images", m.evaluate_images as u64, 2)?;
    at_least("monitor.patience_iters", m.patience_iters, 1)?;
    for (key, share) in [
        ("monitor.min_spread", m.min_spread),
        ("monitor.min_usage", m.min_usage),
        ("monitor.min_gap", m.min_gap),
        ("monitor.max_code_entropy", m.max_code_entropy),
    ] {
        within(key, share, 0.0, 1.0)?;
    }
    within("monitor.max_row_residual", m.max_row_residual, 0.0, 2.0)?;
    at_least("reestimation.batch_size", config.reestimation.batch_size as u64, 2)
}

pub(super) fn value(key: &str, expected: &str, got: impl ToString) -> ConfigError {
    ConfigError::Value { key: key.to_owned(), expected: expected.to_owned(), got: got.to_string() }
}

fn at_least(key: &str, got: u64, least: u64) -> Result<(), ConfigError> {
    if got >= least { Ok(()) } else { Err(value(key, &format!("at least {least}"), got)) }
}

pub(super) fn at_most(key: &str, got: u64, most: u64, expected: &str) -> Result<(), ConfigError> {
    if got <= most { Ok(()) } else { Err(value(key, expected, got)) }
}

fn above_zero(key: &str, got: f64) -> Result<(), ConfigError> {
    if got.is_finite() && got > 0.0 { Ok(()) } else { Err(value(key, "a finite number above 0", got)) }
}

fn within(key: &str, got: f64, least: f64, most: f64) -> Result<(), ConfigError> {
    if (least..=most).contains(&got) {
        return Ok(());
    }
    let expected = if most == f64::MAX {
        format!("a finite number of at least {least}")
    } else {
        format!("{least} to {most}")
    };
    Err(value(key, &expected, got))
}

fn augment_error(section: &str, error: AugmentError) -> ConfigError {
    match error {
        AugmentError::OutOfRange { key, expected, got } => value(&format!("{section}.{key}"), expected, got),
        other => value(section, "a valid recipe", other),
    }
}

fn encoder_error(error: EncoderError) -> ConfigError {
    match error {
        EncoderError::Config { key, expected, got } => value(&format!("encoder.{key}"), expected, got),
        other => value("encoder", "a valid network", other),
    }
}

fn data_error(error: DataError) -> ConfigError {
    match error {
        DataError::Config { field, expected, got } => value(&format!("data.{field}"), expected, got),
        other => value("data", "a valid description of the data", other),
    }
}
