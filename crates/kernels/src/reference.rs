//! Every operation again, in f64 and in the plainest loops there are: what the fast kernels are tested
//! against. Useful to check other implementations too; far too slow for anything else.

use crate::ConvSpec;

/// Convolution forward: `x` is NHWC of shape `[n, h, w, c_in]`, `weights` OHWI; returns NHWC.
pub fn conv_forward(spec: &ConvSpec, shape: [usize; 4], x: &[f64], weights: &[f64]) -> Vec<f64> {
    let [_, h, w, _] = shape;
    let [n, oh, ow, co] = spec.output_shape(shape);
    let mut y = vec![0.0; n * oh * ow * co];
    each_product(spec, [n, oh, ow], [h, w], |xi, wi, yi| y[yi] += x[xi] * weights[wi]);
    y
}

/// Gradient with respect to the input of [`conv_forward`]; `shape` is the input's.
pub fn conv_backward_data(spec: &ConvSpec, shape: [usize; 4], dy: &[f64], weights: &[f64]) -> Vec<f64> {
    let [_, h, w, _] = shape;
    let [n, oh, ow, _] = spec.output_shape(shape);
    let mut dx = vec![0.0; shape.iter().product()];
    each_product(spec, [n, oh, ow], [h, w], |xi, wi, yi| dx[xi] += dy[yi] * weights[wi]);
    dx
}

/// Gradient with respect to the weights of [`conv_forward`].
pub fn conv_backward_weights(spec: &ConvSpec, shape: [usize; 4], x: &[f64], dy: &[f64]) -> Vec<f64> {
    let [_, h, w, _] = shape;
    let [n, oh, ow, _] = spec.output_shape(shape);
    let mut dw = vec![0.0; spec.weight_len()];
    each_product(spec, [n, oh, ow], [h, w], |xi, wi, yi| dw[wi] += x[xi] * dy[yi]);
    dw
}

/// Calls `f(input index, weight index, output index)` for every product of a convolution.
fn each_product(
    spec: &ConvSpec,
    [n, oh, ow]: [usize; 3],
    [h, w]: [usize; 2],
    mut f: impl FnMut(usize, usize, usize),
) {
    let k = spec.kernel;
    for (image, oy, ox) in (0..n).flat_map(|i| (0..oh).flat_map(move |y| (0..ow).map(move |x| (i, y, x)))) {
        for (ky, kx) in (0..k).flat_map(|y| (0..k).map(move |x| (y, x))) {
            let (y, x) = (oy * spec.stride + ky, ox * spec.stride + kx);
            if y < spec.padding || x < spec.padding || y - spec.padding >= h || x - spec.padding >= w {
                continue;
            }
            let xi = ((image * h + y - spec.padding) * w + x - spec.padding) * spec.c_in;
            let yi = ((image * oh + oy) * ow + ox) * spec.c_out;
            for o in 0..spec.c_out {
                for i in 0..spec.c_in {
                    f(xi + i, ((o * k + ky) * k + kx) * spec.c_in + i, yi + o);
                }
            }
        }
    }
}

/// Mean and biased variance of each of `channels` interleaved channels.
pub fn batch_stats(x: &[f64], channels: usize) -> (Vec<f64>, Vec<f64>) {
    let count = (x.len() / channels) as f64;
    let (mut mean, mut var) = (vec![0.0; channels], vec![0.0; channels]);
    for (i, v) in x.iter().enumerate() {
        mean[i % channels] += v / count;
    }
    for (i, v) in x.iter().enumerate() {
        var[i % channels] += (v - mean[i % channels]).powi(2) / count;
    }
    (mean, var)
}

/// Batch norm with given statistics.
pub fn batch_norm(x: &[f64], mean: &[f64], var: &[f64], gamma: &[f64], beta: &[f64]) -> Vec<f64> {
    let channels = gamma.len();
    let eps = f64::from(crate::BN_EPSILON);
    x.iter()
        .enumerate()
        .map(|(i, v)| {
            let c = i % channels;
            (v - mean[c]) / (var[c] + eps).sqrt() * gamma[c] + beta[c]
        })
        .collect()
}

/// Gradients of training-mode batch norm with respect to its input, gamma and beta.
pub fn batch_norm_backward(x: &[f64], dy: &[f64], gamma: &[f64]) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let channels = gamma.len();
    let count = (x.len() / channels) as f64;
    let (mean, var) = batch_stats(x, channels);
    let xhat = batch_norm(x, &mean, &var, &vec![1.0; channels], &vec![0.0; channels]);
    let (mut d_gamma, mut d_beta) = (vec![0.0; channels], vec![0.0; channels]);
    for (i, (g, xh)) in dy.iter().zip(&xhat).enumerate() {
        d_gamma[i % channels] += g * xh;
        d_beta[i % channels] += g;
    }
    let eps = f64::from(crate::BN_EPSILON);
    let dx = dy
        .iter()
        .zip(&xhat)
        .enumerate()
        .map(|(i, (g, xh))| {
            let c = i % channels;
            gamma[c] / (var[c] + eps).sqrt() * (g - d_beta[c] / count - xh * d_gamma[c] / count)
        })
        .collect();
    (dx, d_gamma, d_beta)
}

/// Max pooling 3×3, stride 2, padding 1: the values, and for each the index of its first maximum in `x`.
pub fn max_pool(x: &[f64], [n, h, w, c]: [usize; 4]) -> (Vec<f64>, Vec<usize>) {
    let (oh, ow) = (h.div_ceil(2), w.div_ceil(2));
    let (mut y, mut index) = (Vec::new(), Vec::new());
    for i in 0..n * oh * ow * c {
        let (ch, ox, oy, image) = (i % c, i / c % ow, i / c / ow % oh, i / c / ow / oh);
        let mut best: Option<usize> = None;
        for iy in (2 * oy).saturating_sub(1)..(2 * oy + 2).min(h) {
            for ix in (2 * ox).saturating_sub(1)..(2 * ox + 2).min(w) {
                let at = ((image * h + iy) * w + ix) * c + ch;
                if best.is_none_or(|b| x[at] > x[b]) {
                    best = Some(at);
                }
            }
        }
        // A window always contains its centre.
        let best = best.unwrap_or(0);
        y.push(x[best]);
        index.push(best);
    }
    (y, index)
}
