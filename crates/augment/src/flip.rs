//! Mirror images.

use crate::random::happens;
use crate::step::ConfigStep;
use crate::{AugmentRng, Canvas, Pipeline, Transform};

/// Mirrors left and right: `v'(x, y) = v(width - 1 - x, y)`.
///
/// ```
/// use swav_augment::{Canvas, Channels, HorizontalFlip, ImageView};
///
/// let mut canvas = Canvas::default();
/// canvas.load(ImageView::new(3, 2, Channels::Grey, &[1, 2, 3, 4, 5, 6]).unwrap());
/// HorizontalFlip::flip(&mut canvas);
/// assert_eq!(canvas.planes(), [3, 2, 1, 6, 5, 4]);
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(deny_unknown_fields))]
pub struct HorizontalFlip {
    /// How often, 0 to 1.
    pub probability: f32,
}

/// Mirrors top and bottom: `v'(x, y) = v(x, height - 1 - y)`.
///
/// ```
/// use swav_augment::{Canvas, Channels, ImageView, VerticalFlip};
///
/// let mut canvas = Canvas::default();
/// canvas.load(ImageView::new(2, 3, Channels::Grey, &[1, 2, 3, 4, 5, 6]).unwrap());
/// VerticalFlip::flip(&mut canvas);
/// assert_eq!(canvas.planes(), [5, 6, 3, 4, 1, 2]);
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(deny_unknown_fields))]
pub struct VerticalFlip {
    /// How often, 0 to 1.
    pub probability: f32,
}

impl HorizontalFlip {
    /// Mirrors in any case.
    pub fn flip(canvas: &mut Canvas) {
        let width = canvas.width();
        // Per-pixel operations give the same before and after, so they may go on waiting.
        for row in canvas.raw_planes().chunks_exact_mut(width) {
            row.reverse();
        }
    }
}

impl VerticalFlip {
    /// Mirrors in any case.
    pub fn flip(canvas: &mut Canvas) {
        let (width, height) = (canvas.width(), canvas.height());
        for plane in canvas.raw_planes().chunks_exact_mut(width * height) {
            let (upper, lower) = plane.split_at_mut(width * height.div_ceil(2));
            for (above, below) in upper.chunks_exact_mut(width).zip(lower.chunks_exact_mut(width).rev()) {
                above.swap_with_slice(below);
            }
        }
    }
}

impl Transform for HorizontalFlip {
    fn apply(&self, canvas: &mut Canvas, rng: &mut AugmentRng) {
        if happens(rng, self.probability) {
            Self::flip(canvas);
        }
    }
}

impl Transform for VerticalFlip {
    fn apply(&self, canvas: &mut Canvas, rng: &mut AugmentRng) {
        if happens(rng, self.probability) {
            Self::flip(canvas);
        }
    }
}

impl ConfigStep for HorizontalFlip {
    fn probability(&self) -> f32 {
        self.probability
    }

    fn add_to(self, pipeline: Pipeline) -> Pipeline {
        pipeline.then(self)
    }
}

impl ConfigStep for VerticalFlip {
    fn probability(&self) -> f32 {
        self.probability
    }

    fn add_to(self, pipeline: Pipeline) -> Pipeline {
        pipeline.then(self)
    }
}
