//! Views of chosen images, read in parallel: what features and statistics of a trained network are made of.

use rayon::prelude::*;
use swav_augment::{EvalView, Scratch};

use crate::{Dataset, SampleError, error::contained};

/// Floats of one batch of views: 64 images of 224 x 224, in 37 MiB.
const BATCH_VALUES: usize = 64 * 224 * 224 * 3;
/// More images than this in a batch gain nothing.
const MAX_BATCH: usize = 512;

/// Views of some images of a data set, as [`read_views`] gives them.
#[derive(Debug)]
#[non_exhaustive]
pub struct ReadViews {
    /// Positions in the data set of the images that could be read, in the order that was asked for.
    pub indices: Vec<usize>,
    /// Their pixels (images, size, size, 3), row by row.
    pub pixels: Vec<f32>,
    /// Images that could not be read, by position, with the reason.
    pub skipped: Vec<(usize, SampleError)>,
}

/// Floats in the view of one image: size x size x 3.
pub fn view_values(view: &EvalView) -> usize {
    view.size() * view.size() * 3
}

/// A number of images whose views take a bounded memory (37 MiB), for [`read_views`]; 1 to 512.
pub fn view_batch_size(view: &EvalView) -> usize {
    (BATCH_VALUES / view_values(view)).clamp(1, MAX_BATCH)
}

/// Reads images by their positions in `dataset` and shows each in `view`, in parallel on the current rayon pool. Those that cannot be
/// read are left out and listed.
pub fn read_views<D: Dataset + ?Sized>(dataset: &D, view: &EvalView, indices: &[usize]) -> ReadViews {
    let values = view_values(view);
    let mut pixels = vec![0.0; indices.len() * values];
    let read = |scratch: &mut Scratch, index: usize, out: &mut [f32]| {
        let image = contained(|| dataset.image(index))?;
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
    ReadViews { indices: kept, pixels, skipped }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use swav_augment::{CenterCrop, Channels, Image, Normalize};

    use super::*;

    /// Images of one grey value, which is their position; every third cannot be read.
    struct Greys;

    impl Dataset for Greys {
        fn len(&self) -> usize {
            100
        }
        fn image(&self, index: usize) -> Result<Arc<Image>, SampleError> {
            if index.is_multiple_of(3) {
                return Err(SampleError::Vanished);
            }
            Ok(Arc::new(Image::new(2, 2, Channels::Grey, vec![index as u8; 4]).unwrap()))
        }
    }

    #[test]
    fn what_cannot_be_read_is_left_out_and_the_rest_stays_in_order() {
        let raw = Normalize { mean: [0.0; 3], std: [1.0 / 255.0; 3] };
        let view = EvalView::new(CenterCrop { resize: 1, size: 1 }, raw).unwrap();
        let views = read_views(&Greys, &view, &[8, 3, 5, 0, 7]);
        assert_eq!(views.indices, [8, 5, 7]);
        assert_eq!(
            views.pixels.iter().map(|v| v.round()).collect::<Vec<_>>(),
            [8.0, 8.0, 8.0, 5.0, 5.0, 5.0, 7.0, 7.0, 7.0]
        );
        assert!(matches!(views.skipped[..], [(3, SampleError::Vanished), (0, SampleError::Vanished)]));
    }
}
