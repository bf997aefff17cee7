//! From settings and a data set to batches.

use std::sync::Arc;

use swav_data::{BatchPlan, Dataset, Loader, LoaderError, MultiCropBatch};

use crate::checkpoint::Position;
use crate::collective::Collective;
use crate::config::Settings;
use crate::error::TrainError;

/// A loader that delivers this process's batches from `position` on.
pub(crate) fn loader(
    settings: &Settings,
    data: Arc<dyn Dataset>,
    position: Position,
    collective: &dyn Collective,
) -> Result<Loader, TrainError> {
    let training = &settings.config().training;
    let plan = BatchPlan {
        batch_size: training.batch_size,
        seed: training.seed,
        rank: collective.rank(),
        world_size: collective.world_size(),
        n_epochs: Some(training.epochs),
    };
    let spec = settings.config().loader.check()?;
    let from = swav_data::Position { epoch: position.epoch, batch: position.batch };
    Ok(Loader::new(data, Arc::new(settings.multi_crop()?), &spec, plan, from)?)
}

/// The next batch.
pub(crate) fn next(loader: &mut Loader) -> Result<MultiCropBatch, TrainError> {
    // The trainer stops by its own count; a loader that ends before is as good as dead.
    Ok(loader.next_batch()?.ok_or(LoaderError::Died)?)
}
