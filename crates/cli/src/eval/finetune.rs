//! `swav eval finetune`

use swav_encoder::{Encoder, StateDict, build_backbone};
use swav_eval::SupervisedConfig;

use super::linear::{Lessons, check_share};
use super::{Common, Plan, measure};
use crate::eval::verdict::Measured;
use crate::judge::{Judge, Subject};

/// Steps below which the usual learning rates are hardly right: the reference's 1% of ImageNet in batches of 256 make 1000.
const FEW_STEPS: usize = 500;

/// Accuracy after fine-tuning the whole network with few labels.
///
/// The reference's protocol (eval_semisup.py): a linear classifier on the backbone, both trained with SGD for 20 epochs on
/// crops, with a learning rate of their own each. Of each class the same number of labels is drawn by the seed. Data without a
/// test split: a fifth of the images of each class is held out as such. Takes about as long as as many epochs of pretraining
/// with one crop per image.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    common: Common,

    /// Shares of the training labels, with commas between several; 1 for all.
    #[arg(long, value_delimiter = ',', default_values_t = [0.01, 0.1])]
    labels: Vec<f64>,

    /// Epochs.
    #[arg(long, default_value_t = SupervisedConfig::finetuning(1.0).epochs)]
    epochs: u64,

    /// Images of a step.
    #[arg(long, default_value_t = SupervisedConfig::finetuning(1.0).batch_size)]
    batch_size: usize,

    /// Learning rate of the backbone [default: 0.02 with less than 5% of the labels, else 0.01].
    #[arg(long)]
    lr: Option<f64>,

    /// Learning rate of the classifier [default: 5 with less than 5% of the labels, else 0.2].
    #[arg(long)]
    classifier_lr: Option<f64>,

    /// Train the same network from its initial weights, too. Once known, that is read from the record.
    #[arg(long)]
    baselines: bool,
}

pub(super) fn run(args: Args) -> anyhow::Result<()> {
    args.common.check()?;
    if args.labels.is_empty() {
        return Err(crate::usage("--labels: expected at least one share"));
    }
    let mut configs = Vec::new();
    for &share in &args.labels {
        check_share("--labels", share)?;
        let usual = SupervisedConfig::finetuning(share);
        let config = SupervisedConfig {
            epochs: args.epochs,
            batch_size: args.batch_size,
            lr: args.classifier_lr.unwrap_or(usual.lr),
            backbone_lr: args.lr.unwrap_or(usual.backbone_lr),
            seed: args.common.seed,
            ..usual
        };
        config.check().map_err(|error| crate::usage(format!("--{error}")))?;
        configs.push((share, config));
    }
    let settings = args.common.network.settings()?;
    let judge = Judge::new(&settings)?.with_labels()?;
    judge.show_data();
    let lessons = Lessons::new(&judge, args.common.seed)?;
    let network = args.common.network(&judge)?;
    let mut plan = args.common.plan(&judge, "finetune", network.step);
    for (share, config) in &configs {
        plan.set(&format!("labels {share}"), serde_json::to_value(config)?);
    }
    say!("accuracy after fine-tuning ({} test images; epochs: {})", lessons.test.len(), args.epochs)?;
    let subjects: &[Subject] =
        if args.baselines { &[Subject::Trained, Subject::Untrained] } else { &[Subject::Trained] };
    let trained = network.encoder.state()?;
    measure(&mut plan, subjects, |plan, subject| {
        let start = if subject == Subject::Trained { Some(&trained) } else { None };
        let mut measured = Vec::new();
        for (share, config) in &configs {
            measured.push(finetune(&judge, &lessons, start, (*share, config), plan)?);
        }
        Ok(measured)
    })?;
    plan.finish()
}

/// The accuracy with one share of the labels, from a network's state or from its initial weights.
fn finetune(
    judge: &Judge<'_>,
    lessons: &Lessons<'_>,
    start: Option<&StateDict>,
    (share, config): (f64, &SupervisedConfig),
    plan: &Plan,
) -> anyhow::Result<Measured> {
    let mut backbone = backbone(judge, start)?;
    let chosen = lessons.share(share, config.seed)?;
    let what = format!("{} labels", chosen.0.len());
    note!("finetune {what}, learning rates {} and {}", config.backbone_lr, config.lr);
    let n_steps = config.epochs as usize * chosen.0.len().div_ceil(config.batch_size);
    if n_steps < FEW_STEPS {
        note!(
            "note: {n_steps} steps are few for these rates, which are meant for a thousand: smaller --batch-size, --lr and \
             --classifier-lr may give more, or a linear probe (swav eval linear --labels {share})"
        );
    }
    let (_, estimate, n) = lessons.teach(backbone.as_mut(), &chosen, config, &what, plan)?.swap_remove(0);
    Ok((format!("accuracy, {}", percent(share)), estimate, n))
}

/// The backbone alone.
fn backbone(judge: &Judge<'_>, start: Option<&StateDict>) -> anyhow::Result<Box<dyn Encoder>> {
    let training = &judge.settings.config().training;
    let mut backbone = build_backbone(&training.device, judge.settings.encoder(), training.seed)?;
    if let Some(state) = start {
        let of_backbone = state.iter().filter(|(name, _)| !name.starts_with("projection_head"));
        let of_backbone = of_backbone.map(|(name, tensor)| (name.to_owned(), tensor.clone())).collect();
        backbone.load_state(&of_backbone)?;
    }
    Ok(backbone)
}

fn percent(share: f64) -> String {
    match share {
        1.0 => "all labels".to_owned(),
        share => format!("{} % of labels", (share * 1e6).round() / 1e4),
    }
}
