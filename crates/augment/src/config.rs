//! The recipe as a config file holds it: a preset, and what differs from it.

use serde::{Deserialize, Serialize};

use crate::blur::MAX_RADIUS;
use crate::multicrop::CropGroup;
use crate::{
    AugmentError, CenterCrop, ColorJitter, Elastic, Equalize, GaussianBlur, Grayscale, HorizontalFlip,
    MultiCrop, Normalize, Perspective, Pipeline, RandomResizedCrop, Rotation, Solarize, VerticalFlip,
};

/// The largest crop side that a config may ask for.
const MAX_SIZE: usize = 4096;

/// A recipe to start from. Every number of it can be overridden in [`MultiCropConfig`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
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
    #[serde(default = "default_min_ratio")]
    pub min_ratio: f32,
    /// Largest ratio of width to height; 4/3 unless given.
    #[serde(default = "default_max_ratio")]
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

fn default_min_ratio() -> f32 {
    RandomResizedCrop::default().min_ratio
}

fn default_max_ratio() -> f32 {
    RandomResizedCrop::default().max_ratio
}

/// Defines a section of the config: the fields of a step, each optional, over those of the preset.
macro_rules! overrides {
    ($($(#[$meta:meta])* $name:ident for $step:ident { $($field:ident: $ty:ty),* $(,)? })*) => {$(
        $(#[$meta])*
        ///
        /// Fields that are not given are the preset's.
        #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name {
            $(
                #[doc = concat!("Overrides [`", stringify!($step), "::", stringify!($field), "`].")]
                #[serde(skip_serializing_if = "Option::is_none")]
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
    )*};
}

overrides! {
    /// [`HorizontalFlip`] in a config.
    HorizontalFlipConfig for HorizontalFlip { probability: f32 }
    /// [`VerticalFlip`] in a config.
    VerticalFlipConfig for VerticalFlip { probability: f32 }
    /// [`Rotation`] in a config.
    RotationConfig for Rotation { probability: f32, max_degrees: f32 }
    /// [`Perspective`] in a config.
    PerspectiveConfig for Perspective { probability: f32, distortion: f32 }
    /// [`Elastic`] in a config.
    ElasticConfig for Elastic { probability: f32, amplitude: f32, smoothness: f32 }
    /// [`ColorJitter`] in a config.
    ColorJitterConfig for ColorJitter { probability: f32, brightness: f32, contrast: f32, saturation: f32, hue: f32 }
    /// [`Grayscale`] in a config.
    GrayscaleConfig for Grayscale { probability: f32 }
    /// [`GaussianBlur`] in a config.
    GaussianBlurConfig for GaussianBlur { probability: f32, min_radius: f32, max_radius: f32 }
    /// [`Solarize`] in a config.
    SolarizeConfig for Solarize { probability: f32, threshold: u8 }
    /// [`Equalize`] in a config.
    EqualizeConfig for Equalize { probability: f32 }
    /// [`Normalize`] in a config.
    NormalizeConfig for Normalize { mean: [f32; 3], std: [f32; 3] }
}

/// The whole recipe, unchecked: [`MultiCropConfig::check`] makes a [`MultiCrop`] of it.
///
/// The steps run in this order, each at its probability: crop, rotation, perspective, elastic, horizontal flip,
/// vertical flip, colour jitter, grey, blur, solarise, equalise, normalise. A step whose probability is 0 is left out.
///
/// ```
/// use swav_augment::MultiCropConfig;
///
/// let config: MultiCropConfig = toml::from_str(r#"
///     preset = "swav"
///     crops = [
///         { size = 32, n_crops = 2, min_scale = 0.2, max_scale = 1.0 },
///         { size = 16, n_crops = 4, min_scale = 0.1, max_scale = 0.2 },
///     ]
///     color_jitter.hue = 0.1
///     blur.probability = 0
/// "#).unwrap();
/// let recipe = config.check().unwrap();
/// assert_eq!(recipe.n_crops(), 6);
/// assert!(toml::from_str::<MultiCropConfig>("colour_jitter.hue = 0.1").is_err());
/// ```
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MultiCropConfig {
    /// Where everything that is not given comes from; `swav` unless given.
    pub preset: Preset,
    /// Overrides all crops of the preset. The codes are computed from the first ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub crops: Option<Vec<CropConfig>>,
    /// Mirrors left and right.
    pub horizontal_flip: HorizontalFlipConfig,
    /// Mirrors top and bottom.
    pub vertical_flip: VerticalFlipConfig,
    /// Turns about the centre.
    pub rotation: RotationConfig,
    /// Tilts the picture plane.
    pub perspective: PerspectiveConfig,
    /// Warps smoothly.
    pub elastic: ElasticConfig,
    /// Brightness, contrast, saturation and hue.
    pub color_jitter: ColorJitterConfig,
    /// Takes the colour away.
    pub grayscale: GrayscaleConfig,
    /// Gaussian blur.
    pub blur: GaussianBlurConfig,
    /// Inverts bright values.
    pub solarize: SolarizeConfig,
    /// Flattens the histogram.
    pub equalize: EqualizeConfig,
    /// Mean and deviation of the network's input.
    pub normalize: NormalizeConfig,
}

/// Every step with every number.
struct Steps {
    crops: Vec<CropConfig>,
    horizontal_flip: HorizontalFlip,
    vertical_flip: VerticalFlip,
    rotation: Rotation,
    perspective: Perspective,
    elastic: Elastic,
    color_jitter: ColorJitter,
    grayscale: Grayscale,
    blur: GaussianBlur,
    solarize: Solarize,
    equalize: Equalize,
    normalize: Normalize,
}

impl Preset {
    fn steps(self) -> Steps {
        let crop = |size, n_crops, min_scale, max_scale| CropConfig {
            min_scale,
            max_scale,
            ..CropConfig::square(size, n_crops)
        };
        let swav = Steps {
            crops: vec![crop(224, 2, 0.14, 1.0), crop(96, 6, 0.05, 0.14)],
            horizontal_flip: HorizontalFlip { probability: 0.5 },
            vertical_flip: VerticalFlip { probability: 0.0 },
            rotation: Rotation { probability: 0.0, ..Rotation::default() },
            perspective: Perspective { probability: 0.0, ..Perspective::default() },
            elastic: Elastic { probability: 0.0, ..Elastic::default() },
            color_jitter: ColorJitter::default(),
            grayscale: Grayscale { probability: 0.2 },
            blur: GaussianBlur::default(),
            solarize: Solarize { probability: 0.0, threshold: 128 },
            equalize: Equalize { probability: 0.0 },
            normalize: Normalize::default(),
        };
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

    /// The same recipe with every number written out, as it should be kept beside results.
    pub fn resolved(&self) -> Self {
        let steps = self.steps();
        Self {
            preset: self.preset,
            crops: Some(steps.crops),
            horizontal_flip: steps.horizontal_flip.into(),
            vertical_flip: steps.vertical_flip.into(),
            rotation: steps.rotation.into(),
            perspective: steps.perspective.into(),
            elastic: steps.elastic.into(),
            color_jitter: steps.color_jitter.into(),
            grayscale: steps.grayscale.into(),
            blur: steps.blur.into(),
            solarize: steps.solarize.into(),
            equalize: steps.equalize.into(),
            normalize: steps.normalize.into(),
        }
    }

    /// Checks every number and builds the recipe.
    ///
    /// # Errors
    /// [`AugmentError::OutOfRange`] names the first value that is outside its range.
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

    fn steps(&self) -> Steps {
        let preset = self.preset.steps();
        Steps {
            crops: self.crops.clone().unwrap_or(preset.crops),
            horizontal_flip: self.horizontal_flip.over(preset.horizontal_flip),
            vertical_flip: self.vertical_flip.over(preset.vertical_flip),
            rotation: self.rotation.over(preset.rotation),
            perspective: self.perspective.over(preset.perspective),
            elastic: self.elastic.over(preset.elastic),
            color_jitter: self.color_jitter.over(preset.color_jitter),
            grayscale: self.grayscale.over(preset.grayscale),
            blur: self.blur.over(preset.blur),
            solarize: self.solarize.over(preset.solarize),
            equalize: self.equalize.over(preset.equalize),
            normalize: self.normalize.over(preset.normalize),
        }
    }
}

impl Steps {
    fn pipeline(&self) -> Pipeline {
        let mut pipeline = Pipeline::new();
        macro_rules! add {
            ($($step:ident),*) => {$(
                if self.$step.probability > 0.0 {
                    pipeline = pipeline.then(self.$step);
                }
            )*};
        }
        add!(rotation, perspective, elastic, horizontal_flip, vertical_flip);
        add!(color_jitter, grayscale, blur, solarize, equalize);
        pipeline
    }

    fn check_ranges(&self) -> Result<(), AugmentError> {
        macro_rules! probability {
            ($($step:ident),*) => {$(
                let key = concat!(stringify!($step), ".probability");
                in_range(key, self.$step.probability, 0.0, 1.0, "between 0 and 1")?;
            )*};
        }
        probability!(rotation, perspective, elastic, horizontal_flip, vertical_flip);
        probability!(color_jitter, grayscale, blur, solarize, equalize);
        in_range("rotation.max_degrees", self.rotation.max_degrees, 0.0, 180.0, "between 0 and 180")?;
        in_range("perspective.distortion", self.perspective.distortion, 0.0, 0.9, "between 0 and .9")?;
        in_range("elastic.amplitude", self.elastic.amplitude, 0.0, 0.5, "between 0 and .5")?;
        in_range("elastic.smoothness", self.elastic.smoothness, 0.01, 1.0, "between .01 and 1")?;
        let ColorJitter { brightness, contrast, saturation, hue, .. } = self.color_jitter;
        for (key, amount) in [
            ("color_jitter.brightness", brightness),
            ("color_jitter.contrast", contrast),
            ("color_jitter.saturation", saturation),
        ] {
            in_range(key, amount, 0.0, 100.0, "between 0 and 100")?;
        }
        in_range("color_jitter.hue", hue, 0.0, 0.5, "between 0 and .5")?;
        let GaussianBlur { min_radius, max_radius, .. } = self.blur;
        in_range("blur.max_radius", max_radius, 0.0, MAX_RADIUS, "between 0 and 64")?;
        in_range("blur.min_radius", min_radius, 0.0, max_radius, "between 0 and blur.max_radius")?;
        Ok(())
    }
}

impl CropGroup {
    /// Checks what [`MultiCrop`] relies on; `key` names the group in errors.
    pub(crate) fn check(&self, key: &str) -> Result<(), AugmentError> {
        let crop = &self.crop;
        let count = |name: &str, value: usize, max: usize, expected| {
            if (1..=max).contains(&value) {
                return Ok(());
            }
            Err(AugmentError::OutOfRange { key: format!("{key}.{name}"), expected, value: value.to_string() })
        };
        count("size", crop.size, MAX_SIZE, "between 1 and 4096")?;
        count("n_crops", self.n_crops, 1 << 16, "between 1 and 65536")?;
        let number = |name: &str, value, min, max, expected| {
            in_range(&format!("{key}.{name}"), value, min, max, expected)
        };
        number("max_scale", crop.max_scale, f32::MIN_POSITIVE, 1.0, "above 0 and at most 1")?;
        number(
            "min_scale",
            crop.min_scale,
            f32::MIN_POSITIVE,
            crop.max_scale,
            "above 0 and at most max_scale",
        )?;
        number("max_ratio", crop.max_ratio, 1e-3, 1e3, "between 1/1000 and 1000")?;
        number("min_ratio", crop.min_ratio, 1e-3, crop.max_ratio, "between 1/1000 and max_ratio")
    }
}

impl Normalize {
    /// Checks that the numbers are finite and the deviations above 0.
    ///
    /// # Errors
    /// [`AugmentError::OutOfRange`].
    pub fn check(&self) -> Result<(), AugmentError> {
        for (mean, std) in self.mean.into_iter().zip(self.std) {
            in_range("normalize.mean", mean, -1e3, 1e3, "between -1000 and 1000")?;
            in_range("normalize.std", std, 1e-6, 1e6, "between 1e-6 and 1e6")?;
        }
        Ok(())
    }
}

impl CenterCrop {
    /// Checks that the crop is not empty and not larger than the resized image.
    ///
    /// # Errors
    /// [`AugmentError::OutOfRange`].
    pub fn check(&self) -> Result<(), AugmentError> {
        let out_of_range = |key: &str, expected, value: usize| {
            Err(AugmentError::OutOfRange { key: key.to_owned(), expected, value: value.to_string() })
        };
        if !(1..=MAX_SIZE).contains(&self.resize) {
            return out_of_range("resize", "between 1 and 4096", self.resize);
        }
        if !(1..=self.resize).contains(&self.size) {
            return out_of_range("size", "between 1 and resize", self.size);
        }
        Ok(())
    }
}

/// Refuses also what is not a number.
fn in_range(key: &str, value: f32, min: f32, max: f32, expected: &'static str) -> Result<(), AugmentError> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    Err(AugmentError::OutOfRange { key: key.to_owned(), expected, value: value.to_string() })
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
