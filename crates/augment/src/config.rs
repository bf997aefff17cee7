//! The recipe as a config file holds it: a preset, and what differs from it.

use crate::multicrop::CropGroup;
use crate::step::ConfigStep;
use crate::{
    AugmentError, ColorJitter, Elastic, Equalize, GaussianBlur, Grayscale, HorizontalFlip, MultiCrop,
    Normalize, Perspective, Pipeline, RandomResizedCrop, Rotation, Solarize, VerticalFlip,
};

/// A recipe to start from. Every number of it can be overridden in [`MultiCropConfig`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "kebab-case"))]
pub enum Preset {
    /// The SwAV reference for ImageNet: 2 crops of 224 pixels with scale .14 to 1, 6 of 96 with .05 to .14; flip,
    /// jitter (.8, .8, .8, .2) at .8, grey at .2, blur at .5 with radius .1 to 2.
    #[default]
    Swav,
    /// SimCLR's recipe for CIFAR (Chen et al. 2020, appendix B.9): 2 crops of 32 pixels with scale .08 to 1,
    /// jitter (.4, .4, .4, .1) at .8, grey at .2, no blur.
    SimclrCifar,
    /// Small greyscale images such as MNIST's, our own choice: 2 crops of 28 pixels with scale .3 to 1, 4 of 14 with
    /// .1 to .3; flip, brightness and contrast .4 at .8, blur at .3 with radius .1 to 1; the same mean .5 and deviation
    /// .25 for every channel.
    Greyscale,
    /// Radiographs and the like, our own choice: scales .3 to 1 and .1 to .3, so that findings stay in view, colour
    /// untouched, brightness .2 and contrast .4 at .8, rotation up to 15 degrees at .5, blur at .3 with radius .1 to 1.
    Medical,
}

/// One size of crops: how many, and which part of the image they show.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(deny_unknown_fields))]
pub struct CropConfig {
    /// Side in pixels, 1 to 4096.
    pub size: usize,
    /// How many of each image, at least 1.
    pub n_crops: usize,
    /// Smallest share of the image's area, above 0.
    pub min_scale: f32,
    /// Largest share of the image's area, up to 1.
    pub max_scale: f32,
    /// Smallest ratio of width to height; 3/4 unless given.
    #[cfg_attr(feature = "serde", serde(default = "default_min_ratio"))]
    pub min_ratio: f32,
    /// Largest ratio of width to height; 4/3 unless given.
    #[cfg_attr(feature = "serde", serde(default = "default_max_ratio"))]
    pub max_ratio: f32,
}

impl CropConfig {
    /// Crops of this size with the reference's standard scale (.14 to 1) and ratio (3/4 to 4/3).
    pub fn square(size: usize, n_crops: usize) -> Self {
        let RandomResizedCrop { min_scale, max_scale, min_ratio, max_ratio, .. } =
            RandomResizedCrop::default();
        Self { size, n_crops, min_scale, max_scale, min_ratio, max_ratio }
    }
}

#[cfg(feature = "serde")]
fn default_min_ratio() -> f32 {
    RandomResizedCrop::default().min_ratio
}

#[cfg(feature = "serde")]
fn default_max_ratio() -> f32 {
    RandomResizedCrop::default().max_ratio
}

/// Defines a section of the config: the fields of a step, each optional, over those of the preset.
macro_rules! section {
    ($name:ident for $step:ident { $($field:ident: $ty:ty),* $(,)? }) => {
        #[doc = concat!("[`", stringify!($step), "`] in a config. Fields that are not given are the preset's.")]
        #[derive(Debug, Clone, Default, PartialEq)]
        #[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default, deny_unknown_fields))]
        pub struct $name {
            $(
                #[doc = concat!("Overrides `", stringify!($step), "::", stringify!($field), "`.")]
                #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
                pub $field: Option<$ty>,
            )*
        }

        impl $name {
            fn over(&self, preset: $step) -> $step {
                $step { $($field: self.$field.unwrap_or(preset.$field)),* }
            }
        }

        impl From<$step> for $name {
            fn from(step: $step) -> Self {
                Self { $($field: Some(step.$field)),* }
            }
        }
    };
}

/// Defines the config and the recipe from one table of the steps, in the order in which they run: the key in the config, the
/// step, its section with its fields, and its values in the preset `swav`.
macro_rules! recipe {
    ($($(#[$doc:meta])* $key:ident: $step:ident as $section:ident { $($field:ident: $ty:ty),* } = $swav:expr;)*) => {
        $(section!($section for $step { $($field: $ty),* });)*

        /// The whole recipe, unchecked: [`MultiCropConfig::check`] makes a [`MultiCrop`] of it.
        ///
        /// The steps run in this order, each at its probability: crop, rotation, perspective, elastic, horizontal flip,
        /// vertical flip, colour jitter, grey, blur, solarise, equalise, normalise. A step whose probability is 0 is left out.
        ///
        /// ```
        /// use swav_augment::{CropConfig, MultiCropConfig, Preset};
        ///
        /// let mut config = MultiCropConfig::preset(Preset::Swav);
        /// config.crops = Some(vec![CropConfig::square(32, 2), CropConfig::square(16, 4)]);
        /// config.color_jitter.hue = Some(0.1);
        /// config.blur.probability = Some(0.0);
        /// assert_eq!(config.check().unwrap().n_crops(), 6);
        /// ```
        #[derive(Debug, Clone, Default, PartialEq)]
        #[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default, deny_unknown_fields))]
        pub struct MultiCropConfig {
            /// Where everything that is not given comes from; `swav` unless given.
            pub preset: Preset,
            /// Overrides all crops of the preset. The codes are computed from the first ones.
            #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
            pub crops: Option<Vec<CropConfig>>,
            $($(#[$doc])* pub $key: $section,)*
            /// Mean and deviation of the network's input.
            pub normalize: NormalizeConfig,
        }

        /// Every step with every number.
        struct Steps {
            crops: Vec<CropConfig>,
            $($key: $step,)*
            normalize: Normalize,
        }

        impl MultiCropConfig {
            /// The same recipe with every number written out, as it should be kept beside results.
            pub fn resolved(&self) -> Self {
                let steps = self.steps();
                Self {
                    preset: self.preset,
                    crops: Some(steps.crops),
                    $($key: steps.$key.into(),)*
                    normalize: steps.normalize.into(),
                }
            }

            fn steps(&self) -> Steps {
                let preset = self.preset.steps();
                Steps {
                    crops: self.crops.clone().unwrap_or(preset.crops),
                    $($key: self.$key.over(preset.$key),)*
                    normalize: self.normalize.over(preset.normalize),
                }
            }
        }

        impl Steps {
            /// The steps of the preset `swav`.
            fn of_swav(crops: Vec<CropConfig>) -> Self {
                Self { crops, $($key: $swav,)* normalize: Normalize::default() }
            }

            fn check_ranges(&self) -> Result<(), AugmentError> {
                $(self.$key.check(stringify!($key))?;)*
                Ok(())
            }

            fn pipeline(&self) -> Pipeline {
                let mut pipeline = Pipeline::new();
                $(if self.$key.probability() > 0.0 {
                    pipeline = self.$key.add_to(pipeline);
                })*
                pipeline
            }
        }
    };
}

section!(NormalizeConfig for Normalize { mean: [f32; 3], std: [f32; 3] });

recipe! {
    /// Turns about the centre.
    rotation: Rotation as RotationConfig { probability: f32, max_degrees: f32 }
        = Rotation { probability: 0.0, ..Rotation::default() };
    /// Tilts the picture plane.
    perspective: Perspective as PerspectiveConfig { probability: f32, distortion: f32 }
        = Perspective { probability: 0.0, ..Perspective::default() };
    /// Warps smoothly.
    elastic: Elastic as ElasticConfig { probability: f32, amplitude: f32, smoothness: f32 }
        = Elastic { probability: 0.0, ..Elastic::default() };
    /// Mirrors left and right.
    horizontal_flip: HorizontalFlip as HorizontalFlipConfig { probability: f32 }
        = HorizontalFlip { probability: 0.5 };
    /// Mirrors top and bottom.
    vertical_flip: VerticalFlip as VerticalFlipConfig { probability: f32 }
        = VerticalFlip { probability: 0.0 };
    /// Brightness, contrast, saturation and hue.
    color_jitter: ColorJitter as ColorJitterConfig {
        probability: f32, brightness: f32, contrast: f32, saturation: f32, hue: f32
    } = ColorJitter::default();
    /// Takes the colour away.
    grayscale: Grayscale as GrayscaleConfig { probability: f32 }
        = Grayscale { probability: 0.2 };
    /// Gaussian blur.
    blur: GaussianBlur as GaussianBlurConfig { probability: f32, min_radius: f32, max_radius: f32 }
        = GaussianBlur::default();
    /// Inverts bright values.
    solarize: Solarize as SolarizeConfig { probability: f32, threshold: u8 }
        = Solarize { probability: 0.0, threshold: 128 };
    /// Flattens the histogram.
    equalize: Equalize as EqualizeConfig { probability: f32 }
        = Equalize { probability: 0.0 };
}

impl Preset {
    fn steps(self) -> Steps {
        let crop = |size, n_crops, min_scale, max_scale| CropConfig {
            min_scale,
            max_scale,
            ..CropConfig::square(size, n_crops)
        };
        let swav = Steps::of_swav(vec![crop(224, 2, 0.14, 1.0), crop(96, 6, 0.05, 0.14)]);
        let gentle_blur = GaussianBlur { probability: 0.3, min_radius: 0.1, max_radius: 1.0 };
        match self {
            Preset::Swav => swav,
            Preset::SimclrCifar => Steps {
                crops: vec![crop(32, 2, 0.08, 1.0)],
                color_jitter: ColorJitter {
                    probability: 0.8,
                    brightness: 0.4,
                    contrast: 0.4,
                    saturation: 0.4,
                    hue: 0.1,
                },
                blur: GaussianBlur { probability: 0.0, ..GaussianBlur::default() },
                ..swav
            },
            Preset::Greyscale => Steps {
                crops: vec![crop(28, 2, 0.3, 1.0), crop(14, 4, 0.1, 0.3)],
                color_jitter: ColorJitter {
                    probability: 0.8,
                    brightness: 0.4,
                    contrast: 0.4,
                    saturation: 0.0,
                    hue: 0.0,
                },
                grayscale: Grayscale { probability: 0.0 },
                blur: gentle_blur,
                normalize: Normalize { mean: [0.5; 3], std: [0.25; 3] },
                ..swav
            },
            Preset::Medical => Steps {
                crops: vec![crop(224, 2, 0.3, 1.0), crop(96, 6, 0.1, 0.3)],
                rotation: Rotation { probability: 0.5, max_degrees: 15.0 },
                color_jitter: ColorJitter {
                    probability: 0.8,
                    brightness: 0.2,
                    contrast: 0.4,
                    saturation: 0.0,
                    hue: 0.0,
                },
                grayscale: Grayscale { probability: 0.0 },
                blur: gentle_blur,
                ..swav
            },
        }
    }
}

impl MultiCropConfig {
    /// The recipe of a preset, as it is.
    pub fn preset(preset: Preset) -> Self {
        Self { preset, ..Self::default() }
    }

    /// Checks every number and builds the recipe.
    ///
    /// # Errors
    /// [`AugmentError::OutOfRange`] names the first value that is outside its range, [`AugmentError::NotBuilt`] a step that
    /// this build leaves out.
    pub fn check(&self) -> Result<MultiCrop, AugmentError> {
        let steps = self.steps();
        steps.check_ranges()?;
        let groups = steps
            .crops
            .iter()
            .map(|crop| CropGroup {
                crop: RandomResizedCrop {
                    size: crop.size,
                    min_scale: crop.min_scale,
                    max_scale: crop.max_scale,
                    min_ratio: crop.min_ratio,
                    max_ratio: crop.max_ratio,
                },
                n_crops: crop.n_crops,
                steps: steps.pipeline(),
            })
            .collect();
        MultiCrop::new(groups, steps.normalize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rejected_key(text: &str) -> String {
        let config: MultiCropConfig = toml::from_str(text).unwrap();
        match config.check().unwrap_err() {
            AugmentError::OutOfRange { key, .. } => key,
            other => panic!("{other}"),
        }
    }

    #[test]
    fn values_out_of_range_are_named() {
        for (text, key) in [
            ("crops = []", "crops"),
            ("crops = [{ size = 0, n_crops = 1, min_scale = 0.1, max_scale = 1.0 }]", "crops[0].size"),
            ("crops = [{ size = 8, n_crops = 0, min_scale = 0.1, max_scale = 1.0 }]", "crops[0].n_crops"),
            ("crops = [{ size = 8, n_crops = 1, min_scale = 0.0, max_scale = 1.0 }]", "crops[0].min_scale"),
            ("crops = [{ size = 8, n_crops = 1, min_scale = 0.5, max_scale = 0.2 }]", "crops[0].min_scale"),
            ("crops = [{ size = 8, n_crops = 1, min_scale = 0.5, max_scale = 1.2 }]", "crops[0].max_scale"),
            ("color_jitter.hue = 0.6", "color_jitter.hue"),
            ("color_jitter.contrast = nan", "color_jitter.contrast"),
            ("blur.min_radius = 3", "blur.min_radius"),
            ("grayscale.probability = 1.1", "grayscale.probability"),
            ("normalize.std = [1, 0, 1]", "normalize.std"),
            ("elastic.smoothness = 0", "elastic.smoothness"),
            ("rotation.max_degrees = 181", "rotation.max_degrees"),
        ] {
            assert_eq!(rejected_key(text), key, "{text}");
        }
    }

    #[test]
    fn unknown_keys_are_refused_everywhere() {
        for text in [
            "jitter.hue = 0.1",
            "color_jitter.hues = 0.1",
            "crops = [{ size = 8, n_crops = 1, min_scale = 0.1, max_scale = 1.0, scale = 1.0 }]",
            "preset = \"sway\"",
        ] {
            assert!(toml::from_str::<MultiCropConfig>(text).is_err(), "{text}");
        }
    }

    #[test]
    fn resolved_says_everything_and_means_the_same() {
        for preset in [Preset::Swav, Preset::SimclrCifar, Preset::Greyscale, Preset::Medical] {
            let mut config = MultiCropConfig::preset(preset);
            config.blur.max_radius = Some(1.5);
            let resolved = config.resolved();
            let text = toml::to_string(&resolved).unwrap();
            assert!(text.contains("saturation") && text.contains("max_radius = 1.5"), "{text}");
            let again: MultiCropConfig = toml::from_str(&text).unwrap();
            assert_eq!(again, resolved);
            assert_eq!(again.resolved(), resolved);
            resolved.check().unwrap();
        }
    }
}
