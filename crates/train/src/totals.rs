//! Sums over the steps of this process, and what they come to at the end.

use std::path::PathBuf;
use std::time::Instant;

use crate::checkpoint::RunPosition;

/// How a run, or the part of it in this process, ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Where the run stands.
    pub position: RunPosition,
    /// Whether all epochs are done; if not, the run was stopped and can be resumed.
    pub finished: bool,
    /// Mean loss of the last epoch that this process worked on; NaN if it did no step.
    pub loss: f64,
    /// Steps done in this process.
    pub n_steps: u64,
    /// Seconds that they took.
    pub seconds: f64,
    /// Images a second over all of them, of all processes together.
    pub images_per_s: f64,
    /// Share of the time spent waiting for data, 0 to 1.
    pub data_wait: f64,
    /// Images that could not be read and were replaced.
    pub n_bad_images: u64,
    /// The newest checkpoint.
    pub checkpoint: PathBuf,
}

/// The share of the time from which on waiting for images is worth a word.
const MUCH_WAITING: f64 = 0.3;
/// Seconds that are looked at together: one step may wait for many a reason.
const WATCHED_SECONDS: f64 = 10.0;

/// What to do about a training that spends this share of its time, 0 to 1, waiting for images; `None` where that is little.
///
/// ```
/// assert_eq!(swav_train::advice_on_waiting(0.1), None);
/// assert!(swav_train::advice_on_waiting(0.6).is_some_and(|advice| advice.contains("data.decode.max_side")));
/// ```
pub fn advice_on_waiting(data_wait: f64) -> Option<String> {
    (data_wait > MUCH_WAITING).then(|| {
        format!(
            "{:.0}% of the time goes on waiting for images; data.decode.max_side reduces large photos while they are decoded (600 is enough \
             for crops of 224), data.cache_mib keeps more of them in memory, and loader.n_workers gives them more threads",
            100.0 * data_wait
        )
    })
}

/// Speed over some steps.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Speed {
    n_steps: u64,
    seconds: f64,
    waited: f64,
}

impl Speed {
    fn add(&mut self, seconds: f64, waited: f64) {
        self.n_steps += 1;
        self.seconds += seconds;
        self.waited += waited;
    }

    /// Images a second. A clock too coarse for a step must not give an infinity, which JSON cannot hold.
    pub(crate) fn images_per_s(&self, batch_size: usize) -> f64 {
        self.n_steps as f64 * batch_size as f64 / self.seconds.max(1e-9)
    }

    /// Share of the time spent waiting for data, 0 to 1.
    pub(crate) fn data_wait(&self) -> f64 {
        (self.waited / self.seconds.max(1e-9)).min(1.0)
    }
}

/// Sums over the steps of this process.
pub(crate) struct Totals {
    all: Speed,
    since_line: Speed,
    epoch: (u64, f64),
    last_epoch_loss: f64,
    /// What is looked at for waiting.
    watched: Speed,
    waiting_told: bool,
    /// When the last checkpoint was saved.
    pub(crate) saved: Instant,
}

impl Totals {
    pub(crate) fn new() -> Self {
        Self {
            all: Speed::default(),
            since_line: Speed::default(),
            epoch: (0, 0.0),
            last_epoch_loss: f64::NAN,
            watched: Speed::default(),
            waiting_told: false,
            saved: Instant::now(),
        }
    }

    /// Takes in a step; gives the speed since the last line of metrics.
    pub(crate) fn add(&mut self, loss: f64, seconds: f64, waited: f64) -> Speed {
        self.all.add(seconds, waited);
        self.since_line.add(seconds, waited);
        self.epoch = (self.epoch.0 + 1, self.epoch.1 + loss);
        self.last_epoch_loss = self.epoch.1 / self.epoch.0 as f64;
        self.since_line
    }

    /// A line of metrics has been written. Gives advice, once, if much of the last seconds went on waiting for images.
    pub(crate) fn end_line(&mut self) -> Option<String> {
        let line = std::mem::take(&mut self.since_line);
        // The first steps wait for the first images, whatever comes after.
        if self.waiting_told || self.all.n_steps == line.n_steps {
            return None;
        }
        self.watched.n_steps += line.n_steps;
        self.watched.seconds += line.seconds;
        self.watched.waited += line.waited;
        if self.watched.seconds < WATCHED_SECONDS {
            return None;
        }
        let advice = advice_on_waiting(std::mem::take(&mut self.watched).data_wait());
        self.waiting_told = advice.is_some();
        advice
    }

    /// Mean loss of the epoch that has just ended.
    pub(crate) fn end_epoch(&mut self) -> f64 {
        self.epoch = (0, 0.0);
        self.last_epoch_loss
    }

    /// What they come to.
    pub(crate) fn outcome(&self, position: RunPosition, batch_size: usize, n_bad_images: u64) -> Outcome {
        Outcome {
            position,
            finished: false,
            loss: self.last_epoch_loss,
            n_steps: self.all.n_steps,
            seconds: self.all.seconds,
            images_per_s: self.all.images_per_s(batch_size),
            data_wait: self.all.data_wait(),
            n_bad_images,
            checkpoint: PathBuf::new(),
        }
    }
}
