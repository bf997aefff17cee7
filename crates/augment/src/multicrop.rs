//! The whole recipe: several groups of crops of one image, each written into the batch buffer.

use rayon::prelude::*;

use crate::{
    AugmentError, Canvas, CenterCrop, CropKey, ImageView, Normalize, Pipeline, RandomResizedCrop, Resizer,
    Transform,
};

/// Crops of one size: they form one batch of their own in training.
#[derive(Debug)]
pub struct CropGroup {
    /// Size of the crops, and the part of the image that they show.
    pub crop: RandomResizedCrop,
    /// How many crops of each image.
    pub n_crops: usize,
    /// What happens to a crop before it is normalised.
    pub steps: Pipeline,
}

/// The buffers that making a crop takes. One for each thread, kept from crop to crop: once they have
/// grown to the recipe's needs, nothing is allocated any more.
#[derive(Debug, Clone, Default)]
pub struct Scratch {
    canvas: Canvas,
    resizer: Resizer,
}

/// A checked multi-crop recipe. Crops are counted group by group, from 0.
///
/// From a config by [`MultiCropConfig::check`](crate::MultiCropConfig::check), or from steps put together by hand:
///
/// ```
/// use swav_augment::{
///     Channels, CropGroup, CropKey, HorizontalFlip, ImageView, MultiCrop, Normalize, Pipeline, RandomResizedCrop, Scratch,
/// };
///
/// let recipe = MultiCrop::new(
///     vec![CropGroup {
///         crop: RandomResizedCrop { size: 2, ..RandomResizedCrop::default() },
///         n_crops: 2,
///         steps: Pipeline::new().then(HorizontalFlip { probability: 0.5 }),
///     }],
///     Normalize::default(),
/// ).unwrap();
/// let image = ImageView::new(1, 1, Channels::Rgb, &[124, 116, 104]).unwrap();
/// let mut out = [0.0; 2 * 2 * 3];
/// let key = CropKey { seed: 31, epoch: 0, sample: 0, crop: 1 };
/// recipe.fill(image, key, &mut out, &mut Scratch::default()).unwrap();
/// assert!(out.iter().all(|x| x.abs() < 0.02)); // that colour is about ImageNet's mean
/// ```
#[derive(Debug)]
pub struct MultiCrop {
    groups: Vec<CropGroup>,
    normalize: Normalize,
}

impl MultiCrop {
    /// Checks the ranges of crops and normalisation.
    ///
    /// # Errors
    /// [`AugmentError::OutOfRange`] if there is no group, or a size, count, scale, ratio, mean or deviation is
    /// outside its range.
    pub fn new(groups: Vec<CropGroup>, normalize: Normalize) -> Result<Self, AugmentError> {
        if groups.is_empty() {
            let (key, expected, got) = ("crops".to_owned(), "at least one group", "none".to_owned());
            return Err(AugmentError::OutOfRange { key, expected, got });
        }
        for (i, group) in groups.iter().enumerate() {
            group.check(&format!("crops[{i}]"))?;
        }
        normalize.check()?;
        Ok(Self { groups, normalize })
    }

    /// The groups, in order.
    pub fn groups(&self) -> &[CropGroup] {
        &self.groups
    }

    /// Mean and deviation of the output.
    pub fn normalize(&self) -> &Normalize {
        &self.normalize
    }

    /// How many crops are made of an image, over all groups.
    pub fn n_crops(&self) -> usize {
        self.groups.iter().map(|group| group.n_crops).sum()
    }

    /// The group that a crop belongs to, and its number inside the group.
    pub fn locate(&self, crop: usize) -> Option<(usize, usize)> {
        let mut rest = crop;
        for (i, group) in self.groups.iter().enumerate() {
            if rest < group.n_crops {
                return Some((i, rest));
            }
            rest -= group.n_crops;
        }
        None
    }

    /// Makes crop number `key.crop` of an image and writes it, normalised, to `out` as (size, size, 3).
    ///
    /// The result depends on the image and the key alone.
    ///
    /// # Errors
    /// [`AugmentError::NoSuchCrop`] if the recipe has fewer crops, [`AugmentError::OutputLength`] if `out` has another
    /// length than `size * size * 3`.
    pub fn fill(
        &self,
        image: ImageView<'_>,
        key: CropKey,
        out: &mut [f32],
        scratch: &mut Scratch,
    ) -> Result<(), AugmentError> {
        self.draw(image, key, out.len(), scratch)?;
        self.normalize.write(&scratch.canvas, out)
    }

    /// As [`fill`](Self::fill), before the crop is normalised. All steps work on bytes, so
    /// [`Normalize::scale_and_offset`] makes the very values of `fill` of them, on a device that is given a quarter of the memory.
    ///
    /// # Errors
    /// As [`fill`](Self::fill).
    pub fn fill_bytes(
        &self,
        image: ImageView<'_>,
        key: CropKey,
        out: &mut [u8],
        scratch: &mut Scratch,
    ) -> Result<(), AugmentError> {
        self.draw(image, key, out.len(), scratch)?;
        scratch.canvas.write_rgb_bytes(out)
    }

    /// Makes a crop on the canvas, for an output of `len` values.
    fn draw(
        &self,
        image: ImageView<'_>,
        key: CropKey,
        len: usize,
        scratch: &mut Scratch,
    ) -> Result<(), AugmentError> {
        let crop = usize::try_from(key.crop).unwrap_or(usize::MAX);
        let Some((group, _)) = self.locate(crop) else {
            return Err(AugmentError::NoSuchCrop { got: crop, n_crops: self.n_crops() });
        };
        let group = &self.groups[group];
        check_length(group.crop.size, len)?;
        let mut rng = key.rng();
        group.crop.apply(image, &mut rng, &mut scratch.resizer, &mut scratch.canvas);
        group.steps.apply(&mut scratch.canvas, &mut rng);
        Ok(())
    }

    /// Makes all crops of a batch of images in parallel on the current rayon pool.
    ///
    /// `samples[i]` is the sample number of `images[i]`. `out` has one buffer for each group, which becomes (n_crops,
    /// n_images, size, size, 3): all images of its first crop, then of its second, and so on. The result does not depend on
    /// the number of threads.
    ///
    /// # Errors
    /// [`AugmentError::Count`] if there are not as many samples as images, or as many buffers as groups. The buffers
    /// are resized as needed.
    pub fn fill_batch(
        &self,
        images: &[ImageView<'_>],
        seed: u64,
        epoch: u64,
        samples: &[u64],
        out: &mut [Vec<f32>],
    ) -> Result<(), AugmentError> {
        let count = |what, expected, got| {
            if expected == got { Ok(()) } else { Err(AugmentError::Count { what, expected, got }) }
        };
        count("sample numbers", images.len(), samples.len())?;
        count("output buffers", self.groups.len(), out.len())?;
        let mut first_crop = 0;
        for (group, out) in self.groups.iter().zip(out) {
            let crop_len = group.crop.size * group.crop.size * 3;
            out.resize(group.n_crops * images.len() * crop_len, 0.0);
            out.par_chunks_exact_mut(crop_len).enumerate().try_for_each_init(
                Scratch::default,
                |scratch, (at, out)| {
                    let (crop, i) = (first_crop + at / images.len(), at % images.len());
                    let key = CropKey { seed, epoch, sample: samples[i], crop: crop as u64 };
                    self.fill(images[i], key, out, scratch)
                },
            )?;
            first_crop += group.n_crops;
        }
        Ok(())
    }
}

/// How images are shown to a trained network: a fixed crop, normalised, nothing random.
///
/// ```
/// use swav_augment::{CenterCrop, Channels, EvalView, ImageView, Normalize, Scratch};
///
/// let view = EvalView::new(CenterCrop { resize: 2, size: 1 }, Normalize { mean: [0.0; 3], std: [1.0; 3] }).unwrap();
/// let image = ImageView::new(1, 1, Channels::Grey, &[51]).unwrap();
/// let mut out = [0.0; 3];
/// view.fill(image, &mut out, &mut Scratch::default()).unwrap();
/// assert!((out[2] - 0.2).abs() < 1e-6);
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EvalView {
    crop: CenterCrop,
    normalize: Normalize,
}

impl EvalView {
    /// Checks the sizes and the normalisation.
    ///
    /// # Errors
    /// [`AugmentError::OutOfRange`].
    pub fn new(crop: CenterCrop, normalize: Normalize) -> Result<Self, AugmentError> {
        crop.check()?;
        normalize.check()?;
        Ok(Self { crop, normalize })
    }

    /// Side of the view in pixels.
    pub fn size(&self) -> usize {
        self.crop.size
    }

    /// Writes the view of an image, normalised, to `out` as (size, size, 3).
    ///
    /// # Errors
    /// [`AugmentError::OutputLength`] if `out` has another length than `size * size * 3`.
    pub fn fill(
        &self,
        image: ImageView<'_>,
        out: &mut [f32],
        scratch: &mut Scratch,
    ) -> Result<(), AugmentError> {
        check_length(self.crop.size, out.len())?;
        self.crop.apply(image, &mut scratch.resizer, &mut scratch.canvas);
        self.normalize.write(&scratch.canvas, out)
    }
}

fn check_length(size: usize, got: usize) -> Result<(), AugmentError> {
    let expected = size * size * 3;
    if got == expected {
        return Ok(());
    }
    Err(AugmentError::OutputLength { width: size, height: size, expected, got })
}
