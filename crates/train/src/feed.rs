//! From settings and a data set to batches, with the waiting measured and bad images counted and named.

use std::sync::Arc;

use ndarray::{Array4, ArrayView4};
use swav_collective::Collective;
use swav_data::{
    BadImage, BatchPlan, ByteViews, Dataset, Loader, LoaderError, LoaderStats, MultiCropBatch, Pixel,
};
use swav_encoder::{Crops, Scaling};

use crate::checkpoint::RunPosition;
use crate::config::Settings;
use crate::error::TrainError;
use crate::progress::Progress;

/// Bad images up to this number are named one by one in the log.
const NAMED_IN_LOG: u64 = 20;

/// In which form crops are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// Normalised, as encoders take them.
    Values,
    /// As bytes, for a device that normalises.
    Bytes,
}

/// Batches of this process.
pub(crate) struct Feed {
    loader: Source,
    n_bad_images: u64,
}

enum Source {
    Values(Loader),
    Bytes(Loader<u8>, Scaling),
}

/// A batch in one of the forms.
pub(crate) enum FedBatch {
    Values(MultiCropBatch),
    /// And how bytes become the values of the other form.
    Bytes(MultiCropBatch<u8>, Scaling),
}

impl FedBatch {
    /// The index in the data set of each image.
    pub(crate) fn indices(&self) -> &[usize] {
        match self {
            FedBatch::Values(batch) => &batch.indices,
            FedBatch::Bytes(batch, _) => &batch.indices,
        }
    }

    /// Lets `step` have the crops as they are.
    pub(crate) fn with_crops<T>(&self, step: impl FnOnce(Crops<'_>) -> T) -> T {
        match self {
            FedBatch::Values(batch) => step(Crops::Values(&batch.views())),
            FedBatch::Bytes(batch, _) => step(Crops::Bytes(&batch.views())),
        }
    }

    /// Lets `step` have the crops as values.
    pub(crate) fn with_values<T>(&self, step: impl FnOnce(&[ArrayView4<'_, f32>]) -> T) -> T {
        match self {
            FedBatch::Values(batch) => step(&batch.views()),
            FedBatch::Bytes(batch, scaling) => {
                let values: Vec<Array4<f32>> =
                    batch.views().into_iter().map(|images| scaling.values(images)).collect();
                step(&values.iter().map(|values| values.view()).collect::<Vec<_>>())
            }
        }
    }
}

impl Feed {
    /// Batches from `position` on.
    pub(crate) fn new(
        settings: &Settings,
        data: Arc<dyn Dataset>,
        position: RunPosition,
        collective: &dyn Collective,
        form: Form,
    ) -> Result<Self, TrainError> {
        let training = &settings.config().training;
        let plan = BatchPlan {
            batch_size: training.batch_size,
            seed: training.seed,
            rank: collective.rank(),
            world_size: collective.world_size(),
            n_epochs: Some(training.epochs),
        };
        let (views, spec, start) = (settings.multi_crop().clone(), settings.loader(), position.in_data());
        let loader = match form {
            Form::Values => Source::Values(Loader::new(data, views, spec, plan, start)?),
            Form::Bytes => {
                let views = Arc::new(ByteViews(views));
                Source::Bytes(Loader::new(data, views, spec, plan, start)?, scaling(settings))
            }
        };
        Ok(Self { loader, n_bad_images: 0 })
    }

    /// The next batch.
    pub(crate) fn next(&mut self, progress: &Progress) -> Result<FedBatch, TrainError> {
        match &mut self.loader {
            Source::Values(loader) => {
                let batch = next_of(loader)?;
                self.name_bad(&batch.bad, progress);
                Ok(FedBatch::Values(batch))
            }
            Source::Bytes(loader, scaling) => {
                let (batch, scaling) = (next_of(loader)?, *scaling);
                self.name_bad(&batch.bad, progress);
                Ok(FedBatch::Bytes(batch, scaling))
            }
        }
    }

    fn name_bad(&mut self, bad: &[BadImage], progress: &Progress) {
        for BadImage { name, reason, .. } in bad {
            self.n_bad_images += 1;
            let n_bad = self.n_bad_images;
            if n_bad <= NAMED_IN_LOG {
                let image = name;
                progress.log(|| tracing::warn!(%image, %reason, "an image cannot be used and is replaced"));
            } else if n_bad.is_power_of_two() {
                let message = "more images cannot be used; this is the latest";
                progress.log(|| tracing::warn!(image = %name, %reason, n_bad, message));
            }
        }
    }

    /// Seconds spent waiting for batches so far.
    pub(crate) fn seconds_waited(&self) -> f64 {
        let stats: LoaderStats = match &self.loader {
            Source::Values(loader) => loader.stats(),
            Source::Bytes(loader, _) => loader.stats(),
        };
        (stats.waited + stats.waited_first).as_secs_f64()
    }

    /// Images so far that could not be read and were replaced.
    pub(crate) fn n_bad_images(&self) -> u64 {
        self.n_bad_images
    }
}

/// How the crops' bytes become the values that the recipe would make of them, bit for bit.
pub(crate) fn scaling(settings: &Settings) -> Scaling {
    let (scale, shift) = settings.multi_crop().normalize().scale_and_offset();
    Scaling { scale, shift }
}

fn next_of<P: Pixel>(loader: &mut Loader<P>) -> Result<MultiCropBatch<P>, TrainError> {
    // The trainer stops by its own count; a loader that ends before is as good as dead.
    Ok(loader.next_batch()?.ok_or(LoaderError::Died)?)
}
