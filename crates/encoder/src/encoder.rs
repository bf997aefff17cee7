//! The border between an encoder and the rest of SwAV: images in, unit vectors on the host out.

use ndarray::{Array2, ArrayView2};

use crate::{EncoderError, StateDict, UpdateRule, UpdateStats};

/// The channels of every image.
pub const IMAGE_CHANNELS: usize = 3;

/// Images of one resolution: normalised f32 in NHWC, that is image by image, row by row, pixel by pixel.
#[derive(Clone, Copy, Debug)]
pub struct ImageBatch<'a> {
    data: &'a [f32],
    n_images: usize,
    height: usize,
    width: usize,
}

impl<'a> ImageBatch<'a> {
    /// A view of `n_images` images of `height` by `width` pixels and [`IMAGE_CHANNELS`] channels.
    ///
    /// # Errors
    /// [`EncoderError::ImageBatch`] if a dimension is zero or the data has another length.
    pub fn new(data: &'a [f32], n_images: usize, height: usize, width: usize) -> Result<Self, EncoderError> {
        let length = [n_images, height, width].into_iter().try_fold(IMAGE_CHANNELS, usize::checked_mul);
        if length == Some(data.len()) && length != Some(0) {
            return Ok(Self { data, n_images, height, width });
        }
        Err(EncoderError::ImageBatch {
            expected: format!("{n_images} x {height} x {width} x {IMAGE_CHANNELS} values, not zero"),
            got: format!("{} values", data.len()),
        })
    }

    /// All pixels, NHWC.
    pub fn data(&self) -> &'a [f32] {
        self.data
    }

    /// The number of images.
    pub fn n_images(&self) -> usize {
        self.n_images
    }

    /// Rows of pixels.
    pub fn height(&self) -> usize {
        self.height
    }

    /// Columns of pixels.
    pub fn width(&self) -> usize {
        self.width
    }
}

/// What [`Encoder::embed`] gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// The backbone's globally averaged output, not scaled: `feature_dim` columns.
    Features,
    /// The projection head's output, rows of unit length: `embedding_dim` columns.
    Embedding,
}

/// A network that maps images to unit vectors, with its gradients and its optimiser's state.
///
/// A step is [`forward_train`](Encoder::forward_train), [`backward`](Encoder::backward),
/// [`update`](Encoder::update). Names and layouts are those of [`StateDict`].
pub trait Encoder {
    /// Columns of the embeddings.
    fn embedding_dim(&self) -> usize;

    /// Columns of the features.
    fn feature_dim(&self) -> usize;

    /// The device's name, as the builder takes it: `cpu`, `cuda:0`.
    fn device(&self) -> String;

    /// Embeds all crops in training mode and remembers what backward needs; gradients of the step before are
    /// dropped. Each group goes through the backbone as a batch of its own, with its own batch-norm statistics
    /// (the running ones are updated group by group); the head sees the rows of all groups at once.
    /// Returns unit rows, group by group.
    ///
    /// # Errors
    /// [`EncoderError::BatchTooSmall`], [`EncoderError::ImageBatch`] without groups, or a device's error.
    fn forward_train(&mut self, groups: &[ImageBatch<'_>]) -> Result<Array2<f32>, EncoderError>;

    /// Computes the gradient of every parameter from that of the embeddings, and consumes what `forward_train`
    /// remembered.
    ///
    /// # Errors
    /// [`EncoderError::NoForward`], [`EncoderError::GradientShape`], or a device's error.
    fn backward(&mut self, gradient: ArrayView2<'_, f32>) -> Result<(), EncoderError>;

    /// Embeds images in inference mode, with the running batch-norm statistics.
    ///
    /// # Errors
    /// A device's error.
    fn embed(&self, images: ImageBatch<'_>, output: Output) -> Result<Array2<f32>, EncoderError>;

    /// Forgets the running batch-norm statistics, so that [`observe_statistics`](Encoder::observe_statistics)
    /// builds them anew.
    ///
    /// # Errors
    /// A device's error.
    fn reset_statistics(&mut self) -> Result<(), EncoderError>;

    /// Runs one batch in training mode without gradients and takes its batch-norm statistics into the running
    /// ones with weight 1 / (number of batches since [`reset_statistics`](Encoder::reset_statistics)), so that
    /// these are the plain average over batches.
    ///
    /// Training pollutes the running statistics with those of low-resolution crops; to re-estimate them on the
    /// images that are evaluated gives better features.
    ///
    /// # Errors
    /// As [`forward_train`](Encoder::forward_train).
    fn observe_statistics(&mut self, images: ImageBatch<'_>) -> Result<(), EncoderError>;

    /// Both of the above: running statistics become the average over these batches.
    ///
    /// # Errors
    /// As [`observe_statistics`](Encoder::observe_statistics).
    fn reestimate_statistics(&mut self, batches: &[ImageBatch<'_>]) -> Result<(), EncoderError> {
        self.reset_statistics()?;
        batches.iter().try_for_each(|&images| self.observe_statistics(images))
    }

    /// Names and shapes of all trainable parameters, in the order of the layers.
    fn parameters(&self) -> Vec<(String, Vec<usize>)>;

    /// The gradient of one parameter after [`backward`](Encoder::backward), in the layout of its shape.
    fn gradient(&self, name: &str) -> Option<Vec<f32>>;

    /// Lets `change` rewrite every gradient in place, in the order of [`parameters`](Encoder::parameters):
    /// where processes that train together average them. Values are in the device's own order, the same in
    /// every process with the same configuration.
    ///
    /// # Errors
    /// [`EncoderError::NoGradients`] or a device's error.
    fn map_gradients(&mut self, change: &mut dyn FnMut(&str, &mut [f32])) -> Result<(), EncoderError>;

    /// Applies an optimiser's rule to every parameter, where it lies, and consumes the gradients.
    ///
    /// # Errors
    /// [`EncoderError::NoGradients`] or a device's error.
    fn update(&mut self, rule: &UpdateRule) -> Result<UpdateStats, EncoderError>;

    /// Parameters and batch-norm statistics.
    ///
    /// # Errors
    /// A device's error.
    fn state(&self) -> Result<StateDict, EncoderError>;

    /// Replaces parameters and batch-norm statistics; nothing changes on an error. `num_batches_tracked` may be
    /// missing.
    ///
    /// # Errors
    /// [`EncoderError::Missing`], [`EncoderError::Unexpected`], [`EncoderError::StateShape`].
    fn load_state(&mut self, state: &StateDict) -> Result<(), EncoderError>;

    /// Momentum and moments of every parameter, see [`StateDict::insert_slots`].
    ///
    /// # Errors
    /// A device's error.
    fn optimizer_state(&self) -> Result<StateDict, EncoderError>;

    /// Replaces the optimiser's state; an empty one forgets it.
    ///
    /// # Errors
    /// [`EncoderError::Unexpected`] or [`EncoderError::StateShape`] if it is of another architecture.
    fn load_optimizer_state(&mut self, state: &StateDict) -> Result<(), EncoderError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_checks_its_length() {
        assert!(ImageBatch::new(&[0.0; 24], 2, 2, 2).is_ok());
        for (data, n, h, w) in [(&[0.0; 24][..], 2, 2, 3), (&[], 0, 2, 2), (&[0.0; 24], usize::MAX, 2, 2)] {
            assert!(matches!(ImageBatch::new(data, n, h, w), Err(EncoderError::ImageBatch { .. })));
        }
    }
}
