//! Steps that change tones without geometry: greyscale, solarise, equalise.

use crate::random::happens;
use crate::step::ConfigStep;
use crate::{AugmentRng, Canvas, Pipeline, PointOp, Transform};

/// Takes the colour away: every channel becomes `L = (299 R + 587 G + 114 B) / 1000`, rounded as Pillow does.
///
/// ```
/// use swav_augment::{Canvas, Channels, CropKey, Grayscale, ImageView, Transform};
///
/// let mut canvas = Canvas::default();
/// canvas.load(ImageView::new(1, 1, Channels::Rgb, &[200, 100, 50]).unwrap());
/// Grayscale { probability: 1.0 }.apply(&mut canvas, &mut CropKey { seed: 1, epoch: 0, sample: 0, crop: 0 }.rng());
/// assert_eq!(canvas.planes(), [124, 124, 124]);
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(deny_unknown_fields))]
pub struct Grayscale {
    /// How often, 0 to 1.
    pub probability: f32,
}

/// Inverts the bright values: `v' = v` if `v < threshold`, else `255 - v`. Source: Pillow's
/// `ImageOps.solarize`; BYOL's recipe uses it with threshold 128 on one of its views.
///
/// ```
/// use swav_augment::{Canvas, Channels, CropKey, ImageView, Solarize, Transform};
///
/// let mut canvas = Canvas::default();
/// canvas.load(ImageView::new(3, 1, Channels::Grey, &[10, 128, 250]).unwrap());
/// let solarize = Solarize { probability: 1.0, threshold: 128 };
/// solarize.apply(&mut canvas, &mut CropKey { seed: 1, epoch: 0, sample: 0, crop: 0 }.rng());
/// assert_eq!(canvas.planes(), [10, 127, 5]);
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(deny_unknown_fields))]
pub struct Solarize {
    /// How often, 0 to 1.
    pub probability: f32,
    /// The smallest value that is inverted.
    pub threshold: u8,
}

/// Spreads each channel's values so that their histogram is as flat as possible: Pillow's
/// `ImageOps.equalize`.
///
/// With the histogram h, n the number of pixels, m the number of those at the largest value that occurs, and
/// `step = floor((n - m) / 255)`: `v' = floor((floor(step / 2) + sum of h below v) / step)`. A channel
/// with one value only, or with fewer than 255 other pixels, stays as it is.
///
/// ```
/// use swav_augment::{Canvas, Channels, Equalize, ImageView};
///
/// // 255 pixels of value 100, 255 of 101, 10 of 102: step 2.
/// let bytes: Vec<u8> = (0..520).map(|i| 100 + (i / 255) as u8).collect();
/// let mut canvas = Canvas::default();
/// canvas.load(ImageView::new(520, 1, Channels::Grey, &bytes).unwrap());
/// Equalize::equalize(&mut canvas);
/// assert_eq!([canvas.planes()[0], canvas.planes()[255], canvas.planes()[510]], [0, 128, 255]);
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(deny_unknown_fields))]
pub struct Equalize {
    /// How often, 0 to 1.
    pub probability: f32,
}

impl Equalize {
    /// Equalises in any case.
    pub fn equalize(canvas: &mut Canvas) {
        let n = canvas.width() * canvas.height();
        for plane in canvas.planes().chunks_exact_mut(n) {
            let mut histogram = [0u64; 256];
            for &value in &*plane {
                histogram[usize::from(value)] += 1;
            }
            let largest = histogram.iter().rposition(|&count| count > 0).unwrap_or(0);
            let step = (n as u64 - histogram[largest]) / 255;
            if step == 0 {
                continue;
            }
            let mut table = [0u8; 256];
            let mut below = step / 2;
            for (entry, count) in table.iter_mut().zip(histogram) {
                *entry = (below / step).min(255) as u8;
                below += count;
            }
            for value in plane {
                *value = table[usize::from(*value)];
            }
        }
    }
}

impl Transform for Grayscale {
    fn apply(&self, canvas: &mut Canvas, rng: &mut AugmentRng) {
        if happens(rng, self.probability) {
            canvas.push(PointOp::Grayscale);
        }
    }
}

impl Transform for Solarize {
    fn apply(&self, canvas: &mut Canvas, rng: &mut AugmentRng) {
        if happens(rng, self.probability) {
            canvas.push(PointOp::Solarize { threshold: self.threshold });
        }
    }
}

impl Transform for Equalize {
    fn apply(&self, canvas: &mut Canvas, rng: &mut AugmentRng) {
        if happens(rng, self.probability) {
            Self::equalize(canvas);
        }
    }
}

impl ConfigStep for Grayscale {
    fn probability(&self) -> f32 {
        self.probability
    }

    fn add_to(self, pipeline: Pipeline) -> Pipeline {
        pipeline.then(self)
    }
}

impl ConfigStep for Solarize {
    fn probability(&self) -> f32 {
        self.probability
    }

    fn add_to(self, pipeline: Pipeline) -> Pipeline {
        pipeline.then(self)
    }
}

impl ConfigStep for Equalize {
    fn probability(&self) -> f32 {
        self.probability
    }

    fn add_to(self, pipeline: Pipeline) -> Pipeline {
        pipeline.then(self)
    }
}
