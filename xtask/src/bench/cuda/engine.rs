//! What runs a training step, and how fast it was.

use std::fmt;

use serde_json::{Value, json};
use swav_encoder::Precision;

use crate::bench::speed::median as median_of_sorted;

/// What runs a training step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// Ours, activations in bf16.
    Mixed,
    /// Ours in f32, convolutions by TF32.
    Tf32,
    /// Ours in f32.
    F32,
    /// PyTorch with activations in bf16.
    Torch,
    /// The same, compiled.
    TorchCompiled,
    /// PyTorch in f32, convolutions by TF32, which is its default.
    TorchF32,
}

impl Engine {
    /// The name in tables.
    pub const fn name(self) -> &'static str {
        match self {
            Engine::Mixed => "swav mixed",
            Engine::Tf32 => "swav TF32",
            Engine::F32 => "swav f32",
            Engine::Torch => "PyTorch bf16 channels-last",
            Engine::TorchCompiled => "PyTorch bf16 compiled",
            Engine::TorchF32 => "PyTorch f32 (TF32)",
        }
    }

    /// Ours that one of PyTorch's is compared with.
    pub const fn counterpart(self) -> Option<Engine> {
        match self {
            Engine::Mixed | Engine::Tf32 | Engine::F32 => None,
            Engine::Torch | Engine::TorchCompiled => Some(Engine::Mixed),
            Engine::TorchF32 => Some(Engine::Tf32),
        }
    }

    /// What an encoder computes with that does the same: the precision of activations, and whether convolutions of f32 are by
    /// TF32.
    pub const fn arithmetic(self) -> (Precision, bool) {
        match self {
            Engine::Mixed | Engine::Torch | Engine::TorchCompiled => (Precision::Mixed, false),
            Engine::Tf32 | Engine::TorchF32 => (Precision::F32, true),
            Engine::F32 => (Precision::F32, false),
        }
    }

    /// The options of PyTorch's script beside those of the step.
    pub const fn options(self) -> &'static [&'static str] {
        match self {
            Engine::Mixed | Engine::Tf32 | Engine::F32 => &[],
            Engine::Torch => &["--bf16", "--channels-last", "--foreach"],
            Engine::TorchCompiled => &["--bf16", "--channels-last", "--foreach", "--compile"],
            Engine::TorchF32 => &["--foreach"],
        }
    }
}

/// How fast an engine was.
#[derive(Debug, Clone)]
pub struct Speed {
    /// The name of the training step.
    pub workload: &'static str,
    /// What ran it.
    pub engine: Engine,
    /// Images of a step.
    pub batch: usize,
    /// Milliseconds a step, of each round; at least one.
    pub rounds_ms: Vec<f64>,
    /// What it takes of the card's memory, where known.
    pub bytes: Option<f64>,
    /// What else was found.
    pub more: Value,
}

impl Speed {
    /// The line above a table of speeds.
    pub const TITLE: &'static str = "training step                             engine                           ms    images/s     GB  rounds";

    /// The median of the rounds, in milliseconds.
    pub fn step_ms(&self) -> f64 {
        median(&self.rounds_ms)
    }

    /// For the line of JSON.
    pub fn json(&self) -> Value {
        json!({
            "workload": self.workload, "engine": self.engine.name(), "step_ms": self.step_ms(),
            "rounds_ms": self.rounds_ms, "images_per_s": self.images_per_s(), "bytes": self.bytes, "more": self.more,
        })
    }

    fn images_per_s(&self) -> f64 {
        self.batch as f64 / (self.step_ms() / 1e3)
    }
}

impl fmt::Display for Speed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let memory = self.bytes.map_or_else(String::new, |bytes| format!("{:.2}", bytes / 1e9));
        let rounds: Vec<String> = self.rounds_ms.iter().map(|ms| format!("{ms:.2}")).collect();
        let (workload, engine, rounds) = (self.workload, self.engine.name(), rounds.join(", "));
        let (ms, rate) = (self.step_ms(), self.images_per_s());
        write!(f, "{workload:<41} {engine:<26} {ms:>8.2} {rate:>11.1} {memory:>6}  {rounds:<20}")
    }
}

/// The middle of some numbers, at least one; of an even number of them, the mean of the two in the middle.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    median_of_sorted(&sorted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[3.0, 1.0]), 2.0);
        assert_eq!(median(&[5.0]), 5.0);
    }

    #[test]
    fn numbers_are_below_their_titles() {
        let speed = Speed {
            workload: "ResNet-18 CIFAR, 256 images, 2x32 + 4x16",
            engine: Engine::Torch,
            batch: 256,
            rounds_ms: vec![20.0],
            bytes: Some(2e9),
            more: Value::Null,
        };
        let line = speed.to_string();
        for (title, value) in [(" ms", "20.00"), ("images/s", "12800.0"), ("GB", "2.00")] {
            let end = |text: &str, part: &str| text.find(part).unwrap() + part.len();
            assert_eq!(end(&line, value), end(Speed::TITLE, title), "{title}\n{}\n{line}", Speed::TITLE);
        }
    }
}
