//! `cargo xtask bench kernels`: GFLOP/s of the CPU kernels by layer and pass, with the share of measured peak, and
//! how a whole block scales with threads.

use std::time::Instant;

use anyhow::{Context as _, bail};
use serde_json::json;
use swav_kernels::net::{Backward, Block, BlockKind, ParamKind, Stem, Unit, plans};
use swav_kernels::{Activations, Context, ConvSpec, Isa, Options, Precision, ops, peak_flops};

/// Measure the CPU kernels by layer and pass.
#[derive(clap::Args)]
pub struct Args {
    /// Threads; 0 takes all cores.
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// Seconds for each layer.
    #[arg(long, default_value_t = 0.5)]
    seconds: f64,
    /// Storage of activations: f32 or mixed.
    #[arg(long, default_value = "f32")]
    precision: String,
    /// Instruction set: amx, avx512, avx2, neon or portable; the best one by default.
    #[arg(long)]
    isa: Option<String>,
    /// Without Strassen's and Winograd's algorithms.
    #[arg(long)]
    exact: bool,
    /// With the matrix unit, where there is one.
    #[arg(long)]
    matrix_unit: bool,
    /// Print how each convolution of ResNet-18 and ResNet-50 is computed, and measure nothing.
    #[arg(long)]
    plan: bool,
}

/// Images, side, channels in, channels out, kernel, stride: the layers of ResNets on images of 32, 28 and 224 pixels.
const LAYERS: [[usize; 6]; 20] = [
    [64, 32, 3, 64, 3, 1],
    [64, 32, 64, 64, 3, 1],
    [64, 32, 64, 128, 3, 2],
    [64, 16, 128, 128, 3, 1],
    [64, 8, 256, 256, 3, 1],
    [64, 4, 512, 512, 3, 1],
    [128, 2, 512, 512, 3, 1],
    [128, 28, 16, 16, 3, 1],
    [128, 14, 32, 32, 3, 1],
    [128, 7, 64, 64, 3, 1],
    [128, 4, 128, 128, 3, 1],
    [8, 224, 3, 64, 7, 2],
    [8, 56, 64, 256, 1, 1],
    [8, 56, 256, 64, 1, 1],
    [8, 56, 64, 64, 3, 1],
    [8, 28, 512, 128, 1, 1],
    [8, 14, 256, 1024, 1, 1],
    [8, 14, 256, 256, 3, 1],
    [8, 28, 256, 256, 3, 2],
    [8, 7, 512, 2048, 1, 1],
];

/// Runs the benchmark.
pub fn run(args: Args) -> anyhow::Result<()> {
    let precision = match args.precision.as_str() {
        "f32" => Precision::F32,
        "mixed" => Precision::Mixed,
        other => bail!("precision {other}: expected f32 or mixed"),
    };
    let isa = match &args.isa {
        None => None,
        Some(name) => {
            let found = Isa::ALL.into_iter().find(|isa| isa.name() == name);
            Some(found.with_context(|| {
                format!("instruction set {name}: expected amx, avx512, avx2, neon or portable")
            })?)
        }
    };
    let Args { exact, matrix_unit, .. } = args;
    let options = Options { precision, exact, matrix_unit, isa, ..Options::default() };
    if args.plan {
        return print_plans(&Context::new(options)?);
    }
    let pool = rayon::ThreadPoolBuilder::new().num_threads(args.threads).build()?;
    let rows = pool.install(|| layers(options, args.seconds))?;
    let scaling = scaling(options, pool.current_num_threads())?;
    let ctx = Context::new(options)?;
    let summary = json!({
        "mode": "kernels", "isa": ctx.isa().name(), "precision": args.precision, "exact": exact,
        "matrix_unit": matrix_unit,
        "threads": pool.current_num_threads(), "layers": rows, "scaling": scaling,
    });
    println!("{summary}");
    Ok(())
}

/// Prints the algorithm of each pass of each convolution of networks as they are usually trained.
fn print_plans(ctx: &Context) -> anyhow::Result<()> {
    let networks = [
        ("ResNet-18, 32 images of 32 pixels", BlockKind::Basic, [2, 2, 2, 2], [32, 32]),
        ("ResNet-50, 4 images of 224 pixels", BlockKind::Bottleneck, [3, 4, 6, 3], [4, 224]),
    ];
    for (name, kind, stages, [images, side]) in networks {
        let stem = if side > 64 { Stem::imagenet(64) } else { Stem::cifar(64) };
        let mut units: Vec<Box<dyn Unit>> = vec![Box::new(stem)];
        let mut channels = 64;
        for (stage, block) in (0..4).flat_map(|stage| (0..stages[stage]).map(move |block| (stage, block))) {
            let (planes, stride) = (64 << stage, if stage > 0 && block == 0 { 2 } else { 1 });
            units.push(Box::new(Block::new(kind, channels, planes, stride)));
            channels = planes * kind.expansion();
        }
        println!("{name} ({}):", ctx.isa().name());
        for (conv, plans) in plans(ctx, units.iter().map(AsRef::as_ref), [images, side, side, 3])? {
            let ([_, h, w, c], spec) = (conv.input, conv.spec);
            let layer =
                format!("{h}x{w} {c}->{} {}x{}/{}", spec.c_out, spec.kernel, spec.kernel, spec.stride);
            println!("{layer:>28}  {:>20} {:>20} {:>20}", plans[0], plans[1], plans[2]);
        }
    }
    Ok(())
}

fn noise(n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 7919) % 1001) as f32 / 500.0 - 1.0).collect()
}

/// Noise, stored as a precision asks for.
fn activations(shape: [usize; 4], precision: Precision) -> Result<Activations, swav_kernels::Error> {
    let values = noise(shape.iter().product());
    let words = match precision {
        Precision::F32 => values,
        // Two bf16 a word, cut off rather than rounded: it is noise.
        Precision::Mixed => (values.chunks(2))
            .map(|pair| {
                let high = pair.get(1).map_or(0, |v| v.to_bits() & 0xffff_0000);
                f32::from_bits(pair[0].to_bits() >> 16 | high)
            })
            .collect(),
    };
    Activations::from_words(shape, precision, words)
}

/// Times all layers; prints a table and returns its rows.
fn layers(options: Options, seconds: f64) -> anyhow::Result<Vec<serde_json::Value>> {
    let ctx = Context::new(options)?;
    let peak = peak_flops(&ctx);
    let operands = if ctx.bf16_products() { "bf16" } else { "f32" };
    println!("peak of the product tile: {:.0} GFLOP/s ({}, {operands})", peak / 1e9, ctx.isa().name());
    println!("{:>34}  {:>16} {:>16} {:>16}", "layer", "forward", "data", "weights");
    let mut rows = Vec::new();
    for [images, side, c_in, c_out, kernel, stride] in LAYERS {
        let spec = ConvSpec { c_in, c_out, kernel, stride, padding: kernel / 2 };
        let shape = [images, side, side, c_in];
        // The images are f32 in either precision.
        let x = activations(shape, if c_in == 3 { Precision::F32 } else { options.precision })?;
        let out = spec.output_shape(shape);
        let dy = activations(out, options.precision)?;
        let weights = noise(spec.weight_len());
        let mut grad = vec![0.0; spec.weight_len()];
        let mut best = [f64::MAX; 3];
        let begin = Instant::now();
        let mut runs = 0;
        while runs < 2 || begin.elapsed().as_secs_f64() < seconds {
            for (pass, best) in best.iter_mut().enumerate() {
                let start = Instant::now();
                match pass {
                    0 => ctx.recycle(ops::conv_forward(&ctx, &spec, &x, &weights)?),
                    // The images themselves need no gradient.
                    1 if c_in == 3 => continue,
                    1 => ctx.recycle(ops::conv_backward_data(&ctx, &spec, shape, &dy, &weights)?),
                    _ => ops::conv_backward_weights(&ctx, &spec, &x, &dy, &mut grad)?,
                }
                *best = best.min(start.elapsed().as_secs_f64());
            }
            runs += 1;
        }
        let rate = best.map(|s| if s == f64::MAX { 0.0 } else { spec.flops(shape) / s });
        let name = format!("{images}x{side}x{side} {c_in}->{c_out} {kernel}x{kernel}/{stride}");
        let cell = |r: f64| format!("{:.0} ({:.0}%)", r / 1e9, 100.0 * r / peak);
        println!("{name:>34}  {:>16} {:>16} {:>16}", cell(rate[0]), cell(rate[1]), cell(rate[2]));
        rows.push(json!({
            "layer": name, "peak_gflops": peak / 1e9,
            "forward_gflops": rate[0] / 1e9, "data_gflops": rate[1] / 1e9, "weights_gflops": rate[2] / 1e9,
        }));
    }
    println!(
        "Shares above 100% are Winograd's savings, or the matrix unit's: rates count the textbook algorithm's operations, and the\n\
         peak is that of vectors."
    );
    Ok(rows)
}

/// A block's step with one thread and with all, and the serial share that Amdahl's law gives for the difference.
fn scaling(options: Options, threads: usize) -> anyhow::Result<serde_json::Value> {
    let mut seconds = Vec::new();
    for threads in [1, threads] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
        seconds.push(pool.install(|| block_seconds(options))?);
    }
    let speedup = seconds[0] / seconds[1];
    let serial = match threads {
        1 => 0.0,
        n => ((n as f64 / speedup - 1.0) / (n as f64 - 1.0)).max(0.0),
    };
    println!(
        "basic block, 64x16x16x128: {:.2} ms with 1 thread, {:.2} ms with {threads}: {speedup:.2} times; \
         serial share {:.1}% (Amdahl), so 16 threads would give {:.1} times",
        seconds[0] * 1e3,
        seconds[1] * 1e3,
        serial * 100.0,
        1.0 / (serial + (1.0 - serial) / 16.0),
    );
    Ok(
        json!({"one_thread_s": seconds[0], "all_threads_s": seconds[1], "speedup": speedup, "serial_share": serial}),
    )
}

/// The best time of a block's forward and backward pass.
fn block_seconds(options: Options) -> anyhow::Result<f64> {
    let ctx = Context::new(options)?;
    let unit = Block::new(BlockKind::Basic, 128, 128, 1);
    let values: Vec<Vec<f32>> = (unit.parameters().iter())
        .map(|p| match p.kind {
            ParamKind::Conv => noise(p.len()).iter().map(|v| v * 0.05).collect(),
            ParamKind::NormWeight => vec![1.0; p.len()],
            _ => vec![0.0; p.len()],
        })
        .collect();
    let params: Vec<&[f32]> = values.iter().map(Vec::as_slice).collect();
    let mut grads: Vec<Vec<f32>> = values.iter().map(|v| vec![0.0; v.len()]).collect();
    let mut best = f64::MAX;
    for _ in 0..12 {
        let mut input = ctx.activations([64, 16, 16, 128], ctx.precision());
        // Small positive numbers in either precision.
        input.words.fill(f32::from_bits(0x3f10_3f20));
        let begin = Instant::now();
        let (out, saved) = unit.forward_train(&ctx, input, &params)?;
        if let Some(grad) = unit.backward(
            &ctx,
            Backward { saved, grad_output: out, params: &params, grads: &mut grads, want_grad_input: true },
        )? {
            ctx.recycle(grad);
        }
        best = best.min(begin.elapsed().as_secs_f64());
    }
    Ok(best)
}
