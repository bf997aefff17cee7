//! Opens data sets for the commands: what they all can be told of data, and how they all say what a path was taken for.

use std::path::Path;
use std::sync::Arc;

use swav_data::{DataConfig, DataError, Dataset, Format};
use swav_train::{ConfigError, TrainConfig};

use crate::configuration::usage_of;
use crate::{named, program};

/// How data are read: options of every command that opens images.
#[derive(clap::Args, Debug, Clone, Default)]
pub(crate) struct DataOptions {
    /// The layout of the data, if it is not to be told from the path: classes, flat, list, idx, cifar, tar, parquet, builtin.
    #[arg(long, value_parser = named::<Format>)]
    format: Option<Format>,

    /// Whether photos are turned as their EXIF data say [default: what the configuration says].
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    orientation: Option<bool>,

    /// The largest number of pixels an image may have.
    #[arg(long, value_name = "N")]
    max_pixels: Option<u64>,

    /// The Parquet column with the images.
    #[arg(long, value_name = "NAME")]
    image_column: Option<String>,

    /// The column or JSON field with the labels.
    #[arg(long, value_name = "NAME")]
    label_column: Option<String>,
}

impl DataOptions {
    /// Changes a configuration as the options say.
    pub(crate) fn apply(&self, config: &mut DataConfig) {
        if let Some(format) = self.format {
            config.format = format;
        }
        if let Some(orientation) = self.orientation {
            config.decode.orientation = orientation;
        }
        if let Some(max_pixels) = self.max_pixels {
            config.decode.max_pixels = max_pixels;
        }
        for (given, column) in
            [(&self.image_column, &mut config.image_column), (&self.label_column, &mut config.label_column)]
        {
            if given.is_some() {
                column.clone_from(given);
            }
        }
    }
}

/// The same for commands without a recipe, whose configuration is that of the data alone.
#[derive(clap::Args, Debug, Clone, Default)]
pub(crate) struct DataSettings {
    #[command(flatten)]
    options: DataOptions,

    /// Change a value of the configuration of the data, such as data.holdout=0.1. Repeatable.
    #[arg(long = "set", value_name = "data.KEY=VALUE")]
    settings: Vec<String>,
}

impl DataSettings {
    /// The configuration for the data at a path.
    pub(crate) fn config(&self, path: &Path) -> anyhow::Result<DataConfig> {
        if let Some(other) = self.settings.iter().find(|setting| !setting.trim_start().starts_with("data.")) {
            return Err(crate::usage(format!(
                "--set {other}: this command knows keys that begin with `data.` only"
            )));
        }
        let mut config = TrainConfig::parse("", &self.settings)
            .map_err(|error| match error {
                ConfigError::InOverride { given, source } => usage_of(&[given], &*source),
                error => usage_of(&self.settings, &error),
            })?
            .data;
        self.options.apply(&mut config);
        path.clone_into(&mut config.path);
        config.check()?;
        Ok(config)
    }
}

/// Opens a data set and says on standard error how its path was understood.
pub(crate) fn open_shown(config: &DataConfig) -> Result<Arc<dyn Dataset>, OpenError> {
    let data = open(config)?;
    understood(data.as_ref()).iter().for_each(|line| note!("{line}"));
    Ok(data)
}

/// How the path of a data set was understood: one line if all is plain.
pub(crate) fn understood(data: &dyn Dataset) -> Vec<String> {
    let told = data.survey().map_or_else(|| data.describe(), ToString::to_string);
    let title = std::iter::once("data").chain(std::iter::repeat(""));
    told.lines().zip(title).map(|(line, title)| format!("{title:<9}{line}")).collect()
}

/// Opens a data set. Where this program was built without its format, the error says what to type.
pub(crate) fn open(config: &DataConfig) -> Result<Arc<dyn Dataset>, OpenError> {
    config.open().map_err(OpenError::from)
}

/// A data set that cannot be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    /// The format is not in this program.
    #[error("{0}. To have it: {1}")]
    NotBuilt(DataError, String),
    /// A configuration says where images are, or were.
    #[error("{0}; --data PATH says where the images are")]
    Moved(DataError),
    #[error(transparent)]
    Other(DataError),
}

impl OpenError {
    /// The same for a path that was typed as an argument of its own: no option says it.
    pub(crate) fn of_an_argument(self) -> Self {
        match self {
            Self::Moved(error) => Self::Other(error),
            other => other,
        }
    }
}

impl From<DataError> for OpenError {
    fn from(error: DataError) -> Self {
        match error {
            DataError::NotBuilt { feature, .. } => Self::NotBuilt(error, how_to_have(&program(), feature)),
            DataError::Missing { .. } => Self::Moved(error),
            other => Self::Other(other),
        }
    }
}

/// What to type for a program that has a feature.
pub(crate) fn how_to_have(program: &str, feature: &str) -> String {
    match program.strip_prefix("cargo xtask") {
        Some(_) => format!("cargo xtask --features {feature} COMMAND ..."),
        None => format!("cargo install --path crates/cli --features {feature}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_format_that_is_not_built_comes_with_what_to_type() {
        let missing =
            || DataError::NotBuilt { path: "a.parquet".into(), format: "Parquet", feature: "parquet" };
        let message = OpenError::from(missing()).to_string();
        assert!(message.contains("a.parquet") && message.contains("--features parquet"), "{message}");
        assert!(how_to_have("cargo xtask", "parquet").starts_with("cargo xtask --features parquet "));
    }
}
