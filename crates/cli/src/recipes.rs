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

    #[test]
    fn every_file_is_a_recipe_and_every_recipe_is_valid() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes");
        let mut files: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        files.sort();
        let known: Vec<String> = RECIPES.iter().map(|recipe| format!("{}.toml", recipe.name)).collect();
        assert_eq!(files, known);
        for recipe in RECIPES {
            let config = swav_train::TrainConfig::parse(recipe.text, &[]);
            config.unwrap_or_else(|error| panic!("{}: {error}", recipe.name)).check().unwrap();
        }
    }
}
