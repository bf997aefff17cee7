//! `swav pretrain`: trains, then says how good the features are.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use swav_data::Dataset;
use swav_eval::KnnConfig;
use swav_train::{Outcome, RunFolder, Settings, Trainer};

use crate::configuration::{self, Changes, QUICKSTART};
use crate::exit::Stopped;
use crate::judge::{Judge, Subject};
use crate::open::open;
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
    let folder = args.run.clone().map(RunFolder::at);
    let config = match (&args.config, &folder) {
        (None, Some(folder)) if args.resume => configuration::of_run(folder, &args.changes)?,
        (given, _) => {
            let given = given.as_deref().unwrap_or(Path::new(QUICKSTART));
            configuration::find(given)?.read(&args.changes)?
        }
    };
    let settings = config.check()?;
    let folder =
        folder.unwrap_or_else(|| new_folder(args.config.as_deref().unwrap_or(Path::new(QUICKSTART))));
    if folder.exists() && !args.resume {
        bail!(
            "{} already holds a run; add --resume to go on with it, or choose another --run",
            folder.root().display()
        );
    }

    let images = open(&settings.config().data).context("data")?;
    let (device, seed) = (&settings.config().training.device, settings.config().training.seed);
    let network = swav_encoder::build(device, settings.encoder(), seed)?;
    let n_parameters: usize =
        network.parameters().iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
    note!("data     {}", images.describe());
    let (n_features, device) = (network.feature_dim(), network.device().to_owned());
    note!("network  {n_parameters} parameters, {n_features} features, on {device}");
    note!("run      {}", folder.root().display());

    let start = if args.resume { Trainer::resume } else { Trainer::start };
    let mut trainer = start(settings.clone(), network, images.clone(), folder.clone())?;
    let signals = Signals::listen()?;
    let outcome = trainer.run(&signals.flag).inspect_err(|_| hint_at_checkpoint(&folder))?;
    if !outcome.finished {
        let run = folder.root().display();
        let hint = format!("stopped and saved; go on with: {} pretrain --run {run} --resume", program());
        return Err(Stopped { signal: signals.received(), hint }.into());
    }
    drop(signals);
    summarise(&outcome, &folder)?;
    if !args.no_evaluation {
        let trained = trainer.into_encoder();
        evaluate(&settings, images.as_ref(), trained.as_ref(), &folder)?;
    }
    Ok(())
}

/// Says that not all is lost where a training has failed.
fn hint_at_checkpoint(folder: &RunFolder) {
    if folder.newest().is_ok() {
        let run = folder.root().display();
        note!(
            "the newest checkpoint is from before the failure; go on from it with: {} pretrain --run {run} --resume",
            program()
        );
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

/// Prints the k-NN accuracies, or, without labels, what can be said and done without.
fn evaluate(
    settings: &Settings,
    images: &dyn Dataset,
    trained: &dyn swav_encoder::Encoder,
    folder: &RunFolder,
) -> anyhow::Result<()> {
    let run = folder.root().display();
    if images.label(0).is_none() {
        return without_labels(settings, folder);
    }
    let judge = Judge::new(settings, KnnConfig::default())?;
    say!("\n{}", judge.describe())?;
    // The trainer has re-estimated the statistics of its network already, if the configuration wants it.
    let results = [
        judge.report(Subject::Trained, judge.encoder(trained)?)?,
        judge.report(Subject::Untrained, judge.untrained()?)?,
        judge.report(Subject::RawPixels, judge.raw_pixels()?)?,
    ];
    let path = folder.root().join("evaluation.json");
    std::fs::write(&path, serde_json::to_string_pretty(&results)?)
        .with_context(|| path.display().to_string())?;
    let program = program();
    say!("\nevaluate on other data:  {program} eval knn --run {run} --data PATH")?;
    say!("features of any images:  {program} embed --run {run} --data PATH --out features.npy")
}

fn without_labels(settings: &Settings, folder: &RunFolder) -> anyhow::Result<()> {
    let metrics = std::fs::read_to_string(folder.metrics()).context("metrics")?;
    let last = metrics.lines().last().context("no step was logged")?;
    let last: serde_json::Value = serde_json::from_str(last).context("metrics")?;
    let number = |key: &str| last[key].as_f64().unwrap_or(f64::NAN);
    let n_prototypes = settings.config().prototypes.n_prototypes[0];
    say!("\nthe images have no labels, so there is no accuracy; the last step's diagnostics:")?;
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
    let run = folder.root().display();
    let program = program();
    say!("\nfeatures of your images:  {program} embed --run {run} --out features.npy")?;
    say!("accuracy on labelled ones: {program} eval knn --run {run} --data PATH")
}

/// runs/NAME-1, or the first number that is free.
fn new_folder(config: &Path) -> RunFolder {
    let name = config.file_stem().map_or("run".into(), |stem| stem.to_string_lossy());
    let candidates = (1u64..).map(|number| Path::new("runs").join(format!("{name}-{number}")));
    RunFolder::at(candidates.into_iter().find(|path| !path.exists()).expect("numbers do not end"))
}
