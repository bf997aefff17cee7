//! `swav pretrain`: trains, then says how good the features are.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use swav_data::Dataset;
use swav_encoder::Encoder;
use swav_train::{Outcome, RunFolder, Settings, Trainer, available_memory, bytes, free_space};

use crate::configuration::{self, Changes, QUICKSTART};
use crate::eval::record_knn;
use crate::exit::Stopped;
use crate::judge::Judge;
use crate::monitor::Monitor;
use crate::names::typed;
use crate::open::open_shown;
use crate::output::{is_quiet, outlive_the_reader, shown};
use crate::program;
use crate::signals::Signals;

/// Learn features from images without labels, and tell how good they are.
///
/// Without arguments: trains on built-in images for some minutes.
///
/// Writes a folder: config.toml, checkpoints/, metrics.jsonl, tensorboard/, at the end weights.safetensors. Where the
/// images have labels, prints the k-nearest-neighbour accuracy of the trained network, of the same network untrained,
/// and of the raw pixels. Ctrl-C saves and stops (status 130; 143 for SIGTERM); --resume goes on, bit for bit.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A TOML file, or the name of a recipe: quickstart, photos, fashion-mnist, ... [default: quickstart].
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    #[command(flatten)]
    changes: Changes,

    /// Folder of the run [default: runs/CONFIG-NUMBER, a new one].
    #[arg(long, value_name = "DIR")]
    run: Option<PathBuf>,

    /// Go on with the run in the folder that --run names.
    #[arg(long, requires = "run")]
    resume: bool,

    /// Do not evaluate after training.
    #[arg(long)]
    no_evaluation: bool,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    // A training is worth more than what is printed of it.
    outlive_the_reader();
    match &args.run {
        Some(folder) if args.resume => go_on(&args, RunFolder::at(folder)),
        _ => begin(&args),
    }
}

/// A new run.
fn begin(args: &Args) -> anyhow::Result<()> {
    let given = args.config.as_deref().unwrap_or(Path::new(QUICKSTART));
    let settings = configuration::find(given)?.settings(&args.changes)?;
    let named = args.run.as_ref().map(RunFolder::at);
    if let Some(folder) = &named {
        refuse_taken(folder)?;
    }
    let parts = Parts::open(settings)?;
    let parent = Path::new("runs");
    let had_parent = parent.exists();
    let name = given.file_stem().map_or("run".into(), |stem| stem.to_string_lossy());
    let folder = match named.clone() {
        Some(folder) => folder,
        None => RunFolder::numbered(parent, &name).context("cannot make a folder for the run")?,
    };
    let result = parts.train(args, &folder, Trainer::start);
    if result.is_err() && named.is_none() {
        // Both are there still if they hold something.
        let _ = std::fs::remove_dir(folder.root());
        if !had_parent {
            let _ = std::fs::remove_dir(parent);
        }
    }
    result
}

fn refuse_taken(folder: &RunFolder) -> anyhow::Result<()> {
    let root = folder.root().display();
    if folder.exists() {
        bail!("{root} already holds a run; add --resume to go on with it, or choose another --run");
    }
    if let Some(found) = folder.foreign().with_context(|| format!("--run {root}: cannot be used"))? {
        bail!(
            "--run {root}: is not empty and holds no run (it has `{}`); choose another folder for the run",
            shown(&found)
        );
    }
    Ok(())
}

/// A run that goes on.
fn go_on(args: &Args, folder: RunFolder) -> anyhow::Result<()> {
    let own = configuration::source_of_run(&folder)?;
    let source = args.config.as_deref().map(configuration::find).transpose()?.unwrap_or(own);
    let settings = source.settings(&args.changes)?;
    if let Some(standing) = folder.standing(&settings)? {
        let rewrites = standing.changes.iter().any(|change| change.key.starts_with("reestimation."));
        if standing.finished && !rewrites {
            return say_finished(&folder, &settings, standing.position.step);
        }
    }
    Parts::open(settings)?.train(args, &folder, Trainer::resume)
}

fn say_finished(folder: &RunFolder, settings: &Settings, step: u64) -> anyhow::Result<()> {
    let (run, epochs, program) = (typed(folder.root()), settings.config().training.epochs, program());
    say!("finished {epochs} epochs, {step} steps: nothing to do")?;
    say!("weights  {}", folder.weights().display())?;
    say!(
        "\nto train longer:              {program} pretrain --run {run} --resume --set training.epochs={}",
        epochs * 2
    )?;
    say!("to judge the trained network: {program} eval knn --run {run}")
}

/// What a training works with.
struct Parts {
    settings: Settings,
    images: Arc<dyn Dataset>,
    network: Box<dyn Encoder>,
}

impl Parts {
    /// Opens the data and makes the network, if there is the memory for it.
    fn open(settings: Settings) -> anyhow::Result<Self> {
        let available = available_memory();
        settings.training_memory(1, false).check(available)?;
        let images = open_shown(&settings.config().data).context("data")?;
        let (device, seed) = (&settings.config().training.device, settings.config().training.seed);
        let network = swav_encoder::build(device, settings.encoder(), seed)?;
        let (n_parameters, device) = (settings.encoder().n_parameters(), network.device());
        note!("network  {n_parameters} parameters, {} features, on {device}", network.feature_dim());
        let memory = settings.training_memory(1, device.ends_with("cpu"));
        memory.check(available)?;
        let there = available.map_or(String::new(), |n| format!("; {} available", bytes(n.into())));
        note!("memory   {memory}{there}");
        if let Some(memory) = settings.device_memory(network.as_ref(), 1) {
            note!("card     {memory}");
        }
        Ok(Self { settings: resumable_anywhere(settings)?, images, network })
    }

    fn train(
        self,
        args: &Args,
        folder: &RunFolder,
        start: impl FnOnce(
            Settings,
            Box<dyn Encoder>,
            Arc<dyn Dataset>,
            RunFolder,
        ) -> Result<Trainer, swav_train::TrainError>,
    ) -> anyhow::Result<()> {
        let Self { settings, images, network } = self;
        note!("run      {}", folder.root().display());
        let judge = if args.no_evaluation { None } else { judge(&settings) };
        // From here on a signal leaves a run that can be resumed.
        let signals = Signals::listen()?;
        let trainer = start(settings.clone(), network, images.clone(), folder.clone())?;
        let mut trainer = trainer.show_progress(!is_quiet());
        let free = free_space(folder.root()).map_or(String::new(), |n| format!("; {} free", bytes(n.into())));
        note!("disk     {}{free}", trainer.disk_use());
        if let Some(mut monitor) = Monitor::new(&settings, images.clone(), folder, signals.flag.clone()) {
            if let Some(hint) = monitor.hint(&settings) {
                note!("note: {hint}");
            }
            trainer.on_epoch(move |event| {
                monitor.observe(event);
                Ok(())
            });
        }
        let outcome = trainer.run(&signals.flag).inspect_err(|_| hint_at_checkpoint(folder))?;
        let (run, program) = (typed(folder.root()), program());
        if !outcome.finished {
            let hint = format!("stopped and saved; go on with: {program} pretrain --run {run} --resume");
            return Err(Stopped { signal: signals.received(), hint }.into());
        }
        summarise(&outcome, folder)?;
        if signals.flag.is_raised() {
            let hint = format!("stopped after the training; to judge it: {program} eval knn --run {run}");
            return Err(Stopped { signal: signals.received(), hint }.into());
        }
        drop(signals);
        let step = trainer.position().step;
        match judge {
            Some(judge) => evaluate(&judge, trainer.into_encoder().as_ref(), folder, step),
            None if args.no_evaluation => Ok(()),
            None => without_labels(&settings, folder),
        }
    }
}

/// What judges the trained network; `None`, said before the training begins, if nothing can.
fn judge(settings: &Settings) -> Option<Judge<'_>> {
    match Judge::new(settings).and_then(Judge::with_labels) {
        Ok(judge) => Some(judge),
        Err(reason) => {
            note!("note: there will be no accuracy at the end: {reason:#}");
            None
        }
    }
}

/// The same settings with a path of the data that means the same in any working directory.
fn resumable_anywhere(settings: Settings) -> anyhow::Result<Settings> {
    let mut config = settings.config().clone();
    if config.data.path.is_absolute() || config.data.path == Path::new("builtin") {
        return Ok(settings);
    }
    config.data.path = std::path::absolute(&config.data.path).context("the working directory")?;
    Ok(config.check()?)
}

/// Says that not all is lost where a training has failed.
fn hint_at_checkpoint(folder: &RunFolder) {
    let (run, program) = (typed(folder.root()), program());
    if folder.newest().is_ok() {
        note!(
            "the newest checkpoint is from before the failure; go on from it with: {program} pretrain --run {run} --resume"
        );
    } else if folder.exists() {
        note!("nothing was saved before the failure; {program} pretrain --run {run} --resume starts over");
    }
}

fn summarise(outcome: &Outcome, folder: &RunFolder) -> anyhow::Result<()> {
    say!(
        "trained  {} steps in {:.0} s, {:.0} images/s, final loss {:.4}",
        outcome.n_steps,
        outcome.seconds,
        outcome.images_per_s,
        outcome.loss
    )?;
    if outcome.n_bad_images > 0 {
        say!("         {} unreadable images were replaced by others", outcome.n_bad_images)?;
    }
    say!("weights  {}", folder.weights().display())
}

/// Prints the k-NN accuracies and keeps them.
fn evaluate(judge: &Judge<'_>, trained: &dyn Encoder, folder: &RunFolder, step: u64) -> anyhow::Result<()> {
    let run = typed(folder.root());
    say!("")?;
    // The trainer has re-estimated the statistics of its network already, if the configuration wants it.
    let path = record_knn(judge, trained, (step, folder.root().to_owned()))?;
    note!("record   {}", path.display());
    let program = program();
    say!(
        "\nevaluate in other ways:  {program} eval linear --run {run}   (finetune, cluster, retrieval; --data PATH)"
    )?;
    say!("features of any images:  {program} embed --run {run} --data PATH --out features.npy")
}

fn without_labels(settings: &Settings, folder: &RunFolder) -> anyhow::Result<()> {
    let metrics = std::fs::read_to_string(folder.metrics()).context("metrics")?;
    let of_step = |line: &str| {
        let line: serde_json::Value = serde_json::from_str(line).ok()?;
        line["loss"].is_number().then_some(line)
    };
    let last = metrics.lines().rev().find_map(of_step).context("no step was logged")?;
    let number = |key: &str| last[key].as_f64().unwrap_or(f64::NAN);
    let n_prototypes = settings.config().prototypes.n_prototypes[0];
    say!("\nno accuracy can be told; the last step's diagnostics:")?;
    say!("  gap of the loss to ln K     {:.3} nats (0: nothing learnt)", number("gap_to_ln_k"))?;
    say!("  prototypes used by codes    {:.1} of {n_prototypes}", number("code_perplexity"))?;
    say!(
        "  used by predictions         {:.1} of {n_prototypes} (1: collapsed)",
        number("prediction_perplexity")
    )?;
    say!(
        "  spread of the embeddings    {:.3} (0: collapsed, towards 1: spread over the sphere)",
        number("spread")
    )?;
    let run = typed(folder.root());
    let program = program();
    say!("\nfeatures of your images:  {program} embed --run {run} --out features.npy")?;
    say!("accuracy on labelled ones: {program} eval knn --run {run} --data PATH")
}
