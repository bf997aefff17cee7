//! Convolution: forward, backward with respect to the data, backward with respect to the weights.
//!
//! The three passes read their inputs through a [`Source`], which applies the batch norm before (or the
//! gradient of the batch norm after) while the data is on its way into scratch memory, and finish their
//! outputs through a [`Post`], which gathers batch-norm sums while the output is in cache. So the
//! normalised activations of a block never exist in memory.

mod any_tile;
mod direct;
mod fill;
mod finish;
mod geometry;
mod grad_tiles;
mod narrow;
mod pack;
mod strassen;
#[cfg(test)]
mod tests;
mod tiles;
mod tiling;
mod transforms;
mod two_taps;
mod weights;
mod winograd;
mod winograd_weights;

use crate::activations::Activations;
use crate::norm::{Affine, BatchStats, GradAffine, GradSums};
use crate::simd::{BLOCK, Simd, dispatch};
use crate::{Context, Error, Precision, profile};
use fill::Reader;
use finish::Finisher;
use geometry::Geometry;
use pack::{Direction, Weights};

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

    /// `[n, h, w, c]`.
    pub fn shape(&self) -> [usize; 4] {
        match self {
            Source::Plain(x) => x.shape,
            Source::NormRelu { raw, .. } | Source::NormGrad { raw, .. } => raw.shape,
        }
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

/// `out = conv(src)`, and its batch statistics if asked for. Shapes are the caller's duty.
pub(crate) fn forward(
    ctx: &Context,
    spec: &ConvSpec,
    src: Source<'_>,
    weights: &[f32],
    out: &mut Activations,
    stats: bool,
) -> Option<BatchStats> {
    profile::scope(
        "conv forward",
        || spec.describe(src.shape()),
        || dispatch!(ctx.isa(), S => forward_with::<S>(ctx, spec, src, weights, out, stats)),
    )
}

/// `out = conv_transposed(dy)`, finished by `post`, whose sums it returns.
pub(crate) fn backward_data(
    ctx: &Context,
    spec: &ConvSpec,
    dy: Source<'_>,
    weights: &[f32],
    out: &mut Activations,
    post: Post<'_>,
) -> Option<GradSums> {
    let shape = out.shape;
    profile::scope(
        "conv backward data",
        || spec.describe(shape),
        || dispatch!(ctx.isa(), S => backward_data_with::<S>(ctx, spec, dy, weights, out, post)),
    )
}

/// `grad += Σ dy ⊗ x`, OHWI.
pub(crate) fn backward_weights(
    ctx: &Context,
    spec: &ConvSpec,
    x: Source<'_>,
    dy: Source<'_>,
    grad: &mut [f32],
) {
    profile::scope(
        "conv backward weights",
        || spec.describe(x.shape()),
        || dispatch!(ctx.isa(), S => backward_weights_with::<S>(ctx, spec, x, dy, grad)),
    );
}

fn forward_with<S: Simd>(
    ctx: &Context,
    spec: &ConvSpec,
    src: Source<'_>,
    weights: &[f32],
    out: &mut Activations,
    stats: bool,
) -> Option<BatchStats> {
    let finisher = Finisher::Forward { stats };
    if spec.winograd_pays(ctx, &[src], src.shape()) {
        let weights = spec.matrix(weights, Direction::Forward);
        let (partials, counts) = winograd::run::<S>(ctx, src, weights, spec.stride, out, finisher);
        return stats.then(|| partials.batch_stats(&counts));
    }
    if narrow::applies(spec) {
        let (partials, counts) = narrow::forward::<S>(ctx, spec, src, weights, out, finisher);
        return stats.then(|| partials.batch_stats(&counts));
    }
    let (reader, geometry, taps, c_in) = spec.reader(src);
    let pairs = spec.multiplies_bf16(ctx, &[src]);
    let direction = Direction::Forward;
    let weights = Weights { values: weights, c_in, c_out: spec.c_out, taps, direction, pairs };
    let (partials, counts) = direct::run::<S>(ctx, reader, geometry, weights, out, finisher);
    stats.then(|| partials.batch_stats(&counts))
}

fn backward_data_with<S: Simd>(
    ctx: &Context,
    spec: &ConvSpec,
    dy: Source<'_>,
    weights: &[f32],
    out: &mut Activations,
    post: Post<'_>,
) -> Option<GradSums> {
    let finisher = Finisher::Backward(post);
    let weights = spec.matrix(weights, Direction::Backward);
    if spec.winograd_pays(ctx, &[dy], out.shape) {
        let (partials, _) = winograd::run::<S>(ctx, dy, weights, spec.stride, out, finisher);
        return finisher.sums().then(|| partials.grad_sums());
    }
    let geometry = Geometry::backward(spec, out.shape);
    let weights = Weights { pairs: spec.multiplies_bf16(ctx, &[dy]), ..weights };
    let (partials, _) = direct::run::<S>(ctx, Reader::Pixels(dy), geometry, weights, out, finisher);
    finisher.sums().then(|| partials.grad_sums())
}

fn backward_weights_with<S: Simd>(
    ctx: &Context,
    spec: &ConvSpec,
    x: Source<'_>,
    dy: Source<'_>,
    grad: &mut [f32],
) {
    if spec.winograd_pays(ctx, &[x, dy], x.shape()) {
        return winograd_weights::run::<S>(ctx, x, dy, spec.stride, grad);
    }
    if narrow::applies(spec) {
        return narrow::backward_weights::<S>(ctx, spec, x, dy, grad);
    }
    let (reader, geometry, ..) = spec.reader(x);
    weights::run::<S>(ctx, reader, dy, geometry, spec.multiplies_bf16(ctx, &[x, dy]), grad);
}

impl ConvSpec {
    /// The weights as a pass sees them.
    fn matrix<'a>(&self, values: &'a [f32], direction: Direction) -> Weights<'a> {
        Weights {
            values,
            c_in: self.c_in,
            c_out: self.c_out,
            taps: self.kernel * self.kernel,
            direction,
            pairs: false,
        }
    }

    /// Whether products are of bf16: all operands are stored so, and the machine is good at it. Columns of several
    /// taps stay f32.
    fn multiplies_bf16(&self, ctx: &Context, operands: &[Source<'_>]) -> bool {
        let stored = operands.iter().all(|o| o.precision() == Precision::Mixed);
        ctx.bf16_products() && stored && (self.kernel == 1 || self.c_in >= BLOCK)
    }

    /// Whether Winograd's algorithm applies to an input of this shape, and is expected to take less time than the direct
    /// path.
    fn winograd_pays(&self, ctx: &Context, operands: &[Source<'_>], shape: [usize; 4]) -> bool {
        let applies = self.kernel == 3 && self.padding == 1 && self.c_in >= BLOCK;
        if ctx.exact() || !applies || self.stride > 2 {
            return false;
        }
        let [n, h, w, _] = shape.map(|s| s as f64);
        let (ci, co) = (self.c_in as f64, self.c_out as f64);
        // In multiply-adds: the direct path leaves padding out; the other pays for its transforms and for reading
        // transformed weights from memory.
        if self.stride == 2 {
            // It does not save enough to beat twice the rate.
            if self.multiplies_bf16(ctx, operands) {
                return false;
            }
            let [_, h, w, _] = self.output_shape(shape);
            let per_map = |of: fn(usize) -> usize| n * (of(h) * of(w)) as f64;
            // Padding is below and to the right only of odd maps.
            let taps = |output: usize, input: usize| (3 * output - 1 - input % 2) as f64;
            let direct = n * taps(h, shape[1]) * taps(w, shape[2]) * ci * co;
            let inputs = per_map(two_taps::side_products);
            let winograd = inputs * (ci * co + 16.0 * ci)
                + per_map(two_taps::side_points) * 16.0 * co
                + two_taps::PRODUCTS * ci * co * 24.0;
            return winograd < direct;
        }
        let map = [shape[1], shape[2]];
        let points = (shape[0] * transforms::map_points(map)) as f64;
        let weight_points = transforms::map_points(map).min(transforms::POINTS) as f64;
        let direct = n * (3.0 * h - 2.0) * (3.0 * w - 2.0) * ci * co;
        let winograd = points * (ci * co + 12.0 * (ci + co)) + weight_points * ci * co * 24.0;
        winograd < direct
    }

    /// How forward and weight passes read: as pixels, or as columns of taps where input channels are few or a
    /// 1×1 convolution strides. With it the geometry, and the taps and channels that the weights have then.
    fn reader<'a>(&'a self, src: Source<'a>) -> (Reader<'a>, Geometry, usize, usize) {
        let shape = src.shape();
        let taps = self.kernel * self.kernel;
        if (self.kernel > 1 && self.c_in < BLOCK)
            || (self.kernel == 1 && self.stride > 1 && self.padding == 0)
        {
            let [n, h, w, _] = self.output_shape(shape);
            let depth = taps * self.c_in;
            let flat = ConvSpec { c_in: depth, c_out: self.c_out, kernel: 1, stride: 1, padding: 0 };
            let geometry = Geometry::forward(&flat, [n * h * w, 1, 1, depth]);
            return (Reader::Columns(src, self), geometry, 1, depth);
        }
        (Reader::Pixels(src), Geometry::forward(self, shape), taps, self.c_in)
    }
}
