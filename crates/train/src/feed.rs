//! From settings and a data set to batches, with the waiting measured and bad images counted and named.

use std::sync::Arc;

use swav_collective::Collective;
use swav_data::{BadImage, BatchPlan, Dataset, Loader, LoaderError, MultiCropBatch};

use crate::checkpoint::RunPosition;
use crate::config::Settings;
use crate::error::TrainError;
use crate::progress::Progress;

/// Bad images up to this number are named one by one in the log.
const NAMED_IN_LOG: u64 = 20;

/// Batches of this process.
pub(crate) struct Feed {
    loader: Loader,
    n_bad_images: u64,
}

impl Feed {
    /// Batches from `position` on.
    pub(crate) fn new(
        settings: &Settings,
        data: Arc<dyn Dataset>,
        position: RunPosition,
        collective: &dyn Collective,
    ) -> Result<Self, TrainError> {
        let training = &settings.config().training;
        let plan = BatchPlan {
            batch_size: training.batch_size,
            seed: training.seed,
            rank: collective.rank(),
            world_size: collective.world_size(),
            n_epochs: Some(training.epochs),
        };
        let views = settings.multi_crop().clone();
        let loader = Loader::new(data, views, settings.loader(), plan, position.in_data())?;
        Ok(Self { loader, n_bad_images: 0 })
    }

    /// The next batch.
    pub(crate) fn next(&mut self, progress: &Progress) -> Result<MultiCropBatch, TrainError> {
        // The trainer stops by its own count; a loader that ends before is as good as dead.
        let batch = self.loader.next_batch()?.ok_or(LoaderError::Died)?;
        for BadImage { name, reason, .. } in &batch.bad {
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
        Ok(batch)
    }

    /// Seconds spent waiting for batches so far.
    pub(crate) fn seconds_waited(&self) -> f64 {
        let stats = self.loader.stats();
        (stats.waited + stats.waited_first).as_secs_f64()
    }

    /// Images so far that could not be read and were replaced.
    pub(crate) fn n_bad_images(&self) -> u64 {
        self.n_bad_images
    }
}
