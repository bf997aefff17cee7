//! The recipes that come with the program: one TOML file each.

/// A configuration with a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recipe {
    /// What `--config` takes.
    pub name: &'static str,
    /// The TOML file.
    pub text: &'static str,
}

macro_rules! recipes {
    ($($name:literal),* $(,)?) => {
        &[$(Recipe { name: $name, text: include_str!(concat!("../recipes/", $name, ".toml")) }),*]
    };
}

/// All recipes, by name.
pub const RECIPES: &[Recipe] = recipes![
    "cifar10-resnet18",
    "fashion-mnist",
    "imagenet-100ep-bs4096",
    "imagenet-200ep-bs256",
    "imagenet-200ep-bs4096",
    "imagenet-400ep-2x224",
    "imagenet-400ep-bs256",
    "imagenet-400ep-bs4096",
    "imagenet-400ep-w2",
    "imagenet-400ep-w4",
    "imagenet-400ep-w5",
    "imagenet-800ep-bs4096",
    "photos",
    "quickstart",
];

impl Recipe {
    /// The recipe of this name.
    pub fn find(name: &str) -> Option<Self> {
        RECIPES.iter().copied().find(|recipe| recipe.name == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use swav_train::{OptimizerKind, Settings, TrainConfig};

    fn checked(name: &str) -> Settings {
        let config = TrainConfig::parse(Recipe::find(name).unwrap().text, &[]);
        config
            .unwrap_or_else(|error| panic!("{name}: {error}"))
            .check()
            .unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    #[test]
    fn every_file_is_a_recipe() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes");
        let mut files: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        files.sort();
        let known: Vec<String> = RECIPES.iter().map(|recipe| format!("{}.toml", recipe.name)).collect();
        assert_eq!(files, known);
    }

    #[test]
    fn every_recipe_survives_being_written() {
        for recipe in RECIPES {
            let config = checked(recipe.name).config().clone();
            let again = TrainConfig::parse(&config.to_toml().unwrap(), &[]).unwrap().check().unwrap();
            assert_eq!(again.config(), &config, "{}", recipe.name);
        }
    }

    #[test]
    fn recipes_for_imagenet_have_the_published_numbers() {
        for (name, epochs, batch, lr, queue, n_crops) in [
            ("imagenet-100ep-bs4096", 100, 4096, 4.8, 0, 8),
            ("imagenet-200ep-bs4096", 200, 4096, 4.8, 0, 8),
            ("imagenet-400ep-bs4096", 400, 4096, 4.8, 0, 8),
            ("imagenet-800ep-bs4096", 800, 4096, 4.8, 0, 8),
            ("imagenet-200ep-bs256", 200, 256, 0.6, 3840, 8),
            ("imagenet-400ep-bs256", 400, 256, 0.6, 3840, 8),
            ("imagenet-400ep-2x224", 400, 4096, 4.8, 0, 2),
            ("imagenet-400ep-w2", 400, 4096, 4.8, 0, 6),
            ("imagenet-400ep-w4", 400, 2560, 4.8, 2560, 6),
            ("imagenet-400ep-w5", 400, 1536, 4.8, 1536, 6),
        ] {
            let settings = checked(name);
            let config = settings.config();
            assert_eq!((config.training.epochs, config.training.batch_size), (epochs, batch), "{name}");
            assert_eq!(
                (config.optimizer.base_lr, config.optimizer.kind),
                (lr, OptimizerKind::Larc),
                "{name}"
            );
            assert_eq!((config.queue.length, settings.queue_length(1)), (queue, queue), "{name}");
            assert_eq!(settings.loss().n_crops(), n_crops, "{name}");
            assert_eq!(
                (config.prototypes.n_prototypes.as_slice(), config.encoder.dim),
                (&[3000][..], 128),
                "{name}"
            );
            assert_eq!(config.prototypes.freeze_iters, if batch == 256 { 5005 } else { 313 }, "{name}");
        }
        let schedule = checked("imagenet-800ep-bs4096").schedule(312);
        assert_eq!((schedule.lr(0), schedule.lr(3119), schedule.lr(800 * 312)), (0.3, 4.8, 0.0048));
    }
}
