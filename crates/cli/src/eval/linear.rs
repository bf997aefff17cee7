//! `swav eval linear`

use clap::ValueEnum;
use swav_augment::{CropConfig, MultiCrop, MultiCropConfig};
use swav_encoder::{Encoder, Output};
use swav_eval::{Lesson, LinearProbe, ProbeConfig, SupervisedConfig, balanced_subset};
use swav_train::Settings;

use super::{Common, Plan, measure, number, subjects};
use crate::counter::count;
use crate::eval::verdict::Measured;
use crate::judge::{Judge, Labelled, Pair, Subject};

/// Accuracy of a linear classifier on frozen features.
///
/// By default a probe on features in memory: multinomial logistic regression on standardised features, whose regulariser is
/// chosen on a held-out fifth of the training images. With --protocol reference the reference's: SGD on augmented crops for 100
/// epochs, which takes hours where the probe takes seconds. Data without a test split: a fifth of the images of each class is
/// held out as such.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    common: Common,

    /// How the classifier is trained.
    #[arg(long, value_enum, default_value_t = Protocol::Probe)]
    protocol: Protocol,

    /// Share of the training labels that are used, above 0 to 1, the same number of each class.
    #[arg(long, default_value_t = 1.0)]
    labels: f64,

    /// Epochs of the reference's protocol.
    #[arg(long, default_value_t = SupervisedConfig::frozen().epochs)]
    epochs: u64,

    /// Learning rate of the reference's protocol.
    #[arg(long, default_value_t = SupervisedConfig::frozen().lr)]
    lr: f64,

    /// Images of a step of the reference's protocol.
    #[arg(long, default_value_t = SupervisedConfig::frozen().batch_size)]
    batch_size: usize,

    /// Judge the same network untrained, too, and with the probe the raw pixels. Once known, they are read from the record.
    #[arg(long)]
    baselines: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Protocol {
    /// Logistic regression on features in memory.
    Probe,
    /// SGD on augmented crops, as in the SwAV reference's eval_linear.py.
    Reference,
}

pub(super) fn run(args: Args) -> anyhow::Result<()> {
    check_share("--labels", args.labels)?;
    args.common.check()?;
    let SupervisedConfig { epochs, lr, batch_size, .. } = SupervisedConfig {
        epochs: args.epochs,
        lr: args.lr,
        batch_size: args.batch_size,
        ..Default::default()
    };
    let config =
        SupervisedConfig { epochs, lr, batch_size, seed: args.common.seed, ..SupervisedConfig::frozen() };
    config.check().map_err(|error| crate::usage(format!("--{error}")))?;
    let settings = args.common.network.settings()?;
    let judge = Judge::new(&settings)?.with_labels()?;
    judge.show_data();
    let network = args.common.network(&judge)?;
    let mut plan = args.common.plan(&judge, "linear", network.step);
    plan.set("labels", number(args.labels));
    let encoder = network.encoder.as_ref();
    match args.protocol {
        Protocol::Probe => {
            plan.set("protocol", "probe");
            probe(&judge, encoder, &args, &mut plan)?;
        }
        Protocol::Reference => {
            if args.common.name.is_none() {
                "linear-reference".clone_into(&mut plan.name);
            }
            plan.set("protocol", "reference");
            plan.set("supervised", serde_json::to_value(&config)?);
            reference(&judge, network.encoder, &args, &config, &mut plan)?;
        }
    }
    plan.finish()
}

fn probe(judge: &Judge<'_>, encoder: &dyn Encoder, args: &Args, plan: &mut Plan) -> anyhow::Result<()> {
    let seed = args.common.seed;
    let probe = ProbeConfig { seed, ..ProbeConfig::default() }.check()?;
    say!(
        "accuracy of a linear probe ({}; logistic regression, regulariser chosen on held-out training images)",
        sets(judge)
    )?;
    measure(plan, subjects(args.baselines), |plan, subject| {
        let (train, test) = split(judge.pair(subject, encoder)?, seed)?;
        fit(&probe, subset(train, args.labels, seed)?, test, plan)
    })
}

fn fit(probe: &LinearProbe, train: Labelled, test: Labelled, plan: &Plan) -> anyhow::Result<Vec<Measured>> {
    let fit = probe.fit(train.features.rows.view(), &train.labels)?;
    let chosen = fit.trials.iter().min_by(|a, b| a.held_out_loss.total_cmp(&b.held_out_loss));
    if let Some(chosen) = chosen {
        note!(
            "probe    {} images, regulariser {:.1e} of {} tried, held-out accuracy {:.2} %, training loss {:.4}{}",
            train.labels.len(),
            chosen.regulariser,
            fit.trials.len(),
            100.0 * chosen.held_out_accuracy,
            fit.loss,
            if fit.converged { "" } else { " (not at its minimum yet)" }
        );
    }
    let predictions = fit.classifier.predict(test.features.rows.view())?;
    super::accuracies(&predictions, &test.labels, plan)
}

fn reference(
    judge: &Judge<'_>,
    trained: Box<dyn Encoder>,
    args: &Args,
    config: &SupervisedConfig,
    plan: &mut Plan,
) -> anyhow::Result<()> {
    let lessons = Lessons::new(judge, args.common.seed)?;
    let share = lessons.share(args.labels, args.common.seed)?;
    say!(
        "accuracy of a linear classifier ({} test images, {} training images; SGD on crops, {} epochs)",
        lessons.test.len(),
        share.0.len(),
        config.epochs
    )?;
    let chosen: &[Subject] =
        if args.baselines { &[Subject::Trained, Subject::Untrained] } else { &[Subject::Trained] };
    let mut trained = Some(trained);
    measure(plan, chosen, |plan, subject| {
        let mut backbone = match (subject, trained.take()) {
            (Subject::Trained, Some(trained)) => trained,
            _ => judge.untrained()?,
        };
        lessons.teach(backbone.as_mut(), &share, config, subject.name(), plan)
    })
}

/// Which images are learnt from and which are judged on: the splits of the data, or a fifth of each class held out.
pub(super) struct Lessons<'a> {
    judge: &'a Judge<'a>,
    /// Positions among the training images.
    train: Vec<usize>,
    train_labels: Vec<u32>,
    /// Positions among the test images, or among the training images where there are no others.
    pub test: Vec<usize>,
}

impl<'a> Lessons<'a> {
    pub fn new(judge: &'a Judge<'a>, seed: u64) -> anyhow::Result<Self> {
        let labels = |index: usize| judge.train.label(index).unwrap_or_default();
        let all: Vec<u32> = (0..judge.train.len()).map(labels).collect();
        let (train, test) = match &judge.test {
            Some(test) => ((0..judge.train.len()).collect(), (0..test.len()).collect()),
            None => held_out(&all, seed)?,
        };
        let train_labels = train.iter().map(|&index: &usize| all[index]).collect();
        Ok(Self { judge, train, train_labels, test })
    }

    /// A share of the images that are learnt from, with their labels.
    pub fn share(&self, share: f64, seed: u64) -> anyhow::Result<(Vec<usize>, Vec<u32>)> {
        let chosen = balanced_subset(&self.train_labels, share, seed)?;
        Ok(chosen.into_iter().map(|at| (self.train[at], self.train_labels[at])).unzip())
    }

    /// Trains a classifier on a share of the images, with the backbone where `config` says so, and judges it on the others.
    pub fn teach(
        &self,
        backbone: &mut dyn Encoder,
        (indices, labels): &(Vec<usize>, Vec<u32>),
        config: &SupervisedConfig,
        what: &str,
        plan: &Plan,
    ) -> anyhow::Result<Vec<Measured>> {
        let crops = crops(self.judge.settings)?;
        let training = config.check()?;
        let progress = count(what, "steps", training.n_iters(indices.len()));
        let learnt = training.train(
            backbone,
            Lesson { data: self.judge.train.as_ref(), indices, labels, crops: &crops },
            |done| progress(done as usize),
            |report| log_epoch(&report, config.epochs),
        )?;
        let data = self.judge.test.as_ref().unwrap_or(&self.judge.train);
        let others = swav_data::Subset::new(data.clone(), self.test.iter().copied())?;
        let features = self.judge.features(&others, backbone, Output::Features)?;
        let truth = features.labels(&others)?;
        super::accuracies(&learnt.predict(features.rows.view())?, &truth, plan)
    }
}

/// Share of each class that is held out where there is no test split.
const HELD_OUT: f64 = 0.2;

/// Positions that are learnt from and those that are held out, both rising.
fn held_out(labels: &[u32], seed: u64) -> anyhow::Result<(Vec<usize>, Vec<usize>)> {
    let test = balanced_subset(labels, HELD_OUT, seed)?;
    let train: Vec<usize> = (0..labels.len()).filter(|index| test.binary_search(index).is_err()).collect();
    anyhow::ensure!(!train.is_empty(), "{} images are too few to hold some of them out", labels.len());
    Ok((train, test))
}

/// Training and test features; without a test split a fifth of each class.
fn split(pair: Pair, seed: u64) -> anyhow::Result<(Labelled, Labelled)> {
    match pair.test {
        Some(test) => Ok((pair.train, test)),
        None => {
            let (train, test) = held_out(&pair.train.labels, seed)?;
            Ok((pair.train.select(&train), pair.train.select(&test)))
        }
    }
}

fn subset(train: Labelled, share: f64, seed: u64) -> anyhow::Result<Labelled> {
    Ok(match share {
        1.0 => train,
        share => train.select(&balanced_subset(&train.labels, share, seed)?),
    })
}

fn sets(judge: &Judge<'_>) -> String {
    match &judge.test {
        Some(test) => format!("{} test images, {} training images", test.len(), judge.train.len()),
        None => {
            format!("{} images, a fifth of each class held out, for want of a test split", judge.train.len())
        }
    }
}

/// The reference's crops for training with labels: 8% of the area or more, flipped as in the run's recipe, nothing else.
fn crops(settings: &Settings) -> anyhow::Result<MultiCrop> {
    let recipe = &settings.config().augment;
    let mut plain = MultiCropConfig { normalize: recipe.normalize.clone(), ..MultiCropConfig::default() };
    let size = settings.eval_view().size();
    plain.crops = Some(vec![CropConfig { min_scale: 0.08, max_scale: 1.0, ..CropConfig::square(size, 1) }]);
    plain.horizontal_flip = recipe.horizontal_flip.clone();
    plain.color_jitter.probability = Some(0.0);
    plain.grayscale.probability = Some(0.0);
    plain.blur.probability = Some(0.0);
    Ok(plain.check()?)
}

/// An epoch in the log, now and then.
fn log_epoch(report: &swav_eval::LessonReport, epochs: u64) {
    let done = report.epoch + 1;
    if done == epochs || done.is_multiple_of(epochs.div_ceil(10)) {
        let accuracy = 100.0 * report.accuracy;
        note!("epoch {done}/{epochs}: loss {:.4}, accuracy on training crops {accuracy:.2} %", report.loss);
    }
}

/// A share on the command line.
pub(super) fn check_share(option: &str, share: f64) -> anyhow::Result<()> {
    if share > 0.0 && share <= 1.0 {
        return Ok(());
    }
    Err(crate::usage(format!("{option} {share}: expected a share above 0, at most 1")))
}
