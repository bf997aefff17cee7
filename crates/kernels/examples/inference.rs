//! Times inference of a ResNet's backbone on random images, ready units beside units as they are, and says how much memory
//! packed weights take; with `--profile` also the time by operation.
//!
//! `cargo run --release -p swav-kernels --example inference -- 50 32 224`

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use swav_kernels::net::{Block, BlockKind, GlobalAvgPool, ParamKind, Ready, RunningStats, Stem, Unit, infer};
use swav_kernels::{Activations, Context, Error, Options, profile};

#[global_allocator]
static ALLOCATOR: swav_kernels::AlignedAllocator = swav_kernels::AlignedAllocator;

/// A unit with its parameters and running statistics.
type Layer = (Box<dyn Unit>, Vec<Arc<Vec<f32>>>, Vec<Vec<f32>>);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |i: usize, default: usize| args.get(i).and_then(|arg| arg.parse().ok()).unwrap_or(default);
    let (depth, batch, side, rounds) = (number(0, 50), number(1, 32), number(2, 224), number(3, 7));
    let ctx = Context::new(Options::default())?;
    let layers = network(depth);
    let running: Vec<Vec<RunningStats<'_>>> = (layers.iter())
        .map(|(_, _, ones)| ones.iter().map(|ones| RunningStats { mean: ones, var: ones }).collect())
        .collect();
    let ready: Vec<Box<dyn Ready>> = (layers.iter().zip(&running))
        .map(|((unit, params, _), running)| unit.ready(&ctx, params, running))
        .collect::<Result<_, _>>()?;
    let units: Vec<&dyn Ready> = ready.iter().map(AsRef::as_ref).collect();
    let shape = [batch, side, side, 3];
    let images = noise(shape.iter().product());

    let folded = || -> Result<(), Error> {
        ctx.recycle(infer(&ctx, &units, &images, shape)?);
        Ok(())
    };
    let unfolded = || -> Result<(), Error> {
        let mut flow = Activations::from_f32(shape, images.clone())?;
        for ((unit, params, _), running) in layers.iter().zip(&running) {
            let params: Vec<&[f32]> = params.iter().map(|values| values.as_slice()).collect();
            let next = unit.forward_infer(&ctx, &flow, &params, running)?;
            ctx.recycle(std::mem::replace(&mut flow, next));
        }
        ctx.recycle(flow);
        Ok(())
    };
    let only = args.iter().any(|arg| arg == "--ready");
    let mut best = [f64::MAX; 2];
    for round in 0..rounds {
        if round + 1 == rounds && args.iter().any(|arg| arg == "--profile") {
            profile::start();
        }
        for (i, pass) in
            [&folded as &dyn Fn() -> _, &unfolded].into_iter().enumerate().take(2 - usize::from(only))
        {
            let begin = Instant::now();
            pass()?;
            best[i] = best[i].min(begin.elapsed().as_secs_f64());
        }
    }
    for (name, seconds) in ["ready", "as they are"].into_iter().zip(best) {
        println!("{name:>12}: {:.1} ms, {:.1} images/s", seconds * 1e3, batch as f64 / seconds);
    }
    let words: usize = ready.iter().map(|unit| unit.words()).sum();
    println!("packed weights: {} MB", (4 * words) >> 20);
    let mut rows: BTreeMap<(&str, String), (f64, f64, usize)> = BTreeMap::new();
    for event in profile::stop() {
        let row = rows.entry((event.name, event.detail)).or_default();
        *row = (row.0 + event.duration_us / 1e3, row.1 + event.flops, row.2 + 1);
    }
    let mut rows: Vec<_> = rows.into_iter().collect();
    rows.sort_by(|a, b| b.1.0.total_cmp(&a.1.0));
    for ((name, detail), (ms, flops, calls)) in rows {
        println!("{ms:9.2} ms  {:6.0} GFLOP/s  {calls:4}  {name} {detail}", flops / ms / 1e6);
    }
    Ok(())
}

/// A ResNet without its last layer.
fn network(depth: usize) -> Vec<Layer> {
    let (kind, blocks) = match depth {
        18 => (BlockKind::Basic, [2, 2, 2, 2]),
        _ => (BlockKind::Bottleneck, [3, 4, 6, 3]),
    };
    let mut units: Vec<Box<dyn Unit>> = vec![Box::new(Stem::imagenet(64))];
    let mut channels = 64;
    for (stage, block) in (0..4).flat_map(|stage| (0..blocks[stage]).map(move |block| (stage, block))) {
        let (planes, stride) = (64 << stage, if stage > 0 && block == 0 { 2 } else { 1 });
        units.push(Box::new(Block::new(kind, channels, planes, stride)));
        channels = planes * kind.expansion();
    }
    units.push(Box::new(GlobalAvgPool));
    units.into_iter().map(layer).collect()
}

fn layer(unit: Box<dyn Unit>) -> Layer {
    let params = unit.parameters().into_iter().map(|spec| {
        let fan = (spec.len() / spec.shape[0]).max(1) as f32;
        Arc::new(match spec.kind {
            ParamKind::Conv => noise(spec.len()).iter().map(|v| v * 1.5 / fan.sqrt()).collect(),
            ParamKind::NormWeight => vec![0.7; spec.len()],
            _ => vec![0.1; spec.len()],
        })
    });
    let params = params.collect();
    let ones = unit.norms().into_iter().map(|norm| vec![1.0; norm.channels]).collect();
    (unit, params, ones)
}

fn noise(n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 7919) % 1001) as f32 / 500.0 - 1.0).collect()
}
