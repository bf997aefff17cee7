//! Batch-norm statistics anew, on images as they are evaluated.

use swav_augment::{EvalView, Scratch};
use swav_data::{Dataset, SampleError};
use swav_encoder::{Encoder, image_batch};

use crate::error::TrainError;

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
/// incomplete last batch is, too, unless it is the only one. Nothing happens to an encoder without such statistics.
///
/// # Errors
/// The encoder's; [`TrainError::TooFewForStatistics`] if fewer than two images can be read.
pub fn reestimate_batch_norm(
    encoder: &mut dyn Encoder,
    data: &dyn Dataset,
    how: &Reestimation,
) -> Result<(), TrainError> {
    let Reestimation { view, batch_size, .. } = how;
    let size = view.size();
    let view_len = size * size * 3;
    let n_images = how.n_images(data.len());
    let (mut scratch, mut pixels, mut n_batches) = (Scratch::default(), Vec::new(), 0u64);
    let Some(statistics) = encoder.statistics() else { return Ok(()) };
    statistics.reset()?;
    for at in 0..n_images {
        let index = (at as u128 * data.len() as u128 / n_images as u128) as usize;
        let used = pixels.len();
        pixels.resize(used + view_len, 0.0);
        if let Err(reason) = show(data, index, view, &mut pixels[used..], &mut scratch) {
            tracing::warn!("{} is left out of the batch-norm statistics: {reason}", data.name(index));
            pixels.truncate(used);
        }
        let n = pixels.len() / view_len;
        let is_last = at + 1 == n_images;
        if n == *batch_size || (is_last && n_batches == 0 && n >= 2) {
            statistics.observe(image_batch(&pixels, n, size, size)?)?;
            n_batches += 1;
            pixels.clear();
        }
    }
    if n_batches == 0 {
        return Err(TrainError::TooFewForStatistics { got: pixels.len() / view_len });
    }
    tracing::info!("batch-norm statistics re-estimated over {n_batches} batches of {size}x{size} images");
    Ok(())
}

/// Writes one image in inference's view.
fn show(
    data: &dyn Dataset,
    index: usize,
    view: &EvalView,
    out: &mut [f32],
    scratch: &mut Scratch,
) -> Result<(), SampleOrView> {
    let image = data.image(index)?;
    Ok(view.fill(image.view(), out, scratch)?)
}

/// Why an image cannot be shown.
#[derive(Debug, thiserror::Error)]
enum SampleOrView {
    #[error(transparent)]
    Sample(#[from] SampleError),
    #[error(transparent)]
    View(#[from] swav_augment::AugmentError),
}
