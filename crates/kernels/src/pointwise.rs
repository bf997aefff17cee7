//! Passes over feature maps that are not convolutions.

use crate::Context;
use crate::activations::{Activations, DataMut};
use crate::norm::{Affine, BatchStats, GradAffine, GradSums};

/// What a residual block adds to its last convolution.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Shortcut<'a> {
    /// Nothing: the unit is no residual block.
    None,
    /// The block's input.
    Identity(&'a Activations),
    /// The batch norm of a convolution of the block's input.
    Norm {
        /// The convolution's raw output.
        raw: &'a Activations,
        /// Its batch norm.
        affine: &'a Affine,
    },
}

/// Mean and variance by channel.
pub(crate) fn batch_stats(_ctx: &Context, x: &Activations) -> BatchStats {
    let (c, values) = (x.shape[3], x.to_f32());
    let count = x.pixels();
    let (mut mean, mut var) = (vec![0.0f64; c], vec![0.0f64; c]);
    for pixel in values.chunks(c) {
        for (m, v) in mean.iter_mut().zip(pixel) {
            *m += f64::from(*v);
        }
    }
    mean.iter_mut().for_each(|m| *m /= count as f64);
    for pixel in values.chunks(c) {
        for ((s, v), m) in var.iter_mut().zip(pixel).zip(&mean) {
            *s += (f64::from(*v) - m).powi(2);
        }
    }
    BatchStats {
        mean: mean.iter().map(|&m| m as f32).collect(),
        var: var.iter().map(|&v| (v / count as f64) as f32).collect(),
        count,
    }
}

/// `out = max(raw·scale + shift + shortcut, 0)`.
pub(crate) fn join(
    _ctx: &Context,
    raw: &Activations,
    affine: &Affine,
    shortcut: Shortcut<'_>,
    out: &mut Activations,
) {
    let values: Vec<f32> = joined(raw, affine, shortcut);
    write(out, |i| values[i].max(0.0));
}

/// Masks `grad` by the ReLU of [`join`], in place, and returns batch norm's sums for the main path and
/// for a normalised shortcut.
pub(crate) fn join_backward(
    ctx: &Context,
    grad: &mut Activations,
    raw: &Activations,
    affine: &Affine,
    mean: &[f32],
    shortcut: Shortcut<'_>,
    shortcut_mean: &[f32],
) -> (GradSums, Option<GradSums>) {
    let values = joined(raw, affine, shortcut);
    let g = grad.to_f32();
    write(grad, |i| if values[i] > 0.0 { g[i] } else { 0.0 });
    let main = grad_sums(ctx, grad, raw, mean);
    let side = match shortcut {
        Shortcut::Norm { raw, .. } => Some(grad_sums(ctx, grad, raw, shortcut_mean)),
        _ => None,
    };
    (main, side)
}

/// [`join_backward`] without shortcut.
pub(crate) fn relu_norm_backward(
    ctx: &Context,
    grad: &mut Activations,
    raw: &Activations,
    affine: &Affine,
    mean: &[f32],
) -> GradSums {
    join_backward(ctx, grad, raw, affine, mean, Shortcut::None, &[]).0
}

fn joined(raw: &Activations, affine: &Affine, shortcut: Shortcut<'_>) -> Vec<f32> {
    let c = raw.shape[3];
    let mut values = raw.to_f32();
    for (i, v) in values.iter_mut().enumerate() {
        *v = *v * affine.scale[i % c] + affine.shift[i % c];
    }
    match shortcut {
        Shortcut::None => {}
        Shortcut::Identity(x) => values.iter_mut().zip(x.to_f32()).for_each(|(v, x)| *v += x),
        Shortcut::Norm { raw, affine } => {
            for (i, (v, x)) in values.iter_mut().zip(raw.to_f32()).enumerate() {
                *v += x * affine.scale[i % c] + affine.shift[i % c];
            }
        }
    }
    values
}

/// Batch norm's sums for a gradient.
pub(crate) fn grad_sums(_ctx: &Context, grad: &Activations, raw: &Activations, mean: &[f32]) -> GradSums {
    let c = raw.shape[3];
    let mut sums = GradSums { grad: vec![0.0; c], grad_centred: vec![0.0; c] };
    for (i, (g, y)) in grad.to_f32().into_iter().zip(raw.to_f32()).enumerate() {
        sums.grad[i % c] += f64::from(g);
        sums.grad_centred[i % c] += f64::from(g) * f64::from(y - mean[i % c]);
    }
    sums
}

fn write(out: &mut Activations, value: impl Fn(usize) -> f32) {
    match out.data_mut() {
        DataMut::F32(out) => out.iter_mut().enumerate().for_each(|(i, o)| *o = value(i)),
        DataMut::Bf16(out) => {
            out.iter_mut().enumerate().for_each(|(i, o)| *o = half::bf16::from_f32(value(i)).to_bits());
        }
    }
}

/// Max pooling 3×3, stride 2, padding 1 of `max(raw·scale + shift, 0)`.
pub(crate) fn norm_relu_max_pool(_ctx: &Context, raw: &Activations, affine: &Affine, out: &mut Activations) {
    let values = joined(raw, affine, Shortcut::None);
    let [_, h, w, c] = raw.shape;
    let shape = out.shape;
    write(out, |i| {
        let (at, _) = window(shape, [h, w], i, |at| values[at]);
        debug_assert!(at % c == i % c);
        values[at].max(0.0)
    });
}

/// The gradient of [`norm_relu_max_pool`] with respect to the batch norm's output: each pooled gradient
/// goes to the first maximum of its window, where that is positive.
pub(crate) fn norm_relu_max_pool_backward(
    ctx: &Context,
    pooled: &Activations,
    raw: &Activations,
    affine: &Affine,
    mean: &[f32],
    grad: &mut Activations,
) -> GradSums {
    let values = joined(raw, affine, Shortcut::None);
    let [_, h, w, _] = raw.shape;
    let mut full = vec![0.0f32; raw.len()];
    for (i, g) in pooled.to_f32().into_iter().enumerate() {
        let (at, best) = window(pooled.shape, [h, w], i, |at| values[at]);
        if best > 0.0 {
            full[at] += g;
        }
    }
    write(grad, |i| full[i]);
    grad_sums(ctx, grad, raw, mean)
}

/// Index and value of the first maximum in the window of the pooled element `i`.
fn window(
    [_, oh, ow, c]: [usize; 4],
    [h, w]: [usize; 2],
    i: usize,
    value: impl Fn(usize) -> f32,
) -> (usize, f32) {
    let (ch, ox, oy, image) = (i % c, i / c % ow, i / c / ow % oh, i / c / ow / oh);
    let mut best = (0, f32::NEG_INFINITY);
    for iy in (2 * oy).saturating_sub(1)..(2 * oy + 2).min(h) {
        for ix in (2 * ox).saturating_sub(1)..(2 * ox + 2).min(w) {
            let at = ((image * h + iy) * w + ix) * c + ch;
            if value(at) > best.1 {
                best = (at, value(at));
            }
        }
    }
    best
}

/// `out = raw·scale + shift`.
pub(crate) fn norm(_ctx: &Context, raw: &Activations, affine: &Affine, out: &mut Activations) {
    let values = joined(raw, affine, Shortcut::None);
    write(out, |i| values[i]);
}

/// `out = grad·on_grad + raw·on_raw + constant`.
pub(crate) fn norm_grad(
    _ctx: &Context,
    grad: &Activations,
    raw: &Activations,
    affine: &GradAffine,
    out: &mut Activations,
) {
    let (c, g, y) = (raw.shape[3], grad.to_f32(), raw.to_f32());
    write(out, |i| g[i] * affine.on_grad[i % c] + y[i] * affine.on_raw[i % c] + affine.constant[i % c]);
}

/// The mean over each image's pixels.
pub(crate) fn avg_pool(_ctx: &Context, x: &Activations, out: &mut Activations) {
    let (c, pixels, values) = (x.shape[3], x.shape[1] * x.shape[2], x.to_f32());
    write(out, |i| {
        let (image, ch) = (i / c, i % c);
        let sum: f32 = (0..pixels).map(|p| values[(image * pixels + p) * c + ch]).sum();
        sum / pixels as f32
    });
}

/// The gradient of [`avg_pool`].
pub(crate) fn avg_pool_backward(_ctx: &Context, grad: &Activations, out: &mut Activations) {
    let (c, pixels, g) = (out.shape[3], out.shape[1] * out.shape[2], grad.to_f32());
    write(out, |i| g[i / (c * pixels) * c + i % c] / pixels as f32);
}

/// Adds the sum over the rows of `x` to `sums`.
pub(crate) fn add_column_sums(x: &Activations, sums: &mut [f32]) {
    for row in x.to_f32().chunks(sums.len()) {
        sums.iter_mut().zip(row).for_each(|(s, v)| *s += v);
    }
}
