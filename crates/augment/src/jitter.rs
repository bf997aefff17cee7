//! Colour jitter: brightness, contrast, saturation and hue, in random order.

use rand::seq::SliceRandom;

use crate::random::{happens, uniform};
use crate::step::{Bound, ConfigStep};
use crate::{AugmentRng, Canvas, Pipeline, PointOp, Transform};

/// Changes brightness, contrast, saturation and hue by random factors in random order: torchvision's
/// `ColorJitter` on Pillow images, at a probability.
///
/// Each of the first three factors is uniform in `[max(0, 1 - amount), 1 + amount]`, the hue shift is
/// uniform in `[-hue, hue]` turns. An amount of 0 leaves its operation out.
///
/// ```
/// use swav_augment::{Canvas, Channels, ColorJitter, CropKey, ImageView, Transform};
///
/// let mut canvas = Canvas::default();
/// canvas.load(ImageView::new(1, 1, Channels::Rgb, &[200, 100, 50]).unwrap());
/// let brightness = ColorJitter { brightness: 0.5, contrast: 0.0, saturation: 0.0, hue: 0.0, probability: 1.0 };
/// brightness.apply(&mut canvas, &mut CropKey { seed: 1, epoch: 0, sample: 0, crop: 0 }.rng());
/// let red = canvas.planes()[0];
/// assert!((100..=255).contains(&red));
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(deny_unknown_fields))]
pub struct ColorJitter {
    /// How often, 0 to 1.
    pub probability: f32,
    /// Half the range of the brightness factor, at least 0.
    pub brightness: f32,
    /// Half the range of the contrast factor, at least 0.
    pub contrast: f32,
    /// Half the range of the saturation factor, at least 0.
    pub saturation: f32,
    /// Half the range of the hue shift in turns, 0 to .5.
    pub hue: f32,
}

impl Default for ColorJitter {
    /// The reference's strengths: .8, .8, .8, .2 at a probability of .8.
    fn default() -> Self {
        Self { probability: 0.8, brightness: 0.8, contrast: 0.8, saturation: 0.8, hue: 0.2 }
    }
}

/// Scales the values, `v' = floor(clamp(factor v, 0, 255))`.
///
/// ```
/// # use swav_augment::{Canvas, Channels, ImageView, adjust_brightness};
/// # let mut canvas = Canvas::default();
/// canvas.load(ImageView::new(3, 1, Channels::Grey, &[5, 100, 200]).unwrap());
/// adjust_brightness(&mut canvas, 1.5);
/// assert_eq!(canvas.planes(), [7, 150, 255]);
/// ```
pub fn adjust_brightness(canvas: &mut Canvas, factor: f32) {
    canvas.push(PointOp::Blend { toward: 0, factor });
}

/// Scales the distances from the mean luminance m, rounded: `v' = floor(clamp(m + factor (v - m), 0, 255))`.
///
/// ```
/// # use swav_augment::{Canvas, Channels, ImageView, adjust_contrast};
/// # let mut canvas = Canvas::default();
/// canvas.load(ImageView::new(3, 1, Channels::Grey, &[80, 100, 119]).unwrap());
/// adjust_contrast(&mut canvas, 2.0); // the mean is 99.67, so 100
/// assert_eq!(canvas.planes(), [60, 100, 138]);
/// ```
pub fn adjust_contrast(canvas: &mut Canvas, factor: f32) {
    let toward = canvas.mean_luminance();
    canvas.push(PointOp::Blend { toward, factor });
}

/// Scales the distances from the pixel's luminance: `v' = floor(clamp(L + factor (v - L), 0, 255))`.
///
/// ```
/// # use swav_augment::{Canvas, Channels, ImageView, adjust_saturation};
/// # let mut canvas = Canvas::default();
/// canvas.load(ImageView::new(1, 1, Channels::Rgb, &[200, 100, 50]).unwrap());
/// adjust_saturation(&mut canvas, 0.5); // L = 124
/// assert_eq!(canvas.planes(), [162, 112, 87]);
/// ```
pub fn adjust_saturation(canvas: &mut Canvas, factor: f32) {
    canvas.push(PointOp::Saturation { factor });
}

/// Turns the hue by `shift` turns, -.5 to .5: in 8-bit HSV, `H' = (H + trunc(255 shift)) mod 256`.
///
/// ```
/// # use swav_augment::{Canvas, Channels, ImageView, adjust_hue};
/// # let mut canvas = Canvas::default();
/// canvas.load(ImageView::new(1, 1, Channels::Rgb, &[255, 0, 0]).unwrap());
/// adjust_hue(&mut canvas, 1.0 / 3.0);
/// assert_eq!(canvas.planes(), [0, 255, 0]);
/// ```
pub fn adjust_hue(canvas: &mut Canvas, shift: f32) {
    // Negative shifts wrap around, as the sum does.
    let shift = ((shift * 255.0) as i32).rem_euclid(256) as u8;
    canvas.push(PointOp::Hue { shift });
}

impl Transform for ColorJitter {
    fn apply(&self, canvas: &mut Canvas, rng: &mut AugmentRng) {
        if !happens(rng, self.probability) {
            return;
        }
        type Adjust = fn(&mut Canvas, f32);
        let factor = |rng: &mut AugmentRng, amount: f32| uniform(rng, (1.0 - amount).max(0.0), 1.0 + amount);
        let mut steps: [(f32, f32, Adjust); 4] = [
            (self.brightness, factor(rng, self.brightness), adjust_brightness),
            (self.contrast, factor(rng, self.contrast), adjust_contrast),
            (self.saturation, factor(rng, self.saturation), adjust_saturation),
            (self.hue, uniform(rng, -self.hue, self.hue), adjust_hue),
        ];
        steps.shuffle(rng);
        for (amount, factor, adjust) in steps {
            if amount > 0.0 {
                adjust(canvas, factor);
            }
        }
    }
}

impl ConfigStep for ColorJitter {
    fn probability(&self) -> f32 {
        self.probability
    }

    fn add_to(self, pipeline: Pipeline) -> Pipeline {
        pipeline.then(self)
    }

    fn bounds(&self) -> Vec<Bound> {
        let factor = |field, amount| Bound::new(field, amount, 0.0..=100.0, "between 0 and 100");
        vec![
            factor("brightness", self.brightness),
            factor("contrast", self.contrast),
            factor("saturation", self.saturation),
            Bound::new("hue", self.hue, 0.0..=0.5, "between 0 and .5"),
        ]
    }
}
