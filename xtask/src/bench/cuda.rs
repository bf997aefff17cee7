//! `cargo xtask bench cuda`: everything about the GPU in one call. First that it computes what the CPU computes, then
//! the time of training steps, beside PyTorch's if a script is given.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};
use swav_encoder::{
    Arch, BlockKind, Encoder, EncoderConfig, Head, Method, Output, Stem, UpdateRule, build, image_batch,
};

/// Largest relative difference from the CPU that counts as the same, for each of [`KINDS`]. Gradients get more: an
/// activation that rounding moves across the kink of its ReLU changes a gradient over N pixels of noise by 1/sqrt(N).
const TOLERANCES: [f64; KINDS.len()] = [1e-3, 2e-2, 1e-3, 1e-3];
/// A small learning rate: parameters that are zero at first take their gradient unscaled, and a large step of theirs
/// would magnify the rounding that is to be measured.
const RULE: UpdateRule =
    UpdateRule::new(Method::Larc { lr: 0.01, momentum: 0.9, weight_decay: 1e-4, trust: 1e-3 });
const SEED: u64 = 31;
/// What is compared after each step.
const KINDS: [&str; 4] = ["embeddings", "gradients", "state", "features"];

/// Compare a GPU with the CPU, and time training steps on it; beside PyTorch with --torch-script.
///
/// The last line is JSON: parity by network, then step_ms and images_per_s by workload and engine.
#[derive(clap::Args)]
pub struct Args {
    /// The device.
    #[arg(long, default_value = "dfdx:cuda:0")]
    device: String,
    /// Steps to measure, after two that are not.
    #[arg(long, default_value_t = 10)]
    steps: usize,
    /// Only the comparison with the CPU.
    #[arg(long)]
    parity_only: bool,
    /// A script that times the same step in PyTorch: it takes `speed --arch --stem --sizes --counts --batch --hidden
    /// --prototypes --steps --device`, with `--bf16 --channels-last` a second time, and ends with a JSON line that has
    /// step_ms.
    #[arg(long, value_name = "FILE.py")]
    torch_script: Option<PathBuf>,
    /// The Python that runs it.
    #[arg(long, value_name = "PROGRAM", default_value = "python3")]
    python: PathBuf,
    /// A test program of swav-encoder (target/.../deps/swav_encoder-*) to run the parity tests of, where there is no
    /// cargo; SWAV_FIXTURES says where the fixtures are.
    #[arg(long, value_name = "PROGRAM")]
    tests: Option<PathBuf>,
}

/// A training step to time.
struct Workload {
    name: &'static str,
    options: &'static [&'static str],
    batch: usize,
}

const WORKLOADS: [Workload; 2] = [
    Workload {
        name: "ResNet-18 CIFAR, 256 images, 2x32 + 4x16",
        options: &["--arch", "resnet18", "--stem", "cifar", "--sizes", "32", "16", "--counts", "2", "4"],
        batch: 256,
    },
    Workload {
        name: "ResNet-50, 64 images, 2x224 + 6x96",
        options: &["--arch", "resnet50", "--stem", "imagenet", "--sizes", "224", "96", "--counts", "2", "6"],
        batch: 64,
    },
];

/// Runs the benchmark.
pub fn run(args: Args) -> anyhow::Result<()> {
    let mut parity = Vec::new();
    for (name, config) in networks() {
        let errors = compare(&args.device, &config)?;
        let list: Vec<String> =
            KINDS.iter().zip(&errors).map(|(kind, error)| format!("{kind} {error:.1e}")).collect();
        println!("parity  {name:<44} {}", list.join(", "));
        parity.push(json!({ "network": name, "kinds": KINDS, "errors": errors }));
        ensure!(
            same(&errors),
            "{name}: expected {} within {TOLERANCES:?} of the CPU, got {errors:?}",
            args.device
        );
    }
    if let Some(tests) = &args.tests {
        let status = Command::new(tests).arg("parity").env("SWAV_TEST_DEVICE", &args.device).status();
        let status = status.with_context(|| format!("running {}", tests.display()))?;
        ensure!(status.success(), "{}: {status}", tests.display());
    }
    let mut speeds = Vec::new();
    if !args.parity_only {
        println!("\n{:<44} {:<26} {:>10} {:>10}", "training step", "engine", "ms", "images/s");
        for workload in &WORKLOADS {
            speeds.extend(time(&args, workload)?);
        }
    }
    println!("{}", json!({ "mode": "cuda", "device": args.device, "parity": parity, "speed": speeds }));
    Ok(())
}

/// Whether all differences are within their tolerances.
fn same(errors: &[f64; KINDS.len()]) -> bool {
    errors.iter().zip(TOLERANCES).all(|(&error, tolerance)| error < tolerance)
}

/// Our time and PyTorch's.
fn time(args: &Args, workload: &Workload) -> anyhow::Result<Vec<Value>> {
    let ours = std::env::current_exe().context("the path of this program")?;
    let (steps, batch) = (args.steps.to_string(), workload.batch.to_string());
    let mut common: Vec<&str> = workload.options.to_vec();
    common.extend(["--batch", &batch, "--steps", &steps, "--device", &args.device]);
    let mut engines: Vec<(&str, Command)> = Vec::new();
    let mut command = Command::new(ours);
    command.args(["bench", "speed"]).args(&common);
    engines.push(("swav", command));
    if let Some(script) = &args.torch_script {
        for (name, more) in
            [("PyTorch f32", &[][..]), ("PyTorch bf16 channels-last", &["--bf16", "--channels-last"])]
        {
            let mut command = Command::new(&args.python);
            command.arg(script).arg("speed").args(&common).args(more);
            engines.push((name, command));
        }
    }
    let mut rows = Vec::new();
    for (engine, mut command) in engines {
        let step_ms =
            last_json(&mut command)?["step_ms"].as_f64().context("expected step_ms in the last line")?;
        let images_per_s = workload.batch as f64 / (step_ms / 1e3);
        println!("{:<44} {engine:<26} {step_ms:>10.2} {images_per_s:>10.1}", workload.name);
        rows.push(json!({
            "workload": workload.name, "engine": engine, "step_ms": step_ms, "images_per_s": images_per_s,
        }));
    }
    Ok(rows)
}

/// Runs a program and parses the last line that it prints.
fn last_json(command: &mut Command) -> anyhow::Result<Value> {
    let program = Path::new(command.get_program()).display().to_string();
    let output = command.output().with_context(|| format!("running {program}"))?;
    if !output.status.success() {
        bail!("{program}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    let text = String::from_utf8(output.stdout)?;
    let line = text.lines().last().with_context(|| format!("{program} printed nothing"))?;
    serde_json::from_str(line).with_context(|| format!("{program}: expected JSON, got {line}"))
}

/// One network for each kind of unit.
fn networks() -> [(&'static str, EncoderConfig); 3] {
    let network = |block, stem, head| EncoderConfig {
        arch: Arch::Custom { block, layers: vec![1, 1, 1] },
        width: 16,
        stem,
        head,
        dim: 16,
        exact: true,
        ..EncoderConfig::default()
    };
    [
        (
            "bottleneck blocks, ImageNet stem, MLP head",
            network(BlockKind::Bottleneck, Stem::Imagenet, Head::Mlp { hidden: 32 }),
        ),
        ("basic blocks, CIFAR stem, linear head", network(BlockKind::Basic, Stem::Cifar, Head::Linear)),
        ("basic blocks, ImageNet stem, no head", network(BlockKind::Basic, Stem::Imagenet, Head::None)),
    ]
}

/// The larger relative difference of two steps for each of [`KINDS`]; between the steps state and optimiser state
/// move from the CPU to the other device.
fn compare(device: &str, config: &EncoderConfig) -> anyhow::Result<[f64; KINDS.len()]> {
    let spec = config.check()?;
    let mut cpu = build("cpu", &spec, SEED)?;
    let mut other = build(device, &spec, SEED)?;
    let first = differences(&step(cpu.as_mut(), 1)?, &step(other.as_mut(), 1)?);
    let (state, optimizer) = (cpu.state()?, cpu.optimizer_state()?);
    other.load_state(&state)?;
    other.load_optimizer_state(&optimizer)?;
    let second = differences(&step(cpu.as_mut(), 2)?, &step(other.as_mut(), 2)?);
    Ok(std::array::from_fn(|kind| first[kind].max(second[kind])))
}

/// Embeddings, all gradients, parameters and statistics, and features in inference mode: [`KINDS`].
fn step(encoder: &mut dyn Encoder, seed: u64) -> anyhow::Result<[Vec<f32>; KINDS.len()]> {
    let images = |n: usize, side: usize| -> Vec<f32> {
        (0..n * side * side * 3).map(|i| pseudo_random(seed, i as u64)).collect()
    };
    let (large, small) = (images(8, 64), images(12, 33));
    let groups = [image_batch(&large, 8, 64, 64)?, image_batch(&small, 12, 33, 33)?];
    let z = encoder.forward_train(&groups)?;
    let gradient =
        ndarray::Array2::from_shape_fn(z.dim(), |(i, j)| pseudo_random(seed + 7, (i * z.ncols() + j) as u64));
    encoder.backward(gradient.view())?;
    let names: Vec<String> = encoder.parameters().into_iter().map(|(name, _)| name).collect();
    let gradients = names.iter().flat_map(|name| encoder.gradient(name).unwrap_or_default()).collect();
    encoder.update(&RULE)?;
    let state = encoder.state()?;
    let counters = |name: &str| name.ends_with("num_batches_tracked");
    let values =
        state.iter().filter(|(name, _)| !counters(name)).flat_map(|(_, tensor)| tensor.data().to_vec());
    let features = encoder.embed(groups[0], Output::Features)?;
    Ok([z.into_raw_vec_and_offset().0, gradients, values.collect(), features.into_raw_vec_and_offset().0])
}

/// Norm of the difference over the norm, of each list of numbers; infinite where one is not a number.
fn differences<const N: usize>(expected: &[Vec<f32>; N], actual: &[Vec<f32>; N]) -> [f64; N] {
    let norm =
        |values: &mut dyn Iterator<Item = f32>| values.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    std::array::from_fn(|kind| {
        let (e, a) = (&expected[kind], &actual[kind]);
        if e.len() != a.len() {
            return f64::INFINITY;
        }
        let gap = norm(&mut e.iter().zip(a).map(|(e, a)| e - a)) / norm(&mut e.iter().copied());
        if gap.is_nan() { f64::INFINITY } else { gap }
    })
}

/// A number in -1..1 from a seed and an index (splitmix64).
fn pseudo_random(seed: u64, index: u64) -> f32 {
    let mut x = (seed << 40).wrapping_add(index).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((x ^ (x >> 31)) >> 40) as f32 / (1u64 << 23) as f32 - 1.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_comparison_finds_dfdx_equal_to_the_kernels() {
        let (_, config) = networks()[1].clone();
        let errors = compare("dfdx:cpu", &config).unwrap();
        assert!(same(&errors) && errors.iter().all(|&error| error > 0.0), "{errors:?}");
    }

    #[test]
    fn differences_are_relative_and_never_lost() {
        assert_eq!(differences(&[vec![3.0, 4.0]], &[vec![3.0, 4.0]]), [0.0]);
        assert!((differences(&[vec![3.0, 4.0]], &[vec![3.0, 5.0]])[0] - 0.2).abs() < 1e-12);
        assert_eq!(differences(&[vec![1.0]], &[vec![f32::NAN]]), [f64::INFINITY]);
        assert_eq!(differences(&[vec![1.0]], &[vec![]]), [f64::INFINITY]);
    }
}
