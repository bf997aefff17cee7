//! Features of a whole data set: of an encoder, or the raw pixels that it has to beat.

use ndarray::Array2;
use swav_augment::{CenterCrop, EvalView, Normalize};
use swav_data::{Dataset, SampleError, read_views, view_batch_size, view_values};
use swav_encoder::{Encoder, Output, image_batch};

use crate::EvalError;

/// Told after each batch how many images are done.
pub type Progress<'a> = &'a mut dyn FnMut(usize);

/// The longest side that raw pixels are compared at; larger views are reduced first.
const RAW_PIXELS_SIZE: usize = 32;

/// Features of the images of a data set that could be read.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Features {
    /// One row per image.
    pub rows: Array2<f32>,
    /// The positions in the data set that the rows belong to, rising.
    pub indices: Vec<usize>,
    /// Images that could not be read, with the reason.
    pub skipped: Vec<(usize, SampleError)>,
}

impl Features {
    /// The labels of the rows.
    ///
    /// # Errors
    /// [`EvalError::NoLabel`] names the first image without one.
    pub fn labels<D: Dataset + ?Sized>(&self, dataset: &D) -> Result<Vec<u32>, EvalError> {
        let label = |&index: &usize| {
            dataset
                .label(index)
                .ok_or_else(|| EvalError::NoLabel { image: dataset.name(index), dataset: dataset.describe() })
        };
        self.indices.iter().map(label).collect()
    }
}

/// Features of every image, from an encoder in inference mode.
///
/// `progress`, if given, is told after each batch how many images are done. Images that cannot be read are left out, with a
/// warning in the log.
///
/// # Errors
/// [`EvalError::NoImages`], [`EvalError::Unreadable`] if not one image can be read, [`EvalError::Encoder`].
pub fn encode<D, E>(
    encoder: &E,
    dataset: &D,
    view: &EvalView,
    output: Output,
    progress: Option<Progress<'_>>,
) -> Result<Features, EvalError>
where
    D: Dataset + ?Sized,
    E: Encoder + ?Sized,
{
    let size = view.size();
    let width = encoder.output_dim(output)?;
    collect(dataset, view, width, progress, |pixels, n_images, rows| {
        let embedded = encoder.embed(image_batch(pixels, n_images, size, size)?, output)?;
        rows.extend(embedded.iter());
        Ok(())
    })
}

/// The pixels themselves, from 0 to 1, as features: the baseline that any training has to beat.
///
/// A crop larger than 32 pixels is reduced to 32. Of images without colour one channel is kept, which changes no
/// cosine. `progress` and unreadable images are as in [`encode`].
///
/// # Errors
/// [`EvalError::NoImages`], [`EvalError::Unreadable`] if not one image can be read, [`EvalError::View`] if the crop is out of
/// range.
pub fn raw_pixels<D: Dataset + ?Sized>(
    dataset: &D,
    crop: CenterCrop,
    progress: Option<Progress<'_>>,
) -> Result<Features, EvalError> {
    let unchanged = Normalize { mean: [0.0; 3], std: [1.0; 3] };
    let mut view = EvalView::new(crop, unchanged)?;
    if crop.size > RAW_PIXELS_SIZE {
        let resize = (crop.resize * RAW_PIXELS_SIZE).div_ceil(crop.size);
        view = EvalView::new(CenterCrop { resize, size: RAW_PIXELS_SIZE }, unchanged)?;
    }
    let mut grey = true;
    let mut features = collect(dataset, &view, view_values(&view), progress, |pixels, _, rows| {
        grey &= pixels.chunks_exact(3).all(|pixel| pixel[0] == pixel[1] && pixel[0] == pixel[2]);
        rows.extend_from_slice(pixels);
        Ok(())
    })?;
    if grey {
        features.rows = features.rows.slice(ndarray::s![.., ..;3]).to_owned();
    }
    Ok(features)
}

/// Runs `make` over batches of views and gathers what it appends, `width` values per image.
fn collect<D: Dataset + ?Sized>(
    dataset: &D,
    view: &EvalView,
    width: usize,
    mut progress: Option<Progress<'_>>,
    mut make: impl FnMut(&[f32], usize, &mut Vec<f32>) -> Result<(), EvalError>,
) -> Result<Features, EvalError> {
    // Data sets fit in memory only just; a vector that doubles would not.
    let mut rows = Vec::with_capacity(dataset.len() * width);
    let (mut indices, mut skipped) = (Vec::new(), Vec::new());
    let all: Vec<usize> = (0..dataset.len()).collect();
    for chosen in all.chunks(view_batch_size(view)) {
        let batch = read_views(dataset, view, chosen);
        for (index, error) in batch.skipped {
            tracing::warn!("{}: {error}; left out of the evaluation", dataset.name(index));
            skipped.push((index, error));
        }
        if !batch.indices.is_empty() {
            make(&batch.pixels, batch.indices.len(), &mut rows)?;
            indices.extend(batch.indices);
        }
        if let Some(progress) = &mut progress {
            progress(indices.len() + skipped.len());
        }
    }
    if indices.is_empty() {
        return Err(no_images(dataset, skipped));
    }
    let got = rows.len();
    let rows = Array2::from_shape_vec((indices.len(), width), rows).map_err(|_| EvalError::Length {
        what: "feature values",
        expected: indices.len() * width,
        got,
    })?;
    Ok(Features { rows, indices, skipped })
}

fn no_images<D: Dataset + ?Sized>(dataset: &D, skipped: Vec<(usize, SampleError)>) -> EvalError {
    let described = dataset.describe();
    match skipped.into_iter().next() {
        Some((index, source)) => {
            EvalError::Unreadable { dataset: described, image: dataset.name(index), source }
        }
        None => EvalError::NoImages { dataset: described },
    }
}
