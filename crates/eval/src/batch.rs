//! Batches of views of the images of a data set, read in parallel.

use rayon::prelude::*;
use swav_augment::{EvalView, Scratch};
use swav_data::{Dataset, SampleError};

/// Floats of one batch of views: 64 images of 224 x 224, in 37 MiB.
const BATCH_VALUES: usize = 64 * 224 * 224 * 3;
/// More images than this in a batch gain nothing.
const MAX_BATCH: usize = 512;

/// Views of some images of a data set.
pub(crate) struct Batch {
    /// Positions in the data set.
    pub indices: Vec<usize>,
    /// Their pixels, NHWC.
    pub pixels: Vec<f32>,
    /// Images that could not be read, by position.
    pub skipped: Vec<(usize, SampleError)>,
}

/// Floats in the view of one image.
pub(crate) fn n_values(view: &EvalView) -> usize {
    view.size() * view.size() * 3
}

/// Images that make a batch of bounded memory.
pub(crate) fn batch_size(view: &EvalView) -> usize {
    (BATCH_VALUES / n_values(view)).clamp(1, MAX_BATCH)
}

/// Reads images, in parallel; those that cannot be read are left out.
pub(crate) fn read<D: Dataset + ?Sized>(dataset: &D, view: &EvalView, indices: &[usize]) -> Batch {
    let values = n_values(view);
    let mut pixels = vec![0.0; indices.len() * values];
    let read = |scratch: &mut Scratch, index: usize, out: &mut [f32]| {
        let image = dataset.image(index)?;
        view.fill(image.view(), out, scratch).expect("a slot has the size of a view");
        Ok(())
    };
    let results: Vec<Result<(), SampleError>> = pixels
        .par_chunks_mut(values)
        .zip(indices)
        .map_init(Scratch::default, |scratch, (out, &index)| read(scratch, index, out))
        .collect();

    let (mut kept, mut skipped) = (Vec::with_capacity(indices.len()), Vec::new());
    for (slot, (result, &index)) in results.into_iter().zip(indices).enumerate() {
        match result {
            Ok(()) => {
                pixels.copy_within(slot * values..(slot + 1) * values, kept.len() * values);
                kept.push(index);
            }
            Err(error) => skipped.push((index, error)),
        }
    }
    pixels.truncate(kept.len() * values);
    Batch { indices: kept, pixels, skipped }
}
