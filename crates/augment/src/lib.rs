//! Multi-crop augmentation: the SwAV recipe and its relatives.
//!
//! A [`MultiCrop`] makes several random crops of an image and writes each, normalised, straight into
//! the caller's batch buffer ([`MultiCrop::fill`]). What it does comes from a [`MultiCropConfig`] (a preset, and
//! overrides) or from steps put together by hand: every step is a type of its own that implements
//! [`Transform`]. All randomness is derived from (seed, epoch, sample, crop) by [`CropKey::rng`].
//!
//! The numbers follow torchvision on Pillow images, 8-bit rounding included; where they differ, the step says so.
//!
//! ```
//! use swav_augment::{Channels, CropKey, Image, MultiCropConfig, Scratch};
//!
//! let recipe = MultiCropConfig::default().check()?; // 2 crops of 224 pixels, 6 of 96
//! let photo = Image::new(320, 240, Channels::Rgb, vec![128; 320 * 240 * 3])?;
//! let mut crop = vec![0.0; 96 * 96 * 3];
//! let key = CropKey { seed: 31, epoch: 0, sample: 0, crop: 2 };
//! recipe.fill(photo.view(), key, &mut crop, &mut Scratch::default())?;
//! # Ok::<(), swav_augment::AugmentError>(())
//! ```

mod blur;
mod canvas;
mod config;
mod crop;
mod dispatch;
mod error;
mod flip;
mod image;
mod jitter;
mod multicrop;
mod normalize;
mod pipeline;
mod point;
mod random;
mod ranges;
mod resize;
mod step;
mod tone;
mod warp;

pub use crate::image::{Channels, Image, ImageView};
pub use blur::GaussianBlur;
pub use canvas::Canvas;
pub use config::{
    ColorJitterConfig, CropConfig, ElasticConfig, EqualizeConfig, GaussianBlurConfig, GrayscaleConfig,
    HorizontalFlipConfig, MultiCropConfig, NormalizeConfig, PerspectiveConfig, Preset, RotationConfig,
    SolarizeConfig, VerticalFlipConfig,
};
pub use crop::{CenterCrop, RandomResizedCrop, Region};
pub use error::AugmentError;
pub use flip::{HorizontalFlip, VerticalFlip};
pub use jitter::{ColorJitter, adjust_brightness, adjust_contrast, adjust_hue, adjust_saturation};
pub use multicrop::{CropGroup, EvalView, MultiCrop, Scratch};
pub use normalize::Normalize;
pub use pipeline::{Pipeline, Transform};
pub use point::PointOp;
pub use random::{AugmentRng, CropKey};
pub use resize::Resizer;
pub use tone::{Equalize, Grayscale, Solarize};
pub use warp::{Elastic, Perspective, Rotation};

/// Runs the examples of the README as tests.
#[cfg(all(doctest, feature = "serde"))]
#[doc = include_str!("../README.md")]
struct Readme;
