//! Batch norm with ReLU: statistics, application, gradients.
//!
//! For each channel, with M rows: mean μ, biased variance σ², r = 1/√(σ² + ε); z = a·y + b with a = γ·r, b = β - μ·a.
//! `state` is `[4][channels]`: μ, r, a, b. `moments` is `[2][channels]`: μ and the unbiased variance σ²·M/(M-1), from
//! which [`MergeRunning`] moves the running statistics.

use super::{Launch, Tiling, in_flight, typed};
use crate::shape::Element;

/// Values (f32) of scratch that sums over `rows` rows need, for `sums` sums a channel: 2, or 3 of a pair of branches.
pub fn norm_scratch_len(rows: usize, channels: usize, sums: usize) -> usize {
    // The most row blocks that any element type and kernel uses.
    Tiling::sums(channels).row_blocks(rows, 1) * sums * channels
}

/// A launch of 32 channels a block.
fn finish<P>(kernel: &'static str, channels: usize) -> Launch<P> {
    Launch::new(kernel, [channels.div_ceil(32), 1, 1], [32, 32, 1])
}

/// Statistics of a batch, `state` and `moments` from `y`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NormStatistics<P> {
    /// Type of `y`.
    pub element: Element,
    /// Input, `[rows][channels]`.
    pub y: P,
    /// Values a channel.
    pub rows: usize,
    /// Padded channels.
    pub channels: usize,
    /// γ, f32.
    pub gamma: P,
    /// β, f32.
    pub beta: P,
    /// Written.
    pub state: P,
    /// Written.
    pub moments: P,
    /// ε.
    pub epsilon: f32,
    /// [`norm_scratch_len`] values for 2 sums.
    pub scratch: P,
    /// Whether the tensor is walked from its end.
    pub reversed: bool,
}

impl<P: Copy> NormStatistics<P> {
    /// The launches, in their order.
    pub fn launches(&self) -> Vec<Launch<P>> {
        let t = Tiling::sums(self.channels);
        let blocks = t.row_blocks(self.rows, in_flight(self.element, 1));
        let sums = Launch::blocks(typed!(self.element, "norm_statistics"), [t.tiles, blocks, 1])
            .pointer(self.y)
            .pointer(self.scratch)
            .int(self.rows)
            .int(t.vectors)
            .int(t.tile)
            .flag(self.reversed);
        let finish = finish(typed!(self.element, "norm_finish"), self.channels)
            .pointer(self.y)
            .pointer(self.scratch)
            .int(self.channels)
            .int(blocks)
            .int(self.rows)
            .pointer(self.gamma)
            .pointer(self.beta)
            .pointer(self.state)
            .pointer(self.moments)
            .float(self.epsilon);
        vec![sums, finish]
    }
}

/// `state` for inference, from running statistics.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NormFromRunning<P> {
    /// `[2][channels]`: mean and variance.
    pub running: P,
    /// γ.
    pub gamma: P,
    /// β.
    pub beta: P,
    /// Written.
    pub state: P,
    /// Padded channels.
    pub channels: usize,
    /// ε.
    pub epsilon: f32,
}

impl<P: Copy> NormFromRunning<P> {
    /// The launch.
    pub fn launches(&self) -> Vec<Launch<P>> {
        let launch = Launch::each("norm_from_running", self.channels)
            .pointer(self.running)
            .pointer(self.gamma)
            .pointer(self.beta)
            .pointer(self.state)
            .int(self.channels)
            .float(self.epsilon);
        vec![launch]
    }
}

/// What is added before the rectifier.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Shortcut<P> {
    /// Nothing.
    None,
    /// A tensor of the output's shape.
    Identity(P),
    /// Another normalised branch, y and `state`.
    Normed {
        /// Input of the other norm.
        y: P,
        /// Its state.
        state: P,
    },
}

/// `out = relu(a·y + b + shortcut)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NormApply<P> {
    /// Type of `y`, the shortcut and `out`.
    pub element: Element,
    /// Input.
    pub y: P,
    /// Its state.
    pub state: P,
    /// What is added.
    pub shortcut: Shortcut<P>,
    /// Output.
    pub out: P,
    /// With a shortcut, one byte for each 8 channels: bit j tells whether channel j is positive. Not written without one.
    pub mask: Option<P>,
    /// Rows.
    pub rows: usize,
    /// Padded channels.
    pub channels: usize,
    /// Whether the tensor is walked from its end.
    pub reversed: bool,
}

impl<P: Copy> NormApply<P> {
    /// The launch.
    pub fn launches(&self) -> Vec<Launch<P>> {
        let t = Tiling::elementwise(self.channels);
        let (kernel, inputs, per_unit) = match self.shortcut {
            Shortcut::None => (typed!(self.element, "norm_apply"), 1, 4),
            Shortcut::Identity(_) => (typed!(self.element, "norm_apply_identity"), 2, 3),
            Shortcut::Normed { .. } => (typed!(self.element, "norm_apply_normed"), 3, 3),
        };
        let blocks = t.apply_blocks(self.rows, in_flight(self.element, inputs), per_unit);
        let mut launch = Launch::blocks(kernel, [t.tiles, blocks, 1]).pointer(self.y).pointer(self.state);
        launch = match self.shortcut {
            Shortcut::None => launch.pointer(self.out),
            Shortcut::Identity(other) => launch.pointer(other).pointer(self.out).optional(self.mask),
            Shortcut::Normed { y, state } => {
                launch.pointer(y).pointer(state).pointer(self.out).optional(self.mask)
            }
        };
        vec![launch.int(self.rows).int(t.vectors).int(t.tile).flag(self.reversed)]
    }
}

/// What the gradient of one norm reads and writes by channel.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NormGrad<P> {
    /// γ.
    pub gamma: P,
    /// The norm's state.
    pub state: P,
    /// Written: `[3][channels]`, c1, c2, c3 of `dy = c1·g + c2·y + c3`.
    pub coefficients: P,
    /// Written: gradient with respect to γ, f32.
    pub dgamma: P,
    /// Written: gradient with respect to β, f32.
    pub dbeta: P,
}

/// A second branch behind the same rectifier.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Branch<P> {
    /// The second norm's input.
    pub y: P,
    /// The second norm.
    pub norm: NormGrad<P>,
}

/// Where the gradient passes the rectifier.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum SumsGate<P> {
    /// Where a·y + b is positive.
    Sign,
    /// Where the mask has a one.
    Mask(P),
    /// Where the mask has a one, to two branches.
    Pair {
        /// The mask.
        mask: P,
        /// The second branch.
        branch: Branch<P>,
    },
}

/// Sums for the gradient: Σ g and Σ g·(y - μ), g being `dout` where the gate is open; then coefficients, dγ, dβ.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NormBackwardSums<P> {
    /// Type of activations.
    pub element: Element,
    /// Gradient with respect to the output.
    pub dout: P,
    /// The norm's input.
    pub y: P,
    /// The norm.
    pub norm: NormGrad<P>,
    /// Where the gradient passes.
    pub gate: SumsGate<P>,
    /// Rows.
    pub rows: usize,
    /// Padded channels.
    pub channels: usize,
    /// [`norm_scratch_len`] values, for 3 sums with a pair, else 2.
    pub scratch: P,
    /// Whether the tensor is walked from its end.
    pub reversed: bool,
}

/// Adds the arguments of [`NormGrad`] in the finishing kernels' order.
fn grad<P: Copy>(launch: Launch<P>, norm: &NormGrad<P>) -> Launch<P> {
    launch
        .pointer(norm.gamma)
        .pointer(norm.state)
        .pointer(norm.coefficients)
        .pointer(norm.dgamma)
        .pointer(norm.dbeta)
}

/// The finishing kernel after `blocks` row blocks of sums.
pub(super) fn finish_backward<P: Copy>(
    scratch: P,
    channels: usize,
    blocks: usize,
    rows: usize,
    norm: &NormGrad<P>,
    second: Option<&NormGrad<P>>,
) -> Launch<P> {
    let kernel = if second.is_some() { "norm_backward_finish_pair" } else { "norm_backward_finish" };
    let launch = finish(kernel, channels).pointer(scratch).int(channels).int(blocks).int(rows);
    let launch = grad(launch, norm);
    match second {
        Some(norm) => grad(launch, norm),
        None => launch,
    }
}

impl<P: Copy> NormBackwardSums<P> {
    /// The launches, in their order.
    pub fn launches(&self) -> Vec<Launch<P>> {
        let t = Tiling::sums(self.channels);
        let (kernel, inputs) = match self.gate {
            SumsGate::Sign => (typed!(self.element, "norm_backward_sums"), 2),
            SumsGate::Mask(_) => (typed!(self.element, "norm_backward_sums_mask"), 2),
            SumsGate::Pair { .. } => (typed!(self.element, "norm_backward_sums_pair"), 3),
        };
        let blocks = t.row_blocks(self.rows, in_flight(self.element, inputs));
        let mut sums = Launch::blocks(kernel, [t.tiles, blocks, 1])
            .pointer(self.dout)
            .pointer(self.y)
            .pointer(self.norm.state);
        let mut second = None;
        match &self.gate {
            SumsGate::Sign => {}
            SumsGate::Mask(mask) => sums = sums.pointer(*mask),
            SumsGate::Pair { mask, branch } => {
                sums = sums.pointer(*mask).pointer(branch.y).pointer(branch.norm.state);
                second = Some(&branch.norm);
            }
        }
        let sums = sums.pointer(self.scratch).int(self.rows).int(t.vectors).int(t.tile).flag(self.reversed);
        vec![sums, finish_backward(self.scratch, self.channels, blocks, self.rows, &self.norm, second)]
    }
}

/// Where the gradient passes the rectifier, and what else is written.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ApplyGate<P> {
    /// Where a·y + b of this state is positive; `out` may be `dout`.
    Sign {
        /// The norm's state.
        state: P,
    },
    /// Where the mask has a one; `dout` then becomes the gated gradient, which is also the shortcut's.
    Mask(P),
    /// Where the mask has a one, to two branches.
    Pair {
        /// The mask.
        mask: P,
        /// The second norm's input.
        y: P,
        /// The second norm's coefficients.
        coefficients: P,
        /// The gradient with respect to the second norm's input.
        out: P,
    },
}

/// `out = c1·g + c2·y + c3`, the gradient with respect to the norm's input.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NormBackwardApply<P> {
    /// Type of activations.
    pub element: Element,
    /// Gradient with respect to the output; see [`ApplyGate`].
    pub dout: P,
    /// The norm's input.
    pub y: P,
    /// From [`NormBackwardSums`].
    pub coefficients: P,
    /// Where the gradient passes.
    pub gate: ApplyGate<P>,
    /// The gradient with respect to `y`.
    pub out: P,
    /// Rows.
    pub rows: usize,
    /// Padded channels.
    pub channels: usize,
    /// Whether the tensor is walked from its end.
    pub reversed: bool,
}

impl<P: Copy> NormBackwardApply<P> {
    /// The launch.
    pub fn launches(&self) -> Vec<Launch<P>> {
        let t = Tiling::elementwise(self.channels);
        let (kernel, inputs, per_unit) = match self.gate {
            ApplyGate::Sign { .. } => (typed!(self.element, "norm_backward_apply"), 2, 2),
            ApplyGate::Mask(_) => (typed!(self.element, "norm_backward_apply_mask"), 2, 3),
            ApplyGate::Pair { .. } => (typed!(self.element, "norm_backward_apply_pair"), 3, 2),
        };
        let blocks = t.apply_blocks(self.rows, in_flight(self.element, inputs), per_unit);
        let launch = Launch::blocks(kernel, [t.tiles, blocks, 1]).pointer(self.dout).pointer(self.y);
        let launch = match self.gate {
            ApplyGate::Sign { state } => launch.pointer(state).pointer(self.coefficients).pointer(self.out),
            ApplyGate::Mask(mask) => launch.pointer(self.coefficients).pointer(mask).pointer(self.out),
            ApplyGate::Pair { mask, y, coefficients, out } => launch
                .pointer(self.coefficients)
                .pointer(mask)
                .pointer(self.out)
                .pointer(y)
                .pointer(coefficients)
                .pointer(out),
        };
        vec![launch.int(self.rows).int(t.vectors).int(t.tile).flag(self.reversed)]
    }
}

/// Moves running statistics: `running += momentum·(moments - running)`, group after group.
///
/// All norms' `[2][channels]` may lie side by side, so that one launch serves them all. The momentum is read from
/// [`StepScalars`](super::StepScalars).
#[derive(Debug, Clone, PartialEq)]
pub struct MergeRunning<P> {
    /// Running statistics.
    pub running: P,
    /// Each group's moments, in the same layout, in the order of the groups.
    pub moments: Vec<P>,
    /// The step's scalars.
    pub scalars: P,
    /// Values of `running`.
    pub len: usize,
}

impl<P: Copy> MergeRunning<P> {
    /// The launches, in their order; one for each eight groups.
    pub fn launches(&self) -> Vec<Launch<P>> {
        let launch = |groups: &[P]| {
            let launch = Launch::each("merge_running", self.len).pointer(self.running);
            let launch = (0..8).fold(launch, |launch, i| launch.optional(groups.get(i).copied()));
            launch.pointer(self.scalars).int(groups.len()).int(self.len)
        };
        self.moments.chunks(8).map(launch).collect()
    }
}
