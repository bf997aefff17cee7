//! Antialiased bilinear resizing of a region of an image, as Pillow and torchvision resize.
//!
//! Each output value is the average of the input under a triangle (Pillow's `BILINEAR` filter), which
//! widens with the reduction: with `s = max(1, in / out)` and `c = (x + 1/2) in / out`, input pixel `i`
//! weighs `max(0, 1 - |i + 1/2 - c| / s)`, normalised. The filter is separable.
//!
//! We resize ourselves because the rows of the source can then be read in place (a crop of a huge image
//! costs what the crop has), the result lands in colour planes, nothing is allocated once the buffers
//! have grown, and both passes are one: four output rows at a time pass through the L1 cache.
//!
//! Pillow rounds to 8 bits between its two passes, we only at the end; the results differ by at most one
//! level or so.

use crate::dispatch::dispatched;
use crate::point::nearest_integer;
use crate::{Canvas, Channels, ImageView, Region};

/// Output rows that pass through both filters together.
const ROWS: usize = 4;

/// Source bytes that the vertical filter keeps in registers.
const LANES: usize = 64;

/// Resizes regions of images, and keeps the buffers that this takes.
#[derive(Debug, Clone, Default)]
pub struct Resizer {
    x: Axis,
    y: Axis,
    rows: Vec<f32>,
    columns: Vec<[f32; 4 * ROWS]>,
    pixels: Vec<[f32; 4]>,
}

/// The filter along one axis: output `o` is the sum of `taps` inputs from `starts[o]`.
#[derive(Debug, Clone, Default)]
struct Axis {
    taps: usize,
    starts: Vec<usize>,
    weights: Vec<f32>,
}

impl Axis {
    /// The outputs `skip..skip + n` of resizing `len` inputs to `out`.
    fn plan(&mut self, len: usize, out: usize, skip: usize, n: usize) {
        let step = len as f64 / out as f64;
        let support = step.max(1.0);
        // No more inputs than this are nearer to the centre than the support.
        self.taps = ((2.0 * support).ceil() as usize).min(len);
        self.starts.clear();
        self.weights.clear();
        for o in skip..skip + n {
            let center = (o as f64 + 0.5) * step;
            let first = (center - support + 0.5).max(0.0) as usize;
            // A window of fixed length that stays inside.
            let start = first.min(len - self.taps);
            let window = self.weights.len();
            let mut sum = 0.0;
            for i in start..start + self.taps {
                let weight = (1.0 - (i as f64 + 0.5 - center).abs() / support).max(0.0);
                sum += weight;
                self.weights.push(weight as f32);
            }
            for weight in &mut self.weights[window..] {
                *weight = (f64::from(*weight) / sum) as f32;
            }
            self.starts.push(start);
        }
    }

    /// First input and weights of output `o`.
    fn window(&self, o: usize) -> (usize, &[f32]) {
        (self.starts[o], &self.weights[o * self.taps..(o + 1) * self.taps])
    }
}

impl Resizer {
    /// Resizes `region` of `image` to `width` x `height` pixels into `canvas`.
    ///
    /// Pixels outside the region have no influence, as if the region had been cut out before. Takes
    /// time proportional to the region's and the output's pixels, and memory proportional to the region's width.
    ///
    /// # Panics
    /// If the region is empty or not inside the image, or if `width` or `height` is 0.
    ///
    /// ```
    /// use swav_augment::{Canvas, Channels, ImageView, Region, Resizer};
    ///
    /// let image = ImageView::new(4, 1, Channels::Grey, &[0, 100, 200, 40]).unwrap();
    /// let left_three = Region { left: 0, top: 0, width: 3, height: 1 };
    /// let mut canvas = Canvas::default();
    /// Resizer::default().resize(image, left_three, 1, 1, &mut canvas);
    /// assert_eq!(canvas.planes(), [100]); // weights 1/5, 3/5, 1/5
    /// ```
    pub fn resize(
        &mut self,
        image: ImageView<'_>,
        region: Region,
        width: usize,
        height: usize,
        canvas: &mut Canvas,
    ) {
        let full = Window { resized: (width, height), offset: (0, 0), size: (width, height) };
        self.resize_window(image, region, full, canvas);
    }

    /// Resizes `region`, but computes only a window of the result.
    pub(crate) fn resize_window(
        &mut self,
        image: ImageView<'_>,
        region: Region,
        window: Window,
        canvas: &mut Canvas,
    ) {
        let (image_width, image_height) = (image.width() as usize, image.height() as usize);
        assert!(
            region.width > 0
                && region.height > 0
                && region.left + region.width <= image_width
                && region.top + region.height <= image_height,
            "{region:?} is not inside an image of {image_width}x{image_height}"
        );
        let (width, height) = window.size;
        assert!(width > 0 && height > 0, "the output needs at least one pixel in each direction");
        let channels = image.channels();
        let planes = canvas.reset(width, height, channels);
        self.x.plan(region.width, window.resized.0, window.offset.0, width);
        self.y.plan(region.height, window.resized.1, window.offset.1, height);

        let stride = image_width * channels.count();
        let row_len = region.width * channels.count();
        let source = &image.data()[region.top * stride + region.left * channels.count()..];
        // Pixels are moved as four floats, where the last has three.
        let padded = row_len + 4;
        self.rows.resize(ROWS * padded, 0.0);
        self.columns.resize(region.width, [0.0; 4 * ROWS]);
        self.pixels.resize(ROWS * width, [0.0; 4]);
        for top in (0..height).step_by(ROWS) {
            let n_rows = ROWS.min(height - top);
            for (y, row) in (top..top + n_rows).zip(self.rows.chunks_exact_mut(padded)) {
                let (first, weights) = self.y.window(y);
                filter_rows(&source[first * stride..], stride, weights, &mut row[..row_len]);
            }
            let Axis { taps, starts, weights } = &self.x;
            match channels {
                Channels::Grey => {
                    for (y, row) in (top..top + n_rows).zip(self.rows.chunks_exact(padded)) {
                        filter_grey(row, *taps, starts, weights, &mut planes[y * width..(y + 1) * width]);
                    }
                }
                Channels::Rgb => {
                    gather_columns(&self.rows, padded, &mut self.columns);
                    filter_rgb(&self.columns, *taps, starts, weights, &mut self.pixels);
                    for (y, row) in (top..top + n_rows).zip(self.pixels.chunks_exact(width)) {
                        split(row, planes, width * height, y * width);
                    }
                }
            }
        }
    }
}

/// A part of a resized picture.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Window {
    /// Width and height of the whole result.
    pub resized: (usize, usize),
    /// Left and top of the part.
    pub offset: (usize, usize),
    /// Width and height of the part.
    pub size: (usize, usize),
}

dispatched! {
    /// The vertical filter: `out[i]` = sum over k of `weights[k] * source[k * stride + i]`.
    fn filter_rows(source: &[u8], stride: usize, weights: &[f32], out: &mut [f32]) {
        let len = out.len();
        let (blocks, rest) = out.as_chunks_mut::<LANES>();
        for (b, block) in blocks.iter_mut().enumerate() {
            let mut sum = [0.0f32; LANES];
            for (k, &weight) in weights.iter().enumerate() {
                let at = k * stride + b * LANES;
                for (sum, &byte) in sum.iter_mut().zip(&source[at..at + LANES]) {
                    *sum += weight * f32::from(byte);
                }
            }
            *block = sum;
        }
        let done = len - rest.len();
        rest.fill(0.0);
        for (k, &weight) in weights.iter().enumerate() {
            let at = k * stride + done;
            for (sum, &byte) in rest.iter_mut().zip(&source[at..at + len - done]) {
                *sum += weight * f32::from(byte);
            }
        }
    }

    /// The horizontal filter of one channel.
    fn filter_grey(row: &[f32], taps: usize, starts: &[usize], weights: &[f32], out: &mut [u8]) {
        for ((out, &start), weights) in out.iter_mut().zip(starts).zip(weights.chunks_exact(taps)) {
            let mut sum = 0.0;
            for (&value, &weight) in row[start..start + taps].iter().zip(weights) {
                sum += value * weight;
            }
            *out = nearest_integer(sum) as u8;
        }
    }

    /// Brings the four rows together: column x is the pixel at x of each row, four floats each.
    fn gather_columns(rows: &[f32], row_len: usize, columns: &mut [[f32; 4 * ROWS]]) {
        let mut rows = rows.chunks_exact(row_len);
        let mut next = || rows.next().unwrap_or_default();
        let rows: [&[f32]; ROWS] = [next(), next(), next(), next()];
        for (x, column) in columns.iter_mut().enumerate() {
            for (pixel, row) in column.as_chunks_mut::<4>().0.iter_mut().zip(rows) {
                pixel.copy_from_slice(&row[3 * x..3 * x + 4]);
            }
        }
    }

    /// The horizontal filter of four rows of three channels. The output has the rows one after another, four floats
    /// a pixel, of which the last has no meaning.
    fn filter_rgb(columns: &[[f32; 4 * ROWS]], taps: usize, starts: &[usize], weights: &[f32], out: &mut [[f32; 4]]) {
        let width = starts.len();
        let (first, rest) = out.split_at_mut(width);
        let (second, rest) = rest.split_at_mut(width);
        let (third, fourth) = rest.split_at_mut(width);
        let outs = first.iter_mut().zip(second).zip(third).zip(fourth);
        for (((((a, b), c), d), &start), weights) in outs.zip(starts).zip(weights.chunks_exact(taps)) {
            let mut sum = [0.0f32; 4 * ROWS];
            for (column, &weight) in columns[start..start + taps].iter().zip(weights) {
                for (sum, &value) in sum.iter_mut().zip(column) {
                    *sum += value * weight;
                }
            }
            a.copy_from_slice(&sum[..4]);
            b.copy_from_slice(&sum[4..8]);
            c.copy_from_slice(&sum[8..12]);
            d.copy_from_slice(&sum[12..]);
        }
    }

    /// Rounds a row of pixels and splits it into its place in three planes of `plane_len` bytes.
    fn split(row: &[[f32; 4]], planes: &mut [u8], plane_len: usize, at: usize) {
        let (red, rest) = planes.split_at_mut(plane_len);
        let (green, blue) = rest.split_at_mut(plane_len);
        let (red, green, blue) = (&mut red[at..], &mut green[at..], &mut blue[at..]);
        for (((pixel, red), green), blue) in row.iter().zip(red).zip(green).zip(blue) {
            *red = nearest_integer(pixel[0]) as u8;
            *green = nearest_integer(pixel[1]) as u8;
            *blue = nearest_integer(pixel[2]) as u8;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The definition, value by value, in f64.
    fn resize_naively(image: ImageView<'_>, region: Region, width: usize, height: usize) -> Vec<f64> {
        let n_channels = image.channels().count();
        let weights = |len: usize, out: usize, o: usize| {
            let step = len as f64 / out as f64;
            let all: Vec<f64> = (0..len)
                .map(|i| {
                    let distance = (i as f64 + 0.5 - (o as f64 + 0.5) * step).abs();
                    (1.0 - distance / step.max(1.0)).max(0.0)
                })
                .collect();
            let sum: f64 = all.iter().sum();
            all.into_iter().map(|weight| weight / sum).collect::<Vec<_>>()
        };
        let mut out = vec![0.0; n_channels * width * height];
        for y in 0..height {
            for x in 0..width {
                for (j, wy) in weights(region.height, height, y).into_iter().enumerate() {
                    for (i, wx) in weights(region.width, width, x).into_iter().enumerate() {
                        for c in 0..n_channels {
                            let pixel = (region.top + j) * image.width() as usize + region.left + i;
                            out[(c * height + y) * width + x] +=
                                wy * wx * f64::from(image.data()[pixel * n_channels + c]);
                        }
                    }
                }
            }
        }
        out
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn follows_the_definition(
            (width, height, left, top) in (1usize..40, 1usize..40, 0usize..5, 0usize..5),
            (out_width, out_height) in (1usize..40, 1usize..40),
            colour: bool,
            bytes in proptest::collection::vec(any::<u8>(), 45 * 45 * 3),
        ) {
            let channels = if colour { Channels::Rgb } else { Channels::Grey };
            let (full_width, full_height) = (left + width, top + height);
            let bytes = &bytes[..full_width * full_height * channels.count()];
            let image = ImageView::new(full_width as u32, full_height as u32, channels, bytes).unwrap();
            let region = Region { left, top, width, height };
            let mut canvas = Canvas::default();
            Resizer::default().resize(image, region, out_width, out_height, &mut canvas);
            let expected = resize_naively(image, region, out_width, out_height);
            for (&actual, expected) in canvas.planes().iter().zip(expected) {
                prop_assert!((f64::from(actual) - expected).abs() < 0.502, "{actual} {expected}");
            }
        }
    }

    #[test]
    fn a_window_is_a_part_of_the_whole() {
        let bytes: Vec<u8> = (0..31 * 17 * 3).map(|i| (i * 37 % 251) as u8).collect();
        let image = ImageView::new(31, 17, Channels::Rgb, &bytes).unwrap();
        let all = Region { left: 0, top: 0, width: 31, height: 17 };
        let (mut whole, mut part, mut resizer) = (Canvas::default(), Canvas::default(), Resizer::default());
        resizer.resize(image, all, 20, 11, &mut whole);
        let window = Window { resized: (20, 11), offset: (3, 2), size: (7, 5) };
        resizer.resize_window(image, all, window, &mut part);
        for c in 0..3 {
            for y in 0..5 {
                let from = (c * 11 + y + 2) * 20 + 3;
                let to = (c * 5 + y) * 7;
                assert_eq!(whole.planes()[from..from + 7], part.planes()[to..to + 7]);
            }
        }
    }
}
