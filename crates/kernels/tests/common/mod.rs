//! What the tests share: random numbers, and whole units again in f64.
#![allow(dead_code, reason = "each test binary uses a part")]

use swav_kernels::net::{Block, Unit};
use swav_kernels::plan::{Pass, Products};
use swav_kernels::{Activations, BN_EPSILON, Context, Isa, Options, Precision, reference};

/// Reproducible values of about unit variance.
pub fn values(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    (0..len).map(|_| (next() + next() + next()) * 2.0).collect()
}

pub fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&v| f64::from(v)).collect()
}

/// The values rounded to bf16, to nearest even.
pub fn round_bf16(x: &[f32]) -> Vec<f32> {
    x.iter().map(|&v| half::bf16::from_f32(v).to_f32()).collect()
}

/// The bits of all values: -0 is not 0, and a NaN is itself.
pub fn all_bits(lists: &[Vec<f32>]) -> Vec<Vec<u32>> {
    lists.iter().map(|list| list.iter().map(|v| v.to_bits()).collect()).collect()
}

/// Activations in the context's precision.
pub fn activations(ctx: &Context, shape: [usize; 4], x: &[f32]) -> Activations {
    match ctx.precision() {
        Precision::F32 => Activations::from_f32(shape, x.to_vec()).unwrap(),
        Precision::Mixed => {
            let mut padded = x.to_vec();
            padded.resize(x.len().next_multiple_of(2), 0.0);
            let words = padded.chunks(2).map(|p| {
                let bits = [half::bf16::from_f32(p[0]).to_bits(), half::bf16::from_f32(p[1]).to_bits()];
                // Memory order, whatever the machine's endianness.
                let bytes = [bits[0].to_ne_bytes(), bits[1].to_ne_bytes()].concat();
                f32::from_ne_bytes(bytes.try_into().unwrap())
            });
            Activations::from_words(shape, Precision::Mixed, words.collect()).unwrap()
        }
    }
}

/// The largest difference, relative to the expected values' RMS.
pub fn error(got: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(got.len(), expected.len());
    let rms = (expected.iter().map(|e| e * e).sum::<f64>() / expected.len() as f64).sqrt();
    let worst = got.iter().zip(expected).map(|(g, e)| (f64::from(*g) - e).abs());
    // NaN must not pass for small.
    worst.fold(0.0, |a, b| if b <= a { a } else { b }) / rms.max(1e-30)
}

/// A context for every instruction set that runs here, with and without Winograd; where there is a matrix unit, training passes
/// without `exact` take it.
pub fn contexts(options: Options) -> Vec<Context> {
    let mut all = Vec::new();
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
        for exact in [false, true] {
            let matrix_unit = isa == Isa::Amx;
            all.push(Context::new(Options { isa: Some(isa), exact, matrix_unit, ..options }).unwrap());
        }
    }
    all
}

/// Parameters for a unit: weights of about the size that keeps variance, gammas around 1.
pub fn parameters(unit: &dyn Unit, seed: u64) -> Vec<Vec<f32>> {
    use swav_kernels::net::ParamKind;
    let specs = unit.parameters();
    (specs.iter().enumerate())
        .map(|(i, spec)| {
            let v = values(spec.len(), seed + i as u64);
            let fan = (spec.len() / spec.shape[0]).max(1) as f32;
            match spec.kind {
                ParamKind::NormWeight => v.iter().map(|x| 1.0 + 0.2 * x).collect(),
                ParamKind::NormBias => v.iter().map(|x| 0.3 * x).collect(),
                _ => v.iter().map(|x| x / fan.sqrt()).collect(),
            }
        })
        .collect()
}

pub fn slices(params: &[Vec<f32>]) -> Vec<&[f32]> {
    params.iter().map(Vec::as_slice).collect()
}

/// A residual block in f64: output, gradient of the input, gradients of the parameters.
pub fn block(
    unit: &Block,
    shape: [usize; 4],
    x: &[f64],
    params: &[Vec<f64>],
    grad: &[f64],
) -> (Vec<f64>, Vec<f64>, Vec<Vec<f64>>) {
    let convs: Vec<_> = unit.convs().copied().collect();
    let main = unit.norms().iter().filter(|n| n.name.starts_with("bn")).count();
    let relu = |x: &[f64]| -> Vec<f64> { x.iter().map(|v| v.max(0.0)).collect() };
    let norm = |i: usize, y: &[f64]| {
        let (mean, var) = reference::batch_stats(y, convs[i].c_out);
        reference::batch_norm(y, &mean, &var, &params[3 * i + 1], &params[3 * i + 2])
    };
    let (mut inputs, mut shapes, mut raw, mut normed) = (vec![x.to_vec()], vec![shape], vec![], vec![]);
    for i in 0..main {
        raw.push(reference::conv_forward(&convs[i], shapes[i], &inputs[i], &params[3 * i]));
        normed.push(norm(i, &raw[i]));
        inputs.push(relu(&normed[i]));
        shapes.push(convs[i].output_shape(shapes[i]));
    }
    let mut sum = normed[main - 1].clone();
    if main < convs.len() {
        raw.push(reference::conv_forward(&convs[main], shape, x, &params[3 * main]));
        let side = norm(main, &raw[main]);
        sum.iter_mut().zip(&side).for_each(|(s, v)| *s += v);
    } else {
        sum.iter_mut().zip(x).for_each(|(s, v)| *s += v);
    }
    let out = relu(&sum);
    let masked: Vec<f64> = grad.iter().zip(&sum).map(|(g, s)| if *s > 0.0 { *g } else { 0.0 }).collect();
    let mut grads = vec![Vec::new(); params.len()];
    let mut g = masked.clone();
    let mut back = |i: usize, g: &[f64], input: &[f64], input_shape: [usize; 4]| {
        let (dy, d_gamma, d_beta) = reference::batch_norm_backward(&raw[i], g, &params[3 * i + 1]);
        grads[3 * i] = reference::conv_backward_weights(&convs[i], input_shape, input, &dy);
        (grads[3 * i + 1], grads[3 * i + 2]) = (d_gamma, d_beta);
        reference::conv_backward_data(&convs[i], input_shape, &dy, &params[3 * i])
    };
    for i in (0..main).rev() {
        g = back(i, &g, &inputs[i], shapes[i]);
        if i > 0 {
            g.iter_mut().zip(&normed[i - 1]).for_each(|(g, n)| {
                if *n <= 0.0 {
                    *g = 0.0
                }
            });
        }
    }
    let side = if main < convs.len() { back(main, &masked, x, shape) } else { masked };
    g.iter_mut().zip(&side).for_each(|(g, s)| *g += s);
    (out, g, grads)
}

/// Rounded to bf16.
fn rounded(x: &[f64]) -> Vec<f64> {
    x.iter().map(|&v| f64::from(half::bf16::from_f32(v as f32).to_f32())).collect()
}

/// For each channel the sum of products of its values.
fn channel_sums(a: &[f64], b: impl Fn(usize) -> f64, channels: usize) -> Vec<f64> {
    let mut sums = vec![0.0; channels];
    a.iter().enumerate().for_each(|(i, a)| sums[i % channels] += a * b(i));
    sums
}

/// A convolution's raw output as it is stored, and the affine map of its batch norm.
struct NormedRaw {
    raw: Vec<f64>,
    mean: Vec<f64>,
    /// 1/√(v + ε)
    r: Vec<f64>,
    scale: Vec<f64>,
    shift: Vec<f64>,
}

impl NormedRaw {
    /// Statistics are those of the values before they are rounded for storage.
    fn new(y: &[f64], gamma: &[f64], beta: &[f64]) -> Self {
        let (mean, var) = reference::batch_stats(y, gamma.len());
        let r: Vec<f64> = var.iter().map(|v| 1.0 / (v + f64::from(BN_EPSILON)).sqrt()).collect();
        let scale: Vec<f64> = r.iter().zip(gamma).map(|(r, g)| r * g).collect();
        let shift = (0..gamma.len()).map(|c| beta[c] - mean[c] * scale[c]).collect();
        Self { raw: rounded(y), mean, r, scale, shift }
    }

    fn normed(&self) -> Vec<f64> {
        let c = self.scale.len();
        self.raw.iter().enumerate().map(|(i, y)| y * self.scale[i % c] + self.shift[i % c]).collect()
    }

    /// The gradients with respect to the convolution's output, gamma and beta: from the stored gradient, and the one that
    /// was summed before it was rounded.
    fn backward(&self, stored: &[f64], summed: &[f64], gamma: &[f64]) -> [Vec<f64>; 3] {
        let c = gamma.len();
        let n = (stored.len() / c) as f64;
        let d_beta = channel_sums(summed, |_| 1.0, c);
        let mut d_gamma = channel_sums(summed, |i| self.raw[i] - self.mean[i % c], c);
        d_gamma.iter_mut().zip(&self.r).for_each(|(d, r)| *d *= r);
        let dy = stored.iter().enumerate().map(|(i, g)| {
            let (k, xhat) = (i % c, (self.raw[i] - self.mean[i % c]) * self.r[i % c]);
            gamma[k] * self.r[k] * (g - d_beta[k] / n - xhat * d_gamma[k] / n)
        });
        [dy.collect(), d_gamma, d_beta]
    }
}

/// A residual block in f64 that rounds to bf16 what the kernels round: feature maps and gradients when they are stored, and,
/// where the plan says that products are of bf16, their operands.
pub fn block_mixed(
    ctx: &Context,
    unit: &Block,
    shape: [usize; 4],
    x: &[f64],
    params: &[Vec<f64>],
    grad: &[f64],
) -> (Vec<f64>, Vec<f64>, Vec<Vec<f64>>) {
    let convs = unit.convolutions(ctx, shape);
    let main = unit.norms().iter().filter(|n| n.name.starts_with("bn")).count();
    let side = (main < convs.len()).then_some(main);
    let as_used = |i: usize, pass: Pass, operand: &[f64]| {
        if convs[i].plan(ctx, pass).products == Products::Bf16 { rounded(operand) } else { operand.to_vec() }
    };
    let relu = |v: &[f64]| -> Vec<f64> { v.iter().map(|v| v.max(0.0)).collect() };
    let keep = |g: &[f64], by: &[f64]| -> Vec<f64> {
        g.iter().zip(by).map(|(g, by)| if *by > 0.0 { *g } else { 0.0 }).collect()
    };
    let add = |a: &[f64], b: &[f64]| -> Vec<f64> { a.iter().zip(b).map(|(a, b)| a + b).collect() };

    let (mut inputs, mut norms): (Vec<Vec<f64>>, Vec<NormedRaw>) = (Vec::new(), Vec::new());
    for i in 0..convs.len() {
        let input = if i == 0 || Some(i) == side { x.to_vec() } else { relu(&norms[i - 1].normed()) };
        let (operand, weights) =
            (as_used(i, Pass::Forward, &input), as_used(i, Pass::Forward, &params[3 * i]));
        let y = reference::conv_forward(&convs[i].spec, convs[i].input, &operand, &weights);
        norms.push(NormedRaw::new(&y, &params[3 * i + 1], &params[3 * i + 2]));
        inputs.push(input);
    }
    let shortcut = side.map_or_else(|| x.to_vec(), |side| norms[side].normed());
    let sum = add(&norms[main - 1].normed(), &shortcut);
    let out = rounded(&relu(&sum));

    let masked = keep(grad, &sum);
    let mut grads = vec![Vec::new(); params.len()];
    // The weights' gradients, and the gradient with respect to the convolution's input before it is stored.
    let mut back = |i: usize, stored: &[f64], summed: &[f64]| {
        let [dy, d_gamma, d_beta] = norms[i].backward(stored, summed, &params[3 * i + 1]);
        let (spec, input) = (&convs[i].spec, convs[i].input);
        let (of_x, of_dy) = (as_used(i, Pass::Weights, &inputs[i]), as_used(i, Pass::Weights, &dy));
        grads[3 * i] = reference::conv_backward_weights(spec, input, &of_x, &of_dy);
        (grads[3 * i + 1], grads[3 * i + 2]) = (d_gamma, d_beta);
        let (of_dy, weights) = (as_used(i, Pass::Data, &dy), as_used(i, Pass::Data, &params[3 * i]));
        reference::conv_backward_data(spec, input, &of_dy, &weights)
    };
    let (mut stored, mut summed) = (masked.clone(), masked.clone());
    for i in (1..main).rev() {
        summed = keep(&back(i, &stored, &summed), &norms[i - 1].normed());
        stored = rounded(&summed);
    }
    let inner = back(0, &stored, &summed);
    let grad_in = match side {
        Some(side) => rounded(&add(&rounded(&inner), &back(side, &masked, &masked))),
        None => rounded(&add(&masked, &inner)),
    };
    (out, grad_in, grads)
}
