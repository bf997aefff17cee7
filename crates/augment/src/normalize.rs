//! The last step: 8-bit values to normalised floats in the batch buffer.

use crate::{AugmentError, Canvas, point};

/// `x = (v / 255 - mean) / std`, channel by channel, with v the 8-bit value.
///
/// ```
/// use swav_augment::{Canvas, Channels, ImageView, Normalize};
///
/// let mut canvas = Canvas::default();
/// canvas.load(ImageView::new(1, 1, Channels::Rgb, &[0, 51, 255]).unwrap());
/// let mut out = [0.0; 3];
/// Normalize { mean: [0.5; 3], std: [0.5, 0.1, 0.25] }.write(&canvas, &mut out).unwrap();
/// for (x, expected) in out.iter().zip([-1.0, -3.0, 2.0]) {
///     assert!((x - expected).abs() < 1e-6);
/// }
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(deny_unknown_fields))]
pub struct Normalize {
    /// Means of red, green and blue, on a scale from 0 to 1.
    pub mean: [f32; 3],
    /// Standard deviations of red, green and blue on the same scale, above 0.
    pub std: [f32; 3],
}

impl Default for Normalize {
    /// The reference's numbers for ImageNet: mean .485 .456 .406, std .228 .224 .225. (Most other
    /// projects have .229 for the first deviation; the SwAV reference has .228, and so do we.)
    fn default() -> Self {
        Self { mean: [0.485, 0.456, 0.406], std: [0.228, 0.224, 0.225] }
    }
}

impl Normalize {
    /// Writes the canvas, with all operations that wait, to `out` as (height, width, 3). Greyscale
    /// values are repeated for the three channels.
    ///
    /// # Errors
    /// [`AugmentError::OutputLength`] if `out` has another length than `height * width * 3`.
    pub fn write(&self, canvas: &Canvas, out: &mut [f32]) -> Result<(), AugmentError> {
        let (width, height) = (canvas.width(), canvas.height());
        if out.len() != width * height * 3 {
            let expected = width * height * 3;
            return Err(AugmentError::OutputLength { width, height, expected, got: out.len() });
        }
        let (planes, pending) = canvas.planes_and_pending();
        let (scale, offset) = self.scale_and_offset();
        point::normalize(planes, canvas.channels().count(), pending, &scale, &offset, out);
        Ok(())
    }

    /// The numbers by which [`write`](Self::write) computes: `x = v scale + offset` in f32, rounded twice. Whoever does the same
    /// with a crop's bytes ([`MultiCrop::fill_bytes`](crate::MultiCrop::fill_bytes)) has the same bits.
    pub fn scale_and_offset(&self) -> ([f32; 3], [f32; 3]) {
        let scale = self.std.map(|std| 1.0 / (255.0 * std));
        (scale, std::array::from_fn(|channel| -self.mean[channel] / self.std[channel]))
    }

    /// The inverse, for looking at a normalised picture: `v = clamp(255 (x std + mean), 0, 255)`, rounded.
    pub fn invert(&self, pixels: &[f32]) -> Vec<u8> {
        pixels
            .iter()
            .enumerate()
            .map(|(i, x)| (255.0 * (x * self.std[i % 3] + self.mean[i % 3])).round().clamp(0.0, 255.0) as u8)
            .collect()
    }
}
