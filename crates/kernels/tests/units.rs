//! Units against f64, on odd sizes, with every instruction set that runs here.

mod common;

use common::{
    activations, all_bits, block, block_mixed, contexts, error, parameters, round_bf16, slices, values, wide,
};
use std::sync::Arc;

use swav_kernels::net::{
    Backward, BatchNorm1d, Block, BlockKind, GlobalAvgPool, Linear, Ready, RunningStats, Stem, Unit, infer,
};
use swav_kernels::{
    Activations, BatchStats, Checkpointing, Context, ConvSpec, Error, Isa, Options, Precision, reference,
};

const BLOCKS: [(BlockKind, usize, usize, usize, [usize; 3]); 9] = [
    (BlockKind::Basic, 16, 16, 1, [3, 8, 8]),
    (BlockKind::Basic, 16, 32, 2, [2, 14, 14]),
    (BlockKind::Basic, 5, 7, 2, [2, 9, 7]),
    (BlockKind::Basic, 33, 33, 1, [2, 7, 10]),
    (BlockKind::Basic, 48, 48, 1, [5, 4, 4]),
    (BlockKind::Basic, 64, 64, 1, [9, 2, 2]),
    (BlockKind::Bottleneck, 24, 8, 2, [3, 11, 6]),
    (BlockKind::Bottleneck, 64, 16, 1, [2, 14, 14]),
    (BlockKind::Bottleneck, 32, 32, 1, [1, 13, 12]),
];

/// Rounding of f32 sums, and of Winograd's transforms, through a block's three convolutions; relative to RMS.
/// A ReLU whose argument rounds across zero can change a gradient a little more.
const F32_TOLERANCE: f64 = 2e-3;

fn check_block(ctx: &Context, case: usize, tolerance: f64) {
    let (kind, c_in, planes, stride, [n, h, w]) = BLOCKS[case];
    let unit = Block::new(kind, c_in, planes, stride);
    let shape = [n, h, w, c_in];
    let mut x: Vec<f32> = values(n * h * w * c_in, 1).iter().map(|v| v.max(0.0)).collect();
    let params = parameters(&unit, 10);
    let out_shape = unit.output_shape(shape).unwrap();
    let mut grad = values(out_shape.iter().product(), 2);
    if ctx.precision() == Precision::Mixed {
        (x, grad) = (round_bf16(&x), round_bf16(&grad));
    }
    let wide_params: Vec<Vec<f64>> = params.iter().map(|p| wide(p)).collect();
    let (out, grad_in, grads) = block(&unit, shape, &wide(&x), &wide_params, &wide(&grad));

    let input = activations(ctx, shape, &x);
    let (got, saved) = unit.forward_train(ctx, input, &slices(&params)).unwrap();
    let what = format!("{unit:?} on {shape:?}, {:?}, exact {}", ctx.isa(), ctx.exact());
    assert!(error(&got.to_f32(), &out) < tolerance, "output of {what}: {}", error(&got.to_f32(), &out));
    // Gradients are added to what is there.
    let mut got_grads: Vec<Vec<f32>> = params.iter().map(|p| vec![0.5; p.len()]).collect();
    let grad = activations(ctx, out_shape, &grad);
    let got = unit
        .backward(
            ctx,
            Backward {
                saved,
                grad_output: grad,
                params: &slices(&params),
                grads: &mut got_grads,
                want_grad_input: true,
            },
        )
        .unwrap()
        .expect("asked for");
    let e = mean_error(&got.to_f32(), &grad_in);
    assert!(e < tolerance, "input gradient of {what}: {e}");
    for ((got, expected), spec) in got_grads.iter().zip(&grads).zip(unit.parameters()) {
        let got: Vec<f32> = got.iter().map(|g| g - 0.5).collect();
        let e = mean_error(&got, expected);
        assert!(e < tolerance, "gradient of {} of {what}: {e}", spec.name);
    }
}

/// RMS of the difference relative to the RMS expected: robust to a few flipped ReLUs.
fn mean_error(got: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(got.len(), expected.len());
    let rms = |it: &mut dyn Iterator<Item = f64>| it.map(|v| v * v).sum::<f64>().sqrt();
    rms(&mut got.iter().zip(expected).map(|(g, e)| f64::from(*g) - e)) / rms(&mut expected.iter().copied())
}

#[test]
fn blocks_match_f64() {
    for ctx in contexts(Options::default()) {
        (0..BLOCKS.len()).for_each(|case| check_block(&ctx, case, F32_TOLERANCE));
    }
}

#[test]
fn blocks_match_f64_in_mixed_precision() {
    for ctx in contexts(Options { precision: Precision::Mixed, ..Options::default() }) {
        // bf16 rounds by up to 2^-9, several times; sums that nearly cancel (a bias of few values) show it most.
        (0..BLOCKS.len()).for_each(|case| check_block(&ctx, case, 0.25));
    }
}

#[test]
fn checkpointed_blocks_give_the_same_bits() {
    let run = |checkpointing| {
        let ctx = Context::new(Options { checkpointing, ..Options::default() }).unwrap();
        let unit = Block::new(BlockKind::Bottleneck, 32, 16, 2);
        let params = parameters(&unit, 3);
        let input = activations(&ctx, [3, 9, 9, 32], &values(3 * 81 * 32, 4));
        let (out, saved) = unit.forward_train(&ctx, input, &slices(&params)).unwrap();
        let words = saved.words();
        let mut grads: Vec<Vec<f32>> = params.iter().map(|p| vec![0.0; p.len()]).collect();
        let g = unit
            .backward(
                &ctx,
                Backward {
                    saved,
                    grad_output: out,
                    params: &slices(&params),
                    grads: &mut grads,
                    want_grad_input: true,
                },
            )
            .unwrap();
        (words, g, grads)
    };
    let (off, on) = (run(Checkpointing::Off), run(Checkpointing::Blocks));
    assert!(on.0 < off.0);
    assert_eq!(on.1, off.1);
    assert_eq!(all_bits(&on.2), all_bits(&off.2));
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() {
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let ctx = Context::new(Options::default()).unwrap();
            let unit = Block::new(BlockKind::Basic, 32, 64, 2);
            let params = parameters(&unit, 3);
            let input = activations(&ctx, [7, 16, 16, 32], &values(7 * 256 * 32, 4));
            let (out, saved) = unit.forward_train(&ctx, input, &slices(&params)).unwrap();
            let stats = saved.stats().to_vec();
            let mut grads: Vec<Vec<f32>> = params.iter().map(|p| vec![0.0; p.len()]).collect();
            let g = unit
                .backward(
                    &ctx,
                    Backward {
                        saved,
                        grad_output: out.clone(),
                        params: &slices(&params),
                        grads: &mut grads,
                        want_grad_input: true,
                    },
                )
                .unwrap();
            let of_stats = |s: &BatchStats| (all_bits(&[s.mean.clone(), s.var.clone()]), s.count);
            (out, stats.iter().map(of_stats).collect::<Vec<_>>(), g, all_bits(&grads))
        })
    };
    let one = run(1);
    assert_eq!(one, run(2));
    assert_eq!(one, run(5));
}

#[test]
fn a_block_has_the_gradient_of_its_finite_differences() {
    for (kind, c_in, stride) in [(BlockKind::Basic, 3, 2), (BlockKind::Bottleneck, 16, 1)] {
        let unit = Block::new(kind, c_in, 4, stride);
        let shape = [2, 5, 5, c_in];
        let x = values(shape.iter().product(), 5);
        let params = parameters(&unit, 6);
        let out_shape = unit.output_shape(shape).unwrap();
        let weights = values(out_shape.iter().product(), 7);
        let ctx = Context::new(Options { exact: true, ..Options::default() }).unwrap();
        let (out, saved) = unit.forward_train(&ctx, activations(&ctx, shape, &x), &slices(&params)).unwrap();
        let mut grads: Vec<Vec<f32>> = params.iter().map(|p| vec![0.0; p.len()]).collect();
        let args = Backward {
            saved,
            grad_output: Activations::from_f32(out.shape, weights.clone()).unwrap(),
            params: &slices(&params),
            grads: &mut grads,
            want_grad_input: true,
        };
        let dx = unit.backward(&ctx, args).unwrap().unwrap();
        // The loss in f64, where a step can be so small that it crosses no kink of a ReLU.
        let loss = |params: &[Vec<f64>], x: &[f64]| {
            let out = block(&unit, shape, x, params, &wide(&weights)).0;
            out.iter().zip(&weights).map(|(o, w)| o * f64::from(*w)).sum::<f64>()
        };
        let (wide_x, wide_params) = (wide(&x), params.iter().map(|p| wide(p)).collect::<Vec<_>>());
        let step = 1e-6;
        let check = |what: &str, got: f32, up: f64, down: f64| {
            let slope = (up - down) / (2.0 * step);
            assert!((slope - f64::from(got)).abs() < 1e-4, "{what} of {unit:?}: {got} instead of {slope}");
        };
        for (p, spec) in unit.parameters().iter().enumerate() {
            for i in 0..grads[p].len() {
                let mut moved = wide_params.clone();
                moved[p][i] += step;
                let up = loss(&moved, &wide_x);
                moved[p][i] -= 2.0 * step;
                check(&spec.name, grads[p][i], up, loss(&moved, &wide_x));
            }
        }
        for i in 0..x.len() {
            let mut moved = wide_x.clone();
            moved[i] += step;
            let up = loss(&wide_params, &moved);
            moved[i] -= 2.0 * step;
            check("input", dx.words[i], up, loss(&wide_params, &moved));
        }
    }
}

/// What is left when all roundings to bf16 are made in f64 as well: values that f32 puts on the other side of a rounding
/// or of a ReLU.
const MIXED_TOLERANCE: f64 = 1e-2;

#[test]
fn mixed_gradients_match_an_emulation_in_f64() {
    for ctx in contexts(Options { precision: Precision::Mixed, ..Options::default() }) {
        for (kind, c_in, planes, stride, [n, h, w]) in BLOCKS {
            let unit = Block::new(kind, c_in, planes, stride);
            let shape = [n, h, w, c_in];
            let x: Vec<f32> = values(n * h * w * c_in, 1).iter().map(|v| v.max(0.0)).collect();
            let params = parameters(&unit, 10);
            let out_shape = unit.output_shape(shape).unwrap();
            let (x, grad) = (round_bf16(&x), round_bf16(&values(out_shape.iter().product(), 2)));
            let wide_params: Vec<Vec<f64>> = params.iter().map(|p| wide(p)).collect();
            let (out, grad_in, grads) =
                block_mixed(&ctx, &unit, shape, &wide(&x), &wide_params, &wide(&grad));
            let (got, saved) =
                unit.forward_train(&ctx, activations(&ctx, shape, &x), &slices(&params)).unwrap();
            let what = format!("{unit:?} on {shape:?}, {:?}, exact {}", ctx.isa(), ctx.exact());
            let close = |name: &str, got: &[f32], expected: &[f64]| {
                let e = mean_error(got, expected);
                assert!(e < MIXED_TOLERANCE, "{name} of {what}: {e}");
            };
            close("output", &got.to_f32(), &out);
            let mut got_grads: Vec<Vec<f32>> = params.iter().map(|p| vec![0.0; p.len()]).collect();
            let args = Backward {
                saved,
                grad_output: activations(&ctx, out_shape, &grad),
                params: &slices(&params),
                grads: &mut got_grads,
                want_grad_input: true,
            };
            let dx = unit.backward(&ctx, args).unwrap().unwrap();
            close("input gradient", &dx.to_f32(), &grad_in);
            for ((got, expected), spec) in got_grads.iter().zip(&grads).zip(unit.parameters()) {
                close(&spec.name, got, expected);
            }
        }
    }
}

fn check_stem(ctx: &Context, unit: &Stem, pool: bool, shape: [usize; 4]) {
    let conv = *unit.conv();
    let x = values(shape.iter().product(), 1);
    let params = parameters(unit, 2);
    let p: Vec<Vec<f64>> = params.iter().map(|p| wide(p)).collect();
    let raw = reference::conv_forward(&conv, shape, &wide(&x), &p[0]);
    let (mean, var) = reference::batch_stats(&raw, conv.c_out);
    let normed = reference::batch_norm(&raw, &mean, &var, &p[1], &p[2]);
    let relu: Vec<f64> = normed.iter().map(|v| v.max(0.0)).collect();
    let (out, index) = if pool {
        reference::max_pool(&relu, conv.output_shape(shape))
    } else {
        (relu.clone(), (0..relu.len()).collect())
    };
    let grad = values(out.len(), 3);
    let mut g = vec![0.0; relu.len()];
    for (at, v) in index.iter().zip(&grad) {
        g[*at] += if relu[*at] > 0.0 { f64::from(*v) } else { 0.0 };
    }
    let (dy, d_gamma, d_beta) = reference::batch_norm_backward(&raw, &g, &p[1]);
    let dw = reference::conv_backward_weights(&conv, shape, &wide(&x), &dy);
    let dx = reference::conv_backward_data(&conv, shape, &dy, &p[0]);

    let input = Activations::from_f32(shape, x.clone()).unwrap();
    let (got, saved) = unit.forward_train(ctx, input.clone(), &slices(&params)).unwrap();
    assert_eq!(got.shape, unit.output_shape(shape).unwrap());
    assert!(error(&got.to_f32(), &out) < 1e-4, "{unit:?} {shape:?} {}", error(&got.to_f32(), &out));
    let stats = saved.stats()[0].clone();
    assert!(error(&stats.mean, &mean) < 1e-4 && error(&stats.var, &var) < 1e-4);
    let mut grads: Vec<Vec<f32>> = params.iter().map(|p| vec![0.0; p.len()]).collect();
    let grad = activations(ctx, got.shape, &grad);
    let got_dx = unit
        .backward(
            ctx,
            Backward {
                saved,
                grad_output: grad,
                params: &slices(&params),
                grads: &mut grads,
                want_grad_input: true,
            },
        )
        .unwrap()
        .unwrap();
    for (got, expected) in
        [(&got_dx.words, &dx), (&grads[0], &dw), (&grads[1], &d_gamma), (&grads[2], &d_beta)]
    {
        assert!(
            mean_error(got, expected) < F32_TOLERANCE,
            "{unit:?} {shape:?} {}",
            mean_error(got, expected)
        );
    }
    // With the batch's own statistics as running ones, inference computes the same.
    let running = [RunningStats { mean: &stats.mean, var: &stats.var }];
    let inferred = unit.forward_infer(ctx, &input, &slices(&params), &running).unwrap();
    assert!(error(&inferred.to_f32(), &out) < 1e-4);
}

#[test]
fn stems_match_f64() {
    for ctx in contexts(Options::default()) {
        check_stem(&ctx, &Stem::imagenet(24), true, [2, 21, 18, 3]);
        check_stem(&ctx, &Stem::cifar(16), false, [3, 9, 11, 3]);
        let five = ConvSpec { c_in: 2, c_out: 5, kernel: 5, stride: 3, padding: 1 };
        check_stem(&ctx, &Stem::new(five, false), false, [2, 12, 13, 2]);
    }
}

#[test]
fn heads_match_f64() {
    for ctx in contexts(Options::default()) {
        let (n, c_in, c_out) = (13, 37, 21);
        let unit = Linear::new(c_in, c_out, true);
        let (x, params, grad) = (values(n * c_in, 1), parameters(&unit, 2), values(n * c_out, 3));
        let spec = ConvSpec { c_in, c_out, kernel: 1, stride: 1, padding: 0 };
        let (shape, w) = ([n, 1, 1, c_in], wide(&params[0]));
        let mut y = reference::conv_forward(&spec, shape, &wide(&x), &w);
        y.iter_mut().enumerate().for_each(|(i, y)| *y += f64::from(params[1][i % c_out]));
        let input = Activations::from_f32(shape, x.clone()).unwrap();
        let (out, saved) = unit.forward_train(&ctx, input, &slices(&params)).unwrap();
        assert!(error(&out.words, &y) < 1e-5);
        let mut grads: Vec<Vec<f32>> = params.iter().map(|p| vec![0.0; p.len()]).collect();
        let g = Activations::from_f32([n, 1, 1, c_out], grad.clone()).unwrap();
        let dx = unit
            .backward(
                &ctx,
                Backward {
                    saved,
                    grad_output: g,
                    params: &slices(&params),
                    grads: &mut grads,
                    want_grad_input: true,
                },
            )
            .unwrap()
            .unwrap();
        assert!(error(&dx.words, &reference::conv_backward_data(&spec, shape, &wide(&grad), &w)) < 1e-5);
        let dw = reference::conv_backward_weights(&spec, shape, &wide(&x), &wide(&grad));
        assert!(error(&grads[0], &dw) < 1e-5);
        let db: Vec<f64> = (0..c_out).map(|c| (0..n).map(|i| f64::from(grad[i * c_out + c])).sum()).collect();
        assert!(error(&grads[1], &db) < 1e-5);

        for relu in [false, true] {
            let unit = BatchNorm1d::new(c_in, relu);
            let params = parameters(&unit, 5);
            let (gamma, beta) = (wide(&params[0]), wide(&params[1]));
            let (mean, var) = reference::batch_stats(&wide(&x), c_in);
            let mut y = reference::batch_norm(&wide(&x), &mean, &var, &gamma, &beta);
            let grad = values(n * c_in, 6);
            let masked: Vec<f64> = grad
                .iter()
                .zip(&y)
                .map(|(g, y)| if relu && *y <= 0.0 { 0.0 } else { f64::from(*g) })
                .collect();
            y.iter_mut().for_each(|y| *y = if relu { y.max(0.0) } else { *y });
            let input = Activations::from_f32(shape, x.clone()).unwrap();
            let (out, saved) = unit.forward_train(&ctx, input, &slices(&params)).unwrap();
            assert!(error(&out.words, &y) < 1e-4);
            let mut grads: Vec<Vec<f32>> = params.iter().map(|p| vec![0.0; p.len()]).collect();
            let g = Activations::from_f32(shape, grad).unwrap();
            let got = unit
                .backward(
                    &ctx,
                    Backward {
                        saved,
                        grad_output: g,
                        params: &slices(&params),
                        grads: &mut grads,
                        want_grad_input: true,
                    },
                )
                .unwrap()
                .unwrap();
            let (dx, d_gamma, d_beta) = reference::batch_norm_backward(&wide(&x), &masked, &gamma);
            assert!(error(&got.words, &dx) < 1e-4);
            assert!(error(&grads[0], &d_gamma) < 1e-4 && error(&grads[1], &d_beta) < 1e-4);
        }
    }
}

#[test]
fn average_pooling_is_a_mean() {
    for ctx in contexts(Options::default()) {
        let x = values(2 * 3 * 5 * 19, 1);
        let input = Activations::from_f32([2, 3, 5, 19], x.clone()).unwrap();
        let (out, saved) = GlobalAvgPool.forward_train(&ctx, input, &[]).unwrap();
        let expected: Vec<f64> = (0..2 * 19)
            .map(|i| (0..15).map(|p| f64::from(x[(i / 19 * 15 + p) * 19 + i % 19])).sum::<f64>() / 15.0)
            .collect();
        assert!(error(&out.words, &expected) < 1e-5);
        let g = GlobalAvgPool
            .backward(
                &ctx,
                Backward { saved, grad_output: out, params: &[], grads: &mut [], want_grad_input: true },
            )
            .unwrap()
            .unwrap();
        let spread: Vec<f64> =
            (0..2 * 15 * 19).map(|i| expected[i / (15 * 19) * 19 + i % 19] / 15.0).collect();
        assert!(error(&g.words, &spread) < 1e-5);
    }
}

#[test]
fn wrong_shapes_are_errors() {
    let ctx = Context::new(Options::default()).unwrap();
    let unit = Block::new(BlockKind::Basic, 4, 4, 1);
    let params = parameters(&unit, 1);
    let make = |shape: [usize; 4]| Activations::from_f32(shape, vec![0.0; shape.iter().product()]).unwrap();
    let shape_error = |r: Result<(Activations, swav_kernels::net::Saved), Error>| {
        assert!(matches!(r, Err(Error::Shape { .. })));
    };
    shape_error(unit.forward_train(&ctx, make([1, 4, 4, 3]), &slices(&params)));
    shape_error(unit.forward_train(&ctx, make([1, 4, 4, 4]), &slices(&params[1..])));
    let one = unit.forward_train(&ctx, make([1, 1, 1, 4]), &slices(&params));
    assert!(matches!(one, Err(Error::TooFewForBatchNorm { got: 1 })));
    let (_, saved) = unit.forward_train(&ctx, make([1, 4, 4, 4]), &slices(&params)).unwrap();
    let mut grads: Vec<Vec<f32>> = params.iter().map(|p| vec![0.0; p.len()]).collect();
    let wrong = unit.backward(
        &ctx,
        Backward {
            saved,
            grad_output: make([1, 4, 3, 4]),
            params: &slices(&params),
            grads: &mut grads,
            want_grad_input: true,
        },
    );
    assert!(matches!(wrong, Err(Error::Shape { .. })));
}

/// A unit with parameters and running statistics, and what becomes of it for inference.
struct Inferring {
    unit: Box<dyn Unit>,
    params: Vec<Arc<Vec<f32>>>,
    running: Vec<[Vec<f32>; 2]>,
}

impl Inferring {
    fn new(unit: impl Unit + 'static, seed: u64) -> Self {
        let params = parameters(&unit, seed).into_iter().map(Arc::new).collect();
        let running = unit.norms().into_iter().map(|norm| {
            let [mean, var] = [values(norm.channels, seed + 50), values(norm.channels, seed + 60)];
            [mean.iter().map(|v| 0.3 * v).collect(), var.iter().map(|v| 1.0 + 0.3 * v.abs()).collect()]
        });
        Self { running: running.collect(), unit: Box::new(unit), params }
    }

    fn running(&self) -> Vec<RunningStats<'_>> {
        self.running.iter().map(|[mean, var]| RunningStats { mean, var }).collect()
    }

    fn ready(&self, ctx: &Context) -> Box<dyn Ready> {
        self.unit.ready(ctx, &self.params, &self.running()).unwrap()
    }

    fn unfolded(&self, ctx: &Context, input: &Activations) -> Activations {
        let params: Vec<&[f32]> = self.params.iter().map(|values| values.as_slice()).collect();
        self.unit.forward_infer(ctx, input, &params, &self.running()).unwrap()
    }
}

/// A network of all kinds of units, for images of 40 by 44 pixels.
fn network() -> Vec<Inferring> {
    let block =
        |kind, c_in, planes, stride, seed| Inferring::new(Block::new(kind, c_in, planes, stride), seed);
    vec![
        Inferring::new(Stem::imagenet(32), 1),
        block(BlockKind::Bottleneck, 32, 16, 1, 100),
        block(BlockKind::Basic, 64, 96, 2, 200),
        block(BlockKind::Basic, 96, 96, 1, 300),
        Inferring::new(GlobalAvgPool, 400),
        Inferring::new(Linear::new(96, 40, true), 500),
        Inferring::new(BatchNorm1d::new(40, true), 600),
        Inferring::new(Linear::new(40, 7, false), 700),
    ]
}

fn infer_all(ctx: &Context, ready: &[Box<dyn Ready>], images: &[f32], shape: [usize; 4]) -> Activations {
    let units: Vec<&dyn Ready> = ready.iter().map(AsRef::as_ref).collect();
    infer(ctx, &units, images, shape).unwrap()
}

/// Whether numbers may be cut in two for the matrix unit.
fn cuts_in_two(ctx: &Context) -> bool {
    ctx.isa() == Isa::Amx && !ctx.exact()
}

#[test]
fn folded_units_give_what_unfolded_ones_give() {
    for exact in [true, false] {
        for ctx in contexts(Options { exact, ..Options::default() }) {
            for (i, (kind, c_in, planes, stride, [n, h, w])) in BLOCKS.into_iter().enumerate() {
                let block = Inferring::new(Block::new(kind, c_in, planes, stride), 10 * i as u64);
                let input = activations(&ctx, [n, h, w, c_in], &values(n * h * w * c_in, 1));
                let expected = block.unfolded(&ctx, &input);
                let out = block.ready(&ctx).run(&ctx, input).unwrap();
                assert_eq!(out.shape, expected.shape);
                let error = error(&out.words, &wide(&expected.words));
                // The algorithm may be another one, since kept weights cost less.
                let limit = if cuts_in_two(&ctx) { 1e-4 } else { 2e-5 };
                assert!(
                    error < if exact { limit } else { 1e-3 },
                    "{:?} {:?}: {error}",
                    block.unit,
                    ctx.isa()
                );
            }
        }
    }
}

#[test]
fn a_folded_network_gives_what_an_unfolded_one_gives() {
    let shape = [5, 40, 44, 3];
    let images = values(shape.iter().product(), 3);
    for precision in [Precision::F32, Precision::Mixed] {
        for ctx in contexts(Options { precision, exact: true, ..Options::default() }) {
            let network = network();
            let input = Activations::from_f32(shape, images.clone()).unwrap();
            let expected = network.iter().fold(input, |flow, unit| unit.unfolded(&ctx, &flow));
            let ready: Vec<_> = network.iter().map(|unit| unit.ready(&ctx)).collect();
            let out = infer_all(&ctx, &ready, &images, shape);
            assert_eq!(out.shape, [5, 1, 1, 7]);
            let error = error(&out.words, &wide(&expected.words));
            assert!(
                error < if cuts_in_two(&ctx) { 1e-4 } else { 1e-5 },
                "{precision:?} {:?}: {error}",
                ctx.isa()
            );
            let kept: usize = ready.iter().map(|unit| unit.words()).sum();
            assert!(precision == Precision::Mixed || kept > 96 * 96 * 9);
        }
    }
}

/// Images whose feature maps are too large to be worked on at once give the same as one by one.
#[test]
fn large_images_are_worked_on_a_few_at_a_time() {
    let ctx = Context::new(Options { exact: true, ..Options::default() }).unwrap();
    let shape = [3, 380, 350, 3];
    let images = values(shape.iter().product(), 3);
    let network = [Inferring::new(Stem::cifar(20), 1), Inferring::new(GlobalAvgPool, 2)];
    let ready: Vec<_> = network.iter().map(|unit| unit.ready(&ctx)).collect();
    let out = infer_all(&ctx, &ready, &images, shape);
    let one = images.len() / 3;
    for (i, image) in images.chunks(one).enumerate() {
        let alone = infer_all(&ctx, &ready, image, [1, 380, 350, 3]);
        assert_eq!(all_bits(&[alone.words]), all_bits(&[out.words[i * 20..(i + 1) * 20].to_vec()]));
    }
    let units: Vec<&dyn Ready> = ready.iter().map(AsRef::as_ref).collect();
    assert!(matches!(infer(&ctx, &units, &images[1..], shape), Err(Error::Shape { .. })));
    assert!(matches!(infer(&ctx, &units, &images[..one], [1, 350, 380 * 3, 1]), Err(Error::Shape { .. })));
}

#[test]
fn inference_gives_the_same_bits_on_any_threads_and_from_several() {
    let shape = [6, 40, 44, 3];
    let images = values(shape.iter().product(), 3);
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let ctx = Context::new(Options::default()).unwrap();
            let ready: Vec<_> = network().iter().map(|unit| unit.ready(&ctx)).collect();
            // None is packed yet: all of them want to.
            let outputs = std::thread::scope(|scope| {
                let both = [(); 2].map(|()| scope.spawn(|| infer_all(&ctx, &ready, &images, shape)));
                both.map(|thread| thread.join().unwrap())
            });
            let again = infer_all(&ctx, &ready, &images, shape);
            assert!(outputs.iter().all(|output| *output == again));
            again
        })
    };
    let one = run(1);
    assert_eq!(one, run(2));
    assert_eq!(one, run(5));
}
