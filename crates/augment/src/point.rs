//! Per-pixel operations, fused: a chain of them runs over a block of pixels while it is in the L1 cache.
//!
//! Kernels of our own, because the steps of a photometric recipe come in random order and combination,
//! so a library of whole-image functions would read and write the image once for each. A block is held as
//! one run of `f32` a channel, and every value in it is an integer between 0 and 255: each step rounds as
//! Pillow does, so that the chain gives what Pillow's 8-bit images give.

use crate::dispatch::dispatched;

/// One operation on the 8-bit values of a pixel, with fixed parameters.
///
/// Operations wait in a [`Canvas`](crate::Canvas) until something needs the pixels, and then run together.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum PointOp {
    /// `v' = floor(clamp(toward + factor * (v - toward), 0, 255))` in every channel: Pillow's blend of a
    /// constant picture with the image. `toward` = 0 is brightness, the mean luminance is contrast.
    Blend {
        /// The constant, 0 to 255.
        toward: u8,
        /// 0 gives the constant, 1 the image; above 1 exaggerates.
        factor: f32,
    },
    /// As [`PointOp::Blend`], toward the pixel's own luminance.
    Saturation {
        /// 0 gives grey, 1 the image; above 1 exaggerates.
        factor: f32,
    },
    /// Turns the hue: in Pillow's 8-bit HSV, `H' = (H + shift) mod 256`.
    Hue {
        /// In 256ths of a full turn.
        shift: u8,
    },
    /// All channels become the luminance, ITU-R 601-2 as Pillow rounds it:
    /// `L = floor((19595 R + 38470 G + 7471 B + 32768) / 65536)`.
    Grayscale,
    /// `v' = v` if `v < threshold`, else `255 - v`.
    Solarize {
        /// The first value that is inverted.
        threshold: u8,
    },
}

impl PointOp {
    /// Whether pixels with equal channels stay as they are.
    pub(crate) fn keeps_grey(self) -> bool {
        matches!(self, PointOp::Saturation { .. } | PointOp::Hue { .. } | PointOp::Grayscale)
    }
}

/// Pixels in a block: three runs of `f32` stay within 4 kB.
const BLOCK: usize = 256;
type Run = [f32; BLOCK];

dispatched! {
    /// Runs `ops` over all pixels of `planes` in place. `n_planes` equal parts follow each other in `planes`.
    pub(crate) fn apply(planes: &mut [u8], n_planes: usize, ops: &[PointOp]) {
        let n = planes.len() / n_planes;
        for start in (0..n).step_by(BLOCK) {
            let len = BLOCK.min(n - start);
            let mut block = load(planes, n_planes, start, len);
            run(&mut block, n_planes, ops);
            store(planes, n_planes, start, len, &block);
        }
    }

    /// Runs `ops` as [`apply`] does and gives the sum of the luminance over all pixels.
    pub(crate) fn apply_and_sum(planes: &mut [u8], n_planes: usize, ops: &[PointOp]) -> u64 {
        let n = planes.len() / n_planes;
        let mut sum = 0;
        for start in (0..n).step_by(BLOCK) {
            let len = BLOCK.min(n - start);
            let mut block = load(planes, n_planes, start, len);
            if !ops.is_empty() {
                run(&mut block, n_planes, ops);
                store(planes, n_planes, start, len, &block);
            }
            let grey = if n_planes == 3 { luminances(&block) } else { block[0] };
            let mut block_sum = 0u32;
            for &value in &grey[..len] {
                block_sum += nearest_integer(value);
            }
            sum += u64::from(block_sum);
        }
        sum
    }

    /// Runs `ops` and writes `v * scale + offset` of every channel, pixel by pixel, to `out` (n, 3).
    pub(crate) fn normalize(
        planes: &[u8],
        n_planes: usize,
        ops: &[PointOp],
        scale: &[f32; 3],
        offset: &[f32; 3],
        out: &mut [f32],
    ) {
        let n = planes.len() / n_planes;
        for (start, out) in (0..n).step_by(BLOCK).zip(out.chunks_mut(3 * BLOCK)) {
            let mut block = load(planes, n_planes, start, out.len() / 3);
            run(&mut block, n_planes, ops);
            let [red, green, blue] = &block;
            let (green, blue) = if n_planes == 3 { (green, blue) } else { (red, red) };
            for (i, pixel) in out.as_chunks_mut::<3>().0.iter_mut().enumerate() {
                pixel[0] = red[i] * scale[0] + offset[0];
                pixel[1] = green[i] * scale[1] + offset[1];
                pixel[2] = blue[i] * scale[2] + offset[2];
            }
        }
    }
}

#[inline(always)]
fn load(planes: &[u8], n_planes: usize, start: usize, len: usize) -> [Run; 3] {
    let n = planes.len() / n_planes;
    let mut block = [[0.0; BLOCK]; 3];
    for (run, plane) in block.iter_mut().zip(planes.chunks_exact(n)) {
        for (value, &byte) in run.iter_mut().zip(&plane[start..start + len]) {
            *value = f32::from(byte);
        }
    }
    block
}

#[inline(always)]
fn store(planes: &mut [u8], n_planes: usize, start: usize, len: usize, block: &[Run; 3]) {
    let n = planes.len() / n_planes;
    for (run, plane) in block.iter().zip(planes.chunks_exact_mut(n)) {
        for (&value, byte) in run.iter().zip(&mut plane[start..start + len]) {
            *byte = nearest_integer(value) as u8;
        }
    }
}

/// The integer nearest to a float from 0 to 2^22, halves to even: adding 2^23 leaves it in the low bits. Unlike
/// a checked conversion this is one instruction for a whole vector.
#[inline(always)]
pub(crate) fn nearest_integer(value: f32) -> u32 {
    (value + 8_388_608.0).to_bits() & 0x7f_ffff
}

#[inline(always)]
fn run(block: &mut [Run; 3], n_planes: usize, ops: &[PointOp]) {
    for &op in ops {
        match op {
            PointOp::Blend { toward, factor } => {
                let toward = f32::from(toward);
                for value in block[..n_planes].as_flattened_mut() {
                    *value = blend(*value, toward, factor);
                }
            }
            PointOp::Saturation { factor } if n_planes == 3 => {
                let grey = luminances(block);
                for run in block.iter_mut() {
                    for (value, &toward) in run.iter_mut().zip(&grey) {
                        *value = blend(*value, toward, factor);
                    }
                }
            }
            PointOp::Grayscale if n_planes == 3 => *block = [luminances(block); 3],
            PointOp::Hue { shift } if n_planes == 3 => turn_hue(block, f32::from(shift)),
            PointOp::Saturation { .. } | PointOp::Grayscale | PointOp::Hue { .. } => {}
            PointOp::Solarize { threshold } => {
                let threshold = f32::from(threshold);
                for value in block[..n_planes].as_flattened_mut() {
                    *value = if *value < threshold { *value } else { 255.0 - *value };
                }
            }
        }
    }
}

#[inline(always)]
fn blend(value: f32, toward: f32, factor: f32) -> f32 {
    (toward + factor * (value - toward)).clamp(0.0, 255.0).floor()
}

#[inline(always)]
fn luminances(block: &[Run; 3]) -> Run {
    let mut grey = [0.0; BLOCK];
    for (i, grey) in grey.iter_mut().enumerate() {
        // All terms and their sum are integers under 2^24: exact.
        let sum = 19595.0 * block[0][i] + 38470.0 * block[1][i] + 7471.0 * block[2][i] + 32768.0;
        *grey = (sum * (1.0 / 65536.0)).floor();
    }
    grey
}

/// RGB to 8-bit HSV, H + shift, and back, rounding H and S down and the result to the nearest, as Pillow does.
#[inline(always)]
fn turn_hue(block: &mut [Run; 3], shift: f32) {
    let [red, green, blue] = block;
    for ((r, g), b) in red.iter_mut().zip(green).zip(blue) {
        let max = r.max(*g).max(*b);
        let range = max - r.min(*g).min(*b);
        // The divisions by zero of grey pixels are avoided; their hue does not matter.
        let (range_or_1, max_or_1) = (range.max(1.0), max.max(1.0));
        let (sector, difference) = if *r == max {
            (0.0, *g - *b)
        } else if *g == max {
            (2.0, *b - *r)
        } else {
            (4.0, *r - *g)
        };
        let turn = (sector + difference / range_or_1) / 6.0 + 1.0;
        let hue = ((turn - turn.floor()) * 255.0).floor() + shift;
        let hue = if hue >= 256.0 { hue - 256.0 } else { hue };
        let saturation = (range / max_or_1 * 255.0).floor() / 255.0;
        // Each channel is max times 1 - S inside the opposite third of the circle, 1 inside its own, and
        // a ramp between them.
        let sixths = hue * (6.0 / 255.0);
        let channel = |phase: f32| {
            let k = sixths + phase;
            let k = if k >= 6.0 { k - 6.0 } else { k };
            let ramp = k.min(4.0 - k).clamp(0.0, 1.0);
            (max * (1.0 - saturation * ramp) + 0.5).floor()
        };
        (*r, *g, *b) = (channel(5.0), channel(3.0), channel(1.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPS: [PointOp; 6] = [
        PointOp::Blend { toward: 0, factor: 1.7 },
        PointOp::Saturation { factor: 0.4 },
        PointOp::Hue { shift: 30 },
        PointOp::Blend { toward: 117, factor: 1.3 },
        PointOp::Solarize { threshold: 140 },
        PointOp::Grayscale,
    ];

    /// Vectors, blocks and their remainders give what one pixel alone gives, and fused operations what one after
    /// the other gives.
    #[test]
    fn a_pixel_does_not_depend_on_its_neighbours() {
        for n in [1, 15, 33, 255, 256, 257, 700] {
            let planes: Vec<u8> = (0..3 * n).map(|i| (i * 97 % 256) as u8).collect();
            for n_ops in 0..=OPS.len() {
                let mut together = planes.clone();
                apply(&mut together, 3, &OPS[..n_ops]);
                for i in 0..n {
                    let mut alone = [planes[i], planes[n + i], planes[2 * n + i]];
                    for op in &OPS[..n_ops] {
                        apply(&mut alone, 3, std::slice::from_ref(op));
                    }
                    assert_eq!(
                        [together[i], together[n + i], together[2 * n + i]],
                        alone,
                        "pixel {i} of {n}"
                    );
                }
            }
        }
    }

    #[test]
    fn the_sum_is_that_of_the_luminance() {
        let n = 1000;
        let planes: Vec<u8> = (0..3 * n).map(|i| (i * 61 % 256) as u8).collect();
        let mut grey = planes.clone();
        apply(&mut grey, 3, &[PointOp::Grayscale]);
        let expected: u64 = grey[..n].iter().map(|&v| u64::from(v)).sum();
        assert_eq!(apply_and_sum(&mut planes.clone(), 3, &[]), expected);
        assert_eq!(apply_and_sum(&mut grey, 3, &[]), expected);
    }
}
