//! What a run's folder tells of how the run went: configuration, metrics, evaluations.

use std::fs;
use std::path::Path;

use anyhow::Context;
use serde_json::Value;
use swav_train::{Metrics, RunFolder, TrainConfig};

use crate::configuration::{self, Changes};

/// A run as its folder has it, finished or not.
pub(crate) struct RunRecord {
    pub folder: RunFolder,
    pub config: TrainConfig,
    /// By step.
    pub metrics: Vec<Metrics>,
    /// Evaluations during training: step, and the names and values of the numbers.
    pub evaluated: Vec<(u64, Vec<(String, f64)>)>,
    /// Evaluations afterwards.
    pub evaluations: Vec<Evaluation>,
}

/// One evaluation as its file has it.
pub(crate) struct Evaluation {
    pub name: String,
    pub step: Option<u64>,
    pub results: Vec<EvaluationResult>,
}

/// One number of an evaluation.
pub(crate) struct EvaluationResult {
    /// Such as `accuracy`.
    pub name: String,
    /// Such as `trained network`.
    pub of: String,
    pub value: f64,
    /// An interval of confidence, where there is one.
    pub interval: Option<(f64, f64)>,
    pub n: Option<u64>,
}

impl RunRecord {
    /// Reads a run's folder. Lines and files that are no records of this kind are passed over: a run may be writing them.
    pub fn read(run: &Path, changes: &Changes) -> anyhow::Result<Self> {
        let folder = RunFolder::at(run);
        let config = configuration::of_run(&folder, changes)?;
        let text = match fs::read_to_string(folder.metrics()) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error).with_context(|| folder.metrics().display().to_string()),
        };
        let (mut metrics, mut evaluated) = (Vec::<Metrics>::new(), Vec::new());
        for line in text.lines() {
            if let Ok(line) = serde_json::from_str(line) {
                metrics.push(line);
            } else if let Ok(value) = serde_json::from_str::<Value>(line) {
                evaluated.extend(evaluation_line(&value));
            }
        }
        metrics.sort_by_key(|line| line.step);
        metrics.dedup_by_key(|line| line.step);
        let evaluations = evaluations(&folder);
        Ok(Self { folder, config, metrics, evaluated, evaluations })
    }

    /// Steps that are done.
    pub fn n_steps(&self) -> u64 {
        self.metrics.last().map_or(0, |line| line.step + 1)
    }

    /// Whether the weights of the end are there.
    pub fn is_finished(&self) -> bool {
        self.folder.weights().exists()
    }

    /// Batches of an epoch, once one is over, or a guess from what there is.
    pub fn steps_per_epoch(&self) -> Option<u64> {
        self.metrics.iter().find(|line| line.epoch > 0).map(|line| (line.step - line.batch) / line.epoch)
    }
}

/// The numbers of a line that holds an evaluation during training.
fn evaluation_line(line: &Value) -> Option<(u64, Vec<(String, f64)>)> {
    let numbers = line.get("evaluation")?.as_object()?;
    let numbers = numbers.iter().filter_map(|(name, value)| Some((name.clone(), value.as_f64()?)));
    Some((line.get("step")?.as_u64()?, numbers.collect()))
}

/// All files of evaluations, by name, and the one that training itself writes at its end.
fn evaluations(folder: &RunFolder) -> Vec<Evaluation> {
    let mut found = Vec::new();
    let mut paths: Vec<_> = fs::read_dir(folder.root().join("evaluations"))
        .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
        .unwrap_or_default();
    paths.sort();
    for path in paths.iter().filter(|path| path.extension().is_some_and(|ending| ending == "json")) {
        let stem = path.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned());
        found.extend(read_json(path).and_then(|value| evaluation(&stem, &value)));
    }
    let at_end = read_json(&folder.root().join("evaluation.json")).and_then(|value| of_training(&value));
    let known = found.iter().any(|evaluation: &Evaluation| evaluation.name.starts_with("knn"));
    found.extend(at_end.filter(|_| !known));
    found
}

fn read_json(path: &Path) -> Option<Value> {
    serde_json::from_str(&fs::read_to_string(path).ok()?).ok()
}

fn evaluation(stem: &str, value: &Value) -> Option<Evaluation> {
    let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
    let results = value.get("results")?.as_array()?.iter().filter_map(|result| {
        let number = |key: &str| result.get(key).and_then(Value::as_f64);
        Some(EvaluationResult {
            name: text(result, "name")?,
            of: text(result, "of").unwrap_or_default(),
            value: number("value")?,
            interval: number("low").zip(number("high")),
            n: result.get("n").and_then(Value::as_u64),
        })
    });
    let results: Vec<_> = results.collect();
    let name = text(value, "evaluation").unwrap_or_else(|| stem.to_owned());
    let name = if name == stem || stem.is_empty() { name } else { format!("{name} ({stem})") };
    let step = value.get("step").and_then(Value::as_u64);
    (!results.is_empty()).then_some(Evaluation { name, step, results })
}

/// `evaluation.json`: k-NN accuracies of trained and untrained network and raw pixels.
fn of_training(value: &Value) -> Option<Evaluation> {
    let results = value.as_array()?.iter().filter_map(|verdict| {
        let of = verdict.get("subject")?.as_str()?.replace('_', " ");
        let of = if of == "raw pixels" { of } else { format!("{of} network") };
        let value = verdict.get("top1")?.as_f64()?;
        Some(EvaluationResult { name: "accuracy".to_owned(), of, value, interval: None, n: None })
    });
    Some(Evaluation { name: "knn".to_owned(), step: None, results: results.collect() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn evaluations_are_read_leniently() {
        let file = json!({"evaluation": "linear", "step": 12, "seed": 0, "results": [
            {"name": "accuracy", "of": "trained network", "value": 0.5, "low": 0.4, "high": 0.6, "n": 100},
            {"name": "odd"},
        ]});
        let read = evaluation("linear", &file).unwrap();
        assert_eq!((read.name.as_str(), read.step, read.results.len()), ("linear", Some(12), 1));
        assert_eq!(read.results[0].interval, Some((0.4, 0.6)));
        assert!(evaluation("x", &json!({"results": "none"})).is_none());
        let old = of_training(
            &json!([{"subject": "trained", "top1": 0.7}, {"subject": "raw_pixels", "top1": 0.2}]),
        );
        let of: Vec<String> = old.unwrap().results.into_iter().map(|result| result.of).collect();
        assert_eq!(of, ["trained network", "raw pixels"]);
        let line = json!({"epoch": 3, "step": 1200, "evaluation": {"knn_accuracy": 0.71}});
        assert_eq!(evaluation_line(&line), Some((1200, vec![("knn_accuracy".to_owned(), 0.71)])));
    }
}
