//! `swav doctor`: a recipe for images that are at hand, what is known to fail in a configuration, and why a run failed.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use swav_data::{DataConfig, counted};
use swav_encoder::{DeviceMemory, EncoderError};
use swav_train::advice::{
    DataFacts, Facts, Finding, Level, MachineFacts, Proposal, StepFacts, examine, propose, repair,
};
use swav_train::{Alarm, Metrics, TrainConfig, Trial, TrialOutcome, explain};

use crate::configuration::{self, Changes};
use crate::names::typed;
use crate::open::{open, open_shown};
use crate::output_file::{Force, OutputFile};
use crate::program;
use crate::run_record::RunRecord;

/// Columns of a curve.
const CURVE: usize = 64;

/// Propose a recipe for your images, check a configuration before training, or explain a run that went wrong.
///
/// With --data alone, proposes batch, prototypes, epsilon, queue, freezing, learning rate and crops for these images and
/// this machine, each with its reason; with --config, looks for what is known to fail in that configuration. Either way
/// some steps are trained to tell how long the run will take and how much memory. With --run, explains from its metrics
/// what went wrong in a run, or is going wrong.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    changes: Changes,

    /// The configuration to check: a TOML file, or the name of a recipe.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Explain the run in this folder instead.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["config", "write"])]
    run: Option<PathBuf>,

    /// Write the recipe, complete: the one proposed, or the given one with what was found mended.
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,

    #[command(flatten)]
    force: Force,

    /// Do not train any steps to measure time and memory.
    #[arg(long)]
    no_trial: bool,

    /// How many images are looked at, evenly spread.
    #[arg(long, value_name = "N", default_value_t = 2000)]
    images: usize,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    if let Some(run) = &args.run {
        return after(run, &args.changes);
    }
    if args.config.is_none() && args.changes.data.is_none() {
        return Err(crate::usage("doctor needs --data PATH, --config FILE or --run DIR"));
    }
    let out = args.write.as_deref().map(|path| OutputFile::create(path, args.force.force)).transpose()?;
    let given = args.config.as_deref().map(|given| configuration::find(given)?.read(&args.changes));
    before(&args, given.transpose()?, out)
}

/// Before a run: a proposal, or a look at a configuration.
fn before(args: &Args, given: Option<TrainConfig>, out: Option<OutputFile>) -> anyhow::Result<()> {
    let mut data_config = match (&given, &args.changes.data) {
        (Some(config), _) => config.data.clone(),
        (None, Some(path)) => DataConfig { path: path.clone(), ..DataConfig::default() },
        (None, None) => DataConfig::default(),
    };
    args.changes.data_options.apply(&mut data_config);
    let data = open_shown(&data_config).context("data")?;
    let device = given.as_ref().map(|config| config.training.device.clone());
    let device = args.changes.device.clone().or(device).unwrap_or_else(|| "auto".to_owned());
    let data_facts = DataFacts::of(data.clone(), args.images);
    let machine = MachineFacts::here(&real_device(&device));
    let mut facts = Facts { data: data_facts, machine, ..Facts::default() };
    print_facts(&facts)?;

    let (mut config, proposal) = match given {
        Some(config) => (config, None),
        None => {
            let mut proposal = proposal(args, &device, &data_config, &facts)?;
            // How much fits shows when there is a network, and the batch is chosen by it then.
            facts.card = memory_of_card(&proposal.config, &facts).filter(|memory| !memory.fits());
            if facts.card.is_some() {
                proposal = self::proposal(args, &device, &data_config, &facts)?;
            }
            (proposal.config.clone(), Some(proposal))
        }
    };
    if let Some(proposal) = &proposal {
        say!("\nA recipe for these images:")?;
        for reason in &proposal.reasons {
            say!("  {:<24} {:<20} {}", reason.key, reason.value, reason.why)?;
        }
    }
    // What is refused anyway is said before any work is done, after what the rules have to say about it.
    if let Err(error) = config.check() {
        print_findings(&examine(&config, &facts))?;
        return Err(error.into());
    }
    let is_tried = !args.no_trial && facts.data.n_images >= config.training.batch_size;
    if is_tried || facts.machine.has_card {
        look_at_a_step(&config, &mut facts, is_tried)?;
    }
    print_findings(&examine(&config, &facts))?;

    let Some(mut out) = out else { return hint(&config, args) };
    let text = match proposal {
        Some(proposal) => proposal.to_toml()?,
        None => {
            let (mended, left) = repair(&config, &facts)?;
            config = mended;
            if left.iter().any(|finding| finding.level > Level::Note) {
                note!("some of it takes a decision of yours, and stays as it is");
            }
            config.to_toml()?
        }
    };
    let path = out.path().to_owned();
    out.write_all(text.as_bytes()).with_context(|| format!("could not write {}", path.display()))?;
    out.commit()?;
    say!("\nwritten to {}", path.display())?;
    say!("look at its crops:  {} augment --config {}", program(), typed(&path))?;
    say!("train with it:      {} pretrain --config {}", program(), typed(&path))
}

/// A recipe for these images, with what the command line changes in it.
fn proposal(args: &Args, device: &str, data: &DataConfig, facts: &Facts) -> anyhow::Result<Proposal> {
    let path = match data.path.exists() {
        true => std::path::absolute(&data.path)?,
        false => data.path.clone(),
    };
    let mut proposal = propose(&path, facts);
    device.clone_into(&mut proposal.config.training.device);
    let DataConfig { path, cache_mib, .. } = proposal.config.data;
    proposal.config.data = DataConfig { path, cache_mib, ..data.clone() };
    proposal.config = TrainConfig::parse(&proposal.config.to_toml()?, &args.changes.settings)?;
    Ok(proposal)
}

/// What training by a configuration takes of a card's memory, if it runs on one that is there.
fn memory_of_card(config: &TrainConfig, facts: &Facts) -> Option<DeviceMemory> {
    let settings = config.check().ok().filter(|_| facts.machine.has_card)?;
    let network = swav_encoder::build(&config.training.device, settings.encoder(), config.training.seed);
    settings.device_memory(network.ok()?.as_ref(), 1)
}

fn hint(config: &TrainConfig, args: &Args) -> anyhow::Result<()> {
    let what = match &args.config {
        Some(config) => format!(" --config {}", typed(config)),
        None => String::new(),
    };
    let data = typed(&config.data.path);
    say!("\nto have it as a file:  {} doctor{what} --data {data} --write recipe.toml", program())
}

/// What `auto` stands for on this machine.
fn real_device(device: &str) -> String {
    if device != "auto" {
        return device.to_owned();
    }
    let small = swav_encoder::EncoderConfig {
        arch: swav_encoder::ResNet::custom(swav_encoder::BlockKind::Basic, [1]).with_width(8).into(),
        ..swav_encoder::EncoderConfig::default()
    };
    let network = small.check().and_then(|spec| swav_encoder::build(device, &spec, 0));
    network.map_or_else(|_| "cpu".to_owned(), |network| network.device().to_owned())
}

/// Says what a step takes of a card's memory and, where it is tried, what it takes of time and of the host's memory.
fn look_at_a_step(config: &TrainConfig, facts: &mut Facts, is_tried: bool) -> anyhow::Result<()> {
    let settings = config.check()?;
    let network = swav_encoder::build(&config.training.device, settings.encoder(), config.training.seed);
    if !is_tried && matches!(network, Err(EncoderError::Unavailable { .. })) {
        // A recipe may be for another machine.
        return Ok(());
    }
    let network = network?;
    facts.card = settings.device_memory(network.as_ref(), 1);
    if let Some(memory) = facts.card {
        say!("\ncard     {memory}")?;
    }
    if is_tried && facts.card.is_none_or(|memory| memory.fits()) {
        let fits = facts.data.decoded_bytes <= (config.data.cache_mib as u64) << 20;
        let cache_mib = if fits { config.data.cache_mib } else { 0 };
        let data = open(&DataConfig { cache_mib, ..config.data.clone() }).context("data")?;
        note!("training some steps to measure them ...");
        let outcome = Trial::default().measure(&settings, network, data).context("a trial of some steps")?;
        facts.step = Some(outcome.step);
        print_estimate(config, facts, &outcome)?;
    }
    Ok(())
}

fn print_facts(facts: &Facts) -> anyhow::Result<()> {
    let DataFacts { short_side, is_grey, n_classes, .. } = facts.data;
    let classes = n_classes.map_or("no labels".to_owned(), |n| format!("labels of {n} classes"));
    let colour = if is_grey { "grey" } else { "in colour" };
    say!("images   {}, shorter side {short_side} pixels (median), {colour}, {classes}", facts.data.n_images)?;
    let memory =
        facts.machine.memory_bytes.map_or(String::new(), |bytes| format!(", {} of memory", size(bytes)));
    let card = if facts.machine.has_card { ", a card" } else { "" };
    say!("machine  {} cores{memory}{card}", facts.machine.n_cores)
}

fn print_estimate(config: &TrainConfig, facts: &Facts, outcome: &TrialOutcome) -> anyhow::Result<()> {
    let StepFacts { seconds, data_wait, peak_bytes } = outcome.step;
    let per_epoch = (facts.data.n_images / config.training.batch_size) as u64;
    let total = per_epoch * config.training.epochs;
    say!(
        "\nA step takes {seconds:.3} s: {:.0} images/s, {:.0}% of it waiting for images ({} measured)",
        config.training.batch_size as f64 / seconds,
        100.0 * data_wait,
        counted(outcome.n_steps, "step")
    )?;
    say!(
        "The run takes about {} ({} of {}), evaluation not counted",
        duration(outcome.first_seconds + seconds * total as f64),
        counted(config.training.epochs as usize, "epoch"),
        counted(per_epoch as usize, "step")
    )?;
    match peak_bytes {
        Some(bytes) => {
            // The images that a run will keep are not those of the trial.
            let kept = facts.data.decoded_bytes.min((config.data.cache_mib as u64) << 20);
            say!("and about {} of memory, of which {} for images", size(bytes + kept), size(kept))
        }
        None => Ok(()),
    }
}

fn print_findings(findings: &[Finding]) -> anyhow::Result<()> {
    if findings.is_empty() {
        return say!("\nNothing in it is known to fail.");
    }
    say!("\nFound:")?;
    for finding in findings {
        say!("  {:<8} {}", finding.level, finding.sign)?;
        say!("           why: {}", finding.cause)?;
        say!("           do:  {}", finding.remedy)?;
    }
    Ok(())
}

/// After a run, or while it goes on: what its metrics show.
fn after(run: &Path, changes: &Changes) -> anyhow::Result<()> {
    let record = RunRecord::read(run, changes)?;
    let (Some(first), Some(last)) = (record.metrics.first(), record.metrics.last()) else {
        bail!("run {}: no step has been logged (metrics.jsonl has no numbers)", run.display());
    };
    let state = match record.is_finished() {
        true => "finished",
        false => "not finished (still going, stopped, or failed)",
    };
    say!("run      {}: {state}", run.display())?;
    let epochs = record.config.training.epochs;
    let of = record.steps_per_epoch().map_or(String::new(), |steps| format!(" of {}", steps * epochs));
    say!("steps    {}{of}, in epoch {} of {epochs}", record.n_steps(), last.epoch + 1)?;
    let alarms = explain(&record.metrics, &record.config);
    for alarm in &alarms {
        print_alarm(alarm, &record.metrics)?;
    }
    if alarms.is_empty() {
        say!("\nNothing that is known to go wrong has been seen.\n")?;
    } else {
        say!("\nThe whole run:\n")?;
    }
    let k = record.config.prototypes.n_prototypes.first().copied().unwrap_or(1);
    say!(
        "  loss                 {:>8.3} to {:>8.3}   ln K is {:.3}",
        first.loss,
        last.loss,
        (k as f64).ln()
    )?;
    say!("  {}", curve(&record.metrics, "loss"))?;
    say!(
        "  used by predictions  {:>8.1} to {:>8.1}   of {k} prototypes",
        first.prediction_perplexity,
        last.prediction_perplexity
    )?;
    say!("  {}", curve(&record.metrics, "prediction_perplexity"))?;
    say!("  entropy of codes     {:>8.3} to {:>8.3}", first.code_entropy, last.code_entropy)?;
    say!("  {}", curve(&record.metrics, "code_entropy"))?;
    say!("  spread               {:>8.3} to {:>8.3}", first.spread, last.spread)?;
    say!("  {}", curve(&record.metrics, "spread"))?;
    print_evaluations(&record)?;
    let wait = record.metrics.iter().map(|line| line.data_wait).sum::<f64>() / record.metrics.len() as f64;
    if let Some(advice) = swav_train::advice_on_waiting(wait) {
        say!("\n{advice}")?;
    }
    say!("\nthe same with pictures:  {} report --run {}", program(), typed(run))
}

fn print_evaluations(record: &RunRecord) -> anyhow::Result<()> {
    if let Some((step, numbers)) = record.evaluated.last() {
        let numbers: Vec<String> = numbers.iter().map(|(name, value)| format!("{name} {value:.4}")).collect();
        say!("\n  during training, last at step {step}: {}", numbers.join(", "))?;
    }
    for evaluation in &record.evaluations {
        let step = evaluation.step.map_or(String::new(), |step| format!(", step {step}"));
        say!("\n  {}{step}", evaluation.name)?;
        for result in &evaluation.results {
            let interval =
                result.interval.map_or(String::new(), |(low, high)| format!(" ({low:.4} to {high:.4})"));
            let n = result.n.map_or(String::new(), |n| format!(", {n} images"));
            say!("    {:<20} {:<20} {:.4}{interval}{n}", result.name, result.of, result.value)?;
        }
    }
    Ok(())
}

fn print_alarm(alarm: &Alarm, metrics: &[Metrics]) -> anyhow::Result<()> {
    say!("\nstep {}: {}", alarm.step, alarm.symptom)?;
    say!("  {}", alarm.sign)?;
    let evidence = alarm.symptom.evidence();
    let at = metrics.iter().position(|line| line.step >= alarm.since).unwrap_or(0);
    let column = at * CURVE.min(metrics.len()) / metrics.len().max(1);
    say!("  {evidence}, first step to last:")?;
    say!("  {}", curve(metrics, evidence))?;
    say!("  {}^ since step {}", " ".repeat(column), alarm.since)?;
    say!("  {}", alarm.advice)
}

/// A number over the whole run in one line of characters.
fn curve(metrics: &[Metrics], name: &str) -> String {
    const LEVELS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let value = |line: &Metrics| match name {
        "loss" => Some(line.loss),
        "gap_to_ln_k" => Some(line.gap_to_ln_k),
        "prediction_perplexity" => Some(line.prediction_perplexity),
        "code_entropy" => Some(line.code_entropy),
        "row_residual" => line.row_residual,
        "queue_drift" => line.queue_drift,
        _ => Some(line.spread),
    };
    let values: Vec<f64> = metrics.iter().map(|line| value(line).unwrap_or(f64::NAN)).collect();
    let n_columns = CURVE.min(values.len());
    let means: Vec<f64> = (0..n_columns)
        .map(|column| {
            let part = &values[column * values.len() / n_columns..(column + 1) * values.len() / n_columns];
            let known: Vec<f64> = part.iter().copied().filter(|value| value.is_finite()).collect();
            known.iter().sum::<f64>() / known.len() as f64
        })
        .collect();
    let least = means.iter().copied().fold(f64::INFINITY, f64::min);
    let most = means.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let level = |mean: &f64| match mean.is_nan() {
        true => ' ',
        false => LEVELS[((mean - least) / (most - least).max(1e-12) * 7.0).round().clamp(0.0, 7.0) as usize],
    };
    means.iter().map(level).collect()
}

/// `1 h 20 min`, `3 min`, `40 s`.
pub(crate) fn duration(seconds: f64) -> String {
    let seconds = seconds.max(0.0).round() as u64;
    match seconds {
        0..120 => format!("{seconds} s"),
        120..5400 => format!("{} min", (seconds + 30) / 60),
        5400..172_800 => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
        _ => format!("{:.1} days", seconds as f64 / 86_400.0),
    }
}

/// `640 MiB`, `2.3 GiB`.
fn size(bytes: u64) -> String {
    match bytes >> 20 {
        mib @ 0..2048 => format!("{mib} MiB"),
        mib => format!("{:.1} GiB", mib as f64 / 1024.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RECIPES;

    /// Data that each recipe is made for: images, shorter side, grey, classes.
    fn data_of(recipe: &str) -> DataFacts {
        let (n_images, short_side, is_grey, n_classes) = match recipe {
            "quickstart" => (6000, 48, false, Some(12)),
            "photos" => (5000, 600, false, None),
            "fashion-mnist" => (60_000, 28, true, Some(10)),
            "cifar10-resnet18" => (50_000, 32, false, Some(10)),
            _ => (1_281_167, 400, false, Some(1000)),
        };
        let decoded_bytes = (n_images * short_side * short_side * 3) as u64;
        let short_side = u32::try_from(short_side).unwrap();
        DataFacts { n_images, short_side, is_grey, n_classes, decoded_bytes, ..DataFacts::default() }
    }

    #[test]
    fn the_recipes_are_met_with_silence() {
        for recipe in RECIPES {
            let config = TrainConfig::parse(recipe.text, &[]).unwrap();
            let machine = MachineFacts { n_cores: 8, memory_bytes: Some(64 << 30), has_card: false };
            let facts = Facts { data: data_of(recipe.name), machine, ..Facts::default() };
            assert_eq!(examine(&config, &facts), [], "{}", recipe.name);
        }
    }

    #[test]
    fn curves_and_durations() {
        let line = serde_json::json!({"step": 0, "epoch": 0, "batch": 0, "loss": 1.0, "lr": 0.1, "code_entropy": 1.0,
            "code_perplexity": 1.0, "prediction_perplexity": 1.0, "gap_to_ln_k": 0.0, "spread": 0.5, "gradient_norm": 1.0,
            "parameter_norm": 1.0, "queue_used": false, "images_per_s": 1.0, "data_wait": 0.0});
        let line: Metrics = serde_json::from_value(line).unwrap();
        let lines: Vec<Metrics> = (0..8).map(|at| Metrics { loss: f64::from(at), ..line.clone() }).collect();
        assert_eq!(curve(&lines, "loss"), "▁▂▃▄▅▆▇█");
        assert_eq!(curve(&lines, "queue_drift"), "        ");
        assert_eq!([30.0, 600.0, 7260.0].map(duration), ["30 s", "10 min", "2 h 1 min"]);
    }
}
