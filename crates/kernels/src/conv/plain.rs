//! The plain path: any kernel, stride and padding, in simple loops.

use rayon::prelude::*;

use super::{ConvSpec, Post, Source};
use crate::activations::{Activations, DataMut};
use crate::norm::{BatchStats, GradSums};
use crate::{Context, pointwise};

pub(super) fn forward(
    ctx: &Context,
    spec: &ConvSpec,
    src: Source<'_>,
    weights: &[f32],
    out: &mut Activations,
    stats: bool,
) -> Option<BatchStats> {
    let ([_, h, w, _], x) = (src.shape(), materialise(&src));
    let [_, oh, ow, co] = out.shape;
    let mut y = vec![0.0f32; out.len()];
    let k = spec.kernel;
    y.par_chunks_mut(ow * co).enumerate().for_each(|(row, y)| {
        let (image, oy) = (row / oh, row % oh);
        for (ox, y) in y.chunks_mut(co).enumerate() {
            each_tap(spec, [h, w], [oy, ox], |tap, pixel| {
                let x = &x[(image * h * w + pixel) * spec.c_in..][..spec.c_in];
                for (o, y) in y.iter_mut().enumerate() {
                    *y += dot(x, &weights[(o * k * k + tap) * spec.c_in..][..spec.c_in]);
                }
            });
        }
    });
    store(out, &y);
    stats.then(|| pointwise::batch_stats(ctx, out))
}

pub(super) fn backward_data(
    ctx: &Context,
    spec: &ConvSpec,
    dy: Source<'_>,
    weights: &[f32],
    out: &mut Activations,
    post: Post<'_>,
) -> Option<GradSums> {
    let ([_, oh, ow, co], g) = (dy.shape(), materialise(&dy));
    let [_, h, w, c] = out.shape;
    let mut dx = match post {
        Post::Accumulate => out.to_f32(),
        _ => vec![0.0; out.len()],
    };
    let k = spec.kernel;
    dx.par_chunks_mut(h * w * c).enumerate().for_each(|(image, dx)| {
        for (oy, ox) in (0..oh).flat_map(|y| (0..ow).map(move |x| (y, x))) {
            let g = &g[((image * oh + oy) * ow + ox) * co..][..co];
            each_tap(spec, [h, w], [oy, ox], |tap, pixel| {
                let dx = &mut dx[pixel * c..][..c];
                for (o, &g) in g.iter().enumerate() {
                    axpy(dx, g, &weights[(o * k * k + tap) * c..][..c]);
                }
            });
        }
    });
    store(out, &dx);
    match post {
        Post::ReluNorm { raw, affine, mean } => {
            Some(pointwise::relu_norm_backward(ctx, out, raw, affine, mean))
        }
        Post::Store | Post::Accumulate => None,
    }
}

pub(super) fn backward_weights(
    _ctx: &Context,
    spec: &ConvSpec,
    x: Source<'_>,
    dy: Source<'_>,
    grad: &mut [f32],
) {
    let [n, h, w, c] = x.shape();
    let [_, oh, ow, co] = dy.shape();
    let (x, g) = (materialise(&x), materialise(&dy));
    grad.par_chunks_mut(spec.kernel * spec.kernel * c).enumerate().for_each(|(o, grad)| {
        for image in 0..n {
            for (oy, ox) in (0..oh).flat_map(|y| (0..ow).map(move |x| (y, x))) {
                let g = g[((image * oh + oy) * ow + ox) * co + o];
                each_tap(spec, [h, w], [oy, ox], |tap, pixel| {
                    axpy(&mut grad[tap * c..][..c], g, &x[(image * h * w + pixel) * c..][..c]);
                });
            }
        }
    });
}

/// Calls `f(tap, input pixel)` for the taps of one output pixel that lie inside the input.
fn each_tap(spec: &ConvSpec, [h, w]: [usize; 2], [oy, ox]: [usize; 2], mut f: impl FnMut(usize, usize)) {
    for (ky, kx) in (0..spec.kernel).flat_map(|y| (0..spec.kernel).map(move |x| (y, x))) {
        let (y, x) = (oy * spec.stride + ky, ox * spec.stride + kx);
        if y >= spec.padding && x >= spec.padding && y - spec.padding < h && x - spec.padding < w {
            f(ky * spec.kernel + kx, (y - spec.padding) * w + x - spec.padding);
        }
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 8];
    let (ac, bc) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest: f32 = ac.remainder().iter().zip(bc.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in ac.zip(bc) {
        for l in 0..8 {
            lanes[l] += a[l] * b[l];
        }
    }
    lanes.iter().sum::<f32>() + rest
}

fn axpy(y: &mut [f32], a: f32, x: &[f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y += a * x;
    }
}

fn materialise(source: &Source<'_>) -> Vec<f32> {
    let c = source.shape()[3];
    match source {
        Source::Plain(x) => x.to_f32(),
        Source::NormRelu { raw, affine } => {
            let mut y = raw.to_f32();
            for (i, y) in y.iter_mut().enumerate() {
                *y = (*y * affine.scale[i % c] + affine.shift[i % c]).max(0.0);
            }
            y
        }
        Source::NormGrad { grad, raw, affine } => {
            let (mut g, y) = (grad.to_f32(), raw.to_f32());
            for (i, g) in g.iter_mut().enumerate() {
                let c = i % c;
                *g = *g * affine.on_grad[c] + y[i] * affine.on_raw[c] + affine.constant[c];
            }
            g
        }
    }
}

fn store(out: &mut Activations, values: &[f32]) {
    match out.data_mut() {
        DataMut::F32(out) => out.copy_from_slice(values),
        DataMut::Bf16(out) => {
            for (o, v) in out.iter_mut().zip(values) {
                *o = half::bf16::from_f32(*v).to_bits();
            }
        }
    }
}
