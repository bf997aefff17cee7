//! Training with labels, to judge a pretrained network: a linear classifier on augmented crops with a frozen backbone, and
//! fine-tuning of the whole network. Both follow the SwAV reference (`eval_linear.py`, `eval_semisup.py`).

use ndarray::Array2;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use swav_augment::{CropKey, MultiCrop, Scratch};
use swav_data::{Dataset, SampleError};
use swav_encoder::{Encoder, Method, Output, image_batch};

use crate::logistic::targets_of;
use crate::sgd::{SgdClassifier, SgdRule};
use crate::{EvalError, Predictions};

/// Settings of a training with labels.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default, deny_unknown_fields))]
pub struct SupervisedConfig {
    /// Passes over the images, at least 1.
    pub epochs: u64,
    /// Images of a step, at least 2; the last step of an epoch has what is left, unless it is a single image.
    pub batch_size: usize,
    /// Learning rate of the linear classifier, above 0.
    pub lr: f64,
    /// Learning rate of the backbone; 0 leaves it frozen.
    pub backbone_lr: f64,
    /// How learning rates fall.
    pub decay: Decay,
    /// Momentum of both, 0 to below 1. Default: 0.9.
    pub momentum: f64,
    /// Weight decay of both, at least 0.
    pub weight_decay: f64,
    /// Seed of the order, the crops, and the classifier's initial weights. Default: 0.
    pub seed: u64,
}

/// How learning rates fall, epoch by epoch.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum Decay {
    /// Half a cosine down to 0.
    Cosine,
    /// By a factor of 10 at 60% and at 80% of the epochs.
    Steps,
}

impl Default for SupervisedConfig {
    fn default() -> Self {
        Self::frozen()
    }
}

impl SupervisedConfig {
    /// The reference's protocol for a frozen backbone: 100 epochs, batches of 256, learning rate 0.3 with a cosine, weight decay 1e-6.
    pub fn frozen() -> Self {
        Self {
            epochs: 100,
            batch_size: 256,
            lr: 0.3,
            backbone_lr: 0.0,
            decay: Decay::Cosine,
            momentum: 0.9,
            weight_decay: 1e-6,
            seed: 0,
        }
    }

    /// The reference's protocol for fine-tuning with a share of the labels: 20 epochs, batches of 256, no weight decay; with
    /// less than 5% of the labels learning rates of 0.02 and 5, else of 0.01 and 0.2.
    pub fn finetuning(share: f64) -> Self {
        let (backbone_lr, lr) = if share < 0.05 { (0.02, 5.0) } else { (0.01, 0.2) };
        Self { epochs: 20, lr, backbone_lr, decay: Decay::Steps, weight_decay: 0.0, ..Self::frozen() }
    }

    /// Checks the values.
    ///
    /// # Errors
    /// [`EvalError::Config`] names the first value that is out of range.
    pub fn check(&self) -> Result<Supervised, EvalError> {
        let refuse = |key, expected: &str, got: String| {
            Err(EvalError::Config { key, expected: expected.to_owned(), got })
        };
        let in_range = |value: f64| value.is_finite() && value >= 0.0;
        if self.epochs == 0 {
            return refuse("epochs", "at least 1", "0".into());
        }
        if self.batch_size < 2 {
            return refuse("batch_size", "at least 2", self.batch_size.to_string());
        }
        if !in_range(self.lr) || self.lr == 0.0 {
            return refuse("lr", "a finite number above 0", self.lr.to_string());
        }
        for (key, value) in [("backbone_lr", self.backbone_lr), ("weight_decay", self.weight_decay)] {
            if !in_range(value) {
                return refuse(key, "a finite number of at least 0", value.to_string());
            }
        }
        if !(0.0..1.0).contains(&self.momentum) {
            return refuse("momentum", "at least 0 and below 1", self.momentum.to_string());
        }
        Ok(Supervised { config: self.clone() })
    }
}

/// A training with labels, made by [`SupervisedConfig::check`].
#[derive(Debug, Clone, PartialEq)]
pub struct Supervised {
    config: SupervisedConfig,
}

/// Images with labels, and how they are shown.
#[derive(Clone, Copy)]
pub struct Lesson<'a> {
    /// The images.
    pub data: &'a dyn Dataset,
    /// Positions of those that are learnt from.
    pub indices: &'a [usize],
    /// Their labels.
    pub labels: &'a [u32],
    /// The crop: the first of this recipe.
    pub crops: &'a MultiCrop,
}

/// An epoch that is done.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LessonReport {
    /// The epoch, from 0.
    pub epoch: u64,
    /// Mean cross-entropy of its batches in nats.
    pub loss: f64,
    /// Share of its crops that were classified right.
    pub accuracy: f64,
}

/// A classifier that a training with labels has made; it needs features of the network that it was trained with.
#[derive(Debug, Clone, PartialEq)]
pub struct Learnt {
    classifier: SgdClassifier,
    classes: Vec<u32>,
}

impl Learnt {
    /// Classifies features (m, d).
    ///
    /// # Errors
    /// As [`SgdClassifier::predict`].
    pub fn predict(&self, features: ndarray::ArrayView2<'_, f32>) -> Result<Predictions, EvalError> {
        self.classifier.predict(features, &self.classes)
    }
}

impl Supervised {
    /// Whether the backbone is trained, too.
    pub fn trains_backbone(&self) -> bool {
        self.config.backbone_lr > 0.0
    }

    /// Steps of the whole training on `n` images.
    pub fn n_iters(&self, n: usize) -> u64 {
        self.config.epochs * self.batches(n) as u64
    }

    /// Learning rates in an epoch relative to those at the start.
    pub fn decay(&self, epoch: u64) -> f64 {
        let share = epoch as f64 / self.config.epochs as f64;
        match self.config.decay {
            Decay::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * share).cos()),
            Decay::Steps => [0.6, 0.8].iter().filter(|&&at| share >= at).map(|_| 0.1).product(),
        }
    }

    /// Trains a classifier on the features of `backbone`, whose embeddings have to be its features (see
    /// `swav_encoder::build_backbone`) where it is trained, too: it then runs in training mode, batch norm included.
    ///
    /// `on_step` is told how many steps are done, `on_epoch` how good the epoch was. Images that cannot be read are left out.
    ///
    /// # Errors
    /// [`EvalError::OneClass`], [`EvalError::Length`], [`EvalError::Unreadable`] if a whole batch cannot be read,
    /// [`EvalError::Encoder`], [`EvalError::NotFinite`] if the training diverges.
    pub fn train(
        &self,
        backbone: &mut dyn Encoder,
        lesson: Lesson<'_>,
        mut on_step: impl FnMut(u64),
        mut on_epoch: impl FnMut(LessonReport),
    ) -> Result<Learnt, EvalError> {
        let Lesson { indices, labels, .. } = lesson;
        if labels.len() != indices.len() {
            return Err(EvalError::Length { what: "labels", expected: indices.len(), got: labels.len() });
        }
        let classes = classes_of(labels)?;
        let targets = targets_of(labels, &classes);
        let mut classifier = SgdClassifier::new(classes.len(), backbone.feature_dim(), self.config.seed);
        let mut n_steps = 0;
        for epoch in 0..self.config.epochs {
            let (mut loss, mut n_right, mut n_seen) = (0.0, 0, 0);
            let order = self.order(epoch, indices.len());
            let n_batches = self.batches(order.len());
            for chosen in order.chunks(self.config.batch_size).take(n_batches) {
                let batch = self.read(&lesson, chosen, epoch)?;
                let truth: Vec<usize> = batch.places.iter().map(|&place| targets[place]).collect();
                let step = self.step(backbone, &mut classifier, &batch, &truth, self.decay(epoch))?;
                loss += step.0 * truth.len() as f64;
                n_right += step.1;
                n_seen += truth.len();
                n_steps += 1;
                on_step(n_steps);
            }
            let n_seen = n_seen.max(1) as f64;
            on_epoch(LessonReport { epoch, loss: loss / n_seen, accuracy: n_right as f64 / n_seen });
        }
        Ok(Learnt { classifier, classes })
    }

    /// Loss and number of right answers of one step.
    fn step(
        &self,
        backbone: &mut dyn Encoder,
        classifier: &mut SgdClassifier,
        batch: &CropBatch,
        truth: &[usize],
        decay: f64,
    ) -> Result<(f64, usize), EvalError> {
        let config = &self.config;
        let (momentum, weight_decay) = (config.momentum as f32, config.weight_decay as f32);
        let images = image_batch(&batch.pixels, truth.len(), batch.size, batch.size)?;
        let features: Array2<f32> = match self.trains_backbone() {
            true => backbone.forward_train(&[images])?,
            false => backbone.embed(images, Output::Features)?,
        };
        let rule = SgdRule { lr: (config.lr * decay) as f32, momentum, weight_decay };
        let step = classifier.step(features.view(), truth, rule)?;
        if self.trains_backbone() {
            backbone.backward(step.gradient.view())?;
            let lr = (config.backbone_lr * decay) as f32;
            backbone.update(&Method::Sgd { lr, momentum, weight_decay }.into())?;
        }
        Ok((step.loss, step.n_right))
    }

    fn batches(&self, n: usize) -> usize {
        let whole = n / self.config.batch_size;
        // Batch norm has no statistics of a single image.
        whole + usize::from(n % self.config.batch_size >= 2)
    }

    /// The order of an epoch.
    fn order(&self, epoch: u64, n: usize) -> Vec<usize> {
        let mut rng = ChaCha8Rng::seed_from_u64(self.config.seed);
        rng.set_stream(epoch);
        let mut order: Vec<usize> = (0..n).collect();
        order.shuffle(&mut rng);
        order
    }

    fn read(&self, lesson: &Lesson<'_>, chosen: &[usize], epoch: u64) -> Result<CropBatch, EvalError> {
        let size = lesson.crops.groups()[0].crop.size;
        let len = size * size * 3;
        let mut pixels = vec![0.0; chosen.len() * len];
        let read = |scratch: &mut Scratch, place: usize, out: &mut [f32]| -> Result<(), SampleError> {
            let index = lesson.indices[place];
            let image = lesson.data.image(index)?;
            let key = CropKey { seed: self.config.seed, epoch, sample: index as u64, crop: 0 };
            lesson.crops.fill(image.view(), key, out, scratch).expect("a slot has the size of a crop");
            Ok(())
        };
        let results: Vec<Result<(), SampleError>> = pixels
            .par_chunks_mut(len)
            .zip(chosen)
            .map_init(Scratch::default, |scratch, (out, &place)| read(scratch, place, out))
            .collect();
        let (mut places, mut first) = (Vec::with_capacity(chosen.len()), None);
        for (slot, (result, &place)) in results.into_iter().zip(chosen).enumerate() {
            match result {
                Ok(()) => {
                    pixels.copy_within(slot * len..(slot + 1) * len, places.len() * len);
                    places.push(place);
                }
                Err(source) => first = first.or(Some((place, source))),
            }
        }
        pixels.truncate(places.len() * len);
        match first {
            Some((place, source)) if places.len() < 2 => Err(EvalError::Unreadable {
                dataset: lesson.data.describe(),
                image: lesson.data.name(lesson.indices[place]),
                source,
            }),
            _ => Ok(CropBatch { places, pixels, size }),
        }
    }
}

/// Crops of some images.
struct CropBatch {
    /// Places among the lesson's indices.
    places: Vec<usize>,
    pixels: Vec<f32>,
    size: usize,
}

/// The classes of labels, rising; there have to be two or more.
fn classes_of(labels: &[u32]) -> Result<Vec<u32>, EvalError> {
    let mut classes = labels.to_vec();
    classes.sort_unstable();
    classes.dedup();
    match classes[..] {
        [] => Err(EvalError::Empty { what: "lesson" }),
        [label] => Err(EvalError::OneClass { label, n_images: labels.len() }),
        _ => Ok(classes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_fall_as_the_reference_has_them() {
        let finetuning = SupervisedConfig::finetuning(0.1).check().unwrap();
        let decays = [0, 11, 12, 15, 16, 19].map(|epoch| finetuning.decay(epoch));
        let expected = [1.0, 1.0, 0.1, 0.1, 0.01, 0.01];
        assert!(decays.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12), "{decays:?}");
        let frozen = SupervisedConfig::frozen().check().unwrap();
        assert!((frozen.decay(0) - 1.0).abs() < 1e-12 && (frozen.decay(50) - 0.5).abs() < 1e-12);
        assert!(!frozen.trains_backbone() && finetuning.trains_backbone());
    }

    #[test]
    fn a_single_image_is_no_batch() {
        let config = SupervisedConfig { batch_size: 4, epochs: 3, ..SupervisedConfig::frozen() };
        let training = config.check().unwrap();
        assert_eq!([8, 9, 10].map(|n| training.n_iters(n)), [6, 6, 9]);
        assert!(matches!(
            SupervisedConfig { momentum: 1.0, ..config }.check(),
            Err(EvalError::Config { key: "momentum", .. })
        ));
    }
}
