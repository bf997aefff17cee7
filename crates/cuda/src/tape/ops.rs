//! The operations.
//!
//! Activations are `[rows][channels]` (NHWC without the padding of pixels), stored as the program's
//! [`Element`](crate::shape::Element) "act"; `channels` is always a multiple of 8, since the network pads. What is
//! called f32 is f32 in both precisions. Everything is computed in f32 and rounded once, where it is stored.

use super::{
    BnGradientBranch, BnReduceBranch, CodesView, Gate, InputLayout, PixelFormat, PoolShape, Rule, ScoreShape,
    Shortcut, Statistics, UpdatedTensor, View,
};
use crate::shape::{ConvPass, ConvShape};

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
    /// f32 to bf16.
    Round {
        /// f32.
        from: View,
        /// act.
        to: View,
        /// Values, a multiple of 8.
        len: usize,
    },
    /// bf16 to f32.
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
    /// `over_prototypes[a][k] = -ln Σ_n exp(score/epsilon + over_samples[a][n])` (at first with `over_samples = 0`),
    /// `over_samples[a][n] = -ln Σ_k exp(score/epsilon + over_prototypes[a][k])`, over the queue's and the batch's samples,
    /// or the batch's alone while the queue is not ready. What equal marginals add to either is the same for all and
    /// cancels in the codes.
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
    /// Norms of parameters and gradients, then the update, by gradients that are clipped to
    /// [`Scalars::max_gradient_norm`](super::Scalars::max_gradient_norm). A class that is not enabled stays, with its momenta; the
    /// report's norms are of what is updated.
    Update {
        /// The rule.
        rule: Rule,
        /// All parameters.
        tensors: Vec<UpdatedTensor>,
        /// Scratch: two f32 for each [`CHUNK`](super::CHUNK) values of each parameter.
        partials: View,
        /// Norms go there.
        report: View,
    },
    /// Gradients of all groups added, each parameter's at its place of a buffer in the layout of the parameters.
    SumGradients {
        /// All parameters.
        tensors: Vec<UpdatedTensor>,
        /// Where the parameters' buffer begins: a parameter's offset there is its offset in `out`.
        parameters: View,
        /// f32.
        out: View,
    },
}
