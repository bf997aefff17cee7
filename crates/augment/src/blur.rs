//! Gaussian blur as Pillow approximates it, by three box blurs.
//!
//! A kernel of our own: for the radii that recipes use (up to 2) the three boxes convolved have 13 taps at most,
//! so one vectorised convolution along each axis is faster than six running sums. It is done in 16-bit fixed
//! point, whose rounding stays below a fifth of a level.

use crate::dispatch::dispatched;
use crate::random::{happens, uniform};
use crate::step::{Bound, ConfigStep};
use crate::{AugmentRng, Canvas, Pipeline, Transform};

/// Box blurs that make one Gaussian blur, as in Pillow.
const PASSES: usize = 3;

/// The largest radius that a recipe may ask for.
pub(crate) const MAX_RADIUS: f32 = 64.0;

/// Fractional bits of an 8-bit value while it is convolved: two of them added still fit 16 bits.
const FRACTION_BITS: u32 = 6;

/// Values that are convolved together: a vector of the widest kind.
const LANES: usize = 32;

/// Blurs with a random radius: Pillow's `ImageFilter.GaussianBlur(radius)`, radius uniform in
/// `[min_radius, max_radius]`, at a probability.
///
/// The radius is the standard deviation of the Gaussian in pixels. It is approximated by three passes of an
/// extended box with a third of the variance each (Gwosdek et al. 2011, "Theoretical foundations of Gaussian
/// convolution by extended box filtering", equations 7, 11 and 14): with `s = radius^2 / 3`,
/// `l = floor((sqrt(12 s + 1) - 1) / 2)` and `a = (2 l + 1) (l (l + 1) - 3 s) / (6 (s - (l + 1)^2))`, the `2 l + 1`
/// inner pixels of the box weigh `w = 1 / (2 (l + a) + 1)` each, and the two at its ends `(1 - (2 l + 1) w) / 2`.
/// Beyond the border, the outermost pixels are repeated.
///
/// Differs from Pillow in that the boxes are convolved first, so that borders repeat once and rounding
/// happens once, not after every pass.
///
/// ```
/// use swav_augment::{Canvas, Channels, GaussianBlur, ImageView};
///
/// let mut canvas = Canvas::default();
/// canvas.load(ImageView::new(5, 1, Channels::Grey, &[0, 0, 200, 0, 0]).unwrap());
/// GaussianBlur::blur(&mut canvas, 0.7);
/// assert_eq!(canvas.planes(), [3, 35, 124, 35, 3]);
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(deny_unknown_fields))]
pub struct GaussianBlur {
    /// How often, 0 to 1.
    pub probability: f32,
    /// Smallest standard deviation in pixels, at least 0.
    pub min_radius: f32,
    /// Largest standard deviation in pixels, at least `min_radius` and at most 64.
    pub max_radius: f32,
}

impl Default for GaussianBlur {
    /// The reference's: half of the crops, radius .1 to 2.
    fn default() -> Self {
        Self { probability: 0.5, min_radius: 0.1, max_radius: 2.0 }
    }
}

impl GaussianBlur {
    /// Blurs in any case, with this standard deviation in pixels.
    ///
    /// # Panics
    /// If `radius` is not between 0 and 64.
    pub fn blur(canvas: &mut Canvas, radius: f32) {
        assert!((0.0..=MAX_RADIUS).contains(&radius), "the blur radius must be 0 to 64, but is {radius}");
        if radius == 0.0 {
            return;
        }
        let (width, height) = (canvas.width(), canvas.height());
        let (planes, work) = canvas.planes_and_work();
        kernel(radius, &mut work.kernel, &mut work.floats);
        let half = work.kernel.len() - 1;
        // Rows are as long as the vectors they are computed in; what is beyond the width has no meaning.
        let stride = width.next_multiple_of(LANES);
        let (padded, rows) = (&mut work.padded, &mut work.rows);
        padded.clear();
        padded.resize(stride + 2 * half, 0);
        rows.resize(stride * height, 0);
        for plane in planes.chunks_exact_mut(width * height) {
            for (row, out) in plane.chunks_exact(width).zip(rows.chunks_exact_mut(stride)) {
                along_row(row, padded, &work.kernel, out);
            }
            for (y, out) in plane.chunks_exact_mut(width).enumerate() {
                across_rows(rows, stride, y, &work.kernel, out);
            }
        }
    }
}

impl Transform for GaussianBlur {
    fn apply(&self, canvas: &mut Canvas, rng: &mut AugmentRng) {
        if happens(rng, self.probability) {
            let radius = uniform(rng, self.min_radius, self.max_radius);
            Self::blur(canvas, radius);
        }
    }
}

/// The right half of the symmetric kernel, its centre first, in units of 2^-15: three boxes convolved.
fn kernel(radius: f32, half_kernel: &mut Vec<i16>, scratch: &mut Vec<f32>) {
    let s = f64::from(radius).powi(2) / PASSES as f64;
    let l = (((12.0 * s + 1.0).sqrt() - 1.0) / 2.0).floor();
    let a = (2.0 * l + 1.0) * (l * (l + 1.0) - 3.0 * s) / (6.0 * (s - (l + 1.0).powi(2)));
    let inner = 1.0 / (2.0 * (l + a) + 1.0);
    let outer = (1.0 - (2.0 * l + 1.0) * inner) / 2.0;
    let reach = l as usize + 1;
    let half = PASSES * reach;
    // Two full-length rows that take turns.
    let len = 2 * half + 1;
    scratch.clear();
    scratch.resize(2 * len, 0.0);
    let (mut from, mut to) = scratch.split_at_mut(len);
    from[half] = 1.0;
    for _ in 0..PASSES {
        for (i, value) in to.iter_mut().enumerate() {
            let mut sum = 0.0;
            for (j, &input) in from.iter().enumerate() {
                let distance = i.abs_diff(j);
                if distance <= reach {
                    sum += f64::from(input) * if distance == reach { outer } else { inner };
                }
            }
            *value = sum as f32;
        }
        (from, to) = (to, from);
    }
    half_kernel.clear();
    // The centre of a very narrow kernel is 1, which is one unit too large for 16 bits.
    half_kernel.extend(from[half..].iter().map(|weight| (weight * 32768.0).round().min(32767.0) as i16));
}

dispatched! {
    /// Convolves a row, repeating its ends; `padded` is a buffer of its length and the kernel's.
    fn along_row(row: &[u8], padded: &mut [i16], kernel: &[i16], out: &mut [i16]) {
        let half = kernel.len() - 1;
        for (value, &byte) in padded[half..].iter_mut().zip(row) {
            *value = i16::from(byte) << FRACTION_BITS;
        }
        let (first, last) = (padded[half], padded[half + row.len() - 1]);
        padded[..half].fill(first);
        padded[half + row.len()..][..half].fill(last);
        for (b, block) in out.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
            let at = half + b * LANES;
            let mut sum = [0i16; LANES];
            for (sum, &value) in sum.iter_mut().zip(&padded[at..at + LANES]) {
                *sum = weigh(value, kernel[0]);
            }
            for (k, &weight) in kernel.iter().enumerate().skip(1) {
                let (left, right) = (&padded[at - k..at - k + LANES], &padded[at + k..at + k + LANES]);
                for ((sum, &left), &right) in sum.iter_mut().zip(left).zip(right) {
                    *sum += weigh(left + right, weight);
                }
            }
            *block = sum;
        }
    }

    /// Convolves the columns of `rows`, and rounds row `y` of the result.
    fn across_rows(rows: &[i16], stride: usize, y: usize, kernel: &[i16], out: &mut [u8]) {
        let last = rows.len() / stride - 1;
        for (b, block) in out.chunks_mut(LANES).enumerate() {
            let center = y * stride + b * LANES;
            let mut sum = [0i16; LANES];
            for (sum, &value) in sum.iter_mut().zip(&rows[center..center + LANES]) {
                *sum = weigh(value, kernel[0]);
            }
            for (k, &weight) in kernel.iter().enumerate().skip(1) {
                let above = y.saturating_sub(k) * stride + b * LANES;
                let below = (y + k).min(last) * stride + b * LANES;
                let (above, below) = (&rows[above..above + LANES], &rows[below..below + LANES]);
                for ((sum, &above), &below) in sum.iter_mut().zip(above).zip(below) {
                    *sum += weigh(above + below, weight);
                }
            }
            let mut bytes = [0u8; LANES];
            for (byte, &sum) in bytes.iter_mut().zip(&sum) {
                *byte = ((sum + (1 << (FRACTION_BITS - 1))) >> FRACTION_BITS).clamp(0, 255) as u8;
            }
            let n = block.len();
            block.copy_from_slice(&bytes[..n]);
        }
    }
}

/// Value times weight, the weight in units of 2^-15, rounded: one instruction for a whole vector.
#[inline(always)]
fn weigh(value: i16, weight: i16) -> i16 {
    ((i32::from(value) * i32::from(weight) + (1 << 14)) >> 15) as i16
}

impl ConfigStep for GaussianBlur {
    fn probability(&self) -> f32 {
        self.probability
    }

    fn add_to(self, pipeline: Pipeline) -> Pipeline {
        pipeline.then(self)
    }

    fn bounds(&self) -> Vec<Bound> {
        let (min, max) = (self.min_radius, self.max_radius);
        vec![
            Bound::new("max_radius", max, 0.0..=MAX_RADIUS, "between 0 and 64"),
            Bound::new("min_radius", min, 0.0..=max, "between 0 and blur.max_radius"),
        ]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Channels, ImageView};

    /// The definition in f64: three passes of the extended box along each axis, borders repeated once.
    fn blur_naively(values: &[u8], width: usize, radius: f64) -> Vec<f64> {
        let s = radius * radius / 3.0;
        let l = (((12.0 * s + 1.0).sqrt() - 1.0) / 2.0).floor();
        let a = (2.0 * l + 1.0) * (l * (l + 1.0) - 3.0 * s) / (6.0 * (s - (l + 1.0).powi(2)));
        let inner = 1.0 / (2.0 * (l + a) + 1.0);
        let reach = l as isize + 1;
        let boxed = |d: isize| {
            if d.abs() < reach { inner } else { (1.0 - (2.0 * l + 1.0) * inner) / 2.0 }
        };
        let height = values.len() / width;
        let along = |values: &[f64], step: usize, len: usize, at: usize| {
            let position = at / step % len;
            let mut sum = 0.0;
            for i in -reach..=reach {
                for j in -reach..=reach {
                    for k in -reach..=reach {
                        let moved = (position as isize + i + j + k).clamp(0, len as isize - 1) as usize;
                        sum += boxed(i) * boxed(j) * boxed(k) * values[at - position * step + moved * step];
                    }
                }
            }
            sum
        };
        let values: Vec<f64> = values.iter().map(|&v| f64::from(v)).collect();
        let rows: Vec<f64> = (0..values.len()).map(|at| along(&values, 1, width, at)).collect();
        (0..values.len()).map(|at| along(&rows, width, height, at)).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn follows_the_definition(
            (width, height) in (1usize..40, 1usize..12),
            radius in 0.05f32..4.0,
            bytes in proptest::collection::vec(any::<u8>(), 40 * 12),
        ) {
            let bytes = &bytes[..width * height];
            let image = ImageView::new(width as u32, height as u32, Channels::Grey, bytes).unwrap();
            let mut canvas = Canvas::default();
            canvas.load(image);
            GaussianBlur::blur(&mut canvas, radius);
            for (&actual, expected) in canvas.planes().iter().zip(blur_naively(bytes, width, radius.into())) {
                // Half a level of rounding, and what 16 bits cost.
                prop_assert!((f64::from(actual) - expected).abs() < 0.8, "{actual} {expected}");
            }
        }
    }
}
