//! Which configuration a command works with: a file or a recipe, changes from the command line, a run's own.

use std::path::{Path, PathBuf};

use anyhow::Context;
use swav_data::Format;
use swav_train::{CheckpointError, ConfigError, RunFolder, Settings, TrainConfig};

use crate::exit::explain;
use crate::open::DataOptions;
use crate::{RECIPES, Recipe};

/// The recipe for a run without arguments.
pub const QUICKSTART: &str = "quickstart";

/// Changes to a configuration.
#[derive(clap::Args, Debug, Clone, Default)]
pub struct Changes {
    /// The images: a folder of images or of one folder per class, a data set's own files, or `builtin`.
    #[arg(long, value_name = "PATH")]
    pub data: Option<PathBuf>,

    #[command(flatten)]
    pub data_options: DataOptions,

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
        let mut config = parse(&changes.settings).map_err(|error| match error {
            ConfigError::InOverride { given, source } => usage_of(&[given], &*source),
            error if error.from_override() => usage_of(&changes.settings, &error),
            error => match self.newer_run() {
                Some(newer) => anyhow::Error::new(error).context(newer),
                None => error.into(),
            },
        })?;
        if let Some(path) = &changes.data {
            config.data.path.clone_from(path);
            // The layout of the built-in images cannot be that of a path.
            if config.data.format == Format::Builtin {
                config.data.format = Format::Auto;
            }
        }
        changes.data_options.apply(&mut config.data);
        if let Some(device) = &changes.device {
            config.training.device.clone_from(device);
        }
        Ok(config)
    }

    /// What says that this is the configuration of a run of a newer version, whose keys need not be known here.
    fn newer_run(&self) -> Option<CheckpointError> {
        let Self::File(path) = self else { return None };
        let run = RunFolder::at(path.parent()?);
        match (run.exists() && run.config() == *path).then(|| run.newest())? {
            Err(error @ CheckpointError::Version { .. }) => Some(error),
            _ => None,
        }
    }

    /// Reads the configuration, applies changes and checks every value. Where the changes make it wrong, they are to blame.
    pub fn settings(&self, changes: &Changes) -> anyhow::Result<Settings> {
        let error = match self.read(changes)?.check() {
            Ok(settings) => return Ok(settings),
            Err(error) => error,
        };
        let is_right_with = |settings: Vec<String>| {
            let changes = Changes { settings, ..changes.clone() };
            self.read(&changes).is_ok_and(|config| config.check().is_ok())
        };
        let all = &changes.settings;
        let is_to_blame = |number: usize| {
            let others = all.iter().enumerate().filter(|(other, _)| *other != number);
            is_right_with(others.map(|(_, setting)| setting.clone()).collect())
        };
        let mut blamed: Vec<String> =
            (0..all.len()).filter(|&number| is_to_blame(number)).map(|number| all[number].clone()).collect();
        if blamed.is_empty() && !all.is_empty() && is_right_with(Vec::new()) {
            blamed.clone_from(all);
        }
        match blamed.is_empty() {
            true => Err(anyhow::Error::from(error).context(format!("configuration {self}"))),
            false => Err(usage_of(&blamed, &error)),
        }
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Recipe(recipe) => f.write_str(recipe.name),
        }
    }
}

/// The file that a run's own configuration is in.
pub fn source_of_run(folder: &RunFolder) -> anyhow::Result<Source> {
    let root = folder.root().display();
    if !folder.root().is_dir() {
        anyhow::bail!("run {root}: no such folder");
    }
    if !folder.exists() {
        anyhow::bail!(
            "run {root}: not the folder of a run (it has no config.toml with a folder checkpoints)"
        );
    }
    Ok(Source::File(folder.config()))
}

/// The configuration of an existing run.
pub fn of_run(folder: &RunFolder, changes: &Changes) -> anyhow::Result<TrainConfig> {
    let settings = source_of_run(folder)?.settings(changes);
    Ok(settings.with_context(|| format!("run {}", folder.root().display()))?.config().clone())
}

/// Wrong usage, by these values of `--set`.
pub(crate) fn usage_of(settings: &[String], error: &(dyn std::error::Error + 'static)) -> anyhow::Error {
    let settings: Vec<String> = settings.iter().map(|setting| format!("--set {setting}")).collect();
    crate::usage(format!("{}: {}", settings.join(" "), explain(error)))
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

    #[test]
    fn a_mistake_is_blamed_on_the_change_that_makes_it() {
        let blamed = |settings: &[&str]| {
            let settings = settings.iter().map(|&setting| setting.to_owned()).collect();
            let changes = Changes { settings, ..Changes::default() };
            Source::Recipe(Recipe::find("quickstart").unwrap()).settings(&changes).unwrap_err().to_string()
        };
        let text = blamed(&["training.seed=3", "training.epochs=0"]);
        assert!(text.contains("--set training.epochs=0: training.epochs: expected at least 1"), "{text}");
        assert!(!text.contains("training.seed=3"), "{text}");
        // What is too large is the warm-up; what made it so is the length.
        let text = blamed(&["optimizer.warmup_epochs=6", "training.epochs=5"]);
        assert!(text.contains("--set training.epochs=5: optimizer.warmup_epochs: expected"), "{text}");
        let text = blamed(&["training.seed=3", "training.epoch=5"]);
        assert!(text.contains("--set training.epoch=5: unknown key"), "{text}");
        assert!(text.contains("did you mean `training.epochs`") && !text.contains("seed=3"), "{text}");
        let text = blamed(&["epochs=5"]);
        assert!(text.contains("did you mean `training.epochs`"), "{text}");
    }

    #[test]
    fn unknown_keys_of_a_newer_run_are_explained_by_its_version() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunFolder::at(folder.path());
        std::fs::create_dir(run.checkpoints()).unwrap();
        std::fs::write(run.config(), "[training]\nwarp = 3\n").unwrap();
        let save = |version: u32| {
            let header = format!("{{\"__metadata__\":{{\"swav\":\"{{\\\"version\\\":{version}}}\"}}}}");
            let length = (header.len() as u64).to_le_bytes();
            std::fs::write(run.checkpoint_of(1), [&length[..], header.as_bytes()].concat()).unwrap();
            format!("{:#}", of_run(&run, &Changes::default()).unwrap_err())
        };
        let text = save(99);
        assert!(text.contains("layout 99") && text.contains("too old"), "{text}");
        assert!(text.contains("unknown key `training.warp`"), "{text}");
        assert!(!save(2).contains("too old"));
    }
}
