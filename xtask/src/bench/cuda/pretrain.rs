//! The part `pretrain`: a whole training from JPEG photographs on disk, as fast as the machine reads, decodes and crops
//! them; beside the card's own step time, and what the loader alone can do.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::json;
use swav_data::{BatchPlan, ByteViews, Dataset, Loader, Position};
use swav_encoder::build;
use swav_train::{Settings, TrainConfig, Trial, TrialOutcome};

use super::engine::Engine;
use super::found::{Found, Result};
use super::whole::Steps;
use super::workload::RESNET50;
use super::{Bench, photos};

/// The recipe: ResNet-50, 2x224 + 6x96, mixed precision, as the training step of the same name that the part `speed` times.
const RECIPE: &str = "imagenet-100ep-bs4096";
/// What is changed in it: the batch, rates that suit it, prototypes that are trained from the first step on as in the step
/// that is timed, and no image kept decoded, as none could be of a large data set.
const CHANGES: [&str; 6] = [
    "training.batch_size=64",
    "optimizer.base_lr=0.15",
    "optimizer.final_lr=0.0001",
    "optimizer.warmup_epochs=0",
    "prototypes.freeze_iters=0",
    "data.cache_mib=0",
];
/// The share of the card's own speed that a training from photographs should reach.
const WANTED: f64 = 0.85;
/// Steps before those that are counted.
const WARM_UP_STEPS: usize = 6;
/// Steps that are counted: so many that the batches which wait when they begin count for little.
const STEPS: usize = 200;
/// How long the loader is watched alone.
const LOADER_TIME: Duration = Duration::from_secs(4);
/// Steps of the card alone, if the part `speed` has not timed them.
const CARD_STEPS: u32 = 20;

/// The configuration to train with: the recipe with its changes, then those of the command line.
pub fn config(device: &str, settings: &[String]) -> anyhow::Result<TrainConfig> {
    let recipe = swav_cli::Recipe::find(RECIPE).context("the recipe")?;
    let changes = CHANGES.iter().map(|&change| change.to_owned());
    let changes: Vec<String> = changes.chain(settings.iter().cloned()).collect();
    let mut config = TrainConfig::parse(recipe.text, &changes)?;
    device.clone_into(&mut config.training.device);
    config.check()?;
    Ok(config)
}

/// Makes photographs, trains on them, and puts the speed beside that of the card and of the loader alone.
pub fn part(bench: &Bench) -> Result {
    let folder = tempfile::tempdir().context("a folder for photographs")?;
    let (n, begin) = (bench.args.photos, Instant::now());
    let mean_bytes = photos::write(folder.path(), n)?;
    println!(
        "{n} photographs of {:.0} kB in {:.1} s; batches of {}",
        mean_bytes / 1e3,
        begin.elapsed().as_secs_f64(),
        bench.config.training.batch_size
    );
    let seconds = f64::from(bench.args.train_s).min(bench.clock.left().as_secs_f64());
    let trial = Trial { n_warm_up: WARM_UP_STEPS, n_steps: STEPS, seconds };
    let measured = measure(&bench.config, folder.path(), trial, LOADER_TIME)?;
    let mut found = Found::default();
    let own_ms = own_step_ms(bench, &mut found);
    let share = own_ms.map(|own_ms| own_ms / (measured.trial.step.seconds * 1e3));
    if let (Some(own_ms), Some(share)) = (own_ms, share) {
        let verdict = if share >= WANTED { "reached" } else { "NOT reached" };
        println!(
            "the card's own step takes {own_ms:.2} ms: training runs at {:.0} % of its speed, {:.0} % is {verdict}",
            100.0 * share,
            100.0 * WANTED
        );
    }
    let Measured { trial, loader_rate, cores, batch } = measured;
    let seconds = trial.step.seconds;
    found.value = json!({
        "photos": n, "photo_bytes": mean_bytes, "batch": batch, "cores": cores, "steps": trial.n_steps,
        "step_ms": seconds * 1e3, "images_per_s": batch as f64 / seconds, "data_wait": trial.step.data_wait,
        "first_step_s": trial.first_seconds, "loader_images_per_s": loader_rate,
        "loader_images_per_s_and_core": loader_rate / cores as f64, "own_step_ms": own_ms,
        "share_of_own_speed": share, "wanted_share": WANTED,
    });
    Ok(found)
}

/// The card's own time for the training step, if it is the one that is trained with: what the part `speed` has measured, or
/// what some steps take now.
fn own_step_ms(bench: &Bench, found: &mut Found) -> Option<f64> {
    if bench.card.is_none() || !bench.args.settings.is_empty() {
        return None;
    }
    if let Some(speed) = bench.report().speed_of(RESNET50.name, Engine::Mixed) {
        return Some(speed.step_ms());
    }
    if bench.clock.is_up() {
        found.left_out.push("the card's own step".to_owned());
        return None;
    }
    let steps = Steps::open(&bench.args.device, &RESNET50, Engine::Mixed.arithmetic());
    let time = steps.and_then(|mut steps| steps.time(CARD_STEPS));
    time.map_err(|error| found.wrong.push(format!("the card's own step: {error:#}"))).ok()
}

/// What was measured.
struct Measured {
    trial: TrialOutcome,
    /// Images a second of the loader alone.
    loader_rate: f64,
    /// Cores, each of which has a worker of the loader.
    cores: usize,
    /// Images of a step.
    batch: usize,
}

/// Trains on a folder of photographs, and then has the loader alone make the same batches.
fn measure(
    config: &TrainConfig,
    folder: &Path,
    trial: Trial,
    loader_time: Duration,
) -> anyhow::Result<Measured> {
    let mut config = config.clone();
    folder.clone_into(&mut config.data.path);
    let settings = config.check()?;
    let data = config.data.open()?;
    let encoder = build(&config.training.device, settings.encoder(), config.training.seed)?;
    let trial = trial.measure(&settings, encoder, Arc::clone(&data))?;
    let (batch, seconds) = (config.training.batch_size, trial.step.seconds);
    println!(
        "training: {:.0} images/s, {:.2} ms a step, {:.0} % of it waiting for data; {} steps after {:.1} s for the first",
        batch as f64 / seconds,
        seconds * 1e3,
        100.0 * trial.step.data_wait,
        trial.n_steps,
        trial.first_seconds
    );
    let cores = match config.loader.n_workers {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        n => n,
    };
    let loader_rate = loader_alone(&settings, data, loader_time)?;
    println!(
        "the loader alone: {loader_rate:.0} images/s, {:.0} a worker with {cores} workers",
        loader_rate / cores as f64
    );
    Ok(Measured { trial, loader_rate, cores, batch })
}

/// Images a second of the loader, with crops as bytes, as a card takes them.
fn loader_alone(settings: &Settings, data: Arc<dyn Dataset>, time: Duration) -> anyhow::Result<f64> {
    let training = &settings.config().training;
    let plan = BatchPlan { batch_size: training.batch_size, seed: training.seed, ..BatchPlan::default() };
    let views = Arc::new(ByteViews(settings.multi_crop().clone()));
    let mut loader: Loader<u8> = Loader::new(data, views, settings.loader(), plan, Position::default())?;
    // Until then threads start, and batches pile up that nobody has taken.
    for _ in 0..settings.config().loader.queue_batches + 2 {
        loader.next_batch()?;
    }
    let (begin, before) = (Instant::now(), loader.stats());
    while begin.elapsed() < time {
        ensure!(loader.next_batch()?.is_some(), "the loader has come to an end");
    }
    let images = loader.stats().n_images - before.n_images;
    Ok(images as f64 / begin.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::super::tests::args;
    use super::*;

    /// A training that takes a moment.
    const SMALL: &str = "--set training.batch_size=4 --set encoder.arch=resnet18 --set encoder.head=linear \
                         --set prototypes.n_prototypes=[8] \
                         --set augment.crops=[{size=32,n_crops=2,min_scale=0.2,max_scale=1.0}]";

    #[test]
    fn a_training_from_photographs_is_measured() {
        let line = format!("--device cpu {SMALL}");
        let bench = Bench::new(args(&line).unwrap()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        photos::write(folder.path(), 12).unwrap();
        let trial = Trial { n_warm_up: 1, n_steps: 3, seconds: 60.0 };
        let measured = measure(&bench.config, folder.path(), trial, Duration::from_millis(200)).unwrap();
        assert_eq!((measured.trial.n_steps, measured.batch), (3, 4));
        assert!(measured.trial.step.seconds > 0.0 && measured.trial.step.data_wait <= 1.0);
        assert!(measured.loader_rate > 0.0);
    }

    #[test]
    fn the_training_is_the_step_that_is_timed() {
        let config = config("cuda:0", &[]).unwrap();
        assert_eq!(config.training.batch_size, RESNET50.batch);
        assert_eq!(config.prototypes.n_prototypes, [RESNET50.prototypes]);
        assert_eq!(config.data.cache_mib, 0);
        let timed = RESNET50.config(Engine::Mixed.arithmetic());
        let settings = config.check().unwrap();
        assert_eq!(*settings.encoder(), timed.check().unwrap());
        let crops: Vec<(usize, usize)> =
            settings.multi_crop().groups().iter().map(|group| (group.n_crops, group.crop.size)).collect();
        let groups = RESNET50.groups().map(|group| (group.n_crops, group.height));
        assert_eq!(crops, groups);
    }

    #[test]
    fn changes_are_checked_before_anything_is_done() {
        let error = config("cpu", &["training.batch=4".to_owned()]).unwrap_err();
        assert!(error.to_string().contains("training.batch"), "{error}");
    }

    #[test]
    fn the_cards_own_step_counts_where_it_is_the_one_that_is_trained() {
        let speed = super::super::engine::Speed {
            workload: RESNET50.name,
            engine: Engine::Mixed,
            batch: 64,
            rounds_ms: vec![25.0, 27.0],
            bytes: None,
            more: json!(null),
        };
        let own = |line: &str| {
            let bench = Bench::new(args(line).unwrap()).unwrap();
            bench.report().speeds.push(speed.clone());
            own_step_ms(&bench, &mut Found::default())
        };
        assert_eq!(own("--device cuda:0"), Some(26.0));
        assert_eq!(own("--device cuda:0 --set training.batch_size=32"), None);
        assert_eq!(own("--device cpu"), None);
    }
}
