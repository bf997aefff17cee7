//! Fused units of a residual network, each with its forward and backward pass.
//!
//! A [`Unit`] is a small description (channels, stride, ...) without parameters. Parameters come as
//! slices in the order of [`Unit::parameters`]; gradients are *added* to vectors in the same order, so
//! that several batches (one per resolution) can share them. Batch statistics are returned in [`Saved`]
//! and the caller moves its running statistics with [`BatchStats::update_running`], once per batch.
//!
//! For inference a unit is made [`Ready`] once, and [`infer()`] runs a chain of them on images.
//!
//! | unit | computes |
//! |---|---|
//! | [`Stem`] | convolution, batch norm, ReLU, and optionally max pooling 3×3 stride 2 |
//! | [`Block`] | basic or bottleneck residual block, with a projected shortcut where shapes change |
//! | [`GlobalAvgPool`] | mean over the pixels of an image |
//! | [`Linear`] | `x·Wᵀ + b` |
//! | [`BatchNorm1d`] | batch norm of vectors, optionally followed by ReLU |

mod block;
mod head;
mod infer;
mod stem;

pub use block::{Block, BlockKind};
pub use head::{BatchNorm1d, GlobalAvgPool, Linear};
pub use infer::{Ready, Unfolded, infer};
pub use stem::Stem;

use std::sync::Arc;

use crate::plan::{Pass, Plan};
use crate::{Activations, BatchStats, Context, ConvSpec, Error, Precision};

/// What a parameter is, which decides how it is initialised and laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ParamKind {
    /// A convolution's weight, OHWI.
    Conv,
    /// A batch norm's gamma.
    NormWeight,
    /// A batch norm's beta.
    NormBias,
    /// A linear layer's weight, `[out, in]`.
    LinearWeight,
    /// A linear layer's bias.
    LinearBias,
}

/// One parameter of a unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParamSpec {
    /// Its name within the unit, as PyTorch's ResNets call it: `conv1.weight`, `downsample.1.bias`, ...
    pub name: String,
    /// Its shape; convolutions are OHWI.
    pub shape: Vec<usize>,
    /// What it is.
    pub kind: ParamKind,
}

impl ParamSpec {
    /// The number of values.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there is no value.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn conv(name: &str, c_out: usize, kernel: usize, c_in: usize) -> Self {
        Self::new(format!("{name}.weight"), vec![c_out, kernel, kernel, c_in], ParamKind::Conv)
    }

    fn norm(name: &str, channels: usize) -> [Self; 2] {
        [
            Self::new(format!("{name}.weight"), vec![channels], ParamKind::NormWeight),
            Self::new(format!("{name}.bias"), vec![channels], ParamKind::NormBias),
        ]
    }

    fn new(name: String, shape: Vec<usize>, kind: ParamKind) -> Self {
        Self { name, shape, kind }
    }
}

/// One batch norm of a unit: its running statistics are the caller's to keep.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NormSpec {
    /// Its name within the unit: `bn1`, `downsample.1`, ...
    pub name: String,
    /// Its channels.
    pub channels: usize,
}

/// Running statistics of one batch norm, to infer with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RunningStats<'a> {
    /// Mean per channel.
    pub mean: &'a [f32],
    /// Variance per channel.
    pub var: &'a [f32],
}

/// What a unit's forward pass keeps for its backward pass.
///
/// The input is in it: a chain of units hands each output on as the next input, and no copy is made.
/// Units of other crates fill in what they need; a unit refuses what another kind of unit saved, or panics.
#[derive(Debug, Clone, PartialEq)]
pub struct Saved {
    /// The input, or an empty one that has its shape.
    pub input: Option<Activations>,
    /// Outputs of inner operations.
    pub raw: Vec<Activations>,
    /// The batch statistics, in the order of [`Unit::norms`].
    pub stats: Vec<BatchStats>,
    /// The shape of the output that the forward pass gave, and that the gradient must have.
    pub output_shape: [usize; 4],
    /// The storage of the output, and of its gradient.
    pub precision: Precision,
}

/// What a backward pass takes.
#[derive(Debug)]
pub struct Backward<'a> {
    /// What the forward pass saved.
    pub saved: Saved,
    /// The gradient with respect to the output.
    pub grad_output: Activations,
    /// The parameters, in the order of [`Unit::parameters`].
    pub params: &'a [&'a [f32]],
    /// The parameters' gradients, to be added to.
    pub grads: &'a mut [Vec<f32>],
    /// Whether the input's gradient is wanted.
    pub want_grad_input: bool,
}

/// A convolution, or matrix product, of a unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Convolution {
    /// The name of its weights within the unit.
    pub name: String,
    /// What it computes.
    pub spec: ConvSpec,
    /// The shape of its input.
    pub input: [usize; 4],
    /// How its input and its output are stored.
    pub stored: [Precision; 2],
}

impl Convolution {
    /// How a pass of it is computed.
    pub fn plan(&self, ctx: &Context, pass: Pass) -> Plan {
        let [input, output] = self.stored;
        let stored = match pass {
            Pass::Forward => input,
            Pass::Data => output,
            Pass::Weights if input == output => input,
            Pass::Weights => Precision::F32,
        };
        Plan::choose(&self.spec, self.input, pass, stored, ctx)
    }
}

/// How all convolutions of a chain of units are computed for an input of this shape: forward, data and weight passes.
///
/// # Errors
/// [`Error::Shape`] if the units do not fit the input or each other.
pub fn plans<'a>(
    ctx: &Context,
    units: impl IntoIterator<Item = &'a dyn Unit>,
    input: [usize; 4],
) -> Result<Vec<(Convolution, [Plan; 3])>, Error> {
    let (mut plans, mut shape) = (Vec::new(), input);
    for unit in units {
        let next = unit.output_shape(shape)?;
        let planned = |conv: Convolution| {
            let of_passes = Pass::ALL.map(|pass| conv.plan(ctx, pass));
            (conv, of_passes)
        };
        plans.extend(unit.convolutions(ctx, shape).into_iter().map(planned));
        shape = next;
    }
    Ok(plans)
}

impl Saved {
    /// The batch statistics, in the order of [`Unit::norms`].
    pub fn stats(&self) -> &[BatchStats] {
        &self.stats
    }

    /// The shape of the output that the forward pass gave, and that the gradient must have.
    pub fn output_shape(&self) -> [usize; 4] {
        self.output_shape
    }

    /// The words of activations held.
    pub fn words(&self) -> usize {
        self.input.iter().chain(&self.raw).map(|a| a.words.len()).sum()
    }

    /// Gives all buffers back to the pool: for a forward pass that will have no backward pass.
    pub fn discard(self, ctx: &Context) {
        self.input.into_iter().chain(self.raw).for_each(|a| ctx.recycle(a));
    }
}

/// A fused part of a network.
pub trait Unit: std::fmt::Debug + Send + Sync {
    /// The parameters, in the order in which the passes take them.
    fn parameters(&self) -> Vec<ParamSpec>;

    /// The batch norms, in the order in which statistics are returned and taken.
    fn norms(&self) -> Vec<NormSpec>;

    /// The convolutions and matrix products in it, for an input of this shape that it can take. None by default.
    fn convolutions(&self, ctx: &Context, input: [usize; 4]) -> Vec<Convolution> {
        let _ = (ctx, input);
        Vec::new()
    }

    /// The shape of the output for an input of this shape.
    ///
    /// # Errors
    /// [`Error::Shape`] if the unit cannot take such an input.
    fn output_shape(&self, input: [usize; 4]) -> Result<[usize; 4], Error>;

    /// The training-mode forward pass: batch norms use the statistics of this batch, which [`Saved::stats`]
    /// returns.
    ///
    /// # Errors
    /// [`Error::Shape`] for an input or parameter of the wrong size, [`Error::TooFewForBatchNorm`] if a
    /// channel has a single value.
    fn forward_train(
        &self,
        ctx: &Context,
        input: Activations,
        params: &[&[f32]],
    ) -> Result<(Activations, Saved), Error>;

    /// The backward pass: adds the parameters' gradients to [`Backward::grads`] and returns the gradient of the input if
    /// it is wanted. All buffers of [`Backward::saved`] and [`Backward::grad_output`] go back to the pool.
    ///
    /// # Errors
    /// [`Error::Shape`] for a gradient, parameter or vector of gradients of the wrong size.
    fn backward(&self, ctx: &Context, args: Backward<'_>) -> Result<Option<Activations>, Error>;

    /// The inference-mode forward pass: batch norms use the running statistics given.
    ///
    /// # Errors
    /// [`Error::Shape`] for an input, parameter or statistic of the wrong size.
    fn forward_infer(
        &self,
        ctx: &Context,
        input: &Activations,
        params: &[&[f32]],
        running: &[RunningStats<'_>],
    ) -> Result<Activations, Error>;

    /// Makes the unit ready for many inference passes with these parameters and running statistics: faster than
    /// [`forward_infer`](Unit::forward_infer), with the same results but for rounding. [`Unfolded`] does it for units that
    /// have nothing to prepare.
    ///
    /// # Errors
    /// [`Error::Shape`] for a parameter or statistic of the wrong size.
    fn ready(
        &self,
        ctx: &Context,
        params: &[Arc<Vec<f32>>],
        running: &[RunningStats<'_>],
    ) -> Result<Box<dyn Ready>, Error>;
}

/// Checks a forward pass's arguments and returns the output's shape.
fn check_forward(unit: &dyn Unit, input: &Activations, params: &[&[f32]]) -> Result<[usize; 4], Error> {
    input.check("the input")?;
    check_params(unit, params)?;
    unit.output_shape(input.shape)
}

/// Checks that activations are stored as a unit can take them.
fn check_precision(input: &Activations, expected: Precision) -> Result<(), Error> {
    if input.precision != expected {
        return Err(Error::shape("precision of the input", expected, input.precision));
    }
    Ok(())
}

/// Checks that batch norms can have statistics. Where processes merge theirs, the whole batch is checked when they do.
fn check_batch(ctx: &Context, shape: [usize; 4]) -> Result<(), Error> {
    let got = shape[0] * shape[1] * shape[2];
    if got < if ctx.sum_across().is_some() { 1 } else { 2 } {
        Err(Error::TooFewForBatchNorm { got })
    } else {
        Ok(())
    }
}

/// Checks a backward pass's arguments.
fn check_backward(unit: &dyn Unit, args: &Backward<'_>) -> Result<(), Error> {
    let Backward { saved, grad_output: grad, params, grads, .. } = args;
    grad.check("the output's gradient")?;
    if grad.precision != saved.precision {
        return Err(Error::shape("precision of the output's gradient", saved.precision, grad.precision));
    }
    if grad.shape != saved.output_shape {
        return Err(Error::shape("shape of the output's gradient", saved.output_shape, grad.shape));
    }
    check_params(unit, params)?;
    let lens: Vec<usize> = params.iter().map(|p| p.len()).collect();
    let got: Vec<usize> = grads.iter().map(Vec::len).collect();
    if lens != got {
        return Err(Error::shape("lengths of the gradients", lens, got));
    }
    Ok(())
}

fn check_params(unit: &dyn Unit, params: &[&[f32]]) -> Result<(), Error> {
    let specs = unit.parameters();
    if specs.len() != params.len() {
        return Err(Error::shape("number of parameters", specs.len(), params.len()));
    }
    for (spec, param) in specs.iter().zip(params) {
        if spec.len() != param.len() {
            return Err(Error::shape(format!("length of {}", spec.name), spec.len(), param.len()));
        }
    }
    Ok(())
}

fn check_running(unit: &dyn Unit, running: &[RunningStats<'_>]) -> Result<(), Error> {
    let norms = unit.norms();
    if norms.len() != running.len() {
        return Err(Error::shape("number of running statistics", norms.len(), running.len()));
    }
    for (norm, stats) in norms.iter().zip(running) {
        if stats.mean.len() != norm.channels || stats.var.len() != norm.channels {
            let got = (stats.mean.len(), stats.var.len());
            return Err(Error::shape(format!("running statistics of {}", norm.name), norm.channels, got));
        }
    }
    Ok(())
}

/// Two distinct elements of a list, to write.
fn pair_mut(grads: &mut [Vec<f32>], first: usize) -> (&mut [f32], &mut [f32]) {
    let (a, b) = grads.split_at_mut(first + 1);
    (&mut a[first], &mut b[0])
}
