//! The first layer.

use std::sync::Arc;

use super::infer::{FoldedConv, check_input, folded};
use super::{
    Backward, Convolution, NormSpec, ParamSpec, Ready, RunningStats, Saved, Unit, check_backward,
    check_batch, check_forward, check_precision, check_running, pair_mut,
};
use crate::conv::{self, ConvSpec, Post, Source};
use crate::norm::{Affine, GradAffine};
use crate::pointwise::{self, Normed, Shortcut};
use crate::pool;
use crate::{Activations, Context, Error, Precision};

/// Convolution, batch norm, ReLU and optionally max pooling (3×3, stride 2, padding 1).
///
/// The input is f32 in both precisions: it is the images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stem {
    conv: ConvSpec,
    max_pool: bool,
}

impl Stem {
    /// ImageNet's stem: 7×7, stride 2, then max pooling.
    pub fn imagenet(width: usize) -> Self {
        Self::new(ConvSpec { c_in: 3, c_out: width, kernel: 7, stride: 2, padding: 3 }, true)
    }

    /// The stem for small images: 3×3, stride 1, no pooling.
    pub fn cifar(width: usize) -> Self {
        Self::new(ConvSpec { c_in: 3, c_out: width, kernel: 3, stride: 1, padding: 1 }, false)
    }

    /// Any convolution.
    pub fn new(conv: ConvSpec, max_pool: bool) -> Self {
        Self { conv, max_pool }
    }

    /// The convolution.
    pub fn conv(&self) -> &ConvSpec {
        &self.conv
    }

    fn finish(&self, ctx: &Context, raw: &Activations, affine: &Affine, shape: [usize; 4]) -> Activations {
        let mut out = ctx.activations(shape, ctx.precision());
        if self.max_pool {
            pool::norm_relu_max_pool(ctx, raw, affine, &mut out);
        } else {
            pointwise::join(ctx, raw, affine, Shortcut::None, &mut out);
        }
        out
    }
}

impl Unit for Stem {
    fn parameters(&self) -> Vec<ParamSpec> {
        let mut specs = vec![ParamSpec::conv("conv1", self.conv.c_out, self.conv.kernel, self.conv.c_in)];
        specs.extend(ParamSpec::norm("bn1", self.conv.c_out));
        specs
    }

    fn norms(&self) -> Vec<NormSpec> {
        vec![NormSpec { name: "bn1".into(), channels: self.conv.c_out }]
    }

    fn convolutions(&self, ctx: &Context, input: [usize; 4]) -> Vec<Convolution> {
        let stored = [Precision::F32, ctx.precision()];
        vec![Convolution { name: "conv1.weight".into(), spec: self.conv, input, stored }]
    }

    fn output_shape(&self, input: [usize; 4]) -> Result<[usize; 4], Error> {
        self.conv.check(input, self.conv.weight_len())?;
        let [n, h, w, c] = self.conv.output_shape(input);
        Ok(if self.max_pool { [n, h.div_ceil(2), w.div_ceil(2), c] } else { [n, h, w, c] })
    }

    fn forward_train(
        &self,
        ctx: &Context,
        input: Activations,
        params: &[&[f32]],
    ) -> Result<(Activations, Saved), Error> {
        check_precision(&input, Precision::F32)?;
        let output_shape = check_forward(self, &input, params)?;
        let shape = self.conv.output_shape(input.shape);
        check_batch(ctx, shape)?;
        let mut raw = ctx.activations(shape, ctx.precision());
        let stats = conv::forward(ctx, &self.conv, Source::Plain(&input), params[0], &mut raw, true)
            .unwrap_or_else(|| unreachable!("statistics were asked for"));
        let stats = ctx.merge_stats(stats)?;
        let affine = Affine::new(&stats.mean, &stats.var, params[1], params[2]);
        let out = self.finish(ctx, &raw, &affine, output_shape);
        Ok((
            out,
            Saved {
                input: Some(input),
                raw: vec![raw],
                stats: vec![stats],
                output_shape,
                precision: ctx.precision(),
            },
        ))
    }

    fn backward(&self, ctx: &Context, args: Backward<'_>) -> Result<Option<Activations>, Error> {
        check_backward(self, &args)?;
        let Backward { saved, grad_output, params, grads, want_grad_input } = args;
        let Saved { input: Some(input), mut raw, mut stats, .. } = saved else {
            return Err(Error::shape("what a stem saved", "its input", "nothing"));
        };
        let (Some(raw), Some(stats)) = (raw.pop(), stats.pop()) else {
            return Err(Error::shape("what a stem saved", "its raw output", "nothing"));
        };
        let affine = Affine::new(&stats.mean, &stats.var, params[1], params[2]);
        let mut grad = grad_output;
        let sums = if self.max_pool {
            let mut full = ctx.activations(raw.shape, ctx.precision());
            let normed = Normed { raw: &raw, affine: &affine, mean: &stats.mean };
            let sums = pool::norm_relu_max_pool_backward(ctx, &grad, normed, &mut full);
            ctx.recycle(std::mem::replace(&mut grad, full));
            sums
        } else {
            pointwise::relu_norm_backward(
                ctx,
                &mut grad,
                Normed { raw: &raw, affine: &affine, mean: &stats.mean },
            )
        };
        let (d_gamma, d_beta) = pair_mut(grads, 1);
        let affine = GradAffine::new(ctx, &stats, &sums, params[1], d_gamma, d_beta)?;
        let dy = Source::NormGrad { grad: &grad, raw: &raw, affine: &affine };
        conv::backward_weights(ctx, &self.conv, Source::Plain(&input), dy, &mut grads[0]);
        let grad_input = want_grad_input.then(|| {
            let mut out = ctx.activations(input.shape, input.precision);
            conv::backward_data(ctx, &self.conv, dy, params[0], &mut out, Post::Store);
            out
        });
        [raw, grad, input].into_iter().for_each(|a| ctx.recycle(a));
        Ok(grad_input)
    }

    fn forward_infer(
        &self,
        ctx: &Context,
        input: &Activations,
        params: &[&[f32]],
        running: &[RunningStats<'_>],
    ) -> Result<Activations, Error> {
        check_precision(input, Precision::F32)?;
        let output_shape = check_forward(self, input, params)?;
        check_running(self, running)?;
        let mut raw = ctx.activations(self.conv.output_shape(input.shape), ctx.precision());
        conv::forward(ctx, &self.conv, Source::Plain(input), params[0], &mut raw, false);
        let affine = Affine::new(running[0].mean, running[0].var, params[1], params[2]);
        let out = self.finish(ctx, &raw, &affine, output_shape);
        ctx.recycle(raw);
        Ok(out)
    }

    fn ready(
        &self,
        ctx: &Context,
        params: &[Arc<Vec<f32>>],
        running: &[RunningStats<'_>],
    ) -> Result<Box<dyn Ready>, Error> {
        folded(ctx, self.clone(), params, running, |unit| {
            let conv = FoldedConv::with_norm(unit.conv, params, &running[0]);
            FoldedStem { unit, conv }
        })
    }
}

/// A stem whose batch norm is folded into its convolution.
#[derive(Debug)]
struct FoldedStem {
    unit: Stem,
    conv: FoldedConv,
}

impl Ready for FoldedStem {
    fn output_shape(&self, input: [usize; 4]) -> Result<[usize; 4], Error> {
        self.unit.output_shape(input)
    }

    fn run(&self, ctx: &Context, input: Activations) -> Result<Activations, Error> {
        check_input(&self.unit, &input)?;
        let out = match self.unit.max_pool {
            true => self.conv.run_pooled(ctx, &input),
            false => self.conv.run(ctx, &input, true),
        };
        ctx.recycle(input);
        Ok(out)
    }

    fn words(&self) -> usize {
        self.conv.words()
    }
}
