//! The border between an encoder and the rest of SwAV: images in, unit vectors on the host out.

use std::sync::Arc;

use ndarray::{Array2, ArrayView2, ArrayView4};
use swav_collective::Collective;

use crate::{
    Crops, DeviceMemory, EncoderConfig, EncoderError, StateDict, TrainingStep, UpdateRule, UpdateStats,
    WholeStep,
};

/// The channels of every image.
pub const IMAGE_CHANNELS: usize = 3;

/// What [`Encoder::embed`] gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// The backbone's globally averaged output, not scaled: `feature_dim` columns.
    Features,
    /// The projection head's output, rows of unit length: `embedding_dim` columns.
    Embedding,
    /// The output of a stage of the backbone averaged over positions, not scaled: a column for each of the stage's
    /// channels, see [`Encoder::layer_dims`]. Stages count from 1, as in the names of their parameters: `layer1.0.conv1`.
    Layer(usize),
}

/// Whether batch norm in training takes its statistics over the batches of all processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum SyncBatchNorm {
    /// Each process has its own statistics, as the reference on one GPU.
    #[default]
    Off,
    /// Means and variances, and the sums of backward, are those of all processes together.
    On,
}

/// What an encoder is, for the record of a run.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Description {
    /// A network that this crate builds from a configuration.
    Network(EncoderConfig),
    /// Another one, in its own words.
    Own(String),
}

/// An encoder: maps images to unit vectors, and holds its gradients and its optimiser's state.
///
/// A batch of images is an array (images, height, width, 3) of normalised f32. A step is
/// [`forward_train`](Encoder::forward_train), [`backward`](Encoder::backward), [`update`](Encoder::update). Names and
/// layouts are those of [`StateDict`].
///
/// To bring an encoder of your own, implement the smaller trait [`Model`](crate::Model) and wrap it in an
/// [`OwnEncoder`](crate::OwnEncoder).
pub trait Encoder: Send {
    /// Columns of the embeddings.
    fn embedding_dim(&self) -> usize;

    /// Columns of the features.
    fn feature_dim(&self) -> usize;

    /// Columns of [`Output::Layer`], stage by stage; none where the encoder has no stages.
    fn layer_dims(&self) -> Vec<usize> {
        Vec::new()
    }

    /// Columns of an output.
    ///
    /// # Errors
    /// [`EncoderError::NoLayer`].
    fn output_dim(&self, output: Output) -> Result<usize, EncoderError> {
        match output {
            Output::Features => Ok(self.feature_dim()),
            Output::Embedding => Ok(self.embedding_dim()),
            Output::Layer(got) => {
                let dims = self.layer_dims();
                let dim = got.checked_sub(1).and_then(|index| dims.get(index));
                dim.copied().ok_or(EncoderError::NoLayer { expected: dims.len(), got })
            }
        }
    }

    /// The device's name, as the builder takes it: `cpu`, `cuda:0`.
    fn device(&self) -> &str;

    /// What the encoder is.
    fn description(&self) -> Description;

    /// Embeds all crops in training mode and remembers what backward needs; gradients of the step before are
    /// dropped. Each group goes through the backbone as a batch of its own, with its own batch-norm statistics
    /// (the running ones are updated group by group); the head sees the rows of all groups at once.
    /// Returns unit rows, group by group.
    ///
    /// # Errors
    /// [`EncoderError::BatchTooSmall`], [`EncoderError::Images`] for empty or missing groups, or a device's error.
    fn forward_train(&mut self, groups: &[ArrayView4<'_, f32>]) -> Result<Array2<f32>, EncoderError>;

    /// Computes the gradient of every parameter from that of the embeddings, and consumes what `forward_train`
    /// remembered.
    ///
    /// # Errors
    /// [`EncoderError::NoForward`], [`EncoderError::GradientShape`], or a device's error.
    fn backward(&mut self, gradient: ArrayView2<'_, f32>) -> Result<(), EncoderError>;

    /// Replaces every gradient by its mean over the processes of `collective`, where it lies.
    ///
    /// # Errors
    /// [`EncoderError::NoGradients`], [`EncoderError::Collective`], or a device's error.
    fn reduce_gradients(&mut self, collective: &dyn Collective) -> Result<(), EncoderError>;

    /// Tells the encoder that it is trained by several processes together, before the first step.
    ///
    /// # Errors
    /// [`EncoderError::Unsupported`] if it cannot do what is asked.
    fn join(
        &mut self,
        collective: Arc<dyn Collective>,
        batch_norm: SyncBatchNorm,
    ) -> Result<(), EncoderError>;

    /// The Euclidean norm of all gradients together, for clipping.
    ///
    /// # Errors
    /// [`EncoderError::NoGradients`] or a device's error.
    fn gradient_norm(&self) -> Result<f64, EncoderError> {
        let norm = |(name, _): (String, _)| self.gradient(&name).map(|values| swav_optim::norm(&values));
        let norms: Option<Vec<f64>> = self.parameters().into_iter().map(norm).collect();
        Ok(norms.ok_or(EncoderError::NoGradients)?.into_iter().fold(0.0, f64::hypot))
    }

    /// Applies an optimiser's rule to every parameter, where it lies, and consumes the gradients.
    ///
    /// # Errors
    /// [`EncoderError::NoGradients`] or a device's error.
    fn update(&mut self, rule: &UpdateRule) -> Result<UpdateStats, EncoderError>;

    /// Embeds images in inference mode, with the running batch-norm statistics.
    ///
    /// # Errors
    /// [`EncoderError::Images`], [`EncoderError::NoLayer`], [`EncoderError::Unsupported`] for an output that the device
    /// does not give, or a device's error.
    fn embed(&self, images: ArrayView4<'_, f32>, output: Output) -> Result<Array2<f32>, EncoderError>;

    /// Names and shapes of all trainable parameters, in the order of the layers.
    fn parameters(&self) -> Vec<(String, Vec<usize>)>;

    /// The gradient of one parameter after [`backward`](Encoder::backward), in the layout of its shape; `None` for a
    /// name that the encoder does not have, without gradients, and where the device fails.
    fn gradient(&self, name: &str) -> Option<Vec<f32>>;

    /// Parameters and batch-norm statistics.
    ///
    /// # Errors
    /// A device's error.
    fn state(&self) -> Result<StateDict, EncoderError>;

    /// Replaces parameters and batch-norm statistics; nothing changes if the state does not fit.
    /// `num_batches_tracked` may be missing.
    ///
    /// # Errors
    /// [`EncoderError::Missing`], [`EncoderError::Unexpected`], [`EncoderError::StateShape`], or a device's error.
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

    /// What the device has chosen by measuring and the last bits of its results depend on, as a text for a checkpoint; `None`
    /// where there is nothing of the kind.
    fn choices(&self) -> Option<String> {
        None
    }

    /// Takes over what [`choices`](Encoder::choices) gave in another run, before the first pass: later ones have that run's bits.
    ///
    /// # Errors
    /// Why the choices do not hold here (another card, another version of a library): the device then makes its own.
    fn adopt_choices(&mut self, _choices: &str) -> Result<(), EncoderError> {
        Ok(())
    }

    /// What training by such steps, with updates by this rule, takes of the device's own memory; nothing is loaded there. `None`
    /// where the network lives in the host's memory, and where nothing bounds what it takes.
    fn device_memory(&self, _step: TrainingStep<'_>, _rule: &UpdateRule) -> Option<DeviceMemory> {
        None
    }

    /// The running statistics, if the encoder has any.
    fn statistics(&mut self) -> Option<&mut dyn RunningStatistics> {
        None
    }

    /// The encoder's way to run whole training steps on its device, if it has one.
    fn whole_step(&mut self) -> Option<&mut dyn WholeStep> {
        None
    }
}

/// Running statistics of batch norms, to be estimated anew.
///
/// Training pollutes the running statistics with those of low-resolution crops; to re-estimate them on the images
/// that are evaluated gives better features.
pub trait RunningStatistics {
    /// Forgets the running statistics, so that [`observe`](RunningStatistics::observe) builds them anew.
    ///
    /// # Errors
    /// A device's error.
    fn reset(&mut self) -> Result<(), EncoderError>;

    /// Runs one batch in training mode without gradients and takes its statistics into the running ones with weight
    /// 1 / (number of batches since [`reset`](RunningStatistics::reset)), so that these are the plain average over
    /// batches.
    ///
    /// # Errors
    /// As [`Encoder::forward_train`].
    fn observe(&mut self, images: ArrayView4<'_, f32>) -> Result<(), EncoderError>;

    /// Both of the above: running statistics become the average over these batches.
    ///
    /// # Errors
    /// As [`observe`](RunningStatistics::observe).
    fn reestimate(&mut self, batches: &[ArrayView4<'_, f32>]) -> Result<(), EncoderError> {
        self.reset()?;
        batches.iter().try_for_each(|&images| self.observe(images))
    }
}

/// A view of `n_images` images of `height` by `width` pixels that lie one after the other, row by row, pixel by pixel.
///
/// # Errors
/// [`EncoderError::Images`] if there are no pixels or another number of values.
pub fn image_batch(
    values: &[f32],
    n_images: usize,
    height: usize,
    width: usize,
) -> Result<ArrayView4<'_, f32>, EncoderError> {
    let shape = (n_images, height, width, IMAGE_CHANNELS);
    let expected = "as many values as (images, height, width, 3) has";
    let images = ArrayView4::from_shape(shape, values)
        .map_err(|_| EncoderError::Images { expected, got: format!("{} for {shape:?}", values.len()) })?;
    check_images(&images)?;
    Ok(images)
}

/// Checks that images have three channels and that there is at least one pixel.
pub(crate) fn check_images(images: &ArrayView4<'_, f32>) -> Result<(), EncoderError> {
    check_shape(images.dim().into())
}

fn check_shape(shape: [usize; 4]) -> Result<(), EncoderError> {
    if shape.contains(&0) || shape[3] != IMAGE_CHANNELS {
        let expected = "(images, height, width, 3), not empty";
        return Err(EncoderError::Images { expected, got: format!("{shape:?}") });
    }
    Ok(())
}

/// As [`check_images`] for every group, of which there has to be one.
pub(crate) fn check_groups(groups: Crops<'_>) -> Result<(), EncoderError> {
    let shapes = groups.shapes();
    if shapes.is_empty() {
        return Err(EncoderError::Images { expected: "at least one group of images", got: "none".into() });
    }
    shapes.into_iter().try_for_each(check_shape)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_checks_its_length() {
        assert_eq!(image_batch(&[0.0; 24], 2, 2, 2).unwrap().dim(), (2, 2, 2, 3));
        for (values, n, h, w) in [(&[0.0; 24][..], 2, 2, 3), (&[], 0, 2, 2), (&[0.0; 24], usize::MAX, 2, 2)] {
            assert!(matches!(image_batch(values, n, h, w), Err(EncoderError::Images { .. })));
        }
    }
}
