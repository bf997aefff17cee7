//! `cargo xtask bench inference`: features of ResNets on the CPU, beside PyTorch and onnxruntime.
//!
//! Each of them is a process of its own that waits for its turn, so that the memory of each is known, and what else the
//! machine does meets all of them alike.

use std::io::{BufRead, BufReader, Write, stdin};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use ndarray::Array4;
use serde_json::{Value, json};
use swav_encoder::{EncoderConfig, Head, Output, ResNet, Variant, build_cpu};

use crate::memory::peak_rss_mib;
use crate::workload::named;

/// What the others run.
const SCRIPT: &str = include_str!("inference.py");

/// Passes before the measured ones: weights are packed, pools fill.
const WARM_UP_PASSES: usize = 2;

/// Images that a measurement has at least.
const IMAGES: usize = 32;

/// The time in which threads that wait for more work give up.
const PAUSE: Duration = Duration::from_millis(50);

/// Measure inference on the CPU, features of random images, beside PyTorch and onnxruntime.
///
/// Each round runs all of them one after the other; medians over the rounds count, of times and of ratios. The last line is
/// JSON: for each case images_per_s and peak_rss_mb of each runner, and how many times faster ours is than the others
/// (median, min, max).
#[derive(clap::Args)]
pub struct Args {
    /// A Python that has torch, torchvision, onnx and onnxruntime; without it ours alone is measured.
    #[arg(long, value_name = "PYTHON")]
    python: Option<PathBuf>,
    /// Threads; 0 takes all cores.
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// Rounds.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// ResNets.
    #[arg(long, value_delimiter = ',', default_value = "resnet50,resnet18")]
    arch: Vec<String>,
    /// Images of a pass.
    #[arg(long, value_delimiter = ',', default_value = "32,1", value_parser = clap::value_parser!(u16).range(1..))]
    batch: Vec<u16>,
    /// Height and width of an image.
    #[arg(long, default_value_t = 224, value_parser = clap::value_parser!(u16).range(1..))]
    size: u16,
    /// Be the process that is measured.
    #[arg(long, hide = true)]
    run: bool,
}

/// Runs the benchmark.
pub fn run(args: Args) -> anyhow::Result<()> {
    if args.run {
        return measured(&args);
    }
    let threads = match args.threads {
        0 => std::thread::available_parallelism()?.get(),
        threads => threads,
    };
    for arch in &args.arch {
        named::<Variant>("--arch", arch)?;
    }
    let mut cases = Vec::new();
    println!("{threads} threads, {0}x{0} pixels, {1} rounds; medians", args.size, args.rounds);
    for (arch, &batch) in args.arch.iter().flat_map(|arch| args.batch.iter().map(move |batch| (arch, batch)))
    {
        let case = Case { arch: arch.clone(), batch, size: args.size, threads };
        cases.push(case.measure(args.python.as_deref(), args.rounds)?);
    }
    println!("{}", json!({ "mode": "inference", "threads": threads, "size": args.size, "cases": cases }));
    Ok(())
}

/// Our process: the encoder, as often as it is told to.
fn measured(args: &Args) -> anyhow::Result<()> {
    rayon::ThreadPoolBuilder::new().num_threads(args.threads).build_global()?;
    let arch = ResNet::new(named("--arch", &args.arch[0])?).into();
    let encoder =
        build_cpu(&EncoderConfig { arch, head: Head::None, ..EncoderConfig::default() }.check()?, 31)?;
    let side = usize::from(args.size);
    let shape = (usize::from(args.batch[0]), side, side, 3);
    let images = Array4::from_shape_fn(shape, |(n, y, x, c)| {
        ((n * 7919 + y * 104_729 + x * 1_299_709 + c * 31) % 1001) as f32 / 250.0 - 2.0
    });
    let pass = || encoder.embed(images.view(), Output::Features);
    for _ in 0..WARM_UP_PASSES {
        pass()?;
    }
    println!("ready");
    for line in stdin().lines() {
        let passes: u32 = line?.parse()?;
        let begin = Instant::now();
        for _ in 0..passes {
            pass()?;
        }
        println!("{}", begin.elapsed().as_secs_f64() / f64::from(passes));
    }
    println!("{}", peak_rss_mib().unwrap_or(f64::NAN));
    Ok(())
}

/// A network and its images.
struct Case {
    arch: String,
    batch: u16,
    size: u16,
    threads: usize,
}

impl Case {
    /// Measures all runners in turn; prints a line for each and returns what is to be remembered.
    fn measure(&self, python: Option<&Path>, rounds: u16) -> anyhow::Result<Value> {
        let mut runners = vec![Runner::start("ours", self.ours()?)?];
        let model =
            std::env::temp_dir().join(format!("swav-bench-{}-{}.onnx", std::process::id(), self.arch));
        if let Some(python) = python {
            let status = self.python(python, "export", &model).stdout(Stdio::null()).status();
            let status = status.with_context(|| format!("could not start {}", python.display()))?;
            ensure!(status.success(), "{}: could not export {} to ONNX", python.display(), self.arch);
            for name in ["torch", "onnxruntime"] {
                runners.push(Runner::start(name, self.python(python, name, &model))?);
            }
            // Both have it in memory.
            std::fs::remove_file(&model)?;
        }
        let passes = IMAGES.div_ceil(usize::from(self.batch));
        for round in 0..usize::from(rounds) {
            for turn in 0..runners.len() {
                let next = (round + turn) % runners.len();
                runners[next].measure(passes)?;
                std::thread::sleep(PAUSE);
            }
        }
        println!("{}, {} images:", self.arch, self.batch);
        let ours = runners[0].seconds.clone();
        let mut results = serde_json::Map::new();
        for runner in runners {
            let (name, seconds) = (runner.name, runner.seconds.clone());
            let peak = runner.finish()?;
            let images_per_s = f64::from(self.batch) / middle(&seconds)[0];
            let ratios: Vec<f64> = seconds.iter().zip(&ours).map(|(other, ours)| other / ours).collect();
            let [ratio, min, max] = middle(&ratios);
            println!(
                "{name:>14}  {images_per_s:>7.1} images/s  {peak:>6.0} MB  ours {ratio:.2} times as fast \
                 ({min:.2} to {max:.2})"
            );
            let result = json!({
                "images_per_s": images_per_s, "peak_rss_mb": peak,
                "times_faster": ratio, "times_faster_min": min, "times_faster_max": max,
            });
            results.insert(name.to_owned(), result);
        }
        Ok(json!({ "arch": self.arch, "batch": self.batch, "runners": results }))
    }

    fn ours(&self) -> anyhow::Result<Command> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["bench", "inference", "--run", "--arch", &self.arch]);
        for (option, value) in
            [("--batch", self.batch.into()), ("--size", self.size.into()), ("--threads", self.threads)]
        {
            command.args([option, &value.to_string()]);
        }
        Ok(command)
    }

    fn python(&self, python: &Path, runner: &str, model: &Path) -> Command {
        let mut command = Command::new(python);
        command.args(["-W", "ignore", "-c", SCRIPT, runner, &self.arch]);
        command.args([self.batch.to_string(), self.size.to_string(), self.threads.to_string()]).arg(model);
        command
    }
}

/// The median, the least and the greatest.
fn middle(values: &[f64]) -> [f64; 3] {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    [super::speed::median(&sorted), sorted[0], sorted[sorted.len() - 1]]
}

/// A process that waits to be measured. It ends when it is dropped.
struct Runner {
    name: &'static str,
    child: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    /// Of a pass, round by round.
    seconds: Vec<f64>,
}

impl Runner {
    fn start(name: &'static str, mut command: Command) -> anyhow::Result<Self> {
        let mut child = (command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn())
            .with_context(|| format!("{name}: could not start {}", command.get_program().display()))?;
        let (Some(orders), Some(answers)) = (child.stdin.take(), child.stdout.take()) else {
            bail!("{name}: expected pipes to its process, got none");
        };
        let (orders, answers) = (Some(orders), BufReader::new(answers));
        let mut runner = Self { name, child, orders, answers, seconds: Vec::new() };
        let answer = runner.answer()?;
        ensure!(answer == "ready", "{name}: expected `ready`, got `{answer}`");
        Ok(runner)
    }

    fn answer(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        ensure!(!line.is_empty(), "{}: its process ended before it was measured; see above", self.name);
        Ok(line.trim().to_owned())
    }

    fn measure(&mut self, passes: usize) -> anyhow::Result<()> {
        let Some(orders) = &mut self.orders else { bail!("{}: is measured already", self.name) };
        writeln!(orders, "{passes}")?;
        let seconds = self.answer()?.parse()?;
        self.seconds.push(seconds);
        Ok(())
    }

    /// Its peak memory in MiB.
    fn finish(mut self) -> anyhow::Result<f64> {
        self.orders = None;
        Ok(self.answer()?.parse()?)
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        self.orders = None;
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
