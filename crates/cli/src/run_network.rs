//! The network of a run, as it was last saved.

use std::path::{Path, PathBuf};

use anyhow::Context;
use ndarray::{Array2, ArrayView2};
use swav_encoder::{Encoder, StateDict};
use swav_train::{RunFolder, Settings};

use crate::configuration::{self, Changes};
use crate::exit::explain;
use crate::program;

/// Which run, and what is different from its training.
#[derive(Debug, clap::Args)]
pub struct Options {
    #[arg(long, value_name = "DIR", help = format!("Folder of the run, made by `{} pretrain`", program()))]
    pub run: PathBuf,

    #[command(flatten)]
    changes: Changes,

    /// Estimate batch-norm statistics anew on the training images of the data at hand, in place of those that the weights
    /// have. Features of an image then depend on these images.
    #[arg(long)]
    pub reestimate_bn: bool,
}

/// A network with what it was trained with.
pub(crate) struct Network {
    /// The encoder, with the batch-norm statistics of the run's weights.
    pub encoder: Box<dyn Encoder>,
    /// The first head's prototypes, (K, D); imported weights may have none.
    prototypes: Option<Array2<f32>>,
    /// Temperature of the predictions.
    pub temperature: f32,
    /// Training steps done.
    pub step: u64,
}

/// The prototypes that embeddings are nearest to.
pub(crate) struct Assignment {
    /// The prototype of each embedding.
    pub prototypes: Vec<u32>,
    /// The share that the network's prediction gives it, 0 to 1: its softmax of the scores over the temperature.
    pub confidence: Vec<f32>,
}

impl Options {
    /// The folder of the run.
    pub fn folder(&self) -> RunFolder {
        RunFolder::at(&self.run)
    }

    /// The run's settings with the changes. The pool of threads is made as they say.
    pub fn settings(&self) -> anyhow::Result<Settings> {
        let config = configuration::of_run(&self.folder(), &self.changes)?;
        let settings = config.check()?;
        settings.network_memory().check(swav_train::available_memory())?;
        // Another command of this process may have made it already.
        let _ = rayon::ThreadPoolBuilder::new()
            .num_threads(settings.config().training.threads)
            .use_current_thread()
            .build_global();
        Ok(settings)
    }

    /// The network as the run has last saved it: with the weights of its end where these have the newest checkpoint's parameters, as
    /// their batch-norm statistics may be re-estimated ones; else the newest checkpoint.
    pub fn network(&self, settings: &Settings) -> anyhow::Result<Network> {
        let folder = self.folder();
        let newest = folder.network()?;
        let step = newest.step.unwrap_or_else(|| last_step(&folder));
        let weights = match folder.trained() {
            Ok(weights) if same_parameters(&weights.encoder, &newest.encoder) => weights,
            Ok(_) => {
                let weights = folder.weights();
                note!(
                    "note: {} has other parameters than the newest checkpoint, which is used",
                    weights.display()
                );
                newest
            }
            Err(error) => {
                if folder.weights().exists() {
                    tracing::warn!("{}; the newest checkpoint is used", explain(&error));
                }
                newest
            }
        };
        if settings.config().reestimation.batch_norm && weights.step.is_some() && !self.reestimate_bn {
            note!(
                "note: the run has not ended, so its batch-norm statistics are those of training; --reestimate-bn estimates \
                 them anew"
            );
        }
        let training = &settings.config().training;
        let mut encoder = swav_encoder::build(&training.device, settings.encoder(), training.seed)?;
        encoder
            .load_state(&weights.encoder)
            .with_context(|| format!("weights {}", weights.path.display()))?;
        let first = ["prototypes.weight", "prototypes.prototypes0.weight"];
        let first = first.iter().find_map(|name| weights.prototypes.get(name));
        let prototypes = match first.map(|tensor| (tensor.shape(), tensor.data())) {
            Some((&[k, d], values)) => Some(Array2::from_shape_vec((k, d), values.to_vec())?),
            Some((other, _)) => anyhow::bail!("prototypes: expected a matrix, got the shape {other:?}"),
            None => None,
        };
        note!("network  {} (step {step})", weights.path.display());
        let temperature = settings.config().loss.temperature;
        Ok(Network { encoder, prototypes, temperature, step })
    }
}

impl Network {
    /// The prototypes, (K, D).
    pub fn prototypes(&self) -> anyhow::Result<ArrayView2<'_, f32>> {
        let prototypes = self.prototypes.as_ref().map(|prototypes| prototypes.view());
        prototypes.context("the weights have no prototypes, so there are no clusters and no codes")
    }

    /// The prototypes of embeddings (n, D).
    pub fn assign(&self, embeddings: ArrayView2<'_, f32>) -> anyhow::Result<Assignment> {
        Ok(assign(embeddings, self.prototypes()?, self.temperature))
    }

    /// What the network predicts of embeddings (n, D): the share of each prototype, (n, K); rows sum to 1.
    pub fn predict(&self, embeddings: ArrayView2<'_, f32>) -> anyhow::Result<Array2<f32>> {
        let mut scores = embeddings.dot(&self.prototypes()?.t());
        for mut row in scores.rows_mut() {
            let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            row.mapv_inplace(|score| ((score - most) / self.temperature).exp());
            let sum: f32 = row.sum();
            row.mapv_inplace(|share| share / sum);
        }
        Ok(scores)
    }
}

/// The prototypes (K, D) of embeddings (n, D), and the confidence at a temperature; of equal scores the first prototype.
pub(crate) fn assign(
    embeddings: ArrayView2<'_, f32>,
    prototypes: ArrayView2<'_, f32>,
    temperature: f32,
) -> Assignment {
    let scores = embeddings.dot(&prototypes.t());
    let best = |row: ndarray::ArrayView1<'_, f32>| {
        let mut best = (0, f32::NEG_INFINITY);
        for (prototype, &score) in row.iter().enumerate() {
            if score > best.1 {
                best = (prototype as u32, score);
            }
        }
        let sum: f32 = row.iter().map(|score| ((score - best.1) / temperature).exp()).sum();
        (best.0, 1.0 / sum)
    };
    let (prototypes, confidence) = scores.rows().into_iter().map(best).unzip();
    Assignment { prototypes, confidence }
}

/// Whether two states have the same parameters, whatever their running statistics are.
fn same_parameters(a: &StateDict, b: &StateDict) -> bool {
    let statistics = ["running_mean", "running_var", "num_batches_tracked"];
    let parameters = |state: &'_ StateDict| {
        let named = state.iter().filter(|(name, _)| !statistics.iter().any(|end| name.ends_with(end)));
        named.map(|(name, tensor)| (name.to_owned(), tensor.clone())).collect::<StateDict>()
    };
    parameters(a) == parameters(b)
}

/// Steps done by what the metrics say; 0 if they say nothing.
fn last_step(folder: &RunFolder) -> u64 {
    let text = std::fs::read_to_string(folder.metrics()).unwrap_or_default();
    let step = |line: &str| serde_json::from_str::<serde_json::Value>(line).ok()?["step"].as_u64();
    text.lines().rev().find_map(step).map_or(0, |step| step + 1)
}

/// The folder that evaluations of a run are kept in.
pub(crate) fn evaluations(run: &Path) -> PathBuf {
    run.join("evaluations")
}
