//! The operations.
//!
//! Activations are `[rows][channels]` (NHWC without the padding of pixels), stored as the program's
//! [`Element`](crate::shape::Element) "act"; `channels` is always a multiple of 8, since the network pads. What is
//! called f32 is f32 in both precisions. Everything is computed in f32 and rounded once, where it is stored.

use super::View;
use crate::shape::{ConvPass, ConvShape, Element};

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
    /// Bytes; the value is `byte·scale[c] + shift[c]`.
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

/// An assignment problem for each crop of `assign`, in logarithms: the plan of sample `n` and prototype `k` is
/// `exp(score/epsilon + over_prototypes[a][k] + over_samples[a][n])`, up to the base of the logarithm, which is the
/// machine's choice. The code of a sample is that scaled to sum to 1.
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

/// Room for the table of parameters that a card's kernels read; the machine fills it once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UpdateTable {
    /// [`TENSOR_BYTES`](super::TENSOR_BYTES) a parameter.
    pub tensors: View,
    /// 8 bytes a chunk.
    pub chunks: View,
    /// Chunks: of each parameter one for each [`CHUNK`](super::CHUNK) values.
    pub n_chunks: usize,
    /// Scratch: two f32 a chunk.
    pub partials: View,
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

/// One operation.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Op {
    /// This stream waits for all that `other` was given before this node.
    Wait {
        /// The stream that is waited for.
        other: usize,
    },
    /// Sets bytes.
    Fill {
        /// Where.
        to: View,
        /// How many bytes.
        bytes: usize,
        /// The value of each.
        byte: u8,
    },
    /// Copies bytes.
    Copy {
        /// Where from.
        from: View,
        /// Where to.
        to: View,
        /// How many bytes.
        bytes: usize,
    },
    /// Pixels to what the stem's convolution reads (act).
    Input {
        /// `[images][height][width][3]`.
        pixels: View,
        /// How they are stored.
        format: PixelFormat,
        /// Where to (act).
        out: View,
        /// How.
        layout: InputLayout,
        /// Images.
        images: usize,
        /// Rows of pixels.
        height: usize,
        /// Columns of pixels.
        width: usize,
    },
    /// A convolution, or a linear layer. The names of operands are those of the forward pass, `y = x * w`: a data
    /// gradient writes x from y and w (adds to x if `accumulate`), a weight gradient writes w from x and y. All act.
    Conv {
        /// Which product.
        pass: ConvPass,
        /// Its shape.
        shape: ConvShape,
        /// Input, or its gradient.
        x: View,
        /// Weights, or their gradient.
        w: View,
        /// Output, or its gradient.
        y: View,
        /// Whether a data gradient is added to what x holds (in f32, rounded once).
        accumulate: bool,
    },
    /// Sets the weights (act) that the [`InputLayout::Rows`] form of a 7×7 kernel does not have to zero: of
    /// `[filters][4][1][64]`, where `e` is the index within a filter, `ch = e % 16`, `bj = e / 16 % 4`,
    /// `bi = e / 64`, `q = ch / 3`: dead if `ch >= 12`, or `bi == 0 && q < 2`, or `bj == 0 && q % 2 == 0`.
    MaskStem {
        /// The gradient of the weights.
        weights: View,
        /// How many filters.
        filters: usize,
    },
    /// Batch statistics of `y`, and what normalising needs of them.
    BnStatistics {
        /// `[rows][channels]` (act).
        y: View,
        /// Values a channel.
        rows: usize,
        /// Channels.
        channels: usize,
        /// Scale parameter, f32.
        gamma: View,
        /// Shift parameter, f32.
        beta: View,
        /// All rows are written.
        statistics: Statistics,
        /// The stream's scratch.
        scratch: View,
    },
    /// Statistics for inference: all four rows from running statistics.
    BnFold {
        /// Two rows of f32, `channels` apart: running mean, running variance.
        running: View,
        /// Scale parameter, f32.
        gamma: View,
        /// Shift parameter, f32.
        beta: View,
        /// `[4][channels]`, written.
        state: View,
        /// Channels.
        channels: usize,
    },
    /// Running statistics follow those of the batches, one group of crops after the other:
    /// `running += bn_momentum·(moments - running)`.
    BnRunning {
        /// Running means and variances of some norms, f32.
        running: View,
        /// Moments of each group, in order, in the same layout.
        groups: Vec<View>,
        /// Values.
        len: usize,
    },
    /// `out = relu(y·scale + shift + shortcut)`.
    BnApply {
        /// `[rows][channels]` (act).
        y: View,
        /// Its statistics, `[4][channels]`.
        state: View,
        /// What is added.
        shortcut: Shortcut,
        /// Where to (act).
        out: View,
        /// One bit a value, set where the sum before the ReLU is above 0. Written if wanted.
        mask: Option<View>,
        /// Values a channel.
        rows: usize,
        /// Channels.
        channels: usize,
    },
    /// Sums of `g` and `g·(y - mean)` over rows, where `g` is the gradient behind the gate, and what follows: gradients
    /// of gamma (`Σ g·(y - mean) / deviation`) and beta (`Σ g`), and the coefficients
    /// `c1 = gamma/deviation`, `c2 = -c1·d_gamma/(deviation·rows)`, `c3 = -c1·d_beta/rows - c2·mean`.
    BnReduce {
        /// `[rows][channels]` (act): the gradient with respect to the ReLU's output.
        gradient: View,
        /// The ReLU.
        gate: Gate,
        /// The main path.
        first: BnReduceBranch,
        /// The shortcut with a norm; both have the same `g`. Only with a mask.
        second: Option<BnReduceBranch>,
        /// The stream's scratch.
        scratch: View,
        /// Values a channel.
        rows: usize,
        /// Channels.
        channels: usize,
    },
    /// `out = c1·g + c2·y + c3` for one or two branches.
    BnGradient {
        /// The gradient with respect to the ReLU's output (act). May be the first branch's `out`.
        gradient: View,
        /// The ReLU.
        gate: Gate,
        /// The main path.
        first: BnGradientBranch,
        /// The shortcut with a norm. Only with a mask.
        second: Option<BnGradientBranch>,
        /// Whether `g` is stored over `gradient`: it is the gradient of an identity shortcut. Only with a mask, without
        /// a second branch, and with another `out`.
        keep: bool,
        /// Values a channel.
        rows: usize,
        /// Channels.
        channels: usize,
    },
    /// `relu(y·scale + shift)`, then max pooling. Positions: 4 bits a value, eight values (channels `8·i` to `8·i + 7`)
    /// a u32 from its low end, the first largest of the window's 9 in the order of rows.
    StemPool {
        /// The convolution's output (act).
        y: View,
        /// Its statistics, `[4][channels]`.
        state: View,
        /// The pooled values (act).
        out: View,
        /// Positions, written if wanted (`out_len / 2` bytes).
        positions: Option<View>,
        /// Shapes.
        shape: PoolShape,
    },
    /// [`Op::BnReduce`] through the pooling: the gradient of a value before pooling is the sum over the windows that
    /// took it, where its normalised value is above 0.
    StemPoolReduce {
        /// The gradient with respect to the pooled values (act).
        gradient: View,
        /// Positions of the forward pass.
        positions: View,
        /// The batch norm.
        branch: BnReduceBranch,
        /// The stream's scratch.
        scratch: View,
        /// Shapes.
        shape: PoolShape,
    },
    /// [`Op::BnGradient`] through the pooling.
    StemPoolGradient {
        /// The gradient with respect to the pooled values (act).
        gradient: View,
        /// Positions of the forward pass.
        positions: View,
        /// The batch norm.
        branch: BnGradientBranch,
        /// Shapes.
        shape: PoolShape,
    },
    /// Mean over the pixels of each image: `[images][pixels][channels]` to `[images][channels]`, both act.
    AveragePool {
        /// Activations.
        x: View,
        /// Means.
        out: View,
        /// Images.
        images: usize,
        /// Pixels of an image.
        pixels: usize,
        /// Channels.
        channels: usize,
    },
    /// Its gradient: each pixel gets `gradient / pixels`.
    AveragePoolGradient {
        /// With respect to the means (act).
        gradient: View,
        /// With respect to the activations (act).
        out: View,
        /// Images.
        images: usize,
        /// Pixels of an image.
        pixels: usize,
        /// Channels.
        channels: usize,
    },
    /// `x += bias`, in place.
    Bias {
        /// `[rows][channels]` (act).
        x: View,
        /// f32.
        bias: View,
        /// Rows.
        rows: usize,
        /// Channels.
        channels: usize,
    },
    /// Sums over rows, in f32.
    BiasGradient {
        /// `[rows][channels]` (act).
        gradient: View,
        /// f32, written.
        d_bias: View,
        /// The stream's scratch.
        scratch: View,
        /// Rows.
        rows: usize,
        /// Channels.
        channels: usize,
    },
    /// `z = x / max(|x|, 1e-12)` by row.
    UnitLength {
        /// `[rows][dim]` (act).
        x: View,
        /// act; what scores are computed from.
        out: View,
        /// The same in f32, not rounded to act first; written if wanted.
        exact: Option<View>,
        /// `max(|x|, 1e-12)` of each row, f32.
        norms: View,
        /// Rows.
        rows: usize,
        /// Values of a row, a multiple of 8.
        dim: usize,
    },
    /// Its gradient: `(g - z·(g·z)) / norm`.
    UnitLengthGradient {
        /// With respect to z (act).
        gradient: View,
        /// z of the forward pass (act).
        unit: View,
        /// Norms of the forward pass.
        norms: View,
        /// With respect to x (act), written.
        out: View,
        /// Rows.
        rows: usize,
        /// Values of a row, a multiple of 8.
        dim: usize,
    },
    /// f32 to act.
    Round {
        /// f32.
        from: View,
        /// act.
        to: View,
        /// Values, a multiple of 8.
        len: usize,
    },
    /// act to f32.
    Widen {
        /// act.
        from: View,
        /// f32.
        to: View,
        /// Values, a multiple of 8.
        len: usize,
    },
    /// Prototypes to unit length, `w / max(|w|, 1e-12)` by row, in place, and into the copy that scores are computed
    /// from.
    PrototypeNormalise {
        /// f32 `[rows][dim]`.
        weights: View,
        /// The same in act, if that is not f32.
        copy: Option<View>,
        /// Rows.
        rows: usize,
        /// Values of a row, a multiple of 8.
        dim: usize,
    },
    /// Sinkhorn-Knopp: `n_iters` times
    /// `over_prototypes[a][k] = -ln K - ln Σ_n exp(score/epsilon + over_samples[a][n])` (at first with
    /// `over_samples = 0`), `over_samples[a][n] = -ln N - ln Σ_k exp(score/epsilon + over_prototypes[a][k])`. N samples:
    /// the queue's and the batch's, or the batch's alone while the queue is not ready.
    Codes {
        /// Scores and potentials.
        codes: CodesView,
        /// Shapes.
        shape: ScoreShape,
        /// Iterations, at least 1.
        n_iters: usize,
        /// Scratch: `2·A·ceil((queue + batch)/256)·K` f32.
        scratch: View,
    },
    /// The swapped-prediction loss over all rows, its gradient by the scores, and its part of the report.
    ///
    /// With `q_a[b]` the codes and `p_v[b] = softmax(s_v[b] / temperature)`, `c = 1 / (A·(V - 1)·B)`: row (v, b)
    /// contributes `-c·Σ_{a != v} Σ_k q_a[b][k]·ln p_v[b][k]`, and its gradient is
    /// `c/temperature·Σ_{a != v} (m_a·p_v - q_a)`, with `m_a = Σ_k q_a` (1 up to rounding).
    Loss {
        /// Scores and potentials.
        codes: CodesView,
        /// Shapes.
        shape: ScoreShape,
        /// `[V][B][stride]` (act), written; zero in the columns from K on.
        gradient: View,
        /// z (act), `[V][B][dim]`, for the spread.
        unit: View,
        /// Values of a row of z.
        dim: usize,
        /// f32, `dim` values of scratch.
        mean: View,
        /// Loss and diagnostics.
        report: View,
        /// Scratch: `4·V·B + 2·ceil(V·B/64)·K` f32.
        scratch: View,
    },
    /// Puts the embeddings of the assignment crops into the queue from row `queue_row` of the scalars on:
    /// `queue[a][queue_row + b] = z[assign[a]][b]`.
    QueuePush {
        /// z (act) `[V][B][dim]`.
        unit: View,
        /// act `[A][queue][dim]`.
        queue: View,
        /// `i32 [A]`: the assignment crops.
        assign: View,
        /// Shapes.
        shape: ScoreShape,
        /// Values of a row.
        dim: usize,
    },
    /// Norms of parameters and gradients, then the update. A class that is not enabled stays, with its momenta; the
    /// report's norms are of what is updated.
    Update {
        /// The rule.
        rule: Rule,
        /// All parameters.
        tensors: Vec<UpdatedTensor>,
        /// Room for them as a table.
        table: UpdateTable,
        /// Norms go there.
        report: View,
    },
    /// Gradients of all groups added, each parameter's at its place of a buffer in the layout of the parameters.
    SumGradients {
        /// All parameters.
        tensors: Vec<UpdatedTensor>,
        /// Room for them as a table.
        table: UpdateTable,
        /// Where the parameters' buffer begins: a parameter's offset there is its offset in `out`.
        parameters: View,
        /// f32.
        out: View,
    },
}
