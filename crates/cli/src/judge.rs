//! The images that features are judged on, and whose features they are.

use std::sync::Arc;

use anyhow::Context;
use swav_augment::CenterCrop;
use swav_data::{DataConfig, DataError, Dataset, LabelCensus, Split, Subset, counted};
use swav_encoder::{Encoder, Output};
use swav_eval::Features;
use swav_train::Settings;

pub use crate::counter::counter;
use crate::open::{OpenError, open, understood};

/// Whose features are judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Subject {
    /// The network after training.
    Trained,
    /// The same network with its initial weights.
    Untrained,
    /// The pixels of the view, from 0 to 1.
    RawPixels,
}

impl Subject {
    /// What tables and records call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Trained => "trained network",
            Self::Untrained => "untrained network",
            Self::RawPixels => "raw pixels",
        }
    }
}

/// Features with labels, and the positions in the data set that they belong to.
pub(crate) struct Labelled {
    pub features: Features,
    pub labels: Vec<u32>,
}

impl Labelled {
    /// Some of the rows.
    pub fn select(&self, rows: &[usize]) -> Self {
        let mut features = Features::default();
        features.rows = self.features.rows.select(ndarray::Axis(0), rows);
        features.indices = rows.iter().map(|&row| self.features.indices[row]).collect();
        Self { features, labels: rows.iter().map(|&row| self.labels[row]).collect() }
    }
}

/// Features of the training images and of the test images; without the latter each training image is judged by all
/// others.
pub(crate) struct Pair {
    pub train: Labelled,
    pub test: Option<Labelled>,
}

/// The images.
pub(crate) struct Judge<'a> {
    pub settings: &'a Settings,
    pub train: Arc<dyn Dataset>,
    pub test: Option<Arc<dyn Dataset>>,
}

impl<'a> Judge<'a> {
    /// Opens training and test images of the settings' data set. A single file without splits has one part only: its images are
    /// judged by each other.
    pub fn new(settings: &'a Settings) -> anyhow::Result<Self> {
        let part = |split| open(&DataConfig { split, ..settings.config().data.clone() });
        let test = match part(Split::Test) {
            Ok(test) => Some(test),
            Err(OpenError::Other(DataError::NoSplit { .. })) => None,
            Err(error) => return Err(error).context("data"),
        };
        let train = match part(Split::Train) {
            Ok(train) => train,
            Err(error) if test.is_some() => {
                return Err(error).context("test images are judged by training images; data");
            }
            Err(error) => return Err(error).context("data"),
        };
        let test = test.filter(|test| test.fingerprint() != train.fingerprint());
        Ok(Self { settings, train, test })
    }

    /// Says on standard error how the path of the data was understood.
    pub fn show_data(&self) {
        understood(self.train.as_ref()).iter().for_each(|line| note!("{line}"));
    }

    /// The parts that there are, with their names.
    fn parts(&self) -> impl Iterator<Item = (&'static str, &Arc<dyn Dataset>)> {
        let test = self.test.iter().map(|data| ("test", data));
        std::iter::once(("training", &self.train)).chain(test)
    }

    /// Why labels cannot judge features here, in one line; `None` if they can. Says nothing of images without a label beside
    /// others that have one: these are left out.
    pub fn unfit(&self) -> Option<String> {
        self.parts().find_map(|(part, data)| {
            let reason = LabelCensus::of(data.as_ref()).unfit()?;
            let described = data.describe();
            Some(format!("{part} images: {reason}; expected labelled images, such as one folder per class ({described})"))
        })
    }

    /// Refuses what labels cannot judge before any work is done, and leaves images without a label out.
    pub fn with_labels(mut self) -> anyhow::Result<Self> {
        if let Some(reason) = self.unfit() {
            anyhow::bail!(reason);
        }
        self.train = labelled("training", self.train)?;
        self.test = self.test.map(|test| labelled("test", test)).transpose()?;
        Ok(self)
    }

    /// The number of neighbours that can be asked: `wanted`, or the default where nothing is wanted, which is lowered where there
    /// are fewer images.
    pub fn n_neighbours(&self, wanted: Option<usize>, usual: usize) -> anyhow::Result<usize> {
        let choices = self.train.len() - usize::from(self.test.is_none());
        match wanted {
            Some(k) if k > choices => {
                anyhow::bail!(
                    "{k} neighbours cannot be chosen from {} ({})",
                    counted(choices, "image"),
                    self.train.describe()
                )
            }
            Some(k) => Ok(k),
            None if choices == 0 => {
                anyhow::bail!("a single image has no neighbours ({})", self.train.describe())
            }
            None if choices < usual => {
                note!(
                    "note: {} asked instead of {usual}: there are no more images",
                    counted(choices, "neighbour")
                );
                Ok(choices)
            }
            None => Ok(usual),
        }
    }

    /// How many images are judged by how many.
    pub fn sets(&self) -> String {
        match &self.test {
            Some(test) => format!("{} test images by {} training images", test.len(), self.train.len()),
            None => format!("each of {} images by all others, for want of a test split", self.train.len()),
        }
    }

    /// Features of a subject with their labels. `trained` is the trained network.
    pub fn pair(&self, subject: Subject, trained: &dyn Encoder) -> anyhow::Result<Pair> {
        match subject {
            Subject::Trained => self.of_encoder(trained),
            Subject::Untrained => self.of_encoder(self.untrained()?.as_ref()),
            Subject::RawPixels => self
                .of("pixels", &|data, progress| swav_eval::raw_pixels(data, self.pixels(), Some(progress))),
        }
    }

    /// Features of one part, without labels.
    pub fn features(
        &self,
        data: &dyn Dataset,
        encoder: &dyn Encoder,
        output: Output,
    ) -> anyhow::Result<Features> {
        let mut progress = counter("features", data.len());
        Ok(swav_eval::encode(encoder, data, self.settings.eval_view(), output, Some(&mut progress))?)
    }

    /// The network before training, treated as the configuration says of the trained one.
    pub fn untrained(&self) -> anyhow::Result<Box<dyn Encoder>> {
        let training = &self.settings.config().training;
        let mut encoder = swav_encoder::build(&training.device, self.settings.encoder(), training.seed)?;
        if self.settings.config().reestimation.batch_norm {
            self.reestimate(encoder.as_mut())?;
        }
        Ok(encoder)
    }

    /// Replaces batch-norm statistics by those of the training images as they are evaluated.
    pub fn reestimate(&self, encoder: &mut dyn Encoder) -> anyhow::Result<()> {
        swav_train::reestimate_batch_norm(encoder, self.train.as_ref(), self.settings.reestimation())
            .context("batch-norm statistics")
    }

    /// How raw pixels are shown.
    pub fn pixels(&self) -> CenterCrop {
        let shown = &self.settings.config().reestimation;
        CenterCrop { resize: shown.resize, size: shown.size }
    }

    fn of_encoder(&self, encoder: &dyn Encoder) -> anyhow::Result<Pair> {
        let view = self.settings.eval_view();
        self.of("features", &|data, progress| {
            swav_eval::encode(encoder, data, view, Output::Features, Some(progress))
        })
    }

    fn of(&self, what: &str, make: Make<'_>) -> anyhow::Result<Pair> {
        let of = |part: &str, data: &dyn Dataset| -> anyhow::Result<Labelled> {
            let mut progress = counter(&format!("{what} of {part} images"), data.len());
            let features = make(data, &mut progress).with_context(|| format!("{part} images"))?;
            let labels = features.labels(data)?;
            Ok(Labelled { features, labels })
        };
        let train = of("training", self.train.as_ref())?;
        let test = self.test.as_deref().map(|data| of("test", data)).transpose()?;
        Ok(Pair { train, test })
    }
}

type Make<'a> = &'a dyn Fn(&dyn Dataset, &mut dyn FnMut(usize)) -> Result<Features, swav_eval::EvalError>;

/// The images that have a label.
fn labelled(part: &str, data: Arc<dyn Dataset>) -> anyhow::Result<Arc<dyn Dataset>> {
    let labelled: Vec<usize> = (0..data.len()).filter(|&index| data.label(index).is_some()).collect();
    let n_without = data.len() - labelled.len();
    if n_without == 0 {
        return Ok(data);
    }
    note!("note: left out: {n_without} of {} without a label", counted(data.len(), &format!("{part} image")));
    Ok(Arc::new(Subset::new(data, labelled)?))
}
