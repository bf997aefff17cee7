//! The training configuration: what a TOML file says, and how it becomes a checked [`Settings`].
//!
//! A file is read once, overrides are applied to it, unknown keys are refused by name, and every value
//! is checked. Library code works with the checked [`Settings`].

mod check;
mod parse;
mod sections;
mod sizes;

pub use check::Settings;
pub use parse::{ConfigError, config_text, parse_override};
pub use sections::{
    CheckpointConfig, LossConfig, MonitorConfig, OnCollapse, OptimizerConfig, OptimizerKind,
    PrototypesConfig, QueueConfig, ReestimationConfig, SinkhornConfig, TrainingConfig,
};
pub use sizes::{MemoryEstimate, MemoryPart, TrainingSizes};

use std::path::Path;

use serde::{Deserialize, Serialize};
use swav_augment::MultiCropConfig;
use swav_data::{DataConfig, LoaderConfig};
use swav_encoder::EncoderConfig;

/// Everything that defines a training run. Defaults are the SwAV reference's (`main_swav.py`).
///
/// ```
/// use swav_train::TrainConfig;
/// let config = TrainConfig::parse("[optimizer]\nbase_lr = 0.6", &["training.epochs=20".to_owned()])?;
/// assert_eq!((config.optimizer.base_lr, config.training.epochs), (0.6, 20));
/// # Ok::<(), swav_train::ConfigError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// Length of the run, batch size, seed, threads.
    pub training: TrainingConfig,
    /// Where the images come from.
    pub data: DataConfig,
    /// How batches are made of them.
    pub loader: LoaderConfig,
    /// The crops of each image.
    pub augment: MultiCropConfig,
    /// The network.
    pub encoder: EncoderConfig,
    /// The prototype layer.
    pub prototypes: PrototypesConfig,
    /// Optimal transport for the codes.
    pub sinkhorn: SinkhornConfig,
    /// The swapped-prediction loss.
    pub loss: LossConfig,
    /// The feature queue.
    pub queue: QueueConfig,
    /// The optimiser and its schedule.
    pub optimizer: OptimizerConfig,
    /// When the state is saved.
    pub checkpoint: CheckpointConfig,
    /// What is watched while training.
    pub monitor: MonitorConfig,
    /// Batch-norm statistics of the trained network.
    pub reestimation: ReestimationConfig,
    /// What an encoder that no `encoder` section can describe says of itself; empty for a network of this project. Only
    /// the program that made such an encoder can build it again, so it has no place in a recipe.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub own_encoder: String,
}

impl TrainConfig {
    /// Reads a TOML file and applies `key=value` overrides with dotted keys, in order.
    ///
    /// # Errors
    /// [`ConfigError`]: an unreadable file, bad syntax, an unknown key (with the nearest known one), a value of
    /// the wrong type.
    pub fn load(path: &Path, overrides: &[String]) -> Result<Self, ConfigError> {
        let text = parse::config_text(path)?;
        Self::parse(&text, overrides).map_err(|error| error.in_file(path))
    }

    /// As [`load`](Self::load), from the text of a file.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn parse(text: &str, overrides: &[String]) -> Result<Self, ConfigError> {
        parse::parse(text, overrides)
    }

    /// The whole configuration as TOML, defaults included: what a run folder keeps.
    ///
    /// # Errors
    /// [`ConfigError::Write`] if a number does not fit TOML, such as a seed above 2^63.
    pub fn to_toml(&self) -> Result<String, ConfigError> {
        let mut table = self.to_table()?;
        if !self.own_encoder.is_empty() {
            table.remove("encoder");
        }
        Ok(toml::to_string_pretty(&table)?)
    }

    /// The configuration as a table.
    pub(crate) fn to_table(&self) -> Result<toml::Table, ConfigError> {
        Ok(toml::Table::try_from(self)?)
    }

    /// Checks every value.
    ///
    /// # Errors
    /// [`ConfigError::Value`] with the key, what is allowed and what came.
    pub fn check(&self) -> Result<Settings, ConfigError> {
        Settings::new(self.clone())
    }
}
