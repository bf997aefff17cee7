//! Batch-norm statistics anew, on images as they are evaluated.

use swav_augment::EvalView;
use swav_data::{Dataset, counted, read_views, spread, view_values};
use swav_encoder::{Encoder, image_batch};

use crate::error::TrainError;
use crate::signal::StopFlag;

/// How batch-norm statistics are estimated anew; [`ReestimationConfig`](crate::ReestimationConfig), checked.
#[derive(Debug, Clone)]
pub struct Reestimation {
    /// How images are shown.
    pub(crate) view: EvalView,
    /// Images to average over, at most; 0 for all.
    pub(crate) max_images: usize,
    /// Images at a time.
    pub(crate) batch_size: usize,
}

impl Reestimation {
    /// How images are shown.
    pub fn view(&self) -> &EvalView {
        &self.view
    }

    /// How many of `available` images are used.
    pub fn n_images(&self, available: usize) -> usize {
        if self.max_images == 0 { available } else { self.max_images.min(available) }
    }

    /// Images at a time, at least 2.
    pub fn batch_size(&self) -> usize {
        self.batch_size
    }
}

/// Averages running batch-norm statistics over images of `data`, evenly spread over it, in batches.
///
/// In training, statistics of low-resolution crops enter the running averages that inference uses, which costs
/// accuracy where the resolutions differ much. This replaces them by the plain average over batches of whole
/// images in inference's view. The reference has nothing like it. Images that cannot be read are left out; an
/// incomplete last batch is, too, unless it is the only one. An encoder without such statistics stays as it is.
///
/// # Errors
/// The encoder's; [`TrainError::TooFewForStatistics`] if fewer than two images can be read.
pub fn reestimate_batch_norm(
    encoder: &mut dyn Encoder,
    data: &dyn Dataset,
    how: &Reestimation,
) -> Result<(), TrainError> {
    reestimate_until(encoder, data, how, &StopFlag::new()).map(|_| ())
}

/// As [`reestimate_batch_norm`], unless `stop` is raised: then it gives up between two batches, with statistics that are
/// neither the old ones nor the new, and says `false`.
pub(crate) fn reestimate_until(
    encoder: &mut dyn Encoder,
    data: &dyn Dataset,
    how: &Reestimation,
    stop: &StopFlag,
) -> Result<bool, TrainError> {
    let (view, batch_size, size) = (&how.view, how.batch_size, how.view.size());
    let (n_images, view_len) = (how.n_images(data.len()), view_values(view));
    let Some(statistics) = encoder.statistics() else { return Ok(true) };
    statistics.reset()?;
    let chosen = spread(data.len(), n_images);
    let (mut pixels, mut n_batches) = (Vec::new(), 0);
    for chosen in chosen.chunks(batch_size) {
        if stop.is_raised() {
            return Ok(false);
        }
        let read = read_views(data, view, chosen);
        for (index, reason) in read.skipped {
            tracing::warn!("{} is left out of the batch-norm statistics: {reason}", data.name(index));
        }
        pixels.extend(read.pixels);
        let whole = batch_size * view_len;
        if pixels.len() >= whole {
            statistics.observe(image_batch(&pixels[..whole], batch_size, size, size)?)?;
            n_batches += 1;
            pixels.drain(..whole);
        }
    }
    let n_left = pixels.len() / view_len;
    if n_batches == 0 && n_left >= 2 {
        statistics.observe(image_batch(&pixels, n_left, size, size)?)?;
        n_batches += 1;
    }
    if n_batches == 0 {
        return Err(TrainError::TooFewForStatistics { got: n_left });
    }
    let batches = counted(n_batches, "batch");
    tracing::info!("batch-norm statistics re-estimated over {batches} of {size}x{size} images");
    Ok(true)
}
