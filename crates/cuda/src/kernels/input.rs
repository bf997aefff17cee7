//! Images to the stem's input.

use super::{Launch, typed};
use crate::shape::Element;

/// What the images `[n][h][w][3]` are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum PixelSource {
    /// Normalised f32 values.
    F32,
    /// Bytes; a byte x of channel c stands for `x·scale[c] + shift[c]`, product and sum each rounded to f32.
    U8 {
        /// `1 / (255·deviation)` of each channel, usually.
        scale: [f32; 3],
        /// `-mean / deviation` of each channel, usually.
        shift: [f32; 3],
    },
}

impl PixelSource {
    /// Bytes and a normalisation by mean and standard deviation of values in 0..1.
    pub fn normalised(mean: [f32; 3], deviation: [f32; 3]) -> Self {
        Self::U8 {
            scale: deviation.map(|d| 1.0 / (255.0 * d)),
            shift: std::array::from_fn(|c| -mean[c] / deviation[c]),
        }
    }

    fn launch<P>(
        self,
        f32_kernel: &'static str,
        u8_kernel: &'static str,
        threads: usize,
        images: P,
    ) -> Launch<P> {
        match self {
            Self::F32 => Launch::each(f32_kernel, threads).pointer(images),
            Self::U8 { scale, shift } => {
                let launch = Launch::each(u8_kernel, threads).pointer(images);
                scale.into_iter().chain(shift).fold(launch, Launch::float)
            }
        }
    }
}

/// Images with five channels of zeros behind their three, for any stem.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PixelPad<P> {
    /// Type of `out`.
    pub element: Element,
    /// `[pixels][3]`.
    pub images: P,
    /// What they are.
    pub source: PixelSource,
    /// `[pixels][8]`.
    pub out: P,
    /// Pixels of all images.
    pub pixels: usize,
}

impl<P: Copy> PixelPad<P> {
    /// The launch.
    pub fn launches(&self) -> Vec<Launch<P>> {
        let (f32_kernel, u8_kernel) =
            (typed!(self.element, "pixel_pad_f32"), typed!(self.element, "pixel_pad_u8"));
        let launch = self.source.launch(f32_kernel, u8_kernel, self.pixels, self.images);
        vec![launch.pointer(self.out).int(self.pixels)]
    }
}

/// Images as rows of 2×2 blocks of pixels, `[n][⌈h/2⌉ + 3][⌈w/2⌉][64]`, on which a 7×7 convolution of stride 2 and
/// padding 3 is one with a 4×1 kernel of stride 1 without padding; its weights are those of [`rows_from_square`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PixelRows<P> {
    /// Type of `out`.
    pub element: Element,
    /// `[images][height][width][3]`.
    pub images: P,
    /// What they are.
    pub source: PixelSource,
    /// Number of images.
    pub n_images: usize,
    /// Rows of an image.
    pub height: usize,
    /// Columns of an image.
    pub width: usize,
    /// Output.
    pub out: P,
}

impl<P: Copy> PixelRows<P> {
    /// Values of `out`.
    pub const fn out_len(&self) -> usize {
        self.n_images * (self.height.div_ceil(2) + 3) * self.width.div_ceil(2) * 64
    }

    /// The launch.
    pub fn launches(&self) -> Vec<Launch<P>> {
        let total = self.out_len() / 16;
        let (f32_kernel, u8_kernel) =
            (typed!(self.element, "pixel_rows_f32"), typed!(self.element, "pixel_rows_u8"));
        let launch = self.source.launch(f32_kernel, u8_kernel, total, self.images);
        vec![launch.pointer(self.out).int(self.height).int(self.width).int(total)]
    }
}

/// Sets the gradient of weights that a 7×7 kernel does not have to zero, in `[filters][4][1][64]`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StemMask<P> {
    /// Type of the gradient.
    pub element: Element,
    /// The gradient.
    pub gradient: P,
    /// Padded filters.
    pub filters: usize,
}

impl<P: Copy> StemMask<P> {
    /// The launch.
    pub fn launches(&self) -> Vec<Launch<P>> {
        let len = self.filters * 256;
        vec![Launch::each(typed!(self.element, "stem_mask"), len).pointer(self.gradient).int(len)]
    }
}

/// For each value of a `[7][7][3]` filter its place in `[4][1][64]`.
fn places() -> impl Iterator<Item = usize> {
    (0..7 * 7 * 3).map(|i| {
        let (row, col, c) = (i / 21 + 1, i / 3 % 7 + 1, i % 3);
        (row / 2) * 64 + (col / 2) * 16 + ((row % 2) * 2 + col % 2) * 3 + c
    })
}

/// Filters `[filters][7][7][3]` as `[filters][4][1][64]`, with zeros where a 7×7 kernel has no value.
///
/// # Panics
/// If the length is not a multiple of 147.
pub fn rows_from_square(weights: &[f32]) -> Vec<f32> {
    assert!(weights.len().is_multiple_of(147), "filters of 7 x 7 x 3 values");
    let mut out = vec![0.0; weights.len() / 147 * 256];
    for (filter, out) in weights.chunks_exact(147).zip(out.chunks_exact_mut(256)) {
        for (&x, place) in filter.iter().zip(places()) {
            out[place] = x;
        }
    }
    out
}

/// The inverse of [`rows_from_square`].
///
/// # Panics
/// If the length is not a multiple of 256.
pub fn square_from_rows(weights: &[f32]) -> Vec<f32> {
    assert!(weights.len().is_multiple_of(256), "filters of 4 x 64 values");
    weights.chunks_exact(256).flat_map(|filter| places().map(|place| filter[place])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_survive_both_ways() {
        let weights: Vec<f32> = (0..2 * 147).map(|i| i as f32 + 1.0).collect();
        let rows = rows_from_square(&weights);
        assert_eq!(rows.iter().filter(|&&x| x != 0.0).count(), 2 * 147);
        assert_eq!(square_from_rows(&rows), weights);
    }
}
