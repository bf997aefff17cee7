//! What a step is, and several of them in a row.

use crate::{AugmentRng, Canvas};

/// A random change of a crop.
///
/// All randomness comes from `rng`; the same generator state gives the same result. Steps whose
/// `probability` says no leave the canvas as it is.
pub trait Transform: Send + Sync + std::fmt::Debug {
    /// Changes the canvas.
    fn apply(&self, canvas: &mut Canvas, rng: &mut AugmentRng);
}

/// Steps one after another.
///
/// ```
/// use swav_augment::{Canvas, Channels, CropKey, Grayscale, ImageView, Pipeline, Solarize, Transform};
///
/// let steps = Pipeline::new()
///     .then(Grayscale { probability: 1.0 })
///     .then(Solarize { probability: 1.0, threshold: 100 });
/// let mut canvas = Canvas::default();
/// canvas.load(ImageView::new(1, 1, Channels::Rgb, &[200, 100, 50]).unwrap());
/// steps.apply(&mut canvas, &mut CropKey { seed: 1, epoch: 0, sample: 0, crop: 0 }.rng());
/// assert_eq!(canvas.planes(), [131, 131, 131]); // luminance 124, inverted
/// ```
#[derive(Debug, Default)]
pub struct Pipeline {
    steps: Vec<Box<dyn Transform>>,
}

impl Pipeline {
    /// No steps.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a step.
    #[must_use]
    pub fn then(mut self, step: impl Transform + 'static) -> Self {
        self.steps.push(Box::new(step));
        self
    }

    /// How many steps there are.
    pub fn len(&self) -> usize {
        self.steps.len()
    }

    /// Whether there are no steps.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }
}

impl Transform for Pipeline {
    fn apply(&self, canvas: &mut Canvas, rng: &mut AugmentRng) {
        for step in &self.steps {
            step.apply(canvas, rng);
        }
    }
}
