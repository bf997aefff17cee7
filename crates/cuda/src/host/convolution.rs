//! Convolutions and what comes before the first.

use rayon::prelude::*;

use super::Memory;
use crate::shape::{ConvPass, ConvShape, Element};
use crate::tape::{InputLayout, Op, PixelFormat};

/// The input rows (or columns) that an output and a tap meet at, if inside.
fn source(out: usize, tap: usize, stride: usize, padding: usize, extent: usize) -> Option<usize> {
    (out * stride + tap).checked_sub(padding).filter(|&at| at < extent)
}

/// Calls `visit(output pixel, tap, input pixel)` for all that meet in one image.
fn for_each_tap(s: &ConvShape, image: usize, mut visit: impl FnMut(usize, usize, usize)) {
    let (oh, ow) = (s.out_height(), s.out_width());
    for (y, x) in (0..oh).flat_map(|y| (0..ow).map(move |x| (y, x))) {
        for (r, c) in (0..s.kernel[0]).flat_map(|r| (0..s.kernel[1]).map(move |c| (r, c))) {
            let row = source(y, r, s.stride, s.padding[0], s.height);
            let column = source(x, c, s.stride, s.padding[1], s.width);
            if let (Some(row), Some(column)) = (row, column) {
                visit(
                    (image * oh + y) * ow + x,
                    r * s.kernel[1] + c,
                    (image * s.height + row) * s.width + column,
                );
            }
        }
    }
}

/// The three products, in f64.
pub(super) fn conv(op: &Op, memory: &mut Memory<'_>) {
    let Op::Conv { pass, shape: s, x, w, y, accumulate } = op else {
        unreachable!("called with a convolution")
    };
    let (c, k, taps) = (s.channels, s.filters, s.kernel[0] * s.kernel[1]);
    let image_in = s.height * s.width * c;
    let image_out = s.out_height() * s.out_width() * k;
    let rounds = memory.rounds(s);
    let factors = |view, len| {
        let values = memory.load_act(view, len);
        if rounds { values.into_iter().map(tf32).collect() } else { values }
    };
    match pass {
        ConvPass::Forward => {
            let (xs, ws) = (factors(*x, s.input_len()), factors(*w, s.weight_len()));
            let mut ys = vec![0.0; s.output_len()];
            ys.par_chunks_mut(image_out).enumerate().for_each(|(image, out)| {
                for_each_tap(s, image, |to, tap, from| {
                    let x = &xs[from * c..][..c];
                    let out = &mut out[(to * k) % image_out..][..k];
                    for (filter, out) in out.iter_mut().enumerate() {
                        *out += dot(x, &ws[(filter * taps + tap) * c..][..c]);
                    }
                });
            });
            memory.store_act(*y, &ys);
        }
        ConvPass::DataGradient => {
            let (ys, ws) = (factors(*y, s.output_len()), factors(*w, s.weight_len()));
            let mut xs =
                if *accumulate { memory.load_act(*x, s.input_len()) } else { vec![0.0; s.input_len()] };
            xs.par_chunks_mut(image_in).enumerate().for_each(|(image, out)| {
                for_each_tap(s, image, |from, tap, to| {
                    let out = &mut out[(to * c) % image_in..][..c];
                    for (filter, &y) in ys[from * k..][..k].iter().enumerate() {
                        add(out, y, &ws[(filter * taps + tap) * c..][..c]);
                    }
                });
            });
            memory.store_act(*x, &xs);
        }
        ConvPass::WeightGradient => {
            let (xs, ys) = (factors(*x, s.input_len()), factors(*y, s.output_len()));
            let mut ws = vec![0.0; s.weight_len()];
            ws.par_chunks_mut(taps * c).enumerate().for_each(|(filter, out)| {
                for image in 0..s.images {
                    for_each_tap(s, image, |from, tap, to| {
                        add(&mut out[tap * c..][..c], ys[from * k + filter], &xs[to * c..][..c]);
                    });
                }
            });
            memory.store_act(*w, &ws);
        }
    }
}

/// A value of f32 rounded to the nearest of TF32: 11 bits, the exponents of f32.
fn tf32(x: f64) -> f64 {
    let bits = (x as f32).to_bits();
    let half_of_last = 0x0fff + (bits >> 13 & 1);
    f64::from(f32::from_bits(bits.wrapping_add(half_of_last) & !0x1fff))
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(out: &mut [f64], factor: f64, values: &[f64]) {
    if factor != 0.0 {
        for (out, value) in out.iter_mut().zip(values) {
            *out += factor * value;
        }
    }
}

/// Pixels into what the stem reads, and the mask of its weights' gradient.
pub(super) fn stem(op: &Op, memory: &mut Memory<'_>) {
    match op {
        Op::Input { pixels, format, out, layout, images, height, width } => {
            let len = images * height * width * 3;
            let values = match format {
                PixelFormat::F32 => memory.load(*pixels, Element::F32, len),
                PixelFormat::U8 { scale, shift } => {
                    let bytes = memory.bytes(*pixels, len).iter().enumerate();
                    bytes.map(|(i, &byte)| f64::from(f32::from(byte) * scale[i % 3] + shift[i % 3])).collect()
                }
            };
            let size = [*images, *height, *width];
            let laid = match layout {
                InputLayout::Padded => {
                    let pixels = values.chunks_exact(3);
                    pixels.flat_map(|p| [p[0], p[1], p[2], 0.0, 0.0, 0.0, 0.0, 0.0]).collect()
                }
                InputLayout::Rows => rows(&values, size),
            };
            memory.store_act(*out, &laid);
        }
        Op::MaskStem { weights, filters } => {
            let mut values = memory.load_act(*weights, filters * 256);
            for (e, value) in values.iter_mut().enumerate() {
                let (channel, bj, bi) = (e % 16, e / 16 % 4, e / 64 % 4);
                let q = channel / 3;
                if channel >= 12 || (bi == 0 && q < 2) || (bj == 0 && q % 2 == 0) {
                    *value = 0.0;
                }
            }
            memory.store_act(*weights, &values);
        }
        _ => unreachable!("called with a stem's operation"),
    }
}

/// [`InputLayout::Rows`].
fn rows(pixels: &[f64], [images, height, width]: [usize; 3]) -> Vec<f64> {
    let (oh, ow) = (height.div_ceil(2), width.div_ceil(2));
    let mut out = vec![0.0; images * (oh + 3) * ow * 64];
    for (index, out) in out.iter_mut().enumerate() {
        let (channel, j) = (index % 16, index / 16 % 4);
        let (q, p, image) = (index / 64 % ow, index / 64 / ow % (oh + 3), index / 64 / ow / (oh + 3));
        if channel >= 12 {
            continue;
        }
        let (dy, dx, c) = (channel / 6, channel / 3 % 2, channel % 3);
        let (row, column) = ((2 * p + dy).checked_sub(4), (2 * (q + j) + dx).checked_sub(4));
        if let (Some(row), Some(column)) = (row.filter(|&row| row < height), column.filter(|&c| c < width)) {
            *out = pixels[((image * height + row) * width + column) * 3 + c];
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::tf32;

    #[test]
    fn tf32_has_eleven_bits() {
        let last = 2f64.powi(-10);
        assert_eq!(tf32(1.0 + last), 1.0 + last);
        assert_eq!(tf32(-1.0 - 0.4 * last), -1.0);
        assert_eq!(tf32(1.0 + 0.6 * last), 1.0 + last);
        // Ties go to the even neighbour.
        assert_eq!(tf32(1.0 + 0.5 * last), 1.0);
        assert_eq!(tf32(1.0 + 1.5 * last), 1.0 + 2.0 * last);
        assert_eq!(tf32(2.0 - 0.25 * last), 2.0);
        assert_eq!(tf32(0.0), 0.0);
    }
}
