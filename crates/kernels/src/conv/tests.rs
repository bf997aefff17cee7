//! Every path, on odd sizes and every instruction set that runs here, against f64.

#![allow(clippy::needless_range_loop, reason = "several arrays are indexed by channel")]

use super::plan::{Products, WinogradOrder, winograd_order};
use super::*;
use crate::activations::DataMut;
use crate::norm::{Affine, GradAffine};
use crate::{Isa, Options, Precision, reference};

fn values(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&v| f64::from(v)).collect()
}

/// The largest difference, relative to the expected values' RMS.
fn error(got: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(got.len(), expected.len());
    let rms = (expected.iter().map(|e| e * e).sum::<f64>() / expected.len() as f64).sqrt();
    let worst = got.iter().zip(expected).map(|(g, e)| (f64::from(*g) - e).abs());
    worst.fold(0.0, |a, b| if b <= a { a } else { b }) / rms
}

fn each_isa(mut f: impl FnMut(&Context)) {
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
        f(&Context::new(Options { isa: Some(isa), exact: true, ..Options::default() }).unwrap());
    }
}

fn activations(shape: [usize; 4], seed: u64) -> Activations {
    Activations::from_f32(shape, values(shape.iter().product(), seed)).unwrap()
}

/// Channels in, channels out, kernel, stride, padding, images, height, width.
const CONVOLUTIONS: [[usize; 8]; 18] = [
    [16, 16, 3, 1, 1, 2, 6, 7],
    [48, 80, 3, 1, 1, 3, 4, 4],
    [33, 17, 3, 1, 1, 20, 2, 3],
    [64, 32, 3, 2, 1, 2, 9, 8],
    [40, 70, 3, 2, 1, 5, 7, 7],
    [32, 48, 1, 1, 0, 2, 13, 11],
    [24, 40, 1, 2, 0, 3, 7, 6],
    [3, 20, 7, 2, 3, 2, 17, 20],
    [3, 16, 3, 1, 1, 2, 12, 9],
    [7, 9, 5, 3, 2, 2, 11, 13],
    [20, 12, 2, 2, 0, 2, 8, 9],
    [64, 64, 3, 1, 1, 2, 40, 41],
    [18, 34, 4, 1, 0, 2, 9, 6],
    [16, 8, 3, 3, 1, 1, 10, 1],
    [3, 37, 5, 1, 0, 2, 9, 8],
    [3, 9, 2, 2, 1, 2, 5, 4],
    [3, 64, 3, 2, 1, 3, 1, 1],
    [3, 33, 7, 2, 3, 2, 2, 3],
];

#[test]
fn direct_passes_match_f64() {
    each_isa(|ctx| {
        for [c_in, c_out, kernel, stride, padding, n, h, w] in CONVOLUTIONS {
            let spec = ConvSpec { c_in, c_out, kernel, stride, padding };
            let shape = [n, h, w, c_in];
            let (x, weights) = (activations(shape, 1), values(spec.weight_len(), 2));
            let dy = activations(spec.output_shape(shape), 3);
            let what = format!("{spec:?} {shape:?} {:?}", ctx.isa());

            let mut y = activations(dy.shape, 4);
            let stats = forward(ctx, &spec, Source::Plain(&x), &weights, &mut y, true).unwrap();
            let expected = reference::conv_forward(&spec, shape, &wide(&x.words), &wide(&weights));
            assert!(error(&y.words, &expected) < 1e-5, "forward {what}: {}", error(&y.words, &expected));
            let (mean, var) = reference::batch_stats(&expected, c_out);
            let rms = (var.iter().sum::<f64>() / c_out as f64).sqrt();
            for c in 0..c_out {
                assert!((f64::from(stats.mean[c]) - mean[c]).abs() < 1e-5 * rms, "mean {what}");
                assert!((f64::from(stats.var[c]) - var[c]).abs() < 1e-4 * rms * rms, "variance {what}");
            }

            let mut dx = activations(shape, 5);
            let before = wide(&dx.words);
            backward_data(ctx, &spec, Source::Plain(&dy), &weights, &mut dx, Post::Store);
            let expected = reference::conv_backward_data(&spec, shape, &wide(&dy.words), &wide(&weights));
            assert!(error(&dx.words, &expected) < 1e-5, "data {what}: {}", error(&dx.words, &expected));
            dx.words.iter_mut().zip(&before).for_each(|(d, b)| *d = *b as f32);
            backward_data(ctx, &spec, Source::Plain(&dy), &weights, &mut dx, Post::Accumulate);
            let sum: Vec<f64> = expected.iter().zip(&before).map(|(e, b)| e + b).collect();
            assert!(error(&dx.words, &sum) < 1e-5, "data, added, {what}");

            let mut dw = vec![0.25; spec.weight_len()];
            backward_weights(ctx, &spec, Source::Plain(&x), Source::Plain(&dy), &mut dw);
            let mut expected =
                reference::conv_backward_weights(&spec, shape, &wide(&x.words), &wide(&dy.words));
            expected.iter_mut().for_each(|e| *e += 0.25);
            assert!(error(&dw, &expected) < 1e-5, "weights {what}: {}", error(&dw, &expected));
        }
    });
}

/// Channels in, channels out, images, height, width.
const WINOGRAD: [[usize; 5]; 18] = [
    [16, 16, 2, 8, 8],
    [64, 64, 3, 14, 14],
    [33, 50, 2, 7, 9],
    [16, 96, 1, 4, 4],
    [128, 40, 5, 7, 7],
    [20, 17, 2, 1, 30],
    [24, 32, 9, 6, 5],
    [96, 128, 2, 16, 13],
    [32, 16, 2, 6, 8],
    [16, 32, 3, 11, 12],
    [16, 18, 2, 8, 3],
    [40, 24, 3, 2, 7],
    [17, 16, 2, 3, 10],
    [16, 34, 70, 2, 2],
    [40, 128, 9, 2, 2],
    [16, 128, 120, 4, 4],
    [64, 70, 4, 31, 30],
    [100, 170, 9, 13, 15],
];

/// Winograd's algorithm, whether it pays or not.
fn winograd(spec: &ConvSpec, input: [usize; 4], pass: Pass) -> Plan {
    let algorithm = Algorithm::Winograd(winograd_order(spec, input, pass));
    Plan { algorithm, products: Products::F32 }
}

fn winograd_forward<'a>(
    spec: &'a ConvSpec,
    source: Source<'a>,
    weights: &'a [f32],
    stats: bool,
) -> Product<'a> {
    let (input, direction, finisher) = (source.shape(), Direction::Forward, Finisher::Forward { stats });
    let (plan, weights) = (winograd(spec, input, Pass::Forward), weights.into());
    Product { spec, input, direction, source, weights, finisher, plan }
}

fn winograd_data<'a>(
    spec: &'a ConvSpec,
    input: [usize; 4],
    source: Source<'a>,
    weights: &'a [f32],
    post: Post<'a>,
) -> Product<'a> {
    let (direction, finisher) = (Direction::Backward, Finisher::Backward(post));
    let (plan, weights) = (winograd(spec, input, Pass::Data), weights.into());
    Product { spec, input, direction, source, weights, finisher, plan }
}

fn winograd_passes(ctx: &Context, [c_in, c_out, n, h, w]: [usize; 5], stride: usize) {
    let spec = ConvSpec { c_in, c_out, kernel: 3, stride, padding: 1 };
    let shape = [n, h, w, c_in];
    let (x, weights) = (activations(shape, 1), values(spec.weight_len(), 2));
    let dy = activations(spec.output_shape(shape), 3);
    let what = format!("{spec:?} {shape:?} {:?}", ctx.isa());
    // Rounding errors of the transforms: some 15 to 45 times those of a direct sum.
    let tolerance = 3e-4;

    let mut y = activations(dy.shape, 4);
    let (partials, counts) = winograd_forward(&spec, Source::Plain(&x), &weights, true).run(ctx, &mut y);
    let expected = reference::conv_forward(&spec, shape, &wide(&x.words), &wide(&weights));
    assert!(error(&y.words, &expected) < tolerance, "forward {what}: {}", error(&y.words, &expected));
    let (stats, (mean, var)) = (partials.batch_stats(&counts), reference::batch_stats(&expected, c_out));
    assert_eq!(stats.count, dy.words.len() / c_out);
    assert!(error(&stats.var, &var) < tolerance, "variance {what}");
    let scale = (var.iter().sum::<f64>() / c_out as f64).sqrt();
    assert!(
        stats.mean.iter().zip(&mean).all(|(g, e)| (f64::from(*g) - e).abs() < 1e-4 * scale),
        "mean {what}"
    );

    let mut dx = activations(shape, 5);
    let mut expected = reference::conv_backward_data(&spec, shape, &wide(&dy.words), &wide(&weights));
    expected.iter_mut().zip(&dx.words).for_each(|(e, b)| *e += f64::from(*b));
    winograd_data(&spec, shape, Source::Plain(&dy), &weights, Post::Accumulate).run(ctx, &mut dx);
    assert!(error(&dx.words, &expected) < tolerance, "data {what}: {}", error(&dx.words, &expected));

    let mut dw = vec![0.25; spec.weight_len()];
    let plan = winograd(&spec, shape, Pass::Weights);
    Gradient { spec: &spec, x: Source::Plain(&x), dy: Source::Plain(&dy), plan }.run(ctx, &mut dw);
    let mut expected = reference::conv_backward_weights(&spec, shape, &wide(&x.words), &wide(&dy.words));
    expected.iter_mut().for_each(|e| *e += 0.25);
    assert!(error(&dw, &expected) < tolerance, "weights {what}: {}", error(&dw, &expected));
}

#[test]
fn winograd_passes_match_f64() {
    each_isa(|ctx| {
        for case in WINOGRAD {
            winograd_passes(ctx, case, 1);
            winograd_passes(ctx, case, 2);
        }
    });
}

#[test]
fn seven_products_match_f64() {
    // The matrix unit takes the place of Strassen's step.
    for isa in Isa::ALL.into_iter().filter(|&isa| isa.is_available() && isa != Isa::Amx) {
        let ctx = Context::new(Options { isa: Some(isa), ..Options::default() }).unwrap();
        // Most are deep enough in one direction only.
        for [c_in, c_out, stride, n, h, w] in [
            [512, 128, 1, 2, 9, 11],
            [192, 576, 1, 14, 5, 7],
            [640, 256, 2, 18, 7, 5],
            [1024, 544, 1, 2, 8, 8],
        ] {
            let spec = ConvSpec { c_in, c_out, kernel: 1, stride, padding: 0 };
            let shape = [n, h, w, c_in];
            let (x, weights) = (activations(shape, 1), values(spec.weight_len(), 2));
            let dy = activations(spec.output_shape(shape), 3);
            let what = format!("{spec:?} {shape:?} {isa:?}");
            // Rounding errors are some three times those of a direct sum.
            let tolerance = 3e-5;

            let mut y = activations(dy.shape, 4);
            let stats = forward(&ctx, &spec, Source::Plain(&x), &weights, &mut y, true).unwrap();
            let expected = reference::conv_forward(&spec, shape, &wide(&x.words), &wide(&weights));
            assert!(error(&y.words, &expected) < tolerance, "forward {what}: {}", error(&y.words, &expected));
            let (mean, var) = reference::batch_stats(&expected, c_out);
            assert_eq!(stats.count, dy.words.len() / c_out);
            assert!(error(&stats.mean, &mean) < 1e-4 && error(&stats.var, &var) < 1e-4, "statistics {what}");

            let mut dx = activations(shape, 5);
            let mut expected = reference::conv_backward_data(&spec, shape, &wide(&dy.words), &wide(&weights));
            expected.iter_mut().zip(&dx.words).for_each(|(e, b)| *e += f64::from(*b));
            backward_data(&ctx, &spec, Source::Plain(&dy), &weights, &mut dx, Post::Accumulate);
            assert!(error(&dx.words, &expected) < tolerance, "data {what}: {}", error(&dx.words, &expected));
        }
    }
}

#[test]
fn sources_apply_batch_norm_while_reading() {
    each_isa(|ctx| {
        for stride in [1, 2] {
            sources_apply_batch_norm(ctx, stride);
        }
    });
}

fn sources_apply_batch_norm(ctx: &Context, stride: usize) {
    let spec = ConvSpec { c_in: 20, c_out: 18, kernel: 3, stride, padding: 1 };
    let shape = [3, 9, 8, 20];
    let (raw, grad) = (activations(shape, 1), activations(shape, 2));
    let weights = values(spec.weight_len(), 3);
    let affine = Affine { scale: values(20, 4), shift: values(20, 5) };
    let back = GradAffine { on_grad: values(20, 6), on_raw: values(20, 7), constant: values(20, 8) };
    let relu: Vec<f64> = (raw.words.iter().enumerate())
        .map(|(i, y)| f64::from((y * affine.scale[i % 20] + affine.shift[i % 20]).max(0.0)))
        .collect();
    let linear: Vec<f64> = (raw.words.iter().zip(&grad.words).enumerate())
        .map(|(i, (y, g))| {
            f64::from(g * back.on_grad[i % 20] + y * back.on_raw[i % 20] + back.constant[i % 20])
        })
        .collect();
    let sources = [
        (Source::NormRelu { raw: &raw, affine: &affine }, relu),
        (Source::NormGrad { grad: &grad, raw: &raw, affine: &back }, linear),
    ];
    for (source, values) in sources {
        let expected = reference::conv_forward(&spec, shape, &values, &wide(&weights));
        let mut y = activations(spec.output_shape(shape), 9);
        forward(ctx, &spec, source, &weights, &mut y, false);
        assert!(error(&y.words, &expected) < 1e-5);
        winograd_forward(&spec, source, &weights, false).run(ctx, &mut y);
        assert!(error(&y.words, &expected) < 3e-4);
        if ctx.vectors().matrix_unit().is_some() {
            let pass = winograd_forward(&spec, source, &weights, false);
            Product { plan: split(&spec), ..pass }.run(ctx, &mut y);
            assert!(error(&y.words, &expected) < 2e-5);
        }
    }
}

#[test]
fn a_data_pass_masks_and_sums_for_the_batch_norm_before() {
    for precision in [Precision::F32, Precision::Mixed] {
        each_isa(|ctx| {
            for stride in [1, 2] {
                data_pass_masks_and_sums(ctx, precision, stride);
            }
        });
    }
}

fn data_pass_masks_and_sums(ctx: &Context, precision: Precision, stride: usize) {
    let spec = ConvSpec { c_in: 34, c_out: 16, kernel: 3, stride, padding: 1 };
    let shape = [5, 7, 6, 34];
    let as_stored = |seed: u64, shape: [usize; 4]| {
        let x = activations(shape, seed);
        let mut out = ctx.activations(shape, precision);
        match precision {
            Precision::F32 => x,
            Precision::Mixed => {
                let DataMut::Bf16(bits) = out.data_mut() else { unreachable!("mixed is bf16") };
                bits.iter_mut().zip(&x.words).for_each(|(b, v)| *b = half::bf16::from_f32(*v).to_bits());
                out
            }
        }
    };
    let (raw, dy) = (as_stored(1, shape), as_stored(2, spec.output_shape(shape)));
    let weights = values(spec.weight_len(), 3);
    let affine = Affine { scale: values(34, 4), shift: values(34, 5) };
    let mean = values(34, 6);
    let full = reference::conv_backward_data(&spec, shape, &wide(&dy.to_f32()), &wide(&weights));
    let y = raw.to_f32();
    let masked: Vec<f64> = (full.iter().zip(&y).enumerate())
        .map(|(i, (g, y))| if y * affine.scale[i % 34] + affine.shift[i % 34] > 0.0 { *g } else { 0.0 })
        .collect();
    let post = Post::ReluNorm { raw: &raw, affine: &affine, mean: &mean };
    let tolerance = if precision == Precision::F32 { 3e-4 } else { 2e-2 };
    let unit = ctx.vectors().matrix_unit().map(|_| split(&spec));
    for plan in [None, Some(winograd(&spec, shape, Pass::Data))].into_iter().chain(unit.map(Some)) {
        let mut out = ctx.activations(shape, precision);
        let source = Source::Plain(&dy);
        let sums = match plan {
            Some(plan) => {
                let pass = winograd_data(&spec, shape, source, &weights, post);
                Product { plan, ..pass }.run(ctx, &mut out).0.grad_sums()
            }
            None => backward_data(ctx, &spec, source, &weights, &mut out, post).unwrap(),
        };
        assert!(error(&out.to_f32(), &masked) < tolerance);
        for c in 0..34 {
            let of_channel = || masked.iter().zip(&y).skip(c).step_by(34);
            let sum: f64 = of_channel().map(|(g, _)| g).sum();
            let centred: f64 = of_channel().map(|(g, y)| g * f64::from(y - mean[c])).sum();
            assert!((sums.grad[c] - sum).abs() < 1e-2 && (sums.grad_centred[c] - centred).abs() < 1e-2);
        }
    }
}

#[test]
fn products_of_bf16_are_summed_in_f32() {
    let round = |x: &[f32]| -> Vec<f32> { x.iter().map(|&v| half::bf16::from_f32(v).to_f32()).collect() };
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
        let options = Options { isa: Some(isa), precision: Precision::Mixed, ..Options::default() };
        let ctx = Context::new(options).unwrap();
        for [c_in, c_out, kernel, stride, padding, n, h, w] in [
            [40, 24, 1, 1, 0, 3, 5, 3],
            [32, 50, 1, 2, 0, 5, 7, 7],
            [48, 33, 3, 2, 1, 3, 9, 8],
            [64, 32, 3, 1, 1, 7, 2, 2],
        ] {
            let spec = ConvSpec { c_in, c_out, kernel, stride, padding };
            let shape = [n, h, w, c_in];
            let stored = |shape: [usize; 4], seed: u64| {
                let x = round(&values(shape.iter().product(), seed));
                let mut out = ctx.activations(shape, Precision::Mixed);
                let DataMut::Bf16(bits) = out.data_mut() else { unreachable!("mixed is bf16") };
                bits.iter_mut().zip(&x).for_each(|(b, v)| *b = half::bf16::from_f32(*v).to_bits());
                (out, wide(&x))
            };
            let ((x, wide_x), (dy, wide_dy)) = (stored(shape, 1), stored(spec.output_shape(shape), 2));
            let weights = values(spec.weight_len(), 3);
            let used = wide(&if ctx.bf16_products() { round(&weights) } else { weights.clone() });
            let what = format!("{spec:?} {shape:?} {isa:?}");

            let mut y = ctx.activations(dy.shape, Precision::Mixed);
            forward(&ctx, &spec, Source::Plain(&x), &weights, &mut y, false);
            let expected = reference::conv_forward(&spec, shape, &wide_x, &used);
            // Outputs are rounded to bf16: by up to 2^-8 of values up to seven times the RMS (many are zero in the
            // strided data pass).
            assert!(error(&y.to_f32(), &expected) < 4e-2, "forward {what}");
            let mut dx = ctx.activations(shape, Precision::Mixed);
            backward_data(&ctx, &spec, Source::Plain(&dy), &weights, &mut dx, Post::Store);
            let expected = reference::conv_backward_data(&spec, shape, &wide_dy, &used);
            assert!(error(&dx.to_f32(), &expected) < 4e-2, "data {what}");
            let mut dw = vec![0.0; spec.weight_len()];
            backward_weights(&ctx, &spec, Source::Plain(&x), Source::Plain(&dy), &mut dw);
            let expected = reference::conv_backward_weights(&spec, shape, &wide_x, &wide_dy);
            assert!(error(&dw, &expected) < 1e-5, "weights {what}: {}", error(&dw, &expected));
        }
    }
}

/// A pass in which numbers are cut in two, whether that pays or not.
fn split(spec: &ConvSpec) -> Plan {
    let columns = spec.kernel == 1 && spec.stride > 1;
    let reading = if columns { Reading::Columns } else { Reading::Pixels };
    Plan { algorithm: Algorithm::Direct(reading), products: Products::Split }
}

/// A context with the matrix unit, where there is one.
fn with_matrix_unit() -> Option<Context> {
    Isa::Amx
        .is_available()
        .then(|| Context::new(Options { isa: Some(Isa::Amx), ..Options::default() }).unwrap())
}

#[test]
fn split_products_match_f64() {
    let Some(ctx) = with_matrix_unit() else { return };
    let large = [[32, 64, 3, 1, 1, 17, 14, 14], [64, 24, 1, 1, 0, 40, 7, 9], [128, 70, 3, 1, 1, 1, 7, 7]];
    for [c_in, c_out, kernel, stride, padding, n, h, w] in CONVOLUTIONS.into_iter().chain(large) {
        let spec = ConvSpec { c_in, c_out, kernel, stride, padding };
        let shape = [n, h, w, c_in];
        let (x, weights) = (activations(shape, 1), values(spec.weight_len(), 2));
        let dy = activations(spec.output_shape(shape), 3);
        let what = format!("{spec:?} {shape:?}");
        // What is left of a number that is cut in two is up to 2⁻¹⁸ of it. In a strided data pass many values are zero, and the
        // RMS is small.
        let tolerance = 5e-5;

        let mut y = activations(dy.shape, 4);
        let (direction, finisher) = (Direction::Forward, Finisher::Forward { stats: true });
        let (source, plan) = (Source::Plain(&x), split(&spec));
        let pass = Product {
            spec: &spec,
            input: shape,
            direction,
            source,
            weights: weights.as_slice().into(),
            finisher,
            plan,
        };
        let (partials, counts) = pass.run(&ctx, &mut y);
        let expected = reference::conv_forward(&spec, shape, &wide(&x.words), &wide(&weights));
        assert!(error(&y.words, &expected) < tolerance, "forward {what}: {}", error(&y.words, &expected));
        let (stats, (mean, var)) = (partials.batch_stats(&counts), reference::batch_stats(&expected, c_out));
        assert_eq!(stats.count, dy.words.len() / c_out);
        let scale = (var.iter().sum::<f64>() / c_out as f64).sqrt();
        let of_mean = stats.mean.iter().zip(&mean).map(|(got, mean)| (f64::from(*got) - mean).abs());
        assert!(
            of_mean.fold(0.0, f64::max) < 1e-5 * scale && error(&stats.var, &var) < 1e-4,
            "statistics {what}"
        );

        let mut dx = activations(shape, 5);
        let mut expected = reference::conv_backward_data(&spec, shape, &wide(&dy.words), &wide(&weights));
        let (direction, source) = (Direction::Backward, Source::Plain(&dy));
        let plan = Plan { algorithm: Algorithm::Direct(Reading::Pixels), ..plan };
        let pass = |post| {
            let finisher = Finisher::Backward(post);
            Product {
                spec: &spec,
                input: shape,
                direction,
                source,
                weights: weights.as_slice().into(),
                finisher,
                plan,
            }
        };
        pass(Post::Store).run(&ctx, &mut dx);
        assert!(error(&dx.words, &expected) < tolerance, "data {what}: {}", error(&dx.words, &expected));
        expected.iter_mut().for_each(|e| *e *= 2.0);
        pass(Post::Accumulate).run(&ctx, &mut dx);
        assert!(error(&dx.words, &expected) < tolerance, "data, added, {what}");
        check_inference(&ctx, &spec, shape, split(&spec), tolerance);

        let mut dw = vec![0.25; spec.weight_len()];
        let (x, dy) = (Source::Plain(&x), Source::Plain(&dy));
        Gradient { spec: &spec, x, dy, plan: split(&spec) }.run(&ctx, &mut dw);
        let [wide_x, wide_dy] = [x, dy].map(|source| match source {
            Source::Plain(values) => wide(&values.words),
            _ => unreachable!("both are plain"),
        });
        let mut expected = reference::conv_backward_weights(&spec, shape, &wide_x, &wide_dy);
        expected.iter_mut().for_each(|e| *e += 0.25);
        assert!(error(&dw, &expected) < tolerance, "weights {what}: {}", error(&dw, &expected));
    }
}

#[test]
fn what_is_not_finite_stays_so_when_it_is_cut_in_two() {
    let Some(ctx) = with_matrix_unit() else { return };
    let spec = ConvSpec { c_in: 32, c_out: 16, kernel: 1, stride: 1, padding: 0 };
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut x = activations([1, 3, 3, 32], 1);
        x.words[4 * 32 + 7] = bad;
        let mut y = activations([1, 3, 3, 16], 2);
        let fused = Fused { bias: &[0.0; 16], add: false, relu: true };
        infer(&ctx, &spec, &x, values(spec.weight_len(), 2).as_slice().into(), fused, &mut y);
        for (pixel, channels) in y.words.chunks_exact(16).enumerate() {
            assert!(channels.iter().all(|v| v.is_finite() != (pixel == 4)), "{bad} {pixel} {channels:?}");
        }
    }
}

/// An inference pass, with all that can be fused into it and with nothing, and the same from kept weights.
fn check_inference(ctx: &Context, spec: &ConvSpec, shape: [usize; 4], plan: Plan, tolerance: f64) {
    let (x, weights) = (activations(shape, 1), values(spec.weight_len(), 2));
    let (scale, bias) = (values(spec.c_out, 3), values(spec.c_out, 4));
    let side = activations(spec.output_shape(shape), 5);
    let expected = reference::conv_forward(spec, shape, &wide(&x.words), &wide(&weights));
    for (scaled, add, relu) in [(true, true, true), (true, false, false), (false, false, true)] {
        let kept = Kept::default();
        let weights =
            Weights { values: &weights, scale: scaled.then_some(scale.as_slice()), kept: Some(&kept) };
        let expected: Vec<f64> = (expected.iter().enumerate())
            .map(|(i, &v)| {
                let (c, factor) = (i % spec.c_out, |c: usize| if scaled { f64::from(scale[c]) } else { 1.0 });
                let added = if add { f64::from(side.words[i]) } else { 0.0 } + f64::from(bias[c]);
                let sum = v * factor(c) + added;
                if relu { sum.max(0.0) } else { sum }
            })
            .collect();
        let pass = |weights| {
            let mut out = side.clone();
            let finisher = Finisher::Fused(Fused { bias: &bias, add, relu });
            let (direction, source, input) = (Direction::Forward, Source::Plain(&x), shape);
            Product { spec, input, direction, source, weights, finisher, plan }.run(ctx, &mut out);
            out
        };
        let out = pass(weights);
        let what = format!("{spec:?} {shape:?} {plan} {:?}: {}", ctx.isa(), error(&out.words, &expected));
        assert!(error(&out.words, &expected) < tolerance, "{what}");
        assert!(kept.words() > 0, "{what}");
        assert_eq!(pass(weights), out, "from kept weights: {what}");
        assert_eq!(pass(Weights { kept: None, ..weights }), out, "from weights that are not kept: {what}");
    }
}

fn of_f32(algorithm: Algorithm) -> Plan {
    Plan { algorithm, products: Products::F32 }
}

#[test]
fn inference_passes_match_f64() {
    each_isa(|ctx| {
        for [c_in, c_out, kernel, stride, padding, n, h, w] in CONVOLUTIONS.into_iter().step_by(2) {
            let spec = ConvSpec { c_in, c_out, kernel, stride, padding };
            let shape = [n, h, w, c_in];
            let plan = Plan::choose_kept(&spec, shape, ctx);
            check_inference(ctx, &spec, shape, plan, 1e-5);
        }
        for [c_in, c_out, n, h, w] in WINOGRAD.into_iter().step_by(3) {
            for stride in [1, 2] {
                let spec = ConvSpec { c_in, c_out, kernel: 3, stride, padding: 1 };
                for order in [WinogradOrder::Tiles, WinogradOrder::Panels] {
                    check_inference(ctx, &spec, [n, h, w, c_in], of_f32(Algorithm::Winograd(order)), 3e-4);
                }
            }
        }
        let deep = ConvSpec { c_in: 512, c_out: 128, kernel: 1, stride: 1, padding: 0 };
        check_inference(ctx, &deep, [2, 9, 11, 512], of_f32(Algorithm::Strassen(Reading::Pixels)), 3e-5);
        // Deeper than what is summed at once.
        check_inference(ctx, &deep, [2, 9, 11, 512], of_f32(Algorithm::Direct(Reading::Pixels)), 1e-5);
    });
}
