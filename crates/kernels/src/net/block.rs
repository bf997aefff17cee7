//! Residual blocks.

use std::sync::Arc;

use super::infer::{FoldedConv, check_input, folded};
use super::{
    Backward, Convolution, NormSpec, ParamSpec, Ready, RunningStats, Saved, Unit, check_backward,
    check_batch, check_forward, check_precision, check_running, pair_mut,
};
use crate::context::Checkpointing;
use crate::conv::{self, ConvSpec, Post, Source};
use crate::norm::{Affine, BatchStats, GradAffine};
use crate::pointwise::{self, Normed, Shortcut};
use crate::{Activations, Context, Error};

/// The two residual blocks of He et al., "Deep residual learning for image recognition" (2016), the second
/// with the stride in its 3×3 convolution (as torchvision has it).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum BlockKind {
    /// 3×3, 3×3; the output has as many channels as the convolutions.
    Basic,
    /// 1×1, 3×3, 1×1; the output has four times the channels of the 3×3 convolution.
    Bottleneck,
}

impl BlockKind {
    /// Output channels by channels of the 3×3 convolutions.
    pub fn expansion(self) -> usize {
        match self {
            BlockKind::Basic => 1,
            BlockKind::Bottleneck => 4,
        }
    }
}

/// A residual block: `relu(bn(conv(.. relu(bn(conv(x))))) + shortcut(x))`.
///
/// The shortcut is the input itself, or a 1×1 convolution with batch norm (`downsample`) where stride or
/// channels change. The normalised values inside exist only in registers and scratch memory: each convolution
/// applies the batch norm before it while it reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    convs: Vec<ConvSpec>,
    downsample: Option<ConvSpec>,
}

/// What a block's convolutions gave: their raw outputs and batch norms, and statistics where they are those of the batch.
struct Inner {
    raw: Vec<Activations>,
    affines: Vec<Affine>,
    stats: Vec<BatchStats>,
}

impl Block {
    /// A block from `c_in` channels whose 3×3 convolutions have `planes` channels.
    pub fn new(kind: BlockKind, c_in: usize, planes: usize, stride: usize) -> Self {
        Self::with_width(kind, c_in, planes, planes * kind.expansion(), stride)
    }

    /// A block whose inner width and output channels are given separately, as in wide ResNets.
    /// A basic block has `width == c_out`.
    pub fn with_width(kind: BlockKind, c_in: usize, width: usize, c_out: usize, stride: usize) -> Self {
        let conv =
            |c_in, c_out, kernel, stride| ConvSpec { c_in, c_out, kernel, stride, padding: kernel / 2 };
        let convs = match kind {
            BlockKind::Basic => vec![conv(c_in, width, 3, stride), conv(width, c_out, 3, 1)],
            BlockKind::Bottleneck => {
                vec![conv(c_in, width, 1, 1), conv(width, width, 3, stride), conv(width, c_out, 1, 1)]
            }
        };
        let downsample = (stride != 1 || c_in != c_out).then(|| conv(c_in, c_out, 1, stride));
        Self { convs, downsample }
    }

    /// Output channels.
    pub fn c_out(&self) -> usize {
        self.convs[self.convs.len() - 1].c_out
    }

    /// All convolutions, the shortcut's last.
    pub fn convs(&self) -> impl Iterator<Item = &ConvSpec> {
        self.convs.iter().chain(&self.downsample)
    }

    /// Where convolution `i` of the main path reads from.
    fn source<'a>(
        i: usize,
        input: &'a Activations,
        raw: &'a [Activations],
        affines: &'a [Affine],
    ) -> Source<'a> {
        match i.checked_sub(1) {
            None => Source::Plain(input),
            Some(before) => Source::NormRelu { raw: &raw[before], affine: &affines[before] },
        }
    }

    /// Runs all convolutions. Statistics come from `known`, or are those of the batch.
    fn run(
        &self,
        ctx: &Context,
        input: &Activations,
        params: &[&[f32]],
        known: Option<&[Affine]>,
    ) -> Result<Inner, Error> {
        let mut raw: Vec<Activations> = Vec::new();
        let mut affines: Vec<Affine> = known.map(<[Affine]>::to_vec).unwrap_or_default();
        let mut stats = Vec::new();
        for (i, spec) in self.convs().enumerate() {
            let mut out;
            let batch;
            {
                let source = if i < self.convs.len() {
                    Self::source(i, input, &raw, &affines)
                } else {
                    Source::Plain(input)
                };
                out = ctx.activations(spec.output_shape(source.shape()), ctx.precision());
                batch = conv::forward(ctx, spec, source, params[3 * i], &mut out, known.is_none());
            }
            raw.push(out);
            if let Some(batch) = batch {
                let batch = ctx.merge_stats(batch)?;
                affines.push(Affine::new(&batch.mean, &batch.var, params[3 * i + 1], params[3 * i + 2]));
                stats.push(batch);
            }
        }
        Ok(Inner { raw, affines, stats })
    }

    fn join(
        &self,
        ctx: &Context,
        input: &Activations,
        raw: &[Activations],
        affines: &[Affine],
    ) -> Activations {
        let last = self.convs.len() - 1;
        let mut out = ctx.activations(raw[last].shape, ctx.precision());
        pointwise::join(ctx, &raw[last], &affines[last], self.shortcut(input, raw, affines), &mut out);
        out
    }

    fn shortcut<'a>(
        &self,
        input: &'a Activations,
        raw: &'a [Activations],
        affines: &'a [Affine],
    ) -> Shortcut<'a> {
        let side = self.convs.len();
        match self.downsample {
            None => Shortcut::Identity(input),
            Some(_) => Shortcut::Norm { raw: &raw[side], affine: &affines[side] },
        }
    }
}

impl Unit for Block {
    fn parameters(&self) -> Vec<ParamSpec> {
        let mut specs = Vec::new();
        for (i, conv) in self.convs.iter().enumerate() {
            specs.push(ParamSpec::conv(&format!("conv{}", i + 1), conv.c_out, conv.kernel, conv.c_in));
            specs.extend(ParamSpec::norm(&format!("bn{}", i + 1), conv.c_out));
        }
        if let Some(conv) = &self.downsample {
            specs.push(ParamSpec::conv("downsample.0", conv.c_out, conv.kernel, conv.c_in));
            specs.extend(ParamSpec::norm("downsample.1", conv.c_out));
        }
        specs
    }

    fn norms(&self) -> Vec<NormSpec> {
        let main = self.convs.iter().enumerate();
        let mut norms: Vec<_> =
            main.map(|(i, c)| NormSpec { name: format!("bn{}", i + 1), channels: c.c_out }).collect();
        norms.extend(
            self.downsample.iter().map(|c| NormSpec { name: "downsample.1".into(), channels: c.c_out }),
        );
        norms
    }

    fn convolutions(&self, ctx: &Context, input: [usize; 4]) -> Vec<Convolution> {
        let mut shape = input;
        let stored = [ctx.precision(); 2];
        let main = self.convs.iter().enumerate().map(|(i, &spec)| {
            let input = shape;
            shape = spec.output_shape(input);
            Convolution { name: format!("conv{}.weight", i + 1), spec, input, stored }
        });
        let mut convs: Vec<_> = main.collect();
        let side = |spec| Convolution { name: "downsample.0.weight".into(), spec, input, stored };
        convs.extend(self.downsample.map(side));
        convs
    }

    fn output_shape(&self, input: [usize; 4]) -> Result<[usize; 4], Error> {
        self.convs.iter().try_fold(input, |shape, conv| {
            conv.check(shape, conv.weight_len())?;
            Ok(conv.output_shape(shape))
        })
    }

    fn forward_train(
        &self,
        ctx: &Context,
        input: Activations,
        params: &[&[f32]],
    ) -> Result<(Activations, Saved), Error> {
        check_precision(&input, ctx.precision())?;
        let output_shape = check_forward(self, &input, params)?;
        check_batch(ctx, output_shape)?;
        let Inner { mut raw, affines, stats } = self.run(ctx, &input, params, None)?;
        let out = self.join(ctx, &input, &raw, &affines);
        if ctx.checkpointing() == Checkpointing::Blocks {
            raw.drain(..).for_each(|a| ctx.recycle(a));
        }
        Ok((out, Saved { input: Some(input), raw, stats, output_shape, precision: ctx.precision() }))
    }

    fn backward(&self, ctx: &Context, args: Backward<'_>) -> Result<Option<Activations>, Error> {
        check_backward(self, &args)?;
        let Backward { saved, grad_output, params, grads, want_grad_input } = args;
        let Saved { input: Some(input), mut raw, stats, .. } = saved else {
            return Err(Error::shape("what a block saved", "its input", "nothing"));
        };
        let affines: Vec<Affine> = (stats.iter().enumerate())
            .map(|(i, s)| Affine::new(&s.mean, &s.var, params[3 * i + 1], params[3 * i + 2]))
            .collect();
        if raw.is_empty() {
            raw = self.run(ctx, &input, params, Some(&affines))?.raw;
        }
        let last = self.convs.len() - 1;
        let mut grad = grad_output;
        let side_mean = self.downsample.map_or(&[][..], |_| &stats[last + 1].mean);
        let shortcut = self.shortcut(&input, &raw, &affines);
        let main = Normed { raw: &raw[last], affine: &affines[last], mean: &stats[last].mean };
        let (mut sums, side_sums) = pointwise::join_backward(ctx, &mut grad, main, shortcut, side_mean);
        // The shortcut's gradient, and then the input's: the masked gradient itself, or a new buffer.
        let mut side = None;
        if let (Some(_), Some(sums)) = (&self.downsample, &side_sums) {
            let i = last + 1;
            let (d_gamma, d_beta) = pair_mut(grads, 3 * i + 1);
            side = Some(GradAffine::new(ctx, &stats[i], sums, params[3 * i + 1], d_gamma, d_beta)?);
        }
        let mut outer = Some(grad);
        let mut inner: Option<Activations> = None;
        let mut grad_input = None;
        for i in (0..self.convs.len()).rev() {
            let (d_gamma, d_beta) = pair_mut(grads, 3 * i + 1);
            let affine = GradAffine::new(ctx, &stats[i], &sums, params[3 * i + 1], d_gamma, d_beta)?;
            // The last convolution's gradient is `outer`, which the shortcut still needs.
            let Some(grad) = inner.as_ref().or(outer.as_ref()) else {
                unreachable!("either there is an inner gradient or the outer one is still here")
            };
            let dy = Source::NormGrad { grad, raw: &raw[i], affine: &affine };
            let x = Self::source(i, &input, &raw, &affines);
            conv::backward_weights(ctx, &self.convs[i], x, dy, &mut grads[3 * i]);
            if i > 0 {
                let mut out = ctx.activations(raw[i - 1].shape, ctx.precision());
                let post =
                    Post::ReluNorm { raw: &raw[i - 1], affine: &affines[i - 1], mean: &stats[i - 1].mean };
                sums = conv::backward_data(ctx, &self.convs[i], dy, params[3 * i], &mut out, post)
                    .unwrap_or_else(|| unreachable!("ReluNorm returns sums"));
                if let Some(done) = inner.replace(out) {
                    ctx.recycle(done);
                }
            } else if want_grad_input {
                let (mut out, post) = match (&self.downsample, outer.take()) {
                    (None, Some(masked)) if inner.is_some() => (masked, Post::Accumulate),
                    (_, back) => {
                        outer = back;
                        (ctx.activations(input.shape, ctx.precision()), Post::Store)
                    }
                };
                let Some(grad) = inner.as_ref() else { unreachable!("blocks have two convolutions or more") };
                let dy = Source::NormGrad { grad, raw: &raw[0], affine: &affine };
                conv::backward_data(ctx, &self.convs[0], dy, params[0], &mut out, post);
                grad_input = Some(out);
            }
        }
        if let (Some(spec), Some(affine), Some(grad)) = (&self.downsample, &side, &outer) {
            let i = last + 1;
            let dy = Source::NormGrad { grad, raw: &raw[i], affine };
            conv::backward_weights(ctx, spec, Source::Plain(&input), dy, &mut grads[3 * i]);
            if let Some(out) = &mut grad_input {
                conv::backward_data(ctx, spec, dy, params[3 * i], out, Post::Accumulate);
            }
        }
        raw.into_iter().chain(inner).chain(outer).chain([input]).for_each(|a| ctx.recycle(a));
        Ok(grad_input)
    }

    fn forward_infer(
        &self,
        ctx: &Context,
        input: &Activations,
        params: &[&[f32]],
        running: &[RunningStats<'_>],
    ) -> Result<Activations, Error> {
        check_precision(input, ctx.precision())?;
        check_forward(self, input, params)?;
        check_running(self, running)?;
        let affines: Vec<Affine> = (running.iter().enumerate())
            .map(|(i, s)| Affine::new(s.mean, s.var, params[3 * i + 1], params[3 * i + 2]))
            .collect();
        let Inner { raw, affines, .. } = self.run(ctx, input, params, Some(&affines))?;
        let out = self.join(ctx, input, &raw, &affines);
        raw.into_iter().for_each(|a| ctx.recycle(a));
        Ok(out)
    }

    fn ready(
        &self,
        ctx: &Context,
        params: &[Arc<Vec<f32>>],
        running: &[RunningStats<'_>],
    ) -> Result<Box<dyn Ready>, Error> {
        folded(ctx, self.clone(), params, running, |unit| {
            let convs = unit.convs().zip(params.chunks(3)).zip(running);
            let mut convs: Vec<_> = convs
                .map(|((&spec, params), running)| FoldedConv::with_norm(spec, params, running))
                .collect();
            let downsample = unit.downsample.and_then(|_| convs.pop());
            FoldedBlock { unit, convs, downsample }
        })
    }
}

/// A block whose batch norms are folded into its convolutions; the last of them adds the shortcut.
#[derive(Debug)]
struct FoldedBlock {
    unit: Block,
    convs: Vec<FoldedConv>,
    downsample: Option<FoldedConv>,
}

impl Ready for FoldedBlock {
    fn output_shape(&self, input: [usize; 4]) -> Result<[usize; 4], Error> {
        self.unit.output_shape(input)
    }

    fn run(&self, ctx: &Context, input: Activations) -> Result<Activations, Error> {
        check_input(&self.unit, &input)?;
        let last = self.convs.len() - 1;
        let mut flow = self.convs[0].run(ctx, &input, true);
        for conv in &self.convs[1..last] {
            let next = conv.run(ctx, &flow, true);
            ctx.recycle(std::mem::replace(&mut flow, next));
        }
        // The sum is where the shortcut was.
        let mut out = match &self.downsample {
            None => input,
            Some(conv) => {
                let side = conv.run(ctx, &input, false);
                ctx.recycle(input);
                side
            }
        };
        self.convs[last].join(ctx, &flow, &mut out);
        ctx.recycle(flow);
        Ok(out)
    }

    fn words(&self) -> usize {
        self.convs.iter().chain(&self.downsample).map(FoldedConv::words).sum()
    }
}
