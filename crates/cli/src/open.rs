//! Opens data sets for the commands.

use std::sync::Arc;

use swav_data::{DataConfig, DataError, Dataset};

use crate::program;

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
    #[error(transparent)]
    Other(DataError),
}

impl From<DataError> for OpenError {
    fn from(error: DataError) -> Self {
        match error {
            DataError::NotBuilt { feature, .. } => Self::NotBuilt(error, how_to_have(&program(), feature)),
            other => Self::Other(other),
        }
    }
}

/// What to type for a program that has a feature.
fn how_to_have(program: &str, feature: &str) -> String {
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
