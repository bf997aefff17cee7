//! What operations work on, beside plain places.

#[cfg(doc)]
use super::Op;
use super::View;
use crate::shape::Element;

/// Statistics of one batch norm, f32.
///
/// Normalising is `y·scale + shift` (one fma), with `scale = gamma / sqrt(variance + 1e-5)`,
/// `shift = beta - mean·scale`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Statistics {
    /// Four rows of `channels`: mean, 1/sqrt(variance + 1e-5), scale, shift.
    pub state: View,
    /// Two rows of `channels`: mean, unbiased variance (divided by n - 1). Those of all norms of a group lie side by
    /// side, in the layout of the running statistics.
    pub moments: View,
}

/// What is added before the ReLU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shortcut {
    /// Nothing.
    None,
    /// Stored activations, as they are.
    Identity(View),
    /// Another convolution's output, normalised by its own statistics.
    Norm {
        /// The output.
        y: View,
        /// Its statistics: `[4][channels]`.
        state: View,
    },
}

/// Where a gradient passes the ReLU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// Where `y·scale + shift > 0` (the same fma as in the forward pass).
    Recomputed,
    /// Where the mask has a 1: bit `j` of byte `i` is for value `8·i + j`.
    Mask(View),
}

/// One batch norm in a [`Op::BnReduce`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BnReduceBranch {
    /// The convolution's output (act).
    pub y: View,
    /// Statistics of the forward pass, `[4][channels]`.
    pub state: View,
    /// Scale parameter, f32.
    pub gamma: View,
    /// Gradient of gamma, f32, written.
    pub d_gamma: View,
    /// Gradient of beta, f32, written.
    pub d_beta: View,
    /// Three rows of f32, `channels` apart, written: c1, c2, c3 with `dy = c1·g + c2·y + c3`.
    pub coefficients: View,
}

/// One batch norm in a [`Op::BnGradient`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BnGradientBranch {
    /// The convolution's output (act).
    pub y: View,
    /// Statistics of the forward pass, `[4][channels]`.
    pub state: View,
    /// As [`Op::BnReduce`] left them.
    pub coefficients: View,
    /// The gradient with respect to `y` (act), written.
    pub out: View,
}

/// How pixels come from the host: `[images][height][width][3]`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum PixelFormat {
    /// Normalised values.
    F32,
    /// Bytes; the value is `byte·scale[c] + shift[c]`, product and sum each rounded to f32.
    U8 {
        /// `1 / (255·deviation)` of each channel.
        scale: [f32; 3],
        /// `-mean / deviation` of each channel.
        shift: [f32; 3],
    },
}

/// How a stem's convolution reads the pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InputLayout {
    /// `[images][height][width][8]`: three channels and five of zeros.
    Padded,
    /// For a 7×7 convolution of stride 2 as one of 4×1 on 64 channels: with OH = ceil(height/2), OW = ceil(width/2),
    /// `[images][OH + 3][OW][64]`. Row `p` holds blocks of 2×2 pixels, from pixel row `2·(p - 2)`; channel
    /// `16·j + 6·dy + 3·dx + c` of column `q` is channel `c` of pixel (`2·(p - 2) + dy`, `2·(q + j - 2) + dx`); zero
    /// for channels 12 to 15 of each 16, and for pixels outside of the image.
    Rows,
}

/// The shapes of a stem's 3×3 max pooling with stride 2 and padding 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolShape {
    /// Images.
    pub images: usize,
    /// Rows before pooling, any number from 1.
    pub height: usize,
    /// Columns before pooling, any number from 1.
    pub width: usize,
    /// Channels.
    pub channels: usize,
}

impl PoolShape {
    /// Rows after pooling.
    pub fn out_height(&self) -> usize {
        self.height.div_ceil(2)
    }

    /// Columns after pooling.
    pub fn out_width(&self) -> usize {
        self.width.div_ceil(2)
    }

    /// Values after pooling.
    pub fn out_len(&self) -> usize {
        self.images * self.out_height() * self.out_width() * self.channels
    }
}

/// Scores, codes and loss: what all their operations share.
#[derive(Debug, Clone, PartialEq)]
pub struct ScoreShape {
    /// Prototypes K.
    pub n_prototypes: usize,
    /// Values from one row of scores to the next: K rounded up to a multiple of 8. What lies between is no score.
    pub stride: usize,
    /// Images B.
    pub batch: usize,
    /// Crops of an image V; scores are `[V][B][stride]`.
    pub n_crops: usize,
    /// The crops that have codes, A of them, distinct.
    pub assign: Vec<usize>,
    /// Rows of each queue's list, 0 without a queue; queue scores are `[A][queue][stride]`.
    pub queue: usize,
    /// Entropic regularisation.
    pub epsilon: f32,
    /// The softmax's temperature.
    pub temperature: f32,
}

impl ScoreShape {
    /// Samples of one assignment problem: the queue's rows, then the batch's.
    pub fn samples(&self) -> usize {
        self.queue + self.batch
    }
}

/// An assignment problem for each crop of `assign`, in logarithms: the code of sample `n` for prototype `k` is
/// `exp(score/epsilon + over_prototypes[a][k] + over_samples[a][n])`, up to the base of the logarithm, which is the
/// machine's choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CodesView {
    /// Scores of the batch (act).
    pub scores: View,
    /// Scores of the queue (act), if there is one. Used only if the scalars say that it is ready.
    pub queue_scores: Option<View>,
    /// `i32 [A]`: the assignment crops.
    pub assign: View,
    /// f32 `[A][stride]`: potentials of the prototypes.
    pub over_prototypes: View,
    /// f32 `[A][queue + batch]`: potentials of the samples.
    pub over_samples: View,
}

/// One parameter that an update changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UpdatedTensor {
    /// The parameter, f32.
    pub value: View,
    /// Momentum, or the mean of gradients, f32.
    pub first: View,
    /// The mean of squared gradients, f32 (AdamW).
    pub second: Option<View>,
    /// The copy in act that convolutions read, if that is not f32.
    pub copy: Option<View>,
    /// The first group's gradient.
    pub gradient: View,
    /// Bytes to the next group's.
    pub gradient_step: usize,
    /// Gradients, which are added in order.
    pub n_gradients: usize,
    /// How gradients are stored.
    pub element: Element,
    /// Values, a multiple of 8.
    pub len: usize,
    /// Which numbers of the scalars it is updated with, below [`N_CLASSES`](super::N_CLASSES).
    pub class: usize,
}

/// The rule of an update; its numbers are in the scalars.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Rule {
    /// `(g + wd·p)·trust·|p| / (|g| + wd·|p| + 1e-8)` (just `g` where a norm is 0) into momentum.
    Larc,
    /// `g + wd·p` into momentum.
    Sgd,
    /// Adam with decoupled weight decay.
    AdamW,
}
