//! Batches of views, and the memory they live in.

use std::fmt::Debug;
use std::sync::Arc;

use crossbeam_channel::Sender;
use ndarray::{Array4, ArrayView3, ArrayView4, Axis};
use swav_augment::{AugmentError, CropKey, EvalView, ImageView, MultiCrop, Scratch};

use crate::{Cause, Position, SampleError};

/// Views of one size: how many of each image, and their size in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ViewShape {
    /// Views of each image.
    pub n_crops: usize,
    /// Height in pixels.
    pub height: usize,
    /// Width in pixels.
    pub width: usize,
}

impl ViewShape {
    /// The number of values of one view: height x width x 3.
    pub fn view_len(&self) -> usize {
        self.height * self.width * 3
    }
}

/// What the random stream of an image's views is derived from, together with the number of the view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ViewKey {
    /// The seed of the run.
    pub seed: u64,
    /// The epoch, from 0.
    pub epoch: u64,
    /// The index of the image that the epoch's order asked for.
    pub sample: u64,
}

/// What pixels are made of: normalised `f32`, or the `u8` that they are before.
pub trait Pixel: Copy + Default + Debug + Send + Sync + 'static {}

impl Pixel for f32 {}

impl Pixel for u8 {}

/// Makes the views of an image: [`MultiCrop`] for training, [`EvalView`] for evaluation, or any function of (image, key).
pub trait Views<P: Pixel = f32>: Send + Sync {
    /// The sizes and numbers of views, in the order in which [`write`](Self::write) gets them.
    fn shapes(&self) -> Vec<ViewShape>;

    /// Writes all views of one image: NHWC, channels RGB, one slice for each view, group by group. Called from many
    /// threads, each with its own `scratch`. The result may depend on nothing but the image and the key.
    ///
    /// # Errors
    /// Why the views cannot be made, an error or a sentence (`.into()`): this ends the loading.
    fn write(
        &self,
        image: ImageView<'_>,
        key: ViewKey,
        views: &mut [&mut [P]],
        scratch: &mut Scratch,
    ) -> Result<(), Cause>;
}

impl Views for MultiCrop {
    fn shapes(&self) -> Vec<ViewShape> {
        let shape = |group: &swav_augment::CropGroup| {
            let size = group.crop.size;
            ViewShape { n_crops: group.n_crops, height: size, width: size }
        };
        self.groups().iter().map(shape).collect()
    }

    fn write(
        &self,
        image: ImageView<'_>,
        key: ViewKey,
        views: &mut [&mut [f32]],
        scratch: &mut Scratch,
    ) -> Result<(), Cause> {
        each_crop(key, views, |key, view| self.fill(image, key, view, scratch))
    }
}

/// The views of a recipe before they are normalised, for devices that do that themselves: see [`MultiCrop::fill_bytes`].
#[derive(Clone, Debug)]
pub struct ByteViews(pub Arc<MultiCrop>);

impl Views<u8> for ByteViews {
    fn shapes(&self) -> Vec<ViewShape> {
        self.0.shapes()
    }

    fn write(
        &self,
        image: ImageView<'_>,
        key: ViewKey,
        views: &mut [&mut [u8]],
        scratch: &mut Scratch,
    ) -> Result<(), Cause> {
        each_crop(key, views, |key, view| self.0.fill_bytes(image, key, view, scratch))
    }
}

/// Makes all crops of an image, each with its own key.
fn each_crop<P>(
    key: ViewKey,
    views: &mut [&mut [P]],
    mut fill: impl FnMut(CropKey, &mut [P]) -> Result<(), AugmentError>,
) -> Result<(), Cause> {
    let ViewKey { seed, epoch, sample } = key;
    let mut crops = views.iter_mut().zip(0..);
    Ok(crops.try_for_each(|(view, crop)| fill(CropKey { seed, epoch, sample, crop }, view))?)
}

impl Views for EvalView {
    fn shapes(&self) -> Vec<ViewShape> {
        vec![ViewShape { n_crops: 1, height: self.size(), width: self.size() }]
    }

    fn write(
        &self,
        image: ImageView<'_>,
        _key: ViewKey,
        views: &mut [&mut [f32]],
        scratch: &mut Scratch,
    ) -> Result<(), Cause> {
        Ok(views.iter_mut().try_for_each(|view| self.fill(image, view, scratch))?)
    }
}

impl<P: Pixel, V: Views<P> + ?Sized> Views<P> for Arc<V> {
    fn shapes(&self) -> Vec<ViewShape> {
        (**self).shapes()
    }

    fn write(
        &self,
        image: ImageView<'_>,
        key: ViewKey,
        views: &mut [&mut [P]],
        scratch: &mut Scratch,
    ) -> Result<(), Cause> {
        (**self).write(image, key, views, scratch)
    }
}

/// All views of one size in a batch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CropGroup<P = f32> {
    /// Views of each image.
    pub n_crops: usize,
    /// The views, (n_crops x batch_size, height, width, 3) in standard layout: all images of the first crop, then of the
    /// second, ...
    pub images: Array4<P>,
}

impl<P: Pixel> CropGroup<P> {
    /// One view: crop `crop` of the batch's image `image`, (height, width, 3).
    ///
    /// # Panics
    /// If there is no such view.
    pub fn view(&self, crop: usize, image: usize) -> ArrayView3<'_, P> {
        let batch_size = self.images.len_of(Axis(0)) / self.n_crops.max(1);
        assert!(
            crop < self.n_crops && image < batch_size,
            "view ({crop}, {image}) of ({}, {batch_size})",
            self.n_crops
        );
        self.images.index_axis(Axis(0), crop * batch_size + image)
    }
}

/// An image that could not be used.
#[derive(Debug)]
pub struct BadImage {
    /// Its index in the data set.
    pub index: usize,
    /// What the data set calls it.
    pub name: String,
    /// Why.
    pub reason: SampleError,
}

/// One batch. When it is dropped, its memory goes back to the loader that made it.
#[derive(Debug, Default)]
pub struct MultiCropBatch<P: Pixel = f32> {
    /// The views, by size.
    pub groups: Vec<CropGroup<P>>,
    /// The number of images.
    pub batch_size: usize,
    /// The images' indices in the data set; a bad image's place holds the index of its replacement.
    pub indices: Vec<usize>,
    /// The images' labels, where there are any.
    pub labels: Vec<Option<u32>>,
    /// Where this batch stands in the run.
    pub position: Position,
    /// Whether this is the last batch of its epoch.
    pub ends_epoch: bool,
    /// The images that turned out to be unusable with this batch, in its order; a replacement that failed too is among
    /// them. A loader names each image once.
    pub bad: Vec<BadImage>,
    /// Where the memory goes when the batch is dropped.
    pub(crate) recycle: Option<Sender<Buffers<P>>>,
}

impl<P: Pixel> MultiCropBatch<P> {
    /// The views by size, each (n_crops x batch_size, height, width, 3): what an encoder takes.
    pub fn views(&self) -> Vec<ArrayView4<'_, P>> {
        self.groups.iter().map(|group| group.images.view()).collect()
    }
}

impl<P: Pixel> Drop for MultiCropBatch<P> {
    fn drop(&mut self) {
        if let Some(recycle) = self.recycle.take() {
            let groups = std::mem::take(&mut self.groups).into_iter();
            let buffers = Buffers {
                groups: groups.map(|group| group.images.into_raw_vec_and_offset().0).collect(),
                indices: std::mem::take(&mut self.indices),
                labels: std::mem::take(&mut self.labels),
            };
            // A full or closed channel means that the loader has no more use for them.
            let _ = recycle.try_send(buffers);
        }
    }
}

/// The memory of a batch.
#[derive(Debug, Default)]
pub(crate) struct Buffers<P> {
    /// The values of each group.
    pub groups: Vec<Vec<P>>,
    pub indices: Vec<usize>,
    pub labels: Vec<Option<u32>>,
}

impl<P: Pixel> Buffers<P> {
    /// Gives the memory the size of a batch; contents are whatever was there.
    pub fn resize(&mut self, shapes: &[ViewShape], batch_size: usize) {
        self.groups.resize_with(shapes.len(), Vec::new);
        for (group, shape) in self.groups.iter_mut().zip(shapes) {
            group.resize(shape.n_crops * batch_size * shape.view_len(), P::default());
        }
        self.labels.clear();
        self.labels.resize(batch_size, None);
    }

    /// Removes the images that are not `kept` and closes the gaps.
    pub fn compact(&mut self, shapes: &[ViewShape], kept: &[usize], batch_size: usize) {
        for (group, shape) in self.groups.iter_mut().zip(shapes) {
            let size = shape.view_len();
            // Sources never lie before their targets, so going upwards overwrites nothing still needed.
            for crop in 0..shape.n_crops {
                for (to, &from) in kept.iter().enumerate() {
                    let from = (crop * batch_size + from) * size;
                    group.copy_within(from..from + size, (crop * kept.len() + to) * size);
                }
            }
            group.truncate(shape.n_crops * kept.len() * size);
        }
        for (to, &from) in kept.iter().enumerate() {
            self.indices[to] = self.indices[from];
            self.labels[to] = self.labels[from];
        }
        self.indices.truncate(kept.len());
        self.labels.truncate(kept.len());
    }
}

/// The values of a group with their shape.
///
/// # Panics
/// If there are not as many values as the shape has.
pub(crate) fn crop_group<P: Pixel>(shape: &ViewShape, batch_size: usize, values: Vec<P>) -> CropGroup<P> {
    let dimensions = (shape.n_crops * batch_size, shape.height, shape.width, 3);
    let images = Array4::from_shape_vec(dimensions, values).expect("buffers have the size of the batch");
    CropGroup { n_crops: shape.n_crops, images }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compacting_keeps_every_crop_of_the_kept_images() {
        let shapes =
            [ViewShape { n_crops: 2, height: 1, width: 1 }, ViewShape { n_crops: 1, height: 2, width: 1 }];
        let mut buffers = Buffers::<f32> { indices: vec![10, 11, 12, 13], ..Buffers::default() };
        buffers.resize(&shapes, 4);
        for (group, shape) in buffers.groups.iter_mut().zip(&shapes) {
            let size = shape.view_len();
            group.iter_mut().enumerate().for_each(|(at, value)| *value = (at / size) as f32);
        }
        buffers.compact(&shapes, &[1, 3], 4);
        let firsts = |group: &Vec<f32>, size: usize| group.iter().step_by(size).copied().collect::<Vec<_>>();
        assert_eq!(firsts(&buffers.groups[0], 3), [1.0, 3.0, 5.0, 7.0]);
        assert_eq!(firsts(&buffers.groups[1], 6), [1.0, 3.0]);
        assert_eq!((buffers.indices, buffers.labels.len()), (vec![11, 13], 2));
    }
}
