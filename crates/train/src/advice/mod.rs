//! Advice before a run: what is known to fail in a configuration for these images on this machine, and a configuration
//! that suits them.
//!
//! [`examine`] is a pure function of a configuration and of [`Facts`]; each [`Finding`] says what was seen, why it
//! matters, and what to do, as values of the configuration where that is possible. [`repair`] applies these. [`propose`]
//! makes a configuration from the facts alone, with the reason of each choice.
//!
//! ```
//! use swav_train::TrainConfig;
//! use swav_train::advice::{DataFacts, Facts, MachineFacts, examine};
//!
//! let config = TrainConfig::parse("[training]\nbatch_size = 64\n[queue]\nlength = 500", &[])?;
//! let data = DataFacts { n_images: 50_000, short_side: 256, ..DataFacts::default() };
//! let machine = MachineFacts { n_cores: 8, ..MachineFacts::default() };
//! let findings = examine(&config, &Facts { data, machine, ..Facts::default() });
//! assert!(findings.iter().any(|finding| finding.rule == "queue-not-whole-batches"));
//! # Ok::<(), swav_train::ConfigError>(())
//! ```

mod facts;
mod proposal;
mod rules;
#[cfg(test)]
mod tests;

use std::fmt;

use crate::config::{ConfigError, TrainConfig};

pub use facts::{DataFacts, Facts, MachineFacts, StepFacts};
pub use proposal::{Proposal, Reason, propose};

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Worth knowing; the run will do.
    Note,
    /// The run is likely to be worse than it could be, or to fail.
    Warning,
    /// The run cannot go on as it is meant.
    Error,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Error => "error",
        })
    }
}

/// Something in a configuration that is known to fail or to be wasteful.
#[derive(Debug, Clone, PartialEq)]
pub struct Finding {
    /// The rule's name, such as `queue-not-whole-batches`.
    pub rule: &'static str,
    /// How bad it is.
    pub level: Level,
    /// What has been seen, with numbers.
    pub sign: String,
    /// Why that matters.
    pub cause: String,
    /// What to do, in words.
    pub remedy: String,
    /// What to do, as values of the configuration: dotted key and TOML value. Empty where it takes a decision.
    pub changes: Vec<(&'static str, String)>,
}

impl Finding {
    fn new(
        rule: &'static str,
        level: Level,
        sign: impl Into<String>,
        cause: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        let (sign, cause, remedy) = (sign.into(), cause.into(), remedy.into());
        Self { rule, level, sign, cause, remedy, changes: Vec::new() }
    }

    #[must_use]
    fn set(mut self, key: &'static str, value: impl ToString) -> Self {
        self.changes.push((key, value.to_string()));
        self
    }
}

/// Everything that is known to fail in `config` for these facts, the worst first.
///
/// The configuration need not pass [`TrainConfig::check`]: what that refuses is said there.
pub fn examine(config: &TrainConfig, facts: &Facts) -> Vec<Finding> {
    let mut resolved = config.clone();
    resolved.augment = resolved.augment.resolved();
    let case = Case { config: &resolved, facts };
    let mut found: Vec<Finding> = rules::ALL.iter().filter_map(|rule| rule(&case)).collect();
    found.sort_by_key(|finding| std::cmp::Reverse(finding.level));
    found
}

/// The names of all rules that [`examine`] knows.
pub fn rule_names() -> &'static [&'static str] {
    rules::NAMES
}

/// Applies the changes of all findings until none is left that has any; gives the configuration and what remains.
///
/// # Errors
/// [`ConfigError`] if the configuration cannot be written as TOML.
pub fn repair(config: &TrainConfig, facts: &Facts) -> Result<(TrainConfig, Vec<Finding>), ConfigError> {
    const ROUNDS: usize = 8;
    let mut config = config.clone();
    for _ in 0..ROUNDS {
        let findings = examine(&config, facts);
        // One at a time: a change may settle, or alter, what another rule says.
        let Some(finding) = findings.iter().find(|finding| !finding.changes.is_empty()) else {
            return Ok((config, findings));
        };
        for (key, value) in &finding.changes {
            config = TrainConfig::parse(&config.to_toml()?, &[format!("{key}={value}")])?;
        }
    }
    let findings = examine(&config, facts);
    Ok((config, findings))
}

/// A configuration with every number of its augmentation, and what it is for.
struct Case<'a> {
    config: &'a TrainConfig,
    facts: &'a Facts,
}

impl Case<'_> {
    fn n_images(&self) -> usize {
        self.facts.data.n_images
    }

    fn batch(&self) -> usize {
        self.config.training.batch_size.max(1)
    }

    /// Prototypes of the largest head.
    fn n_prototypes(&self) -> usize {
        self.config.prototypes.n_prototypes.iter().copied().max().unwrap_or(0)
    }

    fn steps_per_epoch(&self) -> u64 {
        (self.n_images() / self.batch()) as u64
    }

    fn total_steps(&self) -> u64 {
        self.steps_per_epoch() * self.config.training.epochs
    }

    fn crops(&self) -> &[swav_augment::CropConfig] {
        self.config.augment.crops.as_deref().unwrap_or_default()
    }

    /// Rows of each list of the queue as training uses them.
    fn queue(&self) -> usize {
        self.config.queue.length / self.batch() * self.batch()
    }

    /// How far scores of unit vectors of this dimension differ by chance, in units of epsilon.
    fn contrast(&self) -> f64 {
        1.0 / (self.config.sinkhorn.epsilon * (self.config.encoder.dim.max(1) as f64).sqrt())
    }
}
