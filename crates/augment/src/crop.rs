//! Which part of an image a crop shows: random resized crops, and the fixed view for evaluation.

use rand::Rng;

use crate::random::uniform;
use crate::resize::Window;
use crate::{AugmentRng, Canvas, ImageView, Resizer};

/// A rectangle of pixels inside an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// Pixels left of it.
    pub left: usize,
    /// Pixels above it.
    pub top: usize,
    /// Width in pixels, at least 1.
    pub width: usize,
    /// Height in pixels, at least 1.
    pub height: usize,
}

/// A random rectangle of the image, resized to a square: torchvision's `RandomResizedCrop`.
///
/// Ten times, an area `A` uniform in `[min_scale, max_scale]` of the image's and an aspect ratio `r`, uniform in
/// its logarithm between `min_ratio` and `max_ratio`, are drawn; the first rectangle of
/// `round(sqrt(A r)) x round(sqrt(A / r))` pixels that fits is put at a uniformly random place. If none fits, the
/// largest centred rectangle whose ratio is within bounds is taken.
///
/// ```
/// use swav_augment::{CropKey, RandomResizedCrop};
///
/// let crop = RandomResizedCrop { size: 2, min_scale: 1.0, max_scale: 1.0, ..RandomResizedCrop::default() };
/// let region = crop.draw(40, 30, &mut CropKey { seed: 1, epoch: 0, sample: 0, crop: 0 }.rng());
/// // The whole image is 4:3, within the bounds; most other ratios do not fit.
/// assert!(region.width >= 39 && region.height >= 29);
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(default, deny_unknown_fields)
)]
pub struct RandomResizedCrop {
    /// Side of the crop in pixels after resizing, 1 to 4096.
    pub size: usize,
    /// Smallest share of the image's area, above 0 and at most 1.
    pub min_scale: f32,
    /// Largest share of the image's area, at least `min_scale` and at most 1.
    pub max_scale: f32,
    /// Smallest ratio of width to height, above 0.
    pub min_ratio: f32,
    /// Largest ratio of width to height, at least `min_ratio`.
    pub max_ratio: f32,
}

impl Default for RandomResizedCrop {
    /// The reference's standard crop: 224 pixels, scale .14 to 1, ratio 3/4 to 4/3.
    fn default() -> Self {
        Self { size: 224, min_scale: 0.14, max_scale: 1.0, min_ratio: 3.0 / 4.0, max_ratio: 4.0 / 3.0 }
    }
}

impl RandomResizedCrop {
    /// Draws the rectangle for an image of this size.
    pub fn draw(&self, width: usize, height: usize, rng: &mut AugmentRng) -> Region {
        let area = width as f64 * height as f64;
        for _ in 0..10 {
            let target = area * f64::from(uniform(rng, self.min_scale, self.max_scale));
            let ratio = f64::from(uniform(rng, self.min_ratio.ln(), self.max_ratio.ln()).exp());
            let crop_width = (target * ratio).sqrt().round() as usize;
            let crop_height = (target / ratio).sqrt().round() as usize;
            if (1..=width).contains(&crop_width) && (1..=height).contains(&crop_height) {
                return Region {
                    top: rng.random_range(0..=height - crop_height),
                    left: rng.random_range(0..=width - crop_width),
                    width: crop_width,
                    height: crop_height,
                };
            }
        }
        let ratio = width as f64 / height as f64;
        let (crop_width, crop_height) = if ratio < f64::from(self.min_ratio) {
            (width, (width as f64 / f64::from(self.min_ratio)).round() as usize)
        } else if ratio > f64::from(self.max_ratio) {
            ((height as f64 * f64::from(self.max_ratio)).round() as usize, height)
        } else {
            (width, height)
        };
        let (crop_width, crop_height) = (crop_width.clamp(1, width), crop_height.clamp(1, height));
        Region {
            left: (width - crop_width) / 2,
            top: (height - crop_height) / 2,
            width: crop_width,
            height: crop_height,
        }
    }

    /// Draws a rectangle and resizes it into `canvas`, (`size`, `size`).
    pub fn apply(
        &self,
        image: ImageView<'_>,
        rng: &mut AugmentRng,
        resizer: &mut Resizer,
        canvas: &mut Canvas,
    ) {
        let region = self.draw(image.width() as usize, image.height() as usize, rng);
        resizer.resize(image, region, self.size, self.size, canvas);
    }
}

/// The fixed view of an image for evaluation: the shorter side is resized, then the centre is cut out.
///
/// As torchvision's `Resize(resize)` and `CenterCrop(size)`: the longer side becomes
/// `floor(resize * longer / shorter)`, and the crop starts at the rounded half of what is left over. Only the crop's
/// pixels are computed.
///
/// ```
/// use swav_augment::{Canvas, CenterCrop, Channels, ImageView, Resizer};
///
/// let image = ImageView::new(4, 2, Channels::Grey, &[0, 10, 20, 30, 40, 50, 60, 70]).unwrap();
/// let mut canvas = Canvas::default();
/// CenterCrop { resize: 2, size: 2 }.apply(image, &mut Resizer::default(), &mut canvas);
/// assert_eq!(canvas.planes(), [10, 20, 50, 60]);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(deny_unknown_fields))]
pub struct CenterCrop {
    /// Length in pixels that the shorter side is resized to, at least `size`.
    pub resize: usize,
    /// Side of the crop in pixels, 1 to 4096.
    pub size: usize,
}

impl Default for CenterCrop {
    /// The usual evaluation on ImageNet: shorter side 256, crop 224.
    fn default() -> Self {
        Self { resize: 256, size: 224 }
    }
}

impl CenterCrop {
    /// Resizes and cuts out the centre into `canvas`, (`size`, `size`).
    ///
    /// # Panics
    /// If `size` is 0 or above `resize`.
    pub fn apply(&self, image: ImageView<'_>, resizer: &mut Resizer, canvas: &mut Canvas) {
        assert!((1..=self.resize).contains(&self.size), "{self:?}: size must be 1 to resize");
        let (width, height) = (image.width() as usize, image.height() as usize);
        let longer = |long: usize, short: usize| {
            usize::try_from(self.resize as u128 * long as u128 / short as u128).unwrap_or(usize::MAX)
        };
        let resized = if width <= height {
            (self.resize, longer(height, width))
        } else {
            (longer(width, height), self.resize)
        };
        let half = |length: usize| {
            // Python rounds halves to even.
            let excess = length - self.size;
            if excess % 4 == 3 { excess / 2 + 1 } else { excess / 2 }
        };
        let window =
            Window { resized, offset: (half(resized.0), half(resized.1)), size: (self.size, self.size) };
        let all = Region { left: 0, top: 0, width, height };
        resizer.resize_window(image, all, window, canvas);
    }
}
