//! Which configuration a command works with: a file, changes from the command line, a run's own.

use std::path::{Path, PathBuf};

use anyhow::Context;
use swav_data::Format;
use swav_train::{ConfigError, RunFolder, TrainConfig};

/// The recipe for a run without arguments.
pub const QUICKSTART: &str = "quickstart";

/// Changes to a configuration.
#[derive(clap::Args, Debug, Clone)]
pub struct Changes {
    /// The images: a folder of images or of one folder a class, a data set's own files, or `builtin`.
    #[arg(long, value_name = "PATH")]
    pub data: Option<PathBuf>,

    /// Change a value of the configuration, such as training.epochs=50 or encoder.arch=resnet50. Repeatable.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub settings: Vec<String>,

    /// cpu, or cuda:0 and so on in a build with `--features cuda`.
    #[arg(long)]
    pub device: Option<String>,
}

/// Reads a configuration file and applies changes. A mistake in the file is a failure, one in the changes is wrong
/// usage.
pub fn read(file: &Path, changes: &Changes) -> anyhow::Result<TrainConfig> {
    TrainConfig::load(file, &[])?;
    let mut config = TrainConfig::load(file, &changes.settings).map_err(|error| usage_of(changes, error))?;
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

fn usage_of(changes: &Changes, error: ConfigError) -> anyhow::Error {
    let settings: Vec<String> = changes.settings.iter().map(|setting| format!("--set {setting}")).collect();
    crate::usage(format!("{}: {error}", settings.join(" ")))
}

/// The configuration file that `--config` means: a path, or the name of a recipe in `configs/`.
pub fn find(given: &Path) -> anyhow::Result<PathBuf> {
    if given.exists() {
        return Ok(given.to_owned());
    }
    let recipes = recipes();
    // From a sub-folder of the project, configs/NAME.toml lies elsewhere.
    let recipe = given.strip_prefix("configs").unwrap_or(given).with_extension("toml");
    let in_project = recipes.join(&recipe);
    if recipe.components().count() == 1 && in_project.exists() {
        return Ok(in_project);
    }
    let known = names_in(&recipes).join(", ");
    anyhow::bail!(
        "configuration {}: no such file, and no recipe of that name; recipes: {known}",
        given.display()
    )
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
    read(&folder.config(), changes).with_context(|| format!("run {root}"))
}

fn recipes() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs")
}

fn names_in(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let files = entries.filter(|path| path.extension().is_some_and(|ending| ending == "toml"));
    let mut names: Vec<String> =
        files.filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned())).collect();
    names.sort();
    names
}
