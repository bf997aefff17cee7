//! The progress bar, and a log line now and then where there is no terminal.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::checkpoint::Position;

/// Seconds between two log lines.
const LOG_EVERY: Duration = Duration::from_secs(30);
/// Weight of the newest step in the average speed and loss.
const SMOOTHING: f64 = 0.05;

/// Shows loss, learning rate, images per second and the time left.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: ProgressBar,
    epochs: u64,
    total_iters: u64,
    batch_size: usize,
    loss: Option<f64>,
    seconds_a_step: Option<f64>,
    logged: Instant,
}

impl Progress {
    /// A bar over the whole run, at the given position. Without a terminal (or if `shown` is false) there is no
    /// bar, only log lines.
    pub(crate) fn new(
        shown: bool,
        position: Position,
        epochs: u64,
        total_iters: u64,
        batch_size: usize,
    ) -> Self {
        let bar = if shown { ProgressBar::new(total_iters) } else { ProgressBar::hidden() };
        let style = ProgressStyle::with_template("{prefix} [{bar:30}] {percent:>3}% {msg}")
            .expect("the template is fixed and valid")
            .progress_chars("=> ");
        bar.set_style(style);
        bar.set_position(position.step);
        Self {
            bar,
            epochs,
            total_iters,
            batch_size,
            loss: None,
            seconds_a_step: None,
            logged: Instant::now(),
        }
    }

    /// After a step that took `seconds`.
    pub(crate) fn step(&mut self, position: Position, loss: f64, lr: f64, seconds: f64) {
        let average = |old: Option<f64>, new| old.map_or(new, |old| old + SMOOTHING * (new - old));
        self.loss = Some(average(self.loss, loss));
        self.seconds_a_step = Some(average(self.seconds_a_step, seconds));
        let (loss, a_step) = (average(self.loss, loss), average(self.seconds_a_step, seconds));
        let left = (self.total_iters - position.step.min(self.total_iters)) as f64 * a_step;
        let message = format!(
            "loss {loss:.4}  lr {lr:.3e}  {:.1} images/s  {} left",
            self.batch_size as f64 / a_step,
            hours(left)
        );
        self.bar.set_prefix(format!("epoch {}/{}", (position.epoch + 1).min(self.epochs), self.epochs));
        self.bar.set_position(position.step);
        if self.logged.elapsed() >= LOG_EVERY && self.bar.is_hidden() {
            tracing::info!("step {}/{}: {message}", position.step, self.total_iters);
            self.logged = Instant::now();
        }
        self.bar.set_message(message);
    }

    /// Runs `log` with the bar out of the way.
    pub(crate) fn log(&self, log: impl FnOnce()) {
        self.bar.suspend(log);
    }

    /// Removes the bar.
    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// `1:02:03`.
fn hours(seconds: f64) -> String {
    let seconds = seconds as u64;
    format!("{}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}
