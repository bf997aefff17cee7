//! Geometric steps beyond cropping: rotation, perspective, elastic warps. All sample bilinearly, and show black where they look
//! outside the crop.
//!
//! The sampling is imageproc's, which comes with the feature `warp`.

#[cfg(feature = "warp")]
mod sampling;

use crate::Pipeline;
use crate::step::{Bound, ConfigStep};

/// Turns about the centre by an angle uniform in `[-max_degrees, max_degrees]`, as torchvision's `RandomRotation` with
/// bilinear interpolation.
///
/// ```
/// use swav_augment::{Canvas, Channels, ImageView, Rotation};
///
/// let mut canvas = Canvas::default();
/// canvas.load(ImageView::new(2, 2, Channels::Grey, &[1, 2, 3, 4]).unwrap());
/// Rotation::rotate(&mut canvas, 90.0);
/// assert_eq!(canvas.planes(), [2, 4, 1, 3]); // counter-clockwise
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(deny_unknown_fields))]
pub struct Rotation {
    /// How often, 0 to 1.
    pub probability: f32,
    /// The largest angle in degrees, 0 to 180.
    pub max_degrees: f32,
}

/// Shows the crop as if its plane were tilted: each corner moves inward by distances uniform in
/// `[0, distortion * side / 2]`, as torchvision's `RandomPerspective` (which draws whole pixels; we do not round).
///
/// ```
/// use swav_augment::{Canvas, Channels, CropKey, ImageView, Perspective, Transform};
///
/// let mut canvas = Canvas::default();
/// canvas.load(ImageView::new(3, 3, Channels::Grey, &[200; 9]).unwrap());
/// let tilt = Perspective { probability: 1.0, distortion: 0.9 };
/// tilt.apply(&mut canvas, &mut CropKey { seed: 1, epoch: 0, sample: 0, crop: 0 }.rng());
/// assert_eq!(canvas.planes()[4], 200); // the middle stays inside
/// assert!(canvas.planes().contains(&0)); // some corner does not
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(deny_unknown_fields))]
pub struct Perspective {
    /// How often, 0 to 1.
    pub probability: f32,
    /// How far the corners move, 0 to .9.
    pub distortion: f32,
}

/// Warps the crop smoothly: a grid of random displacements, interpolated by cubic B-splines, in the manner of
/// Ronneberger et al. 2015 (U-Net, section 3.1).
///
/// The displacements at the grid points are uniform in `[-amplitude, amplitude]` times the crop's side in both directions;
/// the grid's spacing is `smoothness` times the side. Splines do not overshoot, so no pixel moves further than that.
///
/// ```
/// use swav_augment::{Canvas, Channels, CropKey, Elastic, ImageView, Transform};
///
/// let bytes: Vec<u8> = (0..64).map(|i| i * 3).collect();
/// let mut canvas = Canvas::default();
/// canvas.load(ImageView::new(8, 8, Channels::Grey, &bytes).unwrap());
/// let elastic = Elastic { probability: 1.0, amplitude: 0.0, smoothness: 0.25 };
/// elastic.apply(&mut canvas, &mut CropKey { seed: 1, epoch: 0, sample: 0, crop: 0 }.rng());
/// assert_eq!(canvas.planes(), bytes); // without displacement nothing changes
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(deny_unknown_fields))]
pub struct Elastic {
    /// How often, 0 to 1.
    pub probability: f32,
    /// The largest displacement as a share of the crop's side, 0 to .5.
    pub amplitude: f32,
    /// Distance of the grid points as a share of the crop's side, .01 to 1.
    pub smoothness: f32,
}

impl Default for Rotation {
    /// Always, up to 15 degrees.
    fn default() -> Self {
        Self { probability: 1.0, max_degrees: 15.0 }
    }
}

impl Default for Perspective {
    /// torchvision's: half of the crops, distortion .5.
    fn default() -> Self {
        Self { probability: 0.5, distortion: 0.5 }
    }
}

impl Default for Elastic {
    /// Half of the crops, up to a twentieth of the side, grid points a quarter of it apart.
    fn default() -> Self {
        Self { probability: 0.5, amplitude: 0.05, smoothness: 0.25 }
    }
}

/// What the three have in common as steps of a config.
macro_rules! config_steps {
    ($($step:ident, $bounds:expr;)*) => {$(
        impl ConfigStep for $step {
            fn probability(&self) -> f32 {
                self.probability
            }

            fn bounds(&self) -> Vec<Bound> {
                let bounds: fn(&Self) -> Vec<Bound> = $bounds;
                bounds(self)
            }

            #[cfg(not(feature = "warp"))]
            fn missing_feature(&self) -> Option<&'static str> {
                Some("warp")
            }

            #[cfg(not(feature = "warp"))]
            fn add_to(self, pipeline: Pipeline) -> Pipeline {
                pipeline
            }

            #[cfg(feature = "warp")]
            fn add_to(self, pipeline: Pipeline) -> Pipeline {
                pipeline.then(self)
            }
        }
    )*};
}

config_steps! {
    Rotation, |step| vec![Bound::new("max_degrees", step.max_degrees, 0.0..=180.0, "between 0 and 180")];
    Perspective, |step| vec![Bound::new("distortion", step.distortion, 0.0..=0.9, "between 0 and .9")];
    Elastic, |step| vec![
        Bound::new("amplitude", step.amplitude, 0.0..=0.5, "between 0 and .5"),
        Bound::new("smoothness", step.smoothness, 0.01..=1.0, "between .01 and 1"),
    ];
}
