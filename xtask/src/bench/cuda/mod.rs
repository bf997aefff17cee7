//! `cargo xtask bench cuda`: everything about the GPU in one call. First that it computes what the CPU computes, then
//! the time of training steps, beside PyTorch's if a script is given.

mod parity;
mod whole;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};

/// Compare a GPU with the CPU, and time training steps on it; beside PyTorch with --torch-script.
///
/// The last line is JSON: checks of the self-test, parity by network, and step_ms, images_per_s and memory by workload and
/// engine. Fails if anything was wrong, but only after everything has run.
#[derive(clap::Args)]
pub struct Args {
    /// The device.
    #[arg(long, default_value = "cuda:0")]
    device: String,
    /// Steps to measure, after four that are not.
    #[arg(long, default_value_t = 40)]
    steps: usize,
    /// No measurements.
    #[arg(long)]
    parity_only: bool,
    /// A script that times the same step in PyTorch: it takes `speed --arch --stem --sizes --counts --batch --hidden
    /// --prototypes --steps --device`, further `--bf16 --channels-last --foreach --compile`, and ends with a JSON line
    /// that has step_ms and peak_gpu_mb.
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

/// Runs the benchmark.
pub fn run(args: Args) -> anyhow::Result<()> {
    let mut wrong: Vec<String> = Vec::new();
    let self_test = match args.device.strip_prefix("cuda:") {
        Some(number) => self_test(number.parse().context("the number of a card")?, &mut wrong),
        None => Value::Null,
    };
    let parity = part("parity with the CPU", &mut wrong, || {
        let (same, found) = parity::all(&args.device)?;
        ensure!(same, "results differ");
        Ok(json!(found))
    });
    let repeats = part("the same bits again", &mut wrong, || {
        let same = parity::repeats(&args.device)?;
        println!("repeats {}", if same { "the same bits" } else { "OTHER BITS" });
        ensure!(same, "bits differ");
        Ok(json!(same))
    });
    if let Some(tests) = &args.tests {
        part("the encoder's parity tests", &mut wrong, || {
            let status = Command::new(tests).arg("parity").env("SWAV_TEST_DEVICE", &args.device).status()?;
            ensure!(status.success(), "{}: {status}", tests.display());
            Ok(Value::Null)
        });
    }
    let mut speeds = Vec::new();
    if !args.parity_only {
        println!("\n{:<42} {:<30} {:>9} {:>10} {:>8}", "training step", "engine", "ms", "images/s", "GB");
        for workload in &whole::WORKLOADS {
            for engine in engines(&args) {
                let speed = part(&format!("{}, {}", workload.name, engine.name), &mut wrong, || {
                    engine.time(&args, workload)
                });
                speeds.push(json!({ "workload": workload.name, "engine": engine.name, "speed": speed }));
            }
        }
    }
    let report = json!({
        "mode": "cuda", "device": args.device, "self_test": self_test, "parity": parity, "repeats": repeats,
        "speed": speeds, "wrong": wrong,
    });
    println!("{report}");
    ensure!(wrong.is_empty(), "{}", wrong.join("; "));
    Ok(())
}

/// Runs a part; its failure does not stop the others.
fn part(what: &str, wrong: &mut Vec<String>, work: impl FnOnce() -> anyhow::Result<Value>) -> Value {
    work().unwrap_or_else(|error| {
        println!("{what}: {error:#}");
        wrong.push(format!("{what}: {error:#}"));
        Value::Null
    })
}

/// What was found of libraries and cards, and the self-test.
fn self_test(number: usize, wrong: &mut Vec<String>) -> Value {
    print!("{}", swav_cuda::libs::report());
    part("the self-test", wrong, || {
        let card = swav_cuda::driver::Card::open(number)?;
        let result = swav_cuda::self_test::self_test(&card, swav_cuda::exec::ExecutorOptions::default())?;
        let failed: Vec<String> =
            result.checks.iter().filter(|check| !check.passes()).map(ToString::to_string).collect();
        println!(
            "self-test: {} checks in {:.1} s, {} wrong",
            result.checks.len(),
            result.seconds,
            failed.len()
        );
        ensure!(result.passes(), "{}", failed.join("; "));
        Ok(json!({ "checks": result.checks.len(), "seconds": result.seconds }))
    })
}

/// A way to run a step.
struct Engine {
    name: &'static str,
    /// Options of PyTorch's script; our precision where there are none.
    torch: Option<&'static [&'static str]>,
    precision: &'static str,
}

fn engines(args: &Args) -> Vec<Engine> {
    let ours = |name, precision| Engine { name, torch: None, precision };
    let torch = |name, options| Engine { name, torch: Some(options), precision: "" };
    let mut all = vec![ours("swav mixed", "mixed"), ours("swav f32", "f32")];
    if args.torch_script.is_some() {
        all.push(torch("PyTorch bf16 channels-last", &["--bf16", "--channels-last", "--foreach"]));
        all.push(torch("PyTorch bf16 compiled", &["--bf16", "--channels-last", "--foreach", "--compile"]));
        all.push(torch("PyTorch f32", &["--foreach"]));
    }
    all
}

impl Engine {
    fn time(&self, args: &Args, workload: &whole::Workload) -> anyhow::Result<Value> {
        let (step_ms, bytes, more) = match (self.torch, &args.torch_script) {
            (Some(options), Some(script)) => {
                let mut command = Command::new(&args.python);
                command.arg(script).arg("speed").args(workload.options());
                command.args(["--device", &args.device, "--steps", "12"]).args(options);
                let report = last_json(&mut command)?;
                let step_ms = report["step_ms"].as_f64().context("expected step_ms in the last line")?;
                (step_ms, report["peak_gpu_mb"].as_f64().map(|mb| mb * f64::from(1 << 20)), report)
            }
            _ => {
                let timed = whole::time(&args.device, workload, self.precision, args.steps)?;
                (timed.step_ms, timed.bytes, json!({ "loss": timed.loss, "ready_s": timed.ready_s }))
            }
        };
        let images_per_s = workload.batch as f64 / (step_ms / 1e3);
        let memory = bytes.map_or_else(String::new, |bytes| format!("{:8.2}", bytes / 1e9));
        println!("{:<42} {:<30} {step_ms:>9.2} {images_per_s:>10.1} {memory}", workload.name, self.name);
        Ok(json!({ "step_ms": step_ms, "images_per_s": images_per_s, "bytes": bytes, "more": more }))
    }
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
