//! Evaluation while training goes on: k-NN where there are labels, else how much of what the network says of the images stays the
//! same from one evaluation to the next.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use ndarray::Array2;
use serde::{Deserialize, Serialize};
use swav_augment::EvalView;
use swav_data::{Dataset, LabelCensus, read_views, spread, view_batch_size};
use swav_encoder::{Encoder, Output, image_batch};
use swav_eval::{Bank, KnnClassifier, KnnConfig, Neighbours, assignment_stability, neighbour_stability};
use swav_train::{EpochEvent, RunFolder, Settings, StopFlag};

use crate::output_file::OutputFile;
use crate::run_network::assign;

/// Share of a training's work that evaluations may take, by the pixels that pass the network.
const MAX_SHARE: f64 = 0.02;
/// Backward takes about twice as long as forward.
const PASSES_OF_A_STEP: f64 = 3.0;
/// Fewer images than this tell nothing; rather there are fewer evaluations.
const MIN_IMAGES: usize = 128;
/// Neighbours whose stability is watched.
const N_NEIGHBOURS: usize = 10;

/// What is evaluated, how often, and what it was the last time.
pub(crate) struct Monitor {
    data: Arc<dyn Dataset>,
    view: EvalView,
    /// The images, evenly spread over the data.
    indices: Vec<usize>,
    /// Whether all of them have labels, of two classes or more.
    labelled: bool,
    every_epochs: u64,
    /// Where it is kept, and what it was the last time.
    kept: PathBuf,
    before: Option<Before>,
    stop: StopFlag,
}

/// What the network said the last time. In the run's folder, too, so that a resumed run has something to compare with.
#[derive(Serialize, Deserialize)]
struct Before {
    epoch: u64,
    indices: Vec<usize>,
    clusters: Vec<u32>,
    /// As many of each image.
    neighbours: Vec<usize>,
}

impl Before {
    /// What was kept; `None` where nothing was, or nothing that can be read.
    fn read(path: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(path).ok()?).ok()
    }

    fn write(&self, path: &Path) -> anyhow::Result<()> {
        let mut file = OutputFile::create(path, true)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        file.commit()
    }

    fn neighbours(&self) -> anyhow::Result<Neighbours> {
        let shape = (self.indices.len(), self.neighbours.len() / self.indices.len().max(1));
        let indices = Array2::from_shape_vec(shape, self.neighbours.clone())?;
        Ok(Neighbours { similarities: Array2::zeros(shape), indices })
    }
}

impl Monitor {
    /// What the settings ask for; `None` if that is nothing, or the images are too few for it. Who raises the flag does not want to
    /// wait for an evaluation: one that goes on is given up.
    pub fn new(
        settings: &Settings,
        data: Arc<dyn Dataset>,
        folder: &RunFolder,
        stop: StopFlag,
    ) -> Option<Self> {
        let config = &settings.config().monitor;
        let (every, most) = (config.evaluate_every_epochs, config.evaluate_images);
        if every == 0 {
            return None;
        }
        let labelled = LabelCensus::of(data.as_ref()).unfit().is_none();
        let all: Vec<usize> =
            (0..data.len()).filter(|&index| !labelled || data.label(index).is_some()).collect();
        let (n_images, every_epochs) = budget(settings, data.len(), (every, most.min(all.len())))?;
        let indices = spread(all.len(), n_images).into_iter().map(|at| all[at]).collect();
        let view = *settings.eval_view();
        let kept = folder.root().join("monitor.json");
        let before = Before::read(&kept);
        Some(Self { data, view, indices, labelled, every_epochs, kept, before, stop })
    }

    /// What is to be known of its numbers, as a line; `None` if there is nothing.
    pub fn hint(&self, settings: &Settings) -> Option<String> {
        let meanwhile = self.labelled && settings.config().reestimation.batch_norm;
        meanwhile.then(|| {
            format!(
                "the k-NN accuracy while training is that of {} images with batch-norm statistics of crops; after it, statistics are \
                 estimated on whole images, which gives more",
                self.indices.len()
            )
        })
    }

    /// Evaluates, if it is time; what it finds goes to the notes. A failure is told and changes nothing.
    pub fn observe(&mut self, event: &EpochEvent<'_>) {
        if !(event.epoch + 1).is_multiple_of(self.every_epochs) {
            return;
        }
        let begun = Instant::now();
        match self.evaluate(event) {
            Ok(numbers) => numbers.into_iter().for_each(|(name, value)| event.notes.add(name, value)),
            Err(error) => tracing::warn!("no evaluation after epoch {}: {error:#}", event.epoch + 1),
        }
        tracing::debug!("evaluation while training took {:.2} s", begun.elapsed().as_secs_f64());
    }

    fn evaluate(&mut self, event: &EpochEvent<'_>) -> anyhow::Result<Vec<(&'static str, f64)>> {
        let output = if self.labelled { Output::Features } else { Output::Embedding };
        let Some((indices, rows)) = self.embed(event.encoder, output)? else { return Ok(Vec::new()) };
        if self.labelled {
            let labels: Vec<u32> = indices.iter().filter_map(|&index| self.data.label(index)).collect();
            let k = KnnConfig::default().k.min(labels.len().saturating_sub(1));
            let knn =
                KnnClassifier::new(KnnConfig { k, ..KnnConfig::default() }.check()?, rows, labels.clone())?;
            return Ok(vec![("knn_accuracy", knn.leave_one_out()?.accuracy(&labels)?.top1)]);
        }
        let clusters = assign(rows.view(), event.swav.prototypes.weights(0)?, 1.0).prototypes;
        let neighbours = Bank::new(rows)?.nearest_others(N_NEIGHBOURS.min(indices.len() - 1))?;
        let found = match &self.before {
            // A run that went on from an earlier checkpoint has been later already.
            Some(before) if before.epoch < event.epoch && before.indices == indices => vec![
                ("assignment_stability", assignment_stability(&before.clusters, &clusters)?),
                ("neighbour_stability", neighbour_stability(&before.neighbours()?, &neighbours)?),
            ],
            _ => Vec::new(),
        };
        let neighbours = neighbours.indices.into_iter().collect();
        let now = Before { epoch: event.epoch, indices, clusters, neighbours };
        if let Err(error) = now.write(&self.kept) {
            tracing::debug!("{}: {error:#}", self.kept.display());
        }
        self.before = Some(now);
        Ok(found)
    }

    /// The images that can be read, and their rows; `None` if the training is to stop.
    fn embed(
        &self,
        encoder: &dyn Encoder,
        output: Output,
    ) -> anyhow::Result<Option<(Vec<usize>, Array2<f32>)>> {
        let size = self.view.size();
        let (mut indices, mut values) = (Vec::new(), Vec::new());
        for chosen in self.indices.chunks(view_batch_size(&self.view)) {
            if self.stop.is_raised() {
                return Ok(None);
            }
            let batch = read_views(self.data.as_ref(), &self.view, chosen);
            if !batch.indices.is_empty() {
                let images = image_batch(&batch.pixels, batch.indices.len(), size, size)?;
                values.extend(encoder.embed(images, output)?);
                indices.extend(batch.indices);
            }
        }
        anyhow::ensure!(indices.len() >= 2, "fewer than two images can be read");
        let width = values.len() / indices.len();
        let rows = Array2::from_shape_vec((indices.len(), width), values).context("rows of equal length")?;
        Ok(Some((indices, rows)))
    }
}

/// Images of an evaluation and epochs between two, so that they take no more than their share of the work; `None` for too few
/// images.
fn budget(settings: &Settings, n_images: usize, (every, most): (u64, usize)) -> Option<(usize, u64)> {
    let pixels = |crops: usize, size: usize| (crops * size * size) as f64;
    let groups = settings.multi_crop().groups();
    let of_an_image: f64 = groups.iter().map(|group| pixels(group.n_crops, group.crop.size)).sum();
    let of_an_epoch = n_images as f64 * PASSES_OF_A_STEP * of_an_image;
    let per_epoch = MAX_SHARE * of_an_epoch / pixels(1, settings.eval_view().size());
    let least = MIN_IMAGES.min(most);
    if least < 2 {
        return None;
    }
    let every = every.max((least as f64 / per_epoch).ceil() as u64);
    let affordable = (per_epoch * every as f64) as usize;
    Some((affordable.clamp(least, most), every))
}

#[cfg(test)]
mod tests {
    use swav_train::TrainConfig;

    use super::*;

    fn settings(changes: &[&str]) -> Settings {
        let changes: Vec<String> = changes.iter().map(|&change| change.to_owned()).collect();
        TrainConfig::parse(crate::Recipe::find("quickstart").unwrap().text, &changes)
            .unwrap()
            .check()
            .unwrap()
    }

    #[test]
    fn evaluations_take_their_share_at_most() {
        let settings = settings(&[]);
        // 2 crops of 56, views of 64.
        let share = |(n, every): (usize, u64), n_images: f64| {
            n as f64 * 64.0 * 64.0 / (every as f64 * n_images * 3.0 * 2.0 * 56.0 * 56.0)
        };
        for n_images in [200, 6000, 1_000_000] {
            let found = budget(&settings, n_images, (1, 2048.min(n_images))).unwrap();
            assert!(share(found, n_images as f64) <= MAX_SHARE + 1e-9, "{found:?}");
            assert!(found.0 >= MIN_IMAGES, "{found:?}");
        }
        assert_eq!(budget(&settings, 1_000_000, (3, 2048)).unwrap(), (2048, 3));
        assert_eq!(budget(&settings, 1, (1, 1)), None);
    }

    #[test]
    fn nothing_is_watched_unless_asked_for() {
        let settings = settings(&["monitor.evaluate_every_epochs=0"]);
        let data = settings.config().data.open().unwrap();
        assert!(Monitor::new(&settings, data, &RunFolder::at("unused"), StopFlag::new()).is_none());
    }

    #[test]
    fn an_evaluation_ends_where_the_training_is_to_stop() {
        let settings = settings(&["data.builtin.n_train=256", "encoder.width=4"]);
        let data = settings.config().data.open().unwrap();
        let encoder = swav_encoder::build("cpu", settings.encoder(), 1).unwrap();
        let stop = StopFlag::new();
        let monitor = Monitor::new(&settings, data, &RunFolder::at("unused"), stop.clone()).unwrap();
        let n_images = monitor.embed(encoder.as_ref(), Output::Features).unwrap().unwrap().0.len();
        assert_eq!(n_images, monitor.indices.len());
        stop.raise();
        assert!(monitor.embed(encoder.as_ref(), Output::Features).unwrap().is_none());
    }

    #[test]
    fn what_the_network_said_outlives_the_process() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("monitor.json");
        assert!(Before::read(&path).is_none());
        let kept = Before { epoch: 3, indices: vec![0, 5], clusters: vec![1, 1], neighbours: vec![1, 0] };
        kept.write(&path).unwrap();
        let found = Before::read(&path).unwrap();
        assert_eq!((found.epoch, found.neighbours().unwrap().indices.dim()), (3, (2, 1)));
        assert_eq!((found.indices, found.clusters), (kept.indices, kept.clusters));
        std::fs::write(&path, "{").unwrap();
        assert!(Before::read(&path).is_none());
    }
}
