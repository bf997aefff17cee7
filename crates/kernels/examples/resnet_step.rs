//! Times one training step (forward and backward) of a ResNet's backbone on random images, group by group, as
//! multi-crop training runs it; with `--profile` also by operation, with `--matrix-unit` on that where there is one.
//!
//! `cargo run --release -p swav-kernels --example resnet_step -- 18 cifar 64 2x32+4x16 32 f32 winograd`

use std::collections::BTreeMap;
use std::time::Instant;

use swav_kernels::net::{Backward, Block, BlockKind, GlobalAvgPool, ParamKind, Stem, Unit};
use swav_kernels::{Checkpointing, Context, Error, Options, Precision, profile};

#[global_allocator]
static ALLOCATOR: swav_kernels::AlignedAllocator = swav_kernels::AlignedAllocator;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let get = |i: usize, default: &str| args.get(i).cloned().unwrap_or_else(|| default.into());
    let (arch, stem) = (get(0, "18"), get(1, "cifar"));
    let width: usize = get(2, "64").parse()?;
    let groups: Vec<(usize, usize)> = get(3, "2x32+4x16")
        .split('+')
        .filter_map(|g| g.split_once('x').and_then(|(n, s)| Some((n.parse().ok()?, s.parse().ok()?))))
        .collect();
    let batch: usize = get(4, "32").parse()?;
    let precision = if get(5, "f32") == "mixed" { Precision::Mixed } else { Precision::F32 };
    let exact = get(6, "winograd") == "exact";
    let checkpointing =
        if args.iter().any(|a| a == "--checkpoint") { Checkpointing::Blocks } else { Checkpointing::Off };
    let matrix_unit = args.iter().any(|a| a == "--matrix-unit");
    let ctx = Context::new(Options { precision, exact, matrix_unit, checkpointing, isa: None })?;

    let units = network(&arch, &stem, width);
    let values: Vec<Vec<Vec<f32>>> = units.iter().enumerate().map(|(i, u)| initial(u.as_ref(), i)).collect();
    let params: Vec<Vec<&[f32]>> = values.iter().map(|v| v.iter().map(Vec::as_slice).collect()).collect();
    let mut grads: Vec<Vec<Vec<f32>>> =
        values.iter().map(|v| v.iter().map(|p| vec![0.0; p.len()]).collect()).collect();

    let mut step = || -> Result<(f64, f64), Error> {
        let begin = Instant::now();
        let mut tapes = Vec::new();
        for &(crops, side) in &groups {
            let shape = [crops * batch, side, side, 3];
            let mut x = ctx.activations(shape, Precision::F32);
            x.words.iter_mut().enumerate().for_each(|(i, v)| *v = ((i * 7919) % 255) as f32 / 127.0 - 1.0);
            let mut tape = Vec::new();
            for (unit, params) in units.iter().zip(&params) {
                let (out, saved) = unit.forward_train(&ctx, x, params)?;
                tape.push(saved);
                x = out;
            }
            tapes.push((tape, x));
        }
        let forward = begin.elapsed().as_secs_f64();
        while let Some((mut tape, mut grad)) = tapes.pop() {
            for i in (0..units.len()).rev() {
                let Some(saved) = tape.pop() else { break };
                match units[i].backward(
                    &ctx,
                    Backward {
                        saved,
                        grad_output: grad,
                        params: &params[i],
                        grads: &mut grads[i],
                        want_grad_input: i > 0,
                    },
                )? {
                    Some(next) => grad = next,
                    None => break,
                }
            }
        }
        Ok((forward, begin.elapsed().as_secs_f64() - forward))
    };
    let mut best = (f64::MAX, f64::MAX);
    for i in 0..9 {
        if i == 8 && args.iter().any(|a| a == "--profile") {
            profile::start();
        }
        let (forward, backward) = step()?;
        if forward + backward < best.0 + best.1 {
            best = (forward, backward);
        }
    }
    print_profile();
    println!("peak {:.0} GFLOP/s", swav_kernels::peak_flops(&ctx) / 1e9);
    let total = best.0 + best.1;
    println!(
        "forward {:.1} ms, backward {:.1} ms, {:.1} images/s; peak memory {} MiB",
        best.0 * 1e3,
        best.1 * 1e3,
        batch as f64 / total,
        peak_mib()
    );
    Ok(())
}

/// Prints what was recorded by operation, longest first.
fn print_profile() {
    let mut by_op: BTreeMap<(&str, String), (f64, f64)> = BTreeMap::new();
    for event in profile::stop() {
        let entry = by_op.entry((event.name, event.detail)).or_default();
        entry.0 += event.duration_us;
        entry.1 += event.flops;
    }
    let mut rows: Vec<_> = by_op.into_iter().collect();
    rows.sort_by(|a, b| b.1.0.total_cmp(&a.1.0));
    for ((name, detail), (us, flops)) in rows {
        println!("{:9.3} ms {:6.0} GFLOP/s  {name:24} {detail}", us / 1e3, flops / us / 1e3);
    }
}

fn peak_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|l| l.starts_with("VmHWM"));
    line.and_then(|l| l.split_whitespace().nth(1)?.parse::<u64>().ok()).unwrap_or(0) / 1024
}

fn network(arch: &str, stem: &str, width: usize) -> Vec<Box<dyn Unit>> {
    let (kind, layers) = match arch {
        "50" => (BlockKind::Bottleneck, [3, 4, 6, 3]),
        "34" => (BlockKind::Basic, [3, 4, 6, 3]),
        _ => (BlockKind::Basic, [2, 2, 2, 2]),
    };
    let mut units: Vec<Box<dyn Unit>> =
        vec![Box::new(if stem == "imagenet" { Stem::imagenet(width) } else { Stem::cifar(width) })];
    let mut channels = width;
    for (stage, blocks) in layers.into_iter().enumerate() {
        for i in 0..blocks {
            let planes = width << stage;
            let stride = if stage > 0 && i == 0 { 2 } else { 1 };
            units.push(Box::new(Block::new(kind, channels, planes, stride)));
            channels = planes * kind.expansion();
        }
    }
    units.push(Box::new(GlobalAvgPool));
    units
}

fn initial(unit: &dyn Unit, seed: usize) -> Vec<Vec<f32>> {
    let noise = |i: usize| ((i.wrapping_mul(2_654_435_761) >> 8) % 2001) as f32 / 1000.0 - 1.0;
    (unit.parameters().iter().enumerate())
        .map(|(p, spec)| match spec.kind {
            ParamKind::NormWeight => vec![1.0; spec.len()],
            ParamKind::NormBias => vec![0.0; spec.len()],
            _ => {
                let fan = (spec.len() / spec.shape[0]) as f32;
                (0..spec.len()).map(|i| noise(i + 31 * p + 977 * seed) * (6.0 / fan).sqrt()).collect()
            }
        })
        .collect()
}
