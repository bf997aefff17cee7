//! The numbers of each step, as JSON lines and for TensorBoard.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::checkpoint::RunPosition;
use crate::error::TrainError;
use crate::run_folder::RunFolder;
use crate::step::StepNumbers;
use crate::tensorboard::EventWriter;

/// One line of `metrics.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// The iteration, from 0.
    pub step: u64,
    /// Its epoch, from 0.
    pub epoch: u64,
    /// Its batch within the epoch, from 0.
    pub batch: u64,
    /// The loss in nats, averaged over processes.
    pub loss: f64,
    /// The learning rate.
    pub lr: f64,
    /// Mean entropy of the codes in nats.
    pub code_entropy: f64,
    /// Prototypes that the codes use, 1 to K.
    pub code_perplexity: f64,
    /// Prototypes that the predictions use, 1 to K.
    pub prediction_perplexity: f64,
    /// ln K minus the loss.
    pub gap_to_ln_k: f64,
    /// Spread of the embeddings, 0 to 1.
    pub spread: f64,
    /// Norm of all gradients.
    pub gradient_norm: f64,
    /// Norm of all parameters before the update.
    pub parameter_norm: f64,
    /// Whether the queue took part in the codes.
    pub queue_used: bool,
    /// How unequally the codes use prototypes, 0 to 2; see [`CodesVitals`](crate::CodesVitals). Absent where not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub row_residual: Option<f64>,
    /// How far the queue is from the batch, around 1 by chance; see [`CodesVitals`](crate::CodesVitals).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_drift: Option<f64>,
    /// Images a second of all processes, over the iterations since the last line.
    pub images_per_s: f64,
    /// Share of that time spent waiting for data, 0 to 1.
    pub data_wait: f64,
}

impl Metrics {
    /// The numbers of a step at `position`, which was done with the learning rate `lr`.
    pub(crate) fn new(position: RunPosition, lr: f64, numbers: &StepNumbers, speed: (f64, f64)) -> Self {
        let diagnostics = numbers.diagnostics.unwrap_or_default();
        Self {
            step: position.step,
            epoch: position.epoch,
            batch: position.batch,
            loss: numbers.loss,
            lr,
            code_entropy: diagnostics.code_entropy,
            code_perplexity: diagnostics.code_perplexity,
            prediction_perplexity: diagnostics.prediction_perplexity,
            gap_to_ln_k: diagnostics.gap_to_ln_k,
            spread: numbers.spread,
            gradient_norm: numbers.norms.gradient_norm,
            parameter_norm: numbers.norms.parameter_norm,
            queue_used: numbers.queue_used,
            row_residual: numbers.codes.row_residual,
            queue_drift: numbers.codes.queue_drift,
            images_per_s: speed.0,
            data_wait: speed.1,
        }
    }
}

/// Appends metrics to the files of a run.
#[derive(Debug)]
pub(crate) struct MetricsLog {
    lines: File,
    folder: RunFolder,
    events: Option<EventWriter>,
}

impl MetricsLog {
    /// Opens the files for steps from `first_step` on. Lines of that step and later, which a run wrote after the
    /// checkpoint that it is resumed from, are cut off first.
    pub(crate) fn open(folder: &RunFolder, first_step: u64, tensorboard: bool) -> Result<Self, TrainError> {
        let path = folder.metrics();
        let failed = |action| {
            let path = path.clone();
            move |source| TrainError::RunFolder { action, path, source }
        };
        if path.exists() {
            cut(&path, first_step).map_err(failed("shorten"))?;
        }
        let lines = OpenOptions::new().create(true).append(true).open(&path).map_err(failed("open"))?;
        let events =
            tensorboard.then(|| EventWriter::create(&folder.tensorboard(), first_step)).transpose().map_err(
                |source| TrainError::RunFolder { action: "write in", path: folder.tensorboard(), source },
            )?;
        Ok(Self { lines, folder: folder.clone(), events })
    }

    /// Appends one step.
    pub(crate) fn write(&mut self, metrics: &Metrics) -> Result<(), TrainError> {
        self.line(metrics)?;
        let scalars = [
            ("train/loss", metrics.loss),
            ("train/lr", metrics.lr),
            ("train/gap_to_ln_k", metrics.gap_to_ln_k),
            ("codes/entropy", metrics.code_entropy),
            ("codes/perplexity", metrics.code_perplexity),
            ("predictions/perplexity", metrics.prediction_perplexity),
            ("embeddings/spread", metrics.spread),
            ("norm/gradients", metrics.gradient_norm),
            ("norm/parameters", metrics.parameter_norm),
            ("speed/images_per_s", metrics.images_per_s),
            ("speed/data_wait", metrics.data_wait),
        ];
        let known = [("codes/row_residual", metrics.row_residual), ("queue/drift", metrics.queue_drift)];
        let known = known.into_iter().filter_map(|(name, value)| Some((name, value?)));
        let scalars: Vec<_> = scalars.into_iter().chain(known).collect();
        self.scalars(metrics.step, &scalars)
    }

    /// Appends what callbacks have found out about an epoch, whose last step is at `position`; nothing if that is nothing.
    pub(crate) fn write_evaluation(
        &mut self,
        position: RunPosition,
        numbers: &[(String, f64)],
    ) -> Result<(), TrainError> {
        if numbers.is_empty() {
            return Ok(());
        }
        let evaluation = numbers.iter().map(|(name, value)| (name.as_str(), *value)).collect();
        self.line(&Evaluation { epoch: position.epoch, step: position.step, evaluation })?;
        let tags: Vec<String> = numbers.iter().map(|(name, _)| format!("evaluation/{name}")).collect();
        let scalars: Vec<(&str, f64)> =
            tags.iter().zip(numbers).map(|(tag, (_, value))| (tag.as_str(), *value)).collect();
        self.scalars(position.step, &scalars)
    }

    /// Each line is one write, so a kill cuts the last line at most.
    fn line(&mut self, of: &impl Serialize) -> Result<(), TrainError> {
        let mut line = serde_json::to_string(of).expect("numbers are JSON");
        line.push('\n');
        self.lines.write_all(line.as_bytes()).map_err(|source| TrainError::RunFolder {
            action: "write",
            path: self.folder.metrics(),
            source,
        })
    }

    fn scalars(&mut self, step: u64, scalars: &[(&str, f64)]) -> Result<(), TrainError> {
        let Some(events) = &mut self.events else { return Ok(()) };
        events.scalars(step, scalars).map_err(|source| TrainError::RunFolder {
            action: "write in",
            path: self.folder.tensorboard(),
            source,
        })
    }

    /// Makes sure that all lines are on the disk, before a checkpoint that counts on them.
    pub(crate) fn sync(&self) -> Result<(), TrainError> {
        self.lines.sync_data().map_err(|source| TrainError::RunFolder {
            action: "sync",
            path: self.folder.metrics(),
            source,
        })
    }
}

/// A line about an epoch.
#[derive(Debug, Serialize)]
struct Evaluation<'a> {
    epoch: u64,
    /// The epoch's last step.
    step: u64,
    evaluation: BTreeMap<&'a str, f64>,
}

/// What every line has.
#[derive(Debug, Deserialize)]
struct Line {
    step: u64,
}

/// Keeps the lines of steps below `first_step`, up to the first that is later or cut off.
fn cut(path: &Path, first_step: u64) -> std::io::Result<()> {
    let mut reader = BufReader::new(File::open(path)?);
    let (mut kept, mut line) = (0u64, Vec::new());
    loop {
        line.clear();
        let length = reader.read_until(b'\n', &mut line)?;
        let whole = line.last() == Some(&b'\n');
        match serde_json::from_slice::<Line>(&line) {
            Ok(of) if whole && of.step < first_step => kept += length as u64,
            _ => break,
        }
    }
    if kept < fs::metadata(path)?.len() {
        OpenOptions::new().write(true).open(path)?.set_len(kept)?;
    }
    Ok(())
}
