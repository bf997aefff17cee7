//! Inference: units made ready once, with batch norms folded into the weights before them and weights kept packed.

use std::fmt::Debug;
use std::sync::Arc;

use super::{RunningStats, Unit, check_precision, check_running};
use crate::conv::{self, ConvSpec, Fused, Kept, Weights};
use crate::norm::Affine;
use crate::pool;
use crate::work::parts;
use crate::{Activations, Context, Error, Precision};

/// A unit that is ready for inference: parameters and running statistics are in it, and do not change any more.
///
/// Any number of threads may run it at once. What it computes depends on its input alone, not on what ran before.
pub trait Ready: Debug + Send + Sync {
    /// The shape of the output for an input of this shape.
    ///
    /// # Errors
    /// [`Error::Shape`] if the unit cannot take such an input.
    fn output_shape(&self, input: [usize; 4]) -> Result<[usize; 4], Error>;

    /// Runs it. The input's buffer goes back to the pool.
    ///
    /// # Errors
    /// [`Error::Shape`] for an input of the wrong size.
    fn run(&self, ctx: &Context, input: Activations) -> Result<Activations, Error>;

    /// Words of memory that it keeps beside the parameters.
    fn words(&self) -> usize {
        0
    }
}

/// Any unit, as its [`forward_infer`](Unit::forward_infer) is.
#[derive(Debug)]
pub struct Unfolded<U> {
    unit: U,
    params: Vec<Arc<Vec<f32>>>,
    running: Vec<[Vec<f32>; 2]>,
}

impl<U: Unit> Unfolded<U> {
    /// A unit with its parameters and running statistics.
    ///
    /// # Errors
    /// [`Error::Shape`] if they do not fit it.
    pub fn new(unit: U, params: &[Arc<Vec<f32>>], running: &[RunningStats<'_>]) -> Result<Self, Error> {
        check_ready(&unit, params, running)?;
        let running = running.iter().map(|stats| [stats.mean.to_vec(), stats.var.to_vec()]).collect();
        Ok(Self { unit, params: params.to_vec(), running })
    }
}

impl<U: Unit> Ready for Unfolded<U> {
    fn output_shape(&self, input: [usize; 4]) -> Result<[usize; 4], Error> {
        self.unit.output_shape(input)
    }

    fn run(&self, ctx: &Context, input: Activations) -> Result<Activations, Error> {
        let params: Vec<&[f32]> = self.params.iter().map(|values| values.as_slice()).collect();
        let running: Vec<_> = self.running.iter().map(|[mean, var]| RunningStats { mean, var }).collect();
        let output = self.unit.forward_infer(ctx, &input, &params, &running)?;
        ctx.recycle(input);
        Ok(output)
    }
}

/// Checks the parameters and running statistics that a unit is made ready with.
pub(super) fn check_ready(
    unit: &dyn Unit,
    params: &[Arc<Vec<f32>>],
    running: &[RunningStats<'_>],
) -> Result<(), Error> {
    let slices: Vec<&[f32]> = params.iter().map(|values| values.as_slice()).collect();
    super::check_params(unit, &slices)?;
    check_running(unit, running)
}

/// A unit as `fold` makes it; where activations are not f32, as it is: only f32 is folded.
pub(super) fn folded<U: Unit + 'static, R: Ready + 'static>(
    ctx: &Context,
    unit: U,
    params: &[Arc<Vec<f32>>],
    running: &[RunningStats<'_>],
    fold: impl FnOnce(U) -> R,
) -> Result<Box<dyn Ready>, Error> {
    if ctx.precision() != Precision::F32 {
        return Ok(Box::new(Unfolded::new(unit, params, running)?));
    }
    check_ready(&unit, params, running)?;
    Ok(Box::new(fold(unit)))
}

/// Checks the input of a unit that takes f32 alone.
pub(super) fn check_input(unit: &dyn Unit, input: &Activations) -> Result<(), Error> {
    input.check("the input")?;
    check_precision(input, Precision::F32)?;
    unit.output_shape(input.shape).map(drop)
}

/// A convolution whose batch norm is folded into its weights and a bias.
#[derive(Debug)]
pub(super) struct FoldedConv {
    spec: ConvSpec,
    weights: Arc<Vec<f32>>,
    /// A factor for the weights of each output channel, where there is a batch norm.
    scale: Option<Vec<f32>>,
    bias: Vec<f32>,
    kept: Kept,
}

impl FoldedConv {
    /// A convolution and the batch norm behind it, whose gamma and beta come after the weights.
    pub fn with_norm(spec: ConvSpec, params: &[Arc<Vec<f32>>], running: &RunningStats<'_>) -> Self {
        let affine = Affine::new(running.mean, running.var, &params[1], &params[2]);
        let (scale, bias) = (Some(affine.scale), affine.shift);
        Self { spec, weights: Arc::clone(&params[0]), scale, bias, kept: Kept::default() }
    }

    /// A convolution with a bias.
    pub fn with_bias(spec: ConvSpec, weights: &Arc<Vec<f32>>, bias: Vec<f32>) -> Self {
        Self { spec, weights: Arc::clone(weights), scale: None, bias, kept: Kept::default() }
    }

    /// Its output, through a ReLU if there is one.
    ///
    /// # Panics
    /// If shapes do not fit.
    pub fn run(&self, ctx: &Context, x: &Activations, relu: bool) -> Activations {
        let mut out = ctx.activations(self.spec.output_shape(x.shape), Precision::F32);
        let fused = Fused { bias: &self.bias, add: false, relu };
        conv::infer(ctx, &self.spec, x, self.weights(), fused, &mut out);
        out
    }

    /// Adds its output to what is there, and applies a ReLU.
    ///
    /// # Panics
    /// If shapes do not fit.
    pub fn join(&self, ctx: &Context, x: &Activations, to: &mut Activations) {
        let fused = Fused { bias: &self.bias, add: true, relu: true };
        conv::infer(ctx, &self.spec, x, self.weights(), fused, to);
    }

    /// Max pooling 3×3, stride 2, padding 1 of its output through a ReLU.
    ///
    /// # Panics
    /// If shapes do not fit.
    pub fn run_pooled(&self, ctx: &Context, x: &Activations) -> Activations {
        let fused = Fused { bias: &self.bias, add: false, relu: true };
        if let Some(out) = conv::infer_pooled(ctx, &self.spec, x, self.weights(), fused) {
            return out;
        }
        let full = self.run(ctx, x, true);
        let [n, h, w, c] = full.shape;
        let mut out = ctx.activations([n, h.div_ceil(2), w.div_ceil(2), c], Precision::F32);
        let identity = Affine { scale: vec![1.0; c], shift: vec![0.0; c] };
        pool::norm_relu_max_pool(ctx, &full, &identity, &mut out);
        ctx.recycle(full);
        out
    }

    fn weights(&self) -> Weights<'_> {
        Weights { values: &self.weights, scale: self.scale.as_deref(), kept: Some(&self.kept) }
    }

    /// Words of packed weights.
    pub fn words(&self) -> usize {
        self.kept.words()
    }
}

/// Words of an image's feature map that are too many to work on all images at once.
const LARGE: usize = 256 << 10;

/// Words of such maps that are worked on at once, at least an image's. Some images together fill the tiles of Winograd's
/// algorithm and share what tasks read; more would leave the last-level cache.
const LARGE_AT_ONCE: usize = 8 << 20;

/// Words of smaller maps that are worked on at once. Deep layers need some dozens of images to be fast; more would only take
/// memory.
const SMALL_AT_ONCE: usize = 16 << 20;

/// Runs units one after the other on images `[n, h, w, c]`: a few at a time as long as their feature maps are large, and
/// then all of them, so that deep layers read their weights once.
///
/// # Errors
/// [`Error::Shape`] if there are not as many values as the shape has, or units do not fit the images or each other.
pub fn infer(
    ctx: &Context,
    units: &[&dyn Ready],
    images: &[f32],
    shape: [usize; 4],
) -> Result<Activations, Error> {
    let [n, h, w, c] = shape;
    let per_image = h * w * c;
    if images.len() != n * per_image {
        return Err(Error::shape(format!("values of images {shape:?}"), n * per_image, images.len()));
    }
    // Words of an image after each unit.
    let (mut words, mut of_one) = (Vec::with_capacity(units.len()), [1, h, w, c]);
    for unit in units {
        of_one = unit.output_shape(of_one)?;
        words.push(of_one.iter().product::<usize>());
    }
    let few = words.iter().rposition(|&words| words > LARGE).map_or(0, |last| last + 1);
    let most = |at_once: usize, words: &[usize]| match ctx.precision() {
        Precision::F32 => (at_once / words.iter().copied().max().unwrap_or(0).max(1)).max(1),
        // Two images may share a word.
        Precision::Mixed => n.max(1),
    };
    let (first, rest) = units.split_at(few);
    let images_of = |range: &std::ops::Range<usize>| &images[range.start * per_image..range.end * per_image];
    let outer = |range: &std::ops::Range<usize>| -> Result<Activations, Error> {
        let (images, n) = (images_of(range), range.len());
        let small = in_parts(ctx, n, most(LARGE_AT_ONCE, &words[..few]), |part| {
            let mut input = ctx.activations([part.len(), h, w, c], Precision::F32);
            input.words.copy_from_slice(&images[part.start * per_image..part.end * per_image]);
            first.iter().try_fold(input, |flow, unit| unit.run(ctx, flow))
        })?;
        rest.iter().try_fold(small, |flow, unit| unit.run(ctx, flow))
    };
    in_parts(ctx, n, most(SMALL_AT_ONCE, &words[few..]), |range| outer(&range))
}

/// Runs `run` for ranges of at most `most` of `n` images, and puts together what it gives.
fn in_parts(
    ctx: &Context,
    n: usize,
    most: usize,
    run: impl Fn(std::ops::Range<usize>) -> Result<Activations, Error>,
) -> Result<Activations, Error> {
    if n <= most {
        return run(0..n);
    }
    let mut all: Option<Activations> = None;
    for range in parts(n, n.div_ceil(most)) {
        let (first, part) = (range.start, run(range)?);
        let [of_part, h, w, c] = part.shape;
        let all = all.get_or_insert_with(|| ctx.activations([n, h, w, c], part.precision));
        let size = part.words.len() / of_part;
        all.words[first * size..][..part.words.len()].copy_from_slice(&part.words);
        ctx.recycle(part);
    }
    all.ok_or_else(|| Error::shape("number of images", "at least 1", n))
}
