//! Convolution: forward, backward with respect to the data, backward with respect to the weights.
//!
//! The three passes read their inputs through a [`Source`], which applies the batch norm before (or the
//! gradient of the batch norm after) while the data is on its way into scratch memory, and finish their
//! outputs through a [`Post`], which gathers batch-norm sums while the output is in cache. So the
//! normalised activations of a block never exist in memory.

mod direct;
mod filters;
mod finish;
mod kept;
mod operands;
mod partials;
pub mod plan;
mod rgb;
mod strassen;
#[cfg(test)]
mod tests;
mod winograd;

use crate::activations::Activations;
use crate::norm::{BatchStats, GradSums};
use crate::simd::dispatch;
use crate::{Context, Error, Precision, profile};
use direct::fill::Reader;
use direct::geometry::Geometry;
pub(crate) use direct::product::DEPTH;
use filters::{Direction, Filters};
use finish::Finisher;
pub(crate) use kept::{Kept, Weights};
pub(crate) use operands::{Fused, Post, Source};
use partials::Partials;
use plan::{Algorithm, Pass, Plan, Reading};

/// A square convolution without bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ConvSpec {
    /// Input channels.
    pub c_in: usize,
    /// Output channels.
    pub c_out: usize,
    /// Height and width of the kernel.
    pub kernel: usize,
    /// Step between outputs, in input pixels.
    pub stride: usize,
    /// Rows and columns of zeros around the input.
    pub padding: usize,
}

impl ConvSpec {
    /// The shape of the output for an input `[n, h, w, c_in]`; sides that the kernel does not fit into give 0.
    pub fn output_shape(&self, [n, h, w, _]: [usize; 4]) -> [usize; 4] {
        let side = |s: usize| match (s + 2 * self.padding).checked_sub(self.kernel) {
            Some(room) => room / self.stride + 1,
            None => 0,
        };
        [n, side(h), side(w), self.c_out]
    }

    /// The number of weights: c_out × kernel × kernel × c_in.
    pub fn weight_len(&self) -> usize {
        self.c_out * self.kernel * self.kernel * self.c_in
    }

    /// Floating-point operations of one pass over an input of this shape (a multiplication and an addition
    /// each count one; products with padding are counted, as is usual).
    pub fn flops(&self, input: [usize; 4]) -> f64 {
        let [n, h, w, _] = self.output_shape(input);
        2.0 * (n * h * w) as f64 * self.weight_len() as f64
    }

    pub(crate) fn check(&self, input: [usize; 4], weights: usize) -> Result<(), Error> {
        if input[3] != self.c_in {
            return Err(Error::shape("input channels of a convolution", self.c_in, input[3]));
        }
        if self.output_shape(input)[1] == 0 || self.output_shape(input)[2] == 0 {
            let least = self.kernel.saturating_sub(2 * self.padding);
            return Err(Error::shape("input side of a convolution", format!("at least {least}"), input));
        }
        if weights != self.weight_len() {
            return Err(Error::shape("weights of a convolution", self.weight_len(), weights));
        }
        Ok(())
    }

    fn describe(&self, input: [usize; 4]) -> (String, f64) {
        let [n, h, w, c] = input;
        (format!("{n}x{h}x{w}x{c} -> {} k{} s{}", self.c_out, self.kernel, self.stride), self.flops(input))
    }
}

/// A forward or data pass: filters times source, finished. What is common to all algorithms.
#[derive(Clone, Copy)]
struct Product<'a> {
    spec: &'a ConvSpec,
    /// The shape of the convolution's input.
    input: [usize; 4],
    direction: Direction,
    source: Source<'a>,
    weights: Weights<'a>,
    finisher: Finisher<'a>,
    plan: Plan,
}

/// A weight pass: `Σ dy ⊗ x`.
#[derive(Clone, Copy)]
struct Gradient<'a> {
    spec: &'a ConvSpec,
    x: Source<'a>,
    dy: Source<'a>,
    plan: Plan,
}

/// `out = conv(src)`, and its batch statistics if asked for.
///
/// # Panics
/// If shapes do not fit.
pub(crate) fn forward(
    ctx: &Context,
    spec: &ConvSpec,
    src: Source<'_>,
    weights: &[f32],
    out: &mut Activations,
    stats: bool,
) -> Option<BatchStats> {
    let input = src.shape();
    let describe = || spec.describe(input);
    let plan = Plan::choose(spec, input, Pass::Forward, src.precision(), ctx);
    let (direction, finisher, weights) = (Direction::Forward, Finisher::Forward { stats }, weights.into());
    let product = Product { spec, input, direction, source: src, weights, finisher, plan };
    let (partials, counts) = profile::scope("conv forward", describe, || product.run(ctx, out));
    stats.then(|| partials.batch_stats(&counts))
}

/// `out = conv(x)` with weights that may be scaled and kept, and what follows it fused into it. All is f32.
///
/// # Panics
/// If shapes do not fit.
pub(crate) fn infer(
    ctx: &Context,
    spec: &ConvSpec,
    x: &Activations,
    weights: Weights<'_>,
    fused: Fused<'_>,
    out: &mut Activations,
) {
    let input = x.shape;
    let describe = || spec.describe(input);
    let plan = Plan::choose_kept(spec, input, ctx);
    let (direction, finisher) = (Direction::Forward, Finisher::Fused(fused));
    let product = Product { spec, input, direction, source: Source::Plain(x), weights, finisher, plan };
    profile::scope("conv inference", describe, || product.run(ctx, out));
}

/// Max pooling 3×3, stride 2, padding 1 of what [`infer`] gives, where there are kernels for both together: `None` otherwise.
/// Nothing is added to the convolution's output but biases.
///
/// # Panics
/// If shapes do not fit.
pub(crate) fn infer_pooled(
    ctx: &Context,
    spec: &ConvSpec,
    x: &Activations,
    weights: Weights<'_>,
    fused: Fused<'_>,
) -> Option<Activations> {
    let input = x.shape;
    let plan = Plan::choose_kept(spec, input, ctx);
    if plan.algorithm != Algorithm::RgbRows || fused.add {
        return None;
    }
    let [n, h, w, c] = spec.output_shape(input);
    let mut out = ctx.activations([n, h.div_ceil(2), w.div_ceil(2), c], Precision::F32);
    let (direction, finisher) = (Direction::Forward, Finisher::Fused(fused));
    let product = Product { spec, input, direction, source: Source::Plain(x), weights, finisher, plan };
    profile::scope(
        "conv and pooling inference",
        || spec.describe(input),
        || {
            dispatch!(ctx.vectors(), simd => rgb::forward_pooled(simd, ctx, &product, &mut out));
        },
    );
    Some(out)
}

/// `out = conv_transposed(dy)`, finished by `post`, whose sums it returns.
///
/// # Panics
/// If shapes do not fit.
pub(crate) fn backward_data(
    ctx: &Context,
    spec: &ConvSpec,
    dy: Source<'_>,
    weights: &[f32],
    out: &mut Activations,
    post: Post<'_>,
) -> Option<GradSums> {
    let input = out.shape;
    let describe = || spec.describe(input);
    let plan = Plan::choose(spec, input, Pass::Data, dy.precision(), ctx);
    let (direction, finisher, weights) = (Direction::Backward, Finisher::Backward(post), weights.into());
    let product = Product { spec, input, direction, source: dy, weights, finisher, plan };
    let (partials, _) = profile::scope("conv backward data", describe, || product.run(ctx, out));
    finisher.sums().then(|| partials.grad_sums())
}

/// `grad += Σ dy ⊗ x`, OHWI.
///
/// # Panics
/// If shapes do not fit.
pub(crate) fn backward_weights(
    ctx: &Context,
    spec: &ConvSpec,
    x: Source<'_>,
    dy: Source<'_>,
    grad: &mut [f32],
) {
    let describe = || spec.describe(x.shape());
    let both = [x.precision(), dy.precision()];
    let stored = if both == [Precision::Mixed; 2] { Precision::Mixed } else { Precision::F32 };
    let plan = Plan::choose(spec, x.shape(), Pass::Weights, stored, ctx);
    let gradient = Gradient { spec, x, dy, plan };
    profile::scope("conv backward weights", describe, || gradient.run(ctx, grad));
}

impl Product<'_> {
    /// Runs the pass by the algorithm that is planned. Returns the sums of each part of the work, and the values per channel
    /// behind each of them.
    fn run(&self, ctx: &Context, out: &mut Activations) -> (Partials, Vec<usize>) {
        dispatch!(ctx.vectors(), simd => match self.plan.algorithm {
            Algorithm::Winograd(_) => winograd::product::run(simd, ctx, self, out),
            Algorithm::RgbRows => rgb::forward(simd, ctx, self, out),
            Algorithm::Strassen(_) => strassen::run(simd, ctx, self, out),
            Algorithm::Direct(_) => direct::product::run(simd, ctx, self, out),
        })
    }

    /// Checks that shapes fit: what algorithms rest memory safety on. Each checks it before it begins.
    ///
    /// # Panics
    /// If they do not.
    fn check(&self, out: &Activations) {
        let written = match self.direction {
            Direction::Forward => self.spec.output_shape(self.input),
            Direction::Backward => self.input,
        };
        assert_eq!(out.shape, written, "shape of what a convolution writes");
        self.check_reads();
        self.finisher.check(out);
    }

    /// Checks what is read, and nothing of what is written.
    ///
    /// # Panics
    /// As [`check`](Self::check).
    fn check_reads(&self) {
        let read = match self.direction {
            Direction::Forward => self.input,
            Direction::Backward => self.spec.output_shape(self.input),
        };
        assert_eq!(self.weights.values.len(), self.spec.weight_len(), "weights of a convolution");
        if let Some(scale) = self.weights.scale {
            let expected = (self.spec.c_out, Direction::Forward);
            assert_eq!((scale.len(), self.direction), expected, "factors of a convolution's weights");
        }
        assert_eq!(self.input[3], self.spec.c_in, "input channels of a convolution");
        assert_eq!(self.source.shape(), read, "shape of what a convolution reads");
        self.source.check();
    }

    /// The weights as this pass sees them.
    fn filters(&self) -> Filters<'_> {
        let ConvSpec { c_in, c_out, kernel, .. } = *self.spec;
        let taps = kernel * kernel;
        let (c_in, taps) = match self.plan.reading() {
            Reading::Pixels => (c_in, taps),
            Reading::Columns => (taps * c_in, 1),
        };
        Filters::new(self.weights, [c_out, taps, c_in], self.direction, self.plan.products)
    }

    /// How the source gets into scratch memory, and which of its pixels meets which tap there.
    fn reader(&self) -> (Reader<'_>, Geometry) {
        match self.direction {
            Direction::Forward => self.spec.reader(self.source, self.plan.reading()),
            Direction::Backward => (Reader::Pixels(self.source), Geometry::backward(self.spec, self.input)),
        }
    }
}

impl Gradient<'_> {
    /// Runs the pass by the algorithm that is planned.
    fn run(&self, ctx: &Context, grad: &mut [f32]) {
        dispatch!(ctx.vectors(), simd => match self.plan.algorithm {
            Algorithm::Winograd(order) => winograd::gradient::run(simd, ctx, self, order, grad),
            Algorithm::RgbRows => rgb::backward_weights(simd, ctx, self, grad),
            // Strassen's step is for products of more depth than a weight pass has rows.
            Algorithm::Strassen(_) | Algorithm::Direct(_) => direct::gradient::run(simd, ctx, self, grad),
        })
    }
}

impl Gradient<'_> {
    /// Checks that shapes fit: what algorithms rest memory safety on. Each checks it before it begins.
    ///
    /// # Panics
    /// If they do not.
    fn check(&self, grad: &[f32]) {
        let input = self.x.shape();
        assert_eq!(grad.len(), self.spec.weight_len(), "weights' gradient of a convolution");
        assert_eq!(input[3], self.spec.c_in, "input channels of a convolution");
        assert_eq!(self.dy.shape(), self.spec.output_shape(input), "shape of an output's gradient");
        self.x.check();
        self.dy.check();
    }
}

impl ConvSpec {
    /// How forward and weight passes read a source, with the geometry that they have then.
    fn reader<'a>(&'a self, source: Source<'a>, reading: Reading) -> (Reader<'a>, Geometry) {
        let geometry = Geometry::reading(self, source.shape(), reading);
        match reading {
            Reading::Pixels => (Reader::Pixels(source), geometry),
            Reading::Columns => (Reader::Columns(source, self), geometry),
        }
    }
}
