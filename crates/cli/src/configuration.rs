//! Which configuration a command works with: a file or a recipe, changes from the command line, a run's own.

use std::path::{Path, PathBuf};

use anyhow::Context;
use swav_data::Format;
use swav_train::{ConfigError, RunFolder, TrainConfig};

use crate::{RECIPES, Recipe};

/// The recipe for a run without arguments.
pub const QUICKSTART: &str = "quickstart";

/// Changes to a configuration.
#[derive(clap::Args, Debug, Clone)]
pub struct Changes {
    /// The images: a folder of images or of one folder per class, a data set's own files, or `builtin`.
    #[arg(long, value_name = "PATH")]
    pub data: Option<PathBuf>,

    /// Change a value of the configuration, such as training.epochs=50 or encoder.arch=resnet50. Repeatable.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub settings: Vec<String>,

    /// auto (a card if one can be used, else the CPU), cpu, cuda:0 and so on (docs/cuda.md).
    #[arg(long)]
    pub device: Option<String>,
}

/// Where a configuration comes from.
#[derive(Debug, PartialEq)]
pub enum Source {
    /// A file.
    File(PathBuf),
    /// A recipe of the program.
    Recipe(Recipe),
}

/// The configuration that `--config` means: a path, or the name of a recipe, which may be written as its path in the
/// project, `configs/NAME.toml`.
pub fn find(given: &Path) -> anyhow::Result<Source> {
    if given.exists() {
        return Ok(Source::File(given.to_owned()));
    }
    let name = given.strip_prefix("configs").unwrap_or(given).to_string_lossy();
    let name = name.strip_suffix(".toml").unwrap_or(&name);
    if let Some(recipe) = Recipe::find(name) {
        return Ok(Source::Recipe(recipe));
    }
    let known: Vec<&str> = RECIPES.iter().map(|recipe| recipe.name).collect();
    anyhow::bail!(
        "configuration {}: no such file, and no recipe of that name; recipes: {}",
        given.display(),
        known.join(", ")
    )
}

impl Source {
    /// Reads the configuration and applies changes. A mistake in the source is a failure, one in the changes is wrong
    /// usage.
    pub fn read(&self, changes: &Changes) -> anyhow::Result<TrainConfig> {
        let parse = |settings: &[String]| match self {
            Self::File(path) => TrainConfig::load(path, settings),
            Self::Recipe(recipe) => TrainConfig::parse(recipe.text, settings),
        };
        let mut config = parse(&changes.settings).map_err(|error| match error.from_override() {
            true => usage_of(changes, error),
            false => error.into(),
        })?;
        if let Some(path) = &changes.data {
            config.data.path.clone_from(path);
            // The layout of the built-in images cannot be that of a path.
            if config.data.format == Format::Builtin {
                config.data.format = Format::Auto;
            }
        }
        if let Some(device) = &changes.device {
            config.training.device.clone_from(device);
        }
        Ok(config)
    }
}

fn usage_of(changes: &Changes, error: ConfigError) -> anyhow::Error {
    let settings: Vec<String> = changes.settings.iter().map(|setting| format!("--set {setting}")).collect();
    let error = match error {
        ConfigError::InOverride { source, .. } => anyhow::Error::from(*source),
        other => other.into(),
    };
    crate::usage(format!("{}: {error:#}", settings.join(" ")))
}

/// The configuration of an existing run.
pub fn of_run(folder: &RunFolder, changes: &Changes) -> anyhow::Result<TrainConfig> {
    let root = folder.root().display();
    if !folder.root().is_dir() {
        anyhow::bail!("run {root}: no such folder");
    }
    if !folder.exists() {
        anyhow::bail!("run {root}: not the folder of a run (it has no config.toml)");
    }
    Source::File(folder.config()).read(changes).with_context(|| format!("run {root}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recipes_are_found_by_name_and_by_their_path_in_the_project() {
        for given in ["photos", "photos.toml", "configs/photos.toml"] {
            assert_eq!(find(Path::new(given)).unwrap(), Source::Recipe(Recipe::find("photos").unwrap()));
        }
        let message = find(Path::new("elsewhere/photos.toml")).unwrap_err().to_string();
        assert!(message.contains("elsewhere/photos.toml") && message.contains("quickstart"), "{message}");
    }
}
