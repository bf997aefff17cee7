//! The CPU kernels: the three passes of typical convolutions, and whole residual blocks.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use swav_kernels::net::{Backward, Block, BlockKind, ParamKind, Unit};
use swav_kernels::{Activations, Context, ConvSpec, Options, Precision, ops};

fn noise(n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 7919) % 1001) as f32 / 500.0 - 1.0).collect()
}

/// Images, side, channels in, channels out, kernel, stride.
const LAYERS: [[usize; 6]; 4] =
    [[64, 32, 64, 64, 3, 1], [128, 28, 16, 16, 3, 1], [8, 14, 256, 1024, 1, 1], [8, 28, 256, 256, 3, 2]];

fn convolutions(c: &mut Criterion) {
    let ctx = Context::new(Options::default()).expect("the best instruction set is available");
    let mut group = c.benchmark_group("convolution");
    group.sample_size(10);
    for [images, side, c_in, c_out, kernel, stride] in LAYERS {
        let spec = ConvSpec { c_in, c_out, kernel, stride, padding: kernel / 2 };
        let shape = [images, side, side, c_in];
        let x = Activations::from_f32(shape, noise(shape.iter().product())).expect("one value an element");
        let out = spec.output_shape(shape);
        let dy = Activations::from_f32(out, noise(out.iter().product())).expect("one value an element");
        let weights = noise(spec.weight_len());
        let mut grad = vec![0.0; spec.weight_len()];
        group.throughput(Throughput::Elements(spec.flops(shape) as u64));
        let name = format!("{images}x{side}x{side} {c_in}->{c_out} {kernel}x{kernel}/{stride}");
        group.bench_function(BenchmarkId::new("forward", &name), |b| {
            b.iter(|| ctx.recycle(ops::conv_forward(&ctx, &spec, &x, &weights).expect("shapes fit")));
        });
        group.bench_function(BenchmarkId::new("data", &name), |b| {
            b.iter(|| {
                ctx.recycle(ops::conv_backward_data(&ctx, &spec, shape, &dy, &weights).expect("shapes fit"));
            });
        });
        group.bench_function(BenchmarkId::new("weights", &name), |b| {
            b.iter(|| ops::conv_backward_weights(&ctx, &spec, &x, &dy, &mut grad).expect("shapes fit"));
        });
    }
    group.finish();
}

fn blocks(c: &mut Criterion) {
    let mut group = c.benchmark_group("block, forward and backward");
    group.sample_size(10);
    let cases = [
        ("basic 64x16x16x128", Block::new(BlockKind::Basic, 128, 128, 1), [64, 16, 16, 128]),
        ("bottleneck 8x28x28x512", Block::new(BlockKind::Bottleneck, 512, 128, 1), [8, 28, 28, 512]),
    ];
    for precision in [Precision::F32, Precision::Mixed] {
        let ctx =
            Context::new(Options { precision, ..Options::default() }).expect("the best set is available");
        for (name, unit, shape) in &cases {
            let values: Vec<Vec<f32>> = (unit.parameters().iter())
                .map(|p| match p.kind {
                    ParamKind::Conv => noise(p.len()).iter().map(|v| v * 0.05).collect(),
                    ParamKind::NormWeight => vec![1.0; p.len()],
                    _ => vec![0.0; p.len()],
                })
                .collect();
            let params: Vec<&[f32]> = values.iter().map(Vec::as_slice).collect();
            let mut grads: Vec<Vec<f32>> = values.iter().map(|v| vec![0.0; v.len()]).collect();
            group.bench_function(BenchmarkId::new(*name, format!("{precision:?}")), |b| {
                b.iter(|| {
                    let mut input = ctx.activations(*shape, precision);
                    // Small positive numbers in either precision.
                    input.words.fill(f32::from_bits(0x3f10_3f20));
                    let (out, saved) = unit.forward_train(&ctx, input, &params).expect("shapes fit");
                    let grad = unit
                        .backward(
                            &ctx,
                            Backward {
                                saved,
                                grad_output: out,
                                params: &params,
                                grads: &mut grads,
                                want_grad_input: true,
                            },
                        )
                        .expect("shapes fit");
                    if let Some(grad) = black_box(grad) {
                        ctx.recycle(grad);
                    }
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, convolutions, blocks);
criterion_main!(benches);
