//! The parts `speed`, `compiled` and `f32`: the time of whole training steps, ours beside PyTorch's.

use std::process::Command;

use anyhow::Context;
use serde_json::{Value, json};

use super::engine::{Engine, Speed};
use super::found::{Found, Result};
use super::inside;
use super::whole::Steps;
use super::workload::{WORKLOADS, Workload};
use super::{Bench, child};

/// Steps of a round of PyTorch's.
const TORCH_STEPS: &str = "12";
/// Steps of a round of ours in f32, which is slow.
const F32_STEPS: u32 = 10;

/// Ours in mixed precision and PyTorch in bf16, in turn; then where our time goes.
pub fn speed(bench: &Bench) -> Result {
    let number = bench.number()?;
    let mut found = Found::default();
    let mut inside = serde_json::Map::new();
    println!("{}", Speed::TITLE);
    for workload in &WORKLOADS {
        let rounds = Rounds { bench, workload, ours: Engine::Mixed, torch: Some(Engine::Torch) };
        rounds.run(bench.args.rounds, bench.args.steps, &mut found);
        if bench.clock.is_up() {
            found.left_out.push(format!("{}: where the time goes", workload.name));
            continue;
        }
        match inside::look(number, workload, &mut found) {
            Ok(value) => drop(inside.insert(workload.name.to_owned(), value)),
            Err(error) => found.wrong.push(format!("{}, where the time goes: {error:#}", workload.name)),
        }
    }
    found.value = json!({ "inside": inside });
    Ok(found)
}

/// PyTorch compiled, which takes long before the first step.
pub fn compiled(bench: &Bench) -> Result {
    let mut found = Found::default();
    println!("{}", Speed::TITLE);
    for workload in &WORKLOADS {
        let rounds = Rounds { bench, workload, ours: Engine::Mixed, torch: Some(Engine::TorchCompiled) };
        let mut torch = Vec::new();
        rounds.torch(&mut torch, &mut found);
        rounds.keep_torch(torch);
    }
    Ok(found)
}

/// Ours and PyTorch in f32, convolutions by TF32; then ours without that. One round each.
pub fn f32(bench: &Bench) -> Result {
    let mut found = Found::default();
    println!("{}", Speed::TITLE);
    for workload in &WORKLOADS {
        for (ours, torch) in [(Engine::Tf32, Some(Engine::TorchF32)), (Engine::F32, None)] {
            let rounds = Rounds { bench, workload, ours, torch };
            rounds.run(1, bench.args.steps.min(F32_STEPS), &mut found);
        }
    }
    Ok(found)
}

/// Rounds of a training step: ours, and one of PyTorch's if there is one to compare with.
struct Rounds<'a> {
    bench: &'a Bench,
    workload: &'a Workload,
    ours: Engine,
    torch: Option<Engine>,
}

/// What a round of PyTorch's has given.
struct TorchRound {
    step_ms: f64,
    report: Value,
}

impl Rounds<'_> {
    /// Runs rounds in turn, so that what changes with time, as a card's clock does, meets both.
    fn run(&self, n_rounds: u32, n_steps: u32, found: &mut Found) {
        if self.is_late(self.ours, found) {
            return;
        }
        let mut steps = match Steps::open(&self.bench.args.device, self.workload, self.ours.arithmetic()) {
            Ok(steps) => Some(steps),
            Err(error) => {
                found.wrong.push(self.told(self.ours, &error));
                None
            }
        };
        let (mut ours, mut torch) = (Vec::new(), Vec::new());
        for round in 0..n_rounds {
            if round > 0 && self.is_late(self.ours, found) {
                break;
            }
            match steps.as_mut().map(|steps| steps.time(n_steps)) {
                Some(Ok(ms)) => ours.push(ms),
                Some(Err(error)) => {
                    found.wrong.push(self.told(self.ours, &error));
                    steps = None;
                }
                None => (),
            }
            self.torch(&mut torch, found);
        }
        if let Some(steps) = steps.filter(|_| !ours.is_empty()) {
            let more = json!({ "loss": steps.loss, "ready_s": steps.ready_s });
            self.keep(self.ours, ours, steps.bytes, more);
        }
        self.keep_torch(torch);
    }

    /// A round of PyTorch's, if there is a script.
    fn torch(&self, rounds: &mut Vec<TorchRound>, found: &mut Found) {
        let Some(torch) = self.torch.filter(|_| self.bench.args.torch_script.is_some()) else { return };
        if self.is_late(torch, found) {
            return;
        }
        match self.time_torch(torch) {
            Ok(Some(round)) => rounds.push(round),
            Ok(None) => {
                let (workload, torch) = (self.workload.name, torch.name());
                found.left_out.push(format!("{workload}, {torch}: it was ended when the time was used up"));
            }
            Err(error) => found.wrong.push(self.told(torch, &error)),
        }
    }

    /// Runs the script; `None` if it was ended because the time was used up.
    fn time_torch(&self, torch: Engine) -> anyhow::Result<Option<TorchRound>> {
        let args = &self.bench.args;
        let script = args.torch_script.as_ref().context("expected --torch-script")?;
        let mut command = Command::new(&args.python);
        command.arg(script).arg("speed").args(self.workload.options());
        command.args(["--device", &args.device, "--steps", TORCH_STEPS]).args(torch.options());
        let Some(report) = child::last_json(&mut command, &self.bench.clock)? else { return Ok(None) };
        let step_ms = report["step_ms"].as_f64().context("expected step_ms in the last line")?;
        Ok(Some(TorchRound { step_ms, report }))
    }

    /// Keeps the speed of PyTorch's rounds, if there are any.
    fn keep_torch(&self, rounds: Vec<TorchRound>) {
        let Some((torch, last)) = self.torch.zip(rounds.last()) else { return };
        let bytes = last.report["peak_gpu_mb"].as_f64().map(|mb| mb * f64::from(1 << 20));
        let more = last.report.clone();
        self.keep(torch, rounds.iter().map(|round| round.step_ms).collect(), bytes, more);
    }

    fn keep(&self, engine: Engine, rounds_ms: Vec<f64>, bytes: Option<f64>, more: Value) {
        let Workload { name: workload, batch, .. } = *self.workload;
        self.bench.keep(Speed { workload, engine, batch, rounds_ms, bytes, more });
    }

    /// Whether the time is used up; what is left out then is noted.
    fn is_late(&self, engine: Engine, found: &mut Found) -> bool {
        let is_up = self.bench.clock.is_up();
        if is_up {
            found.left_out.push(format!("{}, {}: a round", self.workload.name, engine.name()));
        }
        is_up
    }

    fn told(&self, engine: Engine, error: &anyhow::Error) -> String {
        format!("{}, {}: {error:#}", self.workload.name, engine.name())
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::super::tests::args;
    use super::super::workload::RESNET18;
    use super::*;

    /// What a script gives, beside ours on a device that has no whole steps.
    fn beside(script: &str, limit_s: u64) -> (Bench, Found) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("torch.py");
        std::fs::write(&path, script).unwrap();
        let line = "--device cpu --python sh --rounds 2 --steps 1 --limit-s";
        let line = format!("{line} {limit_s} --torch-script {}", path.display());
        let bench = Bench::new(args(&line).unwrap()).unwrap();
        let mut found = Found::default();
        let (ours, torch) = (Engine::Mixed, Some(Engine::Torch));
        let rounds = Rounds { bench: &bench, workload: &RESNET18, ours, torch };
        rounds.run(2, 1, &mut found);
        (bench, found)
    }

    #[test]
    fn the_script_is_told_the_step_and_timed_though_ours_fails() {
        let script = "echo \"$*\" | grep -q -- '--arch resnet18 .* --device cpu --steps 12 --bf16' || exit 1\n\
                      echo '{\"step_ms\": 20.5, \"peak_gpu_mb\": 2000}'";
        let (bench, found) = beside(script, 100);
        assert_eq!(found.wrong.len(), 1, "{:?}", found.wrong);
        assert!(found.wrong[0].contains("no whole steps"), "{:?}", found.wrong);
        let report = bench.report();
        let speed = report.speed_of(RESNET18.name, Engine::Torch).unwrap();
        assert_eq!(speed.rounds_ms, [20.5, 20.5]);
        assert_eq!(speed.bytes, Some(2000.0 * 1048576.0));
    }

    #[test]
    fn a_script_that_fails_is_wrong_and_one_without_an_end_is_left_out() {
        let (_, found) = beside("echo no torch >&2; exit 1", 100);
        assert_eq!(
            found.wrong.iter().filter(|wrong| wrong.contains("no torch")).count(),
            2,
            "{:?}",
            found.wrong
        );
        let (bench, found) = beside("exec sleep 60", 2);
        assert_eq!(found.left_out.len(), 2, "{:?}", found.left_out);
        assert!(found.left_out[0].contains("ended") && bench.report().speeds.is_empty());
    }
}
