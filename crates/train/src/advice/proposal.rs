//! A configuration that suits the images and the machine, with the reason of each choice.

use std::fmt::Write;
use std::path::Path;

use swav_augment::{CropConfig, Preset};
use swav_encoder::{BlockKind, Checkpointing, EncoderConfig, Head, Precision, ResNet, Stem, Variant};

use super::facts::{DataFacts, Facts, MachineFacts};
use super::rules::{
    batch_of_a_card, rounded, suitable_batch, suitable_freeze, suitable_prototypes, two_digits, usual_lr,
};
use crate::config::{ConfigError, OptimizerKind, TrainConfig};

/// Updates that a first run on a CPU, or on a card, is worth.
const STEPS: [u64; 2] = [6000, 30_000];
/// Images of a batch that is large enough not to be bought with time.
const ENOUGH: usize = 64;
/// Images whose shorter side has at most so many pixels are small.
const SMALL: u32 = 128;

/// A configuration, and why it is as it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Proposal {
    /// The configuration, complete.
    pub config: TrainConfig,
    /// The reason of each choice, in the order in which they were made.
    pub reasons: Vec<Reason>,
}

/// Why a value is as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason {
    /// The key, or several that were chosen together.
    pub key: &'static str,
    /// The value, for people.
    pub value: String,
    /// The reason.
    pub why: String,
}

impl Proposal {
    /// The configuration as a TOML file that begins with the reasons.
    ///
    /// # Errors
    /// [`ConfigError::Write`] if a number does not fit TOML.
    pub fn to_toml(&self) -> Result<String, ConfigError> {
        let mut text = String::new();
        for Reason { key, value, why } in &self.reasons {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "# {key} = {value}\n#     {why}");
        }
        Ok(format!("{text}\n{}", self.config.to_toml()?))
    }
}

/// Chooses network, crops, batch, prototypes, queue, epsilon, schedule and cache for the images at `path`.
pub fn propose(path: &Path, facts: &Facts) -> Proposal {
    let mut draft = Draft { config: TrainConfig::default(), reasons: Vec::new(), facts };
    draft.config.data.path = path.to_owned();
    draft.crops();
    draft.network();
    draft.length();
    draft.codes();
    draft.optimiser();
    draft.files();
    Proposal { config: draft.config, reasons: draft.reasons }
}

/// Crops that suit images of this size.
///
/// Photographs on a card get the reference's recipe, on a CPU crops of 96 and 48 pixels. Small images get crops of about
/// their own size with larger scales, as a twentieth of a small image shows nothing; enlarged for the stem of ImageNet, which
/// leaves a quarter of a side.
pub(super) fn crops(data: &DataFacts, machine: &MachineFacts, stem: Stem) -> Vec<CropConfig> {
    let crop = |size, n_crops, min_scale, max_scale| CropConfig {
        min_scale,
        max_scale,
        n_crops,
        ..CropConfig::square(size, n_crops)
    };
    let side = data.short_side as usize;
    // Sides that divide well by the strides of a network.
    let part = |share: f64| ((side as f64 * share / 4.0).round() as usize * 4).max(8);
    match side {
        0..=36 if stem == Stem::Imagenet => vec![crop(part(12.0 / 7.0), 2, 0.5, 1.0)],
        37..=64 if stem == Stem::Imagenet => vec![crop(part(7.0 / 6.0), 2, 0.5, 1.0)],
        0..=36 => vec![crop(part(1.0).min(side.max(8)), 2, 0.5, 1.0)],
        37..=128 => vec![crop(part(2.0 / 3.0), 2, 0.4, 1.0), crop(part(0.45), 2, 0.25, 0.6)],
        129..=223 => vec![crop(96, 2, 0.25, 1.0), crop(48, 4, 0.08, 0.25)],
        _ if machine.has_card => vec![crop(224, 2, 0.14, 1.0), crop(96, 6, 0.05, 0.2)],
        _ => vec![crop(96, 2, 0.25, 1.0), crop(48, 4, 0.08, 0.25)],
    }
}

/// The stem that suits images of this size.
///
/// On a CPU the stem of ImageNet serves small images, too, where crops are enlarged: the time that it saves is worth more as
/// width (docs/recipes.md).
fn stem(data: &DataFacts, machine: &MachineFacts) -> Stem {
    if data.short_side <= SMALL && machine.has_card { Stem::Cifar } else { Stem::Imagenet }
}

struct Draft<'a> {
    config: TrainConfig,
    reasons: Vec<Reason>,
    facts: &'a Facts,
}

impl Draft<'_> {
    fn say(&mut self, key: &'static str, value: impl ToString, why: impl Into<String>) {
        self.reasons.push(Reason { key, value: value.to_string(), why: why.into() });
    }

    fn n_images(&self) -> usize {
        self.facts.data.n_images
    }

    fn steps_per_epoch(&self) -> u64 {
        (self.n_images() / self.config.training.batch_size.max(1)).max(1) as u64
    }

    fn crops(&mut self) {
        let data = self.facts.data;
        let preset = match (data.is_grey, data.short_side <= SMALL) {
            (true, true) => Preset::Greyscale,
            (true, false) => Preset::Medical,
            (false, true) => Preset::SimclrCifar,
            (false, false) => Preset::Swav,
        };
        let (colour, name) = match preset {
            Preset::Greyscale => ("grey, so no step changes colours", "greyscale"),
            Preset::Medical => ("grey and large, as radiographs are", "medical"),
            Preset::SimclrCifar => ("small and in colour", "simclr-cifar"),
            Preset::Swav => ("in colour", "swav"),
        };
        self.config.augment.preset = preset;
        // Not every build can rotate.
        self.config.augment.rotation.probability = (preset == Preset::Medical).then_some(0.0);
        self.say("augment.preset", name, format!("the images are {colour}"));
        if preset == Preset::Greyscale {
            self.config.augment.solarize.probability = Some(0.2);
            self.config.augment.equalize.probability = Some(0.2);
            let why = "without colours to change, features are kept from resting on brightness";
            self.say("augment.solarize, equalize", 0.2, why);
        }
        let stem = stem(&data, &self.facts.machine);
        let crops = crops(&data, &self.facts.machine, stem);
        let value = crops.iter().map(|crop| format!("{} x {} px", crop.n_crops, crop.size));
        let value = value.collect::<Vec<_>>().join(" + ");
        let why = match data.short_side {
            0..=36 => {
                "all of the image is needed to tell what it shows, and parts smaller than half show too little"
            }
            37..=128 => "parts of a third of the area and more still show what the image is of",
            _ => "two large crops to compare, and small ones, which cost little, to be predicted",
        };
        let side = data.short_side;
        self.say("augment.crops", value, format!("the median of the shorter sides is {side} pixels: {why}"));
        let largest = crops.iter().map(|crop| crop.size).max().unwrap_or(224);
        let shown = &mut self.config.reestimation;
        shown.batch_norm = true;
        shown.size = match (side <= SMALL, stem) {
            (true, Stem::Cifar) => side.max(8) as usize,
            // A multiple of 4.
            (true, Stem::Imagenet) => largest * 7 / 24 * 4,
            (false, _) => largest * 7 / 6,
        };
        shown.resize = if side <= SMALL { shown.size } else { largest * 4 / 3 };
        let value = format!("{} of {}", shown.size, shown.resize);
        self.config.augment.crops = Some(crops);
        let why = "features are computed from whole images at about the scale of the crops, with statistics of their own";
        self.say("reestimation.size", value, why);
    }

    fn network(&mut self) {
        let (data, machine) = (self.facts.data, self.facts.machine);
        let custom = Variant::Custom { block: BlockKind::Basic, layers: vec![1, 1, 1] };
        let stem = stem(&data, &machine);
        let (arch, hidden, name, why) = if data.short_side <= SMALL && !machine.has_card {
            (
                ResNet { variant: custom, width: 64, stem },
                512,
                "3 blocks of width 64, stem imagenet",
                "small images on a CPU: enlarged, they lose nothing to the stem, which saves the time for the width",
            )
        } else if data.short_side <= SMALL {
            let arch = ResNet::new(Variant::Resnet18).with_stem(stem);
            (arch, 512, "resnet18, stem cifar", "small images")
        } else if machine.has_card && data.n_images >= 100_000 {
            (ResNet::new(Variant::Resnet50), 2048, "resnet50", "many photographs, and a card")
        } else {
            (
                ResNet::new(Variant::Resnet18),
                512,
                "resnet18",
                "photographs, and a network that trains in hours",
            )
        };
        let precision = if machine.has_card { Precision::Mixed } else { Precision::F32 };
        self.config.encoder = EncoderConfig {
            arch: arch.into(),
            head: Head::Mlp { hidden },
            precision,
            ..EncoderConfig::default()
        };
        self.say("encoder.arch", name, why);
    }

    fn length(&mut self) {
        let n_images = self.n_images();
        let most = match (self.facts.machine.has_card, self.facts.data.short_side) {
            (true, _) => 256,
            (false, 0..=SMALL) => 128,
            (false, _) => 64,
        };
        let wanted = suitable_batch(n_images).min(most);
        let batch = self.on_card(wanted);
        self.config.training.batch_size = batch;
        let why = match batch < wanted {
            true => format!("what the card has room for; {wanted} would suit {n_images} images"),
            false => format!(
                "at least 16 for batch norm, many updates an epoch of {n_images} images, and at most {most} here"
            ),
        };
        self.say("training.batch_size", batch, why);
        let steps = STEPS[usize::from(self.facts.machine.has_card)];
        let epochs = steps.div_ceil(self.steps_per_epoch()).clamp(5, 400);
        self.config.training.epochs = epochs;
        let total = epochs * self.steps_per_epoch();
        self.say("training.epochs", epochs, format!("{total} updates; more improve features slowly"));
        let patience = (total / 10).clamp(20, self.config.monitor.patience_iters);
        self.config.monitor.patience_iters = patience;
        self.say("monitor.patience_iters", patience, "early enough to start anew where something goes wrong");
        let freeze = suitable_freeze(total);
        self.config.prototypes.freeze_iters = freeze;
        let why = "the first features are random, and prototypes that follow them collapse";
        self.say("prototypes.freeze_iters", freeze, why);
    }

    /// The batch nearest to the one that is wanted which a card has room for. Blocks run again only where there is no room for
    /// [`ENOUGH`] otherwise, since that takes a third longer.
    fn on_card(&mut self, wanted: usize) -> usize {
        let Some(memory) = self.facts.card else { return wanted };
        let [kept, again] = [Checkpointing::Off, Checkpointing::Blocks]
            .map(|checkpointing| batch_of_a_card(&memory, checkpointing).min(wanted));
        let enough = ENOUGH.min(wanted);
        let (most, checkpointing) = match kept >= enough || again <= kept {
            true => (kept, Checkpointing::Off),
            false => (again.min(enough), Checkpointing::Blocks),
        };
        if most == 0 {
            return wanted;
        }
        if checkpointing == Checkpointing::Blocks {
            self.config.encoder.checkpointing = checkpointing;
            let why =
                format!("the card has room for {kept} images without, and training takes a third longer");
            self.say("encoder.checkpointing", "blocks", why);
        }
        rounded(most)
    }

    fn codes(&mut self) {
        let (n_images, batch) = (self.n_images(), self.config.training.batch_size);
        let by_images = suitable_prototypes(n_images);
        let by_labels = self.facts.data.n_classes.map_or(0, |classes| 5 * classes);
        let k = by_images.max(by_labels.min(n_images / 10));
        self.config.prototypes.n_prototypes = vec![k];
        let share = n_images / k.max(1);
        let why = format!("grows with the root of the number of images; about {share} images each");
        self.say("prototypes.n_prototypes", k, why);
        let epsilon = if k < 100 { 0.03 } else { 0.05 };
        self.config.sinkhorn.epsilon = epsilon;
        let why = match k < 100 {
            true => "few prototypes need sharper codes than the reference's 0.05",
            false => "the reference's: codes are soft, yet far from uniform",
        };
        self.say("sinkhorn.epsilon", epsilon, why);
        // Room for twice as many embeddings as prototypes, but never more than a quarter of the images.
        let length = if 3 * batch >= k { 0 } else { (2 * k).min(n_images / 4) / batch * batch };
        self.config.queue.length = length;
        self.config.queue.start_epoch = self.config.training.epochs / 6;
        let why = match length {
            0 => format!("a batch of {batch} is enough to balance {k} prototypes"),
            _ => format!(
                "a batch of {batch} is too small for {k} prototypes; from epoch {} on, when features are steady",
                self.config.queue.start_epoch
            ),
        };
        self.say("queue.length", length, why);
    }

    fn optimiser(&mut self) {
        let (training, optimizer) = (&self.config.training, &mut self.config.optimizer);
        optimizer.kind = OptimizerKind::Adamw;
        let rate = two_digits(usual_lr(optimizer.kind, training.batch_size));
        optimizer.base_lr = rate;
        optimizer.final_lr = two_digits(rate / 100.0);
        optimizer.start_warmup_lr = two_digits(rate / 10.0);
        optimizer.warmup_epochs = (training.epochs / 20).min(10);
        optimizer.weight_decay = 1e-4;
        self.say("optimizer.kind", "adamw", "LARC, the reference's, is made for batches of thousands");
        self.say("optimizer.base_lr", rate, "goes with the root of the batch: 0.001 at 64");
    }

    fn files(&mut self) {
        let mib = ((self.facts.data.decoded_bytes * 11 / 10) >> 20) as usize + 1;
        let room = self.facts.machine.memory_bytes.map_or(1024, |bytes| ((bytes / 4) >> 20) as usize);
        self.config.data.cache_mib = mib.min(room);
        let why = match mib <= room {
            true => "all images fit decoded, so that each is read once".to_owned(),
            false => format!(
                "a quarter of the memory; all images would take {mib} MiB, and are decoded in each epoch"
            ),
        };
        self.say("data.cache_mib", mib.min(room), why);
    }
}
