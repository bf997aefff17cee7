//! The progress bar (feature `progress`), and a log line now and then where there is none.

use std::time::{Duration, Instant};

use crate::checkpoint::RunPosition;

/// Seconds between two log lines.
const LOG_EVERY: Duration = Duration::from_secs(30);
/// Weight of the newest step in the average speed and loss.
const SMOOTHING: f64 = 0.05;

/// Shows loss, learning rate, images per second and the time left.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: Bar,
    epochs: u64,
    total_iters: u64,
    batch_size: usize,
    loss: Option<f64>,
    seconds_per_step: Option<f64>,
    /// What was found out last, for the end of the line.
    note: String,
    logged: Instant,
}

impl Progress {
    /// A bar over the whole run, at the given position. Without a terminal (or if `shown` is false) there is no
    /// bar, only log lines.
    pub(crate) fn new(
        shown: bool,
        position: RunPosition,
        epochs: u64,
        total_iters: u64,
        batch_size: usize,
    ) -> Self {
        Self {
            bar: Bar::new(shown, position.step, total_iters),
            epochs,
            total_iters,
            batch_size,
            loss: None,
            seconds_per_step: None,
            note: String::new(),
            logged: Instant::now(),
        }
    }

    /// After a step that took `seconds`.
    pub(crate) fn step(&mut self, position: RunPosition, loss: f64, lr: f64, seconds: f64) {
        let average = |old: Option<f64>, new| old.map_or(new, |old| old + SMOOTHING * (new - old));
        self.loss = Some(average(self.loss, loss));
        self.seconds_per_step = Some(average(self.seconds_per_step, seconds));
        let (loss, per_step) = (average(self.loss, loss), average(self.seconds_per_step, seconds));
        let left = (self.total_iters - position.step.min(self.total_iters)) as f64 * per_step;
        let message = format!(
            "loss {loss:.4}  lr {lr:.3e}  {:.1} images/s  {} left{}",
            self.batch_size as f64 / per_step,
            hours(left),
            self.note
        );
        if self.logged.elapsed() >= LOG_EVERY && self.bar.is_hidden() {
            tracing::info!("step {}/{}: {message}", position.step, self.total_iters);
            self.logged = Instant::now();
        }
        let prefix = format!("epoch {}/{}", (position.epoch + 1).min(self.epochs), self.epochs);
        self.bar.set(position.step, prefix, message);
    }

    /// Shows numbers at the end of the line from now on, and once in the log.
    pub(crate) fn note(&mut self, numbers: &[(String, f64)]) {
        if numbers.is_empty() {
            return;
        }
        let named: Vec<String> =
            numbers.iter().map(|(name, value)| format!("{} {value:.4}", name.replace('_', " "))).collect();
        self.note = format!("  {}", named.join("  "));
        self.log(|| tracing::info!("{}", named.join(", ")));
    }

    /// Runs `log` with the bar out of the way.
    pub(crate) fn log(&self, log: impl FnOnce()) {
        self.bar.suspend(log);
    }

    /// Removes the bar.
    pub(crate) fn finish(&self) {
        self.bar.finish();
    }
}

/// The bar on a terminal.
#[cfg(feature = "progress")]
#[derive(Debug)]
struct Bar(indicatif::ProgressBar);

#[cfg(feature = "progress")]
impl Bar {
    fn new(shown: bool, step: u64, total_iters: u64) -> Self {
        use indicatif::{ProgressBar, ProgressStyle};
        let bar = if shown { ProgressBar::new(total_iters) } else { ProgressBar::hidden() };
        let style = ProgressStyle::with_template("{prefix} [{bar:30}] {percent:>3}% {msg}")
            .expect("the template is fixed and valid")
            .progress_chars("=> ");
        bar.set_style(style);
        bar.set_position(step);
        Self(bar)
    }

    fn is_hidden(&self) -> bool {
        self.0.is_hidden()
    }

    fn set(&self, step: u64, prefix: String, message: String) {
        self.0.set_prefix(prefix);
        self.0.set_position(step);
        self.0.set_message(message);
    }

    fn suspend(&self, log: impl FnOnce()) {
        self.0.suspend(log);
    }

    fn finish(&self) {
        self.0.finish_and_clear();
    }
}

/// No bar: a library's user did not ask for one.
#[cfg(not(feature = "progress"))]
#[derive(Debug)]
struct Bar;

#[cfg(not(feature = "progress"))]
impl Bar {
    fn new(_shown: bool, _step: u64, _total_iters: u64) -> Self {
        Self
    }

    fn is_hidden(&self) -> bool {
        true
    }

    fn set(&self, _step: u64, _prefix: String, _message: String) {}

    fn suspend(&self, log: impl FnOnce()) {
        log();
    }

    fn finish(&self) {}
}

/// `1:02:03`.
fn hours(seconds: f64) -> String {
    let seconds = seconds as u64;
    format!("{}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}
