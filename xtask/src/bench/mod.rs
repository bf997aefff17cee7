//! `cargo xtask bench`: one file a benchmark.

mod augment;
mod cuda;
mod inference;
mod kernels;
mod ot;
mod speed;

use clap::Subcommand;

/// Measure speed; the last line printed is one JSON object.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    benchmark: Benchmark,
}

#[derive(Subcommand)]
enum Benchmark {
    Augment(augment::Args),
    Cuda(cuda::Args),
    Inference(inference::Args),
    Kernels(kernels::Args),
    Ot(ot::Args),
    Speed(speed::Args),
}

/// Runs the chosen benchmark.
pub fn run(args: Args) -> anyhow::Result<()> {
    match args.benchmark {
        Benchmark::Augment(args) => augment::run(args),
        Benchmark::Cuda(args) => cuda::run(args),
        Benchmark::Inference(args) => inference::run(args),
        Benchmark::Kernels(args) => kernels::run(args),
        Benchmark::Ot(args) => ot::run(args),
        Benchmark::Speed(args) => speed::run(args),
    }
}
