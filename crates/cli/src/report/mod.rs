//! `swav report`: one HTML file that shows a run, finished or not.

mod curves;
mod machine;
mod pictures;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use ndarray::Array2;
use swav_data::Dataset;
use swav_encoder::Encoder;
use swav_report::{Finding, Report};
use swav_train::{RunWeights, Settings, explain};

use crate::configuration::Changes;
use crate::doctor::duration;
use crate::names::typed;
use crate::open::open;
use crate::output_file::{Force, OutputFile};
use crate::program;
use crate::run_record::RunRecord;

/// Show a run in one HTML file: curves, prototypes with their images, a map of the embeddings, evaluations.
///
/// The file needs nothing else: no network and no other files. It opens from disk, on a phone, in light and dark. A run
/// that is still going on has one, too; where the images are no longer in their place it is made without pictures, and says
/// so.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[arg(long, value_name = "DIR", help = format!("Folder of the run, made by `{} pretrain`", program()))]
    run: PathBuf,

    #[command(flatten)]
    changes: Changes,

    /// The file to write [default: report.html in the run's folder].
    #[arg(long, value_name = "FILE.html")]
    out: Option<PathBuf>,

    #[command(flatten)]
    force: Force,

    /// Images to embed, evenly spread over the data set; 0 for all.
    #[arg(long, value_name = "N", default_value_t = 20_000)]
    images: usize,

    /// Points of the map.
    #[arg(long, value_name = "N", default_value_t = 3000)]
    points: usize,

    /// Only curves and tables: no images are read.
    #[arg(long)]
    no_pictures: bool,
}

/// What pictures are made from.
pub(crate) struct Trained {
    pub settings: Settings,
    pub encoder: Box<dyn Encoder>,
    /// The first head's, (K, D).
    pub prototypes: Array2<f32>,
    pub step: u64,
    pub data: Arc<dyn Dataset>,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    let begun = std::time::Instant::now();
    let record = RunRecord::read(&args.run, &args.changes)?;
    // The run's own report is made anew as the run goes on.
    let mut out = match &args.out {
        Some(path) => OutputFile::create(path, args.force.force)?,
        None => OutputFile::create(&record.folder.root().join("report.html"), true)?,
    };
    let path = out.path().to_owned();
    let mut report = of_record(&record, &args.run)?;
    match args.no_pictures {
        true => report.notes.push("Made without pictures, as --no-pictures says.".to_owned()),
        false => match trained(&record) {
            Ok(trained) => {
                report.subtitle = trained.data.describe();
                pictures::add(&mut report, trained, args.images, args.points)?;
            }
            // What was asked for by name has to be there; what the run once had may be gone.
            Err(error) if args.changes.data.is_some() => return Err(error),
            Err(error) => {
                note!("no pictures: {error:#}");
                let what = "There are no pictures of images, since the network or its images are not at hand";
                report.notes.push(format!("{what}: {error:#}. (--data PATH names the images' place.)"));
            }
        },
    }
    let html = report.to_html();
    out.write_all(html.as_bytes()).with_context(|| format!("could not write {}", path.display()))?;
    out.commit()?;
    let mib = html.len() as f64 / f64::from(1 << 20);
    say!("{}: {mib:.1} MiB, made in {}", path.display(), duration(begun.elapsed().as_secs_f64()))
}

/// All that the run's folder itself tells.
fn of_record(record: &RunRecord, run: &Path) -> anyhow::Result<Report> {
    let name = run.canonicalize().ok();
    let name = name.as_deref().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
    let alarms = explain(&record.metrics, &record.config);
    let findings = alarms.iter().map(|alarm| Finding {
        title: format!("step {}: {}", alarm.step, alarm.symptom),
        sign: format!("{} (first seen at step {})", alarm.sign, alarm.since),
        advice: alarm.advice.clone(),
    });
    let mut notes = Vec::new();
    if record.metrics.is_empty() {
        notes.push("No step has been logged yet, so there are no curves.".to_owned());
    }
    Ok(Report {
        title: name.unwrap_or_else(|| run.display().to_string()),
        subtitle: record.config.data.path.display().to_string(),
        status: status(record),
        date: machine::now(),
        notes,
        headline: curves::headline(record),
        findings: findings.collect(),
        charts: curves::charts(record, &alarms),
        tables: curves::tables(record),
        configuration: record.config.to_toml()?,
        environment: machine::environment(&record.config.training.device),
        repeat: repeat(record, run),
        ..Report::default()
    })
}

fn status(record: &RunRecord) -> String {
    let (done, epochs) = (record.n_steps(), record.config.training.epochs);
    match (record.is_finished(), record.steps_per_epoch()) {
        (true, _) => format!("finished, {done} steps"),
        (false, Some(per_epoch)) => format!("step {done} of {}", per_epoch * epochs),
        (false, None) => format!("step {done}, epoch 1 of {epochs}"),
    }
}

fn repeat(record: &RunRecord, run: &Path) -> Vec<(String, String)> {
    let program = program();
    let run = typed(run);
    let mut commands = vec![(
        "The training, into another folder (same seed, same data, same machine: the same bits):".to_owned(),
        format!("{program} pretrain --config {run}/config.toml --run NEW_FOLDER"),
    )];
    if !record.is_finished() {
        let go_on = format!("{program} pretrain --run {run} --resume");
        commands.push(("If it was stopped, it goes on with:".to_owned(), go_on));
    }
    commands.push(("The evaluation:".to_owned(), format!("{program} eval knn --run {run}")));
    commands.push(("This file:".to_owned(), format!("{program} report --run {run}")));
    commands
}

/// The network as it was last saved, and its training images.
fn trained(record: &RunRecord) -> anyhow::Result<Trained> {
    let settings = record.config.check()?;
    // Another command of this process may have made the pool already.
    let _ = rayon::ThreadPoolBuilder::new()
        .num_threads(settings.config().training.threads)
        .use_current_thread()
        .build_global();
    let weights = record.folder.trained()?;
    let data = open(&settings.config().data).context("data")?;
    if data.is_empty() {
        bail!("data: no images");
    }
    let training = &settings.config().training;
    let mut encoder = swav_encoder::build(&training.device, settings.encoder(), training.seed)?;
    let loaded = encoder.load_state(&weights.encoder);
    loaded.with_context(|| format!("weights {}", weights.path.display()))?;
    // What is written at the end has the statistics that the configuration wants already.
    if settings.config().reestimation.batch_norm && !record.is_finished() {
        swav_train::reestimate_batch_norm(encoder.as_mut(), data.as_ref(), settings.reestimation())?;
    }
    let step = weights.step.unwrap_or_else(|| record.n_steps());
    note!("network  {} (step {step})", weights.path.display());
    let prototypes = prototypes(&weights)?;
    Ok(Trained { settings, encoder, prototypes, step, data })
}

/// The prototypes of the first head.
fn prototypes(weights: &RunWeights) -> anyhow::Result<Array2<f32>> {
    let (_, tensor) = weights.prototypes.iter().next().context("the run has no prototypes")?;
    let &[k, dim] = tensor.shape() else { bail!("prototypes of the shape {:?}", tensor.shape()) };
    Ok(Array2::from_shape_vec((k, dim), tensor.data().to_vec())?)
}
