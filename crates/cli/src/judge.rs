//! k-NN accuracy of a network, of the same one untrained, and of raw pixels, on the same images.

use std::io::{IsTerminal, Write};
use std::sync::Arc;

use anyhow::Context;
use serde::Serialize;
use swav_augment::CenterCrop;
use swav_data::{DataConfig, DataError, Dataset, Split};
use swav_encoder::{Encoder, Output};
use swav_eval::{Accuracy, Features, KnnClassifier, KnnConfig, KnnSpec};
use swav_train::Settings;

use crate::open::{OpenError, open};

/// Whose features are judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    /// The network after training.
    Trained,
    /// The same network with its initial weights.
    Untrained,
    /// The pixels of the view, from 0 to 1.
    RawPixels,
}

impl Subject {
    fn name(self) -> &'static str {
        match self {
            Self::Trained => "trained network",
            Self::Untrained => "untrained network",
            Self::RawPixels => "raw pixels",
        }
    }
}

/// An accuracy with what it belongs to.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Verdict {
    subject: Subject,
    #[serde(flatten)]
    accuracy: Accuracy,
    k: usize,
    temperature: f64,
}

/// Features of the training images and of the test images; without the latter each training image is classified
/// by all others.
pub struct Pair {
    bank: Features,
    queries: Option<Features>,
}

/// The images, and how they are judged.
pub struct Judge<'a> {
    settings: &'a Settings,
    bank: Arc<dyn Dataset>,
    queries: Option<Arc<dyn Dataset>>,
    knn: KnnConfig,
    spec: KnnSpec,
}

impl<'a> Judge<'a> {
    /// Opens training and test images of the settings' data set.
    pub fn new(settings: &'a Settings, knn: KnnConfig) -> anyhow::Result<Self> {
        let part = |split| open(&DataConfig { split, ..settings.config().data.clone() });
        let bank = part(Split::Train).context("data")?;
        let queries = match part(Split::Test) {
            Ok(queries) => Some(queries),
            Err(OpenError::Other(DataError::NoSplit { .. })) => None,
            Err(error) => return Err(error).context("data"),
        };
        Ok(Self { settings, bank, queries, knn, spec: knn.check()? })
    }

    /// The training images, which neighbours are taken from.
    pub fn bank(&self) -> &dyn Dataset {
        self.bank.as_ref()
    }

    /// Refuses data without labels before any work is done.
    pub fn check_labels(&self) -> anyhow::Result<()> {
        for data in std::iter::once(&self.bank).chain(&self.queries) {
            if data.label(0).is_none() {
                anyhow::bail!(
                    "the images have no labels, so there is no accuracy (data: {}); expected labelled images, such as one \
                     folder per class",
                    data.describe()
                );
            }
        }
        Ok(())
    }

    /// A headline.
    pub fn describe(&self) -> String {
        let KnnConfig { k, temperature } = self.knn;
        let sets = match &self.queries {
            Some(queries) => format!("{} test images by {} training images", queries.len(), self.bank.len()),
            None => format!("each of {} images by all others, for want of a test split", self.bank.len()),
        };
        format!("k-NN accuracy ({sets}; k {k}, temperature {temperature}, cosine)")
    }

    /// Features of a network.
    pub fn encoder(&self, encoder: &dyn Encoder) -> anyhow::Result<Pair> {
        let view = self.settings.eval_view();
        self.pair("features", |data, progress| {
            swav_eval::encode(encoder, data, view, Output::Features, Some(progress))
        })
    }

    /// Features of the network before training, treated as the configuration says of the trained one.
    pub fn untrained(&self) -> anyhow::Result<Pair> {
        let training = &self.settings.config().training;
        let mut encoder = swav_encoder::build(&training.device, self.settings.encoder(), training.seed)?;
        if self.settings.config().reestimation.batch_norm {
            self.reestimate(encoder.as_mut())?;
        }
        self.encoder(encoder.as_ref())
    }

    /// The pixels.
    pub fn raw_pixels(&self) -> anyhow::Result<Pair> {
        let shown = &self.settings.config().reestimation;
        let crop = CenterCrop { resize: shown.resize, size: shown.size };
        self.pair("pixels", |data, progress| swav_eval::raw_pixels(data, crop, Some(progress)))
    }

    /// Replaces batch-norm statistics by those of the training images as they are evaluated.
    pub fn reestimate(&self, encoder: &mut dyn Encoder) -> anyhow::Result<()> {
        swav_train::reestimate_batch_norm(encoder, self.bank.as_ref(), self.settings.reestimation())
            .context("batch-norm statistics")
    }

    /// Computes the accuracy and prints it as a line.
    pub fn report(&self, subject: Subject, pair: Pair) -> anyhow::Result<Verdict> {
        let labels = pair.bank.labels(self.bank.as_ref())?;
        let knn = KnnClassifier::new(self.spec, pair.bank.rows, labels.clone())?;
        let accuracy = match (pair.queries, &self.queries) {
            (Some(features), Some(data)) => {
                let truth = features.labels(data.as_ref())?;
                knn.predict(features.rows.view())?.accuracy(&truth)?
            }
            _ => knn.leave_one_out()?.accuracy(&labels)?,
        };
        say!(
            "  {:<18} {:6.2} %   (top 5: {:.2} %)",
            subject.name(),
            100.0 * accuracy.top1,
            100.0 * accuracy.top5
        )?;
        Ok(Verdict { subject, accuracy, k: self.knn.k, temperature: self.knn.temperature })
    }

    fn pair(
        &self,
        what: &str,
        make: impl Fn(&dyn Dataset, &mut dyn FnMut(usize)) -> Result<Features, swav_eval::EvalError>,
    ) -> anyhow::Result<Pair> {
        let of = |data: &dyn Dataset| {
            let mut progress = counter(what, data.len());
            make(data, &mut progress)
        };
        let bank = of(self.bank.as_ref()).context("training images")?;
        let queries = self.queries.as_deref().map(of).transpose().context("test images")?;
        Ok(Pair { bank, queries })
    }
}

/// A line on the terminal that counts images, and is gone at the end.
pub fn counter(what: &str, total: usize) -> impl Fn(usize) + Sync {
    let shown = std::io::stderr().is_terminal() && !crate::output::is_quiet();
    move |done| {
        if shown {
            let erase = if done == total { "\r\x1b[K" } else { "" };
            let mut terminal = std::io::stderr().lock();
            // A terminal that cannot be written to is no reason to stop.
            let _ =
                write!(terminal, "\r{what}: {done}/{total} images{erase}").and_then(|()| terminal.flush());
        }
    }
}
