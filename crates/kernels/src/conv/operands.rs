//! What passes read, and what they do with their outputs.

use crate::Precision;
use crate::activations::Activations;
use crate::norm::{Affine, GradAffine};

/// Where a convolution reads from.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Source<'a> {
    /// The values as they are.
    Plain(&'a Activations),
    /// `max(raw·scale + shift, 0)`.
    NormRelu {
        /// The raw output of the convolution before.
        raw: &'a Activations,
        /// Its batch norm.
        affine: &'a Affine,
    },
    /// `grad·on_grad + raw·on_raw + constant`.
    NormGrad {
        /// The gradient of the batch norm's output, already masked by the ReLU.
        grad: &'a Activations,
        /// The batch norm's input.
        raw: &'a Activations,
        /// The batch norm's gradient.
        affine: &'a GradAffine,
    },
}

impl Source<'_> {
    /// How it is stored.
    pub fn precision(&self) -> Precision {
        match self {
            Source::Plain(x) => x.precision,
            Source::NormRelu { raw, .. } | Source::NormGrad { raw, .. } => raw.precision,
        }
    }

    /// Checks that what is read together has one shape: readers take it for granted.
    ///
    /// # Panics
    /// If it has not.
    pub fn check(&self) {
        let channels = self.shape()[3];
        match self {
            Source::Plain(_) => {}
            Source::NormRelu { affine, .. } => {
                assert_eq!(
                    [affine.scale.len(), affine.shift.len()],
                    [channels; 2],
                    "channels of a batch norm"
                );
            }
            Source::NormGrad { grad, raw, affine } => {
                assert_eq!(
                    (grad.shape, grad.precision),
                    (raw.shape, raw.precision),
                    "a gradient and its tensor"
                );
                let lens = [affine.on_grad.len(), affine.on_raw.len(), affine.constant.len()];
                assert_eq!(lens, [channels; 3], "channels of a batch norm's gradient");
            }
        }
    }

    /// `[n, h, w, c]`.
    pub fn shape(&self) -> [usize; 4] {
        match self {
            Source::Plain(x) => x.shape,
            Source::NormRelu { raw, .. } | Source::NormGrad { raw, .. } => raw.shape,
        }
    }
}

/// What an inference pass does with its outputs: `v + bias`, plus what is there, and then a ReLU.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fused<'a> {
    /// A value for each channel.
    pub bias: &'a [f32],
    /// Whether they are added to what is there.
    pub add: bool,
    /// Whether there is a ReLU.
    pub relu: bool,
}

impl Fused<'_> {
    /// Checks that what is read along with an output of this shape fits it, and that all is f32.
    ///
    /// # Panics
    /// If it does not.
    pub fn check(&self, out: &Activations) {
        assert_eq!(self.bias.len(), out.shape[3], "biases of a convolution");
        assert_eq!(out.precision, Precision::F32, "what inference writes");
    }
}

/// What happens to the gradient that `backward_data` computes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Post<'a> {
    /// It is stored.
    Store,
    /// It is added to what is there.
    Accumulate,
    /// It is masked by the ReLU of `raw·scale + shift` and stored, and batch norm's sums are returned.
    ReluNorm {
        /// The raw output of the convolution before.
        raw: &'a Activations,
        /// Its batch norm.
        affine: &'a Affine,
        /// The mean in it.
        mean: &'a [f32],
    },
}

impl Post<'_> {
    /// Checks that what is read along with an output of this shape fits it.
    ///
    /// # Panics
    /// If it does not.
    pub fn check(&self, output: [usize; 4]) {
        if let Post::ReluNorm { raw, affine, mean } = self {
            assert_eq!(raw.shape, output, "shapes of a gradient and its tensor");
            let lens = [affine.scale.len(), affine.shift.len(), mean.len()];
            assert_eq!(lens, [output[3]; 3], "channels of a batch norm");
        }
    }
}
